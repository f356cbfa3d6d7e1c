//! A certificate chain with its key, in PEM ([RFC 7468]): of the gateway's TLS server, or of its
//! interception CA. It only decodes PEM; whether the two can be used is decided elsewhere.
//!
//! [RFC 7468]: https://www.rfc-editor.org/rfc/rfc7468

use std::fmt;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::crypto::pem::{self, PemError};
use crate::crypto::secret::Secret;

/// A certificate with its chain, and its private key.
///
/// `Debug` shows neither, and the key is wiped when the value is dropped.
///
/// # Example
/// ```no_run
/// use upstreamproxy::gateway::{GatewayConfig, Sessions, TlsIdentity};
///
/// let identity = TlsIdentity::from_pem(
///     std::fs::read_to_string("/etc/gateway/cert.pem")?,
///     std::fs::read_to_string("/etc/gateway/key.pem")?,
/// );
/// let sessions = Sessions::parse("session-1 a-long-random-token")?;
/// let config = GatewayConfig::new(sessions).tls(identity);
/// # let _ = config;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TlsIdentity {
    cert_pem: String,
    key_pem: Secret,
}

impl TlsIdentity {
    /// The identity in these PEM texts: the certificate first, then those that lead to its root;
    /// and an unencrypted key as PKCS #8, PKCS #1 or SEC 1.
    ///
    /// The texts are checked when the gateway starts.
    pub fn from_pem(cert_pem: impl Into<String>, key_pem: String) -> Self {
        Self::from_secret(cert_pem, Secret::new(key_pem))
    }

    pub(crate) fn from_secret(cert_pem: impl Into<String>, key_pem: Secret) -> Self {
        Self {
            cert_pem: cert_pem.into(),
            key_pem,
        }
    }

    /// The certificates; there may be none.
    ///
    /// # Errors
    /// A block that is not PEM. The error does not quote it, because it may be a key.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, PemError> {
        pem::certificates(self.cert_pem.as_bytes())
    }

    /// The key; `None` if the text contains none.
    pub(super) fn key(&self) -> Option<PrivateKeyDer<'static>> {
        // The library's error is dropped: it quotes the text, which may be a key.
        PrivateKeyDer::from_pem_slice(self.key_pem.expose().as_bytes()).ok()
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}
