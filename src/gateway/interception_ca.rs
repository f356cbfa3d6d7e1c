//! The interception CA: generated at the start, or provided by the operator. Its key never leaves
//! the process.
//!
//! It signs certificates and does not decide for which hosts (`issuer`).

use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use rustls::SignatureScheme;
use rustls::sign::{CertifiedKey, Signer};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::ca_error::CaError;
use super::identity::TlsIdentity;
use super::validity::Validity;
use crate::crypto::{pem, random, tls};

/// How far in the past every validity begins: a client's clock may be late.
pub(super) const BACKDATE: Duration = Duration::days(1);
/// How long a generated CA is valid: longer than a gateway runs. Each start generates a new one.
const CA_LIFETIME: Duration = Duration::days(365);

/// The signature schemes that a CA's key may use, and rcgen's names for them.
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

/// A CA certificate with its key.
pub(super) struct InterceptionCa {
    issuer: rcgen::Issuer<'static, CaKey>,
    pem: String,
    /// Identifies the certificates, for relays that have downloaded them.
    digest: String,
    validity: Option<Validity>,
    /// The CA's certificates that are not roots. They are sent after a leaf.
    intermediates: Vec<CertificateDer<'static>>,
}

impl InterceptionCa {
    /// Generates a CA with its key in memory only.
    pub(super) fn generate() -> Result<Self, CaError> {
        let now = now()?;
        // A random name: clients look up CAs by name and may trust those of several gateways.
        let suffix = random::hex::<4>().map_err(|_| CaError::Random)?;
        let mut params = validity(now, CA_LIFETIME)?;
        params.distinguished_name = name(
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

    /// The CA of an operator: its certificate first, then those above it.
    ///
    /// # Errors
    /// Clients would refuse its certificates: it is not a CA, has expired, or has another key.
    pub(super) fn load(identity: &TlsIdentity) -> Result<Self, CaError> {
        let certificates = identity
            .certificates()
            .map_err(|error| CaError::Certificate(error.to_string()))?;
        let key = identity
            .key()
            .ok_or_else(|| CaError::Key("no PEM".to_owned()))?;
        Self::new(&certificates, key, now()?)
    }

    fn new(
        certificates: &[CertificateDer<'static>],
        key: PrivateKeyDer<'static>,
        now: OffsetDateTime,
    ) -> Result<Self, CaError> {
        let ca_der = certificates
            .first()
            .ok_or_else(|| CaError::Certificate("there is none in the file".to_owned()))?;
        let ca_cert = parse(ca_der)?;
        check(&ca_cert, now)?;
        let key = tls::provider()
            .key_provider
            .load_private_key(key)
            .map_err(|error| CaError::Key(error.to_string()))?;
        CertifiedKey::new(certificates.to_vec(), Arc::clone(&key))
            .keys_match()
            .map_err(|_| CaError::OtherKey)?;
        let ca_key = CaKey::new(key.as_ref(), &ca_cert)?;

        let mut intermediates = Vec::new();
        for certificate in certificates {
            let parsed = parse(certificate)?;
            if parsed.subject().as_raw() != parsed.issuer().as_raw() {
                intermediates.push(certificate.clone());
            }
        }
        let ca = Self {
            issuer: rcgen::Issuer::from_ca_cert_der(ca_der, ca_key)?,
            pem: pem::encode(certificates),
            digest: tls::digest(certificates),
            validity: Validity::of(certificates),
            intermediates,
        };
        // Clients compare names byte by byte, and rcgen encodes the name again, with one attribute
        // of each kind.
        let trial = ca.sign(&validity(now, BACKDATE)?, &KeyPair::generate()?)?;
        if parse(&trial)?.issuer().as_raw() != ca_cert.subject().as_raw() {
            return Err(CaError::Subject);
        }
        Ok(ca)
    }

    /// The CA's certificates in PEM, without the key.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// The digest of the CA's certificates.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// How long the CA's own certificate is valid.
    pub(super) fn validity(&self) -> Option<Validity> {
        self.validity
    }

    /// The certificates between a leaf and its root.
    pub(super) fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    /// Signs a certificate for the public key of `key`.
    pub(super) fn sign(
        &self,
        params: &CertificateParams,
        key: &KeyPair,
    ) -> Result<CertificateDer<'static>, CaError> {
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }
}

/// The CA's key, used through rustls: rcgen does not read the older key formats.
struct CaKey {
    signer: Box<dyn Signer>,
    algorithm: &'static rcgen::SignatureAlgorithm,
    public: Vec<u8>,
}

impl CaKey {
    fn new(
        key: &dyn rustls::sign::SigningKey,
        certificate: &X509Certificate<'_>,
    ) -> Result<Self, CaError> {
        let (signer, algorithm) = SIGNATURES
            .iter()
            .find_map(|(scheme, algorithm)| Some((key.choose_scheme(&[*scheme])?, *algorithm)))
            .ok_or_else(|| CaError::Key("its kind is not supported".to_owned()))?;
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

/// Decodes a certificate.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| CaError::Certificate(error.to_string()))
}

/// Checks what clients require of an issuer ([RFC 5280], sections 4.1.2.5, 4.2.1.3 and 4.2.1.9).
///
/// [RFC 5280]: https://www.rfc-editor.org/rfc/rfc5280
fn check(ca: &X509Certificate<'_>, now: OffsetDateTime) -> Result<(), CaError> {
    let may_sign = ca
        .key_usage()
        .is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()));
    if !ca.is_ca() || !may_sign {
        return Err(CaError::NotCa);
    }
    let is_valid = ASN1Time::from_timestamp(now.unix_timestamp())
        .is_ok_and(|now| ca.validity().is_valid_at(now));
    if !is_valid {
        return Err(CaError::OutOfDate);
    }
    // rcgen panics on an empty part of a name, and does not support parts with several attributes.
    if ca.subject().iter().any(|part| part.iter().count() != 1) {
        return Err(CaError::Subject);
    }
    Ok(())
}

/// Parameters with a random serial number, valid from [`BACKDATE`] before `now` until `lifetime`
/// after it.
pub(super) fn validity(
    now: OffsetDateTime,
    lifetime: Duration,
) -> Result<CertificateParams, CaError> {
    let mut serial = [0; 16];
    random::fill(&mut serial).map_err(|_| CaError::Random)?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now.saturating_sub(BACKDATE);
    params.not_after = now.saturating_add(lifetime);
    Ok(params)
}

/// A distinguished name with one attribute.
pub(super) fn name(kind: DnType, text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(kind, text);
    name
}

/// The time; an error if the clock is before 1970 or after 9999.
pub(super) fn now() -> Result<OffsetDateTime, CaError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(CaError::Clock)
}

