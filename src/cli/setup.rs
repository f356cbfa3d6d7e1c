//! Set-up as the subcommands need it: it can be left at once when a signal comes, and nothing stays half done.
//!
//! The blocking work runs on a thread of its own while this one waits for its result or for a signal. A signal calls
//! set-up off ([`Cancel`]): from then on it changes nothing more, be it ever so late in the CA download that it blocks in.
//! It gets a moment to finish what it was just writing; then the process ends, whether it is back or not.

use std::time::Duration;

use crate::config::{Cancel, Config};
use crate::error::Stage;
use crate::http::authority::Authority;
use crate::orchestrator::{Handle, Started, start};
use crate::probe::options::ProbeOptions;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};

use super::gateway::{Embedded, start_embedded};
use super::resolve::Session;
use super::signals::{Signal, stop_ourselves};
use super::{ExitStatus, fail, state};

/// How long set-up may go on after it was called off: enough for one small file, too short to be felt.
const GRACE: Duration = Duration::from_millis(500);

/// What became of set-up.
// One value a process: its size costs nothing.
#[allow(clippy::large_enum_variant)]
pub(crate) enum SetUp {
    /// The relay is running.
    Enabled(Handle),
    /// A stage was not satisfied. The log has said so where there was something to say.
    Disabled {
        /// Which.
        stage: Stage,
        /// One sentence: what, and the remedy.
        reason: String,
    },
    /// A signal came first. The token file is there unless it was burnt.
    Interrupted(Signal),
}

/// What those who look and change nothing begin with: the settings, the gateway of our own if the session asks for one, and what
/// stands around them.
///
/// # Errors
/// That gateway cannot be started, which has been said.
pub(crate) fn looked_at(
    session: Session,
    target: Option<Authority>,
) -> Result<(Config, Option<Embedded>, ProbeOptions), ExitStatus> {
    let mut config = session.config;
    let embedded = match session.embedded {
        Some(options) => Some(
            Embedded::start_for(&mut config, options)
                .map_err(|error| fail(&error.to_string(), ExitStatus::FAILED))?,
        ),
        None => None,
    };
    let about = ProbeOptions {
        target,
        own_origin: embedded.is_some(),
        running: match &embedded {
            Some(_) => None,
            None => state::home(&config.inherited).and_then(|home| state::living(&home)),
        },
    };
    Ok((config, embedded, about))
}

/// Runs the lifecycle's stages, in front of an embedded gateway if the session asks for one.
pub(crate) fn set_up(session: Session, signals: &Receiver<Signal>) -> SetUp {
    let Session {
        config, embedded, ..
    } = session;
    let cancel = config.cancel.clone();
    match unless_signalled(signals, &cancel, move || match embedded {
        Some(options) => start_embedded(&config, options),
        None => start(&config),
    }) {
        Ok(Started::Enabled(handle)) => SetUp::Enabled(handle),
        Ok(Started::Disabled(disabled)) => SetUp::Disabled {
            stage: disabled.stage(),
            reason: disabled.reason(),
        },
        Err(Left::Signal(signal)) => SetUp::Interrupted(signal),
        Err(Left::Broken(what)) => {
            log::warn!("disabled at {}: {what}", Stage::Gate);
            SetUp::Disabled {
                stage: Stage::Gate,
                reason: what,
            }
        }
    }
}

/// Why work was left before it had a result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// A signal that ends us came.
    Signal(Signal),
    /// Its thread could not be started, or panicked: what happened, and what to do.
    Broken(String),
}

/// Does `work` on a thread of its own, and leaves it when a signal comes that would have ended us.
pub(crate) fn unless_signalled<T: Send + 'static>(
    signals: &Receiver<Signal>,
    cancel: &Cancel,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Left> {
    let (sender, result) = bounded(1);
    let worker = std::thread::Builder::new()
        .name("uproxy-setup".into())
        .spawn(move || {
            // Nobody waits any more: what was set up is taken down by its drop.
            let _ = sender.send(work());
        })
        .map_err(|error| {
            Left::Broken(format!(
                "no thread could be started for set-up ({error}); raise the limit on processes"
            ))
        })?;
    let signal = loop {
        select! {
            recv(signals) -> signal => match signal {
                Ok(signal) if signal.is_fatal() => break signal,
                Ok(signal) if signal.is_terminal_stop() => stop_ourselves(),
                _ => {}
            },
            recv(result) -> done => {
                let _ = worker.join();
                let done = done.map_err(|_| {
                    Left::Broken("set-up ended with a panic; please report it with its message".into())
                })?;
                // A signal that came at the same moment came first: nobody has been told otherwise yet.
                return match signals.try_iter().find(|signal| signal.is_fatal()) {
                    Some(signal) => Err(Left::Signal(signal)),
                    None => Ok(done),
                };
            }
        }
    };
    cancel.request();
    match result.recv_timeout(GRACE) {
        Ok(done) => drop(done),
        Err(RecvTimeoutError::Timeout) => log::debug!("set-up is left where it waits"),
        Err(RecvTimeoutError::Disconnected) => {}
    }
    Err(Left::Signal(signal))
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{never, unbounded};
    use signal_hook::consts::{SIGTERM, SIGWINCH};

    use super::*;

    fn signal(number: i32) -> Signal {
        Signal {
            number,
            from_kernel: false,
        }
    }

    #[test]
    fn work_that_ends_gives_its_result() {
        let done = unless_signalled(&never(), &Cancel::default(), || 7);
        assert_eq!(done, Ok(7));
    }

    #[test]
    fn a_signal_leaves_work_that_blocks_and_calls_it_off() {
        let (sender, signals) = unbounded();
        let (release, blocked) = bounded::<()>(0);
        let cancel = Cancel::default();
        sender.send(signal(SIGWINCH)).unwrap();
        sender.send(signal(SIGTERM)).unwrap();
        let left = unless_signalled(&signals, &cancel, move || {
            let _ = blocked.recv();
        });
        assert_eq!(left, Err(Left::Signal(signal(SIGTERM))));
        assert!(cancel.is_requested());
        drop(release);
    }

    #[test]
    fn what_was_set_up_for_nobody_is_dropped_before_we_go() {
        struct Up(crossbeam_channel::Sender<()>);
        impl Drop for Up {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (sender, signals) = unbounded();
        let (dropped, was_dropped) = unbounded();
        sender.send(signal(SIGTERM)).unwrap();
        let left = unless_signalled(&signals, &Cancel::default(), move || Up(dropped));
        assert!(matches!(left, Err(Left::Signal(_))));
        assert_eq!(was_dropped.try_recv(), Ok(()));
    }

    #[test]
    fn a_panic_is_told_and_goes_no_further() {
        let left = unless_signalled(&never(), &Cancel::default(), || -> u8 {
            panic!("on purpose")
        });
        assert!(matches!(left, Err(Left::Broken(_))));
    }
}
