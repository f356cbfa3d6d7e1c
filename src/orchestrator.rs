//! The lifecycle: gate, token, ca, relay, burn, in this order; then the relay serves until its
//! handle is dropped.
//!
//! [`start`] fails open: if a stage fails, the host is left as it was and [`Started::Disabled`]
//! says why.

use std::ffi::OsString;
use std::fmt;
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[cfg(feature = "cli")]
use crossbeam_channel::Receiver;
use rustls_pki_types::CertificateDer;

#[cfg(feature = "gateway")]
use crate::config::When;
use crate::config::{Config, Environment};
#[cfg(feature = "cli")]
use crate::control::hosts::HostTable;
use crate::control::log;
use crate::control::metrics::{Stats, StatsReader};
use crate::control::stop::Abort;
use crate::crypto::secret::{Credentials, Secret};
use crate::crypto::tls;
#[cfg(feature = "gateway")]
use crate::embedded::Embedded;
use crate::error::{Error, ErrorKind, Stage};
use crate::http::base_url::BaseUrl;
#[cfg(feature = "cli")]
use crate::listener::Liveness;
use crate::listener::{self, ShutdownReport};
use crate::net::resolver::Resolver;
use crate::net::socket_owner::UpstreamOwner;
use crate::relay::{self, CurrentCredentials, Running, Upstream};
use crate::setup::ca::{self, Trust};
use crate::setup::child_env::{self, ChildEnv, proxy_url};
use crate::setup::gate::{self, Gate};
use crate::setup::tool_files::ToolFile;
use crate::setup::{capacity, hardening, token};
use crate::sys::memory;

/// The result of [`start`].
///
/// Dropping it stops the relay: the token file is gone by then, so keep the [`Handle`] for as long
/// as child processes need the proxy.
// One value per process: its size costs nothing, and a box would show in every `match` of a host.
#[allow(clippy::large_enum_variant)]
#[must_use = "dropping it stops the relay, and the token file is already deleted"]
#[derive(Debug)]
pub enum Started {
    /// The relay is listening, and the token file is deleted.
    Enabled(Handle),
    /// Proxying is off: a switch is off or a stage failed. Nothing was changed, and the session
    /// goes on without a proxy.
    Disabled(Disabled),
}

impl Started {
    /// The handle, if proxying is on. The log has already reported why it is off.
    ///
    /// # Example
    /// ```
    /// use upstreamproxy::{Config, start};
    ///
    /// let relay = start(&Config::default()).ok();
    /// assert!(relay.is_none(), "nothing asked for proxying");
    /// ```
    pub fn ok(self) -> Option<Handle> {
        self.into_result().ok()
    }

    /// The handle, or why proxying is off, for use with `?` and `match`.
    ///
    /// # Errors
    /// [`Disabled`], if proxying is off.
    pub fn into_result(self) -> Result<Handle, Disabled> {
        match self {
            Self::Enabled(handle) => Ok(handle),
            Self::Disabled(disabled) => Err(disabled),
        }
    }
}

/// Why proxying is off. [`Display`](fmt::Display) prints `disabled at STAGE: REASON; REMEDY`.
///
/// # Example
/// ```
/// use upstreamproxy::{Config, ErrorKind, Started, start};
///
/// match start(&Config::default()) {
///     Started::Enabled(_) => unreachable!("the switches are off"),
///     Started::Disabled(disabled) => {
///         assert_eq!(disabled.error().kind(), ErrorKind::SwitchedOff);
///         assert!(disabled.is_silent(), "a switch that is off is not a fault");
///         println!("{disabled}");
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Disabled(Error);

impl Disabled {
    /// The stage that did not succeed.
    pub fn stage(&self) -> Stage {
        self.0.stage()
    }

    /// What failed and what to do, as one sentence without a full stop: the text of the log line.
    pub fn reason(&self) -> String {
        self.0.to_string()
    }

    /// The error of the stage: kind, what failed, remedy.
    pub fn error(&self) -> &Error {
        &self.0
    }

    /// Whether this is not a fault: a switch is off, or the host cancelled set-up. It was logged at
    /// `debug`, not at `warn`.
    pub fn is_silent(&self) -> bool {
        matches!(self.0.kind(), ErrorKind::SwitchedOff | ErrorKind::Cancelled)
    }
}

