//! The settings of a gateway.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use super::auth::Sessions;
use super::identity::TlsIdentity;
use crate::config::Limits;
use crate::config::ParentProxy;
use crate::http::pattern::Pattern;
use crate::net::address_override::Override;

/// The settings of [`start_gateway`](crate::start_gateway).
///
/// Begin with [`GatewayConfig::new`] and chain setters. Nothing is read or opened before the start.
///
/// # Example
/// ```
/// use std::time::Duration;
///
/// use upstreamproxy::gateway::{GatewayConfig, Sessions};
///
/// let config = GatewayConfig::new(Sessions::parse("session-1 a-long-random-token")?)
///     .listen("127.0.0.1:0".parse()?)
///     .intercept(["*.example.com".parse()?])
///     .limits(|limits| limits.keepalive = Duration::from_secs(10));
/// # let _ = config;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a setter returns the changed settings"]
#[derive(Debug)]
#[non_exhaustive]
pub struct GatewayConfig {
    pub(crate) listen: SocketAddr,
    /// A socket that listens at `listen` already.
    pub(crate) socket: Option<TcpListener>,
    pub(crate) allow_plaintext: bool,
    pub(crate) sessions: Sessions,
    pub(crate) tls: Option<TlsIdentity>,
    pub(crate) interception_ca: Option<TlsIdentity>,
    pub(crate) intercept: Vec<Pattern>,
    pub(crate) require_tls: bool,
    pub(crate) system_ca: Option<PathBuf>,
    pub(crate) target_ca: Option<PathBuf>,
    pub(crate) resolve: Vec<Override>,
    pub(crate) parent: Option<ParentProxy>,
    pub(crate) allow_private: bool,
    pub(crate) limits: Limits,
}

impl GatewayConfig {
    /// A gateway for `sessions` on 127.0.0.1:8443, without TLS, that intercepts port 443.
    pub fn new(sessions: Sessions) -> Self {
        Self {
            listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8443),
            socket: None,
            allow_plaintext: false,
            sessions,
            tls: None,
            interception_ca: None,
            intercept: vec![Pattern::any_on(443)],
            require_tls: false,
            system_ca: None,
            target_ca: None,
            resolve: Vec::new(),
            parent: None,
            allow_private: false,
            limits: Limits::default(),
        }
    }

    /// The address to listen on; port 0 chooses a free port. Default 127.0.0.1:8443. An address
    /// that is not loopback requires [`tls`](Self::tls) or
    /// [`allow_plaintext`](Self::allow_plaintext).
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Permits listening beyond loopback without TLS: tokens then cross the network in plaintext,
    /// for example behind a load balancer that terminates TLS. Default false.
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.allow_plaintext = allow;
        self
    }

    /// Serves https and wss with this certificate. Default: http and ws.
    pub fn tls(mut self, identity: TlsIdentity) -> Self {
        self.tls = Some(identity);
        self
    }

    /// The CA that signs the certificates for intercepted hosts: its certificate first, then those
    /// above it, and an unencrypted key (P-256, P-384, Ed25519 or RSA). Default: a CA that is
    /// generated at the start, with its key in memory only.
    pub fn interception_ca(mut self, ca: TlsIdentity) -> Self {
        self.interception_ca = Some(ca);
        self
    }

    /// The targets whose TLS is intercepted. Default `*:443`; an empty list intercepts nothing.
    pub fn intercept(mut self, patterns: impl IntoIterator<Item = Pattern>) -> Self {
        self.intercept = patterns.into_iter().collect();
        self
    }

    /// Refuses every connection to a target of [`intercept`](Self::intercept) that is not TLS from
    /// its first byte. Default false: other protocols are passed through unchanged.
    pub fn require_tls(mut self, require: bool) -> Self {
        self.require_tls = require;
        self
    }

    /// The PEM file of base roots for verifying targets. Default: the file that `SSL_CERT_FILE`
    /// names, else the distribution's.
    pub fn system_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.system_ca = Some(file.into());
        self
    }

    /// A PEM file of additional roots for verifying targets. Default none.
    pub fn target_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.target_ca = Some(file.into());
        self
    }

    /// Fixed addresses for names, like curl's `--resolve`. The address policy applies to them too.
    /// Default none.
    pub fn resolve(mut self, overrides: impl IntoIterator<Item = Override>) -> Self {
        self.resolve = overrides.into_iter().collect();
        self
    }

    /// The HTTP proxy through which targets are reached. It looks up their names, so the address
    /// policy applies only to targets that are named by an address. Default none.
    pub fn parent_proxy(mut self, proxy: impl Into<Option<ParentProxy>>) -> Self {
        self.parent = proxy.into();
        self
    }

    /// Permits tunnels to private, loopback and other special-purpose addresses. Default false. The
    /// gateway's own listener is always refused.
    pub fn allow_private(mut self, allow: bool) -> Self {
        self.allow_private = allow;
        self
    }

    /// Changes the limits in count and time.
    pub fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }
}
