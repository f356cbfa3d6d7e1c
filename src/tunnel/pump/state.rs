//! The state of a pump: two sides, the phase, and what the timers need.

use std::time::Instant;

use tungstenite::protocol::frame::coding::CloseCode;

use super::rules::{self, EndFacts, Facts};
use super::side::Side;
use super::traffic::{Direction, Traffic};
use crate::config::Limits;
use crate::control::metrics::Counters;
use crate::control::outcome::EndReason;
#[cfg(feature = "gateway")]
use crate::control::outcome::Party;
use crate::control::stop::Stop;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::keepalive::Keepalive;
use crate::tunnel::remainder::Progress;
use crate::tunnel::ws_codec::{PeerClose, Version, WsCodec};

/// An error, and the side that it concerns.
pub(super) enum SideError {
    Tcp(TunnelError),
    Ws(TunnelError),
}

/// The phase of a tunnel.
#[derive(Debug)]
pub(super) enum PumpPhase {
    /// No close frame was queued.
    Open,
    /// A close frame was queued.
    Closing {
        /// How the tunnel will have ended.
        reason: EndReason,
        /// When the close timeout passes.
        until: Instant,
    },
}

/// The first bytes from ws are held back while they are inspected ([`Pump::peek`]).
#[derive(Debug)]
pub(super) struct Peek {
    /// The directions that are held back.
    pub(super) held: Held,
    /// When the first bytes must be complete; `None` before there are any.
    pub(super) until: Option<Instant>,
}

/// The directions whose data is held back during [`Pump::peek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "gateway"), allow(dead_code))]
pub(crate) enum Held {
    /// Only from ws; what TCP sends first is forwarded.
    FromWs,
    /// Both.
    Both,
}

/// When data was moved, and when memory can be released.
#[derive(Debug)]
pub(super) struct ActivityTimes {
    /// When data was last forwarded, or accepted after it had to wait.
    pub(super) last_data: Instant,
    pub(super) last_direction: Option<Direction>,
    /// When bytes were last read or written; `None` after the memory was released.
    pub(super) last_activity: Option<Instant>,
    /// Data was forwarded since `last_data` was set.
    pub(super) data_moved: bool,
    /// Queued bytes were waiting to be written at the last wait.
    pub(super) blocked: bool,
}

/// Whether the peer of the TCP side acknowledges what it receives.
#[derive(Debug)]
pub(super) struct DeliveryWatch {
    /// When this was last checked.
    pub(super) checked: Instant,
    /// Bytes may be unacknowledged.
    pub(super) unacked: bool,
}

/// What all tunnels of a relay or gateway share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PumpContext<'a> {
    /// Time limits.
    pub(crate) limits: &'a Limits,
    /// The stop request.
    pub(crate) stop: &'a Stop,
    /// The counters.
    pub(crate) counters: &'a Counters,
}

/// One tunnel between two connections.
pub(crate) struct Pump<'a> {
    pub(super) role: Role,
    pub(super) version: Version,
    pub(super) context: PumpContext<'a>,
    /// The client at the relay, the target at the gateway.
    pub(super) tcp: Side,
    /// The WebSocket to the peer.
    pub(super) ws: Side,
    pub(super) phase: PumpPhase,
    pub(super) peek: Option<Peek>,
    /// The end of the TCP side was forwarded, or starts the linger time.
    pub(super) tcp_finished: bool,
    /// When a refusal must have been delivered; set if the TCP side was replaced by a refusal.
    pub(super) ws_deadline: Option<Instant>,
    pub(super) started: Instant,
    pub(super) keepalive: Keepalive,
    /// The kernel watches ws with a user timeout.
    pub(super) user_timeout_set: bool,
    pub(super) delivery: DeliveryWatch,
    pub(super) activity: ActivityTimes,
    /// Turns since the last poll.
    pub(super) busy_turns: u32,
    pub(super) traffic: Traffic<'a>,
    /// Whether the last data of the tunnel is accepted.
    pub(super) progress: Progress,
    /// Data was still to be accepted when the tunnel had been silent for long enough.
    pub(super) late: bool,
}