impl fmt::Display for Disabled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disabled at {}: {}", self.0.stage(), self.0)
    }
}

impl std::error::Error for Disabled {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// A running relay. Dropping it stops the relay: it waits up to
/// [`Limits::drain_timeout`](crate::config::Limits::drain_timeout) for open tunnels (10 s by
/// default) and joins every thread.
///
/// All methods but [`shutdown`](Self::shutdown) return at once. The handle is `Send` and `Sync`.
#[must_use = "dropping it stops the relay"]
#[derive(Debug)]
pub struct Handle {
    relay: Running,
    // After the relay: its tunnels end first.
    #[cfg_attr(not(any(feature = "cli", feature = "gateway")), allow(dead_code))]
    gateway: OwnedGateway,
    child_env: ChildEnv,
    inherited: Environment,
    /// Holds the lock on the bundle while the relay runs.
    trust: Trust,
}

/// The embedded gateway of a handle, if there is one. Dropping it stops the gateway.
#[derive(Debug, Default)]
pub(crate) struct OwnedGateway(
    #[cfg(feature = "gateway")]
    #[cfg_attr(not(feature = "cli"), allow(dead_code))]
    Option<Embedded>,
);

impl OwnedGateway {
    /// Starts the embedded gateway if `config` requests one, and points `config` to it.
    ///
    /// # Errors
    /// It cannot be started.
    #[cfg(feature = "cli")]
    #[cfg_attr(not(feature = "gateway"), allow(clippy::unnecessary_wraps))]
    pub(crate) fn start_for(config: &mut Config) -> Result<Self, Error> {
        #[cfg(feature = "gateway")]
        if config.uses_embedded_gateway() {
            return Embedded::start_for(config).map(|gateway| Self(Some(gateway)));
        }
        let _ = config;
        Ok(Self::default())
    }

    /// Stops the gateway.
    #[cfg(feature = "cli")]
    pub(crate) fn stop(self) {
        #[cfg(feature = "gateway")]
        drop(self.0);
        #[cfg(not(feature = "gateway"))]
        let Self() = self;
    }
}

/// Runs the five stages and returns with a listening relay, or with the reason why proxying is off.
///
/// If the setting `embedded` is on (`UPSTREAMPROXY_EMBEDDED`), this is [`start_embedded`].
///
/// Blocks the calling thread for the time of set-up: file access, and one HTTPS download that is
/// bounded by [`Limits::ca_timeout`](crate::config::Limits::ca_timeout) (5 s by default). Another
/// thread can end it early with [`Config::cancel`]. From an async runtime, call it in a blocking
/// task (see the crate documentation).
///
/// It never fails and never panics: whatever goes wrong is [`Started::Disabled`], and one line in
/// the log says why (`warn`; `debug` if a switch is off). Several relays can run in one process.
///
/// # Example
/// ```
/// use upstreamproxy::{Config, Stage, Started, start};
///
/// // The default configuration asks for nothing, so the gate stays closed.
/// match start(&Config::default()) {
///     Started::Enabled(handle) => println!("listening on {}", handle.local_addr()),
///     Started::Disabled(disabled) => assert_eq!(disabled.stage(), Stage::Gate),
/// }
/// ```
pub fn start(config: &Config) -> Started {
    #[cfg(feature = "gateway")]
    if config.uses_embedded_gateway() {
        return start_embedded(config);
    }
    supervised(|stage| set_up(config, stage))
}

/// Runs the five stages in front of a gateway inside this process: no upstream is needed.
///
/// The gateway listens on loopback with a session, a token and a CA of its own: base URL, session
/// ID, token and token file of `config` are ignored, and the CA bundle is temporary unless
/// [`Config::ca_bundle`] is set. [`When::Never`] still means that nothing starts.
///
/// The gateway has no type of options. Its settings are those of [`Config`]:
/// [`intercept`](Config::intercept), [`require_tls`](Config::require_tls),
/// [`resolve`](Config::resolve), [`upstream_ca`](Config::upstream_ca),
/// [`system_ca`](Config::system_ca) and [`limits`](Config::limits). The handle owns the gateway,
/// which stops after the relay.
///
/// Blocks, and reports failures, as [`start`] does.
///
/// # Example
/// ```
/// use std::process::Command;
/// use std::time::Duration;
///
/// use upstreamproxy::{Config, start_embedded};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let relay = start_embedded(&Config::from_env()).into_result()?;
/// let mut command = Command::new("sh");
/// command.args(["-c", "echo $HTTPS_PROXY"]);
/// relay.apply_to(&mut command);
/// let output = String::from_utf8(command.output()?.stdout)?;
/// assert_eq!(output.trim(), format!("http://{}", relay.local_addr()));
/// relay.shutdown(Duration::from_secs(10));
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "gateway")]
#[doc(alias = "EmbeddedOptions")]
pub fn start_embedded(config: &Config) -> Started {
    supervised(|stage| {
        if config.when == When::Never {
            // The gate says so; a gateway would be started for nothing.
            return set_up(config, stage);
        }
        let mut config = config.clone();
        let gateway = Embedded::start_for(&mut config)?;
        let mut handle = set_up(&config, stage)?;
        handle.gateway = OwnedGateway(Some(gateway));
        Ok(handle)
    })
}

