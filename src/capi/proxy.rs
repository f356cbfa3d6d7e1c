//! The result of a start, shared by all threads of the host: enabled, disabled, stopping, stopped.

use std::ffi::{CString, OsStr, OsString, c_int};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::codes::{
    ApiError, DISABLED, ERROR_FORKED, OK, STATE_DISABLED, STATE_ENABLED, STATE_STOPPED,
    STATE_STOPPING, c_string,
};
use super::ffi::Array;
use super::logging;
use crate::config::{Config, Environment};
use crate::control::metrics::{Stats, StatsReader};
use crate::control::stop::Abort;
use crate::crypto::secret::Secret;
use crate::error::Stage;
use crate::listener::ShutdownReport;
use crate::orchestrator::{Handle, Started, start};
use crate::sys::signal_mask::with_signals_blocked;

/// The result of a start. What it contains stays valid after it was stopped.
pub(super) struct Proxy {
    /// The process that it belongs to. A fork of it does not have the threads.
    process: u32,
    /// The stage that failed, if it is disabled.
    pub(super) stage: Option<CString>,
    /// Why it is disabled.
    pub(super) reason: Option<CString>,
    /// The port of the relay; 0 if it is disabled.
    pub(super) port: u16,
    /// The URL of the relay, unless it is disabled.
    pub(super) url: Option<CString>,
    /// The merged bundle, unless it is disabled.
    pub(super) ca_bundle: Option<CString>,
    /// The variables for children, as name and value; none if it is disabled.
    pub(super) variables: Vec<(CString, CString)>,
    /// The complete environment for a child: the inherited one with the variables.
    pub(super) environment: Array,
    stats: Option<StatsReader>,
    /// The configured drain timeout.
    drain: Duration,
    phase: Mutex<ProxyState>,
    /// Notified when the phase becomes `Stopped`.
    stopped: Condvar,
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
            Ok(Ok(Started::Enabled(relay))) => {
                return Self {
                    port: relay.port(),
                    url: Some(c_string(relay.proxy_url())),
                    ca_bundle: Some(c_string(relay.ca_bundle().as_os_str().as_bytes())),
                    stats: Some(relay.stats_reader()),
                    ..Self::new(
                        relay.env(),
                        &inherited,
                        drain,
                        ProxyState::Enabled(Box::new(relay)),
                    )
                };
            }
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
        Self {
            stage: Some(c_string(stage.name())),
            reason: Some(c_string(reason)),
            ..Self::new(Vec::new(), &inherited, drain, ProxyState::Disabled)
        }
    }

    fn new(
        variables: Vec<(String, OsString)>,
        inherited: &Environment,
        drain: Duration,
        phase: ProxyState,
    ) -> Self {
        let mut all = inherited.clone();
        for (name, value) in &variables {
            all.set(name, value);
        }
        let entry = |(name, value): (&OsStr, &OsStr)| {
            c_string([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let variable =
            |(name, value): (String, OsString)| (c_string(name), c_string(value.into_vec()));
        Self {
            process: std::process::id(),
            stage: None,
            reason: None,
            port: 0,
            url: None,
            ca_bundle: None,
            environment: Array::new(all.iter().map(entry).collect()),
            variables: variables.into_iter().map(variable).collect(),
            stats: None,
            drain,
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

    /// The counters, in every phase.
    pub(super) fn stats(&self) -> Stats {
        self.stats
            .as_ref()
            .map(StatsReader::read)
            .unwrap_or_default()
    }

    /// Replaces the token of the relay.
    pub(super) fn replace_token(&self, token: Secret) -> Result<c_int, ApiError> {
        self.refuse_in_fork()?;
        match &*self.phase() {
            ProxyState::Enabled(relay) => {
                relay.use_token(token);
                Ok(OK)
            }
            _ => Ok(DISABLED),
        }
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
        let drain = drain.unwrap_or(self.drain);
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
