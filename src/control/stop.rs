//! The stop signal: it interrupts every wait of one relay or gateway.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::control::deadline::Deadline;

/// A stop request that every thread of one relay or gateway sees: an eventfd(2) that becomes and
/// stays readable. A second one withdraws the time that the first request gave.
#[derive(Debug)]
pub(crate) struct Stop {
    wake: OwnedFd,
    deadline: OnceLock<Deadline>,
    cut: OwnedFd,
    is_cut: AtomicBool,
    /// The process whose threads it stops.
    process: u32,
}

impl Stop {
    /// A stop that is not requested yet.
    pub(crate) fn new() -> io::Result<Self> {
        let descriptor = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            wake: descriptor()?,
            deadline: OnceLock::new(),
            cut: descriptor()?,
            is_cut: AtomicBool::new(false),
            process: std::process::id(),
        })
    }

    /// Whether this process created it. A fork shares the descriptors with its parent, and has none
    /// of its threads.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Requests that every thread ends before `deadline`. Only the first request sets the deadline.
    /// In a fork it has no effect on the parent.
    pub(crate) fn request(&self, deadline: Deadline) {
        if self.deadline.set(deadline).is_ok() && self.is_of_this_process() {
            raise(&self.wake);
        }
    }

    /// Requests that every thread ends now, whatever the deadline was.
    pub(crate) fn cut(&self) {
        self.request(Deadline::after(Duration::ZERO));
        if !self.is_cut.swap(true, Ordering::SeqCst) && self.is_of_this_process() {
            raise(&self.cut);
        }
    }

    /// The deadline, if a stop was requested.
    pub(crate) fn requested(&self) -> Option<Deadline> {
        if self.is_cut.load(Ordering::SeqCst) {
            return Some(Deadline::after(Duration::ZERO));
        }
        self.deadline.get().copied()
    }

    /// The descriptor to poll, given what [`requested`](Self::requested) has returned: `wake`
    /// before a stop was requested, `cut` afterwards.
    pub(crate) fn wake_fd(&self, requested: Option<Deadline>) -> BorrowedFd<'_> {
        if requested.is_some() {
            self.cut.as_fd()
        } else {
            self.wake.as_fd()
        }
    }
}

/// Makes an eventfd(2) that never blocks readable.
pub(crate) fn raise(descriptor: &OwnedFd) {
    while rustix::io::write(descriptor, &1_u64.to_ne_bytes()) == Err(Errno::INTR) {}
}

/// Ends a shutdown early, from any thread. Clones act on the same relay or gateway.
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
/// let abort = gateway.abort();
/// std::thread::spawn(move || abort.request());
/// // Returns at once, although it would give open tunnels a minute.
/// gateway.shutdown(Duration::from_secs(60));
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Abort(Arc<Stop>);

impl Abort {
    pub(crate) fn of(stop: &Arc<Stop>) -> Self {
        Self(Arc::clone(stop))
    }

    /// Resets every open tunnel now. A shutdown that is in progress returns soon afterwards; before
    /// a shutdown, this starts one without a drain time.
    ///
    /// It does not block.
    pub fn request(&self) {
        self.0.cut();
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_in_a_fork_does_not_wake_the_threads_of_the_parent() {
        for process in [0, std::process::id()] {
            let stop = Stop {
                process,
                ..Stop::new().unwrap()
            };
            stop.cut();
            let mut count = [0; 8];
            let woken = rustix::io::read(&stop.wake, &mut count).is_ok();
            assert_eq!(woken, process != 0);
            let cut = rustix::io::read(&stop.cut, &mut count).is_ok();
            assert_eq!(cut, process != 0);
        }
    }
}
