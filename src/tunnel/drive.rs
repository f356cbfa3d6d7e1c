//! Reads and writes one connection until a condition holds: every exchange before the stream, and
//! the closing of a connection.

use std::mem;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
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
use crate::net::wait::{OVER, events_now, wait};

/// The maximum number of bytes read from a refused connection. It is more than a client sends
/// before it reads the response.
const REFUSED_DRAIN_LIMIT: usize = 1 << 20;

/// What bounds a blocking call on one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitContext<'a> {
    /// Interrupts the call.
    pub(crate) stop: &'a Stop,
    /// The client that needs the result: if it disconnects, the call ends.
    pub(crate) client: Option<WatchedClient<'a>>,
    /// The time limit.
    pub(crate) deadline: Deadline,
    /// The current phase, for the error after the deadline.
    pub(crate) phase: Phase,
    /// The interval of pings; zero for none.
    pub(crate) keepalive: Duration,
    /// The tunnel is open already, so after a stop request it may continue until the drain
    /// deadline.
    pub(crate) drains: bool,
}

/// The client of a dial, and what counts as its disconnection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WatchedClient<'a> {
    socket: &'a TcpStream,
    /// The events of poll that end the call.
    ends: PollFlags,
}

impl<'a> WatchedClient<'a> {
    /// A client that may have ended its sending direction, and still reads: one of a relay.
    pub(crate) fn that_may_half_close(socket: &'a TcpStream) -> Self {
        Self { socket, ends: OVER }
    }

    /// A client whose FIN ends the connection: the WebSocket of a gateway, whose streams have an
    /// end of their own.
    #[cfg(feature = "gateway")]
    pub(crate) fn that_closes_at_once(socket: &'a TcpStream) -> Self {
        Self {
            socket,
            ends: OVER.union(PollFlags::RDHUP),
        }
    }
}

impl WaitContext<'_> {
    /// What ends the call early: a stop request, or a client that has disconnected. It does not
    /// block.
    pub(super) fn interruption(&self) -> Option<TunnelError> {
        if self.stop.requested().is_some() {
            return Some(TunnelError::Stopped);
        }
        let left = self
            .client
            .is_some_and(|client| events_now(client.socket, client.ends).intersects(client.ends));
        left.then_some(TunnelError::ClientLeft)
    }

    /// The descriptor and the events with which to poll the client. Without a client it is a
    /// descriptor without events.
    pub(super) fn client_poll(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.client {
            Some(client) => (client.socket.as_fd(), client.ends),
            None => (self.stop.as_fd(), PollFlags::empty()),
        }
    }

    /// Whether `events` of the client mean that it has disconnected.
    pub(super) fn client_has_left(&self, events: PollFlags) -> bool {
        let ends = self.client.map_or(OVER, |client| client.ends);
        events.intersects(ends)
    }

    /// When the stop request ends the call; `None` without a request.
    fn stop_deadline(&self) -> Option<Deadline> {
        let requested = self.stop.requested()?;
        Some(if self.drains {
            requested
        } else {
            Deadline::at(Instant::now())
        })
    }
}

