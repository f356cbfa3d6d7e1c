//! Accepts connections, for the relay and for the gateway, and serves each on its own named thread.
//!
//! A connection needs a slot; their number is limited. `acceptor` accepts and survives every error,
//! `workers` are the threads that serve connections, `lingering_close` holds connections that were
//! refused, and `supervisor` joins all workers. A [`Service`] decides what a connection means.

mod acceptor;
mod lingering_close;
mod report;
mod service;
mod slot;
mod supervisor;
mod workers;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use socket2::{Domain, Protocol, Socket, Type};

use crate::control::deadline::Deadline;
use crate::control::metrics::Counters;
use crate::control::stop::{Abort, Stop};
use crate::sys::memory;
use acceptor::Acceptor;
use lingering_close::LingeringClose;
use supervisor::Supervisor;
use workers::WorkerPool;

pub use report::ShutdownReport;
#[cfg(feature = "gateway")]
pub(crate) use service::Eviction;
pub(crate) use service::Service;

/// How many connections may wait in the kernel. The 128 of std are too few for a package manager
/// that opens dozens at once.
const BACKLOG: i32 = 1024;

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

/// A running listener. Dropping it shuts it down with the default drain time.
#[derive(Debug)]
#[must_use = "dropping it stops the listener"]
pub(crate) struct Listening {
    address: SocketAddr,
    drain: Duration,
    stop: Arc<Stop>,
    stop_requests: Sender<Duration>,
    supervisor: Option<JoinHandle<ShutdownReport>>,
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

    /// Stops accepting, gives open connections `drain` to end, and returns when every thread is
    /// joined.
    pub(crate) fn shutdown(mut self, drain: Duration) -> ShutdownReport {
        self.stop(drain)
    }

    fn stop(&mut self, drain: Duration) -> ShutdownReport {
        let Some(supervisor) = self.supervisor.take() else {
            return ShutdownReport::default();
        };
        // If the supervisor has ended, there is nothing to stop.
        let _ = self.stop_requests.send(drain);
        supervisor.join().unwrap_or_default()
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
    let (events, worker_events) = unbounded();
    let (stop_requests, requested) = unbounded();
    let acceptor = Acceptor {
        socket,
        service: Arc::clone(&service),
        cap: cap as u64,
        stop: Arc::clone(stop),
        counters: Arc::clone(&counters),
        workers: WorkerPool::new(service, events),
        refused: LingeringClose::default(),
        last_warning: None,
    };
    let [supervisor_name, acceptor_name, _] = S::THREADS;
    let acceptor = thread::Builder::new()
        .name(acceptor_name.into())
        .stack_size(memory::STACK)
        .spawn(move || acceptor.run())?;
    let supervisor = Supervisor {
        log_name: S::LOG_NAME,
        worker_events,
        stop_requests: requested,
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
        stop_requests,
        supervisor: Some(spawned?),
    })
}
