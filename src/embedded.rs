//! A gateway inside the process, with a session, a token and a CA of its own, so that the whole lifecycle can run with no
//! upstream at hand; and the gateway by itself, for those who serve others.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::config::{Config, Environment, Limits, Reader, UnusableSetting, When};
use crate::crypto::random;
use crate::crypto::secret::{Credentials, Secret};
use crate::error::Error;
use crate::error::Stage;
use crate::gateway::{self, Gateway, GatewayConfig, GatewayError, Sessions};
use crate::http::authority::Pattern;
use crate::net::resolver::Override;
use crate::setup::{ca, capacity};
use crate::sys::memory;

/// What the embedded gateway can be told.
#[derive(Clone, Debug, Default)]
pub struct EmbeddedOptions {
    /// Whose TLS is intercepted; `None`: everybody's on port 443.
    pub intercept: Option<Vec<Pattern>>,
    /// Names whose addresses are fixed, as curl's `--resolve`.
    pub resolve: Vec<Override>,
    /// A PEM file of further roots for verifying targets.
    pub target_ca: Option<PathBuf>,
    /// The PEM file of base roots for verifying targets; `None`: the inherited `SSL_CERT_FILE`, else the distribution's.
    pub system_ca: Option<PathBuf>,
    /// Where `SSL_CERT_FILE` is inherited from; `None`: this process' environment.
    pub inherited: Option<Environment>,
    /// Bounds in count and time.
    pub limits: Limits,
}

impl EmbeddedOptions {
    /// What `environment` and `config` say of an embedded gateway. The roots of `config` are for its targets then; what
    /// cannot be used is added to [`Config::unusable`].
    pub fn from_environment(environment: &Environment, config: &mut Config) -> Self {
        let TargetOptions { intercept, resolve } =
            TargetOptions::from_environment(environment, &mut config.unusable);
        Self {
            intercept,
            resolve,
            target_ca: config.upstream_ca.take(),
            system_ca: config.system_ca.clone(),
            inherited: Some(environment.clone()),
            limits: config.limits,
        }
    }
}

/// What every gateway can be told by an environment: whose TLS it intercepts, and where it finds them.
#[derive(Clone, Debug, Default)]
pub struct TargetOptions {
    /// `UPSTREAMPROXY_INTERCEPT`: patterns, or `none` alone. `None`: the gateway's default.
    pub intercept: Option<Vec<Pattern>>,
    /// `UPSTREAMPROXY_RESOLVE`: names whose addresses are fixed.
    pub resolve: Vec<Override>,
}

impl TargetOptions {
    /// Reads both; what cannot be used is added to `unusable`.
    pub fn from_environment(
        environment: &Environment,
        unusable: &mut Vec<UnusableSetting>,
    ) -> Self {
        let mut reader = Reader::new(environment);
        let mut reach = Self::default();
        reader.value(
            "UPSTREAMPROXY_INTERCEPT",
            |text| parse_intercept(text).map(Some),
            &mut reach.intercept,
        );
        reader.value("UPSTREAMPROXY_RESOLVE", parse_resolve, &mut reach.resolve);
        unusable.append(&mut reader.unusable);
        reach
    }
}

/// Patterns with blanks between, or `none` alone: among others it would pass for the name of a host.
fn parse_intercept(text: &str) -> Result<Vec<Pattern>, &'static str> {
    const EXPECTED: &str = "a pattern such as example.com, *.example.com:443 or *, or none alone";
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        ["none"] => Ok(Vec::new()),
        _ if words.contains(&"none") => Err(EXPECTED),
        _ => parse_each(&words, EXPECTED),
    }
}

/// Addresses for names, with blanks between.
fn parse_resolve(text: &str) -> Result<Vec<Override>, &'static str> {
    let words: Vec<&str> = text.split_whitespace().collect();
    parse_each(&words, "HOST:PORT:ADDR such as example.com:443:192.0.2.1")
}

