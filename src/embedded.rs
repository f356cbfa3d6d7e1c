//! Starting a gateway: inside the process of a relay, with a session, a token and a CA of its own,
//! or as a server for others.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::config::{Config, Environment, When};
use crate::control::log;
use crate::crypto::random;
use crate::crypto::secret::{Credentials, Secret};
use crate::error::{Error, ErrorKind, Stage};
use crate::gateway::{self, Gateway, GatewayConfig, Sessions};
use crate::setup::{capacity, hardening, roots};
use crate::sys::{files, memory};

/// How long the gateway's ends of tunnels get to finish after the relay has stopped.
const DRAIN: Duration = Duration::from_secs(1);

/// A gateway inside this process. Dropping it resets its open tunnels and removes its private
/// directory.
#[derive(Debug)]
pub(crate) struct Embedded {
    // Before the directory: the gateway must have stopped when its directory is removed.
    _gateway: Gateway,
    _directory: PrivateDirectory,
}

impl Embedded {
    /// Starts the gateway on loopback, and points `config` to it: base URL, session and token file,
    /// and the bundle's path in the private directory unless a path is set.
    ///
    /// # Errors
    /// No private directory, no randomness, or a setting that the gateway cannot use.
    pub(crate) fn start_for(config: &mut Config) -> Result<Self, Error> {
        if config.harden {
            // The token is generated here. If this fails, the token stage reports it.
            let _ = hardening::protect();
        }
        let failed = |kind, what: &str, error: io::Error, remedy| {
            let what = format!("the embedded gateway: {what}: {error}");
            Error::new(Stage::Gate, kind, what, remedy).caused_by(error)
        };
        let no_file = |error| {
            let remedy = "check that TMPDIR is a writable directory";
            failed(ErrorKind::Io, "no private directory", error, remedy)
        };
        let no_random = |error| {
            let remedy = "check that getrandom(2) is permitted";
            failed(ErrorKind::Internal, "no random bytes", error, remedy)
        };
        let roots = roots::connection_roots(config, &roots::base_roots(config)?)?;
        let directory = PrivateDirectory::create().map_err(no_file)?;
        let token = random::hex::<32>().map_err(no_random)?;
        let session_id = format!("embedded-{}", *random::hex::<8>().map_err(no_random)?);
        write_token(&directory.token_file(), &token).map_err(no_file)?;
        let credentials = Credentials {
            session_id: session_id.clone(),
            token: Secret::from_zeroizing(token),
        };
        let cap = capacity::tunnels(config.limits.max_tunnels, true);
        let settings = GatewayConfig::new(Sessions::single(credentials))
            .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .resolve(config.resolve.iter().cloned())
            .intercept(config.intercept.iter().cloned())
            .require_tls(config.require_tls)
            // It dials from the client's own machine: it reaches nothing that the client could not
            // reach directly.
            .allow_private(true)
            .parent_proxy(config.parent().unwrap_or_default())
            .limits(|limits| {
                *limits = config.limits;
                limits.drain_timeout = DRAIN;
            });
        let gateway = gateway::start(settings, &roots, cap)
            .map_err(|error| error.within(Stage::Gate, "the embedded gateway"))?;

        // Also: unusable values that these replace no longer matter.
        config.embedded = true;
        config.when = When::Always;
        config.base_url = gateway.base_url().parse().ok();
        config.session_id = session_id.parse().ok();
        config.token = None;
        config.token_fd = None;
        config.keep_token = false;
        config.token_file = directory.token_file();
        let bundle = || directory.0.join("ca-bundle.crt");
        config.ca_bundle.get_or_insert_with(bundle);
        config.upstream_ca = None;
        config.limits.max_tunnels = Some(cap);
        Ok(Self {
            _gateway: gateway,
            _directory: directory,
        })
    }
}

/// Starts a gateway: the server end for relays on other machines.
///
/// Blocks for file access, not for the network: it reads the root certificates, binds the address,
/// starts the threads and returns. It does not fail open.
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
pub fn start_gateway(config: GatewayConfig) -> Result<Gateway, Error> {
    let roots = target_roots(&config)
        .map_err(|error| error.within(Stage::Gateway, "targets cannot be verified"))?;
    let cap = capacity::tunnels(config.limits.max_tunnels, false);
    let gateway = gateway::start(config, &roots, cap)?;
    // Hundreds of certificates were parsed and dropped.
    drop(roots);
    memory::give_back_heap();
    Ok(gateway)
}

/// The roots that verify targets, found as the relay finds its base roots.
fn target_roots(config: &GatewayConfig) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = roots::base_roots(&Config {
        system_ca: config.system_ca.clone(),
        inherited: Environment::of_process(),
        ..Config::default()
    });
    let Some(file) = &config.target_ca else {
        return match found {
            // Only the TLS of intercepted targets is verified here.
            Err(error) if error.kind() == ErrorKind::NotFound && config.intercept.is_empty() => {
                Ok(Vec::new())
            }
            found => found,
        };
    };
    let base_roots = match found {
        // An image without root certificates: only the CA in `target_ca` is trusted.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            log::debug!("{}; targets are verified by target-ca alone", error.what());
            Vec::new()
        }
        found => found?,
    };
    roots::with_further(&base_roots, file, "target-ca (--target-ca)")
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
        // Processes of other users may belong to the session and read the bundle by its name. The
        // token file has a mode of its own.
        files::create_directory(&path, 0o711)?;
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
