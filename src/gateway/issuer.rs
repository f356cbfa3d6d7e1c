//! Certificates for intercepted hosts, signed by the interception CA when they are needed.
//!
//! It does not decide which hosts are intercepted, and dials nothing. All certificates share one
//! leaf key, so a new host costs one signature.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use super::ca_error::CaError;
use super::cert_cache::{CertCache, HostCert};
use super::interception_ca::{BACKDATE, InterceptionCa, name, now, validity};
use super::validity::Validity;
use crate::crypto::tls;
use crate::http::authority::Host;

/// How long a host's certificate is valid: short, because it cannot be revoked.
const LEAF_LIFETIME: Duration = Duration::days(7);
/// A certificate with less than this left is not used for new clients: their clocks may be early.
const LEAF_MARGIN: Duration = Duration::days(1);

/// Issues and caches the certificates of intercepted hosts.
pub(super) struct Issuer {
    ca: InterceptionCa,
    leaf_key: KeyPair,
    leaf_signer: Arc<dyn rustls::sign::SigningKey>,
    cache: Mutex<CertCache>,
    #[cfg(test)]
    minted: AtomicU64,
}

impl Issuer {
    /// An issuer with a new leaf key.
    pub(super) fn new(ca: InterceptionCa) -> Result<Self, CaError> {
        let leaf_key = KeyPair::generate()?;
        let leaf_der = PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into());
        Ok(Self {
            ca,
            leaf_signer: tls::provider().key_provider.load_private_key(leaf_der)?,
            leaf_key,
            cache: Mutex::default(),
            #[cfg(test)]
            minted: AtomicU64::new(0),
        })
    }

    /// The CA's certificates in PEM, without the key: what the CA endpoint serves.
    pub(super) fn ca_pem(&self) -> &str {
        self.ca.pem()
    }

    /// The digest of the CA's certificates.
    pub(super) fn ca_digest(&self) -> &str {
        self.ca.digest()
    }

    /// How long the CA's own certificate is valid.
    pub(super) fn ca_validity(&self) -> Option<Validity> {
        self.ca.validity()
    }

    /// The number of certificates issued so far.
    #[cfg(test)]
    fn minted(&self) -> u64 {
        self.minted.load(Ordering::Relaxed)
    }

    /// The TLS configuration for clients of `host`: a certificate for it, and `alpn`, the target's
    /// choice, as the only protocol (`None`: no ALPN).
    ///
    /// Sessions are resumed only for the same host and the same `alpn`, so a resumed session is
    /// equivalent to a full handshake.
    pub(super) fn server_config(
        &self,
        host: &Host,
        alpn: Option<&[u8]>,
    ) -> Result<Arc<ServerConfig>, CaError> {
        self.server_config_at(host, alpn, now()?)
    }

    fn server_config_at(
        &self,
        host: &Host,
        alpn: Option<&[u8]>,
        now: OffsetDateTime,
    ) -> Result<Arc<ServerConfig>, CaError> {
        // Locked while a certificate is issued, so that it is issued once for each host. That takes
        // 0.06 ms with a generated P-256 key (measured), a few ms with an operator's RSA key. If a
        // thread panics here, the cache only lacks the entry.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cert = match cache.take(host, now) {
            Some(cert) => cert,
            None => self.mint(host, now)?,
        };
        let config = cert.config(alpn)?;
        cache.insert(host, cert);
        Ok(config)
    }

    fn mint(&self, host: &Host, now: OffsetDateTime) -> Result<HostCert, CaError> {
        #[cfg(test)]
        self.minted.fetch_add(1, Ordering::Relaxed);
        let leaf = self.sign_leaf(host, now)?;
        let chain = std::iter::once(leaf).chain(self.ca.intermediates().iter().cloned());
        let certified = CertifiedKey::new(chain.collect(), Arc::clone(&self.leaf_signer));
        let usable = now.saturating_sub(BACKDATE)..now.saturating_add(LEAF_LIFETIME - LEAF_MARGIN);
        Ok(HostCert::new(certified, usable))
    }

    fn sign_leaf(
        &self,
        host: &Host,
        now: OffsetDateTime,
    ) -> Result<CertificateDer<'static>, CaError> {
        let mut params = validity(now, LEAF_LIFETIME)?;
        // The host is only in the subject alternative name, where clients look for it (RFC 9525,
        // section 2): a common name has at most 64 characters, a host up to 253. The subject is not
        // empty, because some clients require one.
        params.distinguished_name = name(DnType::OrganizationName, "upstreamproxy interception");
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
            Host::Address(address) => SanType::IpAddress(*address),
        }];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Python 3.13 and OpenSSL's strict mode require it.
        params.use_authority_key_identifier_extension = true;
        self.ca.sign(&params, &self.leaf_key)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Barrier;

    use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConnection};
    use rustls_pki_types::pem::PemObject;

    use super::super::cert_cache::HOST_LIMIT;
    use super::super::interception_ca::parse;
    use super::super::interception_ca::tests::{ca_files, load};
    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).expect(text)
    }

    /// A client that trusts what the CA endpoint of `issuer` serves.
    fn client_of(issuer: &Issuer, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let roots: Vec<_> = CertificateDer::pem_slice_iter(issuer.ca_pem().as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        let alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        tls::with_alpn(&tls::client_config(&roots).unwrap(), alpn)
    }

    struct Done {
        alpn: Option<Vec<u8>>,
        kind: Option<HandshakeKind>,
    }

    /// A whole handshake in memory, tickets included, with a client that connects to `host`.
    fn handshake(
        client: &Arc<ClientConfig>,
        server: &Arc<ServerConfig>,
        host: &Host,
    ) -> Result<Done, rustls::Error> {
        let name = tls::server_name(host).unwrap();
        let mut client = ClientConnection::new(Arc::clone(client), name)?;
        let mut server = ServerConnection::new(Arc::clone(server))?;
        while client.wants_write() || server.wants_write() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        assert_eq!(client.alpn_protocol(), server.alpn_protocol());
        Ok(Done {
            alpn: client.alpn_protocol().map(<[u8]>::to_vec),
            kind: client.handshake_kind(),
        })
    }

    fn generated() -> Issuer {
        Issuer::new(InterceptionCa::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_client_with_the_ca_trusts_certificates_for_names_and_addresses() {
        let issuer = generated();
        let client = client_of(&issuer, &[]);
        let long = format!("{}example.com", "a-label-of-twenty-b.".repeat(12));
        assert!(long.len() > 250);
        for text in [
            "example.com",
            "_x.example.com",
            "192.0.2.7",
            "[2001:db8::7]",
            &long,
        ] {
            let host = host(text);
            let server = issuer.server_config(&host, None).unwrap();
            handshake(&client, &server, &host).expect(text);
        }
    }

    #[test]
    fn a_certificate_is_valid_only_for_its_host_and_only_with_the_ca() {
        let issuer = generated();
        let other = generated();
        let (name, address) = (host("example.com"), host("192.0.2.7"));
        let server = issuer.server_config(&name, None).unwrap();
        let client = client_of(&issuer, &[]);
        assert!(handshake(&client, &server, &name).is_ok());
        assert!(handshake(&client, &server, &host("www.example.com")).is_err());
        assert!(handshake(&client, &server, &address).is_err());
        assert!(handshake(&client_of(&other, &[]), &server, &name).is_err());
    }

    #[test]
    fn the_only_protocol_is_the_targets_choice() {
        let issuer = generated();
        let host = host("example.com");
        let client = client_of(&issuer, &[b"h2", b"http/1.1"]);
        for choice in [None, Some(b"http/1.1".as_slice()), Some(b"h2")] {
            let server = issuer.server_config(&host, choice).unwrap();
            let done = handshake(&client, &server, &host).unwrap();
            assert_eq!(done.alpn.as_deref(), choice);
        }
        assert_eq!(issuer.minted(), 1);
    }

    #[test]
    fn a_session_is_resumed_only_for_the_same_host_and_protocol() {
        let issuer = generated();
        let (host, other) = (host("example.com"), host("example.org"));
        let client = client_of(&issuer, &[b"h2", b"http/1.1"]);
        let kind = |host: &Host, choice: &[u8]| {
            let server = issuer.server_config(host, Some(choice)).unwrap();
            let done = handshake(&client, &server, host).unwrap();
            assert_eq!(done.alpn.as_deref(), Some(choice));
            done.kind
        };
        assert_eq!(kind(&host, b"h2"), Some(HandshakeKind::Full));
        assert_eq!(kind(&host, b"h2"), Some(HandshakeKind::Resumed));
        assert_eq!(kind(&host, b"http/1.1"), Some(HandshakeKind::Full));
        assert_eq!(kind(&other, b"http/1.1"), Some(HandshakeKind::Full));
    }

    #[test]
    fn a_leaf_contains_what_strict_clients_require() {
        let issuer = generated();
        let leaf = issuer
            .sign_leaf(&host("example.com"), now().unwrap())
            .unwrap();
        let again = issuer
            .sign_leaf(&host("example.com"), now().unwrap())
            .unwrap();
        let (leaf, again) = (parse(&leaf).unwrap(), parse(&again).unwrap());
        assert!(!leaf.is_ca());
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && !purposes.client_auth);
        assert_ne!(leaf.raw_serial(), again.raw_serial());
        let days = leaf.validity().time_to_expiration().unwrap().whole_days();
        assert!((6..=7).contains(&days), "{days}");
        let key_id = "2.5.29.35"; // authority key identifier
        assert!(
            leaf.extensions()
                .iter()
                .any(|e| e.oid.to_id_string() == key_id)
        );
        let ca = CertificateDer::from_pem_slice(issuer.ca_pem().as_bytes()).unwrap();
        let ca = parse(&ca).unwrap();
        let constraints = ca.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
    }

    #[test]
    fn a_hundred_threads_at_once_issue_one_certificate_per_host() {
        let issuer = generated();
        let hosts = [host("a.example"), host("b.example")];
        let start = Barrier::new(100);
        std::thread::scope(|scope| {
            for n in 0..100 {
                let (issuer, start, host) = (&issuer, &start, &hosts[n % hosts.len()]);
                scope.spawn(move || {
                    start.wait();
                    issuer.server_config(host, None).unwrap();
                });
            }
        });
        assert_eq!(issuer.minted(), 2);
    }

    #[test]
    fn the_least_recently_used_host_is_evicted_first() {
        let issuer = generated();
        let nth = |n: u32| Host::Address(IpAddr::from(n.to_be_bytes()));
        let limit = u32::try_from(HOST_LIMIT).unwrap();
        for n in 0..limit {
            issuer.server_config(&nth(n), None).unwrap();
        }
        let full = issuer.minted();
        issuer.server_config(&nth(0), None).unwrap();
        assert_eq!(issuer.minted(), full);
        issuer.server_config(&nth(limit), None).unwrap();
        issuer.server_config(&nth(0), None).unwrap();
        assert_eq!(issuer.minted(), full + 1, "used lately, and yet forgotten");
        issuer.server_config(&nth(1), None).unwrap();
        assert_eq!(issuer.minted(), full + 2, "the oldest was kept");
    }

    #[test]
    fn a_certificate_is_replaced_on_its_last_day_and_after_the_clock_went_back() {
        let issuer = generated();
        let host = host("example.com");
        let start = now().unwrap();
        let minted_at = |after: Duration| {
            issuer.server_config_at(&host, None, start + after).unwrap();
            issuer.minted()
        };
        assert_eq!(minted_at(Duration::ZERO), 1);
        assert_eq!(minted_at(Duration::hours(6 * 24 - 1)), 1);
        assert_eq!(minted_at(Duration::hours(-23)), 1);
        assert_eq!(minted_at(Duration::hours(6 * 24 + 1)), 2);
        assert_eq!(minted_at(Duration::ZERO), 3);
    }

    #[test]
    fn an_operators_ca_signs_with_every_kind_of_key() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let (cert_pem, _) = ca_files(&key, |_| ());
            let issuer = Issuer::new(load(&cert_pem, &key.serialize_pem()).unwrap()).unwrap();
            let host = host("example.com");
            let server = issuer.server_config(&host, None).unwrap();
            handshake(&client_of(&issuer, &[]), &server, &host).unwrap();
        }
    }

    #[test]
    fn an_intermediate_ca_is_sent_and_the_endpoint_serves_only_certificates() {
        let root_key = KeyPair::generate().unwrap();
        let (root_pem, root) = ca_files(&root_key, |_| ());
        let root = rcgen::Issuer::new(root, root_key);
        let key = KeyPair::generate().unwrap();
        let (_, mut params) = ca_files(&key, |_| ());
        params.distinguished_name = name(DnType::CommonName, "below it");
        let below = params.signed_by(&key, &root).unwrap().pem();
        let key_pem = key.serialize_pem();
        let issuer =
            Issuer::new(load(&format!("{below}{key_pem}{root_pem}"), &key_pem).unwrap()).unwrap();
        assert!(!issuer.ca_pem().contains("PRIVATE"));
        // This client knows the root alone.
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap();
        let client = tls::client_config(&[root]).unwrap();
        let host = host("example.com");
        let server = issuer.server_config(&host, None).unwrap();
        handshake(&client, &server, &host).unwrap();
    }
}