/// At least one word, each a `T`.
fn parse_each<T: FromStr>(words: &[&str], expected: &'static str) -> Result<Vec<T>, &'static str> {
    let values: Option<Vec<T>> = words.iter().map(|word| word.parse().ok()).collect();
    values.filter(|values| !values.is_empty()).ok_or(expected)
}

/// A gateway inside this process. Dropping it cuts what is still open and removes its private folder.
#[derive(Debug)]
pub struct Embedded {
    base_url: String,
    session_id: String,
    cap: usize,
    // Before the folder, so that the gateway has ended when its folder goes.
    gateway: Option<Gateway>,
    folder: PrivateDirectory,
}

impl Embedded {
    /// Starts the gateway on loopback, and writes its token where [`Self::configure`] says.
    ///
    /// # Errors
    /// No private folder, no randomness, or a setting that the gateway cannot use.
    pub fn start(options: EmbeddedOptions) -> Result<Self, Error> {
        let failed = |what: &str, error: io::Error| {
            Error::new(
                Stage::Gate,
                format!("the embedded gateway: {what}: {error}"),
                "see that TMPDIR is a folder that can be written to",
            )
        };
        let base_roots = base_roots(options.system_ca.as_ref(), options.inherited)?;
        let roots = match &options.target_ca {
            Some(file) => ca::with_further(&base_roots, file, "--upstream-ca")?,
            None => base_roots,
        };
        let folder =
            PrivateDirectory::create().map_err(|error| failed("no private folder", error))?;
        let token = random::hex::<32>().map_err(|error| failed("no randomness", error))?;
        let session_id = format!(
            "embedded-{}",
            *random::hex::<8>().map_err(|error| failed("no randomness", error))?
        );
        write_token(&folder.token_file(), &token)
            .map_err(|error| failed("the token file", error))?;
        let credentials = Credentials {
            session_id: session_id.clone(),
            token: Secret::new(token),
        };
        let cap = capacity::tunnels(options.limits.max_tunnels, true);
        let config = GatewayConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            sessions: Sessions::single(credentials),
            intercept: options
                .intercept
                .unwrap_or_else(|| vec![Pattern::any_on(443)]),
            resolve: options.resolve,
            // It dials from where the client itself stands: nothing is reached that was out of reach before.
            allow_private: true,
            limits: options.limits,
            ..GatewayConfig::default()
        };
        let gateway = gateway::start(config, &roots, cap).map_err(|error| {
            Error::new(
                Stage::Gate,
                format!("the embedded gateway: {error}"),
                "mend that setting",
            )
        })?;
        Ok(Self {
            base_url: gateway.base_url(),
            session_id,
            cap,
            gateway: Some(gateway),
            folder,
        })
    }

    /// Turns `config` to this gateway: base URL, session, token file, and the bundle in the private folder unless it has a
    /// place already.
    pub fn configure(&self, config: &mut Config) {
        config.when = When::Always;
        config.base_url = Some(self.base_url.clone());
        config.session_id = Some(self.session_id.clone());
        config.token_file = self.folder.token_file();
        config
            .ca_bundle
            .get_or_insert_with(|| self.folder.0.join("ca-bundle.crt"));
        config.upstream_ca = None;
        config.limits.max_tunnels = Some(self.cap);
    }

    /// Gives what is still open a moment to end, cuts the rest, ends the gateway, and removes the private folder.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.shutdown(AFTERMATH);
        }
    }
}

/// What the gateway's side of a tunnel gets that the relay, which goes first, has just ended.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Starts a gateway.
///
/// # Errors
/// A setting that cannot be used, or an address that cannot be listened on: the gateway is not fail-open.
pub fn start_gateway(config: GatewayConfig) -> Result<Gateway, GatewayError> {
    let roots = target_roots(&config).map_err(|error| GatewayError::new(error.to_string()))?;
    let cap = capacity::tunnels(config.limits.max_tunnels, false);
    let gateway = gateway::start(config, &roots, cap)?;
    // Hundreds of certificates have come and gone.
    drop(roots);
    memory::give_back_heap();
    Ok(gateway)
}

/// Whom the gateway trusts when it verifies targets: found as the relay finds its base roots.
fn target_roots(config: &GatewayConfig) -> Result<Vec<CertificateDer<'static>>, Error> {
    let base_roots = match base_roots(config.system_ca.as_ref(), None) {
        // An image with nothing else in it: who is named is trusted, and nobody else.
        Err(error) if config.system_ca.is_none() && config.target_ca.is_some() => {
            log::debug!(
                "{}; targets are verified by --target-ca alone",
                error.what()
            );
            Vec::new()
        }
        Err(error) if config.system_ca.is_none() => {
            let remedy = "install its ca-certificates package, or name a PEM file of root certificates with SSL_CERT_FILE or --target-ca";
            return Err(Error::new(error.stage(), error.what(), remedy));
        }
        found => found?,
    };
    match &config.target_ca {
        Some(file) => ca::with_further(&base_roots, file, "--target-ca"),
        None => Ok(base_roots),
    }
}

/// The base roots, as the relay finds its own.
fn base_roots(
    system_ca: Option<&PathBuf>,
    inherited: Option<Environment>,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    ca::base_roots(&Config {
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

/// A folder that only this user can enter, removed with all that is in it.
#[derive(Debug)]
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn create() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("upstreamproxy-{}", *random::hex::<8>()?));
        // Made, never found: whoever guessed the name first gets an error of ours, not our token.
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
                "the private folder {} stays behind: {error}; remove it by hand",
                self.0.display()
            );
        }
    }
}
