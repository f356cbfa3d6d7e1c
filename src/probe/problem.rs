//! A problem that a check or measurement found, with its remedy.

use crate::error::Error;

/// What is wrong and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// What is wrong and where, without a full stop.
    pub(crate) what: String,
    /// What to do about it, as an imperative without a full stop.
    pub(crate) remedy: String,
    /// The gateway's policy refused; the path to the gateway works.
    pub(crate) policy: bool,
}

impl Problem {
    pub(crate) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            remedy: remedy.into(),
            policy: false,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::new(error.what(), error.remedy())
    }
}
