//! `gateway`: the server end. It does not fail open: a setting that it cannot use ends it.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::embedded::start_gateway;
use crate::gateway::{Gateway, GatewayConfig, Sessions, TlsIdentity};
use sd_notify::NotifyState;
use signal_hook::consts::SIGHUP;
use zeroize::Zeroizing;

use super::drain::{drain, notify};
use super::exit_status::ExitStatus;
use super::json;
use super::options::Options;
use super::output::{fail, print};
use super::signals::{Signal, Signals};

/// The largest certificate or key file. A chain of ten certificates with long names is a tenth of it.
const PEM_LIMIT: usize = 1 << 20;
/// The default address of the gateway.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// The values of the options that only `gateway` has. Its files are not read yet.
#[derive(Debug)]
pub(crate) struct GatewayOptions {
    pub(crate) listen: SocketAddr,
    pub(crate) allow_plaintext: bool,
    pub(crate) sessions: Option<PathBuf>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) ca_cert: Option<PathBuf>,
    pub(crate) ca_key: Option<PathBuf>,
    pub(crate) target_ca: Option<PathBuf>,
    pub(crate) allow_private: bool,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            listen: LISTEN,
            allow_plaintext: false,
            sessions: None,
            tls_cert: None,
            tls_key: None,
            ca_cert: None,
            ca_key: None,
            target_ca: None,
            allow_private: false,
        }
    }
}

impl GatewayOptions {
    /// What is wrong with the options together.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.sessions.is_none() {
            return Err(
                "--sessions is missing: a file with one `SESSION_ID TOKEN` per line".to_owned(),
            );
        }
        for (cert, key, name) in [
            (&self.tls_cert, &self.tls_key, "tls"),
            (&self.ca_cert, &self.ca_key, "ca"),
        ] {
            if cert.is_some() != key.is_some() {
                return Err(format!("--{name}-cert and --{name}-key require each other"));
            }
        }
        let listen = self.listen;
        if !listen.ip().is_loopback() && self.tls_cert.is_none() && !self.allow_plaintext {
            return Err(format!(
                "without TLS --listen {listen} would expose tokens to the network; add --tls-cert and \
                 --tls-key, or --allow-plaintext"
            ));
        }
        Ok(())
    }
}

/// Serves until a signal requests a stop.
pub(crate) fn run(options: Options) -> ExitStatus {
    // SIGHUP means "read the sessions again", so it is handled even if it was ignored, as under nohup.
    let signals = Signals::stop_requests(true);
    if let Err(error) = crate::setup::hardening::protect() {
        log::warn!("other processes of this user can read the tokens in this process: {error}");
    }
    let sessions = options.gateway.sessions.clone().unwrap_or_default();
    let drain_timeout = options.config.limits.drain_timeout;
    let gateway = match configure(options, &sessions)
        .and_then(|config| start_gateway(config).map_err(|error| error.to_string()))
    {
        Ok(gateway) => gateway,
        Err(error) => return fail(&error, ExitStatus::USAGE),
    };
    print(ready_line(&gateway).as_bytes());
    notify(NotifyState::Ready);
    while let Ok(signal) = signals.receiver().recv() {
        if signal.number == SIGHUP {
            reload(&gateway, &sessions);
        } else if signal.is_fatal() {
            break;
        }
    }
    let abort = gateway.abort();
    // A drain accepts no new relays, so there is nothing to reload for.
    let is_reload = |signal: Signal| signal.number == SIGHUP;
    let status = drain(
        signals.receiver(),
        drain_timeout,
        || abort.request(),
        is_reload,
        move |deadline| gateway.shutdown(deadline),
    );
    log::info!("stopped");
    status
}

/// Reads the files that the options name.
fn configure(options: Options, sessions: &Path) -> Result<GatewayConfig, String> {
    let Options {
        config, gateway, ..
    } = options;
    let identity = |cert: Option<PathBuf>, key: Option<PathBuf>| {
        let Some((cert, key)) = cert.zip(key) else {
            return Ok(None);
        };
        Ok::<_, String>(Some(TlsIdentity {
            cert_pem: read_text(&cert)?.to_string(),
            key_pem: read_text(&key)?,
        }))
    };
    let defaults = GatewayConfig::default();
    Ok(GatewayConfig {
        listen: gateway.listen,
        allow_plaintext: gateway.allow_plaintext,
        sessions: Sessions::load(sessions).map_err(|error| error.to_string())?,
        tls: identity(gateway.tls_cert, gateway.tls_key)?,
        interception_ca: identity(gateway.ca_cert, gateway.ca_key)?,
        intercept: config.intercept.unwrap_or(defaults.intercept),
        target_ca: gateway.target_ca,
        resolve: config.resolve,
        allow_private: gateway.allow_private,
        limits: config.limits,
        ..defaults
    })
}

/// Reads a whole file into memory that is wiped when dropped, because it may be a key. The memory is allocated at
/// once: growing it would leave copies.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let failed = |error: &dyn std::fmt::Display| {
        format!("{} cannot be read: {error}; check the path", path.display())
    };
    let mut bytes = Zeroizing::new(vec![0; PEM_LIMIT + 1]);
    let mut file = File::open(path).map_err(|error| failed(&error))?;
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read(room) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    if filled > PEM_LIMIT {
        return Err(failed(&"it is over 1 MiB"));
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, String> {
    let bytes = read(path)?;
    std::str::from_utf8(&bytes)
        .map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| format!("{} is not text; name a PEM file", path.display()))
}

