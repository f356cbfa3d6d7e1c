//! Whether the acceptor and the supervisor work: a question that goes through both threads. For the
//! watchdog of a service manager.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use rustix::event::{EventfdFlags, eventfd};

use crate::control::stop::raise;

/// The number of the last question and of the last answer. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Liveness(Arc<Questions>);

#[derive(Debug)]
struct Questions {
    /// Wakes the acceptor.
    wake: OwnedFd,
    asked: AtomicU64,
    answered: AtomicU64,
}

impl Liveness {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(Questions {
            wake: eventfd(0, flags)?,
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        })))
    }

    /// Whether the last question was answered. Asks the next one. It does not block.
    #[cfg_attr(not(feature = "cli"), allow(dead_code))]
    pub(crate) fn check(&self) -> bool {
        let asked = self.0.asked.load(SeqCst);
        let is_answered = self.0.answered.load(SeqCst) == asked;
        // In this order: otherwise the acceptor could take the question before it is woken, and the
        // descriptor would stay readable.
        raise(&self.0.wake);
        self.0.asked.store(asked + 1, SeqCst);
        is_answered
    }

    /// The acceptor's side: the number of the last question, if it is not `seen` yet.
    pub(super) fn question(&self, seen: u64) -> Option<u64> {
        if self.0.asked.load(SeqCst) == seen {
            return None;
        }
        // It is readable, and it never blocks.
        let _ = rustix::io::read(&self.0.wake, &mut [0; 8]);
        Some(self.0.asked.load(SeqCst))
    }

    /// The supervisor's side: answers a question that the acceptor has passed on.
    pub(super) fn answer(&self, question: u64) {
        self.0.answered.store(question, SeqCst);
    }
}

impl AsFd for Liveness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}
