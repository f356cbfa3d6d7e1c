//! Closes both connections of a tunnel that has ended, after the data that was received is
//! delivered.

use std::time::Duration;

use tungstenite::protocol::frame::coding::CloseCode;

use super::rules;
use super::state::{Held, Pump, SideError};
use crate::control::outcome::{EndReason, Party, TunnelSummary};
use crate::sys::memory;
use crate::tunnel::conn::Conn;
use crate::tunnel::drive::close_and_drain;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::remainder::{Bounds, FAULT_SHARE, TcpEnd, deliver};

/// How long to wait for the client or target to close after everything was delivered.
const LAST_READ: Duration = Duration::from_secs(1);

impl Pump<'_> {
    /// Closes both connections. How depends on how the tunnel ended. Blocks.
    pub(super) fn finish(
        mut self: Box<Self>,
        ended: Result<EndReason, SideError>,
    ) -> TunnelSummary {
        if let Some(peek) = &self.peek {
            // Data that was held back goes nowhere.
            self.ws.drop_pending();
            if peek.held == Held::Both {
                self.tcp.drop_pending();
            }
        }
        // Dropping received bytes needs a large buffer.
        memory::in_own_frame(|| match ended {
            Ok(EndReason::Cut) => self.cut(),
            Ok(reason) => self.finish_in_agreement(reason),
            Err(SideError::Tcp(error)) => self.finish_without_tcp(&error),
            Err(SideError::Ws(error)) => self.finish_without_ws(&error),
        })
    }

    /// The peer has agreed to the end, or does not answer.
    fn finish_in_agreement(mut self: Box<Self>, reason: EndReason) -> TunnelSummary {
        let limits = self.context.limits;
        let needed = self.tcp_needs_data();
        let end = rules::tcp_end(self.end_facts(), &reason);
        let clean = self.ws.conn.peer_finished_cleanly();
        let bounds = Bounds {
            stop: self.context.stop,
            stall: if needed {
                limits.stall_timeout
            } else {
                limits.close_timeout
            },
            last_read: match end {
                TcpEnd::Fin => limits.close_timeout.min(LAST_READ),
                TcpEnd::Reset => Duration::ZERO,
            },
        };
        // Both close frames were exchanged, so a missing close_notify does no harm.
        let _ = self.ws.conn.send_close_notify_and_flush();
        let Self {
            tcp,
            ws,
            mut traffic,
            ..
        } = *self;
        let (mut conn, mut rest) = (tcp.conn, ws.pending);
        drop(ws.conn);
        let before = rest.len();
        let result = deliver(&mut conn, &mut rest, bounds, |conn| match end {
            TcpEnd::Fin => conn.send_fin(clean),
            TcpEnd::Reset => Ok(()),
        });
        traffic.count_from_ws(before - rest.len());
        if result.is_err() || end == TcpEnd::Reset {
            conn.reset();
        }
        let Err(error) = result else {
            return traffic.summary(reason, 0);
        };
        let reason = match error {
            _ if !needed || reason == EndReason::LingerExpired => reason,
            TunnelError::Stopped => EndReason::Cut,
            error => tcp_failure(traffic.tcp_party(), &conn, &error),
        };
        traffic.summary(reason, conn.undelivered())
    }

    /// The TCP side has failed. What it sent is delivered to the peer, before the close frame that
    /// reports the failure.
    fn finish_without_tcp(self: Box<Self>, error: &TunnelError) -> TunnelSummary {
        let limits = self.context.limits;
        let bounds = Bounds {
            stop: self.context.stop,
            stall: limits.stall_timeout / FAULT_SHARE,
            last_read: limits.close_timeout,
        };
        let mut accepts_data = !self.close_queued();
        let Self {
            tcp,
            mut ws,
            mut traffic,
            ..
        } = *self;
        let reason = tcp_failure(traffic.tcp_party(), &tcp.conn, error);
        let undelivered = tcp.conn.undelivered();
        // First, so that the client or target need not wait for the peer.
        tcp.conn.reset();
        drop(tcp.conn);
        let mut rest = tcp.pending;
        accepts_data &= ws.conn.accepts_data();
        if !accepts_data {
            rest.consume(rest.len());
        }
        let before = rest.len();
        let close = |conn: &mut Conn| conn.send_close(CloseCode::Error);
        if deliver(&mut ws.conn, &mut rest, bounds, close).is_err() {
            ws.conn.reset();
        }
        traffic.count_from_tcp(before - rest.len());
        traffic.summary(reason, undelivered)
    }

    /// The WebSocket has failed. What it has received is delivered to the TCP side, before the
    /// reset.
    fn finish_without_ws(mut self: Box<Self>, error: &TunnelError) -> TunnelSummary {
        let ws = &mut self.ws.conn;
        let _ = ws.send_close(error.close_code()).and_then(|()| ws.flush());
        let reason = self.ws_failure(error);
        let bounds = Bounds {
            stop: self.context.stop,
            stall: self.context.limits.stall_timeout / FAULT_SHARE,
            last_read: Duration::ZERO,
        };
        let Self {
            tcp,
            ws,
            mut traffic,
            context,
            ..
        } = *self;
        let (mut conn, mut rest) = (tcp.conn, ws.pending);
        let before = rest.len();
        // The first failure is the reason.
        let result = deliver(&mut conn, &mut rest, bounds, |_| Ok(()));
        traffic.count_from_ws(before - rest.len());
        let undelivered = result.map_or_else(|_| conn.undelivered(), |()| 0);
        conn.reset();
        drop(conn);
        if !ws.conn.eof() {
            close_and_drain(ws.conn, context.stop, context.limits.close_timeout);
        }
        traffic.summary(reason, undelivered)
    }

    /// Ends the tunnel at the drain deadline. Reports this to the peer, if that does not block.
    fn cut(mut self: Box<Self>) -> TunnelSummary {
        let ws = &mut self.ws.conn;
        let _ = ws.send_close(CloseCode::Error).and_then(|()| ws.flush());
        let Self { tcp, traffic, .. } = *self;
        tcp.conn.reset();
        traffic.summary(EndReason::Cut, tcp.conn.undelivered())
    }

    fn ws_failure(&self, error: &TunnelError) -> EndReason {
        // The relay saw the reset of its client, and reports it with 1011.
        let client_left = self.role == Role::Server
            && self.ws.conn.peer_finished()
            && matches!(error, TunnelError::Closed(Some(code)) if *code == u16::from(CloseCode::Error));
        if client_left {
            return EndReason::ClientClosed;
        }
        EndReason::Broken {
            by: match self.role {
                Role::Client => Party::Gateway,
                Role::Server => Party::Relay,
            },
            why: error.to_string(),
        }
    }
}

fn tcp_failure(by: Party, conn: &Conn, error: &TunnelError) -> EndReason {
    // The client ended its direction and then closed the connection: it needs no more data.
    if by == Party::Client && conn.peer_finished() && matches!(error, TunnelError::Io(_)) {
        return EndReason::ClientClosed;
    }
    EndReason::Broken {
        by,
        why: error.to_string(),
    }
}
