//! The server end: the settings of `gateway` and of `--embedded`, and `gateway` to its end. It is not fail-open: what it
//! cannot use ends it. A build without the gateway has `no_gateway` in its place.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::config::{Config, Limits, UnusableSetting};
pub(crate) use crate::embedded::{Embedded, EmbeddedOptions};
use crate::embedded::{TargetOptions, start_gateway};
use crate::gateway::{Gateway, GatewayConfig, Sessions, TlsIdentity};
use crate::http::authority::Pattern;
use crate::net::resolver::Override;
pub(crate) use crate::orchestrator::start_embedded;
use sd_notify::NotifyState;
use signal_hook::consts::SIGHUP;
use zeroize::Zeroizing;

use super::args::UsageError;
use super::drain::{drain_down, notify};
use super::env::json_string;
use super::layers::Layers;
use super::options::{Opt, Subcommand};
use super::signals::{Signal, Signals};
use super::{ExitStatus, fail, print};

/// What is read of a certificate or key file: a chain of ten with long names is a tenth of it.
const PEM_LIMIT: usize = 1 << 20;
/// Where the gateway listens unless told otherwise.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// What `gateway` needs; its files are still to be read.
#[derive(Debug)]
pub(crate) struct GatewaySettings {
    pub(crate) listen: SocketAddr,
    pub(crate) allow_plaintext: bool,
    pub(crate) sessions: PathBuf,
    /// Certificate chain and key.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// The interception CA's certificate and key.
    pub(crate) ca: Option<(PathBuf, PathBuf)>,
    /// `None`: the library's default.
    pub(crate) intercept: Option<Vec<Pattern>>,
    pub(crate) target_ca: Option<PathBuf>,
    pub(crate) resolve: Vec<Override>,
    pub(crate) allow_private: bool,
    pub(crate) limits: Limits,
}

/// What the gateway of `--embedded` is told. It takes over what of `config` is about targets.
// A build without the gateway has none to tell.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn embedded(layers: &mut Layers<'_>, config: &mut Config) -> Option<EmbeddedOptions> {
    Some(EmbeddedOptions::from_environment(
        &layers.environment,
        config,
    ))
}

/// The gateway's settings. It is not fail-open: what it cannot use ends it, wherever it came from.
pub(crate) fn settings(mut layers: Layers<'_>) -> Result<GatewaySettings, UsageError> {
    let config = Config::from_environment(layers.environment.clone());
    let ours = |setting: &UnusableSetting| {
        Opt::of(Subcommand::Gateway).any(|opt| opt.variable() == setting.name)
    };
    layers
        .unusable
        .extend(config.unusable.iter().filter(|s| ours(s)).cloned());
    let path = |name: &str| layers.lookup(name).map(PathBuf::from);
    let pair = |first: &str, second: &str| match (path(first), path(second)) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (None, None) => Ok(None),
        _ => Err(layers.wrong(format!("--{first} and --{second} are given together"))),
    };
    let tls = pair("tls-cert", "tls-key")?;
    let ca = pair("ca-cert", "ca-key")?;
    let sessions = path("sessions").ok_or_else(|| {
        layers.wrong("--sessions is missing: a file with one `SESSION_ID TOKEN` a line")
    })?;
    let target_ca = path("target-ca");
    let listen = layers.lookup("listen").map_or(LISTEN, |_| config.listen);
    let reach = TargetOptions::from_environment(&layers.environment, &mut layers.unusable);
    let settings = GatewaySettings {
        listen,
        allow_plaintext: layers.switch("allow-plaintext"),
        sessions,
        tls,
        ca,
        intercept: reach.intercept,
        target_ca,
        resolve: reach.resolve,
        allow_private: layers.switch("allow-private"),
        limits: config.limits,
    };
    layers.refuse_any()?;
    let exposed = !listen.ip().is_loopback();
    if exposed && settings.tls.is_none() && !settings.allow_plaintext {
        return Err(layers.wrong(format!(
            "without TLS --listen {listen} would show tokens to the network; give --tls-cert and --tls-key, \
             or --allow-plaintext"
        )));
    }
    Ok(settings)
}

