//! The stop signal: how every wait of a relay or gateway is interrupted.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::control::deadline::Deadline;

/// A request to stop, seen by every thread of one relay or gateway: a descriptor that becomes readable, once and for all.
/// Whoever was given time to end can still be told that there is none, by a second descriptor.
#[derive(Debug)]
pub(crate) struct Stop {
    wake: OwnedFd,
    deadline: OnceLock<Deadline>,
    cut: OwnedFd,
    is_cut: AtomicBool,
}

impl Stop {
    /// A stop that nobody has asked for yet.
    pub(crate) fn new() -> io::Result<Self> {
        let descriptor = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            wake: descriptor()?,
            deadline: OnceLock::new(),
            cut: descriptor()?,
            is_cut: AtomicBool::new(false),
        })
    }

    /// Asks every thread to end, and to have ended by `deadline`. The first to ask sets the deadline.
    pub(crate) fn request(&self, deadline: Deadline) {
        if self.deadline.set(deadline).is_ok() {
            raise(&self.wake);
        }
    }

    /// Takes back what time was given: every thread is to end now.
    pub(crate) fn cut(&self) {
        self.request(Deadline::after(Duration::ZERO));
        if !self.is_cut.swap(true, Ordering::SeqCst) {
            raise(&self.cut);
        }
    }

    /// The deadline, once a stop was asked for.
    pub(crate) fn requested(&self) -> Option<Deadline> {
        if self.is_cut.load(Ordering::SeqCst) {
            return Some(Deadline::after(Duration::ZERO));
        }
        self.deadline.get().copied()
    }

    /// What becomes readable when there is something new to know for one who knows this much.
    pub(crate) fn wake_fd(&self, asked: Option<Deadline>) -> BorrowedFd<'_> {
        if asked.is_some() {
            self.cut.as_fd()
        } else {
            self.wake.as_fd()
        }
    }
}

/// Makes the descriptor readable. Its counter is at zero, so the write cannot block; nobody ever reads it back.
fn raise(descriptor: &OwnedFd) {
    while rustix::io::write(descriptor, &1_u64.to_ne_bytes()) == Err(Errno::INTR) {}
}

/// Ends what a shutdown still gives time to: the second word of whoever asked for it. Clones are for the same relay or gateway.
#[derive(Clone, Debug)]
pub struct Abort(Arc<Stop>);

impl Abort {
    pub(crate) fn of(stop: &Arc<Stop>) -> Self {
        Self(Arc::clone(stop))
    }

    /// Every tunnel is cut now, with a reset to both of its ends; a shutdown that is under way returns soon after. Before a
    /// shutdown it is one with no time.
    pub fn request(&self) {
        self.0.cut();
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
