//! The result of a shutdown.

use crate::control::metrics::Stats;

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