/// Serves until a signal says stop.
pub(crate) fn run(settings: GatewaySettings) -> ExitStatus {
    // SIGHUP means "read the sessions again", so that it is watched even where it was ignored, under nohup say.
    let signals = Signals::orders(true);
    if let Err(error) = crate::setup::hardening::protect() {
        log::warn!("others of this user can read the tokens in this process: {error}");
    }
    let sessions = settings.sessions.clone();
    let drain = settings.limits.drain_timeout;
    let gateway = match configure(settings)
        .and_then(|config| start_gateway(config).map_err(|error| error.to_string()))
    {
        Ok(gateway) => gateway,
        Err(sentence) => return fail(&sentence, ExitStatus::USAGE),
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
    // There is nobody left to let in, so that a reload in a drain has nothing to do.
    let reloads = |signal: Signal| signal.number == SIGHUP;
    let status = drain_down(
        signals.receiver(),
        drain,
        || abort.request(),
        reloads,
        move |deadline| gateway.shutdown(deadline),
    );
    log::info!("stopped");
    status
}

/// Reads the files that the settings name.
fn configure(settings: GatewaySettings) -> Result<GatewayConfig, String> {
    let identity = |(cert, key): (PathBuf, PathBuf)| {
        Ok::<_, String>(TlsIdentity {
            cert_pem: read_text(&cert)?.to_string(),
            key_pem: read_text(&key)?,
        })
    };
    let defaults = GatewayConfig::default();
    Ok(GatewayConfig {
        listen: settings.listen,
        allow_plaintext: settings.allow_plaintext,
        sessions: Sessions::load(&settings.sessions).map_err(|error| error.to_string())?,
        tls: settings.tls.map(identity).transpose()?,
        interception_ca: settings.ca.map(identity).transpose()?,
        intercept: settings.intercept.unwrap_or(defaults.intercept),
        target_ca: settings.target_ca,
        resolve: settings.resolve,
        allow_private: settings.allow_private,
        limits: settings.limits,
        ..defaults
    })
}

/// The whole file, in memory that is wiped: it may be a key. The room is taken at once, since growing would leave copies.
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
        .map_err(|_| format!("{} is not text; give a PEM file", path.display()))
}

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
        json_string(&gateway.local_addr().to_string()),
        json_string(&gateway.base_url()),
        std::process::id()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::args::{Asked, parse};
    use super::super::resolve::{self, Session, Task};
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn task(line: &str, variables: Variables<'_>) -> Result<Task, UsageError> {
        match parse(line.split_whitespace().map(Into::into)) {
            Ok(Asked::Work(typed)) => resolve::resolve(&typed, variables.iter().copied().collect()),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn session(line: &str, variables: Variables<'_>) -> Session {
        match task(line, variables) {
            Ok(Task::Run { session, .. } | Task::Doctor { session, .. }) => session,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn gateway(line: &str, variables: Variables<'_>) -> GatewaySettings {
        match task(line, variables) {
            Ok(Task::Gateway(settings)) => settings,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn embedded_takes_the_gateways_options_and_the_upstream_ca() {
        let session = session(
            "doctor --embedded --intercept none --resolve a.example:443:192.0.2.1 \
             --resolve b.example:443:192.0.2.1 --upstream-ca /ca --idle-timeout 9",
            &[],
        );
        let options = session.embedded.unwrap();
        assert_eq!(options.intercept, Some(Vec::new()));
        assert_eq!(options.resolve.len(), 2);
        assert_eq!(options.target_ca, Some(PathBuf::from("/ca")));
        assert_eq!(options.limits.idle_timeout, Duration::from_secs(9));
        assert_eq!(session.config.upstream_ca, None);
    }

    #[test]
    fn the_gateway_reads_flags_and_environment_alike() {
        let flags = gateway(
            "gateway --sessions /s --listen [::1]:0 --tls-cert /c --tls-key /k --ca-cert /cc --ca-key /ck \
             --intercept *.example.com --intercept a.example:8443 --target-ca /t --allow-private --keepalive 7s \
             --resolve a.example:443:192.0.2.1 --allow-plaintext",
            &[],
        );
        let inherited = gateway(
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
                // Of no concern to a gateway.
                ("UPSTREAMPROXY_WHEN", "garbage"),
            ],
        );
        assert_eq!(format!("{flags:?}"), format!("{inherited:?}"));
        assert_eq!(flags.intercept.map(|patterns| patterns.len()), Some(2));
        assert_eq!(gateway("gateway --sessions /s", &[]).listen, LISTEN);
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
            ("env", &[("UPSTREAMPROXY_FORMAT", "cobol")]),
            ("env --format cobol", &[]),
        ] {
            assert!(task(line, variables).is_err(), "{line} {variables:?}");
        }
    }

    #[test]
    fn never_wins_over_embedded() {
        assert!(
            session("run --when never --embedded x", &[])
                .embedded
                .is_none()
        );
        assert!(
            session("run --embedded x", &[("UPSTREAMPROXY_WHEN", "never")])
                .embedded
                .is_none()
        );
    }

    #[test]
    fn embedded_is_asked_for_by_flag_or_environment_and_speaks_louder() {
        let inherited = ("UPSTREAMPROXY_EMBEDDED", "yes");
        for session in [
            session("run --embedded x", &[]),
            session("run x", &[inherited]),
        ] {
            assert!(session.embedded.is_some());
        }
        let level = |line| task(line, &[]).unwrap().level(0);
        assert_eq!(level("run --embedded x"), log::LevelFilter::Info);
        assert_eq!(level("gateway --sessions /s"), log::LevelFilter::Info);
        assert_eq!(level("run x"), log::LevelFilter::Warn);
    }

    #[test]
    fn a_file_is_read_whole_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, vec![b'x'; PEM_LIMIT]).unwrap();
        assert_eq!(read(&path).unwrap().len(), PEM_LIMIT);
        std::fs::write(&path, vec![b'x'; PEM_LIMIT + 1]).unwrap();
        assert!(read(&path).unwrap_err().contains("over 1 MiB"));
        std::fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path).is_err());
        assert!(
            read(&folder.path().join("none"))
                .unwrap_err()
                .contains("none")
        );
    }
}
