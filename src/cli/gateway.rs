//! `gateway`: the server end. It does not fail open: a setting that it cannot use ends it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;

use crate::crypto::secret::Secret;
use crate::embedded::start_gateway;
use crate::gateway::{Gateway, GatewayConfig, Sessions, TlsIdentity};
use crate::sys::files::{ReadError, read_limited};
use sd_notify::NotifyState;
use serde::Serialize;
use signal_hook::consts::SIGHUP;
use zeroize::Zeroizing;

use super::drain::{drain, notify};
use super::exit_status::ExitStatus;
use super::output::{fail, json_line, print};
use super::program_options::Options;
use super::signals::{Signal, Signals};

/// The largest certificate or key file. A chain of ten certificates with long names is a tenth of
/// it.
const PEM_LIMIT: usize = 1 << 20;

/// Serves until a signal requests a stop.
pub(crate) fn run(options: Options) -> ExitStatus {
    // SIGHUP means "read the sessions again", so it is handled even if it was ignored, as under
    // nohup.
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
    let ready = ReadyLine {
        listening: gateway.local_addr(),
        base_url: gateway.base_url(),
        pid: std::process::id(),
    };
    print(json_line(&ready).as_bytes());
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
    let sessions = Sessions::load(sessions).map_err(|error| error.to_string())?;
    let mut settings = GatewayConfig::new(sessions)
        .listen(gateway.listen())
        .allow_plaintext(gateway.allow_plaintext)
        .parent_proxy(config.explicit_parent())
        .resolve(config.resolve)
        .require_tls(config.require_tls)
        .intercept(config.intercept)
        .allow_private(gateway.allow_private)
        .limits(|limits| *limits = config.limits);
    if let Some((cert, key)) = gateway.tls_cert.zip(gateway.tls_key) {
        settings = settings.tls(identity(&cert, &key)?);
    }
    if let Some((cert, key)) = gateway.ca_cert.zip(gateway.ca_key) {
        settings = settings.interception_ca(identity(&cert, &key)?);
    } else if !settings.intercept.is_empty() {
        log::warn!(
            target: "upstreamproxy::gateway",
            "the interception CA is new at each start: relays that run during a restart must start \
             again; set --ca-cert and --ca-key to keep it"
        );
    }
    if let Some(file) = gateway.target_ca {
        settings = settings.target_ca(file);
    }
    Ok(settings)
}

/// Reads a certificate and its key.
fn identity(cert: &Path, key: &Path) -> Result<TlsIdentity, String> {
    let (cert_pem, key_pem) = (read_text(cert)?, read_text(key)?);
    Ok(TlsIdentity::from_secret(cert_pem.expose(), key_pem))
}

/// Reads a whole file, which may be a private key. A FIFO is accepted, for example a process
/// substitution of the shell.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    File::open(path)
        .map_err(ReadError::Io)
        .and_then(|file| read_limited(&file, PEM_LIMIT))
        .map_err(|error| format!("{} cannot be read: {error}; check the path", path.display()))
}

fn read_text(path: &Path) -> Result<Secret, String> {
    let mut bytes = read(path)?;
    Secret::try_from(std::mem::take(&mut *bytes))
        .map_err(|_| format!("{} is not text; name a PEM file", path.display()))
}

/// Reads the sessions again. If that fails, the old ones stay valid.
fn reload(gateway: &Gateway, sessions: &Path) {
    match Sessions::load(sessions) {
        Ok(sessions) => {
            gateway.replace_sessions(sessions);
            log::info!(target: gateway.log_source().target(), "the sessions were read again");
        }
        Err(error) => {
            log::warn!(target: gateway.log_source().target(), "the old sessions are kept: {error}");
        }
    }
}

/// The report about a running gateway, with its keys in the documented order.
#[derive(Serialize)]
struct ReadyLine {
    listening: SocketAddr,
    base_url: String,
    pid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_up_to_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, vec![b'x'; PEM_LIMIT]).unwrap();
        assert_eq!(read(&path).unwrap().len(), PEM_LIMIT);
        std::fs::write(&path, vec![b'x'; PEM_LIMIT + 1]).unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .contains("larger than 1048576 bytes")
        );
        std::fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path).is_err());
        assert!(
            read(&directory.path().join("none"))
                .unwrap_err()
                .contains("none")
        );
    }
}
