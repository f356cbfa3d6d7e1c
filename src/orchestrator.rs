//! The one story: gate, token, ca, relay, burn; then serving until the handle is dropped (`manual/operations.md`, the five stages).
//!
//! Reads top to bottom like the table there. Whatever is not satisfied leaves the host as it was: Disabled, one warning.

use std::ffi::OsString;
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
#[cfg(any(test, feature = "capi"))]
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::config::{Config, Environment};
#[cfg(any(test, feature = "capi"))]
use crate::control::metrics::Counters;
use crate::control::metrics::Stats;
use crate::control::stop::Abort;
use crate::crypto::secret::{Credentials, Secret};
use crate::crypto::tls;
use crate::error::Error;
use crate::error::Stage;
use crate::http::base_url::BaseUrl;
use crate::listener::{self, ShutdownReport};
use crate::net::resolver::Resolver;
use crate::relay::{self, AccessControl, Running, Upstream};
use crate::setup::ca::{self, Trust};
use crate::setup::child_env::{ChildEnv, proxy_url};
use crate::setup::gate::{self, Gate};
use crate::setup::{capacity, hardening, token};
use crate::sys::memory;

/// What [`start`] came to.
// One value a process, handed over once: its size costs nothing, and a box would show in every `match` of a host.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum Started {
    /// The relay is up, and the token file is gone.
    Enabled(Handle),
    /// A stage was not satisfied; nothing of ours is set, and the session goes on without it.
    Disabled(Disabled),
}

/// Why proxying is off.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Disabled {
    /// The stage that was not satisfied.
    pub stage: Stage,
    /// One sentence without a full stop: what, and what to do.
    pub reason: String,
    /// A switch is off, or set-up was called off: nothing to warn of, and no warning was logged.
    pub silent: bool,
}

/// A relay that is up. Dropping it stops the relay with its drain timeout and joins every thread.
#[derive(Debug)]
pub struct Handle {
    relay: Running,
    child_env: ChildEnv,
    inherited: Environment,
    /// Holds the lock on the bundle for as long as we live.
    trust: Trust,
}

/// Why set-up ended early.
enum Early {
    Closed(String),
    CalledOff,
    Failed(Error),
}

impl From<Error> for Early {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Runs the lifecycle up to a relay that listens. Blocks for as long as set-up takes: a few seconds at worst.
///
/// Each start is independent of others in the process. Nothing fails: what cannot be done is [`Started::Disabled`], told once
/// in the log at `warn` (at `debug` where a switch is off).
///
/// # Example
/// ```
/// use upstreamproxy::{Config, Stage, Started, start};
///
/// // Nothing in this environment asks for proxying.
/// let config = Config::default();
/// match start(&config) {
///     Started::Enabled(handle) => println!("listening on port {}", handle.port()),
///     Started::Disabled(disabled) => assert_eq!(disabled.stage, Stage::Gate),
/// }
/// ```
pub fn start(config: &Config) -> Started {
    let mut stage = Stage::Gate;
    let early = match catch_unwind(AssertUnwindSafe(|| set_up(config, &mut stage))) {
        Ok(Ok(handle)) => return Started::Enabled(handle),
        Ok(Err(early)) => early,
        Err(_) => Early::Failed(Error::new(
            stage,
            "set-up panicked",
            "report it with the panic's message",
        )),
    };
    let (reason, silent) = match early {
        Early::Closed(reason) => (reason, true),
        Early::CalledOff => ("set-up was called off".to_owned(), true),
        Early::Failed(error) => {
            stage = error.stage();
            (error.to_string(), false)
        }
    };
    if silent {
        log::debug!("disabled at {stage}: {reason}");
    } else {
        log::warn!("disabled at {stage}: {reason}");
    }
    Started::Disabled(Disabled {
        stage,
        reason,
        silent,
    })
}

/// The table of `manual/operations.md`, a stage a paragraph; `at` is where it stands.
fn set_up(config: &Config, at: &mut Stage) -> Result<Handle, Early> {
    let session = match gate::check(config)? {
        Gate::Open(session) => session,
        Gate::Closed { reason } => return Err(Early::Closed(reason)),
    };

    enter(Stage::Token, config, at)?;
    if config.harden
        && let Err(error) = hardening::protect()
    {
        log::warn!("others of this user can read the token in this process: {error}");
    }
    let token = token::read(config)?;

    enter(Stage::Ca, config, at)?;
    let resolver = Resolver::new();
    let mut trust = ca::prepare(config, &session.base, &resolver)?;

    enter(Stage::Relay, config, at)?;
    let upstream = upstream(
        session.id,
        session.base,
        token.secret(),
        &mem::take(&mut trust.roots),
        resolver,
    )?;
    let relay = start_relay(config, upstream)?;

    enter(Stage::Burn, config, at)?;
    if let Err(error) = token.burn() {
        log::warn!("{}: {error}; the relay is up all the same", Stage::Burn);
    }

    // Hundreds of certificates have come and gone.
    memory::give_back_heap();
    let listener = relay.local_addr();
    log::info!(
        "relay listens on {listener}, CA bundle {}",
        trust.bundle.display()
    );
    let child_env = ChildEnv {
        proxy: proxy_url(listener, relay.userinfo()),
        bundle: trust.bundle.clone(),
        wgetrc: trust.wgetrc.clone(),
    };
    Ok(Handle {
        relay,
        child_env,
        inherited: config.inherited.clone(),
        trust,
    })
}

/// Goes on to `stage`, unless set-up was called off.
fn enter(stage: Stage, config: &Config, at: &mut Stage) -> Result<(), Early> {
    *at = stage;
    if config.cancel.is_requested() {
        Err(Early::CalledOff)
    } else {
        Ok(())
    }
}

/// Where tunnels go, with whom, and whom we trust on the way.
pub(crate) fn upstream(
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
                error.to_string(),
                "name usable roots with --system-ca or --upstream-ca",
            )
        })?;
    Ok(Upstream {
        base,
        credentials: Credentials { session_id, token },
        tls,
        resolver,
    })
}

