//! How much `bench` measures.

use std::time::Duration;

/// The number of tunnels that are opened at once.
pub(super) const AT_ONCE: [usize; 2] = [1, 32];
/// The numbers of connections that carry bytes at once.
pub(super) const STREAMS: [usize; 3] = [1, 8, 64];

/// The amount of measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BenchPlan {
    /// The duration of each measurement; at most one minute.
    pub time: Duration,
    /// The maximum number of connections at once.
    pub streams: usize,
}

impl Default for BenchPlan {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(1),
            streams: 64,
        }
    }
}
