//! A problem that a check or measurement found, with its remedy.

use crate::error::Error;

/// What is wrong and what to do about it.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) what: String,
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
