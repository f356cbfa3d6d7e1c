//! Starting a gateway: inside the process of a relay, with a session, a token and a CA of its own,
//! or as a server for others.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::config::{
    BaseUrl, Config, Environment, Limits, SessionId, Source, UPSTREAM_SETTINGS, When,
};
use crate::control::log;
use crate::crypto::random;
use crate::crypto::secret::{Credentials, Secret};
use crate::error::{Error, ErrorKind, Stage};
use crate::gateway::{self, Gateway, GatewayConfig, GatewayError, Sessions};
use crate::http::pattern::Pattern;
use crate::net::address_override::Override;
use crate::setup::{capacity, hardening, roots};
use crate::sys::memory;

/// Settings of the gateway of [`start_embedded`](crate::start_embedded).
///
/// # Example
/// ```
/// use upstreamproxy::EmbeddedOptions;
///
/// let options = EmbeddedOptions {
///     intercept: Some(vec!["*.example.com".parse()?]),
///     ..EmbeddedOptions::default()
/// };
/// # let _ = options;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct EmbeddedOptions {
    /// The hosts whose TLS is intercepted. Default `None`: every host on port 443. An empty list:
    /// no host.
    pub intercept: Option<Vec<Pattern>>,
    /// Refuses every connection to a host of [`intercept`](Self::intercept) that is not TLS from
    /// its first byte. Default false: other protocols are passed through unchanged.
    pub require_tls: bool,
    /// Fixed addresses for names, like curl's `--resolve`. Default none.
    pub resolve: Vec<Override>,
    /// A PEM file of additional roots for verifying targets. Default none.
    pub target_ca: Option<PathBuf>,
    /// The PEM file of base roots for verifying targets. Default `None`: the file that
    /// `SSL_CERT_FILE` in [`inherited`](Self::inherited) names, else the distribution's.
    pub system_ca: Option<PathBuf>,
    /// The environment that `SSL_CERT_FILE` is read from. Default `None`: the environment of this
    /// process.
    pub inherited: Option<Environment>,
    /// Bounds in count and time.
    pub limits: Limits,
}

impl EmbeddedOptions {
    /// The embedded gateway that the settings `embedded`, `intercept`, `require-tls`, `resolve`,
    /// `upstream-ca` and `system-ca` describe. The additional roots of `config` verify targets.
    pub(crate) fn from_config(config: &Config) -> Self {
        Self {
            intercept: config.intercept.clone(),
            require_tls: config.require_tls,
            resolve: config.resolve.clone(),
            target_ca: config.upstream_ca.clone(),
            system_ca: config.system_ca.clone(),
            inherited: Some(config.inherited.clone()),
            limits: config.limits,
        }
    }
}

/// A gateway inside this process. Dropping it resets its open tunnels and removes its private
/// directory.
#[derive(Debug)]
pub(crate) struct Embedded {
    base_url: BaseUrl,
    session_id: SessionId,
    cap: usize,
    // Before the directory: the gateway must have stopped when its directory is removed.
    gateway: Option<Gateway>,
    directory: PrivateDirectory,
}

impl Embedded {
    /// Starts the gateway on loopback, and points `config` to it.
    ///
    /// # Errors
    /// No private directory, no randomness, or a setting that the gateway cannot use.
    pub(crate) fn start_for(config: &mut Config, options: EmbeddedOptions) -> Result<Self, Error> {
        if config.harden {
            // The token is generated here. If this fails, the token stage reports it.
            let _ = hardening::protect();
        }
        let embedded = Self::start(options)?;
        embedded.configure(config);
        Ok(embedded)
    }

    fn start(options: EmbeddedOptions) -> Result<Self, Error> {
        let failed = |what: &str, error: io::Error| {
            Error::new(
                Stage::Gate,
                ErrorKind::Io,
                format!("the embedded gateway: {what}: {error}"),
                "check that TMPDIR is a writable directory",
            )
            .caused_by(error)
        };
        let no_random = |error: io::Error| {
            let what = format!("the embedded gateway: no random bytes: {error}");
            let remedy = "check that getrandom(2) is permitted";
            Error::new(Stage::Gate, ErrorKind::Internal, what, remedy).caused_by(error)
        };
        let base_roots = base_roots(options.system_ca.as_ref(), options.inherited)?;
        let roots = match &options.target_ca {
            Some(file) => roots::with_further(&base_roots, file, "--upstream-ca")?,
            None => base_roots,
        };
        let directory = PrivateDirectory::create()
            .map_err(|error| failed("cannot create the private directory", error))?;
        let token = random::hex::<32>().map_err(&no_random)?;
        let session_id = format!("embedded-{}", *random::hex::<8>().map_err(&no_random)?);
        let session_id: SessionId = session_id
            .parse()
            .map_err(|error| failed("the session ID", io::Error::other(error)))?;
        write_token(&directory.token_file(), &token)
            .map_err(|error| failed("the token file", error))?;
        let credentials = Credentials {
            session_id: session_id.to_string(),
            token: Secret::from_zeroizing(token),
        };
        let cap = capacity::tunnels(options.limits.max_tunnels, true);
        let mut config = GatewayConfig::new(Sessions::single(credentials))
            .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .resolve(options.resolve)
            .require_tls(options.require_tls)
            // It dials from the client's own machine: it reaches nothing that the client could not
            // reach directly.
            .allow_private(true)
            .limits(|limits| *limits = options.limits);
        if let Some(patterns) = options.intercept {
            config = config.intercept(patterns);
        }
        let gateway = gateway::start(config, &roots, cap).map_err(|error| {
            Error::new(
                Stage::Gate,
                ErrorKind::InvalidSetting,
                format!("the embedded gateway: {error}"),
                "correct that setting",
            )
            .caused_by(error)
        })?;
        let base_url = gateway.base_url().parse();
        Ok(Self {
            base_url: base_url.map_err(|error| failed("the base URL", io::Error::other(error)))?,
            session_id,
            cap,
            gateway: Some(gateway),
            directory,
        })
    }

