//! The error of a lifecycle stage: what failed, where, and what to do about it.
//!
//! Errors inside one tunnel are `tunnel::error::TunnelError`. They never end the lifecycle.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// A stage of the lifecycle, in the order in which the stages run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
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
    /// Not a stage of a relay: starting a gateway, or reading its sessions.
    Gateway,
}

impl Stage {
    /// Every stage of a relay, in the order in which they run.
    pub const ALL: &'static [Self] = &[Self::Gate, Self::Token, Self::Ca, Self::Relay, Self::Burn];

    /// The name that logs, `doctor` and the JSON output use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Token => "token",
            Self::Ca => "ca",
            Self::Relay => "relay",
            Self::Burn => "burn",
            Self::Gateway => "gateway",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What kind of problem a stage had, for hosts that react to some kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The environment does not ask for proxying: a switch is off. Not a fault.
    SwitchedOff,
    /// The host cancelled set-up with [`Cancel`](crate::config::Cancel).
    Cancelled,
    /// A setting is missing or has a value that cannot be used.
    InvalidSetting,
    /// A file is missing, for example a token file that an earlier start consumed.
    NotFound,
    /// A file cannot be read, written, locked or deleted.
    Io,
    /// A file or an answer does not hold what it must hold, for example no PEM certificate.
    InvalidData,
    /// The upstream cannot be reached: name resolution, TCP, or a timeout.
    Unreachable,
    /// The upstream's certificate is not trusted, or TLS failed.
    Tls,
    /// The upstream answered with an error status.
    Rejected,
    /// The listening address cannot be used.
    AddressUnavailable,
    /// A limit of the system was reached: threads, file descriptors, memory.
    ResourceLimit,
    /// A fault of this library, for example a panic during set-up.
    Internal,
}

/// Why a text is not a base URL, a session ID, a pattern or an override. It does not contain the
/// text, which may hold a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub(crate) &'static str);

/// A stage of the lifecycle failed. [`Display`](fmt::Display) prints what failed, where, and what
/// to do.
///
/// It contains no secret.
///
/// # Example
/// ```
/// use upstreamproxy::config::When;
/// use upstreamproxy::{Config, ErrorKind, Stage, start};
///
/// // The gate is open, but there is no base URL and no session ID.
/// let config = Config::default().when(When::Always);
/// let disabled = start(&config).into_result().expect_err("the settings are incomplete");
/// let error = disabled.error();
/// assert_eq!((error.stage(), error.kind()), (Stage::Gate, ErrorKind::InvalidSetting));
/// eprintln!("{}; {}", error.what(), error.remedy());
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}{}{remedy}", if remedy.is_empty() { "" } else { "; " })]
pub struct Error {
    stage: Stage,
    kind: ErrorKind,
    what: String,
    remedy: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `stage`: what failed (and where), and what to do.
    pub(crate) fn new(
        stage: Stage,
        kind: ErrorKind,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            stage,
            kind,
            what: what.into(),
            remedy: remedy.into(),
            source: None,
        }
    }

    /// The same error with the lower-level error that caused it.
    #[must_use]
    pub(crate) fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// The error of the stage of which this one is a part: `part` is what failed.
    #[cfg(feature = "gateway")]
    #[must_use]
    pub(crate) fn within(self, stage: Stage, part: &str) -> Self {
        let what = format!("{part}: {}", self.what);
        Self {
            stage,
            what,
            ..self
        }
    }

    /// The stage that failed.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The kind of problem.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What failed and where, in a few words without a full stop.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to do about it, as an imperative without a full stop. Empty if there is nothing to do.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

/// Compares everything but the source.
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        (self.stage, self.kind, &self.what, &self.remedy)
            == (other.stage, other.kind, &other.what, &other.remedy)
    }
}
