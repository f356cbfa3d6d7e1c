//! How a connection ended, as its worker reports it, and its log line.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::control::log;
use crate::control::log::LogSource;
use crate::control::refusals::Refusals;
use crate::control::rejection::Rejection;

/// Who broke a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    /// The program that requested the tunnel.
    Client,
    /// The gateway.
    Gateway,
    /// The relay.
    Relay,
    /// The host that the tunnel leads to.
    Target,
}

impl Party {
    /// The party's name in log lines.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Gateway => "gateway",
            Self::Relay => "relay",
            Self::Target => "target",
        }
    }
}

/// How one connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// Both directions ended cleanly.
    Clean,
    /// Version 1: nothing more arrived after the client's end of stream.
    LingerExpired,
    /// Silent when a stop was requested, and ended cleanly.
    Stopped,
    /// The client reset its connection, after it had ended its direction or received everything.
    ClientClosed,
    /// No data for as long as the idle timeout.
    Idle,
    /// Reset at the drain deadline.
    Cut,
    /// It broke.
    Broken {
        /// Who broke it, as far as this end can see.
        by: Party,
        /// What broke.
        why: String,
    },
    /// It never became a tunnel: the request was refused.
    Rejected(Box<Rejection>),
    /// It was not a request for a tunnel, and was answered.
    #[cfg_attr(not(feature = "gateway"), allow(dead_code))]
    Answered,
    /// The client disconnected, or a stop was requested, before there was anything to answer.
    Abandoned,
    /// The worker panicked.
    Panicked,
}

impl From<Rejection> for EndReason {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(Box::new(rejection))
    }
}

impl EndReason {
    /// Names the target in the response to a rejected request.
    pub(crate) fn for_target(self, target: Option<&str>) -> Self {
        match (self, target) {
            (Self::Rejected(rejection), Some(target)) => rejection.for_target(target).into(),
            (other, _) => other,
        }
    }
}

/// How a tunnel ended, and what it carried.
#[derive(Debug)]
pub(crate) struct TunnelSummary {
    /// How it ended.
    pub(crate) reason: EndReason,
    /// Bytes from client to target.
    pub(crate) up: u64,
    /// Bytes from target to client.
    pub(crate) down: u64,
    /// How many of these bytes the client or target did not acknowledge.
    pub(crate) undelivered: (u64, Party),
}

/// What a worker reports about its connection, exactly once.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The target; `None` if the request never named a valid one.
    authority: Option<String>,
    /// The address of the peer, if the log line of a rejection names it.
    peer: Option<SocketAddr>,
    /// How it ended.
    pub(crate) reason: EndReason,
    /// Bytes from client to target.
    up: u64,
    /// Bytes from target to client.
    down: u64,
    /// See [`TunnelSummary::undelivered`].
    undelivered: Option<(u64, Party)>,
    /// When the connection was accepted.
    since: Instant,
}

impl Outcome {
    /// The outcome of a connection to `authority` that was accepted at `since`: how its tunnel
    /// ended, or why there was none.
    pub(crate) fn new(
        since: Instant,
        authority: Option<String>,
        result: Result<TunnelSummary, EndReason>,
    ) -> Self {
        let (reason, up, down, undelivered) = match result {
            Ok(tunnel) => {
                let undelivered = Some(tunnel.undelivered);
                (tunnel.reason, tunnel.up, tunnel.down, undelivered)
            }
            Err(reason) => (reason, 0, 0, None),
        };
        Self {
            authority,
            peer: None,
            reason,
            up,
            down,
            undelivered,
            since,
        }
    }

    /// The host of the target without its port.
    pub(crate) fn host(&self) -> Option<&str> {
        self.authority.as_deref().map(host_of)
    }

    /// The bytes up and down.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.up, self.down)
    }

    /// Names the peer in the log line of a rejection.
    #[cfg(feature = "gateway")]
    pub(crate) fn with_peer(mut self, peer: SocketAddr) -> Self {
        self.peer = Some(peer);
        self
    }

    /// Writes the log line of the connection. A connection that was neither a tunnel nor a
    /// rejection has a line at `debug` only.
    ///
    /// A rejection by a relay is logged with its remedy, and as a warning if `refusals` does not
    /// know it yet: a person who runs a tool sees only what the tool shows. A gateway has many
    /// clients, and the relay of each reports the rejection.
    pub(crate) fn log(&self, source: &LogSource, refusals: &mut Refusals) {
        let (who, target) = (source.name(), source.target());
        let authority = self.authority.as_deref().unwrap_or("-");
        let took = Millis(self.since.elapsed());
        let (up, down) = (self.up, self.down);
        match (&self.reason, self.peer) {
            (EndReason::Rejected(_), Some(peer)) => {
                log::info!(target: target, "{who}: {authority} {}, from {peer}, {took}", self.reason);
            }
            (EndReason::Rejected(rejection), None) => {
                let (to_do, remedy) = match rejection.remedy {
                    "" => ("", ""),
                    remedy => ("; ", remedy),
                };
                if refusals.is_new(authority, rejection) {
                    log::warn!(target: target, "{who}: {authority} {}, {took}{to_do}{remedy}", self.reason);
                } else {
                    log::info!(target: target, "{who}: {authority} {}, {took}{to_do}{remedy}", self.reason);
                }
            }
            (EndReason::Answered | EndReason::Abandoned, _) => {
                log::debug!(target: target, "{who}: {authority} {}, {took}", self.reason);
            }
            (EndReason::Panicked, _) => log::error!(
                target: target,
                "{who}: {authority} {}, {took}; this is a fault of this program: report it",
                self.reason
            ),
            (reason, _) => {
                let rest = match self.undelivered {
                    Some((bytes @ 1.., party)) => {
                        format!("; {bytes} bytes were not delivered to the {}", party.name())
                    }
                    _ => String::new(),
                };
                log::info!(
                    target: target,
                    "{who}: {authority} {up} bytes up, {down} bytes down, {took}, {reason}{rest}"
                );
            }
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("ended"),
            Self::LingerExpired => {
                f.write_str("linger expired: the client had ended and nothing more arrived")
            }
            Self::Stopped => f.write_str("stopped while silent"),
            Self::ClientClosed => f.write_str("ended: the client closed early"),
            Self::Idle => f.write_str("ended by the idle timeout"),
            Self::Cut => f.write_str("cut at the drain deadline"),
            Self::Broken { by, why } => write!(f, "broken by the {}: {why}", by.name()),
            Self::Rejected(rejection) => write!(
                f,
                "refused {} in {}: {rejection}",
                rejection.status, rejection.phase
            ),
            Self::Answered => f.write_str("answered"),
            Self::Abandoned => f.write_str("abandoned"),
            Self::Panicked => f.write_str("panicked"),
        }
    }
}

/// The host in `host:port`.
pub(crate) fn host_of(authority: &str) -> &str {
    authority
        .rsplit_once(':')
        .map_or(authority, |(host, _port)| host)
}

/// A duration in milliseconds, for log lines.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0.as_millis())
    }
}
