//! `serve`: set up, print one JSON line when ready, serve until a signal requests a stop.

use std::borrow::Cow;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;

use crate::error::Stage;
use crate::orchestrator::Handle;
use crate::probe::options::RunningUpstream;
use crate::setup::capacity::{self, Capacity};
use crate::setup::child_env::ChildEnv;
use serde::Serialize;
use signal_hook::consts::SIGHUP;

use super::drain::drain;
use super::env::Variables;
use super::exit_status::ExitStatus;
use super::output::{fail, json_line, print};
use super::program_options::Options;
use super::service_manager::{Service, ServiceManager};
use super::setup::{SetUp, set_up};
use super::signals::{Signal, Signals};
use super::socket_activation;
use super::state::StateFile;
use super::token_watch::{Event, TokenWatch};

/// Serves until a signal requests a stop.
pub(crate) fn run(options: Options) -> ExitStatus {
    let Options {
        mut config,
        require,
        ..
    } = options;
    socket_activation::apply_to(&mut config);
    let mut manager = ServiceManager::of(&config.inherited);
    // SIGHUP means "read the token again", so it is handled even if it was ignored, as under nohup.
    let signals = Signals::stop_requests(true);
    let terminal = has_terminal();
    let mut token = TokenWatch::new(&config);
    let drain_timeout = config.limits.drain_timeout;
    let embedded = config.uses_embedded_gateway();
    let capacity = capacity::of_this_process(config.limits.max_tunnels, embedded);
    let home = config.inherited.home();
    match set_up(config, signals.receiver()) {
        SetUp::Enabled(handle) => {
            // An embedded gateway stops on this thread: its private directory is removed even if a
            // second signal ends the drain.
            let (handle, gateway) = handle.detach_gateway();
            let _state = announce(&handle, embedded, capacity, home.as_deref());
            manager.ready(Service {
                address: handle.local_addr(),
                stats: handle.stats_reader(),
                liveness: handle.liveness(),
            });
            let abort = handle.abort();
            token.follow(&handle);
            let ticks = manager.ticks();
            while let Some(event) = token.next_event(signals.receiver(), &ticks, &handle) {
                match event {
                    Event::Tick => manager.tick(),
                    Event::Signal(signal) if is_reload(signal) && has_terminal() == terminal => {
                        manager.reload(|| token.reload(&handle));
                    }
                    Event::Signal(signal) if signal.is_fatal() => break,
                    Event::Signal(_) => {}
                }
            }
            let status = drain(
                &mut manager,
                signals.receiver(),
                drain_timeout,
                || abort.request(),
                is_reload,
                move |deadline| handle.shutdown(deadline),
            );
            gateway.stop();
            log::info!("stopped");
            status
        }
        SetUp::Disabled { stage, reason } => {
            print(disabled_line(stage, &reason).as_bytes());
            if require {
                let error = format!("the proxy is required, but disabled at {stage}: {reason}");
                return fail(&error, ExitStatus::DISABLED);
            }
            manager.disabled(&format!("at {stage}: {reason}"));
            ExitStatus::SUCCESS
        }
        // The stop was requested, and no tunnel had to be cut.
        SetUp::Interrupted(_) => ExitStatus::SUCCESS,
    }
}

/// Announces that the relay is ready: first the state file, then standard output, so that a reader
/// of the line finds the file.
fn announce(
    handle: &Handle,
    embedded: bool,
    capacity: Capacity,
    home: Option<&Path>,
) -> Option<StateFile> {
    let env = handle.env();
    let mut report = ReadyLine {
        enabled: true,
        port: handle.port(),
        ca_bundle: handle.ca_bundle().to_string_lossy(),
        pid: std::process::id(),
        max_tunnels: capacity.tunnels,
        max_tunnels_reason: capacity.reason,
        env: Variables(&env),
        state: None,
    };
    let ready = json_line(&report);
    let state = if let Some(home) = home {
        report.state = Some(StateKeys {
            relay: handle.local_addr(),
            upstream: running_upstream(handle, embedded),
            child_env: handle.child_env(),
        });
        write_state(home, &json_line(&report))
    } else {
        log::warn!("HOME is not an absolute path; `env` cannot find this serve");
        None
    };
    print(ready.as_bytes());
    state
}

