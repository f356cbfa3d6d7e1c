//! The interception CA: it makes, for each host that is intercepted, a certificate that clients of our CA bundle trust.
//!
//! It decides nothing about who is intercepted, and dials nobody. Its key is in memory only, or read from the operator's
//! file; no key ever leaves it. Everything it mints shares one leaf key, so a host costs one signature.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::sign::{CertifiedKey, Signer};
use rustls::{ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::cert_cache::{CertCache, HostCert};
use crate::crypto::{pem, random, tls};
use crate::http::authority::Host;

/// How far in the past everything begins: a client's clock may be behind ours.
const BACKDATE: Duration = Duration::days(1);
/// How long a CA made at start is good. Longer than a gateway runs; a restart makes a new one.
const CA_LIFE: Duration = Duration::days(365);
/// How long a host's certificate is good. Short, since nothing can revoke it.
const LEAF_LIFE: Duration = Duration::days(7);
/// A certificate with less than this left is not shown to new clients: their clocks may be ahead of ours.
const LEAF_REST: Duration = Duration::days(1);

/// The signatures that a CA's key may make here, and how certificates name them.
const SIGNATURES: [(SignatureScheme, &rcgen::SignatureAlgorithm); 4] = [
    (
        SignatureScheme::ECDSA_NISTP256_SHA256,
        &rcgen::PKCS_ECDSA_P256_SHA256,
    ),
    (
        SignatureScheme::ECDSA_NISTP384_SHA384,
        &rcgen::PKCS_ECDSA_P384_SHA384,
    ),
    (SignatureScheme::ED25519, &rcgen::PKCS_ED25519),
    (SignatureScheme::RSA_PKCS1_SHA256, &rcgen::PKCS_RSA_SHA256),
];

/// The interception CA and the certificates that it has made lately.
pub(crate) struct Issuer {
    ca: rcgen::Issuer<'static, CaKey>,
    ca_pem: String,
    /// What is sent behind a leaf: every certificate of the CA's file that is not a root, which clients have themselves.
    intermediates: Vec<CertificateDer<'static>>,
    leaf_key: KeyPair,
    leaf_signer: Arc<dyn rustls::sign::SigningKey>,
    cache: Mutex<CertCache>,
    minted: AtomicU64,
}

impl Issuer {
    /// A fresh CA, its key in memory only.
    pub(crate) fn generate() -> Result<Self, IssuerError> {
        let now = now()?;
        // A name of its own for each: clients look CAs up by name, and may hold those of several gateways.
        let suffix = random::hex::<4>().map_err(|_| IssuerError::Random)?;
        let mut params = validity(now, CA_LIFE)?;
        params.distinguished_name = named(
            DnType::CommonName,
            &format!("upstreamproxy interception CA {}", *suffix),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Self::new(&[certificate.der().clone()], key, now)
    }

    /// The CA of an operator: its certificate first, then any above it; its key as PKCS #8, PKCS #1 or SEC 1, unencrypted.
    ///
    /// # Errors
    ///
    /// Whatever would make clients refuse its certificates: no CA, out of date, another key.
    pub(crate) fn load(cert_pem: &str, key_pem: &str) -> Result<Self, IssuerError> {
        // The reader's own errors quote lines, and a line may be a key.
        let certificates = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| IssuerError::Certificate("no PEM".to_owned()))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|_| IssuerError::Key("no PEM".to_owned()))?;
        Self::new(&certificates, key, now()?)
    }

    fn new(
        certificates: &[CertificateDer<'static>],
        key: PrivateKeyDer<'static>,
        now: OffsetDateTime,
    ) -> Result<Self, IssuerError> {
        let ca_der = certificates
            .first()
            .ok_or_else(|| IssuerError::Certificate("there is none in the file".to_owned()))?;
        let ca = parse(ca_der)?;
        check_ca(&ca, now)?;
        let key = tls::provider()
            .key_provider
            .load_private_key(key)
            .map_err(|error| IssuerError::Key(error.to_string()))?;
        CertifiedKey::new(certificates.to_vec(), Arc::clone(&key))
            .keys_match()
            .map_err(|_| IssuerError::OtherKey)?;
        let ca_key = CaKey::new(key.as_ref(), &ca)?;

        let leaf_key = KeyPair::generate()?;
        let leaf_der = PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into());
        let mut intermediates = Vec::new();
        for certificate in certificates {
            let parsed = parse(certificate)?;
            if parsed.subject().as_raw() != parsed.issuer().as_raw() {
                intermediates.push(certificate.clone());
            }
        }
        let issuer = Self {
            ca: rcgen::Issuer::from_ca_cert_der(ca_der, ca_key)?,
            ca_pem: pem::encode(certificates),
            intermediates,
            leaf_signer: tls::provider().key_provider.load_private_key(leaf_der)?,
            leaf_key,
            cache: Mutex::default(),
            minted: AtomicU64::new(0),
        };
        // Clients compare names byte by byte, and rcgen writes the name anew (keeping one attribute of each kind).
        let trial = issuer.sign_leaf(&Host::Name("trial.invalid".to_owned()), now)?;
        if parse(&trial)?.issuer().as_raw() != ca.subject().as_raw() {
            return Err(IssuerError::Subject);
        }
        Ok(issuer)
    }

    /// The CA's certificates, and nothing but certificates, in PEM: what the CA endpoint serves.
    pub(crate) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// How many certificates have been minted so far.
    #[cfg(test)]
    pub(crate) fn minted(&self) -> u64 {
        self.minted.load(Ordering::Relaxed)
    }

    /// What a client that asked for `host` is shown: a certificate for it, and `alpn`, the target's choice, as the one
    /// protocol on offer (`None`: none is).
    ///
    /// Sessions are resumed within one host and one choice only, so a resumed one is what a full handshake would be.
    pub(crate) fn server_config(
        &self,
        host: &Host,
        alpn: Option<&[u8]>,
    ) -> Result<Arc<ServerConfig>, IssuerError> {
        self.server_config_at(host, alpn, now()?)
    }

    fn server_config_at(
        &self,
        host: &Host,
        alpn: Option<&[u8]>,
        now: OffsetDateTime,
    ) -> Result<Arc<ServerConfig>, IssuerError> {
        // Held while minting, too, so that one host is never minted twice at once: 0.06 ms with our own P-256 key (measured),
        // a few ms with an operator's RSA key.
        // A panic while it is held leaves nothing half-done: the entry at hand is out of the cache.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shown = if let Some(shown) = cache.take(host, now) {
            shown
        } else {
            self.minted.fetch_add(1, Ordering::Relaxed);
            self.mint(host, now)?
        };
        let config = shown.config(alpn)?;
        cache.keep(host, shown);
        Ok(config)
    }

    fn mint(&self, host: &Host, now: OffsetDateTime) -> Result<HostCert, IssuerError> {
        let leaf = self.sign_leaf(host, now)?;
        let chain = std::iter::once(leaf).chain(self.intermediates.iter().cloned());
        let certified = CertifiedKey::new(chain.collect(), Arc::clone(&self.leaf_signer));
        let good = now.saturating_sub(BACKDATE)..now.saturating_add(LEAF_LIFE - LEAF_REST);
        Ok(HostCert::new(certified, good))
    }

    fn sign_leaf(
        &self,
        host: &Host,
        now: OffsetDateTime,
    ) -> Result<CertificateDer<'static>, IssuerError> {
        let mut params = validity(now, LEAF_LIFE)?;
        // The host is in the alternative name alone, where clients look (RFC 9525, section 2): a common name has room for
        // 64 characters, a host for 253. The subject is not empty, as some clients still want one.
        params.distinguished_name = named(DnType::OrganizationName, "upstreamproxy interception");
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
            Host::Address(address) => SanType::IpAddress(*address),
        }];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Python 3.13 and OpenSSL's strict mode refuse a leaf without it.
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.leaf_key, &self.ca)?;
        Ok(certificate.der().clone())
    }
}

