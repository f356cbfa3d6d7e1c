//! The rustls configurations of servers: the gateway itself, and its interception.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::Ticketer;
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::crypto::tls::provider;

/// A server with the certificates `chain` and no client authentication. TLS 1.2 and 1.3, no ALPN.
///
/// # Errors
/// The chain is empty or cannot be parsed, the kind of key is not supported, or the key does not
/// belong to the first certificate.
pub(crate) fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let certified = CertifiedKey::from_der(chain, key, &provider())?;
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    let mut config = server_config_showing(resolver)?;
    // Stateless tickets: any number of relays can resume.
    config.ticketer = Ticketer::new()?;
    Ok(Arc::new(config))
}

/// A server whose certificates come from `resolver`. The interception sets ALPN and tickets itself.
pub(crate) fn server_config_showing(
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, rustls::Error> {
    Ok(ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::tls::tests::certificate;

    #[test]
    fn a_key_of_another_certificate_is_rejected() {
        let (chain, key) = certificate();
        let (_, other) = certificate();
        assert!(server_config(vec![chain.clone()], key).is_ok());
        assert!(server_config(vec![chain], other.clone_key()).is_err());
        assert!(server_config(vec![], other).is_err());
    }
}
