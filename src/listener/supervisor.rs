//! The thread that owns every worker: it receives their outcomes and the request to stop, and joins
//! the workers.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, never, select};

use super::report::ShutdownReport;
use crate::control::deadline::Deadline;
use crate::control::metrics::Counters;
use crate::control::outcome::{EndReason, Outcome};
use crate::control::stop::Stop;
use crate::sys::memory;

/// How long the supervisor sleeps when it has handled all events. With many connections a second it
/// then wakes once for several of them.
const BATCH_DELAY: Duration = Duration::from_millis(1);
/// Heap memory is returned to the kernel when there were this many workers, and only this fraction
/// of them is left.
const MANY_WORKERS: usize = 64;
const REMAINING_FRACTION: usize = 4;

/// What the acceptor and the workers report.
pub(super) enum WorkerEvent {
    /// The acceptor started a worker.
    Started(u64, JoinHandle<()>),
    /// A worker has served a connection.
    Served(Outcome),
    /// A worker's thread is about to end.
    Exiting(u64),
}

/// The state of the supervisor thread.
pub(super) struct Supervisor {
    pub(super) log_name: &'static str,
    pub(super) worker_events: Receiver<WorkerEvent>,
    pub(super) stop_requests: Receiver<Duration>,
    pub(super) acceptor: JoinHandle<()>,
    pub(super) stop: Arc<Stop>,
    pub(super) counters: Arc<Counters>,
    pub(super) drain: Duration,
}

impl Supervisor {
    /// Counts outcomes and joins workers until the acceptor and every worker have ended.
    pub(super) fn run(mut self) -> ShutdownReport {
        // A worker may exit before the acceptor reports that it started: `None` is such a worker.
        let mut workers: HashMap<u64, Option<JoinHandle<()>>> = HashMap::new();
        let mut most = 0;
        let mut report = ShutdownReport::default();
        loop {
            select! {
                recv(self.worker_events) -> event => match event {
                    Ok(WorkerEvent::Started(id, thread)) => {
                        if workers.remove(&id).is_none() {
                            workers.insert(id, Some(thread));
                            most = most.max(workers.len());
                        } else {
                            join(thread);
                        }
                    }
                    Ok(WorkerEvent::Served(outcome)) => {
                        self.record(&outcome);
                        if self.stop.requested().is_some() {
                            count(&outcome, &mut report);
                        }
                    }
                    Ok(WorkerEvent::Exiting(id)) => {
                        match workers.remove(&id) {
                            Some(Some(thread)) => join(thread),
                            _ => { workers.insert(id, None); }
                        }
                        if most >= MANY_WORKERS && workers.len() <= most / REMAINING_FRACTION {
                            most = workers.len();
                            memory::give_back_heap();
                        }
                    }
                    // The acceptor and every worker have ended.
                    Err(_) => break,
                },
                recv(self.stop_requests) -> drain => {
                    self.stop_requests = never();
                    self.stop.request(Deadline::after(drain.unwrap_or(self.drain)));
                }
            }
            if self.worker_events.is_empty() && self.stop.requested().is_none() {
                thread::sleep(BATCH_DELAY);
            }
        }
        join(self.acceptor);
        report.stats = self.counters.stats();
        report
    }

    fn record(&self, outcome: &Outcome) {
        let counters = &self.counters;
        match &outcome.reason {
            EndReason::Rejected(_) => Counters::add(&counters.refused, 1),
            EndReason::Broken { .. } | EndReason::Cut | EndReason::Panicked => {
                Counters::add(&counters.broken, 1);
            }
            _ => {}
        }
        outcome.log(self.log_name);
    }
}

fn count(outcome: &Outcome, report: &mut ShutdownReport) {
    match outcome.reason {
        EndReason::Cut => report.cut += 1,
        EndReason::Answered | EndReason::Abandoned | EndReason::Rejected(_) => {}
        _ => report.ended += 1,
    }
}

fn join(thread: JoinHandle<()>) {
    // Workers catch their panics and report them.
    let _ = thread.join();
}
