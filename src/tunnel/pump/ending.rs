//! How a tunnel ends: each direction's end passed on, the closing handshake, and what is said to both sides of one that broke
//! (`manual/protocol.md`, The end).

use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use super::{Break, Pump, Turn};
use crate::control::outcome::{EndReason, Party, TunnelSummary};
use crate::tunnel::drive::farewell;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::message::Version;

/// How long a client may take to hang up after everything was delivered; its answer means nothing any more.
const LAST_READ: Duration = Duration::from_secs(1);
/// How often raw is read once more when it broke: its socket's buffer, and not a stream that has no end.
const LAST_WORDS: usize = 32;

impl Pump<'_> {
    /// Ends the stream in order without raw, `last` being the last that the far end hears: for a refusal that the client's
    /// own protocol can say.
    pub(crate) fn end_with(mut self: Box<Self>, last: &[u8]) -> TunnelSummary {
        self.raw_gone = true;
        self.raw.hang_up();
        self.patience = Some(Instant::now() + self.limits.close_timeout);
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
            raw,
            up,
            down,
            stop,
            limits,
            ..
        } = *self;
        match how {
            EndReason::Clean | EndReason::Stopped | EndReason::Idle => {
                // Its close_notify is a courtesy: both closes are through.
                let _ = ws.hang_up_politely();
                drop(ws);
                farewell(raw, stop, limits.close_timeout.min(LAST_READ));
            }
            _ => {
                // The client learns at once, whatever time the other side takes to hang up.
                raw.reset();
                drop(raw);
                if !ws.eof() && how != EndReason::Cut {
                    farewell(ws, stop, limits.close_timeout);
                }
            }
        }
        TunnelSummary { how, up, down }
    }

    /// Raw failed, which breaks the tunnel: unless nothing was owed to it any more.
    pub(super) fn raw_failed(&mut self, fault: TunnelError) -> Result<(), Break> {
        if self.raw_is_owed() {
            return Err(Break::Raw(fault));
        }
        self.raw.give_up();
        Ok(())
    }

    /// Whether what came for raw must reach it. In version 1 a target that has ended is owed nothing more, and neither is a
    /// client that will be reset.
    pub(super) fn raw_is_owed(&self) -> bool {
        let ended_v1 =
            self.version == Version::V1 && self.role == Role::Server && self.raw_end_passed;
        !ended_v1 && !self.lingered() && !self.raw_gone
    }

    /// Version 1 at the relay: the client will be reset, since nobody knows whether all has come.
    fn lingered(&self) -> bool {
        matches!(self.closing, Some((EndReason::LingerExpired, _)))
    }

    /// Whether data waits to be taken by ws, and must be: our close stands behind it, and nobody has called it off.
    fn ws_is_owed(&self) -> bool {
        let over = self.ws.flushed() || self.ws.ended() || self.closed_by_peer().is_some();
        !over && !self.raw_gone
    }

    /// Ws failed, which breaks the tunnel: unless the closing handshake was under way, and all data had come or gone. Then a
    /// peer that hung up without an answer, or without waiting for ours, has still said all that it had to say.
    pub(super) fn ws_failed(&mut self, fault: TunnelError) -> Result<(), Break> {
        let all_said =
            self.version == Version::V2 || self.closed_by_peer().is_some() || self.ws.flushed();
        let gone = matches!(fault, TunnelError::Io(_) | TunnelError::TimedOut(_));
        if self.closing.is_none() || self.ws_is_owed() || !all_said || !gone {
            return Err(Break::Ws(fault));
        }
        self.ws.give_up();
        Ok(())
    }

    /// Passes ends on, and recognises the end of the whole.
    pub(super) fn ends(&mut self) -> Result<Option<Turn>, Break> {
        if self.ws_is_owed() {
            // Its time to answer begins when our close has gone out.
            self.answer_is_due_later();
        }
        let raw_drained = self.raw.ended_by_peer() && self.outbound.is_empty() && self.ws.ready();
        if raw_drained && !self.raw_end_passed && self.closing.is_none() {
            self.raw_end_passed = true;
            self.last_data = Instant::now();
            match (self.version, self.role) {
                (Version::V2, _) => self.ws.end(self.raw.ended_orderly()).map_err(Break::Ws)?,
                // The client's end cannot be said in version 1: we go on delivering, and linger.
                (Version::V1, Role::Client) => {}
                (Version::V1, Role::Server) => {
                    self.ws.end(self.raw.ended_orderly()).map_err(Break::Ws)?;
                    self.close(CloseCode::Normal, EndReason::Clean)?;
                }
            }
        }
        let ws_drained = self.ws.ended_by_peer() && self.inbound.is_empty();
        if ws_drained && !self.ws.ready() {
            // The inner handshake will never be done, so what raw says could never be delivered.
            return Err(Break::Ws(TunnelError::Ended));
        }
        if ws_drained {
            self.raw.end(self.ws.ended_orderly()).map_err(Break::Raw)?;
        }
        let fins = self
            .messages()
            .is_some_and(|m| m.fin_received() && m.fin_sent());
        // Our `fin` may still be on its way: the close goes right behind it.
        let both_ended = fins && self.raw.ended();
        let patience_over = self.patience.is_some_and(|until| until <= Instant::now());
        if (both_ended || patience_over) && self.closing.is_none() {
            self.close(CloseCode::Normal, EndReason::Clean)?;
        }
        match self.closed_by_peer() {
            Some(close) => self.closing_handshake(close.code, fins),
            None if self.ws.eof() && (self.closing.is_none() || self.ws_is_owed()) => {
                Err(Break::Ws(TunnelError::Ended))
            }
            None => Ok(self.closed_without_answer()),
        }
    }

    /// The peer has sent its close: orderly, or a broken tunnel.
    fn closing_handshake(&mut self, code: Option<u16>, fins: bool) -> Result<Option<Turn>, Break> {
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
            return Err(Break::Ws(TunnelError::Closed(code)));
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
            self.raw.end(self.ws.ended_orderly()).map_err(Break::Raw)?;
            self.flush()?;
        }
        let delivered = self.inbound.is_empty() && self.raw.ended();
        // A peer that has closed and does not read gets no more time for our answer than one that does not answer.
        let overdue = self.close_overdue();
        let answered = self.ws.flushed() || overdue;
        Ok(
            if answered && (delivered || (overdue && !self.raw_is_owed())) {
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
    fn closed_without_answer(&mut self) -> Option<Turn> {
        if !self.ws.eof() && self.close_overdue() && !self.raw_gone && self.ws.unsent() {
            self.answer_is_due_later();
            return None;
        }
        let delivered = self.inbound.is_empty() && self.raw.flushed();
        if (self.ws.eof() || self.close_overdue()) && (delivered || !self.raw_is_owed()) {
            self.done()
        } else {
            None
        }
    }

    fn done(&mut self) -> Option<Turn> {
        self.closing.take().map(|(how, _)| Turn::Done(how))
    }

    /// Begins or answers the closing handshake; the first reason stays the reason.
    pub(super) fn close(&mut self, code: CloseCode, how: EndReason) -> Result<(), Break> {
        if self.closing.is_none() {
            self.closing = Some((how, Instant::now() + self.limits.close_timeout));
        }
        if !self.close_sent() {
            self.ws.close(code).map_err(Break::Ws)?;
        }
        Ok(())
    }

    /// Passes on what raw said before it broke, as far as ws takes it: a server that refuses an upload answers and hangs up,
    /// and its answer is lost when our write is the first to find out.
    fn last_words(&mut self) {
        for _ in 0..LAST_WORDS {
            if !self.ws.flushed() || self.close_sent() || !self.ws.ready() {
                return;
            }
            let read = self.raw.fill(&mut self.outbound);
            if self.outbound.is_empty() || self.pass_on().is_err() || self.ws.flush().is_err() {
                return;
            }
            if read.is_err() {
                return;
            }
        }
    }

    /// Says what broke to both sides, as far as they can still be told without waiting.
    pub(super) fn broken(&mut self, fault: Break) -> EndReason {
        let (own, far) = match self.role {
            Role::Client => (Party::Client, Party::Gateway),
            Role::Server => (Party::Target, Party::Relay),
        };
        let hung_up = match (&fault, self.role) {
            (Break::Raw(TunnelError::Io(_)), Role::Client) => self.raw.ended_by_peer(),
            (Break::Ws(TunnelError::Closed(Some(code))), Role::Server) => {
                *code == u16::from(CloseCode::Error) && self.ws.ended_by_peer()
            }
            _ => false,
        };
        match fault {
            Break::Raw(TunnelError::Io(_)) => self.last_words(),
            Break::Raw(_) => {}
            // What came before the fault is as good as it was: as far as raw takes it without waiting.
            Break::Ws(_) => {
                let _ = self.pass_on().and_then(|()| self.flush());
            }
        }
        let (by, fault) = match fault {
            Break::Raw(fault) => (own, fault),
            Break::Ws(fault) => (far, fault),
        };
        let code = if by == far {
            fault.close_code()
        } else {
            CloseCode::Error
        };
        let _ = self.ws.close(code).and_then(|()| self.ws.flush());
        if hung_up {
            return EndReason::HungUp;
        }
        EndReason::Broken {
            by,
            why: fault.to_string(),
        }
    }
}