const LISTEN_REMEDY: &str =
    "choose another address or port with --listen, or port 0 for a free one";

/// Binds the relay's address.
pub(crate) fn bind(config: &Config) -> Result<TcpListener, Error> {
    let listen = config.listen;
    listener::bind(listen).map_err(|error| {
        Error::new(
            Stage::Relay,
            format!("cannot listen on {listen}: {error}"),
            LISTEN_REMEDY,
        )
    })
}

/// Binds and starts the relay.
pub(crate) fn start_relay(config: &Config, upstream: Upstream) -> Result<Running, Error> {
    let socket = bind(config)?;
    let cap = capacity::tunnels(config.limits.max_tunnels, false);
    let started = AccessControl::new(config)
        .and_then(|entry| relay::start(socket, entry, upstream, config.limits, cap));
    started.map_err(|error| {
        Error::new(
            Stage::Relay,
            format!("cannot start the relay's threads: {error}"),
            "raise this user's limits on processes and open files",
        )
    })
}

impl Handle {
    /// The relay's URL, as `HTTPS_PROXY` has it.
    pub fn proxy_url(&self) -> &str {
        &self.child_env.proxy
    }

    /// Where the relay listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.relay.local_addr()
    }

    /// The relay's port.
    pub fn port(&self) -> u16 {
        self.relay.local_addr().port()
    }

    /// The merged CA bundle; it stays when the handle goes, as a child may outlive it.
    pub fn ca_bundle(&self) -> &Path {
        &self.trust.bundle
    }

    /// The settings file written for wget, where the user has none of their own.
    pub fn wgetrc(&self) -> Option<&Path> {
        self.trust.wgetrc.as_deref()
    }

    /// The variables for a child that inherits this process' environment, as it was in [`Config::inherited`].
    pub fn env(&self) -> Vec<(String, OsString)> {
        self.env_for(&self.inherited)
    }

    /// The variables for a child that inherits `environment`: its `NO_PROXY` is kept and grows.
    pub fn env_for(&self, environment: &Environment) -> Vec<(String, OsString)> {
        self.child_env.variables(environment)
    }

    /// Sets the variables on a command that has not been started yet.
    pub fn apply_to(&self, command: &mut Command) {
        command.envs(self.env());
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        self.relay.stats()
    }

    /// The counters themselves, for who must read them while a shutdown has the handle.
    #[cfg(any(test, feature = "capi"))]
    pub(crate) fn counters(&self) -> Arc<Counters> {
        self.relay.counters()
    }

    /// The way to end a shutdown that takes its time, from another thread.
    pub fn abort(&self) -> Abort {
        self.relay.abort()
    }

    /// Stops accepting, gives open tunnels `drain` to end, and returns when every thread is joined.
    pub fn shutdown(self, drain: Duration) -> ShutdownReport {
        self.relay.shutdown(drain)
    }
}

/// The variables that a relay with the URL `proxy` and these files would set for a child that inherits `environment`.
pub fn child_variables(
    proxy: &str,
    ca_bundle: &Path,
    wgetrc: Option<&Path>,
    environment: &Environment,
) -> Vec<(String, OsString)> {
    ChildEnv {
        proxy: proxy.to_owned(),
        bundle: ca_bundle.to_owned(),
        wgetrc: wgetrc.map(Path::to_owned),
    }
    .variables(environment)
}
