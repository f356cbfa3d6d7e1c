//! Why a stage was not satisfied: one error type, whose text says what failed, where, and what to do.
//!
//! What goes wrong inside one tunnel is `tunnel::Fault`, which never ends the lifecycle.

use std::fmt;

use crate::deadline::Stage;

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
