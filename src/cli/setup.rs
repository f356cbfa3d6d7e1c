//! Set-up for the subcommands. A signal interrupts it at once, and nothing stays half done.
//!
//! The blocking work runs on its own thread, while this thread waits for the result or a signal. A
//! signal cancels set-up ([`Cancel`]): from then on it changes nothing, even if it is in the middle
//! of the CA download. It gets a short time to finish a write; then the process exits, whether
//! set-up has returned or not.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::config::{Cancel, Config};
use crate::error::Stage;
use crate::orchestrator::{Handle, OwnedGateway, Started, start};
use crate::probe::options::{ProbeOptions, RunningServe};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};

use super::exit_status::ExitStatus;
use super::output::fail;
use super::program_options::Options;
use super::signals::{ENDING, Signal, Signals, stop_self};
use super::state;

/// How long set-up may continue after it was cancelled: enough for one small file, and too short to
/// be noticed.
const GRACE: Duration = Duration::from_millis(500);

/// The result of set-up.
// There is one value per process: its size does not matter.
#[allow(clippy::large_enum_variant)]
pub(crate) enum SetUp {
    /// The relay is running.
    Enabled(Handle),
    /// A stage did not succeed. It was logged, unless a switch is off.
    Disabled {
        /// The stage.
        stage: Stage,
        /// What failed and what to do, in one sentence.
        reason: String,
    },
    /// A signal arrived first. The token file still exists, unless it was already deleted.
    Interrupted(Signal),
}

/// Does the `work` of `doctor` or `bench` with the settings, in front of the embedded gateway if it
/// is requested, until a signal arrives.
pub(crate) fn probe<T: Send + 'static>(
    options: Options,
    work: impl FnOnce(&Config, &ProbeOptions) -> T + Send + 'static,
) -> Result<T, Interrupted> {
    let signals = Signals::watch(ENDING);
    let mut config = options.config;
    let own_origin = config.uses_embedded_gateway();
    let gateway = OwnedGateway::start_for(&mut config)
        .map_err(|error| Interrupted::Failed(error.to_string()))?;
    let home = config.inherited.home().filter(|_| !own_origin);
    let running = home.and_then(|home| state::running(&home));
    if let Some(running) = &running {
        running.configure(&mut config);
    }
    let probe = ProbeOptions {
        target: options.target,
        own_origin: own_origin || running.as_ref().is_some_and(RunningServe::is_embedded),
        running,
    };
    let cancel = config.cancel.clone();
    let done = until_signal(signals.receiver(), &cancel, move || work(&config, &probe));
    gateway.stop();
    done
}

/// Runs the stages of the lifecycle until a signal arrives.
pub(crate) fn set_up(config: Config, signals: &Receiver<Signal>) -> SetUp {
    let cancel = config.cancel.clone();
    match until_signal(signals, &cancel, move || start(&config)) {
        Ok(Started::Enabled(handle)) => SetUp::Enabled(handle),
        Ok(Started::Disabled(disabled)) => SetUp::Disabled {
            stage: disabled.stage(),
            reason: disabled.reason(),
        },
        Err(Interrupted::Signal(signal)) => SetUp::Interrupted(signal),
        Err(Interrupted::Failed(reason)) => {
            log::warn!("disabled at {}: {reason}", Stage::Gate);
            SetUp::Disabled {
                stage: Stage::Gate,
                reason,
            }
        }
    }
}

/// Why work ended without a result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Interrupted {
    /// A fatal signal arrived.
    Signal(Signal),
    /// The thread could not be started, or panicked: what failed, and what to do.
    Failed(String),
}

impl Interrupted {
    /// The status to exit with. A failure is printed.
    pub(crate) fn status(self) -> ExitStatus {
        match self {
            Self::Signal(signal) => ExitStatus::of_signal(signal),
            Self::Failed(error) => fail(&error, ExitStatus::FAILED),
        }
    }
}

/// Does `work` on its own thread, and abandons it when a fatal signal arrives.
pub(crate) fn until_signal<T: Send + 'static>(
    signals: &Receiver<Signal>,
    cancel: &Cancel,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Interrupted> {
    // If the receiver is gone, dropping the result tears down what was set up.
    let (worker, result) = on_thread("uproxy-setup", work).map_err(|error| {
        Interrupted::Failed(format!(
            "cannot start a thread: {error}; raise the limit on processes"
        ))
    })?;
    let signal = loop {
        select! {
            recv(signals) -> signal => match signal {
                Ok(signal) if signal.is_fatal() => break signal,
                Ok(signal) if signal.is_terminal_stop() => stop_self(),
                _ => {}
            },
            recv(result) -> done => {
                let _ = worker.join();
                let done = done.map_err(|_| {
                    let what = "the work of this command panicked; report it with the message of the panic";
                    Interrupted::Failed(what.to_owned())
                })?;
                // A signal that arrived at the same time wins: nothing was reported yet.
                return match signals.try_iter().find(|signal| signal.is_fatal()) {
                    Some(signal) => Err(Interrupted::Signal(signal)),
                    None => Ok(done),
                };
            }
        }
    };
    cancel.request();
    match result.recv_timeout(GRACE) {
        Ok(done) => drop(done),
        Err(RecvTimeoutError::Timeout) => log::debug!("set-up is still blocked and is abandoned"),
        Err(RecvTimeoutError::Disconnected) => {}
    }
    Err(Interrupted::Signal(signal))
}

/// Does `work` on another thread, and sends its result.
pub(crate) fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<(JoinHandle<()>, Receiver<T>)> {
    let (sender, result) = bounded(1);
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || drop(sender.send(work())))?;
    Ok((thread, result))
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{never, unbounded};
    use signal_hook::consts::{SIGTERM, SIGWINCH};

    use super::*;

    #[test]
    fn work_that_ends_returns_its_result() {
        let done = until_signal(&never(), &Cancel::default(), || 7);
        assert_eq!(done, Ok(7));
    }

    #[test]
    fn a_signal_abandons_blocked_work_and_cancels_it() {
        let (sender, signals) = unbounded();
        let (release, blocked) = bounded::<()>(0);
        let cancel = Cancel::default();
        sender.send(Signal::of_process(SIGWINCH)).unwrap();
        sender.send(Signal::of_process(SIGTERM)).unwrap();
        let left = until_signal(&signals, &cancel, move || {
            let _ = blocked.recv();
        });
        assert_eq!(left, Err(Interrupted::Signal(Signal::of_process(SIGTERM))));
        assert!(cancel.is_requested());
        drop(release);
    }

    #[test]
    fn what_was_set_up_after_a_signal_is_dropped() {
        struct Up(crossbeam_channel::Sender<()>);
        impl Drop for Up {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (sender, signals) = unbounded();
        let (dropped, was_dropped) = unbounded();
        sender.send(Signal::of_process(SIGTERM)).unwrap();
        let left = until_signal(&signals, &Cancel::default(), move || Up(dropped));
        assert!(matches!(left, Err(Interrupted::Signal(_))));
        assert_eq!(was_dropped.try_recv(), Ok(()));
    }

    #[test]
    fn a_panic_is_reported_and_goes_no_further() {
        let left = until_signal(&never(), &Cancel::default(), || -> u8 {
            panic!("on purpose")
        });
        assert!(matches!(left, Err(Interrupted::Failed(_))));
    }
}
