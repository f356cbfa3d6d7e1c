//! Why a name has no addresses: for one lookup of one address family, and for a caller that waits.

use std::io;

use dns_lookup::LookupErrorKind;

/// Why the lookup of one address family failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LookupFailure {
    /// There is no such name, or it has no address of this family; with the text of the system.
    NoAddress(String),
    /// The name servers failed, or did not answer; with the text of the system.
    Servers(String),
    /// This machine has no descriptors, threads or memory left: the number of the error.
    System(i32),
}

impl From<dns_lookup::LookupError> for LookupFailure {
    fn from(error: dns_lookup::LookupError) -> Self {
        match error.kind() {
            LookupErrorKind::NoName | LookupErrorKind::NoData => Self::NoAddress(error.to_string()),
            _ => io::Error::from(error).into(),
        }
    }
}

impl From<io::Error> for LookupFailure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::System(errno),
            None => Self::Servers(error.to_string()),
        }
    }
}

/// Why a caller gets no addresses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    /// The name has no address, or no name server knows it.
    #[error("{name} cannot be looked up: {why}")]
    NotFound { name: String, why: String },
    /// This machine has no descriptors, threads or memory left.
    #[error(transparent)]
    System(io::Error),
    /// The deadline has passed.
    #[error("looking up {0} took too long")]
    TimedOut(String),
    /// The caller no longer needs the addresses.
    #[error("the addresses are no longer needed")]
    NotWanted,
}