#[cfg(test)]
pub(super) mod tests {
    use rustls_pki_types::pem::PemObject;

    use super::*;

    /// The certificate of an operator's CA in PEM, changed by `change`, and its parameters.
    pub(in crate::gateway) fn ca_files(
        key: &KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, CertificateParams) {
        let mut params = validity(now().unwrap(), CA_LIFETIME).unwrap();
        params.distinguished_name = name(DnType::CommonName, "an operator's CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        (params.self_signed(key).unwrap().pem(), params)
    }

    pub(in crate::gateway) fn load(
        cert_pem: &str,
        key_pem: &str,
    ) -> Result<InterceptionCa, CaError> {
        InterceptionCa::load(&TlsIdentity::from_pem(cert_pem, key_pem.to_owned()))
    }

    fn refusal(cert_pem: &str, key_pem: &str) -> String {
        match load(cert_pem, key_pem) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.at_start().to_string(),
        }
    }

    #[test]
    fn an_operators_key_may_be_in_the_older_sec1_format() {
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
        assert!(load(&cert_pem, &key_pem).is_ok());
    }

    #[test]
    fn a_ca_that_clients_would_refuse_is_refused_at_the_start() {
        let key = KeyPair::generate().unwrap();
        let key_pem = key.serialize_pem();
        let (good, _) = ca_files(&key, |_| ());
        assert!(load(&good, &key_pem).is_ok());

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
        let secret = &one_line[60..80];
        for (text, reason) in [
            (refusal(&good, &one_line), "(no PEM)"),
            (
                refusal(&format!("{good}{one_line}"), &one_line),
                "is a broken block boundary)",
            ),
        ] {
            assert!(text.contains(reason) && !text.contains(secret), "{text}");
        }
        let cut = good.get(..good.len() / 2).unwrap();
        assert!(refusal(cut, &key_pem).contains("cannot be read"));
        let garbage = pem::encode(&[CertificateDer::from(b"no certificate".as_slice())]);
        assert!(refusal(&garbage, &key_pem).contains("cannot be read"));
    }

    #[test]
    fn a_ca_whose_name_cannot_be_reproduced_is_refused() {
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
        let refused = InterceptionCa::new(&[certificate], key, in_2030);
        assert!(matches!(refused, Err(CaError::Subject)));
    }

    #[test]
    fn each_generated_ca_has_another_name() {
        let (one, two) = (
            InterceptionCa::generate().unwrap(),
            InterceptionCa::generate().unwrap(),
        );
        let name = |ca: &InterceptionCa| {
            let der = CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap();
            parse(&der).unwrap().subject().to_string()
        };
        assert!(name(&one).starts_with("CN=upstreamproxy interception CA "));
        assert_ne!(name(&one), name(&two));
    }
}
