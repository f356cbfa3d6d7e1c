//! `serve`: set up, print one JSON line when ready, serve until told to stop.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::error::Stage;
use crate::listener::ShutdownReport;
use crate::orchestrator::Handle;
use crossbeam_channel::Receiver;
use sd_notify::NotifyState;

use super::drain::{drain_down, notify};
use super::env::{json_object, json_string};
use super::resolve::Session;
use super::setup::{SetUp, set_up};
use super::signals::{Signal, Signals};
use super::state::{self, StateFile};
use super::{ExitStatus, fail, print};

/// Serves until a signal says stop.
pub(crate) fn run(session: Session) -> ExitStatus {
    let signals = Signals::orders(false);
    let require = session.require;
    let drain = session.config.limits.drain_timeout;
    let home = state::home(&session.config.inherited);
    match set_up(session, signals.receiver()) {
        SetUp::Enabled(handle) => {
            // An embedded gateway stops on this thread: its private directory is removed even if a second signal ends the
            // drain.
            let (handle, gateway) = handle.detach_gateway();
            let _state = announce(&handle, home.as_deref());
            notify(NotifyState::Ready);
            let abort = handle.abort();
            let status = until_stopped(
                signals.receiver(),
                drain,
                || abort.request(),
                move |deadline| handle.shutdown(deadline),
            );
            gateway.stop();
            log::info!("stopped");
            status
        }
        SetUp::Disabled { stage, reason } => {
            print(disabled_line(stage, &reason).as_bytes());
            if require {
                let sentence = format!("the proxy is required and disabled at {stage}: {reason}");
                return fail(&sentence, ExitStatus::DISABLED);
            }
            // Also then: what waits for us to be ready has nothing else to wait for.
            notify(NotifyState::Ready);
            ExitStatus::SUCCESS
        }
        // A stop that was asked for, and nothing had to be cut for it.
        SetUp::Interrupted(_) => ExitStatus::SUCCESS,
    }
}

/// Tells the world that we are ready: the state file, then standard output, so that who reads the line finds the file.
fn announce(handle: &Handle, home: Option<&Path>) -> Option<StateFile> {
    let line = Line {
        relay: handle.local_addr(),
        proxy: handle.proxy_url(),
        ca_bundle: handle.ca_bundle(),
        env: &handle.env(),
    };
    let state = if let Some(home) = home {
        keep_state(home, &line.state(handle.wgetrc()))
    } else {
        log::warn!("HOME is not an absolute path, so that `env` will not find this serve");
        None
    };
    print(line.ready().as_bytes());
    state
}

fn keep_state(home: &Path, line: &str) -> Option<StateFile> {
    let kept = StateFile::claim(home).and_then(|state| state.write(line).map(|()| state));
    match kept {
        Ok(state) => {
            if !state.is_first() {
                let path = state.path().display();
                log::warn!(
                    "another serve is running under this HOME; this one's state is in {path}"
                );
            }
            Some(state)
        }
        Err(error) => {
            log::warn!(
                "no state file could be kept, so that `env` will not find this serve: {error}"
            );
            None
        }
    }
}

/// Waits for the signal that says stop, then drains: 0 if all tunnels ended, 1 if some were cut, 128+n at a second signal.
fn until_stopped(
    signals: &Receiver<Signal>,
    drain: Duration,
    abort: impl Fn(),
    stop: impl FnOnce(Duration) -> ShutdownReport + Send + 'static,
) -> ExitStatus {
    while let Ok(signal) = signals.recv() {
        if signal.is_fatal() {
            break;
        }
    }
    drain_down(signals, drain, abort, |_| false, stop)
}

/// What is said about an enabled `serve`, in the order of the specification.
struct Line<'a> {
    relay: SocketAddr,
    proxy: &'a str,
    ca_bundle: &'a Path,
    env: &'a [(String, OsString)],
}

impl Line<'_> {
    fn fields(&self) -> String {
        format!(
            r#""enabled":true,"port":{},"ca_bundle":{},"pid":{},"env":{}"#,
            self.relay.port(),
            json_string(&self.ca_bundle.to_string_lossy()),
            std::process::id(),
            json_object(self.env)
        )
    }

    /// The line for standard output.
    fn ready(&self) -> String {
        format!("{{{}}}\n", self.fields())
    }

    /// The same for the state file, with what `env` needs beside.
    fn state(&self, wgetrc: Option<&Path>) -> String {
        let wgetrc = wgetrc.map_or("null".to_owned(), |p| json_string(&p.to_string_lossy()));
        format!(
            "{{{},\"relay\":\"{}\",\"proxy\":{},\"wgetrc\":{wgetrc}}}\n",
            self.fields(),
            self.relay,
            json_string(self.proxy)
        )
    }
}

fn disabled_line(stage: Stage, reason: &str) -> String {
    format!(
        "{{\"enabled\":false,\"stage\":{},\"reason\":{}}}\n",
        json_string(stage.name()),
        json_string(reason)
    )
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{bounded, unbounded};
    use signal_hook::consts::{SIGINT, SIGTERM};

    use super::*;

    fn signal(number: i32) -> Signal {
        Signal {
            number,
            from_kernel: false,
        }
    }

    #[test]
    fn the_ready_line_is_the_one_of_the_specification() {
        let env = [(
            "HTTPS_PROXY".to_owned(),
            OsString::from("http://127.0.0.1:7"),
        )];
        let line = Line {
            relay: SocketAddr::from(([127, 0, 0, 1], 7)),
            proxy: "http://127.0.0.1:7",
            ca_bundle: Path::new("/a \"b\""),
            env: &env,
        };
        let pid = std::process::id();
        assert_eq!(
            line.ready(),
            format!(
                "{{\"enabled\":true,\"port\":7,\"ca_bundle\":\"/a \\\"b\\\"\",\"pid\":{pid},\
                 \"env\":{{\"HTTPS_PROXY\":\"http://127.0.0.1:7\"}}}}\n"
            )
        );
        let state: serde_json::Value =
            serde_json::from_str(&line.state(Some(Path::new("/w")))).unwrap();
        assert_eq!(state["wgetrc"], "/w");
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

    #[test]
    fn a_drain_in_which_all_tunnels_ended_is_success_and_one_that_cut_is_not() {
        let (sender, signals) = unbounded();
        sender.send(signal(SIGTERM)).unwrap();
        let status = until_stopped(
            &signals,
            Duration::ZERO,
            || {},
            |_| ShutdownReport::default(),
        );
        assert_eq!(status, ExitStatus::SUCCESS);
        let cut = ShutdownReport {
            cut: 1,
            ..ShutdownReport::default()
        };
        sender.send(signal(SIGTERM)).unwrap();
        assert_eq!(
            until_stopped(&signals, Duration::ZERO, || {}, move |_| cut),
            ExitStatus::FAILED
        );
    }

    #[test]
    fn a_second_signal_ends_the_drain_at_once() {
        let (sender, signals) = unbounded();
        let (release, blocked) = bounded::<()>(0);
        sender.send(signal(SIGTERM)).unwrap();
        sender.send(signal(SIGINT)).unwrap();
        let status = until_stopped(
            &signals,
            Duration::from_secs(60),
            || {},
            move |_| {
                let _ = blocked.recv();
                ShutdownReport::default()
            },
        );
        assert_eq!(status, ExitStatus::new(130));
        drop(release);
    }
}
