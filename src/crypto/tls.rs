//! rustls configurations: what this program trusts and offers wherever it speaks TLS itself, as client and as server.
//!
//! Every configuration names its provider: nothing here needs, or sets, a provider for the whole process, which belongs
//! to whoever embeds the library. Certificates and keys arrive parsed; reading files is the caller's.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, Ticketer, cipher_suite};
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, NamedGroup, RootCertStore, ServerConfig, SupportedCipherSuite,
};
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName};

use crate::http::authority::Host;

/// In the order in which they are preferred. AES-128 stands first: behind a tunnel the gateway encrypts every byte once
/// more, AES instructions are wherever a sandbox runs, and a 128-bit key costs four rounds less than a 256-bit one.
const CIPHER_SUITES: [SupportedCipherSuite; 9] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// The one cryptography provider of this program: ring, with the cipher suites in our order.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let provider = PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            cipher_suites: CIPHER_SUITES.to_vec(),
            ..ring::default_provider()
        })
    });
    Arc::clone(provider)
}

/// A client that trusts `roots` and nothing else; TLS 1.2 and 1.3, no ALPN.
///
/// A root that webpki cannot read is skipped: distributions ship such certificates, and the others are still good.
///
/// # Errors
///
/// No usable root at all: every handshake would fail, and better here than there.
pub(crate) fn client_config(
    roots: &[CertificateDer<'_>],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut store = RootCertStore::empty();
    let (added, skipped) = store.add_parsable_certificates(roots.iter().cloned());
    if skipped > 0 {
        log::debug!("tls: {added} roots taken, {skipped} that cannot be read skipped");
    }
    if added == 0 {
        let what = format!("none of {} root certificates can be used", roots.len());
        return Err(rustls::Error::General(what));
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.resumption = Resumption::store(Arc::<Sessions>::default());
    Ok(Arc::new(config))
}

/// `config` with another ALPN list, in order of preference; both share one memory of sessions to resume.
pub(crate) fn with_alpn(config: &ClientConfig, alpn: Vec<Vec<u8>>) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = alpn;
    Arc::new(config)
}

/// A server that shows `chain`, and that no client authenticates to by certificate; TLS 1.2 and 1.3, no ALPN.
///
/// # Errors
///
/// The chain is empty or cannot be read, the key is of a kind that is not supported, or it is not the first certificate's.
pub(crate) fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let certified = CertifiedKey::from_der(chain, key, &provider())?;
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    let mut config = server_config_showing(resolver)?;
    // Tickets that need no memory here: however many relays come back, each resumes.
    config.ticketer = Ticketer::new()?;
    Ok(Arc::new(config))
}

/// A server that shows what `resolver` says, still open to changes: the interception sets ALPN and tickets for itself.
pub(crate) fn server_config_showing(
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, rustls::Error> {
    Ok(ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver))
}

/// The name that a certificate of `host` must carry.
///
/// # Errors
///
/// A host that resolvers may know and no certificate can name, such as `0177.0.0.1`.
pub(crate) fn server_name(host: &Host) -> Result<ServerName<'static>, InvalidDnsNameError> {
    match host {
        Host::Name(name) => ServerName::try_from(name.clone()),
        Host::Address(address) => Ok(ServerName::IpAddress((*address).into())),
    }
}

/// What is wrong with a server's certificate, as the end of a sentence that begins with it, and what to do about it.
pub(crate) fn certificate_flaw(error: &CertificateError) -> (Cow<'static, str>, &'static str) {
    const CLOCK: &str =
        "set this machine's clock if it is wrong, else tell the upstream's operator";
    let today = time::OffsetDateTime::now_utc().date();
    match error {
        CertificateError::UnknownIssuer => (
            "was not issued by a CA that is trusted here".into(),
            "if the upstream has a CA of its own, name its certificate with --upstream-ca",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            format!("has expired by this machine's clock, which says {today}").into(),
            CLOCK,
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            format!("is not valid yet by this machine's clock, which says {today}").into(),
            CLOCK,
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "is for another name".into(),
            "check the host of the base URL",
        ),
        other => (
            format!("is not acceptable: {other:?}").into(),
            "tell the upstream's operator, or name the CA that issued it with --upstream-ca",
        ),
    }
}

/// How many TLS 1.3 tickets a client remembers, over all servers: each is good for one handshake, and a package manager begins
/// dozens before the first new ticket has come in. rustls' own memory keeps eight for a server.
const TICKETS: usize = 64;

