//! Notices that a target asks for a client certificate. The gateway has none: only the client has
//! the key.

use std::cell::Cell;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;

thread_local! {
    /// One thread runs all of a handshake. A resolver per connection would be simpler, but rustls
    /// resumes a session only with the resolver of its first connection.
    static REQUESTED: Cell<bool> = const { Cell::new(false) };
}

/// Sends no certificate, and notes the request.
#[derive(Debug)]
pub(super) struct NoClientCertificate;

impl NoClientCertificate {
    /// Whether a target asked for a certificate on this thread since the last call.
    pub(super) fn take_requested() -> bool {
        REQUESTED.take()
    }
}

impl ResolvesClientCert for NoClientCertificate {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        REQUESTED.set(true);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
