//! The end of a tunnel: detects the events of the module page and does what the rules say.

use std::ops::ControlFlow;
use std::time::Instant;

use tungstenite::protocol::frame::coding::CloseCode;

use super::rules::{self, Action, ClosingAction, ClosingFacts, Event, WsState};
use super::state::{Pump, PumpPhase, SideError};
use crate::control::outcome::EndReason;
#[cfg(feature = "gateway")]
use crate::control::outcome::TunnelSummary;
use crate::tunnel::error::TunnelError;
#[cfg(feature = "gateway")]
use crate::tunnel::ws_codec::WsCodec;

impl Pump<'_> {
    /// Replaces the TCP side by `last`, the last bytes for the peer, and ends the tunnel cleanly:
    /// for a refusal in the client's own protocol. What inner TLS has queued is sent before it.
    /// Blocks.
    #[cfg(feature = "gateway")]
    pub(crate) fn finish_with(mut self: Box<Self>, last: &[u8]) -> TunnelSummary {
        self.tcp.conn.mark_eof();
        self.ws_deadline = Some(Instant::now() + self.context.limits.close_timeout);
        self.ws.drop_pending();
        self.tcp.drop_pending();
        // The inner TLS is not complete, so it would never accept the end.
        self.ws.conn.remove_inner_tls();
        if !self.codec().is_some_and(WsCodec::fin_queued) {
            self.tcp.pending.extend(last);
        }
        self.run()
    }

    /// The TCP side failed with `error`.
    pub(super) fn tcp_failed(&mut self, error: TunnelError) -> Result<(), SideError> {
        let all = self.is_complete() && self.undelivered_to_tcp() == 0;
        let event = if all {
            Event::TcpFailedAtEnd
        } else {
            Event::TcpFailed
        };
        self.apply(event, SideError::Tcp(error))
    }

    /// The WebSocket failed with `error`.
    pub(super) fn ws_failed(&mut self, error: TunnelError) -> Result<(), SideError> {
        let event = match error {
            TunnelError::Io(_)
            | TunnelError::TimedOut(_)
            | TunnelError::PeerSilent
            | TunnelError::Stalled => Event::WsLost,
            _ => Event::WsInvalid,
        };
        self.apply(event, SideError::Ws(error))
    }

    /// The TCP side accepts no more bytes. What it has sent is still read and forwarded; then the
    /// tunnel fails. A server that refuses an upload answers and closes, and its answer must not be
    /// lost.
    pub(super) fn tcp_write_failed(&mut self, error: TunnelError) -> Result<(), SideError> {
        let may_read = !self.is_closing() && !self.tcp.conn.peer_finished();
        if may_read && matches!(error, TunnelError::Io(_)) {
            self.tcp.conn.abandon_writing(Some(error));
            self.drop_for_tcp();
            return Ok(());
        }
        self.tcp_failed(error)
    }

    /// Drops the data for a TCP side that accepts no more.
    pub(super) fn drop_for_tcp(&mut self) {
        self.tcp.conn.count_dropped(self.ws.pending.len());
        self.ws.drop_pending();
    }

    /// As [`Self::tcp_write_failed`], for the WebSocket.
    pub(super) fn ws_write_failed(&mut self, error: TunnelError) -> Result<(), SideError> {
        let may_read = !self.ws.conn.eof() && self.peer_close().is_none();
        if may_read && matches!(error, TunnelError::Io(_)) {
            self.ws.conn.abandon_writing(Some(error));
            return Ok(());
        }
        self.ws_failed(error)
    }

    /// Does what the rules say about `event`.
    pub(super) fn handle(&mut self, event: Event) -> Result<(), SideError> {
        self.apply(event, SideError::Ws(TunnelError::ConnectionEnded))
    }

    /// Does what the rules say about `event`. `error` is returned if the tunnel fails.
    fn apply(&mut self, event: Event, error: SideError) -> Result<(), SideError> {
        match rules::next(event, &self.facts()) {
            Action::None | Action::Linger => Ok(()),
            Action::ForwardEnd => self.forward_end(),
            Action::ForwardEndAndClose => {
                self.forward_end()?;
                self.close(CloseCode::Normal, EndReason::Clean)
            }
            Action::EndTcp => self.end_tcp(),
            Action::Close(code, reason) => self.close(code, reason),
            Action::Reject(code) => {
                self.close(code, EndReason::Clean)?;
                let code = self.peer_close().and_then(|close| close.code);
                Err(SideError::Ws(TunnelError::Closed(code)))
            }
            Action::Fail => Err(error),
            Action::AbandonTcp => {
                self.tcp.conn.abandon();
                Ok(())
            }
            Action::AbandonWs => {
                self.ws.conn.abandon();
                Ok(())
            }
        }
    }

    /// Detects the events of this turn, and whether a closing tunnel has ended.
    pub(super) fn handle_ends(&mut self) -> Result<ControlFlow<EndReason>, SideError> {
        if self.is_closing() && rules::ws_needs_data(&self.facts()) {
            // The peer's time to answer starts when the close frame was sent.
            self.restart_close_timeout();
        }
        let tcp_drained = self.tcp.conn.peer_finished()
            && self.tcp.pending.is_empty()
            && self.ws.conn.accepts_data();
        if tcp_drained && !self.tcp_finished && !self.is_closing() {
            self.tcp_finished = true;
            self.activity.last_data = Instant::now();
            self.handle(Event::TcpFinished)?;
        }
        if self.ws.conn.peer_finished() && self.ws.pending.is_empty() {
            self.handle(if self.ws.conn.accepts_data() {
                Event::WsFinished
            } else {
                Event::WsFinishedInHandshake
            })?;
        }
        if !self.is_closing() {
            // The `fin` may wait to be written; the close frame follows it.
            if self.tcp.conn.fin_sent() && self.both_fins() {
                self.handle(Event::BothFinished)?;
            } else if self.ws_deadline.is_some_and(|at| at <= Instant::now()) {
                self.handle(Event::RefusalExpired)?;
            }
        }
        if let Some(close) = self.peer_close() {
            self.handle(match close.code.map(CloseCode::from) {
                Some(CloseCode::Normal) => Event::CloseNormal,
                Some(CloseCode::Away) => Event::CloseAway,
                Some(_) => Event::CloseOther,
                None => Event::CloseNoCode,
            })?;
        } else if self.ws.conn.eof() {
            self.handle(Event::WsEnded)?;
        }
        Ok(self.check_closing())
    }

    /// Ends the tunnel if it is closing and the rules say so.
    fn check_closing(&mut self) -> ControlFlow<EndReason> {
        let PumpPhase::Closing { until, .. } = self.phase else {
            return ControlFlow::Continue(());
        };
        let facts = self.facts();
        let ws = if facts.peer_closed {
            WsState::Closed
        } else if self.ws.conn.eof() {
            WsState::Ended
        } else {
            WsState::Open
        };
        let overdue = until <= Instant::now();
        let action = rules::closing(ClosingFacts {
            ws,
            refused: facts.refused,
            flushed: !self.ws.conn.wants_write(),
            accepted: (self.ws.pending.is_empty() && self.tcp.conn.flushed())
                || !rules::tcp_needs_data(&facts),
            overdue,
            // A system call, so only where the rules use it.
            unacknowledged: ws == WsState::Open
                && overdue
                && !facts.refused
                && self.ws.conn.unacknowledged() > 0,
        });
        match (action, &self.phase) {
            (ClosingAction::Finish, PumpPhase::Closing { reason, .. }) => {
                return ControlFlow::Break(reason.clone());
            }
            (ClosingAction::ExtendTimeout, _) => self.restart_close_timeout(),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    /// Ends the WebSocket's direction, after everything from the TCP side was forwarded.
    fn forward_end(&mut self) -> Result<(), SideError> {
        let clean = self.tcp.conn.peer_finished_cleanly();
        self.ws.conn.send_fin(clean).map_err(SideError::Ws)
    }

    /// Ends the sending direction of the TCP side, after everything from ws was forwarded.
    fn end_tcp(&mut self) -> Result<(), SideError> {
        let clean = self.ws.conn.peer_finished_cleanly();
        self.tcp.conn.send_fin(clean).map_err(SideError::Tcp)
    }

    /// Starts or answers the closing handshake; the first reason remains.
    fn close(&mut self, code: CloseCode, reason: EndReason) -> Result<(), SideError> {
        if !self.is_closing() {
            self.phase = PumpPhase::Closing {
                reason,
                until: Instant::now() + self.context.limits.close_timeout,
            };
        }
        if self.close_queued() {
            return Ok(());
        }
        self.ws.conn.send_close(code).map_err(SideError::Ws)
    }

    /// Gives the peer the full time to answer the close frame, from now on.
    fn restart_close_timeout(&mut self) {
        if let PumpPhase::Closing { until, .. } = &mut self.phase {
            *until = Instant::now() + self.context.limits.close_timeout;
        }
    }
}
