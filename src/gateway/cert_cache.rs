//! What the clients of intercepted hosts are shown, kept for the next client: a bounded memory of certificates and configurations.
//!
//! It makes no certificate (that is `issuer`, its one user) and knows no clock: it is told the time.

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

/// Hosts whose certificates are kept: far more than a session talks to, at some 4 KiB each.
pub(crate) const HOST_LIMIT: usize = 1024;
/// Configurations kept for one host, one for each ALPN choice. The target chooses, so a hostile one could choose many.
const ALPN_LIMIT: usize = 4;

/// What hosts are shown; the least recently used is forgotten first.
#[derive(Default)]
pub(crate) struct CertCache {
    hosts: HashMap<Host, HostCert>,
    uses: u64,
}

impl CertCache {
    /// Takes out what `host` is shown, if it is still good; what is not is forgotten.
    pub(crate) fn take(&mut self, host: &Host, now: OffsetDateTime) -> Option<HostCert> {
        let shown = self.hosts.remove(host)?;
        shown.good.contains(&now).then_some(shown)
    }

    /// Keeps what `host` is shown, as the one used last.
    pub(crate) fn keep(&mut self, host: &Host, mut shown: HostCert) {
        if self.hosts.len() >= HOST_LIMIT {
            let oldest = self.hosts.iter().min_by_key(|(_, shown)| shown.last_use);
            if let Some(host) = oldest.map(|(host, _)| host.clone()) {
                self.hosts.remove(&host);
            }
        }
        self.uses += 1;
        shown.last_use = self.uses;
        self.hosts.insert(host.clone(), shown);
    }
}

/// What one host's clients are shown: one certificate, in a configuration for each ALPN choice.
pub(crate) struct HostCert {
    certificate: Arc<SingleCertAndKey>,
    good: Range<OffsetDateTime>,
    configs: Vec<(Option<Vec<u8>>, Arc<ServerConfig>)>,
    last_use: u64,
}

impl HostCert {
    /// A certificate that new clients are shown at the times in `good`; outside it, when the clock was set back far, say,
    /// another is made.
    pub(crate) fn new(certificate: CertifiedKey, good: Range<OffsetDateTime>) -> Self {
        Self {
            certificate: Arc::new(SingleCertAndKey::from(certificate)),
            good,
            configs: Vec::new(),
            last_use: 0,
        }
    }

    /// The configuration that offers `alpn` and no other protocol.
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
        // Tickets instead of rustls' memory of sessions: the client keeps the state, and a thousand hosts cost nothing.
        // A ticketer of its own, so that a ticket is good for this host and this choice alone.
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

    fn shown() -> HostCert {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let chain = vec![made.cert.der().clone()];
        let certificate =
            CertifiedKey::from_der(chain, key, &crate::crypto::tls::provider()).unwrap();
        HostCert::new(certificate, NOON - Duration::HOUR..NOON + Duration::HOUR)
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_least_recently_used_goes() {
        let nth = |n: u32| Host::Address(IpAddr::from(n.to_be_bytes()));
        let limit = u32::try_from(HOST_LIMIT).unwrap();
        let one = shown();
        let mut cache = CertCache::default();
        let copy = || HostCert {
            certificate: one.certificate.clone(),
            good: one.good.clone(),
            configs: Vec::new(),
            last_use: 0,
        };
        for n in 0..limit {
            cache.keep(&nth(n), copy());
        }
        let used = cache.take(&nth(0), NOON).unwrap();
        cache.keep(&nth(0), used);
        cache.keep(&nth(limit), copy());
        assert_eq!(cache.hosts.len(), HOST_LIMIT);
        assert!(cache.take(&nth(0), NOON).is_some());
        assert!(cache.take(&nth(1), NOON).is_none());
        assert!(cache.take(&nth(2), NOON).is_some());
    }

    #[test]
    fn what_is_no_longer_or_not_yet_good_is_forgotten() {
        let host = Host::parse("example.com").unwrap();
        let mut cache = CertCache::default();
        for now in [NOON + Duration::HOUR, NOON - Duration::HOUR * 2] {
            cache.keep(&host, shown());
            assert!(cache.take(&host, now).is_none());
            assert!(cache.hosts.is_empty());
        }
    }

    #[test]
    fn one_choice_has_one_configuration_and_many_choices_do_not_fill_the_memory() {
        let mut shown = shown();
        let first = shown.config(Some(b"h2")).unwrap();
        assert!(Arc::ptr_eq(&first, &shown.config(Some(b"h2")).unwrap()));
        assert!(!Arc::ptr_eq(&first, &shown.config(None).unwrap()));
        for n in 0..100_u8 {
            let config = shown.config(Some(&[n])).unwrap();
            assert_eq!(config.alpn_protocols, [[n]]);
        }
        assert_eq!(shown.configs.len(), ALPN_LIMIT);
    }
}
