//! Counters of one relay or gateway: handed in, never global.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What has happened so far, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections that hold a slot now.
    pub live: u64,
    /// Tunnels that were established.
    pub tunnels: u64,
    /// Tunnels of a relay that were asked for on a connection that stood by.
    pub standby: u64,
    /// Connections of a relay that stand by now.
    pub standing_by: u64,
    /// Connections that were answered with a refusal.
    pub refused: u64,
    /// Tunnels that broke, panicked or were cut.
    pub broken: u64,
    /// Bytes that clients sent to targets.
    pub bytes_up: u64,
    /// Bytes that targets sent to clients.
    pub bytes_down: u64,
}

/// The counters that the threads write to.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Connections that hold a slot now.
    pub(crate) live: AtomicU64,
    /// Tunnels that were established.
    pub(crate) tunnels: AtomicU64,
    /// Tunnels that were asked for on a connection that stood by.
    pub(crate) standby: AtomicU64,
    /// Connections that stand by now.
    pub(crate) standing_by: AtomicU64,
    /// Connections that were answered with a refusal.
    pub(crate) refused: AtomicU64,
    /// Tunnels that broke, panicked or were cut.
    pub(crate) broken: AtomicU64,
    /// Bytes that clients sent to targets.
    pub(crate) bytes_up: AtomicU64,
    /// Bytes that targets sent to clients.
    pub(crate) bytes_down: AtomicU64,
}

impl Counters {
    /// Adds `n` to one counter.
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// All counters as they are now; each by itself, not all at one instant.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            live: self.live.load(Relaxed),
            tunnels: self.tunnels.load(Relaxed),
            standby: self.standby.load(Relaxed),
            standing_by: self.standing_by.load(Relaxed),
            refused: self.refused.load(Relaxed),
            broken: self.broken.load(Relaxed),
            bytes_up: self.bytes_up.load(Relaxed),
            bytes_down: self.bytes_down.load(Relaxed),
        }
    }
}
