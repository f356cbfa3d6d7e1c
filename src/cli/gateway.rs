//! `gateway`: the server end. It does not fail open: a setting that it cannot use ends it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::embedded::start_gateway;
use crate::gateway::{Gateway, GatewayConfig, Sessions};
use crate::setup::capacity;
use crossbeam_channel::{select, tick};
use serde::Serialize;
use signal_hook::consts::SIGHUP;

use super::drain::drain;
use super::exit_status::ExitStatus;
use super::identity_files::RenewableFiles;
use super::output::{fail, json_line, print};
use super::program_options::Options;
use super::service_manager::{Service, ServiceManager};
use super::signals::{Signal, Signals};
use super::socket_activation;

/// How often the files of certificates are compared with what was read. Programs that renew them
/// send no signal.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
/// How often a certificate that expires soon is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

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
    let capacity = capacity::of_this_process(options.config.limits.max_tunnels, false);
    let mut manager = ServiceManager::of(&options.config.inherited);
    let mut files = RenewableFiles::of(&options.gateway);
    let gateway = match configure(options, &sessions, &mut files)
        .and_then(|config| start_gateway(config).map_err(|error| error.to_string()))
    {
        Ok(gateway) => gateway,
        Err(error) => return fail(&error, ExitStatus::USAGE),
    };
    let ready = ReadyLine {
        listening: gateway.local_addr(),
        base_url: gateway.base_url(),
        pid: std::process::id(),
        max_tunnels: capacity.tunnels,
        max_tunnels_reason: capacity.reason,
    };
    print(json_line(&ready).as_bytes());
    manager.ready(Service {
        address: gateway.local_addr(),
        stats: gateway.stats_reader(),
        liveness: gateway.liveness(),
    });
    let mut reported = Instant::now();
    let (ticks, renewals) = (manager.ticks(), tick(RENEWAL_INTERVAL));
    loop {
        select! {
            recv(signals.receiver()) -> signal => match signal {
                Ok(signal) if signal.number == SIGHUP => manager.reload(|| {
                    reload(&gateway, &sessions);
                    files.renew(&gateway);
                }),
                Ok(signal) if !signal.is_fatal() => {}
                _ => break,
            },
            recv(ticks) -> _ => manager.tick(),
            recv(renewals) -> _ => {
                files.renew(&gateway);
                if reported.elapsed() >= REPORT_INTERVAL {
                    reported = Instant::now();
                    gateway.report_validity();
                }
            }
        }
    }
    let abort = gateway.abort();
    // A drain accepts no new relays, so there is nothing to reload for.
    let is_reload = |signal: Signal| signal.number == SIGHUP;
    let status = drain(
        &mut manager,
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
fn configure(
    options: Options,
    sessions: &Path,
    files: &mut RenewableFiles,
) -> Result<GatewayConfig, String> {
    let Options {
        config, gateway, ..
    } = options;
    let socket = socket_activation::take(&config.inherited).map_err(|error| error.to_string())?;
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
    if let Some((socket, address)) = socket {
        settings = settings.listen(address);
        settings.socket = Some(socket);
    }
    if let Some(identity) = files.tls()? {
        settings = settings.tls(identity);
    }
    if let Some(identity) = files.ca()? {
        settings = settings.interception_ca(identity);
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
    max_tunnels: usize,
    max_tunnels_reason: &'static str,
}
