//! A bounded cache of the certificates and TLS configurations of intercepted hosts.
//!
//! It issues no certificates (`issuer` does), and the caller passes the time.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::Ticketer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use time::OffsetDateTime;

use crate::crypto::tls_server;
use crate::http::authority::Host;

/// The maximum number of hosts: far more than a session uses, about 4 KiB each.
pub(crate) const HOST_LIMIT: usize = 1024;
/// The maximum number of configurations per host, one for each ALPN protocol. The target selects
/// the protocol, so a hostile one could select many.
const ALPN_LIMIT: usize = 4;

/// The certificates by host. The least recently used one is evicted first.
#[derive(Default)]
pub(crate) struct CertCache {
    hosts: HashMap<Host, HostCert>,
    uses: u64,
}

impl CertCache {
    /// Removes and returns the certificate of `host` if it is usable at `now`. Drops it if not.
    pub(crate) fn take(&mut self, host: &Host, now: OffsetDateTime) -> Option<HostCert> {
        let cert = self.hosts.remove(host)?;
        cert.usable.contains(&now).then_some(cert)
    }

    /// Adds the certificate of `host` as the most recently used one.
    pub(crate) fn insert(&mut self, host: &Host, mut cert: HostCert) {
        if self.hosts.len() >= HOST_LIMIT {
            let oldest = self.hosts.iter().min_by_key(|(_, cert)| cert.last_use);
            if let Some(host) = oldest.map(|(host, _)| host.clone()) {
                self.hosts.remove(&host);
            }
        }
        self.uses += 1;
        cert.last_use = self.uses;
        self.hosts.insert(host.clone(), cert);
    }
}

/// The certificate of one host, with a configuration for each ALPN protocol.
pub(crate) struct HostCert {
    certificate: Arc<SingleCertAndKey>,
    usable: Range<OffsetDateTime>,
    configs: Vec<(Option<Vec<u8>>, Arc<ServerConfig>)>,
    last_use: u64,
}

impl HostCert {
    /// A certificate for new clients at the times in `usable`.
    pub(crate) fn new(certificate: CertifiedKey, usable: Range<OffsetDateTime>) -> Self {
        Self {
            certificate: Arc::new(SingleCertAndKey::from(certificate)),
            usable,
            configs: Vec::new(),
            last_use: 0,
        }
    }

    /// The configuration with `alpn` as the only protocol.
    pub(crate) fn config(
        &mut self,
        alpn: Option<&[u8]>,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let known = |(choice, _): &&(Option<Vec<u8>>, _)| choice.as_deref() == alpn;
        if let Some((_, config)) = self.configs.iter().find(known) {
            return Ok(Arc::clone(config));
        }
        let choice = alpn.map(<[u8]>::to_vec);
        let mut config = tls_server::server_config_showing(self.certificate.clone())?;
        config.alpn_protocols = choice.iter().cloned().collect();
        // Tickets instead of rustls' session storage: the client keeps the state. Each
        // configuration has its own ticketer, so that a ticket is valid only for this host and
        // protocol.
        config.ticketer = Ticketer::new()?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let config = Arc::new(config);
        if self.configs.len() >= ALPN_LIMIT {
            self.configs.remove(0);
        }
        self.configs.push((choice, Arc::clone(&config)));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rustls_pki_types::PrivateKeyDer;
    use time::Duration;

    use super::*;

    const NOON: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn host_cert() -> HostCert {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let chain = vec![made.cert.der().clone()];
        let certificate =
            CertifiedKey::from_der(chain, key, &crate::crypto::tls::provider()).unwrap();
        HostCert::new(certificate, NOON - Duration::HOUR..NOON + Duration::HOUR)
    }

    #[test]
    fn the_cache_is_bounded_and_evicts_the_least_recently_used_host() {
        let nth = |n: u32| Host::Address(IpAddr::from(n.to_be_bytes()));
        let limit = u32::try_from(HOST_LIMIT).unwrap();
        let one = host_cert();
        let mut cache = CertCache::default();
        let copy = || HostCert {
            certificate: one.certificate.clone(),
            usable: one.usable.clone(),
            configs: Vec::new(),
            last_use: 0,
        };
        for n in 0..limit {
            cache.insert(&nth(n), copy());
        }
        let used = cache.take(&nth(0), NOON).unwrap();
        cache.insert(&nth(0), used);
        cache.insert(&nth(limit), copy());
        assert_eq!(cache.hosts.len(), HOST_LIMIT);
        assert!(cache.take(&nth(0), NOON).is_some());
        assert!(cache.take(&nth(1), NOON).is_none());
        assert!(cache.take(&nth(2), NOON).is_some());
    }

    #[test]
    fn a_certificate_that_is_not_usable_now_is_dropped() {
        let host = Host::parse("example.com").unwrap();
        let mut cache = CertCache::default();
        for now in [NOON + Duration::HOUR, NOON - Duration::HOUR * 2] {
            cache.insert(&host, host_cert());
            assert!(cache.take(&host, now).is_none());
            assert!(cache.hosts.is_empty());
        }
    }

    #[test]
    fn each_protocol_has_one_configuration_and_their_number_is_bounded() {
        let mut cert = host_cert();
        let first = cert.config(Some(b"h2")).unwrap();
        assert!(Arc::ptr_eq(&first, &cert.config(Some(b"h2")).unwrap()));
        assert!(!Arc::ptr_eq(&first, &cert.config(None).unwrap()));
        for n in 0..100_u8 {
            let config = cert.config(Some(&[n])).unwrap();
            assert_eq!(config.alpn_protocols, [[n]]);
        }
        assert_eq!(cert.configs.len(), ALPN_LIMIT);
    }
}
