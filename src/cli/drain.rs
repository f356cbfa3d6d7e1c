//! The end of what serves: tunnels drain while signals are heard, and the service manager is told.

use std::time::Duration;

use crate::listener::ShutdownReport;
use crossbeam_channel::{Receiver, bounded, select};
use sd_notify::NotifyState;

use super::ExitStatus;
use super::signals::Signal;

/// How long cutting every tunnel may take.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Drains on a thread of its own, so that a second signal is heard: then every tunnel is cut, with a reset to its ends.
/// `means_something_else` takes the signals that are no word to stop.
pub(crate) fn drain_down(
    signals: &Receiver<Signal>,
    drain: Duration,
    abort: impl Fn(),
    means_something_else: impl Fn(Signal) -> bool,
    stop: impl FnOnce(Duration) -> ShutdownReport + Send + 'static,
) -> ExitStatus {
    notify(NotifyState::Stopping);
    let (sender, drained) = bounded(1);
    let thread = std::thread::Builder::new()
        .name("uproxy-drain".into())
        .spawn(move || {
            let _ = sender.send(stop(drain));
        });
    if let Err(error) = thread {
        // What was to be stopped has been dropped with the thread that did not start, and that stopped it.
        log::warn!("the drain was cut short: {error}");
        return ExitStatus::FAILED;
    }
    loop {
        select! {
            recv(signals) -> signal => match signal {
                Ok(signal) if means_something_else(signal) => {}
                Ok(signal) if signal.is_fatal() => {
                    abort();
                    // Whether it is done or not.
                    let _ = drained.recv_timeout(AT_ONCE);
                    return ExitStatus::of_signal(signal);
                }
                Ok(_) => {}
                Err(_) => return outcome(drained.recv().ok()),
            },
            recv(drained) -> report => return outcome(report.ok()),
        }
    }
}

fn outcome(report: Option<ShutdownReport>) -> ExitStatus {
    match report {
        Some(report) if report.cut == 0 => ExitStatus::SUCCESS,
        Some(report) => {
            log::warn!("{} tunnels were cut at the deadline", report.cut);
            ExitStatus::FAILED
        }
        None => ExitStatus::FAILED,
    }
}

/// Tells the service manager, if there is one.
pub(crate) fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!("the service manager could not be told: {error}");
    }
}
