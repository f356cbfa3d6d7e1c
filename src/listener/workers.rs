//! The threads that serve connections. A worker that has served its connection waits a short time
//! for the next one, because starting and ending a thread costs more than the rest of a short
//! tunnel. If no worker is idle, a new thread is started.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TrySendError, bounded};

use super::report::Tally;
use super::service::Service;
use super::slot::Slot;
use super::supervisor::{LogLine, QUEUE_LIMIT, ThreadEvent};
use crate::control::metrics::Counters;
use crate::control::outcome::{EndReason, Outcome};
use crate::control::stop::Stop;
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

/// How the acceptor and the workers report to the supervisor.
#[derive(Clone)]
pub(super) struct Events {
    pub(super) threads: Sender<ThreadEvent>,
    pub(super) outcomes: Sender<LogLine>,
    pub(super) stop: Arc<Stop>,
    pub(super) counters: Arc<Counters>,
    pub(super) tally: Arc<Tally>,
    /// Dropped when the thread ends.
    pub(super) _serving: Sender<Infallible>,
}

impl Events {
    /// Counts how a connection ended.
    fn count(&self, how: &EndReason) {
        match how {
            EndReason::Rejected(_) => Counters::add(&self.counters.refused, 1),
            EndReason::Broken { .. } | EndReason::Cut | EndReason::Panicked => {
                Counters::add(&self.counters.broken, 1);
            }
            _ => {}
        }
        if self.stop.requested().is_some() {
            self.tally.count(how);
        }
    }

    /// Has a line logged. It does not wait for the logger: if too many lines wait, it is dropped.
    pub(super) fn log(&self, line: LogLine) {
        // Several threads may pass this check at once: the limit is approximate.
        if self.outcomes.len() < QUEUE_LIMIT {
            // If the supervisor has ended, so has the log.
            let _ = self.outcomes.send(line);
        } else {
            Counters::add(&self.tally.unlogged, 1);
        }
    }
}

/// The acceptor's side of the workers. Dropping it ends idle workers at once.
pub(super) struct WorkerPool<S> {
    service: Arc<S>,
    pub(super) events: Events,
    /// Has no capacity: a connection is sent only to a worker that waits for it.
    connections: Sender<Accepted>,
    waiting: Receiver<Accepted>,
    idle: Arc<AtomicUsize>,
    started: u64,
}

impl<S: Service> WorkerPool<S> {
    pub(super) fn new(service: Arc<S>, events: Events) -> Self {
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

    /// Passes the connection to a worker that is idle within `wait`, or to a new one.
    ///
    /// # Errors
    /// No worker is idle and no thread can be started. Returns the connection; its slot is free
    /// again.
    pub(super) fn serve(
        &mut self,
        accepted: Accepted,
        wait: Duration,
    ) -> Result<(), (io::Error, TcpStream)> {
        // `send_timeout` makes system calls even if it need not wait.
        let unsent = if wait.is_zero() {
            let sent = self.connections.try_send(accepted);
            sent.map_err(TrySendError::into_inner)
        } else {
            let sent = self.connections.send_timeout(accepted, wait);
            sent.map_err(SendTimeoutError::into_inner)
        };
        let Err(accepted) = unsent else {
            return Ok(());
        };
        self.started += 1;
        let id = self.started;
        // If the thread does not start, the connection is still in this channel.
        let (first, receiver) = bounded(1);
        let _ = first.send(accepted);
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
                let _ = self.events.threads.send(ThreadEvent::Started(id, thread));
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
    events: Events,
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
            self.events.log(LogLine::Served(Box::new(outcome)));
            next = self.next();
        }
        let _ = self.events.threads.send(ThreadEvent::Exiting(id));
    }

    /// Serves one connection. A panic ends that connection only.
    fn serve(&self, accepted: Accepted) -> Outcome {
        let since = Instant::now();
        let Accepted {
            connection,
            peer,
            slot,
        } = accepted;
        let mut report = |outcome: Outcome| {
            self.events.count(&outcome.reason);
            self.events.log(LogLine::Served(Box::new(outcome)));
        };
        let served = catch_unwind(AssertUnwindSafe(|| {
            self.service.serve(connection, peer, &mut report)
        }));
        let outcome =
            served.unwrap_or_else(|_| Outcome::new(since, None, Err(EndReason::Panicked)));
        self.events.count(&outcome.reason);
        drop(slot);
        outcome
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

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;

    #[test]
    fn lines_that_a_slow_logger_cannot_take_are_counted_and_not_kept() {
        let (threads, _) = unbounded();
        let (outcomes, waiting) = unbounded();
        let events = Events {
            threads,
            outcomes,
            stop: Arc::new(Stop::new().unwrap()),
            counters: Arc::default(),
            tally: Arc::default(),
            _serving: bounded(0).0,
        };
        for _ in 0..QUEUE_LIMIT + 10 {
            events.log(LogLine::Warning(String::new()));
        }
        assert_eq!(waiting.len(), QUEUE_LIMIT);
        assert_eq!(events.tally.unlogged.load(Ordering::Relaxed), 10);
    }
}
