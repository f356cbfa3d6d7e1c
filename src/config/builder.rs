//! [`Config`] and its chained setters.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::crypto::secret::Secret;
use crate::http::base_url::BaseUrl;
#[cfg(feature = "gateway")]
use crate::http::pattern::Pattern;
#[cfg(feature = "gateway")]
use crate::net::address_override::Override;

use super::environment::Environment;
use super::limits::Limits;
use super::parent_proxy::{Parent, ParentProxy};
use super::session_id::SessionId;
use super::setting::{SettingError, Source};
use super::when::{Cancel, When};

/// The base URL if the two switches opened the gate and no base URL is given.
pub(crate) const DEFAULT_BASE_URL: &str = "https://api.anthropic.com";
/// The token file, unless another one is given.
pub(crate) const DEFAULT_TOKEN_FILE: &str = "/run/ccr/session_token";

/// The settings that matter only without an embedded gateway, which replaces them.
pub(crate) const UPSTREAM_SETTINGS: &[&str] = &[
    "base-url",
    "session-id",
    "token-file",
    "token-fd",
    "keep-token",
];
/// The settings that matter only with an embedded gateway.
pub(crate) const EMBEDDED_SETTINGS: &[&str] = &["intercept", "require-tls", "resolve"];

/// The settings of [`start`](crate::start).
///
/// Begin with [`Config::from_env`] or [`Config::default`], and chain setters. A value that a setter
/// sets wins over the environment, also over an unusable value there. [`Config::set`] sets a value
/// by the name of the setting.
///
/// ```
/// use std::time::Duration;
/// use upstreamproxy::Config;
/// use upstreamproxy::config::{BaseUrl, SessionId, When};
///
/// let config = Config::default()
///     .when(When::Always)
///     .base_url(BaseUrl::try_from("https://gateway.example:8443")?)
///     .session_id(SessionId::try_from("session-1")?)
///     .token(String::from("the token"))
///     .limits(|limits| limits.keepalive = Duration::from_secs(10));
/// # let _ = config;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a setter returns the changed settings"]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    pub(crate) when: When,
    /// `CLAUDE_CODE_REMOTE` is truthy.
    pub(crate) remote: bool,
    /// `CCR_UPSTREAM_PROXY_ENABLED` is truthy.
    pub(crate) enabled: bool,
    pub(crate) embedded: bool,
    pub(crate) base_url: Option<BaseUrl>,
    pub(crate) session_id: Option<SessionId>,
    pub(crate) token: Option<Secret>,
    pub(crate) token_file: PathBuf,
    pub(crate) token_fd: Option<RawFd>,
    pub(crate) keep_token: bool,
    pub(crate) parent: Parent,
    pub(crate) upstream_ca: Option<PathBuf>,
    pub(crate) upstream_uid: Option<u32>,
    pub(crate) system_ca: Option<PathBuf>,
    pub(crate) ca_bundle: Option<PathBuf>,
    pub(crate) listen: SocketAddr,
    /// A socket that listens at `listen` already.
    pub(crate) socket: Option<Arc<TcpListener>>,
    pub(crate) allow_non_loopback: bool,
    pub(crate) allow_any_user: bool,
    pub(crate) listen_credential: bool,
    pub(crate) omit_variables: Vec<String>,
    pub(crate) node_hook: bool,
    #[cfg(feature = "gateway")]
    pub(crate) intercept: Vec<Pattern>,
    #[cfg(feature = "gateway")]
    pub(crate) require_tls: bool,
    #[cfg(feature = "gateway")]
    pub(crate) resolve: Vec<Override>,
    pub(crate) limits: Limits,
    pub(crate) harden: bool,
    pub(crate) cancel: Cancel,
    pub(crate) inherited: Environment,
    /// Every value that cannot be used; see [`Config::unusable`].
    pub(crate) unusable: Vec<SettingError>,
    /// Where the values that are not defaults come from, by the name of the setting.
    pub(crate) sources: BTreeMap<&'static str, Source>,
}

