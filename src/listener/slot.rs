//! The slots of a listener: they limit how many connections it serves at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, Thread};

use crate::control::metrics::Counters;

/// One connection's slot. Dropping it frees the slot, however the worker ends, and wakes the
/// acceptor, which may be waiting for one.
#[must_use = "dropping it frees the slot"]
pub(super) struct Slot {
    counters: Arc<Counters>,
    acceptor: Thread,
}

impl Slot {
    /// A slot, if fewer than `cap` are in use. Only the acceptor thread may call this: the check
    /// and the increment are not one atomic step.
    pub(super) fn acquire(counters: &Arc<Counters>, cap: u64) -> Option<Self> {
        (counters.live.load(Ordering::Acquire) < cap).then(|| {
            counters.live.fetch_add(1, Ordering::AcqRel);
            Self {
                counters: Arc::clone(counters),
                acceptor: thread::current(),
            }
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counters.live.fetch_sub(1, Ordering::AcqRel);
        self.acceptor.unpark();
    }
}
