//! The result of a shutdown, and what it is counted with.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::control::metrics::Stats;
use crate::control::outcome::EndReason;

/// How the connections ended that were open when a shutdown began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Connections that ended by themselves, or were closed cleanly because they were silent.
    pub ended: u64,
    /// Connections that were reset at the deadline.
    pub cut: u64,
    /// The counters after the last connection has ended.
    pub stats: Stats,
}

/// Counts for the report, and what the log has lost.
#[derive(Debug, Default)]
pub(super) struct Tally {
    ended: AtomicU64,
    cut: AtomicU64,
    /// Log lines that were dropped because the host's logger is too slow.
    pub(super) unlogged: AtomicU64,
}

impl Tally {
    /// Counts a connection that ended after a stop was requested.
    pub(super) fn count(&self, how: &EndReason) {
        match how {
            EndReason::Cut => self.cut.fetch_add(1, Relaxed),
            EndReason::Answered | EndReason::Abandoned | EndReason::Rejected(_) => 0,
            _ => self.ended.fetch_add(1, Relaxed),
        };
    }

    /// The report of a shutdown.
    pub(super) fn report(&self, stats: Stats) -> ShutdownReport {
        ShutdownReport {
            ended: self.ended.load(Relaxed),
            cut: self.cut.load(Relaxed),
            stats,
        }
    }
}
