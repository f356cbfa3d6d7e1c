//! The server end of the tunnels: a CA endpoint and a tunnel endpoint on one port.
//!
//! [`start_gateway`](crate::start_gateway) starts it with a [`GatewayConfig`] and returns a
//! [`Gateway`]. Relays connect with the credentials in [`Sessions`]. [`manual::protocol`] describes
//! both endpoints.
//!
//! [`manual::protocol`]: crate::manual::protocol

// `session` serves one connection: `upgrade` decides about its request head, `auth` checks its
// credentials, `target` dials what `policy` permits, and `intercept` adds TLS with the certificates
// of `issuer`. It never uses the relay's code.

mod address_class;
mod auth;
mod ca_error;
mod cert_cache;
mod certificate_names;
mod client_certificate;
pub(crate) mod client_hello;
mod config;
mod context;
mod identity;
mod intercept;
mod interception_ca;
mod issuer;
pub(crate) mod policy;
mod session;
mod sessions_file;
mod target;
mod target_failure;
mod tls_alert;
pub(crate) mod upgrade;
mod validity;

use std::hash::RandomState;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use std::{fmt, io};

use rustls::AlertDescription;
use rustls_pki_types::CertificateDer;

pub use crate::http::pattern::Pattern;
pub use crate::net::address_override::Override;
pub use auth::Sessions;
pub use config::GatewayConfig;
pub use identity::TlsIdentity;

use crate::control::log::LogSource;
use crate::control::metrics::{Counters, Stats, StatsReader};
use crate::control::outcome::Outcome;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::control::shares::Shares;
use crate::control::stop::{Abort, Stop};
use crate::crypto::{self, tls};
use crate::error::{Error, ErrorKind, Stage};
use crate::http::response;
#[cfg(feature = "cli")]
use crate::listener::Liveness;
use crate::listener::{self, EvictableList, Eviction, Listening, Service, ShutdownReport};
use crate::net::resolver::Resolver;
use crate::tunnel::buffer::Pool;
use crate::tunnel::ws_codec::Budget;
use ca_error::CaError;
use certificate_names::CertificateNames;
use client_certificate::NoClientCertificate;
use context::{GatewayContext, TlsServer};
use interception_ca::InterceptionCa;
use issuer::Issuer;
use policy::Policy;
use validity::Validity;

/// How long a connection cannot be evicted at most after it was accepted, and again after its
/// upgrade.
const GRACE: Duration = Duration::from_millis(300);

