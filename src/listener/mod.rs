//! Accepts connections, for the relay and for the gateway, and serves each on its own named thread.
//!
//! A connection needs a slot; their number is limited. `acceptor` accepts and survives every error,
//! `evictable` lists the connections that may be closed for others, `workers` are the threads that
//! serve connections, `lingering_close` holds connections that were refused, `supervisor` joins all
//! workers, and `liveness` asks whether the threads work. A [`Service`] decides what a connection
//! means.

mod acceptor;
mod evictable;
mod lingering_close;
mod liveness;
mod report;
mod service;
mod slot;
mod supervisor;
mod workers;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, unbounded};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::control::deadline::Deadline;
use crate::control::log;
use crate::control::metrics::Counters;
use crate::control::refusals::Refusals;
use crate::control::stop::{Abort, Stop};
use crate::sys::memory;
use acceptor::Acceptor;
use lingering_close::LingeringClose;
use report::Tally;
use supervisor::{FLUSH_TIME, Supervisor};
use workers::{Events, WorkerPool};

pub(crate) use evictable::{EvictableList, Eviction};
pub(crate) use liveness::Liveness;
pub use report::ShutdownReport;
pub(crate) use service::Service;

/// How many connections may wait in the kernel. The 128 of std are too few for a package manager
/// that opens dozens at once.
const BACKLOG: i32 = 1024;
/// How long after the deadline of a shutdown its threads may take to end. They need 2 s for closing
/// handshakes; the rest is for a busy machine. Only a thread that is stuck in the host's logger
/// takes longer. It is left behind.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// How often a shutdown checks whether another thread has cut it short.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Binds a non-blocking socket to `address` and listens.
///
/// # Errors
/// An error of bind(2) or listen(2), for example a port in use.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the TIME_WAIT of old connections. Two listeners are still
    // impossible.
    socket.set_reuse_address(true)?;
    // Every accepted connection inherits it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The socket that another process has opened, or a new one that is bound to `address`.
///
/// # Errors
/// As [`bind`].
pub(crate) fn open(opened: Option<TcpListener>, address: SocketAddr) -> io::Result<TcpListener> {
    let Some(socket) = opened else {
        return bind(address);
    };
    // Its backlog is the choice of the process that has opened it.
    socket.set_nonblocking(true)?;
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    Ok(socket)
}

/// A running listener. Dropping it shuts it down with the default drain time.
#[derive(Debug)]
#[must_use = "dropping it stops the listener"]
pub(crate) struct Listening {
    address: SocketAddr,
    drain: Duration,
    stop: Arc<Stop>,
    liveness: Liveness,
    counters: Arc<Counters>,
    tally: Arc<Tally>,
    /// Disconnected when the acceptor and every worker have ended.
    serving: Receiver<Infallible>,
    /// Disconnected when the supervisor has ended.
    supervising: Receiver<Infallible>,
    supervisor: Option<JoinHandle<()>>,
}

impl Listening {
    /// The address of the listening socket.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// A handle that ends a running shutdown at once.
    pub(crate) fn abort(&self) -> Abort {
        Abort::of(&self.stop)
    }

    /// Finds out whether its threads work.
    #[cfg_attr(not(feature = "cli"), allow(dead_code))]
    pub(crate) fn liveness(&self) -> Liveness {
        self.liveness.clone()
    }

    /// Stops accepting, gives open connections `drain` to end, and returns when every thread is
    /// joined.
    pub(crate) fn shutdown(mut self, drain: Duration) -> ShutdownReport {
        self.stop(drain)
    }

    fn stop(&mut self, drain: Duration) -> ShutdownReport {
        let Some(supervisor) = self.supervisor.take() else {
            return ShutdownReport::default();
        };
        // The threads of the process that forked this one are not here to be stopped.
        if !self.stop.is_of_this_process() {
            return ShutdownReport::default();
        }
        self.stop.request(Deadline::after(drain));
        // Inside the host's logger, this may be a thread that the shutdown would wait for.
        if !log::in_logger() {
            while !ended_within(&self.serving, CHECK_INTERVAL) && !self.is_stuck() {}
            if ended_within(&self.supervising, FLUSH_TIME * 5) {
                // A panic of the supervisor was reported by the panic hook.
                let _ = supervisor.join();
            }
        }
        self.tally.report(self.counters.stats())
    }

    /// Whether threads that should have ended long ago are still running.
    fn is_stuck(&self) -> bool {
        let deadline = self.stop.requested().and_then(Deadline::instant);
        deadline.is_some_and(|at| at + STUCK_AFTER <= Instant::now())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop(self.drain);
    }
}