/// Runs set-up, turns its failure or panic into `Disabled`, and logs that once.
fn supervised(set_up: impl FnOnce(&mut Stage) -> Result<Handle, Error>) -> Started {
    let mut stage = Stage::Gate;
    let error = match catch_unwind(AssertUnwindSafe(|| set_up(&mut stage))) {
        Ok(Ok(handle)) => return Started::Enabled(handle),
        Ok(Err(error)) => error,
        Err(_) => Error::new(
            stage,
            ErrorKind::Internal,
            "set-up panicked",
            "report it with the panic's message",
        ),
    };
    let disabled = Disabled(error);
    if disabled.is_silent() {
        log::debug!("{disabled}");
    } else {
        log::warn!("{disabled}");
    }
    Started::Disabled(disabled)
}

/// The stages, one paragraph each. `at` is the stage that runs, for the report of a panic.
fn set_up(config: &Config, at: &mut Stage) -> Result<Handle, Error> {
    let session = match gate::check(config)? {
        Gate::Open(session) => session,
        Gate::Closed { reason } => {
            return Err(Error::new(Stage::Gate, ErrorKind::SwitchedOff, reason, ""));
        }
    };

    report_parent(config, &session.base);

    enter(Stage::Token, config, at)?;
    if config.harden
        && let Err(error) = hardening::protect()
    {
        log::warn!(
            "memory protection failed: {error}; other processes of this user can read the token"
        );
    }
    let token = token::read(config)?;

    enter(Stage::Ca, config, at)?;
    let resolver = Resolver::new();
    let mut trust = ca::prepare(config, &session.base, &resolver)?;

    enter(Stage::Relay, config, at)?;
    let mut upstream = upstream(
        config,
        session.id,
        session.base,
        token.secret(),
        &mem::take(&mut trust.roots),
        resolver,
    )?;
    upstream.ca_digest = Some(mem::take(&mut trust.digest));
    let relay = start_relay(config, upstream, Some(trust.bundle.clone()))?;

    enter(Stage::Burn, config, at)?;
    if let Err(error) = token.burn(config.keep_token) {
        log::warn!("{}: {error}; the relay is running", Stage::Burn);
    }

    // Set-up has parsed and dropped hundreds of certificates.
    memory::give_back_heap();
    let listener = relay.local_addr();
    log::info!(
        target: relay.log_source().target(),
        "relay listens on {listener}, CA bundle {}",
        trust.bundle.display()
    );
    let child_env = ChildEnv {
        proxy: proxy_url(listener, relay.userinfo()),
        bundle: trust.bundle.clone(),
        files: trust.files.clone(),
        npm_roots: trust.npm_roots,
        omitted: config.omit_variables.clone(),
    };
    child_env::warn_of_unknown(&child_env.omitted);
    Ok(Handle {
        relay,
        gateway: OwnedGateway::default(),
        child_env,
        inherited: config.inherited.clone(),
        trust,
    })
}

/// Enters `stage`, unless set-up was cancelled.
fn enter(stage: Stage, config: &Config, at: &mut Stage) -> Result<(), Error> {
    *at = stage;
    config.cancel.check(stage)
}

