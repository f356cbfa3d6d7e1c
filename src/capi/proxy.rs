//! One start and what came of it, shared by all threads of the host: up, off, stopping, stopped.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsString, c_int};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::codes::{
    ApiError, ERROR_FORKED, STATE_DISABLED, STATE_ENABLED, STATE_STOPPED, STATE_STOPPING, c_string,
};
use super::ffi::{Array, with_signals_blocked};
use super::logging;
use super::settings::Settings;
use crate::config::Environment;
use crate::control::metrics::{Counters, Stats};
use crate::control::stop::Abort;
use crate::error::Stage;
use crate::listener::ShutdownReport;
use crate::orchestrator::{Handle, Started, start, start_embedded};

/// What a start came to.
pub(super) struct Proxy {
    /// The process that it belongs to: in a fork of it the threads are missing.
    process: u32,
    outcome: Outcome,
    /// Our variables, as name and value.
    variables: Vec<(CString, CString)>,
    /// The whole environment of a child.
    environment: Array,
    phase: Mutex<Phase>,
    /// The phase has become `Stopped`.
    stopped: Condvar,
}

enum Outcome {
    On(On),
    Off { stage: CString, reason: CString },
}

/// What is known of a proxy that is up, and stays known when it is no more.
struct On {
    port: u16,
    url: CString,
    ca_bundle: CString,
    counters: Arc<Counters>,
    drain: Duration,
}

enum Phase {
    Disabled,
    Enabled(Box<Handle>),
    /// Some thread waits for the end; with the way to end that sooner, which goes when it has come.
    Stopping(Abort),
    Stopped(ShutdownReport),
}

impl Proxy {
    /// Goes through the stages. Whatever keeps them from ending well leaves a proxy that is off.
    pub(super) fn start(settings: &Settings) -> Self {
        let (config, embedded) = settings.resolved();
        let inherited = config.inherited.clone();
        let drain = config.limits.drain_timeout;
        // On a thread of its own, whose mask all others inherit: the caller's own signals reach it as ever.
        let thread = with_signals_blocked(|| {
            thread::Builder::new()
                .name("uproxy-setup".into())
                .spawn(move || match embedded {
                    Some(options) => start_embedded(&config, options),
                    None => start(&config),
                })
        });
        let (stage, reason) = match thread.map(thread::JoinHandle::join) {
            Ok(Ok(Started::Enabled(relay))) => return Self::on(relay, &inherited, drain),
            Ok(Ok(Started::Disabled(disabled))) => (disabled.stage(), disabled.reason()),
            Ok(Err(_)) => (
                Stage::Gate,
                "set-up panicked; report it with the panic's message".to_owned(),
            ),
            Err(error) => (
                Stage::Gate,
                format!(
                    "no thread could be started for set-up ({error}); raise the limit on processes"
                ),
            ),
        };
        Self::off(stage, reason, &inherited)
    }

    fn on(relay: Handle, inherited: &Environment, drain: Duration) -> Self {
        let ours = relay.env();
        let outcome = Outcome::On(On {
            port: relay.port(),
            url: c_string(relay.proxy_url()),
            ca_bundle: c_string(relay.ca_bundle().as_os_str().as_bytes()),
            counters: relay.counters(),
            drain,
        });
        Self::new(outcome, ours, inherited, Phase::Enabled(Box::new(relay)))
    }

    fn off(stage: Stage, reason: String, inherited: &Environment) -> Self {
        let outcome = Outcome::Off {
            stage: c_string(stage.name()),
            reason: c_string(reason),
        };
        Self::new(outcome, Vec::new(), inherited, Phase::Disabled)
    }

    fn new(
        outcome: Outcome,
        ours: Vec<(String, OsString)>,
        inherited: &Environment,
        phase: Phase,
    ) -> Self {
        let mut all: BTreeMap<OsString, OsString> = inherited
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        all.extend(
            ours.iter()
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
            variables: ours
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
            Phase::Disabled => STATE_DISABLED,
            Phase::Enabled(_) => STATE_ENABLED,
            Phase::Stopping(_) => STATE_STOPPING,
            Phase::Stopped(_) => STATE_STOPPED,
        }
    }

