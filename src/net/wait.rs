//! Waits for sockets, a stop request and a point in time: the only call of poll(2) for tunnels and
//! listeners.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The events of poll that mean that a connection has ended in both directions or failed.
pub(crate) const OVER: PollFlags = PollFlags::HUP.union(PollFlags::ERR).union(PollFlags::NVAL);

/// Waits until one of `fds` is ready or `until` has passed. A signal also ends the wait.
pub(crate) fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<()> {
    let left = until.map(|at| timespec(at.saturating_duration_since(Instant::now())));
    match poll(fds, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The events of `socket` now: those in `events`, and those of [`OVER`]. It does not block.
pub(crate) fn events_now(socket: impl AsFd, events: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(&socket, events)];
    match wait(&mut fds, Some(Instant::now())) {
        Ok(()) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

fn timespec(wait: Duration) -> Timespec {
    // The caller waits again, so a wait of decades may be shortened to what the kernel accepts.
    Timespec {
        tv_sec: wait.as_secs().min(1 << 30).cast_signed(),
        tv_nsec: wait.subsec_nanos().into(),
    }
}