/// The CA's key, held by rustls: its loader reads the older key formats too, which rcgen's does not.
struct CaKey {
    signer: Box<dyn Signer>,
    algorithm: &'static rcgen::SignatureAlgorithm,
    public: Vec<u8>,
}

impl CaKey {
    fn new(
        key: &dyn rustls::sign::SigningKey,
        certificate: &X509Certificate<'_>,
    ) -> Result<Self, IssuerError> {
        let (signer, algorithm) = SIGNATURES
            .iter()
            .find_map(|(scheme, algorithm)| Some((key.choose_scheme(&[*scheme])?, *algorithm)))
            .ok_or_else(|| IssuerError::Key("its kind is not supported".to_owned()))?;
        Ok(Self {
            signer,
            algorithm,
            public: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }
}

impl rcgen::PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm
    }
}

impl rcgen::SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signer
            .sign(message)
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IssuerError> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| IssuerError::Certificate(error.to_string()))
}

/// Refuses what clients would refuse as an issuer ([RFC 5280, section 4.2.1.9] and its neighbours).
///
/// [RFC 5280, section 4.2.1.9]: https://www.rfc-editor.org/rfc/rfc5280#section-4.2.1.9
fn check_ca(ca: &X509Certificate<'_>, now: OffsetDateTime) -> Result<(), IssuerError> {
    let may_sign = ca
        .key_usage()
        .is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()));
    if !ca.is_ca() || !may_sign {
        return Err(IssuerError::NotCa);
    }
    let in_time = ASN1Time::from_timestamp(now.unix_timestamp())
        .is_ok_and(|now| ca.validity().is_valid_at(now));
    if !in_time {
        return Err(IssuerError::OutOfDate);
    }
    // rcgen panics on an empty part of a name and knows none of several attributes.
    if ca.subject().iter().any(|part| part.iter().count() != 1) {
        return Err(IssuerError::Subject);
    }
    Ok(())
}

