//! The conversation with a single peer that the phases before the stream are made of, and the close_and_drain after it.

use std::mem;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::buffer::Buffer;
use super::conn::Conn;
use super::error::TunnelError;
use super::keepalive::{Keepalive, KeepaliveAction};
use super::ws_codec::WsCodec;
use crate::control::deadline::Deadline;
use crate::control::phase::Phase;
use crate::control::stop::Stop;
use crate::net::wait::{OVER, wait};

/// What is read of a connection that was refused: more than a client sends before it looks for the answer, and over in no time.
const DISMISSED_LIMIT: usize = 1 << 20;

/// What can end a conversation with one peer, besides the peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitContext<'a> {
    /// A stop request.
    pub(crate) stop: &'a Stop,
    /// The client that all this is for: when it is gone, so is the reason to go on.
    pub(crate) client: Option<&'a TcpStream>,
    /// By when it must be over.
    pub(crate) deadline: Deadline,
    /// The phase that is bounded, for the error.
    pub(crate) phase: Phase,
    /// The interval of pings meanwhile; zero for none.
    pub(crate) keepalive: Duration,
    /// The tunnel stands already, so a stop leaves it the drain deadline.
    pub(crate) drains: bool,
}

impl WaitContext<'_> {
    /// When a stop ends it; `None` while nobody has asked for one.
    fn stopped(&self) -> Option<Deadline> {
        let asked = self.stop.requested()?;
        Some(if self.drains {
            asked
        } else {
            Deadline::at(Instant::now())
        })
    }
}

/// Talks with the peer of one link, writing what is sealed and adding what comes to `received`, until `look` finds what it
/// looks for.
///
/// # Errors
/// What `look` returns and what the link meets; `TimedOut` with the watch's phase; `ClientLeft`, `Stopped`, `Ended`, `Closed`.
pub(crate) fn drive_until<T>(
    conn: &mut Conn,
    received: &mut Buffer,
    watch: &WaitContext<'_>,
    mut look: impl FnMut(&mut Conn, &mut Buffer) -> Result<Option<T>, TunnelError>,
) -> Result<T, TunnelError> {
    let mut keepalive = Keepalive::new(watch.keepalive, Instant::now());
    loop {
        let met = step(conn, received);
        // What came before a failure still counts: a refusal may be followed by a reset.
        if let Some(found) = look(conn, received)? {
            // It lies behind what was looked for, so it is for whoever reads on.
            if let Err(fault) = met {
                conn.defer_error(fault);
            }
            return Ok(found);
        }
        met?;
        if let Some(close) = conn.websocket().and_then(WsCodec::peer_close) {
            return Err(TunnelError::Closed(close.code));
        }
        if conn.eof() {
            return Err(TunnelError::ConnectionEnded);
        }
        if watch.stopped().is_some_and(Deadline::passed) {
            return Err(TunnelError::Stopped);
        }
        let now = Instant::now();
        if mem::take(&mut conn.sent) {
            keepalive.on_sent(now);
        }
        if mem::take(&mut conn.received) {
            keepalive.on_received(now);
        }
        match keepalive.check(now, true) {
            KeepaliveAction::Ping => conn.ping().and_then(|()| conn.flush())?,
            KeepaliveAction::Dead => return Err(TunnelError::TimedOut(Phase::Stream)),
            KeepaliveAction::Wait => {}
        }
        if watch.deadline.passed() {
            return Err(TunnelError::TimedOut(watch.phase));
        }
        if !conn.readable {
            let until = watch.deadline.min(
                keepalive
                    .next_check()
                    .map_or(Deadline::never(), Deadline::at),
            );
            pause(conn, watch, until)?;
        }
    }
}

/// Reads what can be read, and writes what can be written: also when reading failed, as TLS may have an alert to send.
fn step(conn: &mut Conn, received: &mut Buffer) -> Result<(), TunnelError> {
    let read = if conn.readable {
        conn.fill(received)
    } else {
        Ok(())
    };
    let written = conn.flush();
    read.and(written)
}

fn pause(conn: &mut Conn, watch: &WaitContext<'_>, until: Deadline) -> Result<(), TunnelError> {
    let mut interest = PollFlags::IN;
    interest.set(PollFlags::OUT, !conn.flushed());
    // The client is watched for its end only: what it sends meanwhile waits in its socket.
    let client = watch.client.map_or(watch.stop.as_fd(), AsFd::as_fd);
    let stopped = watch.stopped();
    let mut fds = [
        PollFd::from_borrowed_fd(conn.fd(), interest),
        PollFd::from_borrowed_fd(watch.stop.wake_fd(stopped), PollFlags::IN),
        PollFd::from_borrowed_fd(client, PollFlags::empty()),
    ];
    let until = stopped.map_or(until, |stop| until.min(stop));
    wait(&mut fds, until.instant())?;
    let [ours, _, client] = fds.map(|fd| fd.revents());
    conn.set_readiness(ours);
    if client.intersects(OVER) {
        Err(TunnelError::ClientLeft)
    } else {
        Ok(())
    }
}

/// Ends the sending direction and reads on until the peer ends its own, so that no reset overtakes what was sent last.
pub(crate) fn close_and_drain(conn: Conn, stop: &Stop, at_most: Duration) {
    read_out(conn, stop, at_most, usize::MAX);
}

/// The same for one that was refused: it has no claim on our reading much of what it sends without end.
pub(crate) fn refuse_and_drain(conn: Conn, stop: &Stop, at_most: Duration) {
    read_out(conn, stop, at_most, DISMISSED_LIMIT);
}

fn read_out(mut conn: Conn, stop: &Stop, at_most: Duration, mut bytes: usize) {
    let mut until = Deadline::after(at_most);
    let mut shut = false;
    loop {
        if let Some(stop) = stop.requested() {
            until = until.min(stop);
        }
        if conn.flush().is_err() || (conn.flushed() && conn.eof()) {
            return;
        }
        if until.passed() {
            if !conn.flushed() {
                // What was not taken is lost, and must not look like the end.
                conn.reset();
            }
            return;
        }
        if conn.flushed() && !mem::replace(&mut shut, true) {
            conn.shut_writing();
        }
        match conn.discard() {
            Some(len) if len < bytes => bytes -= len,
            _ => return,
        }
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::OUT, !conn.flushed());
        let mut fds = [PollFd::from_borrowed_fd(conn.fd(), interest)];
        if wait(&mut fds, until.instant()).is_err() {
            return;
        }
        let [woken] = fds.map(|fd| fd.revents());
        conn.set_readiness(woken);
    }
}
