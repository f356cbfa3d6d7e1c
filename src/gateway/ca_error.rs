//! The error of the interception CA and of the certificates that it issues.

use std::fmt;

/// Why the CA cannot be used, or a certificate cannot be issued.
#[derive(Debug)]
pub(crate) enum CaError {
    /// The CA's certificate cannot be read.
    Certificate(String),
    /// The CA's key cannot be read or used.
    Key(String),
    /// The key does not belong to the certificate.
    OtherKey,
    /// The certificate must not sign others.
    NotCa,
    /// The CA's certificate has expired or is not yet valid.
    OutOfDate,
    /// The CA's name cannot be reproduced in the certificates that it issues.
    Subject,
    /// This machine's clock cannot be used.
    Clock,
    /// The system has no random bytes.
    Random,
    /// rcgen cannot make a certificate.
    Mint(rcgen::Error),
    /// rustls cannot use a certificate.
    Tls(rustls::Error),
}

impl fmt::Display for CaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the interception CA cannot be used: ")?;
        match self {
            Self::Certificate(why) => write!(
                f,
                "its certificate cannot be read ({why}); provide it in PEM, the CA's own certificate first"
            ),
            Self::Key(why) => write!(
                f,
                "its key cannot be used ({why}); provide a P-256, P-384, Ed25519 or RSA key \
                 in PEM without a password"
            ),
            Self::OtherKey => f.write_str(
                "the key does not belong to the first certificate; provide two that belong together",
            ),
            Self::NotCa => f.write_str(
                "the first certificate must not sign others; provide one with CA:TRUE and keyCertSign",
            ),
            Self::OutOfDate => f.write_str(
                "its certificate has expired or is not yet valid; renew it, or set the clock",
            ),
            Self::Subject => f.write_str(
                "its name has a repeated attribute, such as two DC, or a text that cannot be reproduced; \
                 provide one with a simple name",
            ),
            Self::Clock => f.write_str("the clock is before 1970 or after 9999; set it"),
            Self::Random => f.write_str("the system has no random bytes"),
            Self::Mint(error) => write!(f, "a certificate cannot be made: {error}"),
            Self::Tls(error) => write!(f, "a certificate cannot be used: {error}"),
        }
    }
}

impl std::error::Error for CaError {}

impl From<rcgen::Error> for CaError {
    fn from(error: rcgen::Error) -> Self {
        Self::Mint(error)
    }
}

impl From<rustls::Error> for CaError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}