impl Default for Config {
    /// The documented default of every setting.
    ///
    /// It reads no environment: the two switches of the session are off, so that
    /// [`When::Always`] must be set, and HOME and `SSL_CERT_FILE` are unknown. See
    /// [`Config::inherited`] for what that means for the variables of children.
    fn default() -> Self {
        Self {
            when: When::Auto,
            remote: false,
            enabled: false,
            embedded: false,
            base_url: None,
            session_id: None,
            token: None,
            token_file: PathBuf::from(DEFAULT_TOKEN_FILE),
            token_fd: None,
            keep_token: false,
            parent: Parent::default(),
            upstream_ca: None,
            upstream_uid: None,
            system_ca: None,
            ca_bundle: None,
            listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            socket: None,
            allow_non_loopback: false,
            allow_any_user: false,
            listen_credential: false,
            omit_variables: Vec::new(),
            node_hook: false,
            #[cfg(feature = "gateway")]
            intercept: vec![Pattern::any_on(443)],
            #[cfg(feature = "gateway")]
            require_tls: false,
            #[cfg(feature = "gateway")]
            resolve: Vec::new(),
            limits: Limits::default(),
            harden: true,
            cancel: Cancel::default(),
            inherited: Environment::default(),
            unusable: Vec::new(),
            sources: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Whether the gate checks the two switches of the session. Default [`When::Auto`].
    pub fn when(self, when: When) -> Self {
        self.with("when", |config| config.when = when)
    }

    /// The base URL of the upstream. Default `https://api.anthropic.com`, but only if the two
    /// switches of the session opened the gate.
    pub fn base_url(self, base_url: BaseUrl) -> Self {
        self.with("base-url", |config| config.base_url = Some(base_url))
    }

    /// The session ID sent to the upstream. There is no default.
    pub fn session_id(self, session_id: SessionId) -> Self {
        self.with("session-id", |config| config.session_id = Some(session_id))
    }

    /// The session token itself, whose buffer is wiped when it is no longer needed. Then no token
    /// file is read or deleted. Default: the token is in [`Config::token_file`].
    pub fn token(mut self, token: String) -> Self {
        self.token = Some(Secret::new(token));
        self
    }

    /// The file with the session token. Default `/run/ccr/session_token`, or the
    /// credential `upstreamproxy-token` of the systemd service.
    ///
    /// The path `-` is standard input. A FIFO is read once, within 10 s. A symbolic link is
    /// followed if its target is below the same directory; then the file is never deleted.
    pub fn token_file(self, path: impl Into<PathBuf>) -> Self {
        self.with("token-file", |config| config.token_file = path.into())
    }

    /// An inherited descriptor from which the token is read once, within 10 s, to its end. It must
    /// not be close-on-exec, and it is closed. Default none.
    pub fn token_fd(self, descriptor: RawFd) -> Self {
        self.with("token-fd", |config| config.token_fd = Some(descriptor))
    }

    /// Keeps the token file, for one that cannot be deleted, such as a mounted secret. Default
    /// false: it is deleted once the relay listens.
    pub fn keep_token(self, keep: bool) -> Self {
        self.with("keep-token", |config| config.keep_token = keep)
    }

    /// A PEM file with additional roots for connections to the upstream (CA download and wss); with
    /// an embedded gateway, for verifying targets. Default none.
    pub fn upstream_ca(self, path: impl Into<PathBuf>) -> Self {
        self.with("upstream-ca", |config| {
            config.upstream_ca = Some(path.into());
        })
    }

    /// Another user, besides the own one and root, who may have the port of an upstream that is
    /// plain `http` on loopback. Default none.
    pub fn upstream_uid(self, uid: u32) -> Self {
        self.with("upstream-uid", |config| config.upstream_uid = Some(uid))
    }

    /// The HTTP proxy on the path to the upstream; with an embedded gateway, to the targets. `None`
    /// uses no proxy. Default: the one that `HTTPS_PROXY` or `ALL_PROXY` of [`Config::inherited`]
    /// names, except for the hosts in its `NO_PROXY`.
    pub fn parent_proxy(self, proxy: Option<ParentProxy>) -> Self {
        self.with("parent-proxy", |config| {
            config.parent = proxy.map_or(Parent::Off, Parent::Proxy);
        })
    }

    /// The PEM file with the base roots. Default: the inherited `SSL_CERT_FILE` if it contains
    /// certificates, or the roots of the distribution.
    pub fn system_ca(self, path: impl Into<PathBuf>) -> Self {
        self.with("system-ca", |config| config.system_ca = Some(path.into()))
    }

    /// Where the merged CA bundle is written. Default `~/.ccr/ca-bundle.crt`; for root, if other
    /// users cannot enter root's home, `/run/upstreamproxy/ca-bundle.crt`.
    pub fn ca_bundle(self, path: impl Into<PathBuf>) -> Self {
        self.with("ca-bundle", |config| config.ca_bundle = Some(path.into()))
    }

    /// The address that the relay listens on. Default 127.0.0.1, port 0 (the kernel selects one).
    pub fn listen(self, address: SocketAddr) -> Self {
        self.with("listen", |config| config.listen = address)
    }

    /// Allows a listen address that other machines can reach; they can then use this session.
    /// Default false.
    pub fn allow_non_loopback(self, allow: bool) -> Self {
        self.with("allow-non-loopback", |config| {
            config.allow_non_loopback = allow;
        })
    }

    /// Allows every local user to use the port, and with it this session. Default false: on Linux a
    /// connection is refused unless the socket at its other end belongs to this user or root. Where
    /// the kernel does not report that, a warning says that it cannot be checked.
    pub fn allow_any_user(self, allow: bool) -> Self {
        self.with("allow-any-user", |config| config.allow_any_user = allow)
    }

    /// Puts a random password into the proxy URL and refuses clients that do not send it. Default
    /// false: some tools cannot send one (the JVM, Volta, Yarn, undici), and other processes of the
    /// same user can read the environment of a process.
    pub fn listen_credential(self, require: bool) -> Self {
        self.with("listen-credential", |config| {
            config.listen_credential = require;
        })
    }

    /// Variables that are not set for child processes, in upper and lower case. Default none.
    pub fn omit_variables<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
        self.with("omit-variable", |config| {
            config.omit_variables = names.into_iter().map(Into::into).collect();
        })
    }

    /// Lets children's Node programs use the proxy that read no variable: `NODE_OPTIONS` loads a
    /// small file beside the CA bundle into each of them. Default false.
    pub fn node_hook(self, load: bool) -> Self {
        self.with("node-hook", |config| config.node_hook = load)
    }

    /// With an embedded gateway: the targets whose TLS is intercepted. Default `*:443`; an empty
    /// list intercepts nothing.
    #[cfg(feature = "gateway")]
    pub fn intercept(self, patterns: impl IntoIterator<Item = Pattern>) -> Self {
        self.with("intercept", |config| {
            config.intercept = patterns.into_iter().collect();
        })
    }

    /// With an embedded gateway: refuses every connection to a host of
    /// [`intercept`](Self::intercept) that is not TLS from its first byte. Default false: other
    /// protocols are passed through unchanged.
    #[cfg(feature = "gateway")]
    pub fn require_tls(self, require: bool) -> Self {
        self.with("require-tls", |config| config.require_tls = require)
    }

    /// With an embedded gateway: fixed addresses for names, like curl's `--resolve`. Default none.
    #[cfg(feature = "gateway")]
    pub fn resolve(self, overrides: impl IntoIterator<Item = Override>) -> Self {
        self.with("resolve", |config| {
            config.resolve = overrides.into_iter().collect();
        })
    }

    /// Changes the limits in count and time. An unusable limit in the environment still counts; use
    /// [`Config::set`] to replace it.
    pub fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }

