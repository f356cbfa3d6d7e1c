//! Signals as values on a channel, with their origin. Only the binary handles signals.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, never, unbounded};
use nix::sys::signal::SigSet;
use rustix::process::{Signal as Number, getpid, kill_process};
use signal_hook::consts::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
    SIGWINCH,
};
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::{Handle, SignalsInfo};
use signal_hook::low_level::siginfo::{Cause, Origin};

use crate::sys::signal_mask::with_signals_blocked;

/// The signals that `run` forwards to its child.
pub(crate) const FORWARDED: &[i32] = &[
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP,
];
/// The signals that end `doctor` and `bench`.
pub(crate) const ENDING: &[i32] = &[SIGTERM, SIGINT, SIGHUP];

/// Makes a write beyond the file size limit fail instead of ending this process (`SIGXFSZ`). Then
/// the stage that wrote fails, and the session continues. This uses a handler because a child would
/// inherit an ignored signal, but does not inherit a handler.
pub(crate) fn survive_file_size_limit() {
    let number = Number::XFSZ.as_raw();
    if !Ignored::now().has(number) {
        // If that fails, the default action stays.
        let _ = signal_hook::flag::register(number, Arc::default());
    }
}

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal {
    /// Its number.
    pub(crate) number: i32,
    /// The kernel sent it, for example for the terminal: then the whole process group receives it,
    /// the child too.
    pub(crate) from_kernel: bool,
}

impl Signal {
    /// One that a process sent.
    #[cfg(test)]
    pub(crate) fn of_process(number: i32) -> Self {
        Self {
            number,
            from_kernel: false,
        }
    }

    /// Whether its default action ends the process.
    pub(crate) fn is_fatal(self) -> bool {
        !matches!(self.number, SIGWINCH | SIGCONT | SIGTSTP | SIGCHLD)
    }

    /// Whether it is the stop key of the terminal. The child stops by itself, and the shell waits
    /// until this process stops too.
    pub(crate) fn is_terminal_stop(self) -> bool {
        self.from_kernel && self.number == SIGTSTP
    }

    /// The status that shells give to a process that it ended.
    pub(crate) fn status(self) -> u8 {
        128u8.saturating_add(u8::try_from(self.number).unwrap_or(0))
    }
}

impl From<Origin> for Signal {
    fn from(origin: Origin) -> Self {
        Self {
            number: origin.signal,
            // Not `si_pid`: it is 0 if the sender is in another PID namespace, as `docker stop` is.
            from_kernel: origin.cause == Cause::Kernel,
        }
    }
}

/// Stops this process until it is continued, as the stop key of the terminal does without a
/// handler.
pub(crate) fn stop_self() {
    let _ = kill_process(getpid(), Number::STOP);
}

/// The signals that arrive from now on. Until this is dropped, their default actions are disabled.
pub(crate) struct Signals {
    receiver: Receiver<Signal>,
    watch: Option<(Handle, JoinHandle<()>)>,
}

impl Signals {
    /// Watches `numbers`, except those that were ignored at the start: they stay ignored, for
    /// children too. `SIGCHLD` is an exception: while it is ignored, the kernel discards the exit
    /// status of children.
    ///
    /// If no thread can be started, nothing is watched, and a warning is logged.
    pub(crate) fn watch(numbers: &[i32]) -> Self {
        let ignored = Ignored::now();
        let mut watched = numbers.to_vec();
        watched.retain(|&number| number == SIGCHLD || !ignored.has(number));
        Self::start(&watched, ignored)
    }

    /// Watches the signals that control a service: `SIGTERM` and `SIGINT`, and `SIGHUP` if it was
    /// not ignored or `with_hangup` is true.
    ///
    /// Shells start background jobs with `SIGINT` ignored, so that the interrupt key does not reach
    /// them. The `SIGINT` of the terminal is then dropped here too, but one that a process sends is
    /// not. `SIGHUP` is different: a shell that exits sends it to every job.
    pub(crate) fn stop_requests(with_hangup: bool) -> Self {
        let ignored = Ignored::now();
        let mut watched = vec![SIGTERM, SIGINT];
        if with_hangup || !ignored.has(SIGHUP) {
            watched.push(SIGHUP);
        }
        Self::start(&watched, ignored)
    }