/// A client's memory of sessions to resume: rustls' own, with room for more tickets.
struct Sessions {
    hints: ClientSessionMemoryCache,
    /// The oldest first.
    tickets: Mutex<VecDeque<(ServerName<'static>, Tls13ClientSessionValue)>>,
}

impl Sessions {
    fn tickets(&self) -> MutexGuard<'_, VecDeque<(ServerName<'static>, Tls13ClientSessionValue)>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            hints: ClientSessionMemoryCache::new(256),
            tickets: Mutex::default(),
        }
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.hints.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.hints.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.hints.set_tls12_session(server, session);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.hints.tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.hints.remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.tickets();
        if tickets.len() == TICKETS {
            tickets.pop_front();
        }
        tickets.push_back((server, ticket));
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut tickets = self.tickets();
        let newest = tickets.iter().rposition(|(of, _)| of == server)?;
        tickets.remove(newest).map(|(_, ticket)| ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        (made.cert.der().clone(), key)
    }

    #[test]
    fn aes_128_comes_first_in_both_protocol_versions() {
        let suites = provider().cipher_suites.clone();
        let first = |tls13: bool| {
            let suite = suites.iter().find(|s| s.tls13().is_some() == tls13);
            suite.map(|s| format!("{:?}", s.suite())).unwrap()
        };
        assert!(first(true).contains("AES_128"), "{}", first(true));
        assert!(first(false).contains("AES_128"), "{}", first(false));
        assert_eq!(suites.len(), ring::ALL_CIPHER_SUITES.len());
    }

    #[test]
    fn the_provider_is_built_once_and_is_not_the_process_default() {
        assert!(Arc::ptr_eq(&provider(), &provider()));
        assert!(CryptoProvider::get_default().is_none());
    }

    #[test]
    fn roots_that_cannot_be_read_are_skipped_while_one_is_good() {
        let (root, _) = certificate();
        let garbage = CertificateDer::from(b"no certificate".as_slice());
        assert!(client_config(&[garbage.clone(), root]).is_ok());
        let error = client_config(&[garbage]).unwrap_err().to_string();
        assert!(error.contains("none of 1 root"), "{error}");
        assert!(client_config(&[]).is_err());
    }

    #[test]
    fn a_key_of_another_certificate_makes_no_server() {
        let (chain, key) = certificate();
        let (_, other) = certificate();
        assert!(server_config(vec![chain.clone()], key).is_ok());
        assert!(server_config(vec![chain], other.clone_key()).is_err());
        assert!(server_config(vec![], other).is_err());
    }

    #[test]
    fn a_host_becomes_the_name_or_the_address_that_certificates_carry() {
        let name = |text: &str| server_name(&Host::parse(text).unwrap());
        assert!(matches!(name("example.com"), Ok(ServerName::DnsName(_))));
        assert!(matches!(name("_x.example"), Ok(ServerName::DnsName(_))));
        assert!(matches!(name("192.0.2.1"), Ok(ServerName::IpAddress(_))));
        assert!(matches!(name("[::1]"), Ok(ServerName::IpAddress(_))));
        assert!(name("0177.0.0.1").is_err());
    }

    #[test]
    fn another_alpn_list_leaves_the_first_configuration_as_it_was() {
        let config = client_config(&[certificate().0]).unwrap();
        let other = with_alpn(&config, vec![b"h2".to_vec()]);
        assert!(config.alpn_protocols.is_empty());
        assert_eq!(other.alpn_protocols, [b"h2"]);
    }

    #[test]
    fn what_is_wrong_with_a_certificate_has_a_remedy_of_its_own() {
        for (error, what, remedy) in [
            (
                CertificateError::UnknownIssuer,
                "trusted here",
                "--upstream-ca",
            ),
            (CertificateError::Expired, "has expired by", "clock"),
            (CertificateError::NotValidYet, "is not valid yet", "clock"),
            (CertificateError::NotValidForName, "another name", "host"),
            (
                CertificateError::BadSignature,
                "BadSignature",
                "tell the upstream's operator",
            ),
        ] {
            let (flaw, mend) = certificate_flaw(&error);
            assert!(
                flaw.contains(what) && mend.contains(remedy),
                "{flaw}; {mend}"
            );
        }
    }

    /// A handshake in memory, tickets included. Returns whether it was a resumed one.
    fn shake_hands(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> bool {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(client), name).unwrap();
        let mut server = rustls::ServerConnection::new(Arc::clone(server)).unwrap();
        let mut wire = Vec::new();
        while client.wants_write() || server.wants_write() {
            wire.clear();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets().unwrap();
            }
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        client.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    #[test]
    fn every_handshake_after_the_first_is_resumed_and_each_brings_a_ticket_more() {
        let (root, key) = certificate();
        let server = server_config(vec![root.clone()], key).unwrap();
        let client = client_config(&[root]).unwrap();
        assert!(!shake_hands(&client, &server));
        for _ in 0..100 {
            assert!(shake_hands(&client, &server));
        }
    }

    #[test]
    fn tickets_are_kept_up_to_the_limit_and_given_out_once_to_their_own_server() {
        let (root, key) = certificate();
        let server = server_config(vec![root.clone()], key).unwrap();
        let sessions = Arc::new(Sessions::default());
        let mut client = (*client_config(&[root]).unwrap()).clone();
        client.resumption = Resumption::store(Arc::clone(&sessions) as Arc<dyn ClientSessionStore>);
        let client = Arc::new(client);
        for _ in 0..TICKETS {
            shake_hands(&client, &server);
        }
        assert_eq!(sessions.tickets().len(), TICKETS);
        let (ours, other) = (
            ServerName::try_from("localhost").unwrap(),
            ServerName::try_from("other").unwrap(),
        );
        assert!(sessions.take_tls13_ticket(&other).is_none());
        for _ in 0..TICKETS {
            assert!(sessions.take_tls13_ticket(&ours).is_some());
        }
        assert!(sessions.take_tls13_ticket(&ours).is_none());
    }
}
