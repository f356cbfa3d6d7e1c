//! Counters of one relay or gateway: passed in, never global.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The counters of one relay or gateway at one moment. All but [`live`](Self::live) and
/// [`standby_open`](Self::standby_open) count from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections that are open now.
    pub live: u64,
    /// Tunnels that were established.
    pub tunnels: u64,
    /// Tunnels of a relay that used a standby connection.
    pub standby_used: u64,
    /// Standby connections of a relay that are open now.
    pub standby_open: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Tunnels that broke, panicked or were cut.
    pub broken: u64,
    /// Bytes that clients sent to targets.
    pub bytes_up: u64,
    /// Bytes that targets sent to clients.
    pub bytes_down: u64,
}

/// Reads the counters of one relay or gateway from any thread, also during and after its shutdown.
///
/// It does not keep the relay or gateway running. Clones read the same counters.
///
/// # Example
/// ```
/// # #[cfg(feature = "gateway")] {
/// use std::time::Duration;
///
/// use upstreamproxy::gateway::{GatewayConfig, Sessions};
/// use upstreamproxy::start_gateway;
///
/// let sessions = Sessions::parse("session-1 a-long-random-token")?;
/// let gateway = start_gateway(GatewayConfig::new(sessions).listen("127.0.0.1:0".parse()?))?;
/// let stats = gateway.stats_reader();
/// let drain = std::thread::spawn(move || gateway.shutdown(Duration::from_secs(10)));
/// println!("{} tunnels still open", stats.read().live);
/// drain.join().unwrap();
/// assert_eq!(stats.read().live, 0);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct StatsReader(Arc<Counters>);

impl StatsReader {
    pub(crate) fn new(counters: &Arc<Counters>) -> Self {
        Self(Arc::clone(counters))
    }

    /// The counters now. Each is read by itself: they are not a snapshot of one instant.
    pub fn read(&self) -> Stats {
        self.0.stats()
    }
}

/// The counters that the threads write to. [`Stats`] describes each.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) live: AtomicU64,
    pub(crate) tunnels: AtomicU64,
    pub(crate) standby_used: AtomicU64,
    pub(crate) standby_open: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) broken: AtomicU64,
    pub(crate) bytes_up: AtomicU64,
    pub(crate) bytes_down: AtomicU64,
}

impl Counters {
    /// Adds `n` to one counter.
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// The counters now, each read by itself.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            live: self.live.load(Relaxed),
            tunnels: self.tunnels.load(Relaxed),
            standby_used: self.standby_used.load(Relaxed),
            standby_open: self.standby_open.load(Relaxed),
            refused: self.refused.load(Relaxed),
            broken: self.broken.load(Relaxed),
            bytes_up: self.bytes_up.load(Relaxed),
            bytes_down: self.bytes_down.load(Relaxed),
        }
    }
}