    /// Sets base URL, session and token file, and the bundle's path in the private directory unless
    /// a path is set.
    fn configure(&self, config: &mut Config) {
        config.when = When::Always;
        config.base_url = Some(self.base_url.clone());
        config.session_id = Some(self.session_id.clone());
        config.token = None;
        config.token_fd = None;
        config.keep_token = false;
        config.token_file = self.directory.token_file();
        config
            .ca_bundle
            .get_or_insert_with(|| self.directory.0.join("ca-bundle.crt"));
        config.upstream_ca = None;
        config.limits.max_tunnels = Some(self.cap);
        // Unusable values that these have replaced no longer matter.
        for setting in UPSTREAM_SETTINGS {
            config.record(setting, Source::Host, Ok(()));
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.shutdown(DRAIN);
        }
    }
}

/// How long the gateway's ends of tunnels get to finish after the relay has stopped.
const DRAIN: Duration = Duration::from_secs(1);

/// Starts a gateway: the server end for relays on other machines.
///
/// Blocks for file access, not for the network: it reads the root certificates, binds the address,
/// starts the threads and returns. It does not fail
/// open.
///
/// # Errors
/// A setting cannot be used, no root certificates are found, or the address cannot be bound.
///
/// # Example
/// ```
/// use std::net::{Ipv4Addr, SocketAddr};
/// use std::time::Duration;
///
/// use upstreamproxy::gateway::{GatewayConfig, Sessions};
/// use upstreamproxy::start_gateway;
///
/// let sessions = Sessions::parse("session-1 a-long-random-token")?;
/// let config =
///     GatewayConfig::new(sessions).listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
/// let gateway = start_gateway(config)?;
/// println!("serving {}", gateway.base_url());
/// gateway.shutdown(Duration::from_secs(10));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn start_gateway(config: GatewayConfig) -> Result<Gateway, GatewayError> {
    let roots = target_roots(&config).map_err(|error| GatewayError::new(error.to_string()))?;
    let cap = capacity::tunnels(config.limits.max_tunnels, false);
    let gateway = gateway::start(config, &roots, cap)?;
    // Hundreds of certificates were parsed and dropped.
    drop(roots);
    memory::give_back_heap();
    Ok(gateway)
}

/// The roots that verify targets, found as the relay finds its base roots.
fn target_roots(config: &GatewayConfig) -> Result<Vec<CertificateDer<'static>>, Error> {
    let base_roots = match base_roots(config.system_ca.as_ref(), None) {
        // An image without root certificates: only the CA in --target-ca is trusted.
        Err(error) if config.system_ca.is_none() && config.target_ca.is_some() => {
            log::debug!(
                "{}; targets are verified by --target-ca alone",
                error.what()
            );
            Vec::new()
        }
        Err(error) if config.system_ca.is_none() => {
            let remedy = "install its ca-certificates package, or name a PEM file of root certificates with SSL_CERT_FILE or --target-ca";
            return Err(Error::new(
                error.stage(),
                error.kind(),
                error.what(),
                remedy,
            ));
        }
        found => found?,
    };
    match &config.target_ca {
        Some(file) => roots::with_further(&base_roots, file, "--target-ca"),
        None => Ok(base_roots),
    }
}

/// The base roots, as the relay finds its own.
fn base_roots(
    system_ca: Option<&PathBuf>,
    inherited: Option<Environment>,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    roots::base_roots(&Config {
        system_ca: system_ca.cloned(),
        inherited: inherited.unwrap_or_else(Environment::of_process),
        ..Config::default()
    })
}

fn write_token(path: &Path, token: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all(token.as_bytes())
}

/// A directory that only this user can enter. Dropping it removes it with its contents.
#[derive(Debug)]
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn create() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("upstreamproxy-{}", *random::hex::<8>()?));
        // Created, never reused: if another user has created this name first, this fails.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn token_file(&self) -> PathBuf {
        self.0.join("session_token")
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            log::warn!(
                "the private directory {} was not removed: {error}; remove it by hand",
                self.0.display()
            );
        }
    }
}