/// Starts accepting from `socket`: at most `cap` connections at once.
///
/// # Errors
/// The socket has no address, or no descriptor or thread is left.
pub(crate) fn start<S: Service>(
    socket: TcpListener,
    service: Arc<S>,
    cap: usize,
    drain: Duration,
    stop: &Arc<Stop>,
    counters: Arc<Counters>,
) -> io::Result<Listening> {
    let address = socket.local_addr()?;
    let log_source = service.log_source().clone();
    let liveness = Liveness::new()?;
    let tally = Arc::new(Tally::default());
    let (thread_sender, threads) = unbounded();
    let (outcome_sender, outcomes) = unbounded();
    let (serving_sender, serving) = bounded(0);
    let (supervising_sender, supervising) = bounded(0);
    let events = Events {
        threads: thread_sender,
        outcomes: outcome_sender,
        stop: Arc::clone(stop),
        counters: Arc::clone(&counters),
        tally: Arc::clone(&tally),
        _serving: serving_sender,
    };
    let acceptor = Acceptor {
        socket,
        service: Arc::clone(&service),
        cap: cap as u64,
        stop: Arc::clone(stop),
        liveness: liveness.clone(),
        last_question: 0,
        counters: Arc::clone(&counters),
        workers: WorkerPool::new(service, events),
        refused: LingeringClose::default(),
        last_warning: None,
        last_count: None,
        unlogged: 0,
    };
    let [supervisor_name, acceptor_name, _] = S::THREADS;
    let acceptor = thread::Builder::new()
        .name(acceptor_name.into())
        .stack_size(memory::STACK)
        .spawn(move || acceptor.run())?;
    let supervisor = Supervisor {
        refusals: Refusals::default(),
        log_source,
        threads,
        outcomes,
        acceptor,
        stop: Arc::clone(stop),
        liveness: liveness.clone(),
        tally: Arc::clone(&tally),
        _supervising: supervising_sender,
    };
    let spawned = thread::Builder::new()
        .name(supervisor_name.into())
        .stack_size(memory::STACK)
        .spawn(move || supervisor.run());
    if spawned.is_err() {
        stop.request(Deadline::after(Duration::ZERO));
    }
    Ok(Listening {
        address,
        drain,
        stop: Arc::clone(stop),
        liveness,
        counters,
        tally,
        serving,
        supervising,
        supervisor: Some(spawned?),
    })
}

/// Whether the other end of `channel` is dropped within `time`.
fn ended_within(channel: &Receiver<Infallible>, time: Duration) -> bool {
    channel.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::control::log::LogSource;
    use crate::control::outcome::{EndReason, Outcome};

    /// Has no slot free, and then waits until `release` is dropped.
    struct Stuck {
        source: LogSource,
        release: Receiver<Infallible>,
    }

    impl Service for Stuck {
        const THREADS: [&'static str; 3] = ["super", "accept", "worker"];

        fn log_source(&self) -> &LogSource {
            &self.source
        }

        fn serve(&self, _: TcpStream, _: SocketAddr, _: &mut dyn FnMut(Outcome)) -> Outcome {
            Outcome::new(Instant::now(), None, Err(EndReason::Abandoned))
        }

        fn busy_response(&self) -> Vec<u8> {
            Vec::new()
        }

        fn make_room(&self) -> Eviction {
            let _ = self.release.recv();
            Eviction::None
        }
    }

    #[test]
    fn a_question_is_answered_only_while_the_acceptor_works() {
        let socket = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = socket.local_addr().unwrap();
        let (release, waiting) = bounded(0);
        let service = Stuck {
            source: LogSource::new("relay", address),
            release: waiting,
        };
        let stop = Arc::new(Stop::new().unwrap());
        let counters = Arc::default();
        let drain = Duration::ZERO;
        let listening = start(socket, Arc::new(service), 0, drain, &stop, counters).unwrap();
        let liveness = listening.liveness();
        let wait_until_answered = || {
            while !liveness.check() {
                thread::sleep(Duration::from_millis(1));
            }
        };
        for _ in 0..3 {
            wait_until_answered();
        }
        // The acceptor waits for a slot. It may have passed the last question on before.
        let mut client = TcpStream::connect(address).unwrap();
        while liveness.check() {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!liveness.check(), "it stays so");
        drop(release);
        wait_until_answered();
        assert_eq!(io::Read::read(&mut client, &mut [0]).unwrap_or(0), 0);
        drop(listening);
    }
}