/// A running gateway. Dropping it stops it: it waits up to
/// [`Limits::drain_timeout`](crate::config::Limits::drain_timeout) for open tunnels (10 s by
/// default) and joins every thread.
///
/// All methods but [`shutdown`](Self::shutdown) return at once. The handle is `Send` and `Sync`.
///
/// # Example
/// ```
/// use std::time::Duration;
///
/// use upstreamproxy::gateway::{GatewayConfig, Sessions};
/// use upstreamproxy::start_gateway;
///
/// let sessions = Sessions::parse("session-1 a-long-random-token")?;
/// let gateway = start_gateway(GatewayConfig::new(sessions).listen("127.0.0.1:0".parse()?))?;
/// assert_eq!(gateway.base_url(), format!("http://{}", gateway.local_addr()));
/// let report = gateway.shutdown(Duration::from_secs(10));
/// assert_eq!(report.stats.tunnels, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping it stops the gateway"]
pub struct Gateway {
    listening: Listening,
    context: Arc<GatewayContext>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("address", &self.local_addr())
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// The address that it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.listening.local_addr()
    }

    /// The source of its log lines.
    #[cfg(feature = "cli")]
    pub(crate) fn log_source(&self) -> &LogSource {
        &self.context.log_source
    }

    /// The base URL for relays. With TLS the host is a name of the certificate: the address that
    /// the gateway listens on if the certificate has it, or else its first DNS name. If there is
    /// none, and without TLS, it is that address; 0.0.0.0 and `::` become the loopback address.
    pub fn base_url(&self) -> String {
        let address = self.local_addr();
        let (ip, port) = (address.ip(), address.port());
        let host = match ip {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let by_address = SocketAddr::new(host, port);
        let Some(tls) = &self.context.tls else {
            return format!("http://{by_address}");
        };
        let tls = tls.read().unwrap_or_else(PoisonError::into_inner);
        match tls.names.for_server_at(ip) {
            Some(name) => format!("https://{name}:{port}"),
            None => format!("https://{by_address}"),
        }
    }

    /// The certificates of the interception CA (PEM), as the CA endpoint serves them.
    pub fn ca_pem(&self) -> String {
        self.context.issuer().ca_pem().to_owned()
    }

    /// Replaces the certificate and key of the TLS server, for new connections.
    ///
    /// # Errors
    /// The two cannot be used, or the gateway was started without TLS. The old ones stay then.
    pub fn replace_tls(&self, identity: &TlsIdentity) -> Result<(), Error> {
        let tls = self.context.tls.as_ref().ok_or_else(|| {
            invalid(
                "the gateway serves http",
                "start it with tls-cert (--tls-cert) and tls-key (--tls-key)",
            )
        })?;
        let server = tls_server(identity)?;
        *tls.write().unwrap_or_else(PoisonError::into_inner) = server;
        self.context.report_validity();
        Ok(())
    }

    /// Replaces the interception CA, for new connections. Relays that run have the old CA in their
    /// bundles: tools accept the new one only if it has the same key and name, or if both lead to
    /// the same root.
    ///
    /// # Errors
    /// The CA cannot be used. The old one stays then.
    pub fn replace_interception_ca(&self, identity: &TlsIdentity) -> Result<(), Error> {
        let issuer = issuer(Some(identity))?;
        *self
            .context
            .issuer
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(issuer);
        self.context.report_validity();
        Ok(())
    }

    /// Warns about certificates that have expired, or soon will.
    #[cfg(feature = "cli")]
    pub(crate) fn report_validity(&self) {
        self.context.report_validity();
    }

    /// Replaces the sessions, for new connections and for those that wait for their CONNECT
    /// request. Open tunnels continue.
    pub fn replace_sessions(&self, sessions: Sessions) {
        *self
            .context
            .sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(sessions);
    }

    /// The counters now.
    pub fn stats(&self) -> Stats {
        self.context.counters.stats()
    }

    /// A reader of the counters that stays valid during and after [`shutdown`](Self::shutdown).
    pub fn stats_reader(&self) -> StatsReader {
        StatsReader::new(&self.context.counters)
    }

    /// A request, for another thread, that ends a shutdown early.
    pub fn abort(&self) -> Abort {
        self.listening.abort()
    }

    /// Finds out whether its threads work.
    #[cfg(feature = "cli")]
    pub(crate) fn liveness(&self) -> Liveness {
        self.listening.liveness()
    }

    /// Stops accepting, gives open tunnels at most `drain` to end, resets the others, and joins
    /// every thread.
    ///
    /// Blocks for `drain` at most, plus up to 2 s for closing handshakes. Tunnels that are silent
    /// end at once.
    pub fn shutdown(self, drain: Duration) -> ShutdownReport {
        self.listening.shutdown(drain)
    }
}

