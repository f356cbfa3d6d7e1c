//! Accepting connections, for the relay and for the gateway: a slot first, then accept, then a named thread for it alone.
//!
//! `acceptor` accepts and never ends on an error, `workers` are the threads that it hands connections to, `leaving` those
//! that it had to refuse. `supervisor` owns every worker. What a connection means is its [`Service`]'s.

mod acceptor;
mod lingering_close;
mod supervisor;
mod workers;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use socket2::{Domain, Protocol, Socket, Type};

use crate::control::deadline::Deadline;
use crate::control::metrics::{Counters, Stats};
use crate::control::outcome::Outcome;
use crate::control::stop::{Abort, Stop};
use crate::sys::memory;
use acceptor::Acceptor;
use lingering_close::LingeringClose;
use supervisor::Supervisor;
use workers::Workers;

/// How many connections may wait in the kernel; std's own 128 is little for a package manager that opens dozens at once.
const BACKLOG: i32 = 1024;

/// What a listener is for.
pub(crate) trait Service: Send + Sync + 'static {
    /// Whose connections they are, for the log.
    const WHO: &'static str;

    /// What its threads are called: supervisor, acceptor, and the start of each worker's name; 15 bytes at most.
    const THREADS: [&'static str; 3];

    /// Serves one connection to its end.
    fn serve(&self, connection: TcpStream, peer: SocketAddr) -> Outcome;

    /// What a connection is told that finds no slot free.
    fn refusal(&self) -> Vec<u8>;

    /// Asked when no slot is free: turns out a connection that holds one and has shown no right to it.
    fn make_room(&self) -> Eviction {
        Eviction::None
    }
}

/// What a service can do about a missing slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// Nothing: whoever holds a slot has a right to it.
    None,
    /// Nothing before this time.
    NotBefore(Instant),
    /// It has turned a connection out, whose slot will be free in a moment.
    Made,
}

/// What came of the connections that were open when a stop was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Those that ended by themselves, or were ended in order because they were silent.
    pub ended: u64,
    /// Those that were cut at the deadline.
    pub cut: u64,
    /// The counters at the very end.
    pub stats: Stats,
}

/// Binds `address`, ready to accept.
///
/// # Errors
/// What bind(2) and listen(2) say, such as a port that is taken.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the old connections' TIME_WAIT; two live listeners are still impossible.
    socket.set_reuse_address(true)?;
    // Every accepted connection inherits it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A running listener. Dropping it asks for a stop with the default deadline and waits for it.
#[derive(Debug)]
pub(crate) struct Listening {
    address: SocketAddr,
    drain: Duration,
    stop: Arc<Stop>,
    requests: Sender<Duration>,
    supervisor: Option<JoinHandle<ShutdownReport>>,
}

impl Listening {
    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The way to end a shutdown that takes its time.
    pub(crate) fn abort(&self) -> Abort {
        Abort::of(&self.stop)
    }

    /// Stops accepting, gives open connections `drain` to end, and returns when every thread is joined.
    pub(crate) fn shutdown(mut self, drain: Duration) -> ShutdownReport {
        self.stop(drain)
    }

    fn stop(&mut self, drain: Duration) -> ShutdownReport {
        let Some(supervisor) = self.supervisor.take() else {
            return ShutdownReport::default();
        };
        // A supervisor that is gone has nothing left to stop.
        let _ = self.requests.send(drain);
        supervisor.join().unwrap_or_default()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop(self.drain);
    }
}

/// What the supervisor hears of.
enum Event {
    /// A worker was started.
    Hired(u64, JoinHandle<()>),
    /// A connection has ended.
    Ended(Outcome),
    /// A worker is about to end.
    Left(u64),
}

/// Starts accepting from `socket`: at most `cap` connections at once, each served on a thread of its own.
///
/// # Errors
/// The socket has no address, or a thread could not be started.
pub(crate) fn start<S: Service>(
    socket: TcpListener,
    service: Arc<S>,
    cap: usize,
    drain: Duration,
    stop: &Arc<Stop>,
    counters: Arc<Counters>,
) -> io::Result<Listening> {
    let address = socket.local_addr()?;
    let (events, reports) = unbounded();
    let (requests, requested) = unbounded();
    let acceptor = Acceptor {
        socket,
        service: Arc::clone(&service),
        cap: cap as u64,
        stop: Arc::clone(stop),
        counters: Arc::clone(&counters),
        workers: Workers::new(service, events),
        leaving: LingeringClose::default(),
        complained: None,
    };
    let [supervisor_name, acceptor_name, _] = S::THREADS;
    let acceptor = thread::Builder::new()
        .name(acceptor_name.into())
        .stack_size(memory::STACK)
        .spawn(move || acceptor.run())?;
    let supervisor = Supervisor {
        who: S::WHO,
        reports,
        requested,
        acceptor,
        stop: Arc::clone(stop),
        counters,
        drain,
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
        requests,
        supervisor: Some(spawned?),
    })
}

/// Gives the slot back on whatever way the worker ends, and tells the acceptor, which may be waiting for one.
struct Slot {
    counters: Arc<Counters>,
    acceptor: Thread,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counters.live.fetch_sub(1, Ordering::AcqRel);
        self.acceptor.unpark();
    }
}
