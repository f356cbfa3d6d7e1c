//! How a tunnel ends: each direction's end passed on, the closing handshake, and what is said to both sides of one that broke
//! (`manual/protocol.md`, The end).

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use super::run::{Pump, SideError};
use crate::control::outcome::{EndReason, Party, TunnelSummary};
use crate::tunnel::drive::close_and_drain;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::ws_codec::Version;

/// How long a client may take to hang up after everything was delivered; its answer means nothing any more.
const LAST_READ: Duration = Duration::from_secs(1);
/// How often raw is read once more when it broke: its socket's buffer, and not a stream that has no end.
const LAST_WORDS: usize = 32;

impl Pump<'_> {
    /// Ends the stream in order without raw, `last` being the last that the far end hears: for a refusal that the client's
    /// own protocol can say.
    pub(crate) fn finish_with(mut self: Box<Self>, last: &[u8]) -> TunnelSummary {
        self.tcp_abandoned = true;
        self.tcp.mark_eof();
        self.ws_deadline = Some(Instant::now() + self.limits.close_timeout);
        self.inbound.consume(self.inbound.len());
        self.outbound.consume(self.outbound.len());
        self.outbound.extend(last);
        self.run()
    }

    /// Hangs up, in the way that says how it ended. Not a part of the frame that a tunnel lives in: reading out takes room.
    #[inline(never)]
    pub(super) fn finish(self: Box<Self>, how: EndReason) -> TunnelSummary {
        let Self {
            mut ws,
            tcp,
            up,
            down,
            stop,
            limits,
            ..
        } = *self;
        match how {
            EndReason::Clean | EndReason::Stopped | EndReason::Idle => {
                // Its close_notify is a courtesy: both closes are through.
                let _ = ws.send_close_notify_and_flush();
                drop(ws);
                close_and_drain(tcp, stop, limits.close_timeout.min(LAST_READ));
            }
            _ => {
                // The client learns at once, whatever time the other side takes to hang up.
                tcp.reset();
                drop(tcp);
                if !ws.eof() && how != EndReason::Cut {
                    close_and_drain(ws, stop, limits.close_timeout);
                }
            }
        }
        TunnelSummary { how, up, down }
    }

    /// Raw failed, which breaks the tunnel: unless nothing was owed to it any more.
    pub(super) fn tcp_failed(&mut self, fault: TunnelError) -> Result<(), SideError> {
        if self.tcp_needs_data() {
            return Err(SideError::Tcp(fault));
        }
        self.tcp.abandon();
        Ok(())
    }

    /// Whether what came for raw must reach it. In version 1 a target that has ended is owed nothing more, and neither is a
    /// client that will be reset.
    pub(super) fn tcp_needs_data(&self) -> bool {
        let ended_v1 =
            self.version == Version::V1 && self.role == Role::Server && self.tcp_fin_forwarded;
        !ended_v1 && !self.lingered() && !self.tcp_abandoned
    }

    /// Version 1 at the relay: the client will be reset, since nobody knows whether all has come.
    fn lingered(&self) -> bool {
        matches!(self.closing, Some((EndReason::LingerExpired, _)))
    }

    /// Whether data waits to be taken by ws, and must be: our close stands behind it, and nobody has called it off.
    fn ws_needs_data(&self) -> bool {
        let over = self.ws.flushed() || self.ws.fin_sent() || self.peer_close().is_some();
        !over && !self.tcp_abandoned
    }

    /// Ws failed, which breaks the tunnel: unless the closing handshake was under way, and all data had come or gone. Then a
    /// peer that hung up without an answer, or without waiting for ours, has still said all that it had to say.
    pub(super) fn ws_failed(&mut self, fault: TunnelError) -> Result<(), SideError> {
        let all_said =
            self.version == Version::V2 || self.peer_close().is_some() || self.ws.flushed();
        let gone = matches!(fault, TunnelError::Io(_) | TunnelError::TimedOut(_));
        if self.closing.is_none() || self.ws_needs_data() || !all_said || !gone {
            return Err(SideError::Ws(fault));
        }
        self.ws.abandon();
        Ok(())
    }

    /// Passes ends on, and recognises the end of the whole.
    pub(super) fn handle_ends(&mut self) -> Result<Option<ControlFlow<EndReason>>, SideError> {
        if self.ws_needs_data() {
            // Its time to answer begins when our close has gone out.
            self.answer_is_due_later();
        }
        let tcp_drained =
            self.tcp.peer_finished() && self.outbound.is_empty() && self.ws.accepts_data();
        if tcp_drained && !self.tcp_fin_forwarded && self.closing.is_none() {
            self.tcp_fin_forwarded = true;
            self.last_data = Instant::now();
            match (self.version, self.role) {
                (Version::V2, _) => self
                    .ws
                    .send_fin(self.tcp.peer_finished_cleanly())
                    .map_err(SideError::Ws)?,
                // The client's end cannot be said in version 1: we go on delivering, and linger.
                (Version::V1, Role::Client) => {}
                (Version::V1, Role::Server) => {
                    self.ws
                        .send_fin(self.tcp.peer_finished_cleanly())
                        .map_err(SideError::Ws)?;
                    self.close(CloseCode::Normal, EndReason::Clean)?;
                }
            }
        }
        let ws_drained = self.ws.peer_finished() && self.inbound.is_empty();
        if ws_drained && !self.ws.accepts_data() {
            // The inner handshake will never be done, so what raw says could never be delivered.
            return Err(SideError::Ws(TunnelError::ConnectionEnded));
        }
        if ws_drained {
            self.tcp
                .send_fin(self.ws.peer_finished_cleanly())
                .map_err(SideError::Tcp)?;
        }
        let fins = self
            .codec()
            .is_some_and(|m| m.fin_received() && m.fin_queued());
        // Our `fin` may still be on its way: the close goes right behind it.
        let both_finished = fins && self.tcp.fin_sent();
        let ws_overdue = self
            .ws_deadline
            .is_some_and(|until| until <= Instant::now());
        if (both_finished || ws_overdue) && self.closing.is_none() {
            self.close(CloseCode::Normal, EndReason::Clean)?;
        }
        match self.peer_close() {
            Some(close) => self.closing_handshake(close.code, fins),
            None if self.ws.eof() && (self.closing.is_none() || self.ws_needs_data()) => {
                Err(SideError::Ws(TunnelError::ConnectionEnded))
            }
            None => Ok(self.closed_without_answer()),
        }
    }

    /// The peer has sent its close: orderly, or a broken tunnel.
    fn closing_handshake(
        &mut self,
        code: Option<u16>,
        fins: bool,
    ) -> Result<Option<ControlFlow<EndReason>>, SideError> {
        let orderly = match code.map(CloseCode::from) {
            Some(CloseCode::Normal) => {
                self.version == Version::V1 || fins || self.closing.is_some()
            }
            Some(CloseCode::Away) => true,
            _ => false,
        };
        if !orderly {
            self.close(
                code.map_or(CloseCode::Normal, |_| CloseCode::Error),
                EndReason::Clean,
            )?;
            return Err(SideError::Ws(TunnelError::Closed(code)));
        }
        let how = if code == Some(CloseCode::Away.into()) {
            EndReason::Stopped
        } else {
            EndReason::Clean
        };
        self.close(code.map_or(CloseCode::Normal, CloseCode::from), how)?;
        if self.lingered() {
            return Ok(self.done());
        }
        if self.inbound.is_empty() {
            self.tcp
                .send_fin(self.ws.peer_finished_cleanly())
                .map_err(SideError::Tcp)?;
            self.flush()?;
        }
        let delivered = self.inbound.is_empty() && self.tcp.fin_sent();
        // A peer that has closed and does not read gets no more time for our answer than one that does not answer.
        let overdue = self.close_overdue();
        let answered = self.ws.flushed() || overdue;
        Ok(
            if answered && (delivered || (overdue && !self.tcp_needs_data())) {
                self.done()
            } else {
                None
            },
        )
    }

    fn close_overdue(&self) -> bool {
        let until = self.closing.as_ref().map(|(_, until)| *until);
        until.is_some_and(|until| until <= Instant::now())
    }

    /// Gives the peer all of its time to answer our close, from now on.
    fn answer_is_due_later(&mut self) {
        if let Some((_, until)) = &mut self.closing {
            *until = Instant::now() + self.limits.close_timeout;
        }
    }

    /// Our close is out and the peer takes its time, or has hung up without an answer: either is good enough. But not while the
    /// kernel still has bytes before the close that the peer has no room for: once the socket is closed, the first thing that
    /// the peer says would throw them away.
    fn closed_without_answer(&mut self) -> Option<ControlFlow<EndReason>> {
        if !self.ws.eof() && self.close_overdue() && !self.tcp_abandoned && self.ws.has_unsent() {
            self.answer_is_due_later();
            return None;
        }
        let delivered = self.inbound.is_empty() && self.tcp.flushed();
        if (self.ws.eof() || self.close_overdue()) && (delivered || !self.tcp_needs_data()) {
            self.done()
        } else {
            None
        }
    }

    fn done(&mut self) -> Option<ControlFlow<EndReason>> {
        self.closing.take().map(|(how, _)| ControlFlow::Break(how))
    }

    /// Begins or answers the closing handshake; the first reason stays the reason.
    pub(super) fn close(&mut self, code: CloseCode, how: EndReason) -> Result<(), SideError> {
        if self.closing.is_none() {
            self.closing = Some((how, Instant::now() + self.limits.close_timeout));
        }
        if !self.close_queued() {
            self.ws.send_close(code).map_err(SideError::Ws)?;
        }
        Ok(())
    }

    /// Passes on what raw said before it broke, as far as ws takes it: a server that refuses an upload answers and hangs up,
    /// and its answer is lost when our write is the first to find out.
    fn forward_remaining(&mut self) {
        for _ in 0..LAST_WORDS {
            if !self.ws.flushed() || self.close_queued() || !self.ws.accepts_data() {
                return;
            }
            let read = self.tcp.fill(&mut self.outbound);
            if self.outbound.is_empty() || self.forward().is_err() || self.ws.flush().is_err() {
                return;
            }
            if read.is_err() {
                return;
            }
        }
    }

    /// Says what broke to both sides, as far as they can still be told without waiting.
    pub(super) fn broken(&mut self, fault: SideError) -> EndReason {
        let (own, far) = match self.role {
            Role::Client => (Party::Client, Party::Gateway),
            Role::Server => (Party::Target, Party::Relay),
        };
        let client_left = match (&fault, self.role) {
            (SideError::Tcp(TunnelError::Io(_)), Role::Client) => self.tcp.peer_finished(),
            (SideError::Ws(TunnelError::Closed(Some(code))), Role::Server) => {
                *code == u16::from(CloseCode::Error) && self.ws.peer_finished()
            }
            _ => false,
        };
        match fault {
            SideError::Tcp(TunnelError::Io(_)) => self.forward_remaining(),
            SideError::Tcp(_) => {}
            // What came before the fault is as good as it was: as far as raw takes it without waiting.
            SideError::Ws(_) => {
                let _ = self.forward().and_then(|()| self.flush());
            }
        }
        let (by, fault) = match fault {
            SideError::Tcp(fault) => (own, fault),
            SideError::Ws(fault) => (far, fault),
        };
        let code = if by == far {
            fault.close_code()
        } else {
            CloseCode::Error
        };
        let _ = self.ws.send_close(code).and_then(|()| self.ws.flush());
        if client_left {
            return EndReason::HungUp;
        }
        EndReason::Broken {
            by,
            why: fault.to_string(),
        }
    }
}
