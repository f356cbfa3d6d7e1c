//! The end of a tunnel: detects the events of the module page and does what the rules say.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use super::rules::{self, Action, ClosingAction, ClosingFacts, Event, WsState};
use super::state::{Pump, PumpPhase, SideError};
use crate::control::outcome::{EndReason, Party, TunnelSummary};
use crate::sys::memory;
use crate::tunnel::drive::close_and_drain;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
#[cfg(feature = "gateway")]
use crate::tunnel::ws_codec::WsCodec;

/// How long to wait for the client or target to close after everything was delivered.
const LAST_READ: Duration = Duration::from_secs(1);
/// The maximum number of reads from a TCP side that failed. It is enough for the socket's receive
/// buffer, and bounds an endless stream.
const REMAINING_READS: usize = 32;

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

    /// Closes both connections. How depends on how the tunnel ended.
    pub(super) fn finish(self: Box<Self>, reason: EndReason) -> TunnelSummary {
        // Draining needs a large buffer.
        memory::in_own_frame(|| self.close_connections(reason))
    }

    fn close_connections(self: Box<Self>, reason: EndReason) -> TunnelSummary {
        let Self {
            ws,
            tcp,
            up,
            down,
            context,
            ..
        } = *self;
        let (mut ws, tcp) = (ws.conn, tcp.conn);
        let timeout = context.limits.close_timeout;
        match reason {
            EndReason::Clean | EndReason::Stopped | EndReason::Idle => {
                // Both close frames were exchanged, so a missing close_notify does no harm.
                let _ = ws.send_close_notify_and_flush();
                drop(ws);
                close_and_drain(tcp, context.stop, timeout.min(LAST_READ));
            }
            _ => {
                // First, so that the client or target need not wait for the peer.
                tcp.reset();
                drop(tcp);
                if !ws.eof() && reason != EndReason::Cut {
                    close_and_drain(ws, context.stop, timeout);
                }
            }
        }
        TunnelSummary { reason, up, down }
    }

    /// The TCP side failed with `error`.
    pub(super) fn tcp_failed(&mut self, error: TunnelError) -> Result<(), SideError> {
        self.apply(Event::TcpFailed, SideError::Tcp(error))
    }

    /// The WebSocket failed with `error`.
    pub(super) fn ws_failed(&mut self, error: TunnelError) -> Result<(), SideError> {
        let event = match error {
            TunnelError::Io(_) | TunnelError::TimedOut(_) | TunnelError::PeerSilent => {
                Event::WsLost
            }
            _ => Event::WsInvalid,
        };
        self.apply(event, SideError::Ws(error))
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

    /// Ends the tunnel at the drain deadline. Reports this to the peer, if that does not block.
    pub(super) fn cut(&mut self) -> EndReason {
        let ws = &mut self.ws.conn;
        let _ = ws.send_close(CloseCode::Error).and_then(|()| ws.flush());
        EndReason::Cut
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
        self.check_closing()
    }

    /// Ends the tunnel if it is closing and the rules say so.
    fn check_closing(&mut self) -> Result<ControlFlow<EndReason>, SideError> {
        let PumpPhase::Closing { until, .. } = self.phase else {
            return Ok(ControlFlow::Continue(()));
        };
        let facts = self.facts();
        let ws = if facts.peer_closed {
            WsState::Closed
        } else if self.ws.conn.eof() {
            WsState::Ended
        } else {
            WsState::Open
        };
        if ws == WsState::Closed && !facts.lingered && self.ws.pending.is_empty() {
            self.end_tcp()?;
            self.flush()?;
        }
        let accepted = match ws {
            WsState::Closed => self.tcp.conn.fin_sent(),
            WsState::Open | WsState::Ended => self.tcp.conn.flushed(),
        };
        let overdue = until <= Instant::now();
        let action = rules::closing(ClosingFacts {
            ws,
            lingered: facts.lingered,
            refused: facts.refused,
            flushed: self.ws.conn.flushed(),
            delivered: self.ws.pending.is_empty() && accepted,
            overdue,
            needed: rules::tcp_needs_data(&facts),
            // A system call, so only where the rules use it.
            unsent: ws == WsState::Open && overdue && !facts.refused && self.ws.conn.has_unsent(),
        });
        match (action, &self.phase) {
            (ClosingAction::Finish, PumpPhase::Closing { reason, .. }) => {
                return Ok(ControlFlow::Break(reason.clone()));
            }
            (ClosingAction::ExtendTimeout, _) => self.restart_close_timeout(),
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
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

    /// Reads what the TCP side sent before it failed, and forwards it as far as ws accepts it
    /// without blocking. A server that refuses an upload answers and closes; a failed write to it
    /// must not lose the answer.
    fn forward_remaining(&mut self) {
        for _ in 0..REMAINING_READS {
            if !self.ws.conn.flushed() || self.close_queued() || !self.ws.conn.accepts_data() {
                return;
            }
            let read = self.tcp.conn.fill(&mut self.tcp.pending);
            let nothing = self.tcp.pending.is_empty();
            if nothing || self.forward().is_err() || self.ws.conn.flush().is_err() {
                return;
            }
            if read.is_err() {
                return;
            }
        }
    }

    /// Reports the failure of the tunnel to the peer, as far as this does not block. Data received
    /// before is still forwarded.
    pub(super) fn report_failure(&mut self, error: SideError) -> EndReason {
        let (own, far) = match self.role {
            Role::Client => (Party::Client, Party::Gateway),
            Role::Server => (Party::Target, Party::Relay),
        };
        // The client ended its direction and then closed the connection: it needs no more data.
        // The relay sees the reset itself and reports it to the gateway with 1011.
        let client_left = match (&error, self.role) {
            (SideError::Tcp(TunnelError::Io(_)), Role::Client) => self.tcp.conn.peer_finished(),
            (SideError::Ws(TunnelError::Closed(Some(code))), Role::Server) => {
                *code == u16::from(CloseCode::Error) && self.ws.conn.peer_finished()
            }
            _ => false,
        };
        match &error {
            SideError::Tcp(TunnelError::Io(_)) => self.forward_remaining(),
            SideError::Tcp(_) => {}
            SideError::Ws(_) => {
                let _ = self.forward().and_then(|()| self.flush());
            }
        }
        let (by, error, code) = match error {
            SideError::Tcp(error) => (own, error, CloseCode::Error),
            SideError::Ws(error) => {
                let code = error.close_code();
                (far, error, code)
            }
        };
        let ws = &mut self.ws.conn;
        let _ = ws.send_close(code).and_then(|()| ws.flush());
        if client_left {
            return EndReason::ClientClosed;
        }
        EndReason::Broken {
            by,
            why: error.to_string(),
        }
    }
}