/// Reads the sessions again. If that fails, the old ones stay valid.
fn reload(gateway: &Gateway, sessions: &Path) {
    match Sessions::load(sessions) {
        Ok(sessions) => {
            gateway.replace_sessions(sessions);
            log::info!("the sessions were read again");
        }
        Err(error) => log::warn!("the old sessions are kept: {error}"),
    }
}

fn ready_line(gateway: &Gateway) -> String {
    format!(
        "{{\"listening\":{},\"base_url\":{},\"pid\":{}}}\n",
        json::string(&gateway.local_addr().to_string()),
        json::string(&gateway.base_url()),
        std::process::id()
    )
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::time::Duration;

    use super::super::args::{Invocation, UsageError, parse};
    use super::*;
    use crate::embedded::EmbeddedOptions;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn resolve(line: &str, variables: Variables<'_>) -> Result<Options, UsageError> {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(Invocation::Subcommand(arguments)) => {
                Options::resolve(&arguments, &variables.iter().copied().collect())
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn embedded_takes_the_gateways_options_and_the_upstream_ca() {
        let line = "doctor --embedded --intercept none --resolve a.example:443:192.0.2.1 \
             --resolve b.example:443:192.0.2.1 --upstream-ca /ca --idle-timeout 9";
        let config = resolve(line, &[]).unwrap().config;
        let options = EmbeddedOptions::from_config(&config);
        assert_eq!(options.intercept, Some(Vec::new()));
        assert_eq!(options.resolve.len(), 2);
        assert_eq!(options.target_ca, Some(PathBuf::from("/ca")));
        assert_eq!(options.limits.idle_timeout, Duration::from_secs(9));
    }

    #[test]
    fn the_gateway_reads_flags_and_environment_alike() {
        let flags = resolve(
            "gateway --sessions /s --listen [::1]:0 --tls-cert /c --tls-key /k --ca-cert /cc --ca-key /ck \
             --intercept *.example.com --intercept a.example:8443 --target-ca /t --allow-private --keepalive 7s \
             --resolve a.example:443:192.0.2.1 --allow-plaintext",
            &[],
        );
        let inherited = resolve(
            "gateway",
            &[
                ("UPSTREAMPROXY_SESSIONS", "/s"),
                ("UPSTREAMPROXY_LISTEN", "[::1]:0"),
                ("UPSTREAMPROXY_TLS_CERT", "/c"),
                ("UPSTREAMPROXY_TLS_KEY", "/k"),
                ("UPSTREAMPROXY_CA_CERT", "/cc"),
                ("UPSTREAMPROXY_CA_KEY", "/ck"),
                ("UPSTREAMPROXY_INTERCEPT", "*.example.com a.example:8443"),
                ("UPSTREAMPROXY_TARGET_CA", "/t"),
                ("UPSTREAMPROXY_ALLOW_PRIVATE", "true"),
                ("UPSTREAMPROXY_KEEPALIVE", "7s"),
                ("UPSTREAMPROXY_RESOLVE", "a.example:443:192.0.2.1"),
                ("UPSTREAMPROXY_ALLOW_PLAINTEXT", "1"),
                // Not an option of a gateway.
                ("UPSTREAMPROXY_WHEN", "garbage"),
            ],
        );
        let shown = |options: Result<Options, UsageError>| {
            let Options {
                gateway, config, ..
            } = options.unwrap();
            assert_eq!(config.intercept.as_ref().map(Vec::len), Some(2));
            format!(
                "{gateway:?} {:?} {:?} {:?}",
                config.intercept, config.resolve, config.limits
            )
        };
        assert_eq!(shown(flags), shown(inherited));
        let default = resolve("gateway --sessions /s", &[]).unwrap();
        assert_eq!(default.gateway.listen, LISTEN);
    }

    #[test]
    fn a_gateway_is_not_fail_open() {
        for (line, variables) in [
            ("gateway", &[][..]),
            ("gateway --sessions /s --tls-cert /c", &[]),
            ("gateway --sessions /s --listen 0.0.0.0:1", &[]),
            ("gateway --sessions /s --intercept ..", &[]),
            ("gateway --sessions /s", &[("UPSTREAMPROXY_LISTEN", "x")]),
            ("gateway --sessions /s", &[("UPSTREAMPROXY_KEEPALIVE", "x")]),
            ("gateway --sessions /s", &[("UPSTREAMPROXY_RESOLVE", "x")]),
        ] {
            assert!(resolve(line, variables).is_err(), "{line} {variables:?}");
        }
    }

    #[test]
    fn never_wins_over_embedded() {
        for (line, variables) in [
            ("run --when never --embedded x", &[][..]),
            ("run --embedded x", &[("UPSTREAMPROXY_WHEN", "never")]),
        ] {
            let config = resolve(line, variables).unwrap().config;
            assert!(!config.wants_embedded(), "{line}");
        }
    }

    #[test]
    fn a_flag_or_a_variable_requests_the_embedded_gateway() {
        for (line, variables) in [
            ("run --embedded x", &[][..]),
            ("run x", &[("UPSTREAMPROXY_EMBEDDED", "yes")]),
        ] {
            let config = resolve(line, variables).unwrap().config;
            assert!(config.wants_embedded(), "{line}");
        }
    }

    #[test]
    fn a_file_is_read_whole_up_to_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, vec![b'x'; PEM_LIMIT]).unwrap();
        assert_eq!(read(&path).unwrap().len(), PEM_LIMIT);
        std::fs::write(&path, vec![b'x'; PEM_LIMIT + 1]).unwrap();
        assert!(read(&path).unwrap_err().contains("over 1 MiB"));
        std::fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path).is_err());
        assert!(
            read(&directory.path().join("none"))
                .unwrap_err()
                .contains("none")
        );
    }
}