fn running_upstream(handle: &Handle, embedded: bool) -> RunningUpstream {
    let (base_url, session_id) = handle.upstream();
    RunningUpstream {
        base_url,
        session_id,
        embedded,
    }
}

fn write_state(home: &Path, line: &str) -> Option<StateFile> {
    let state = StateFile::claim(home).and_then(|state| state.write(line).map(|()| state));
    match state {
        Ok(state) => {
            if !state.is_first() {
                let path = state.path().display();
                log::warn!(
                    "another serve is running under this HOME; the state of this one is in {path}"
                );
            }
            Some(state)
        }
        Err(error) => {
            log::warn!("cannot write a state file: {error}; `env` cannot find this serve");
            None
        }
    }
}

/// Whether the signal requests that the token is read again: a SIGHUP that a process sends. The
/// kernel sends it when the terminal is closed.
fn is_reload(signal: Signal) -> bool {
    signal.number == SIGHUP && !signal.from_kernel
}

/// Whether this process has a controlling terminal. A shell sends SIGHUP to its jobs when the
/// terminal was closed, and then they have none.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// The report about a running `serve`, with its keys in the documented order.
#[derive(Serialize)]
struct ReadyLine<'a> {
    enabled: bool,
    port: u16,
    ca_bundle: Cow<'a, str>,
    pid: u32,
    max_tunnels: usize,
    max_tunnels_reason: &'a str,
    env: Variables<'a>,
    #[serde(flatten)]
    state: Option<StateKeys<'a>>,
}

/// What `env` and `doctor` need in addition, in the state file.
#[derive(Serialize)]
struct StateKeys<'a> {
    relay: SocketAddr,
    upstream: RunningUpstream,
    #[serde(flatten)]
    child_env: &'a ChildEnv,
}

/// The report if the proxy is disabled.
#[derive(Serialize)]
struct DisabledLine<'a> {
    enabled: bool,
    stage: &'a str,
    reason: &'a str,
}

fn disabled_line(stage: Stage, reason: &str) -> String {
    json_line(&DisabledLine {
        enabled: false,
        stage: stage.name(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::setup::tool_files::ToolFile;

    #[test]
    fn the_ready_line_has_the_documented_form() {
        let env = [(
            "HTTPS_PROXY".to_owned(),
            OsString::from("http://127.0.0.1:7"),
        )];
        let mut report = ReadyLine {
            enabled: true,
            port: 7,
            ca_bundle: "/a \"b\"".into(),
            pid: std::process::id(),
            max_tunnels: 12,
            max_tunnels_reason: "default",
            env: Variables(&env),
            state: None,
        };
        let pid = std::process::id();
        assert_eq!(
            json_line(&report),
            format!(
                "{{\"enabled\":true,\"port\":7,\"ca_bundle\":\"/a \\\"b\\\"\",\"pid\":{pid},\
                 \"max_tunnels\":12,\"max_tunnels_reason\":\"default\",\
                 \"env\":{{\"HTTPS_PROXY\":\"http://127.0.0.1:7\"}}}}\n"
            )
        );
        let child_env = ChildEnv {
            proxy: "http://127.0.0.1:7".into(),
            bundle: "/b".into(),
            files: vec![ToolFile::Wgetrc],
            npm_roots: false,
            omitted: Vec::new(),
        };
        report.state = Some(StateKeys {
            relay: SocketAddr::from(([127, 0, 0, 1], 7)),
            upstream: RunningUpstream {
                base_url: "http://127.0.0.1:8".to_owned(),
                session_id: "s-1".to_owned(),
                embedded: true,
            },
            child_env: &child_env,
        });
        let state: serde_json::Value = serde_json::from_str(&json_line(&report)).unwrap();
        assert_eq!(state["files"][0], "Wgetrc");
        assert_eq!(state["upstream"]["session_id"], "s-1");
        assert_eq!(state["port"], 7);
        assert_eq!(state["relay"], "127.0.0.1:7");
    }

    #[test]
    fn the_disabled_line_names_stage_and_reason() {
        assert_eq!(
            disabled_line(Stage::Token, "no \"file\""),
            "{\"enabled\":false,\"stage\":\"token\",\"reason\":\"no \\\"file\\\"\"}\n"
        );
    }
}