/// Logs through which proxy the upstream is reached, or why an inherited one is not used.
fn report_parent(config: &Config, base: &BaseUrl) {
    match config.parent() {
        Err((variable, error)) => log::warn!(
            "the inherited {variable} is not used as a parent proxy: {error}; \
             set parent-proxy (--parent-proxy) to an HTTP proxy, or to none"
        ),
        Ok(_) => {
            if let Some(parent) = config.parent_for(base.authority()) {
                log::info!("the upstream is reached through the parent proxy {parent}");
            }
        }
    }
}

/// The gateway of all tunnels: where it is, the credentials for it, and the roots that verify it.
pub(crate) fn upstream(
    config: &Config,
    session_id: String,
    base: BaseUrl,
    token: Secret,
    roots: &[CertificateDer<'_>],
    resolver: Resolver,
) -> Result<Upstream, Error> {
    let tls = base
        .secure()
        .then(|| tls::client_config(roots))
        .transpose()
        .map_err(|error| {
            Error::new(
                Stage::Ca,
                ErrorKind::Tls,
                error.to_string(),
                "name usable roots with system-ca (--system-ca) or upstream-ca (--upstream-ca)",
            )
        })?;
    let owner = (!base.secure()).then(|| UpstreamOwner::new(config.upstream_uid));
    if owner.as_ref().is_some_and(|owner| !owner.is_supported()) {
        log::warn!(
            "this kernel does not report the users of connections: a user of this machine who \
             takes the port of {base} while the gateway is down receives the token; serve https"
        );
    }
    Ok(Upstream {
        parent: config.parent_for(base.authority()),
        base,
        owner,
        credentials: CurrentCredentials::new(Credentials { session_id, token }),
        tls,
        resolver,
        ca_digest: None,
    })
}

const LISTEN_REMEDY: &str =
    "choose another address or port with listen (--listen), or port 0 for a free one";

/// Binds the relay's address.
pub(crate) fn bind(config: &Config) -> Result<TcpListener, Error> {
    let listen = config.listen;
    let opened = config.socket.as_ref().map(|socket| socket.try_clone());
    let socket = opened.transpose();
    socket
        .and_then(|opened| listener::open(opened, listen))
        .map_err(|error| {
            Error::new(
                Stage::Relay,
                ErrorKind::AddressUnavailable,
                format!("cannot listen on {listen}: {error}"),
                LISTEN_REMEDY,
            )
            .caused_by(error)
        })
}

/// Binds and starts the relay.
pub(crate) fn start_relay(
    config: &Config,
    upstream: Upstream,
    bundle: Option<PathBuf>,
) -> Result<Running, Error> {
    let socket = bind(config)?;
    let cap = capacity::tunnels(config.limits.max_tunnels, false);
    relay::start(socket, config, upstream, bundle, cap).map_err(|error| {
        Error::new(
            Stage::Relay,
            ErrorKind::ResourceLimit,
            format!("cannot start the relay: {error}"),
            "raise this user's limits on processes and open files",
        )
        .caused_by(error)
    })
}

impl Handle {
    /// The relay's URL, as `HTTPS_PROXY` contains it: `http://127.0.0.1:PORT`, with user and
    /// password if [`Config::listen_credential`] is set.
    ///
    /// # Example
    /// ```
    /// # use upstreamproxy::{Config, start_embedded};
    /// # let started = start_embedded(&Config::from_env());
    /// # let relay = started.into_result()?;
    /// assert_eq!(relay.proxy_url(), format!("http://{}", relay.local_addr()));
    /// # Ok::<(), upstreamproxy::Disabled>(())
    /// ```
    pub fn proxy_url(&self) -> &str {
        &self.child_env.proxy
    }

    /// The address that the relay listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.relay.local_addr()
    }

    /// The port that the relay listens on.
    pub fn port(&self) -> u16 {
        self.relay.local_addr().port()
    }

    /// The merged CA bundle (PEM). It is not deleted with the handle, because a child process may
    /// outlive it; only the bundle of [`start_embedded`] is.
    ///
    /// # Example
    /// ```
    /// # use upstreamproxy::{Config, start_embedded};
    /// # let started = start_embedded(&Config::from_env());
    /// # let relay = started.into_result()?;
    /// let pem = std::fs::read_to_string(relay.ca_bundle()).unwrap();
    /// assert!(pem.contains("-----BEGIN CERTIFICATE-----"));
    /// # Ok::<(), upstreamproxy::Disabled>(())
    /// ```
    pub fn ca_bundle(&self) -> &Path {
        &self.trust.bundle
    }

    /// The upstream's CA certificates alone (PEM), beside the bundle. For tools that add roots to
    /// their own, and trust stores of a system. `None` if the file could not be written.
    pub fn upstream_ca(&self) -> Option<PathBuf> {
        self.child_env.file(ToolFile::UpstreamCa)
    }

    /// The wget settings file that set-up wrote; `None` if the user has one already.
    pub fn wgetrc(&self) -> Option<PathBuf> {
        self.child_env.file(ToolFile::Wgetrc)
    }

    /// The variables for a child process that inherits [`Config::inherited`].
    ///
    /// # Example
    /// ```
    /// # use upstreamproxy::{Config, start_embedded};
    /// # let started = start_embedded(&Config::from_env());
    /// if let Some(relay) = started.ok() {
    ///     let variables = relay.env();
    ///     assert!(variables.iter().any(|(name, _)| name == "HTTPS_PROXY"));
    /// }
    /// ```
    pub fn env(&self) -> Vec<(String, OsString)> {
        self.env_for(&self.inherited)
    }

    /// The variables for a child process that inherits `environment`. Its `NO_PROXY` is kept and
    /// extended.
    ///
    /// # Example
    /// ```
    /// # use upstreamproxy::{Config, start_embedded};
    /// # let started = start_embedded(&Config::from_env());
    /// # let relay = started.into_result()?;
    /// use upstreamproxy::config::Environment;
    ///
    /// let child: Environment = [("NO_PROXY", "intranet.example")].into_iter().collect();
    /// let variables = relay.env_for(&child);
    /// let no_proxy = variables.iter().find(|(name, _)| name == "NO_PROXY").unwrap();
    /// assert!(no_proxy.1.to_str().unwrap().contains("intranet.example"));
    /// # Ok::<(), upstreamproxy::Disabled>(())
    /// ```
    pub fn env_for(&self, environment: &Environment) -> Vec<(String, OsString)> {
        self.child_env.variables(environment)
    }

    /// Sets the variables on a command that is not started yet. The `NO_PROXY` that it would have
    /// had is kept and extended: the one set on the command, else that of [`Config::inherited`],
    /// else that of this process.
    ///
    /// # Example
    /// ```
    /// # use upstreamproxy::{Config, start_embedded};
    /// # let started = start_embedded(&Config::from_env());
    /// # let relay = started.into_result()?;
    /// let mut command = std::process::Command::new("git");
    /// relay.apply_to(command.args(["clone", "https://example.com/repository.git"]));
    /// assert!(command.get_envs().any(|(name, _)| name == "GIT_SSL_CAINFO"));
    /// # Ok::<(), upstreamproxy::Disabled>(())
    /// ```
    pub fn apply_to(&self, command: &mut Command) {
        let mut environment = Environment::of_process();
        for (name, value) in self.inherited.iter() {
            environment.set(name, value);
        }
        for (name, value) in command.get_envs() {
            environment.set(name, value.unwrap_or_default());
        }
        command.envs(self.env_for(&environment));
    }

    /// What the variables are made of, for the state file of `serve`.
    #[cfg(feature = "cli")]
    pub(crate) fn child_env(&self) -> &ChildEnv {
        &self.child_env
    }

    /// Uses `token` for all new connections to the upstream, for example because the old token
    /// expires. Open tunnels continue. Standby connections that were opened with the old token are
    /// closed at the next CONNECT, or within 45 s.
    ///
    /// Does not block. The buffer of `token` is taken over. It is wiped when the token is replaced
    /// or the relay stops, and no dial uses it any more; so is the old one. A token from
    /// [`Config::token`] also stays in that `Config` and its clones, until they are dropped.
    ///
    /// # Errors
    /// The token is empty or contains a byte that is not visible ASCII. The old one stays in use.
    ///
    /// # Example
    /// ```
    /// # use upstreamproxy::{Config, start_embedded};
    /// # let started = start_embedded(&Config::from_env());
    /// # let relay = started.into_result()?;
    /// relay.replace_token(String::from("the new token")).unwrap_err();
    /// # Ok::<(), upstreamproxy::Disabled>(())
    /// ```
    pub fn replace_token(&self, token: String) -> Result<(), Error> {
        self.use_token(token::given(Secret::new(token))?);
        Ok(())
    }

    /// The base URL of the upstream, and the session ID.
    #[cfg(feature = "cli")]
    pub(crate) fn upstream(&self) -> (String, String) {
        self.relay.upstream()
    }

    /// Uses a token that was checked. Returns whether it is another one.
    pub(crate) fn use_token(&self, token: Secret) -> bool {
        self.relay.replace_token(token)
    }

    /// Receives a message after the gateway has refused the token.
    #[cfg(feature = "cli")]
    pub(crate) fn refusals(&self) -> Receiver<()> {
        self.relay.refusals()
    }

    /// The counters, as they are now.
    ///
    /// # Example
    /// ```
    /// # use upstreamproxy::{Config, start_embedded};
    /// # let started = start_embedded(&Config::from_env());
    /// # let relay = started.into_result()?;
    /// let stats = relay.stats();
    /// println!("{} tunnels open, {} refused", stats.live, stats.refused);
    /// # Ok::<(), upstreamproxy::Disabled>(())
    /// ```
    pub fn stats(&self) -> Stats {
        self.relay.stats()
    }

    /// Finds out whether the relay's threads work.
    #[cfg(feature = "cli")]
    pub(crate) fn liveness(&self) -> Liveness {
        self.relay.liveness()
    }

    /// A reader of the counters that stays valid during and after [`shutdown`](Self::shutdown).
    pub fn stats_reader(&self) -> StatsReader {
        self.relay.stats_reader()
    }

    /// The counters per target host, which stay valid after [`shutdown`](Self::shutdown).
    #[cfg(feature = "cli")]
    pub(crate) fn hosts(&self) -> HostTable {
        self.relay.hosts().clone()
    }

    /// Separates the embedded gateway, if there is one, so that the caller decides when it stops:
    /// after the relay.
    #[cfg(feature = "cli")]
    pub(crate) fn detach_gateway(mut self) -> (Self, OwnedGateway) {
        let gateway = mem::take(&mut self.gateway);
        (self, gateway)
    }

    /// A request, for another thread, that ends a shutdown at once.
    ///
    /// # Example
    /// ```
    /// # use upstreamproxy::{Config, start_embedded};
    /// # let started = start_embedded(&Config::from_env());
    /// # let relay = started.into_result()?;
    /// use std::time::Duration;
    ///
    /// let abort = relay.abort();
    /// let watchdog = std::thread::spawn(move || {
    ///     std::thread::sleep(Duration::from_millis(10));
    ///     abort.request();
    /// });
    /// relay.shutdown(Duration::from_secs(60));
    /// watchdog.join().unwrap();
    /// # Ok::<(), upstreamproxy::Disabled>(())
    /// ```
    pub fn abort(&self) -> Abort {
        self.relay.abort()
    }

    /// Stops accepting, gives open tunnels at most `drain` to end, resets the others, and joins
    /// every thread.
    ///
    /// Blocks for `drain` at most, plus up to 2 s for closing handshakes and, after
    /// [`start_embedded`], 1 s for the gateway. Tunnels that are silent end at once.
    ///
    /// # Example
    /// ```
    /// # use upstreamproxy::{Config, start_embedded};
    /// # let started = start_embedded(&Config::from_env());
    /// # let relay = started.into_result()?;
    /// let report = relay.shutdown(std::time::Duration::from_secs(10));
    /// assert_eq!((report.ended, report.cut), (0, 0), "no tunnel was open");
    /// # Ok::<(), upstreamproxy::Disabled>(())
    /// ```
    pub fn shutdown(self, drain: Duration) -> ShutdownReport {
        self.relay.shutdown(drain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_holds_can_be_shared_between_threads() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<Started>();
        shared::<Handle>();
        shared::<Disabled>();
        shared::<Config>();
        shared::<Abort>();
        shared::<Error>();
        shared::<Stats>();
        shared::<StatsReader>();
        shared::<ShutdownReport>();
        shared::<crate::config::Cancel>();
        shared::<crate::config::ParentProxy>();
        #[cfg(feature = "gateway")]
        {
            shared::<crate::gateway::Gateway>();
            shared::<crate::gateway::GatewayConfig>();
            shared::<crate::gateway::Sessions>();
            shared::<crate::gateway::TlsIdentity>();
        }
    }
}
