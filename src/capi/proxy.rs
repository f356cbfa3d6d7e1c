//! The result of a start, shared by all threads of the host: enabled, disabled, stopping, stopped.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsString, c_int};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::codes::{
    ApiError, ERROR_FORKED, STATE_DISABLED, STATE_ENABLED, STATE_STOPPED, STATE_STOPPING, c_string,
};
use super::ffi::Array;
use super::logging;
use crate::config::{Config, Environment};
use crate::control::metrics::{Stats, StatsReader};
use crate::control::stop::Abort;
use crate::error::Stage;
use crate::listener::ShutdownReport;
use crate::orchestrator::{Handle, Started, start};
use crate::sys::signal_mask::with_signals_blocked;

/// The result of a start.
pub(super) struct Proxy {
    /// The process that it belongs to. A fork of it does not have the threads.
    process: u32,
    outcome: StartResult,
    /// The variables for children, as name and value.
    variables: Vec<(CString, CString)>,
    /// The complete environment for a child.
    environment: Array,
    phase: Mutex<ProxyState>,
    /// Notified when the phase becomes `Stopped`.
    stopped: Condvar,
}

enum StartResult {
    Enabled(Enabled),
    Disabled { stage: CString, reason: CString },
}

/// What is known about an enabled proxy, also after it was stopped.
struct Enabled {
    port: u16,
    url: CString,
    ca_bundle: CString,
    stats: StatsReader,
    drain: Duration,
}

enum ProxyState {
    Disabled,
    Enabled(Box<Handle>),
    /// A thread waits for the shutdown, which can be ended early.
    Stopping(Abort),
    Stopped(ShutdownReport),
}

impl Proxy {
    /// Runs the stages. If one of them fails, the proxy is disabled.
    pub(super) fn start(config: Config) -> Self {
        let inherited = config.inherited.clone();
        let drain = config.limits.drain_timeout;
        // All threads of the library inherit this mask, so the handlers of the host run on the
        // threads of the host.
        let thread = with_signals_blocked(|| {
            thread::Builder::new()
                .name("uproxy-setup".into())
                .spawn(move || start(&config))
        });
        let (stage, reason) = match thread.map(thread::JoinHandle::join) {
            Ok(Ok(Started::Enabled(relay))) => return Self::new_enabled(relay, &inherited, drain),
            Ok(Ok(Started::Disabled(disabled))) => (disabled.stage(), disabled.reason()),
            Ok(Err(_)) => (
                Stage::Gate,
                "set-up panicked; report it with the message of the panic".to_owned(),
            ),
            Err(error) => (
                Stage::Gate,
                format!("cannot start a thread for set-up: {error}; raise the limit on processes"),
            ),
        };
        Self::new_disabled(stage, reason, &inherited)
    }

    fn new_enabled(relay: Handle, inherited: &Environment, drain: Duration) -> Self {
        let variables = relay.env();
        let outcome = StartResult::Enabled(Enabled {
            port: relay.port(),
            url: c_string(relay.proxy_url()),
            ca_bundle: c_string(relay.ca_bundle().as_os_str().as_bytes()),
            stats: relay.stats_reader(),
            drain,
        });
        Self::new(
            outcome,
            variables,
            inherited,
            ProxyState::Enabled(Box::new(relay)),
        )
    }

    fn new_disabled(stage: Stage, reason: String, inherited: &Environment) -> Self {
        let outcome = StartResult::Disabled {
            stage: c_string(stage.name()),
            reason: c_string(reason),
        };
        Self::new(outcome, Vec::new(), inherited, ProxyState::Disabled)
    }

    fn new(
        outcome: StartResult,
        variables: Vec<(String, OsString)>,
        inherited: &Environment,
        phase: ProxyState,
    ) -> Self {
        let mut all: BTreeMap<OsString, OsString> = inherited
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        all.extend(
            variables
                .iter()
                .map(|(name, value)| (name.into(), value.clone())),
        );
        let entry = |(mut entry, value): (OsString, OsString)| {
            entry.push("=");
            entry.push(value);
            c_string(entry.into_vec())
        };
        Self {
            process: std::process::id(),
            outcome,
            variables: variables
                .into_iter()
                .map(|(name, value)| (c_string(name), c_string(value.into_vec())))
                .collect(),
            environment: Array::new(all.into_iter().map(entry).collect()),
            phase: Mutex::new(phase),
            stopped: Condvar::new(),
        }
    }