/// Parameters with a random serial number, good from a little before `now` until `life` after it.
fn validity(now: OffsetDateTime, life: Duration) -> Result<CertificateParams, IssuerError> {
    let mut serial = [0; 16];
    random::fill(&mut serial).map_err(|_| IssuerError::Random)?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now.saturating_sub(BACKDATE);
    params.not_after = now.saturating_add(life);
    Ok(params)
}

fn named(kind: DnType, text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(kind, text);
    name
}

/// The time, whatever the clock says: one before 1970 or after 9999 is an error.
fn now() -> Result<OffsetDateTime, IssuerError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(IssuerError::Clock)
}

/// Why there is no CA, or no certificate for a host.
#[derive(Debug)]
pub(crate) enum IssuerError {
    /// The CA's certificate cannot be read.
    Certificate(String),
    /// The CA's key cannot be read or used.
    Key(String),
    /// The key is not the certificate's.
    OtherKey,
    /// The certificate is no CA's.
    NotCa,
    /// The CA's certificate has expired or is not yet valid.
    OutOfDate,
    /// The CA's name cannot be written as it stands.
    Subject,
    /// This machine's clock cannot be used.
    Clock,
    /// The system gives no random numbers.
    Random,
    /// A certificate could not be made.
    Mint(rcgen::Error),
    /// rustls would not take what was made.
    Tls(rustls::Error),
}

impl fmt::Display for IssuerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interception CA: ")?;
        match self {
            Self::Certificate(why) => write!(
                f,
                "its certificate cannot be read ({why}); give it as PEM, the CA's own first"
            ),
            Self::Key(why) => write!(
                f,
                "its key cannot be used ({why}); give a P-256, P-384, Ed25519 or RSA key as PEM without a password"
            ),
            Self::OtherKey => f.write_str(
                "the key is not that of the first certificate; give the two that belong together",
            ),
            Self::NotCa => f.write_str(
                "the first certificate may not sign others; give one with CA:TRUE and keyCertSign",
            ),
            Self::OutOfDate => f.write_str(
                "its certificate has expired or is not yet valid; renew it, or set the clock",
            ),
            Self::Subject => f.write_str(
                "its name has an attribute twice, such as two DC, or a text that cannot be written again; give one with a plain name",
            ),
            Self::Clock => f.write_str("the clock is before 1970 or after 9999; set it"),
            Self::Random => f.write_str("the system gives no random numbers"),
            Self::Mint(error) => write!(f, "a certificate could not be made: {error}"),
            Self::Tls(error) => write!(f, "a certificate could not be used: {error}"),
        }
    }
}

impl std::error::Error for IssuerError {}

impl From<rcgen::Error> for IssuerError {
    fn from(error: rcgen::Error) -> Self {
        Self::Mint(error)
    }
}

