//! The threads that serve connections. A worker that has served its connection waits a short time
//! for the next one, because starting and ending a thread costs more than the rest of a short
//! tunnel. If no worker is idle, a new thread is started.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::service::Service;
use super::slot::Slot;
use super::supervisor::WorkerEvent;
use crate::control::outcome::{EndReason, Outcome};
use crate::sys::memory;

/// The most idle workers: a package manager opens this many connections at once.
const IDLE_LIMIT: usize = 64;
/// How long a worker waits before it ends: long enough for the next step of an installation, short
/// enough to use no memory on an idle host.
const IDLE_TIME: Duration = Duration::from_secs(2);

/// A connection with its slot.
pub(super) struct Accepted {
    pub(super) connection: TcpStream,
    pub(super) peer: SocketAddr,
    /// Freed when the connection has been served.
    pub(super) slot: Slot,
}

/// The acceptor's side of the workers. Dropping it ends idle workers at once.
pub(super) struct WorkerPool<S> {
    service: Arc<S>,
    events: Sender<WorkerEvent>,
    /// Has no capacity: a connection is sent only to a worker that waits for it.
    connections: Sender<Accepted>,
    waiting: Receiver<Accepted>,
    idle: Arc<AtomicUsize>,
    started: u64,
}

impl<S: Service> WorkerPool<S> {
    pub(super) fn new(service: Arc<S>, events: Sender<WorkerEvent>) -> Self {
        let (connections, waiting) = bounded(0);
        Self {
            service,
            events,
            connections,
            waiting,
            idle: Arc::default(),
            started: 0,
        }
    }

    /// Passes the connection to an idle worker or a new one.
    ///
    /// # Errors
    /// No worker is idle and no thread can be started. Returns the connection; its slot is free
    /// again.
    pub(super) fn serve(&mut self, accepted: Accepted) -> Result<(), (io::Error, TcpStream)> {
        let Err(unsent) = self.connections.try_send(accepted) else {
            return Ok(());
        };
        self.started += 1;
        let id = self.started;
        // If the thread does not start, the connection is still in this channel.
        let (first, receiver) = bounded(1);
        let _ = first.send(unsent.into_inner());
        let worker = Worker {
            service: Arc::clone(&self.service),
            events: self.events.clone(),
            connections: self.waiting.clone(),
            idle: Arc::clone(&self.idle),
        };
        let connection = receiver.clone();
        let spawned = thread::Builder::new()
            .name(format!("{}-{id}", S::THREADS[2]))
            .stack_size(memory::STACK)
            .spawn(move || worker.run(id, &connection));
        match spawned {
            Ok(thread) => {
                // The supervisor outlives all senders.
                let _ = self.events.send(WorkerEvent::Started(id, thread));
                Ok(())
            }
            Err(error) => match receiver.try_recv() {
                Ok(accepted) => Err((error, accepted.connection)),
                Err(_) => Ok(()),
            },
        }
    }
}

/// The thread's side.
struct Worker<S> {
    service: Arc<S>,
    events: Sender<WorkerEvent>,
    connections: Receiver<Accepted>,
    /// The number of workers that wait.
    idle: Arc<AtomicUsize>,
}

impl<S: Service> Worker<S> {
    fn run(self, id: u64, first: &Receiver<Accepted>) {
        memory::find_stack();
        let mut next = first.recv().ok();
        while let Some(accepted) = next {
            let outcome = self.serve(accepted);
            let _ = self.events.send(WorkerEvent::Served(outcome));
            next = self.next();
        }
        let _ = self.events.send(WorkerEvent::Exiting(id));
    }

    /// Serves one connection. A panic ends that connection only.
    fn serve(&self, accepted: Accepted) -> Outcome {
        let since = Instant::now();
        let Accepted {
            connection,
            peer,
            slot,
        } = accepted;
        let served = catch_unwind(AssertUnwindSafe(|| self.service.serve(connection, peer)));
        drop(slot);
        served.unwrap_or_else(|_| Outcome::new(since, None, Err(EndReason::Panicked)))
    }

    /// Waits for the next connection. `None`: none came in time, or enough workers wait.
    fn next(&self) -> Option<Accepted> {
        let others = self.idle.fetch_add(1, Ordering::AcqRel);
        let next = if others < IDLE_LIMIT {
            self.connections.recv_timeout(IDLE_TIME).ok()
        } else {
            None
        };
        self.idle.fetch_sub(1, Ordering::AcqRel);
        next
    }
}
