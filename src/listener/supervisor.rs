//! The thread that owns every worker: it joins the workers, and writes the log lines of their
//! connections.
//!
//! A log line may take long: the logger is code of the host. So workers count their outcomes
//! themselves, only a limited number of lines waits, and a shutdown does not wait for the log.

use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select_biased};

use super::liveness::Liveness;
use super::report::Tally;
use crate::control::log;
use crate::control::log::LogSource;
use crate::control::outcome::Outcome;
use crate::control::refusals::Refusals;
use crate::control::stop::Stop;
use crate::sys::memory;

/// How long the supervisor sleeps when it has handled all events. With many connections a second it
/// then wakes once for several of them.
const BATCH_DELAY: Duration = Duration::from_millis(1);
/// Heap memory is returned to the kernel when there were this many workers, and only this fraction
/// of them is left.
const MANY_WORKERS: usize = 64;
const REMAINING_FRACTION: usize = 4;
/// The most log lines that wait for the logger. Others are dropped and counted.
pub(super) const QUEUE_LIMIT: usize = 1024;
/// How long the log may take after the last worker has ended. Lines that are left are dropped.
pub(super) const FLUSH_TIME: Duration = Duration::from_secs(1);

/// What the acceptor and the workers report about threads.
pub(super) enum ThreadEvent {
    /// The acceptor started a worker.
    Started(u64, JoinHandle<()>),
    /// A worker's thread is about to end.
    Exiting(u64),
    /// Whether the acceptor and the supervisor work.
    Question(u64),
}

/// A log line that is not written yet.
pub(super) enum LogLine {
    /// A worker has served a connection.
    Served(Box<Outcome>),
    /// A warning of the acceptor, which must not wait for the logger.
    Warning(String),
}

/// The state of the supervisor thread.
pub(super) struct Supervisor {
    pub(super) log_source: LogSource,
    pub(super) threads: Receiver<ThreadEvent>,
    pub(super) outcomes: Receiver<LogLine>,
    pub(super) acceptor: JoinHandle<()>,
    pub(super) stop: Arc<Stop>,
    pub(super) liveness: Liveness,
    pub(super) tally: Arc<Tally>,
    pub(super) refusals: Refusals,
    /// Dropped when the supervisor ends.
    pub(super) _supervising: Sender<Infallible>,
}

/// The workers that run.
#[derive(Default)]
struct Workers {
    /// A worker may exit before the acceptor reports that it started: `None` is such a worker.
    handles: HashMap<u64, Option<JoinHandle<()>>>,
    /// The most workers since memory was returned.
    most: usize,
}

impl Supervisor {
    /// Joins workers and logs outcomes until the acceptor and every worker have ended.
    pub(super) fn run(mut self) {
        let mut workers = Workers::default();
        // The logger is guarded, so a panic is a fault of this crate. It must not end the thread.
        while catch_unwind(AssertUnwindSafe(|| self.supervise(&mut workers))).is_err() {
            thread::sleep(BATCH_DELAY);
        }
        join(self.acceptor);
    }

    fn supervise(&mut self, workers: &mut Workers) {
        let (mut serving, mut logging) = (true, true);
        let mut flush_ends = None;
        while serving || logging {
            // An exited thread keeps its stack until it is joined, so threads come first.
            select_biased! {
                recv(self.threads) -> event => match event {
                    Ok(ThreadEvent::Started(id, thread)) => workers.started(id, thread),
                    Ok(ThreadEvent::Exiting(id)) => workers.exiting(id),
                    Ok(ThreadEvent::Question(question)) => self.liveness.answer(question),
                    Err(_) => {
                        // The acceptor and every worker have ended.
                        serving = false;
                        self.threads = never();
                        flush_ends = Some(Instant::now() + FLUSH_TIME);
                    }
                },
                recv(self.outcomes) -> line => if let Ok(line) = line {
                    self.write(line);
                } else {
                    logging = false;
                    self.outcomes = never();
                },
            }
            if flush_ends.is_some_and(|at| at <= Instant::now()) {
                let left = self.outcomes.try_iter().count() as u64;
                self.tally.unlogged.fetch_add(left, Relaxed);
                break;
            }
            if self.threads.is_empty()
                && self.outcomes.is_empty()
                && self.stop.requested().is_none()
            {
                thread::sleep(BATCH_DELAY);
            }
        }
        self.report_unlogged();
        self.report_repeated();
    }

    fn write(&mut self, line: LogLine) {
        match line {
            LogLine::Served(outcome) => outcome.log(&self.log_source, &mut self.refusals),
            LogLine::Warning(what) => log::warn!(target: self.log_source.target(), "{what}"),
        }
        if self.outcomes.is_empty() {
            self.report_unlogged();
        }
    }

    fn report_repeated(&mut self) {
        let number = self.refusals.take_repeated();
        if number > 0 {
            log::warn!(
                target: self.log_source.target(),
                "{}: requests refused like those in the warnings before: {number}; each has a line \
                 at the level info",
                self.log_source.name()
            );
        }
    }

    fn report_unlogged(&self) {
        let lines = self.tally.unlogged.swap(0, Relaxed);
        if lines > 0 {
            log::warn!(
                target: self.log_source.target(),
                "{}: the log is too slow: {lines} lines about connections were dropped; read \
                 it faster, or log less",
                self.log_source.name()
            );
        }
    }
}

impl Workers {
    fn started(&mut self, id: u64, thread: JoinHandle<()>) {
        if self.handles.remove(&id).is_some() {
            return join(thread);
        }
        self.handles.insert(id, Some(thread));
        self.most = self.most.max(self.handles.len());
    }

    fn exiting(&mut self, id: u64) {
        match self.handles.remove(&id) {
            Some(Some(thread)) => join(thread),
            _ => {
                self.handles.insert(id, None);
            }
        }
        let left = self.handles.len();
        if self.most >= MANY_WORKERS && left <= self.most / REMAINING_FRACTION {
            self.most = left;
            memory::give_back_heap();
        }
    }
}

fn join(thread: JoinHandle<()>) {
    // Workers catch their panics and report them.
    let _ = thread.join();
}
