//! Why a stage was not satisfied: one error type, whose text says what failed, where, and what to do.
//!
//! What goes wrong inside one tunnel is `tunnel::TunnelError`, which never ends the lifecycle.

use std::fmt;

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

/// A stage of the lifecycle that was not satisfied. No secret is ever part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    stage: Stage,
    what: String,
    remedy: String,
}

impl Error {
    /// An error of `stage`: what failed (and where), and what its reader can do.
    pub(crate) fn new(stage: Stage, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            stage,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// The stage that was not satisfied.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// What failed and where, in a few words without a full stop.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to do about it, as an imperative without a full stop.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for Error {}
