//! Delivers the remaining data of a tunnel that has ended, before its connection is closed.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::control::deadline::Deadline;
use crate::control::stop::Stop;
use crate::net::wait::wait;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::error::TunnelError;

/// The interval of the first and of the last questions to the kernel whether the peer has
/// acknowledged the data. There is no event for this. The interval doubles.
const FIRST_CHECK: Duration = Duration::from_millis(1);
const LAST_CHECK: Duration = Duration::from_millis(256);

/// The stall timeout is divided by this after a fault, because the other party should learn of it
/// soon.
pub(crate) const FAULT_SHARE: u32 = 4;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcpEnd {
    /// With FIN: the peer takes the data for all of it.
    Fin,
    /// With a reset, after the data.
    Reset,
}

/// What bounds the delivery.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    /// The drain deadline, if a stop was requested.
    pub(crate) stop: &'a Stop,
    /// How long the peer may acknowledge nothing.
    pub(crate) stall: Duration,
    /// How long to wait for the end of the peer's stream after everything was delivered; zero: not
    /// at all. If data arrived after the close, the kernel would reset the connection.
    pub(crate) last_read: Duration,
}

/// Since when a peer has acknowledged nothing more.
#[derive(Debug)]
pub(crate) struct Progress {
    acknowledged: u64,
    since: Instant,
    /// When this was last checked.
    pub(crate) checked: Instant,
}

impl Progress {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            acknowledged: 0,
            since: now,
            checked: now,
        }
    }

    /// Whether the peer has acknowledged nothing more for `limit`. It must be called at least once
    /// in half of that time; otherwise the time starts again.
    pub(crate) fn stalled(&mut self, acknowledged: u64, now: Instant, limit: Duration) -> bool {
        if acknowledged != self.acknowledged || now >= self.checked + limit / 2 {
            self.acknowledged = acknowledged;
            self.since = now;
        }
        self.checked = now;
        now >= self.since + limit
    }
}

/// Delivers what `conn` has not written yet, then `rest`, then what `end` adds, until the peer's
/// kernel has acknowledged everything. What the peer sends meanwhile is dropped. Blocks.
///
/// # Errors
/// `Stalled`; `Stopped` at the drain deadline; errors of the connection.
pub(crate) fn deliver(
    conn: &mut Conn,
    rest: &mut Buffer,
    bounds: Bounds<'_>,
    end: impl FnOnce(&mut Conn) -> Result<(), TunnelError>,
) -> Result<(), TunnelError> {
    let mut end = Some(end);
    let mut progress = Progress::new(Instant::now());
    let mut delivered_at = None;
    let mut check_after = FIRST_CHECK;
    loop {
        conn.flush()?;
        if let Some(error) = conn.take_write_error() {
            return Err(error);
        }
        if conn.flushed() && !rest.is_empty() {
            conn.encode(rest)?;
            continue;
        }
        if conn.flushed()
            && let Some(end) = end.take()
        {
            end(conn)?;
            continue;
        }
        if conn.flushed() && conn.websocket().is_some() {
            // No more follows the close frame.
            conn.shut_writing();
        }
        let now = Instant::now();
        if delivered_at.is_none() && conn.flushed() && conn.unacknowledged() == 0 {
            delivered_at = Some(now);
        }
        let draining = bounds.stop.requested();
        let cut = draining.is_some_and(Deadline::passed);
        let until = if let Some(at) = delivered_at {
            let until = at + bounds.last_read;
            if conn.eof() || cut || now >= until {
                return Ok(());
            }
            until
        } else {
            if cut {
                return Err(TunnelError::Stopped);
            }
            if progress.stalled(conn.acknowledged(), now, bounds.stall) {
                return Err(TunnelError::Stalled);
            }
            check_after = (check_after * 2).min(LAST_CHECK);
            now + check_after.min(bounds.stall / 4)
        };
        let until = draining
            .and_then(Deadline::instant)
            .map_or(until, |at| until.min(at));
        wait_for(conn, bounds.stop, draining, until)?;
        let failed = if conn.eof() {
            conn.error()
        } else {
            conn.discard().err()
        };
        if let Some(error) = failed {
            // A peer that has received everything may close as it likes.
            let all = end.is_none() && conn.flushed() && conn.unacknowledged() == 0;
            return if all { Ok(()) } else { Err(error.into()) };
        }
    }
}

fn wait_for(
    conn: &mut Conn,
    stop: &Stop,
    draining: Option<Deadline>,
    until: Instant,
) -> Result<(), TunnelError> {
    let mut interest = PollFlags::empty();
    interest.set(PollFlags::IN, !conn.eof());
    interest.set(PollFlags::OUT, conn.wants_write());
    // A socket whose stream has ended would be reported at every call.
    let fd = if interest.is_empty() {
        stop.as_fd()
    } else {
        conn.fd()
    };
    let mut fds = [
        PollFd::from_borrowed_fd(fd, interest),
        PollFd::from_borrowed_fd(stop.wake_fd(draining), PollFlags::IN),
    ];
    wait(&mut fds, Some(until))?;
    let [events, _] = fds.map(|fd| fd.revents());
    conn.set_readiness(events);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;
    use crate::tunnel::buffer::Pool;

    /// More than the kernel keeps for one connection.
    const SIZE: usize = 32 << 20;

    /// Delivers [`SIZE`] bytes and a FIN. Returns the result, and how many bytes were not
    /// delivered.
    fn delivered(stall: Duration, peer: impl FnOnce(TcpStream) + Send) -> (bool, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let (pool, stop) = (Pool::default(), Stop::new().unwrap());
        let mut conn = Conn::new(stream, &pool);
        let mut rest = Buffer::new(&pool);
        rest.extend(&vec![b'x'; SIZE]);
        let bounds = Bounds {
            stop: &stop,
            stall,
            last_read: Duration::ZERO,
        };
        let (result, undelivered) = thread::scope(|scope| {
            let never_closed = accepted.try_clone().unwrap();
            scope.spawn(|| peer(accepted));
            let result = deliver(&mut conn, &mut rest, bounds, |conn| conn.send_fin(true));
            drop(never_closed);
            (result, conn.undelivered())
        });
        let stalled = matches!(result, Err(TunnelError::Stalled));
        assert!(stalled || result.is_ok(), "{result:?}");
        (stalled, undelivered)
    }

    #[test]
    fn a_peer_that_accepts_nothing_is_given_up() {
        let (stalled, undelivered) = delivered(Duration::from_millis(200), |_| {});
        assert!(stalled && undelivered > 0, "{undelivered}");
    }

    #[test]
    fn a_peer_that_reads_after_a_long_time_receives_everything() {
        let mut received = Vec::new();
        let result = delivered(Duration::from_secs(60), |mut peer| {
            thread::sleep(Duration::from_millis(1500));
            peer.read_to_end(&mut received).unwrap();
        });
        assert_eq!((result, received.len()), ((false, 0), SIZE));
    }
}
