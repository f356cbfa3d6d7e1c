//! The rustls configuration of clients, and the cryptography provider of all TLS.
//!
//! Every configuration names its provider: this code neither needs nor sets a provider for the
//! whole process, which belongs to the host. It takes parsed certificates, and reads no files.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use data_encoding::HEXLOWER;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::{ClientConfig, NamedGroup, RootCertStore, SupportedCipherSuite};
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, ServerName};

use crate::control::log;
use crate::http::authority::Host;

/// The cipher suites in the order of preference. AES-128 is first: inside a tunnel the gateway
/// encrypts every byte a second time, AES instructions are available wherever a sandbox runs, and a
/// 128-bit key needs four rounds less than a 256-bit key.
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

/// The cryptography provider of this program: ring, with this order of cipher suites.
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

/// A client that trusts only `roots`. TLS 1.2 and 1.3, no ALPN.
///
/// A root that webpki cannot parse is skipped: distributions ship such certificates.
///
/// # Errors
/// There is no usable root, so every handshake would fail.
pub(crate) fn client_config(
    roots: &[CertificateDer<'_>],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut store = RootCertStore::empty();
    let (added, skipped) = store.add_parsable_certificates(roots.iter().cloned());
    if skipped > 0 {
        log::debug!("tls: {added} roots, {skipped} unreadable ones skipped");
    }
    if added == 0 {
        let what = format!("none of {} root certificates can be used", roots.len());
        return Err(rustls::Error::General(what));
    }
    client_of(store)
}

/// A client that trusts no certificate, for a gateway that intercepts nothing.
#[cfg(feature = "gateway")]
pub(crate) fn client_without_roots() -> Result<Arc<ClientConfig>, rustls::Error> {
    client_of(RootCertStore::empty())
}

fn client_of(store: RootCertStore) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.resumption = Resumption::store(Arc::<SessionCache>::default());
    Ok(Arc::new(config))
}

/// The SHA-256 of the certificates, in their order, in hexadecimal.
pub(crate) fn digest(certificates: &[CertificateDer<'_>]) -> String {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13();
    let hashed = suite.map(|suite| {
        let mut hash = suite.common.hash_provider.start();
        for certificate in certificates {
            hash.update(certificate);
        }
        hash.finish()
    });
    HEXLOWER.encode(hashed.as_ref().map_or(&[], AsRef::as_ref))
}

/// `config` with another ALPN list, in order of preference. Both share one session cache.
#[cfg(feature = "gateway")]
pub(crate) fn with_alpn(config: &ClientConfig, alpn: Vec<Vec<u8>>) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = alpn;
    Arc::new(config)
}

/// The name that a certificate of `host` must have.
///
/// # Errors
/// A host that resolvers may accept but no certificate can name, for example `0177.0.0.1`.
pub(crate) fn server_name(host: &Host) -> Result<ServerName<'static>, InvalidDnsNameError> {
    match host {
        Host::Name(name) => ServerName::try_from(name.clone()),
        Host::Address(address) => Ok(ServerName::IpAddress((*address).into())),
    }
}

/// How many TLS 1.3 tickets a client keeps, for all servers. Each is used for one handshake, and a
/// package manager begins dozens before the first new ticket arrives. rustls' own cache keeps eight
/// per server.
const TICKETS: usize = 64;

/// The session cache of a client: rustls' own, with room for more tickets.
struct SessionCache {
    hints: ClientSessionMemoryCache,
    /// The oldest first.
    tickets: Mutex<VecDeque<(ServerName<'static>, Tls13ClientSessionValue)>>,
}

impl SessionCache {
    fn tickets(&self) -> MutexGuard<'_, VecDeque<(ServerName<'static>, Tls13ClientSessionValue)>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SessionCache {
    fn default() -> Self {
        Self {
            hints: ClientSessionMemoryCache::new(256),
            tickets: Mutex::default(),
        }
    }
}

impl fmt::Debug for SessionCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionCache").finish_non_exhaustive()
    }
}

impl ClientSessionStore for SessionCache {
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
pub(super) mod tests {
    use rustls::ServerConfig;
    use rustls_pki_types::PrivateKeyDer;

    use super::*;
    use crate::crypto::tls_server::server_config;

    pub(in crate::crypto) fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
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
    fn unreadable_roots_are_skipped_if_one_is_usable() {
        let (root, _) = certificate();
        let garbage = CertificateDer::from(b"no certificate".as_slice());
        assert!(client_config(&[garbage.clone(), root]).is_ok());
        let error = client_config(&[garbage]).unwrap_err().to_string();
        assert!(error.contains("none of 1 root"), "{error}");
        assert!(client_config(&[]).is_err());
    }

    #[test]
    fn a_host_becomes_the_name_or_the_address_in_certificates() {
        let name = |text: &str| server_name(&Host::parse(text).unwrap());
        assert!(matches!(name("example.com"), Ok(ServerName::DnsName(_))));
        assert!(matches!(name("_x.example"), Ok(ServerName::DnsName(_))));
        assert!(matches!(name("192.0.2.1"), Ok(ServerName::IpAddress(_))));
        assert!(matches!(name("[::1]"), Ok(ServerName::IpAddress(_))));
        assert!(name("0177.0.0.1").is_err());
    }

    #[test]
    #[cfg(feature = "gateway")]
    fn another_alpn_list_does_not_change_the_first_configuration() {
        let config = client_config(&[certificate().0]).unwrap();
        let other = with_alpn(&config, vec![b"h2".to_vec()]);
        assert!(config.alpn_protocols.is_empty());
        assert_eq!(other.alpn_protocols, [b"h2"]);
    }

    #[test]
    fn the_digest_is_the_sha_256_of_the_certificates() {
        let certificates = [b"a".as_slice(), b"bc"].map(CertificateDer::from);
        assert_eq!(
            digest(&certificates),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    /// A handshake in memory, including tickets. Returns whether it was resumed.
    fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> bool {
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
    fn every_handshake_after_the_first_is_resumed_and_brings_a_new_ticket() {
        let (root, key) = certificate();
        let server = server_config(vec![root.clone()], key).unwrap();
        let client = client_config(&[root]).unwrap();
        assert!(!handshake(&client, &server));
        for _ in 0..100 {
            assert!(handshake(&client, &server));
        }
    }

    #[test]
    fn tickets_are_kept_up_to_the_limit_and_used_once_for_their_server() {
        let (root, key) = certificate();
        let server = server_config(vec![root.clone()], key).unwrap();
        let sessions = Arc::new(SessionCache::default());
        let mut client = (*client_config(&[root]).unwrap()).clone();
        client.resumption = Resumption::store(Arc::clone(&sessions) as Arc<dyn ClientSessionStore>);
        let client = Arc::new(client);
        for _ in 0..TICKETS {
            handshake(&client, &server);
        }
        assert_eq!(sessions.tickets().len(), TICKETS);
        let (server_name, other) = (
            ServerName::try_from("localhost").unwrap(),
            ServerName::try_from("other").unwrap(),
        );
        assert!(sessions.take_tls13_ticket(&other).is_none());
        for _ in 0..TICKETS {
            assert!(sessions.take_tls13_ticket(&server_name).is_some());
        }
        assert!(sessions.take_tls13_ticket(&server_name).is_none());
    }
}
