//! Waiting for sockets, a stop request and a point in time, all at once: the one call to poll(2) of tunnels and listeners.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How poll says that a connection is over in both directions, or failed.
pub(crate) const OVER: PollFlags = PollFlags::HUP.union(PollFlags::ERR).union(PollFlags::NVAL);

/// Waits until one of `fds` is ready or `until` comes; an interrupted wait just ends early.
pub(crate) fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<()> {
    let left = until.map(|at| timespec(at.saturating_duration_since(Instant::now())));
    match poll(fds, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn timespec(wait: Duration) -> Timespec {
    // Beyond what the kernel counts a wait is as good as none, and the caller asks again.
    Timespec {
        tv_sec: wait.as_secs().min(1 << 30).cast_signed(),
        tv_nsec: wait.subsec_nanos().into(),
    }
}
