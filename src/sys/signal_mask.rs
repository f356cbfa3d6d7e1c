//! The signal mask of this thread.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// Does `work` with signals blocked in this thread. Threads that it starts inherit that. Signals of
/// faults in the thread itself are not blocked.
pub(crate) fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    let mut blocked = SigSet::all();
    for fault in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGSYS,
    ] {
        blocked.remove(fault);
    }
    let before = blocked.thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let _restored = before.ok().map(Restored);
    work()
}

/// A signal mask that is restored on drop, also after a panic.
struct Restored(SigSet);

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = self.0.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_inherit_blocked_signals_and_the_caller_keeps_its_mask() {
        let is_blocked = |signal| SigSet::thread_get_mask().unwrap().contains(signal);
        let thread = with_signals_blocked(|| {
            std::thread::spawn(move || (is_blocked(Signal::SIGTERM), is_blocked(Signal::SIGSEGV)))
        });
        assert_eq!(thread.join().unwrap(), (true, false));
        assert!(!is_blocked(Signal::SIGTERM));
    }
}
