//! Moving the bytes: read both sides, forward, write, wait.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::state::{Held, Peek, Pump, SideError};
use super::traffic::Direction;
use crate::control::deadline::Deadline;
use crate::control::outcome::{EndReason, TunnelSummary};
use crate::net::wait::wait;

/// The number of turns without poll(2) while data moves. A flood on one side must not delay small
/// messages of the other. A turn moves at most half a MiB, so this takes a few milliseconds.
const BUSY_TURNS: u32 = 4;

/// The maximum number of bytes from ws that are held back while they are inspected.
const PEEK_LIMIT: usize = 64 << 10;

impl Pump<'_> {
    /// Moves bytes until the tunnel has ended, then closes both connections. Blocks.
    pub(crate) fn run(mut self: Box<Self>) -> TunnelSummary {
        // A long handshake may have come before, so silence starts now.
        self.activity.last_data = Instant::now();
        let ended = loop {
            match self.turn() {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(reason)) => break Ok(reason),
                Err(error) => break Err(error),
            }
        };
        self.finish(ended)
    }

    /// Passes the first bytes from ws to `decide`, with whether ws has ended, until that returns
    /// true. Forwards none of them before. Ends early if ws ends, if the bytes are not decided
    /// within `limit` after the first one, or if TCP sends data and `held` includes it. Blocks.
    ///
    /// # Errors
    /// The tunnel has ended.
    #[cfg_attr(not(feature = "gateway"), allow(dead_code))]
    pub(crate) fn peek(
        mut self: Box<Self>,
        held: Held,
        limit: Duration,
        mut decide: impl FnMut(&[u8], bool) -> bool,
    ) -> Result<Box<Self>, TunnelSummary> {
        self.peek = Some(Peek { held, until: None });
        while let Some(peek) = &mut self.peek {
            let now = Instant::now();
            if !self.ws.pending.is_empty() {
                peek.until.get_or_insert(now + limit);
            }
            let overdue = peek.until.is_some_and(|until| until <= now);
            let tcp_first = held == Held::Both && !self.tcp.pending.is_empty();
            let ended = self.ws_has_ended();
            if decide(self.ws.pending.filled(), ended) || ended || overdue || tcp_first {
                self.peek = None;
                break;
            }
            match self.turn() {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(reason)) => return Err(self.finish(Ok(reason))),
                Err(error) => return Err(self.finish(Err(error))),
            }
        }
        Ok(self)
    }

    /// One turn: at most one read per side, and the writes that follow. So neither side can starve
    /// the other.
    fn turn(&mut self) -> Result<ControlFlow<EndReason>, SideError> {
        if self.context.stop.requested().is_some_and(Deadline::passed) {
            return Ok(ControlFlow::Break(EndReason::Cut));
        }
        let pending_before = self.ws.pending.len();
        if self.reads_tcp() && self.tcp.conn.readable {
            self.read_tcp()?;
        }
        if self.reads_ws() && self.ws.conn.readable {
            self.read_ws()?;
        }
        self.forward()?;
        self.flush()?;
        let before = (self.tcp.conn.fin_sent(), self.ws.conn.fin_sent());
        if let ControlFlow::Break(reason) = self.handle_ends()? {
            return Ok(ControlFlow::Break(reason));
        }
        self.flush()?;
        if self.is_peeking() && (self.ws.pending.len() > pending_before || self.ws_has_ended()) {
            // The caller of `peek` must inspect this first.
            return Ok(ControlFlow::Continue(()));
        }
        let ended = before != (self.tcp.conn.fin_sent(), self.ws.conn.fin_sent());
        let readable = (self.reads_tcp() && self.tcp.conn.readable)
            || (self.reads_ws() && self.ws.conn.readable);
        if ended || readable || self.can_forward_outbound() || self.can_forward_inbound() {
            self.busy_turns += 1;
            if self.busy_turns < BUSY_TURNS {
                return Ok(ControlFlow::Continue(()));
            }
            return self.pause(Some(Instant::now()));
        }
        self.pause(None)
    }

    pub(super) fn flush(&mut self) -> Result<(), SideError> {
        if let Err(error) = self.tcp.conn.flush() {
            self.tcp_write_failed(error)?;
        }
        if let Err(error) = self.ws.conn.flush() {
            self.ws_write_failed(error)?;
        }
        Ok(())
    }

    fn read_tcp(&mut self) -> Result<(), SideError> {
        match self.tcp.conn.fill(&mut self.tcp.pending) {
            Ok(()) => Ok(()),
            Err(error) => self.tcp_failed(error),
        }
    }

    fn read_ws(&mut self) -> Result<(), SideError> {
        if let Err(error) = self.ws.conn.fill(&mut self.ws.pending) {
            self.ws_failed(error)?;
        }
        if self.tcp.conn.write_failed() {
            self.drop_for_tcp();
        } else if !self.tcp_needs_data() {
            self.ws.drop_pending();
        }
        Ok(())
    }

    /// Whether to read from TCP: it has not ended, and its earlier data was forwarded.
    fn reads_tcp(&self) -> bool {
        !self.tcp.conn.peer_finished() && !self.is_closing() && self.tcp.pending.is_empty()
    }

    /// Whether to read from ws: it has not ended, and its earlier data was forwarded. Control
    /// frames are read until the end.
    pub(super) fn reads_ws(&self) -> bool {
        let room =
            self.ws.pending.is_empty() || (self.is_peeking() && self.ws.pending.len() < PEEK_LIMIT);
        !self.ws.conn.eof() && self.peer_close().is_none() && room
    }

    fn can_forward_outbound(&self) -> bool {
        let held = self
            .peek
            .as_ref()
            .is_some_and(|peek| peek.held == Held::Both);
        let may = !self.tcp.pending.is_empty() && !held;
        may && self.ws.conn.flushed() && self.ws.conn.accepts_data() && !self.close_queued()
    }

    fn can_forward_inbound(&self) -> bool {
        !self.ws.pending.is_empty() && self.tcp.conn.flushed() && !self.is_peeking()
    }

    /// Passes the data of each direction to the connection that sends it.
    pub(super) fn forward(&mut self) -> Result<(), SideError> {
        if self.can_forward_outbound() {
            let direction = self.traffic.count_from_tcp(self.tcp.pending.len());
            self.moved(direction);
            self.ws
                .conn
                .encode(&mut self.tcp.pending)
                .map_err(SideError::Ws)?;
        }
        if self.can_forward_inbound() {
            let direction = self.traffic.count_from_ws(self.ws.pending.len());
            self.moved(direction);
            self.tcp
                .conn
                .encode(&mut self.ws.pending)
                .map_err(SideError::Tcp)?;
        }
        Ok(())
    }

    fn moved(&mut self, direction: Direction) {
        self.activity.last_direction = Some(direction);
        self.activity.data_moved = true;
    }

    /// Waits for an event or a timer, until `until` at most, and runs the timers.
    fn pause(&mut self, until: Option<Instant>) -> Result<ControlFlow<EndReason>, SideError> {
        self.busy_turns = 0;
        let now = Instant::now();
        self.record_activity(now);
        let stop = self.context.stop;
        let draining = stop.requested();
        let until = until.or_else(|| self.next_timer(draining, now));
        if self.reads_ws() {
            self.set_user_timeout(false);
        }
        let tcp_interest = self.tcp.interest(self.reads_tcp());
        let ws_interest = self.ws.interest(self.reads_ws());
        let tcp_fd = if self.tcp.is_skipped(tcp_interest) {
            stop.as_fd()
        } else {
            self.tcp.conn.fd()
        };
        let ws_fd = if self.ws.is_skipped(ws_interest) {
            stop.as_fd()
        } else {
            self.ws.conn.fd()
        };
        let mut fds = [
            PollFd::from_borrowed_fd(tcp_fd, tcp_interest),
            PollFd::from_borrowed_fd(ws_fd, ws_interest),
            PollFd::from_borrowed_fd(stop.wake_fd(draining), PollFlags::IN),
        ];
        wait(&mut fds, until).map_err(|error| SideError::Ws(error.into()))?;
        let [tcp_events, ws_events, _] = fds.map(|fd| fd.revents());
        let tcp_ended = self.tcp.record(tcp_events, tcp_interest);
        let ws_ended = self.ws.record(ws_events, ws_interest);
        if tcp_ended && let Some(error) = self.tcp.conn.error() {
            self.tcp_write_failed(error.into())?;
        }
        if ws_ended && let Some(error) = self.ws.conn.error() {
            self.ws_write_failed(error.into())?;
        }
        // Received bytes must be read before the peer counts as silent.
        if ws_events.is_empty() {
            self.on_timer()?;
        }
        Ok(ControlFlow::Continue(()))
    }
}
