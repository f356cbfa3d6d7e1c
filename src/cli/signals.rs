//! Signals as values on a channel, and who sent them. They belong to the binary: the library never touches them.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, never, unbounded};
use rustix::process::{Signal as Number, getpid, kill_process};
use signal_hook::consts::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
    SIGWINCH,
};
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::{Handle, SignalsInfo};
use signal_hook::low_level::siginfo::{Cause, Origin};

/// What `run` passes on to its child.
pub(crate) const FORWARDED: &[i32] = &[
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP,
];
/// What ends a walk of `doctor`.
pub(crate) const ENDING: &[i32] = &[SIGTERM, SIGINT, SIGHUP];

/// Lets writing over the limit on file sizes fail instead of ending this process (`SIGXFSZ`): then the stage that wrote is not
/// satisfied, and the session goes on. A handler and not "ignored", for a child does not inherit a handler.
pub(crate) fn outlive_file_limits() {
    let number = Number::XFSZ.as_raw();
    if !Ignored::now().has(number) {
        // Where it cannot be had, it is as it was.
        let _ = signal_hook::flag::register(number, Arc::default());
    }
}

/// One signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal {
    /// Its number.
    pub(crate) number: i32,
    /// The kernel sent it, for the terminal say: then our whole process group has it, the child too.
    pub(crate) from_kernel: bool,
}

impl Signal {
    /// Whether it is one that ends a process that does not look after it.
    pub(crate) fn is_fatal(self) -> bool {
        !matches!(self.number, SIGWINCH | SIGCONT | SIGTSTP | SIGCHLD)
    }

    /// The terminal's stop key: the child stops by itself, and the shell waits for us to stop too.
    pub(crate) fn is_terminal_stop(self) -> bool {
        self.from_kernel && self.number == SIGTSTP
    }

    /// The status of a process that it ended, as shells count.
    pub(crate) fn status(self) -> u8 {
        128u8.saturating_add(u8::try_from(self.number).unwrap_or(0))
    }
}

impl From<Origin> for Signal {
    fn from(origin: Origin) -> Self {
        Self {
            number: origin.signal,
            // Not `si_pid`: that is 0 when the sender lives in another pid namespace, as `docker stop` does.
            from_kernel: origin.cause == Cause::Kernel,
        }
    }
}

/// Stops this process, as the terminal's stop key would have done without our handler, until somebody continues it.
pub(crate) fn stop_ourselves() {
    let _ = kill_process(getpid(), Number::STOP);
}

/// The signals that come from now on; until this is dropped they do nothing but be told here.
pub(crate) struct Signals {
    receiver: Receiver<Signal>,
    watch: Option<(Handle, JoinHandle<()>)>,
}

impl Signals {
    /// Watches `numbers`, save those that were ignored when we started: they stay ignored, for children too.
    ///
    /// `SIGCHLD` is the exception: where it is ignored the kernel throws the exit status of children away, so that it is
    /// watched then whether asked for or not. Without room for a thread nothing is watched, and a warning says so.
    pub(crate) fn watch(numbers: &[i32]) -> Self {
        let ignored = Ignored::now();
        let mut watched = numbers.to_vec();
        watched.retain(|&number| !ignored.has(number));
        if ignored.has(SIGCHLD) {
            watched.push(SIGCHLD);
        }
        Self::start(&watched, ignored)
    }

    /// Watches the orders that a service takes: `SIGTERM` and `SIGINT`, and `SIGHUP` if it was not ignored or
    /// `hangup_is_order`.
    ///
    /// Shells have background jobs ignore `SIGINT`, so that the terminal's does not reach them, and it does not reach us
    /// then either; one that somebody sends on purpose does. Not so `SIGHUP`: a shell that ends sends it to every job.
    pub(crate) fn orders(hangup_is_order: bool) -> Self {
        let ignored = Ignored::now();
        let mut watched = vec![SIGTERM, SIGINT];
        if hangup_is_order || !ignored.has(SIGHUP) {
            watched.push(SIGHUP);
        }
        Self::start(&watched, ignored)
    }

    /// Watches `numbers`; what the kernel sends of those that were `ignored` is dropped.
    fn start(numbers: &[i32], ignored: Ignored) -> Self {
        Self::spawn(numbers, ignored).unwrap_or_else(|error| {
            log::warn!("signals cannot be watched, they end this process: {error}");
            Self {
                receiver: never(),
                watch: None,
            }
        })
    }

    fn spawn(numbers: &[i32], ignored: Ignored) -> std::io::Result<Self> {
        let mut info = SignalsInfo::<WithOrigin>::new(numbers)?;
        let handle = info.handle();
        let (sender, receiver) = unbounded();
        let thread = std::thread::Builder::new()
            .name("uproxy-signal".into())
            .spawn(move || {
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

    /// Where they arrive.
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
    /// As the kernel tells it; where there is no `/proc`, none.
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
    fn a_signal_of_a_process_is_told_as_such() {
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
    fn the_status_is_that_of_a_shell() {
        let term = Signal {
            number: SIGTERM,
            from_kernel: false,
        };
        assert_eq!(term.status(), 143);
        assert!(term.is_fatal() && !term.is_terminal_stop());
    }
}
