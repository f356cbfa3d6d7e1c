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
use crate::tunnel::error::{TlsError, TunnelError};
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
        let complete = self.is_complete();
        let ended = self.tcp_finished;
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
        let undelivered = conn.undelivered_data();
        let reason = match error {
            _ if !needed || reason == EndReason::LingerExpired => reason,
            _ if complete && undelivered == 0 => reason,
            TunnelError::Stopped => EndReason::Cut,
            error => tcp_failure(traffic.tcp_party(), ended || undelivered == 0, &error),
        };
        traffic.summary(reason, undelivered)
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
        let undelivered = self.undelivered_to_tcp();
        let ended = self.tcp_finished;
        let Self {
            mut tcp,
            mut ws,
            mut traffic,
            ..
        } = *self;
        let reason = tcp_failure(traffic.tcp_party(), ended || undelivered == 0, error);
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
        let mut reason = self.ws_failure(error);
        let complete = self.is_complete();
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
        let undelivered = result.map_or_else(|_| conn.undelivered_data(), |()| 0);
        if complete && undelivered == 0 {
            reason = EndReason::Clean;
        }
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
        let Self {
            mut tcp, traffic, ..
        } = *self;
        tcp.conn.reset();
        traffic.summary(EndReason::Cut, tcp.conn.undelivered_data())
    }

    fn ws_failure(&self, error: &TunnelError) -> EndReason {
        // The relay saw the reset of its client, and reports it with 1011.
        let client_left = self.ws.conn.peer_finished()
            && matches!(error, TunnelError::Closed(Some(code)) if *code == u16::from(CloseCode::Error));
        // OpenSSL answers the end of a target that sends no close_notify with an alert.
        let alert = self.tcp_finished
            && matches!(
                error,
                TunnelError::Tls(TlsError::Rustls(rustls::Error::AlertReceived(_)))
            );
        if self.role == Role::Server && (client_left || alert) {
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

/// Why the TCP side of `by` failed. `content`: it had ended its direction, or received everything,
/// so it needs no more data.
fn tcp_failure(by: Party, content: bool, error: &TunnelError) -> EndReason {
    if by == Party::Client && content && matches!(error, TunnelError::Io(_)) {
        return EndReason::ClientClosed;
    }
    EndReason::Broken {
        by,
        why: error.to_string(),
    }
}