    /// Watches `numbers`. If the kernel sends one that was `ignored`, it is dropped.
    fn start(numbers: &[i32], ignored: Ignored) -> Self {
        Self::spawn(numbers, ignored).unwrap_or_else(|error| {
            log::warn!("cannot handle signals: {error}; they end this process at once");
            Self {
                receiver: never(),
                watch: None,
            }
        })
    }

    fn spawn(numbers: &[i32], ignored: Ignored) -> std::io::Result<Self> {
        // The handler is installed before the action that it performs. A signal between the two
        // would be lost.
        let mut info = with_signals_blocked(|| SignalsInfo::<WithOrigin>::new(numbers))?;
        let handle = info.handle();
        let (sender, receiver) = unbounded();
        let thread = std::thread::Builder::new()
            .name("uproxy-signal".into())
            .spawn(move || {
                // A parent that has blocked it must not hide the end of a child.
                let _ = SigSet::from(nix::sys::signal::SIGCHLD).thread_unblock();
                for origin in info.forever() {
                    let signal = Signal::from(origin);
                    let dropped = signal.from_kernel && ignored.has(signal.number);
                    if !dropped && sender.send(signal).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            receiver,
            watch: Some((handle, thread)),
        })
    }

    /// Whether they are watched.
    pub(crate) fn are_watched(&self) -> bool {
        self.watch.is_some()
    }

    /// The channel on which they arrive.
    pub(crate) fn receiver(&self) -> &Receiver<Signal> {
        &self.receiver
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        if let Some((handle, thread)) = self.watch.take() {
            handle.close();
            let _ = thread.join();
        }
    }
}

/// The signals that this process ignores.
struct Ignored(u64);

impl Ignored {
    /// Reads them from `/proc`; without `/proc`, none.
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::in_status(&status)
    }

    fn in_status(status: &str) -> Self {
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        Self(mask.unwrap_or(0))
    }

    fn has(&self, number: i32) -> bool {
        u32::try_from(number - 1)
            .ok()
            .and_then(|bit| self.0.checked_shr(bit))
            .is_some_and(|mask| mask & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read_from_the_status_file() {
        let ignored =
            Ignored::in_status("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n");
        assert!(ignored.has(SIGHUP) && ignored.has(13));
        assert!(!ignored.has(SIGINT) && !ignored.has(0) && !ignored.has(-1) && !ignored.has(99));
        assert!(!Ignored::in_status("").has(SIGHUP));
    }

    #[test]
    fn a_signal_of_a_process_is_not_from_the_kernel() {
        let signals = Signals::watch(&[SIGUSR2]);
        kill_process(getpid(), Number::USR2).unwrap();
        let signal = signals.receiver().recv_timeout(Duration::from_secs(10));
        assert_eq!(
            signal,
            Ok(Signal {
                number: SIGUSR2,
                from_kernel: false
            })
        );
    }

    #[test]
    fn a_signal_during_the_registration_is_not_lost() {
        use nix::sys::signal::{Signal as Name, raise};
        let signals = with_signals_blocked(|| {
            raise(Name::SIGALRM).unwrap();
            Signals::watch(&[SIGALRM])
        });
        let signal = signals.receiver().recv_timeout(Duration::from_secs(10));
        assert_eq!(signal.map(|signal| signal.number), Ok(SIGALRM));
    }

    #[test]
    fn the_status_is_that_of_a_shell() {
        let term = Signal {
            number: SIGTERM,
            from_kernel: false,
        };
        assert_eq!(term.status(), 143);
        assert!(term.is_fatal() && !term.is_terminal_stop());
    }
}