    /// Makes the process non-dumpable before the token is read (Linux): no debugger, no core file,
    /// `/proc` entries for root only. Default true. An embedding host that must stay debuggable
    /// sets false and protects its memory itself.
    pub fn harden(self, harden: bool) -> Self {
        self.with("harden", |config| config.harden = harden)
    }

    /// Cancels set-up from another thread. By default nothing cancels it.
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// The environment that children would have without this library. Default: the environment that
    /// [`Config::from_environment`] read, or an empty one after [`Config::default`].
    ///
    /// The variables of [`Handle::env`](crate::Handle::env) build on it: its `NO_PROXY` is kept and
    /// grows, and the roots in CA files that it names are added to the bundle. With an empty one
    /// `Handle::env` knows no `NO_PROXY` of the host; [`Handle::apply_to`](crate::Handle::apply_to)
    /// still keeps the one that the command would inherit.
    pub fn inherited(mut self, environment: Environment) -> Self {
        self.inherited = environment;
        self
    }

    fn with(mut self, setting: &'static str, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self.record(setting, Source::Host, Ok(()));
        self
    }
}

impl Config {
    /// Whether an embedded gateway is the upstream: the setting `embedded` is on, and the gate is
    /// not set to [`When::Never`].
    pub fn uses_embedded_gateway(&self) -> bool {
        self.embedded && self.when != When::Never
    }

    /// Records where the value of `setting` comes from, or why it cannot be used. An earlier
    /// problem with the same setting no longer counts.
    pub(crate) fn record(
        &mut self,
        setting: &'static str,
        source: Source,
        result: Result<(), SettingError>,
    ) {
        self.unusable.retain(|problem| problem.setting != setting);
        match result {
            Ok(()) => drop(self.sources.insert(setting, source)),
            Err(problem) => self.unusable.push(problem),
        }
    }

    /// Where the value of `setting` comes from; `None`: it is the default.
    pub(crate) fn source(&self, setting: &str) -> Option<&Source> {
        self.sources.get(setting)
    }

    /// The values that cannot be used, without those of settings that do not matter.
    ///
    /// The gate is Disabled by them once its switches are on.
    pub(crate) fn unusable(&self) -> impl Iterator<Item = &SettingError> {
        let ignored = if self.embedded {
            UPSTREAM_SETTINGS
        } else {
            EMBEDDED_SETTINGS
        };
        self.unusable
            .iter()
            .filter(|problem| !ignored.contains(&problem.setting))
    }
}