    /// One of the `STATE_` codes.
    pub(super) fn state(&self) -> c_int {
        match *self.phase() {
            ProxyState::Disabled => STATE_DISABLED,
            ProxyState::Enabled(_) => STATE_ENABLED,
            ProxyState::Stopping(_) => STATE_STOPPING,
            ProxyState::Stopped(_) => STATE_STOPPED,
        }
    }

    /// The stage that failed, if it is disabled.
    pub(super) fn stage(&self) -> Option<&CStr> {
        match &self.outcome {
            StartResult::Disabled { stage, .. } => Some(stage),
            StartResult::Enabled(_) => None,
        }
    }

    /// Why it is disabled.
    pub(super) fn reason(&self) -> Option<&CStr> {
        match &self.outcome {
            StartResult::Disabled { reason, .. } => Some(reason),
            StartResult::Enabled(_) => None,
        }
    }

    fn enabled(&self) -> Option<&Enabled> {
        match &self.outcome {
            StartResult::Enabled(enabled) => Some(enabled),
            StartResult::Disabled { .. } => None,
        }
    }

    /// The port of the relay; 0 if it is disabled.
    pub(super) fn port(&self) -> u16 {
        self.enabled().map_or(0, |enabled| enabled.port)
    }

    /// The URL of the relay, unless it is disabled.
    pub(super) fn url(&self) -> Option<&CStr> {
        self.enabled().map(|enabled| enabled.url.as_c_str())
    }

    /// The merged bundle, unless it is disabled.
    pub(super) fn ca_bundle(&self) -> Option<&CStr> {
        self.enabled().map(|enabled| enabled.ca_bundle.as_c_str())
    }

    /// The variables for children; none if it is disabled.
    pub(super) fn variables(&self) -> &[(CString, CString)] {
        &self.variables
    }

    /// The complete environment for a child: the inherited one with the variables.
    pub(super) fn environment(&self) -> &Array {
        &self.environment
    }

    /// The counters, in every phase.
    pub(super) fn stats(&self) -> Stats {
        self.enabled()
            .map_or_else(Stats::default, |enabled| enabled.stats.read())
    }

    /// Cuts every open tunnel, also during a shutdown.
    pub(super) fn abort(&self) -> Result<(), ApiError> {
        self.refuse_in_fork()?;
        match &*self.phase() {
            ProxyState::Enabled(relay) => relay.abort().request(),
            ProxyState::Stopping(abort) => abort.request(),
            ProxyState::Disabled | ProxyState::Stopped(_) => {}
        }
        Ok(())
    }

    /// Stops it, and returns when it is stopped, also if another thread stops it. `None`: the
    /// configured drain timeout.
    pub(super) fn shutdown(&self, drain: Option<Duration>) -> Result<ShutdownReport, ApiError> {
        logging::refuse_in_callback()?;
        self.refuse_in_fork()?;
        let waited = self.stopped.wait_while(self.phase(), |phase| {
            matches!(phase, ProxyState::Stopping(_))
        });
        let mut phase = waited.unwrap_or_else(PoisonError::into_inner);
        let stopping = match &*phase {
            ProxyState::Enabled(relay) => ProxyState::Stopping(relay.abort()),
            ProxyState::Stopped(report) => return Ok(*report),
            ProxyState::Disabled | ProxyState::Stopping(_) => return Ok(ShutdownReport::default()),
        };
        let ProxyState::Enabled(relay) = std::mem::replace(&mut *phase, stopping) else {
            return Ok(ShutdownReport::default());
        };
        drop(phase);
        let drain = drain
            .or_else(|| self.enabled().map(|enabled| enabled.drain))
            .unwrap_or_default();
        // After a panic other threads must not wait forever.
        let report = catch_unwind(AssertUnwindSafe(|| relay.shutdown(drain))).unwrap_or_default();
        *self.phase() = ProxyState::Stopped(report);
        self.stopped.notify_all();
        Ok(report)
    }

    fn phase(&self) -> MutexGuard<'_, ProxyState> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error in a fork: it does not have the threads, and shares the descriptors with the
    /// parent.
    fn refuse_in_fork(&self) -> Result<(), ApiError> {
        if self.process == std::process::id() {
            return Ok(());
        }
        Err(ApiError::new(
            ERROR_FORKED,
            "this process is a fork; stop the proxy in the process that started it",
        ))
    }
}
