//! The server end: the CA endpoint and the tunnel endpoint of `manual/protocol.md` on one port.
//!
//! `session` is the life of one connection, `door` what is decided before it may cost anything, `newcomers` who has shown no
//! token yet, `auth` who may come in,
//! `policy` where they may go, `intercept` TLS interception with the certificates of `issuer`. The relay's code is never used here.

mod auth;
mod cert_cache;
pub(crate) mod client_hello;
mod context;
mod intercept;
mod issuer;
pub(crate) mod policy;
mod session;
mod target;
pub(crate) mod tls_alert;
mod unauthenticated;
pub(crate) mod upgrade;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

pub use crate::http::authority::{Authority, AuthorityError, Host};
pub use crate::http::pattern::Pattern;
pub use crate::net::address_override::{Override, OverrideError};
pub use auth::{Sessions, SessionsError};

use crate::config::Limits;
use crate::control::metrics::{Counters, Stats, StatsReader};
use crate::control::outcome::Outcome;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::control::stop::{Abort, Stop};
use crate::crypto::{tls, tls_server};
use crate::http::response;
use crate::listener::{self, Eviction, Listening, Service, ShutdownReport};
use crate::net::resolver::Resolver;
use crate::tunnel::buffer::Pool;
use crate::tunnel::ws_codec::Budget;

use context::GatewayContext;
use issuer::Issuer;
use policy::Policy;
use unauthenticated::Unauthenticated;

/// Everything that [`start_gateway`](crate::start_gateway) can be told.
#[derive(Debug)]
#[non_exhaustive]
pub struct GatewayConfig {
    /// Where it listens. Default 127.0.0.1:8443; port 0 works. Beyond loopback only with `tls` or `allow_plaintext`.
    pub listen: SocketAddr,
    /// Lets it listen beyond loopback without TLS: tokens then cross the network in clear. Default false.
    pub allow_plaintext: bool,
    /// Who may come in. Default nobody.
    pub sessions: Sessions,
    /// Serve https and wss with this certificate; `None`: http and ws.
    pub tls: Option<TlsIdentity>,
    /// The interception CA; `None`: one is made, its key in memory only.
    pub interception_ca: Option<TlsIdentity>,
    /// Whose TLS is intercepted. Default `*:443`; empty: nobody's.
    pub intercept: Vec<Pattern>,
    /// The PEM file of base roots for verifying targets; `None`: the distribution's.
    pub system_ca: Option<PathBuf>,
    /// A PEM file of further roots for verifying targets. Default none.
    pub target_ca: Option<PathBuf>,
    /// Names whose addresses are fixed, as curl's `--resolve`. Lifts no address policy.
    pub resolve: Vec<Override>,
    /// Lets tunnels lead to private, loopback and other special addresses. Default false.
    pub allow_private: bool,
    /// Bounds in count and time.
    pub limits: Limits,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8443),
            allow_plaintext: false,
            sessions: Sessions::default(),
            tls: None,
            interception_ca: None,
            intercept: vec![Pattern::any_on(443)],
            system_ca: None,
            target_ca: None,
            resolve: Vec::new(),
            allow_private: false,
            limits: Limits::default(),
        }
    }
}

/// A certificate (with its chain) and its key, both PEM.
pub struct TlsIdentity {
    /// The certificate, and those that lead from it to a root.
    pub cert_pem: String,
    /// The key.
    pub key_pem: Zeroizing<String>,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

/// A setting that the gateway cannot use: what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayError(String);

impl GatewayError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for GatewayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for GatewayError {}

/// A gateway that listens. Dropping it stops it with its drain timeout.
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
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.listening.local_addr()
    }

    /// The base URL that a relay on this machine uses.
    pub fn base_url(&self) -> String {
        let scheme = if self.context.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.local_addr())
    }

    /// The interception CA's certificates, as the CA endpoint serves them.
    pub fn ca_pem(&self) -> &str {
        self.context.issuer.ca_pem()
    }

    /// Lets other sessions in from now on; open tunnels go on.
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

    /// The way to end a shutdown that takes its time, from another thread.
    pub fn abort(&self) -> Abort {
        self.listening.abort()
    }

    /// Stops accepting, gives open tunnels `drain` to end, and returns when every thread is joined.
    pub fn shutdown(self, drain: Duration) -> ShutdownReport {
        self.listening.shutdown(drain)
    }
}