/// Starts a gateway with at most `cap` connections. `roots` verify intercepted targets.
///
/// # Errors
/// A setting that cannot be used, an address that cannot be bound, or no descriptor or thread left.
pub(crate) fn start(
    config: GatewayConfig,
    roots: &[CertificateDer<'_>],
    cap: usize,
) -> Result<Gateway, Error> {
    let listen = config.listen;
    if !listen.ip().is_loopback() && config.tls.is_none() && !config.allow_plaintext {
        let what = format!(
            "other machines can reach {listen}, and tokens would cross the network in plaintext"
        );
        return Err(invalid(what, TLS_REMEDY));
    }
    let issuer = issuer(config.interception_ca.as_ref())?;
    let tls = config.tls.as_ref().map(tls_server).transpose()?;
    let client = if roots.is_empty() && config.intercept.is_empty() {
        tls::client_without_roots()
    } else {
        tls::client_config(roots)
    };
    let mut target_tls = client.map_err(|error| {
        let what = format!("targets cannot be verified: {error}");
        invalid(what, "check target-ca (--target-ca)").caused_by(error)
    })?;
    Arc::make_mut(&mut target_tls).client_auth_cert_resolver = Arc::new(NoClientCertificate);
    let no_descriptor = |error: io::Error| {
        let what = format!("cannot start the gateway: {error}");
        let remedy = "raise this user's limits on processes and open files";
        Error::new(Stage::Gateway, ErrorKind::ResourceLimit, what, remedy).caused_by(error)
    };
    let socket = listener::open(config.socket, listen).map_err(|error| {
        let what = format!("cannot listen on {listen}: {error}");
        let remedy = "choose another address with listen (--listen)";
        Error::new(Stage::Gateway, ErrorKind::AddressUnavailable, what, remedy).caused_by(error)
    })?;
    let own = socket.local_addr().map_err(no_descriptor)?;
    let stop = Stop::new().map_err(no_descriptor)?;
    let stop = Arc::new(stop);
    let counters = Arc::new(Counters::default());
    let context = Arc::new(GatewayContext {
        sessions: RwLock::new(Arc::new(config.sessions)),
        issuer: RwLock::new(Arc::new(issuer)),
        intercept: config.intercept,
        log_source: LogSource::new("gateway", own),
        require_tls: config.require_tls,
        tls: tls.map(RwLock::new),
        target_tls,
        resolver: Resolver::with_overrides(config.resolve),
        parent: config.parent,
        policy: Policy {
            allow_private: config.allow_private,
            own: Some(own),
        },
        waiting: EvictableList::new(GRACE),
        tunnels: Shares::new(cap),
        party_hasher: RandomState::new(),
        limits: config.limits.bounded(),
        stop: Arc::clone(&stop),
        counters: Arc::clone(&counters),
        pool: Pool::default(),
        budget: Budget::new(cap),
    });
    let service = Arc::new(GatewayService(Arc::clone(&context)));
    let listening = listener::start(
        socket,
        service,
        cap,
        config.limits.drain_timeout,
        &stop,
        counters,
    )
    .map_err(no_descriptor)?;
    context.report_validity();
    Ok(Gateway { listening, context })
}

/// An issuer with this CA, or with one that is generated.
fn issuer(ca: Option<&TlsIdentity>) -> Result<Issuer, Error> {
    let ca = match ca {
        Some(identity) => InterceptionCa::load(identity),
        None => InterceptionCa::generate(),
    };
    ca.and_then(Issuer::new).map_err(CaError::at_start)
}

/// The gateway's TLS server.
fn tls_server(identity: &TlsIdentity) -> Result<TlsServer, Error> {
    let chain = identity.certificates().map_err(|error| {
        let what = format!("the TLS certificate cannot be read: {error}");
        invalid(what, "provide it in PEM with tls-cert (--tls-cert)")
    })?;
    let key = identity.key().ok_or_else(|| {
        let remedy = "provide one without a password with tls-key (--tls-key)";
        invalid("the TLS key contains no private key in PEM", remedy)
    })?;
    let validity = Validity::of(&chain);
    let names = CertificateNames::of(&chain);
    let config = crypto::tls_server::server_config(chain, key).map_err(|error| {
        let what = format!(
            "the TLS certificate and key do not belong together or cannot be used: {error}"
        );
        invalid(what, "provide two that belong together").caused_by(error)
    })?;
    Ok(TlsServer {
        config,
        validity,
        names,
    })
}

const TLS_REMEDY: &str =
    "set tls-cert (--tls-cert) and tls-key (--tls-key), or allow-plaintext (--allow-plaintext)";

fn invalid(what: impl Into<String>, remedy: &str) -> Error {
    Error::new(Stage::Gateway, ErrorKind::InvalidSetting, what, remedy)
}

struct GatewayService(Arc<GatewayContext>);

impl Service for GatewayService {
    const THREADS: [&'static str; 3] = ["uproxy-gwsuper", "uproxy-gwaccept", "gw"];

    fn log_source(&self) -> &LogSource {
        &self.0.log_source
    }

    fn serve(
        &self,
        connection: TcpStream,
        peer: SocketAddr,
        _: &mut dyn FnMut(Outcome),
    ) -> Outcome {
        session::serve(&self.0, connection, peer)
    }

    fn busy_response(&self) -> Vec<u8> {
        if self.0.tls().is_some() {
            // There is no thread for a handshake, so this alert is all that a client can read. RFC
            // 8446, section 6.2: an internal error that the peer has not caused.
            return tls_alert::fatal(AlertDescription::InternalError);
        }
        response::closing(
            &Rejection::new(503, Phase::Head, "the gateway has no tunnel free")
                .remedy("try again in a moment")
                .proxy_status("connection_limit_reached")
                .field(&("Retry-After", "1")),
        )
    }

    fn make_room(&self) -> Eviction {
        self.0.waiting.evict(&self.0.tunnels)
    }
}