/// Writes what was encoded and appends received data to `received` until `check` returns a value;
/// blocks until the deadline of `context` at most.
///
/// # Errors
/// Errors of `check` and of the connection; `TimedOut` with the phase of `context`; `ClientLeft`;
/// `Stopped`; `ConnectionEnded` and `Closed` if the peer ends the connection.
pub(crate) fn drive_until<T>(
    conn: &mut Conn,
    received: &mut Buffer,
    context: &WaitContext<'_>,
    mut check: impl FnMut(&mut Conn, &mut Buffer) -> Result<Option<T>, TunnelError>,
) -> Result<T, TunnelError> {
    let mut keepalive = Keepalive::new(context.keepalive, Instant::now());
    loop {
        let result = step(conn, received);
        // Data received before an error counts: a refusal may be followed by a reset.
        if let Some(found) = check(conn, received)? {
            // The error came after the data, so the next reader gets it.
            if let Err(error) = result {
                conn.defer_error(error);
            }
            return Ok(found);
        }
        result?;
        if let Some(close) = conn.websocket().and_then(WsCodec::peer_close) {
            return Err(TunnelError::Closed(close.code));
        }
        if conn.eof() {
            return Err(TunnelError::ConnectionEnded);
        }
        if context.stop_deadline().is_some_and(Deadline::passed) {
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
            KeepaliveAction::Dead => return Err(TunnelError::PeerSilent),
            KeepaliveAction::Wait => {}
        }
        if context.deadline.passed() {
            return Err(TunnelError::TimedOut(context.phase));
        }
        if !conn.readable {
            let until = context.deadline.min(
                keepalive
                    .next_check()
                    .map_or(Deadline::never(), Deadline::at),
            );
            wait_for_events(conn, context, until)?;
        }
    }
}

/// Reads if the socket is readable, and writes, even if reading failed: TLS may have an alert to
/// send.
fn step(conn: &mut Conn, received: &mut Buffer) -> Result<(), TunnelError> {
    let read = if conn.readable {
        conn.fill(received)
    } else {
        Ok(())
    };
    let written = conn.flush();
    read.and(written)
}

fn wait_for_events(
    conn: &mut Conn,
    context: &WaitContext<'_>,
    until: Deadline,
) -> Result<(), TunnelError> {
    let mut interest = PollFlags::IN;
    interest.set(PollFlags::OUT, conn.wants_write());
    // No events for the client except its end; what it sends waits in its socket.
    let (client, client_events) = context.client_poll();
    let stop = context.stop_deadline();
    let mut fds = [
        PollFd::from_borrowed_fd(conn.fd(), interest),
        PollFd::from_borrowed_fd(context.stop.wake_fd(stop), PollFlags::IN),
        PollFd::from_borrowed_fd(client, client_events),
    ];
    let until = stop.map_or(until, |at| until.min(at));
    wait(&mut fds, until.instant())?;
    let [conn_events, _, client] = fds.map(|fd| fd.revents());
    conn.set_readiness(conn_events);
    if context.client_has_left(client) {
        Err(TunnelError::ClientLeft)
    } else {
        Ok(())
    }
}

/// Flushes, ends the sending direction, and drops what the peer sends until it ends its direction.
/// Without this, a reset could destroy the last bytes sent. Blocks for `at_most`.
pub(crate) fn close_and_drain(conn: Conn, stop: &Stop, at_most: Duration) {
    drain(conn, stop, at_most, usize::MAX);
}

/// Does the same for a refused connection, but reads a limited number of bytes.
pub(crate) fn refuse_and_drain(conn: Conn, stop: &Stop, at_most: Duration) {
    drain(conn, stop, at_most, REFUSED_DRAIN_LIMIT);
}

fn drain(mut conn: Conn, stop: &Stop, at_most: Duration, mut bytes: usize) {
    let mut until = Deadline::after(at_most);
    loop {
        if let Some(stop) = stop.requested() {
            until = until.min(stop);
        }
        if conn.flush().is_err() || conn.write_failed() || (conn.flushed() && conn.eof()) {
            return;
        }
        if until.passed() {
            if !conn.flushed() {
                // Some bytes were not sent. A reset shows the peer that this is not the end.
                conn.reset();
            }
            return;
        }
        if conn.flushed() {
            conn.shut_writing();
        }
        match conn.discard() {
            Ok(len) if len < bytes => bytes -= len,
            _ => return,
        }
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, !conn.eof());
        interest.set(PollFlags::OUT, conn.wants_write());
        let mut fds = [PollFd::from_borrowed_fd(conn.fd(), interest)];
        if wait(&mut fds, until.instant()).is_err() {
            return;
        }
        let [events] = fds.map(|fd| fd.revents());
        conn.set_readiness(events);
    }
}
