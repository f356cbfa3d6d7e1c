//! `gateway`: the server end, from its settings to its end. It is not fail-open: what it cannot use ends it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sd_notify::NotifyState;
use signal_hook::consts::SIGHUP;
use upstreamproxy::{Gateway, GatewayConfig, Sessions, TlsIdentity, start_gateway};
use zeroize::Zeroizing;

use super::env::json_string;
use super::resolve::GatewaySettings;
use super::serve::{drain_down, notify};
use super::signals::{Signal, Signals};
use super::{ExitStatus, fail, print};

/// What is read of a certificate or key file: a chain of ten with long names is a tenth of it.
const PEM_LIMIT: usize = 1 << 20;

/// Serves until a signal says stop.
pub(crate) fn run(settings: GatewaySettings) -> ExitStatus {
    // SIGHUP means "read the sessions again", so that it is watched even where it was ignored, under nohup say.
    let signals = Signals::orders(true);
    if let Err(error) = upstreamproxy::protect() {
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
    let mut config = GatewayConfig::default();
    config.listen = settings.listen;
    config.allow_plaintext = settings.allow_plaintext;
    config.sessions = Sessions::load(&settings.sessions).map_err(|error| error.to_string())?;
    let identity = |(cert, key): (PathBuf, PathBuf)| {
        Ok::<_, String>(TlsIdentity {
            cert_pem: read_text(&cert)?.to_string(),
            key_pem: read_text(&key)?,
        })
    };
    config.tls = settings.tls.map(identity).transpose()?;
    config.interception_ca = settings.ca.map(identity).transpose()?;
    if let Some(patterns) = settings.intercept {
        config.intercept = patterns;
    }
    config.target_ca = settings.target_ca;
    config.resolve = settings.resolve;
    config.allow_private = settings.allow_private;
    config.limits = settings.limits;
    Ok(config)
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
        json_string(&gateway.address().to_string()),
        json_string(&gateway.base_url()),
        std::process::id()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
