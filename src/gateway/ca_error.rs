//! The error of the interception CA and of the certificates that it issues.

use crate::error::{Error, ErrorKind, Stage};

/// Why the CA cannot be used, or a certificate cannot be issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error("the interception CA's certificate cannot be read ({0})")]
    Certificate(String),
    #[error("the interception CA's key cannot be used ({0})")]
    Key(String),
    #[error("the interception CA's key does not belong to its first certificate")]
    OtherKey,
    #[error("the interception CA's first certificate must not sign others")]
    NotCa,
    #[error("the interception CA's certificate has expired or is not yet valid")]
    OutOfDate,
    /// The CA's name cannot be reproduced in the certificates that it issues.
    #[error(
        "the interception CA's name has a repeated attribute, such as two DC, or a text that cannot \
         be reproduced"
    )]
    Subject,
    #[error("the clock is before 1970 or after 9999")]
    Clock,
    #[error("the system has no random bytes")]
    Random,
    #[error("a certificate cannot be made: {0}")]
    Mint(#[from] rcgen::Error),
    #[error("a certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

impl CaError {
    /// The error of a gateway that cannot start.
    pub(super) fn at_start(self) -> Error {
        let (kind, remedy) = match self {
            Self::Certificate(_) => (
                ErrorKind::InvalidData,
                "provide it in PEM, the CA's own certificate first",
            ),
            Self::Key(_) => (
                ErrorKind::InvalidData,
                "provide a P-256, P-384, Ed25519 or RSA key in PEM without a password",
            ),
            Self::OtherKey => (
                ErrorKind::InvalidSetting,
                "provide two that belong together",
            ),
            Self::NotCa => (
                ErrorKind::InvalidSetting,
                "provide one with CA:TRUE and keyCertSign",
            ),
            Self::OutOfDate => (ErrorKind::InvalidSetting, "renew it, or set the clock"),
            Self::Subject => (ErrorKind::InvalidSetting, "provide one with a simple name"),
            Self::Clock => (ErrorKind::Internal, "set the clock"),
            Self::Random => (ErrorKind::Internal, "check that getrandom(2) is permitted"),
            Self::Mint(_) | Self::Tls(_) => (ErrorKind::Internal, "report it"),
        };
        Error::new(Stage::Gateway, kind, self.to_string(), remedy).caused_by(self)
    }
}
