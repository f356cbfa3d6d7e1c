//! The names of what can take time or fail, and the one type that bounds waiting.
//!
//! `Stage` names the steps of the lifecycle, `Phase` the steps of one tunnel; logs, errors and `doctor` use these names and no others.

use std::fmt;
use std::time::{Duration, Instant};

/// A step of the lifecycle, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Whether the environment asks for proxying at all.
    Gate,
    /// Reading the session token into memory.
    Token,
    /// Downloading the upstream's CA certificates and merging the bundle.
    Ca,
    /// Binding the listener and starting the relay.
    Relay,
    /// Deleting the token file.
    Burn,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 5] = [Self::Gate, Self::Token, Self::Ca, Self::Relay, Self::Burn];

    /// The stage's name as users see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Token => "token",
            Self::Ca => "ca",
            Self::Relay => "relay",
            Self::Burn => "burn",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A step in the life of one tunnel, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    /// Reading the request head.
    Head,
    /// Looking a name up.
    Resolve,
    /// Opening a TCP connection.
    Connect,
    /// The TLS handshake.
    Tls,
    /// The WebSocket opening handshake.
    Upgrade,
    /// The CONNECT inside the WebSocket and its answer.
    Opening,
    /// The stream itself.
    Stream,
}

impl Phase {
    /// The phase's name as logs and `Proxy-Status` show it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Upgrade => "upgrade",
            Self::Opening => "opening",
            Self::Stream => "stream",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A point in time after which waiting ends; `Deadline::never()` does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// The deadline that is `wait` from now.
    pub(crate) fn after(wait: Duration) -> Self {
        Self(Instant::now().checked_add(wait))
    }

    /// The deadline at `instant`.
    pub(crate) fn at(instant: Instant) -> Self {
        Self(Some(instant))
    }

    /// No deadline.
    pub(crate) fn never() -> Self {
        Self(None)
    }

    /// The point in time; `None` for never.
    pub(crate) fn instant(self) -> Option<Instant> {
        self.0
    }

    /// What is left: `None` for ever, zero when it has passed.
    pub(crate) fn remaining(self) -> Option<Duration> {
        self.0
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it has passed.
    pub(crate) fn passed(self) -> bool {
        self.0.is_some_and(|at| at <= Instant::now())
    }

    /// The earlier of two.
    #[must_use]
    pub(crate) fn min(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self(Some(a.min(b))),
            (a, b) => Self(a.or(b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_deadline_wins_and_never_loses_to_any() {
        let soon = Deadline::after(Duration::from_secs(1));
        let late = Deadline::after(Duration::from_secs(100));
        assert_eq!(soon.min(late), soon);
        assert_eq!(Deadline::never().min(late), late);
        assert_eq!(Deadline::never().min(Deadline::never()), Deadline::never());
    }

    #[test]
    fn no_wait_has_passed_at_once_and_never_does_not_pass() {
        assert!(Deadline::after(Duration::ZERO).passed());
        assert!(!Deadline::never().passed());
        assert_eq!(Deadline::never().remaining(), None);
    }

    #[test]
    fn a_wait_too_long_to_count_is_never() {
        assert_eq!(Deadline::after(Duration::MAX), Deadline::never());
    }
}