/// Starts a gateway with at most `cap` connections, which verifies targets by `roots`.
///
/// # Errors
/// A setting that cannot be used, or an address that cannot be listened on.
pub(crate) fn start(
    config: GatewayConfig,
    roots: &[CertificateDer<'_>],
    cap: usize,
) -> Result<Gateway, GatewayError> {
    let listen = config.listen;
    if !listen.ip().is_loopback() && config.tls.is_none() && !config.allow_plaintext {
        return Err(GatewayError::new(format!(
            "{listen} can be reached by other machines, and tokens would cross the network in clear; give --tls-cert and --tls-key, or --allow-plaintext"
        )));
    }
    let issuer = match &config.interception_ca {
        Some(ca) => Issuer::load(&ca.cert_pem, &ca.key_pem),
        None => Issuer::generate(),
    };
    let issuer = issuer.map_err(|error| {
        GatewayError::new(format!("the interception CA cannot be used: {error}"))
    })?;
    let tls = config.tls.as_ref().map(identity).transpose()?;
    let target_tls = tls::client_config(roots).map_err(|error| {
        GatewayError::new(format!(
            "targets cannot be verified: {error}; check --target-ca"
        ))
    })?;
    let failed = |what: &str, error: std::io::Error| GatewayError::new(format!("{what}: {error}"));
    let socket = listener::bind(listen).map_err(|error| {
        failed(
            &format!("cannot listen on {listen} (choose another with --listen)"),
            error,
        )
    })?;
    let own = socket
        .local_addr()
        .map_err(|error| failed("the listener has no address", error))?;
    let stop =
        Arc::new(Stop::new().map_err(|error| failed("no descriptor for the stop signal", error))?);
    let counters = Arc::new(Counters::default());
    let context = Arc::new(GatewayContext {
        sessions: RwLock::new(Arc::new(config.sessions)),
        issuer,
        intercept: config.intercept,
        tls,
        target_tls,
        resolver: Resolver::with_overrides(config.resolve),
        policy: Policy {
            allow_private: config.allow_private,
            own: Some(own),
        },
        unauthenticated: Unauthenticated::default(),
        limits: config.limits.bounded(),
        stop: Arc::clone(&stop),
        counters: Arc::clone(&counters),
        pool: Pool::default(),
        budget: Budget::default(),
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
    .map_err(|error| failed("cannot start the gateway's threads", error))?;
    Ok(Gateway { listening, context })
}

/// The configuration of our own TLS server.
fn identity(identity: &TlsIdentity) -> Result<Arc<ServerConfig>, GatewayError> {
    let chain =
        crate::crypto::pem::certificates(identity.cert_pem.as_bytes()).map_err(|error| {
            GatewayError::new(format!("--tls-cert holds no usable certificate: {error}"))
        })?;
    // The library's own error text quotes the file, which here is a key.
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
        .map_err(|_| GatewayError::new("--tls-key holds no private key in PEM"))?;
    tls_server::server_config(chain, key).map_err(|error| {
        GatewayError::new(format!(
            "--tls-cert and --tls-key do not belong together or cannot be used: {error}"
        ))
    })
}

struct GatewayService(Arc<GatewayContext>);

impl Service for GatewayService {
    const LOG_NAME: &'static str = "gateway";
    const THREADS: [&'static str; 3] = ["uproxy-gwsuper", "uproxy-gwaccept", "gw"];

    fn serve(&self, connection: TcpStream, peer: SocketAddr) -> Outcome {
        session::serve(&self.0, connection, peer)
    }

    fn refusal(&self) -> Vec<u8> {
        response::closing(
            &Rejection::new(503, Phase::Head, "the gateway has no tunnel free")
                .remedy("try again in a moment")
                .proxy_status("connection_limit_reached")
                .field("Retry-After", "1"),
        )
    }

    fn make_room(&self) -> Eviction {
        self.0.unauthenticated.evict_oldest()
    }
}
