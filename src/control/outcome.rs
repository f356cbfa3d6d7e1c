//! How a connection ended, as its worker reports it, and its log line.

use std::fmt;
use std::time::{Duration, Instant};

use crate::control::phase::Phase;

/// Who broke a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    /// The program that asked for the tunnel.
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
    /// Both directions ended in order.
    Clean,
    /// Version 1: nothing more came after the client's end of stream.
    LingerExpired,
    /// Silent when a stop was asked for, and ended in order.
    Stopped,
    /// The client had ended its direction, and then closed while something still came: it wanted no more.
    HungUp,
    /// No data for as long as the idle timeout.
    Idle,
    /// Cut at the drain deadline.
    Cut,
    /// It broke.
    Broken {
        /// Whose doing it was, as far as we can see.
        by: Party,
        /// What broke.
        why: String,
    },
    /// It never became a tunnel: the client was answered with this status.
    Refused {
        /// The HTTP status.
        status: u16,
        /// Where it failed.
        phase: Phase,
        /// What failed.
        why: String,
    },
    /// Not a tunnel and not meant as one: a request that was answered.
    Answered,
    /// The client left, or a stop came, before there was anything to answer.
    Abandoned,
    /// The worker panicked.
    Panicked,
}

/// What a tunnel came to.
#[derive(Debug)]
pub(crate) struct TunnelSummary {
    /// How it ended.
    pub(crate) how: EndReason,
    /// Bytes from client to target.
    pub(crate) up: u64,
    /// Bytes from target to client.
    pub(crate) down: u64,
}

/// What a worker reports, exactly once.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// What the tunnel was for; none if that was never known.
    pub(crate) authority: Option<String>,
    /// How it ended.
    pub(crate) how: EndReason,
    /// Bytes from client to target.
    pub(crate) up: u64,
    /// Bytes from target to client.
    pub(crate) down: u64,
    /// When the connection was accepted.
    pub(crate) since: Instant,
}

impl Outcome {
    /// The outcome of a connection to `authority`: a tunnel's ending, or why there never was one.
    pub(crate) fn new(
        since: Instant,
        authority: Option<String>,
        came_to: Result<TunnelSummary, EndReason>,
    ) -> Self {
        let (how, up, down) = match came_to {
            Ok(TunnelSummary { how, up, down }) => (how, up, down),
            Err(how) => (how, 0, 0),
        };
        Self {
            authority,
            how,
            up,
            down,
            since,
        }
    }

    /// Writes the one log line of `who`'s tunnel. A connection that never was one leaves a debug line at most.
    pub(crate) fn log(&self, who: &str) {
        let authority = self.authority.as_deref().unwrap_or("-");
        let took = Millis(self.since.elapsed());
        let (up, down) = (self.up, self.down);
        match &self.how {
            EndReason::Refused { .. } => log::info!("{who}: {authority} {}, {took}", self.how),
            EndReason::Answered | EndReason::Abandoned => {
                log::debug!("{who}: {authority} {}, {took}", self.how);
            }
            EndReason::Panicked => log::error!(
                "{who}: {authority} {}, {took}; this is a fault of this program",
                self.how
            ),
            how => log::info!("{who}: {authority} {up} bytes up, {down} bytes down, {took}, {how}"),
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("ended"),
            Self::LingerExpired => {
                f.write_str("linger expired: the client had ended and nothing more came")
            }
            Self::Stopped => f.write_str("stopped while silent"),
            Self::HungUp => f.write_str("ended: the client hung up"),
            Self::Idle => f.write_str("ended by the idle timeout"),
            Self::Cut => f.write_str("cut at the drain deadline"),
            Self::Broken { by, why } => write!(f, "broken by the {}: {why}", by.name()),
            Self::Refused { status, phase, why } => write!(f, "refused {status} in {phase}: {why}"),
            Self::Answered => f.write_str("answered"),
            Self::Abandoned => f.write_str("abandoned"),
            Self::Panicked => f.write_str("panicked"),
        }
    }
}

/// A duration in milliseconds, for log lines.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0.as_millis())
    }
}
