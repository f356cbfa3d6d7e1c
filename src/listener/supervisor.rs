//! The thread that owns every worker: it takes their outcomes and the request to stop from one channel each, and joins them.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, never, select};

use super::{Event, ShutdownReport};
use crate::control::deadline::Deadline;
use crate::control::metrics::Counters;
use crate::control::outcome::{EndReason, Outcome};
use crate::control::stop::Stop;
use crate::sys::memory;

/// How long the supervisor takes no report after the last one: of many connections a second it need not be woken by each.
const BREATH: Duration = Duration::from_millis(1);
/// When so many workers have been there and only this part of them is left, what they had of the heap is given back.
const MANY: usize = 64;
const FEW_OF_MANY: usize = 4;

/// What it hears from, and does with what it hears.
pub(super) struct Supervisor {
    pub(super) who: &'static str,
    pub(super) reports: Receiver<Event>,
    pub(super) requested: Receiver<Duration>,
    pub(super) acceptor: JoinHandle<()>,
    pub(super) stop: Arc<Stop>,
    pub(super) counters: Arc<Counters>,
    pub(super) drain: Duration,
}

impl Supervisor {
    /// Counts every outcome and joins every worker, until a stop was asked for and nobody is left.
    pub(super) fn run(mut self) -> ShutdownReport {
        // A worker may be gone before the acceptor has told of it: `None` stands for one that left without a thread.
        let mut workers: HashMap<u64, Option<JoinHandle<()>>> = HashMap::new();
        let mut most = 0;
        let mut report = ShutdownReport::default();
        loop {
            select! {
                recv(self.reports) -> event => match event {
                    Ok(Event::Hired(id, thread)) => {
                        if workers.remove(&id).is_none() {
                            workers.insert(id, Some(thread));
                            most = most.max(workers.len());
                        } else {
                            join(thread);
                        }
                    }
                    Ok(Event::Ended(outcome)) => {
                        self.note(&outcome);
                        if self.stop.requested().is_some() {
                            count(&outcome, &mut report);
                        }
                    }
                    Ok(Event::Left(id)) => {
                        match workers.remove(&id) {
                            Some(Some(thread)) => join(thread),
                            _ => { workers.insert(id, None); }
                        }
                        if most >= MANY && workers.len() <= most / FEW_OF_MANY {
                            most = workers.len();
                            memory::give_back_heap();
                        }
                    }
                    // The acceptor and every worker are gone.
                    Err(_) => break,
                },
                recv(self.requested) -> drain => {
                    self.requested = never();
                    self.stop.request(Deadline::after(drain.unwrap_or(self.drain)));
                }
            }
            if self.reports.is_empty() && self.stop.requested().is_none() {
                thread::sleep(BREATH);
            }
        }
        join(self.acceptor);
        report.stats = self.counters.stats();
        report
    }

    fn note(&self, outcome: &Outcome) {
        let counters = &self.counters;
        match &outcome.how {
            EndReason::Refused { .. } => Counters::add(&counters.refused, 1),
            EndReason::Broken { .. } | EndReason::Cut | EndReason::Panicked => {
                Counters::add(&counters.broken, 1);
            }
            _ => {}
        }
        outcome.log(self.who);
    }
}

fn count(outcome: &Outcome, report: &mut ShutdownReport) {
    match outcome.how {
        EndReason::Cut => report.cut += 1,
        EndReason::Answered | EndReason::Abandoned | EndReason::Refused { .. } => {}
        _ => report.ended += 1,
    }
}

fn join(thread: JoinHandle<()>) {
    // Workers catch their own panics, and have reported them.
    let _ = thread.join();
}