    /// The stage that was not satisfied, if it is off.
    pub(super) fn stage(&self) -> Option<&CStr> {
        match &self.outcome {
            Outcome::Off { stage, .. } => Some(stage),
            Outcome::On(_) => None,
        }
    }

    /// Why it is off.
    pub(super) fn reason(&self) -> Option<&CStr> {
        match &self.outcome {
            Outcome::Off { reason, .. } => Some(reason),
            Outcome::On(_) => None,
        }
    }

    fn if_on(&self) -> Option<&On> {
        match &self.outcome {
            Outcome::On(on) => Some(on),
            Outcome::Off { .. } => None,
        }
    }

    /// The relay's port; 0 if it is off.
    pub(super) fn port(&self) -> u16 {
        self.if_on().map_or(0, |on| on.port)
    }

    /// The relay's URL, unless it is off.
    pub(super) fn url(&self) -> Option<&CStr> {
        self.if_on().map(|on| on.url.as_c_str())
    }

    /// The merged bundle, unless it is off.
    pub(super) fn ca_bundle(&self) -> Option<&CStr> {
        self.if_on().map(|on| on.ca_bundle.as_c_str())
    }

    /// Our variables; none if it is off.
    pub(super) fn variables(&self) -> &[(CString, CString)] {
        &self.variables
    }

    /// The whole environment of a child: what was inherited, with ours over it.
    pub(super) fn environment(&self) -> &Array {
        &self.environment
    }

    /// The counters, whatever the phase.
    pub(super) fn stats(&self) -> Stats {
        self.if_on()
            .map_or_else(Stats::default, |on| on.counters.stats())
    }

    /// Ends at once what a shutdown gives time to, or would.
    pub(super) fn abort(&self) -> Result<(), ApiError> {
        self.is_ours()?;
        match &*self.phase() {
            Phase::Enabled(relay) => relay.abort().request(),
            Phase::Stopping(abort) => abort.request(),
            Phase::Disabled | Phase::Stopped(_) => {}
        }
        Ok(())
    }

    /// Stops it, and returns when that is done, also if another thread does it. `None`: the configured drain.
    pub(super) fn shutdown(&self, drain: Option<Duration>) -> Result<ShutdownReport, ApiError> {
        logging::outside()?;
        self.is_ours()?;
        let waited = self
            .stopped
            .wait_while(self.phase(), |phase| matches!(phase, Phase::Stopping(_)));
        let mut phase = waited.unwrap_or_else(PoisonError::into_inner);
        let stopping = match &*phase {
            Phase::Enabled(relay) => Phase::Stopping(relay.abort()),
            Phase::Stopped(report) => return Ok(*report),
            Phase::Disabled | Phase::Stopping(_) => return Ok(ShutdownReport::default()),
        };
        let Phase::Enabled(relay) = std::mem::replace(&mut *phase, stopping) else {
            return Ok(ShutdownReport::default());
        };
        drop(phase);
        let drain = drain
            .or_else(|| self.if_on().map(|on| on.drain))
            .unwrap_or_default();
        // A panic in it must not leave others waiting for the end.
        let report = catch_unwind(AssertUnwindSafe(|| relay.shutdown(drain))).unwrap_or_default();
        *self.phase() = Phase::Stopped(report);
        self.stopped.notify_all();
        Ok(report)
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error in a fork: the threads to wait for are not there, and the descriptors are the parent's too.
    fn is_ours(&self) -> Result<(), ApiError> {
        if self.process == std::process::id() {
            return Ok(());
        }
        Err(ApiError::new(
            ERROR_FORKED,
            "this is a fork of the process that started the proxy; stop it there",
        ))
    }
}
