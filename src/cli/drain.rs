//! The end of `serve` and `gateway`: tunnels drain while a second signal can still end the process.

use std::time::Duration;

use crate::listener::ShutdownReport;
use crossbeam_channel::{Receiver, select};

use super::exit_status::ExitStatus;
use super::service_manager::ServiceManager;
use super::setup::on_thread;
use super::signals::Signal;

/// How long cutting every tunnel may take.
const ABORT_TIMEOUT: Duration = Duration::from_millis(500);

/// Drains on another thread, and returns the status to exit with: 0 if all tunnels ended, 1 if some
/// were cut. At a second fatal signal every tunnel is reset, and the status is 128+n.
///
/// Signals for which `is_ignored` is true do not count.
pub(crate) fn drain(
    manager: &mut ServiceManager,
    signals: &Receiver<Signal>,
    timeout: Duration,
    abort: impl Fn(),
    is_ignored: impl Fn(Signal) -> bool,
    stop: impl FnOnce(Duration) -> ShutdownReport + Send + 'static,
) -> ExitStatus {
    manager.stopping(timeout);
    let ticks = manager.ticks();
    let (_, drained) = match on_thread("uproxy-drain", move || stop(timeout)) {
        Ok(started) => started,
        Err(error) => {
            // The closure was dropped with the thread that did not start, and with it the handle,
            // which stopped the relay.
            log::warn!(
                "cannot start a thread for the drain: {error}; the tunnels were stopped without one"
            );
            return ExitStatus::FAILED;
        }
    };
    loop {
        select! {
            recv(signals) -> signal => match signal {
                Ok(signal) if is_ignored(signal) => {}
                Ok(signal) if signal.is_fatal() => {
                    abort();
                    // The process exits, whether that is done or not.
                    let _ = drained.recv_timeout(ABORT_TIMEOUT);
                    return ExitStatus::of_signal(signal);
                }
                Ok(_) => {}
                Err(_) => return outcome(drained.recv().ok()),
            },
            recv(ticks) -> _ => manager.tick(),
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

#[cfg(test)]
mod tests {
    use crossbeam_channel::{bounded, unbounded};
    use signal_hook::consts::{SIGHUP, SIGINT};

    use super::*;

    #[test]
    fn a_drain_in_which_all_tunnels_ended_is_success_and_one_that_cut_is_not() {
        let (_sender, signals) = unbounded();
        let ended = |report| {
            drain(
                &mut ServiceManager::default(),
                &signals,
                Duration::ZERO,
                || {},
                |_| false,
                move |_| report,
            )
        };
        assert_eq!(ended(ShutdownReport::default()), ExitStatus::SUCCESS);
        let cut = ShutdownReport {
            cut: 1,
            ..ShutdownReport::default()
        };
        assert_eq!(ended(cut), ExitStatus::FAILED);
    }

    #[test]
    fn a_second_signal_ends_the_drain_at_once_unless_it_is_ignored() {
        let (sender, signals) = unbounded();
        let (release, blocked) = bounded::<()>(0);
        sender.send(Signal::of_process(SIGHUP)).unwrap();
        sender.send(Signal::of_process(SIGINT)).unwrap();
        let status = drain(
            &mut ServiceManager::default(),
            &signals,
            Duration::from_secs(60),
            || {},
            |signal| signal.number == SIGHUP,
            move |_| {
                let _ = blocked.recv();
                ShutdownReport::default()
            },
        );
        assert_eq!(status, ExitStatus::new(130));
        drop(release);
    }
}