impl From<rustls::Error> for IssuerError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Barrier;

    use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConnection};

    use super::super::cert_cache::HOST_LIMIT;
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

    /// A whole handshake in memory, tickets included, with a client that wants to talk to `host`.
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

    /// A CA as an operator may bring one, changed by `change`: certificate and key in PEM.
    fn ca_files(
        key: &KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, CertificateParams) {
        let mut params = validity(now().unwrap(), CA_LIFE).unwrap();
        params.distinguished_name = named(DnType::CommonName, "an operator's CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        (params.self_signed(key).unwrap().pem(), params)
    }

    fn refusal(cert_pem: &str, key_pem: &str) -> String {
        match Issuer::load(cert_pem, key_pem) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_client_with_the_ca_trusts_certificates_for_names_and_addresses() {
        let issuer = Issuer::generate().unwrap();
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
    fn a_certificate_is_good_for_its_host_alone_and_only_with_the_ca() {
        let issuer = Issuer::generate().unwrap();
        let other = Issuer::generate().unwrap();
        let (name, address) = (host("example.com"), host("192.0.2.7"));
        let server = issuer.server_config(&name, None).unwrap();
        let client = client_of(&issuer, &[]);
        assert!(handshake(&client, &server, &name).is_ok());
        assert!(handshake(&client, &server, &host("www.example.com")).is_err());
        assert!(handshake(&client, &server, &address).is_err());
        assert!(handshake(&client_of(&other, &[]), &server, &name).is_err());
    }

    #[test]
    fn the_protocol_is_the_targets_choice_and_no_other() {
        let issuer = Issuer::generate().unwrap();
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
    fn a_session_is_resumed_within_its_host_and_choice_only() {
        let issuer = Issuer::generate().unwrap();
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
    fn a_leaf_says_all_that_strict_clients_ask_for() {
        let issuer = Issuer::generate().unwrap();
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
    fn a_hundred_threads_at_once_mint_one_certificate_a_host() {
        let issuer = Issuer::generate().unwrap();
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
    fn the_least_recently_used_host_is_forgotten_first() {
        let issuer = Issuer::generate().unwrap();
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
    fn a_certificate_is_made_anew_on_its_last_day_and_after_the_clock_went_back() {
        let issuer = Issuer::generate().unwrap();
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
    fn the_ca_of_an_operator_signs_with_every_kind_of_key() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let (cert_pem, _) = ca_files(&key, |_| ());
            let issuer = Issuer::load(&cert_pem, &key.serialize_pem()).unwrap();
            let host = host("example.com");
            let server = issuer.server_config(&host, None).unwrap();
            handshake(&client_of(&issuer, &[]), &server, &host).unwrap();
        }
    }

    #[test]
    fn the_key_of_an_operator_may_be_in_the_older_format_of_its_kind() {
        let key = KeyPair::generate().unwrap();
        let (cert_pem, _) = ca_files(&key, |_| ());
        // PKCS #8 wraps what SEC 1 has: an octet string of 0x6d bytes.
        let pkcs8 = key.serialize_der();
        let wrapped = pkcs8.windows(2).position(|w| w == [4, 0x6d]).unwrap();
        let sec1 = data_encoding::BASE64.encode(&pkcs8[wrapped + 2..]);
        let key_pem = format!(
            "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n\
             -----BEGIN EC PRIVATE KEY-----\n{sec1}\n-----END EC PRIVATE KEY-----\n"
        );
        assert!(Issuer::load(&cert_pem, &key_pem).is_ok());
    }

    #[test]
    fn an_intermediate_ca_is_sent_along_and_its_file_serves_certificates_only() {
        let root_key = KeyPair::generate().unwrap();
        let (root_pem, root) = ca_files(&root_key, |_| ());
        let root = rcgen::Issuer::new(root, root_key);
        let key = KeyPair::generate().unwrap();
        let (_, mut params) = ca_files(&key, |_| ());
        params.distinguished_name = named(DnType::CommonName, "below it");
        let below = params.signed_by(&key, &root).unwrap().pem();
        let key_pem = key.serialize_pem();
        let issuer = Issuer::load(&format!("{below}{key_pem}{root_pem}"), &key_pem).unwrap();
        assert!(!issuer.ca_pem().contains("PRIVATE"));
        // This client knows the root alone.
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap();
        let client = tls::client_config(&[root]).unwrap();
        let host = host("example.com");
        let server = issuer.server_config(&host, None).unwrap();
        handshake(&client, &server, &host).unwrap();
    }

    #[test]
    fn a_ca_that_clients_would_refuse_is_refused_at_the_start() {
        let key = KeyPair::generate().unwrap();
        let key_pem = key.serialize_pem();
        let (good, _) = ca_files(&key, |_| ());
        assert!(Issuer::load(&good, &key_pem).is_ok());

        let (leaf, _) = ca_files(&key, |params| params.is_ca = IsCa::NoCa);
        assert!(refusal(&leaf, &key_pem).contains("CA:TRUE"));
        let (unable, _) = ca_files(&key, |params| {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        });
        assert!(refusal(&unable, &key_pem).contains("keyCertSign"));
        let (expired, _) = ca_files(&key, |params| params.not_after = params.not_before);
        assert!(refusal(&expired, &key_pem).contains("expired"));
        let (early, _) = ca_files(&key, |params| params.not_before = params.not_after);
        assert!(refusal(&early, &key_pem).contains("not yet valid"));

        let other = KeyPair::generate().unwrap().serialize_pem();
        assert!(refusal(&good, &other).contains("belong together"));
        assert!(refusal("", &key_pem).contains("there is none"));
        assert!(refusal(&good, "").contains("key cannot be used"));
        assert!(refusal(&good, &good).contains("key cannot be used"));
        let one_line = key_pem.replace('\n', "") + " ";
        for text in [
            refusal(&good, &one_line),
            refusal(&format!("{good}{one_line}"), &one_line),
        ] {
            assert!(text.contains("(no PEM)"), "{text}");
        }
        let cut = good.get(..good.len() / 2).unwrap();
        assert!(refusal(cut, &key_pem).contains("cannot be read"));
        let garbage = pem::encode(&[CertificateDer::from(b"no certificate".as_slice())]);
        assert!(refusal(&garbage, &key_pem).contains("cannot be read"));
    }

    #[test]
    fn a_ca_whose_name_cannot_be_written_again_is_refused() {
        // CN=two components, DC=corp, DC=example; good from November 2026, for a hundred years.
        const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIB9zCCAZ2gAwIBAgIUCaJduP2hWyByGJmMVIAOR4niDvYwCgYIKoZIzj0EAwIw
SDEXMBUGCgmSJomT8ixkARkWB2V4YW1wbGUxFDASBgoJkiaJk/IsZAEZFgRjb3Jw
MRcwFQYDVQQDDA50d28gY29tcG9uZW50czAgFw0yNjExMjMxODIzMjdaGA8yMTI2
MTAzMDE4MjMyN1owSDEXMBUGCgmSJomT8ixkARkWB2V4YW1wbGUxFDASBgoJkiaJ
k/IsZAEZFgRjb3JwMRcwFQYDVQQDDA50d28gY29tcG9uZW50czBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABHFtzqCCZhnyRiBYy3KpWUaeYDKoQf7qREKw7ZPNgkof
Rr3DraT00uAKoK+FxaoH96G4XLIoWskoXAZeYsCXpl+jYzBhMB0GA1UdDgQWBBTD
5KwUsAidcu28QKWg3inkf0nOXDAfBgNVHSMEGDAWgBTD5KwUsAidcu28QKWg3ink
f0nOXDAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwICBDAKBggqhkjOPQQD
AgNIADBFAiAuO9tnpytWtPEya5ltpJGjMcxrA2LJWXWrt2ge4I2BswIhAIeQXlIo
tjCPIcTyq993YNIDCCLD3+VAxgomRQnfNbaq
-----END CERTIFICATE-----";
        const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQCNGFItzScCjtIzX
tKWj6vKqzf51YCxVg//C/NBdl2+hRANCAARxbc6ggmYZ8kYgWMtyqVlGnmAyqEH+
6kRCsO2TzYJKH0a9w62k9NLgCqCvhcWqB/ehuFyyKFrJKFwGXmLAl6Zf
-----END PRIVATE KEY-----";
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
        let in_2030 = OffsetDateTime::from_unix_timestamp(1_893_456_000).unwrap();
        let refused = Issuer::new(&[certificate], key, in_2030);
        assert!(matches!(refused, Err(IssuerError::Subject)));
    }

    #[test]
    fn the_ca_of_each_start_has_a_name_of_its_own() {
        let (one, two) = (Issuer::generate().unwrap(), Issuer::generate().unwrap());
        let name = |issuer: &Issuer| {
            let der = CertificateDer::from_pem_slice(issuer.ca_pem().as_bytes()).unwrap();
            parse(&der).unwrap().subject().to_string()
        };
        assert!(name(&one).starts_with("CN=upstreamproxy interception CA "));
        assert_ne!(name(&one), name(&two));
    }
}