impl<'a> Pump<'a> {
    /// A pump between `tcp` and `ws`, which has its WebSocket codec. `outbound` is data received
    /// early from `tcp`, `inbound` from `ws`. Boxed, since it is large.
    pub(crate) fn new(
        role: Role,
        tcp: Conn,
        ws: Conn,
        outbound: Buffer,
        inbound: Buffer,
        context: PumpContext<'a>,
    ) -> Box<Self> {
        let now = Instant::now();
        let version = ws.websocket().map_or(Version::V1, WsCodec::version);
        Box::new(Self {
            role,
            version,
            context,
            tcp: Side::new(tcp, outbound),
            ws: Side::new(ws, inbound),
            phase: PumpPhase::Open,
            peek: None,
            tcp_finished: false,
            ws_deadline: None,
            started: now,
            keepalive: Keepalive::new(context.limits.keepalive, now),
            user_timeout_set: false,
            delivery: DeliveryWatch {
                checked: now,
                unacked: false,
            },
            activity: ActivityTimes {
                last_data: now,
                last_direction: None,
                last_activity: Some(now),
                data_moved: false,
                blocked: false,
            },
            busy_turns: 0,
            traffic: Traffic::new(role, context.counters),
            progress: Progress::new(now),
            late: false,
        })
    }

    /// Both connections, and the data from `tcp` and `ws` that was not forwarded: to add TLS to
    /// both.
    #[cfg(feature = "gateway")]
    pub(crate) fn parts(&mut self) -> (&mut Conn, &mut Conn, &mut Buffer, &mut Buffer) {
        let (tcp, ws) = (&mut self.tcp, &mut self.ws);
        (
            &mut tcp.conn,
            &mut ws.conn,
            &mut tcp.pending,
            &mut ws.pending,
        )
    }

    /// Why TLS can no longer be added to both connections, and who is the cause.
    #[cfg(feature = "gateway")]
    pub(crate) fn tls_obstacle(&self) -> Option<(Party, &'static str)> {
        if self.traffic.down() > 0 || !self.tcp.pending.is_empty() {
            Some((Party::Target, "the target sent data before the ClientHello"))
        } else if self.tcp.conn.peer_finished() {
            Some((Party::Target, "the target ended before the ClientHello"))
        } else if self.ws_has_ended() || self.is_closing() {
            Some((Party::Client, "the client ended with its ClientHello"))
        } else {
            None
        }
    }

    /// Whether nothing more arrives from ws.
    pub(super) fn ws_has_ended(&self) -> bool {
        self.ws.conn.peer_finished() || self.ws.conn.eof() || self.peer_close().is_some()
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase, PumpPhase::Closing { .. })
    }

    /// Whether data from ws is held back for [`Self::peek`].
    pub(super) fn is_peeking(&self) -> bool {
        self.peek.is_some()
    }

    /// Whether the tunnel closes because of the linger timeout.
    fn lingered(&self) -> bool {
        matches!(
            self.phase,
            PumpPhase::Closing {
                reason: EndReason::LingerExpired,
                ..
            }
        )
    }

    pub(super) fn codec(&self) -> Option<&WsCodec> {
        self.ws.conn.websocket()
    }

    pub(super) fn peer_close(&self) -> Option<PeerClose> {
        self.codec().and_then(WsCodec::peer_close)
    }

    pub(super) fn close_queued(&self) -> bool {
        self.codec().is_some_and(WsCodec::close_queued)
    }

    /// Whether a `fin` was received, and one was queued.
    pub(super) fn both_fins(&self) -> bool {
        self.codec()
            .is_some_and(|codec| codec.fin_received() && codec.fin_queued())
    }

    /// Whether both streams have ended and were forwarded: no later fault can lose a byte, except
    /// one that the TCP side has not acknowledged.
    pub(super) fn is_complete(&self) -> bool {
        self.tcp_finished && self.ws.conn.peer_finished()
    }

    /// The number of received bytes that the TCP side has not acknowledged.
    pub(super) fn undelivered_to_tcp(&self) -> u64 {
        self.tcp.conn.undelivered_data() + self.ws.pending.len() as u64
    }

    /// The input of the rules.
    pub(super) fn facts(&self) -> Facts {
        Facts {
            version: self.version,
            role: self.role,
            closing: self.is_closing(),
            lingered: self.lingered(),
            tcp_finished: self.tcp_finished,
            refused: self.ws_deadline.is_some(),
            flushed: self.ws.conn.flushed(),
            fin_sent: self.ws.conn.fin_sent(),
            peer_closed: self.peer_close().is_some(),
            both_fins: self.both_fins(),
        }
    }

    /// What decides how the TCP side ends.
    pub(super) fn end_facts(&self) -> EndFacts {
        EndFacts {
            version: self.version,
            ws_finished: self.ws.conn.peer_finished(),
            refused: self.ws_deadline.is_some(),
            closed_normally: self
                .peer_close()
                .is_some_and(|close| close.code == Some(CloseCode::Normal.into())),
        }
    }

    /// See [`rules::tcp_needs_data`].
    pub(super) fn tcp_needs_data(&self) -> bool {
        rules::tcp_needs_data(&self.facts())
    }
}
