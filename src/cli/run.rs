//! `run`: set up, run COMMAND with the variables, tear down, end as it did.
//!
//! The child stays in our process group and keeps our terminal, stdin, descriptors and signal mask. It is never killed
//! from here: signals that a process sends us are passed on, those of the terminal it gets by itself.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::orchestrator::Handle;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal as Number, WaitId, WaitIdOptions, WaitOptions, WaitStatus, getpid, kill_process,
    wait, waitid, waitpid,
};

use super::command::{self, NoCommand};
use super::resolve::Session;
use super::setup::{SetUp, set_up};
use super::signals::{FORWARDED, Signal, Signals, stop_ourselves};
use super::{ExitStatus, fail};

/// What the tunnels of processes that COMMAND left behind get.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Runs COMMAND (never empty) and ends as it did.
pub(crate) fn run(session: Session, command: &[OsString]) -> ExitStatus {
    let Some((name, arguments)) = command.split_first() else {
        return fail("COMMAND is missing", ExitStatus::RUN_USAGE);
    };
    let file = match command::find(name, session.config.inherited.lookup("PATH")) {
        Ok(file) => file,
        Err(error) => return fail(&error.to_string(), error.status()),
    };
    let signals = Signals::watch(FORWARDED);
    let require = session.require;
    let summary = session.embedded.is_some();
    let mut child = Command::new(file);
    child.arg0(name).args(arguments);
    match set_up(session, signals.receiver()) {
        SetUp::Enabled(handle) => {
            handle.apply_to(&mut child);
            let status = supervise(child, name, signals.receiver());
            tear_down(handle, summary);
            status
        }
        SetUp::Disabled { stage, reason } if require => fail(
            &format!("nothing was run: the proxy is required and disabled at {stage}: {reason}"),
            ExitStatus::DISABLED,
        ),
        SetUp::Disabled { .. } => supervise(child, name, signals.receiver()),
        SetUp::Interrupted(signal) => ExitStatus::of_signal(signal),
    }
}

/// Stops what set-up started. With an embedded gateway, prints how many bytes went through.
fn tear_down(handle: Handle, summary: bool) {
    let report = handle.shutdown(AFTERMATH);
    let stats = report.stats;
    if report.cut > 0 {
        log::debug!("{} tunnels outlived the command and were cut", report.cut);
    }
    if summary {
        log::info!(
            "{} tunnel{}, {} bytes up, {} bytes down",
            stats.tunnels,
            if stats.tunnels == 1 { "" } else { "s" },
            stats.bytes_up,
            stats.bytes_down
        );
    }
}

/// Starts the child and stays with it to its end.
fn supervise(
    mut command: Command,
    name: &std::ffi::OsStr,
    signals: &Receiver<Signal>,
) -> ExitStatus {
    let family = Family::ours();
    // Before the child: under a tight limit on processes it may be the child that takes the last place, and nobody would be
    // there to hear of its end.
    let waiter = Waiter::start(family);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let refused = NoCommand::refused(name, &error);
            return fail(&refused.to_string(), refused.status());
        }
    };
    // It is never waited for through std: as PID 1 we reap everybody, in one place.
    let ended = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("the child has no usable process id"))
        .and_then(|child| match waiter {
            Ok(waiter) => attend(child, family, &waiter, signals),
            Err(error) => {
                log::warn!(
                    "signals are not passed on to the command, for want of a thread: {error}"
                );
                family.await_end(child)
            }
        });
    match ended {
        Ok(status) => exit_status(status),
        Err(error) => fail(
            &format!("the command's end cannot be awaited: {error}"),
            ExitStatus::RUN_USAGE,
        ),
    }
}

/// What the loop beside a child waits for.
enum Event {
    /// A signal for us.
    Signal(Signal),
    /// Some child has ended and waits to be reaped.
    Ended,
}

/// Passes signals on to the child and reaps, until it has ended.
///
/// Reaping and signalling happen on this one thread, so that no signal can meet a process that has got the number of a
/// child which is gone: the waiter only looks (`WNOWAIT`).
fn attend(
    child: Pid,
    family: Family,
    waiter: &Waiter,
    signals: &Receiver<Signal>,
) -> io::Result<WaitStatus> {
    waiter.look_for(child);
    loop {
        let event = select! {
            recv(signals) -> signal => match signal {
                Ok(signal) => Event::Signal(signal),
                // Nobody watches signals (any more): only the child is left to wait for.
                Err(_) => waiter.ended.recv().map(|()| Event::Ended).map_err(|_| gone())?,
            },
            recv(waiter.ended) -> ended => ended.map(|()| Event::Ended).map_err(|_| gone())?,
        };
        match event {
            Event::Signal(signal) => pass_on(signal, child),
            Event::Ended => {
                if let Some(status) = family.reap(child)? {
                    return Ok(status);
                }
                waiter.look_for(child);
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the system lets nobody wait for children")
}

fn pass_on(signal: Signal, child: Pid) {
    if signal.is_terminal_stop() {
        return stop_ourselves();
    }
    if signal.from_kernel || !FORWARDED.contains(&signal.number) {
        return;
    }
    let passed = Number::from_named_raw(signal.number).map(|number| kill_process(child, number));
    if let Some(Err(error)) = passed {
        log::debug!("signal {} was not passed on: {error}", signal.number);
    }
}

/// Whom we reap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// The child alone.
    Child,
    /// Everybody: orphans come to PID 1, and nobody else would reap them.
    Everybody,
}

impl Family {
    fn ours() -> Self {
        if getpid() == Pid::INIT {
            Self::Everybody
        } else {
            Self::Child
        }
    }

    /// Waits until there is somebody to reap, without doing it.
    fn look(self, child: Pid) -> Result<(), Errno> {
        let whom = match self {
            Self::Child => WaitId::Pid(child),
            Self::Everybody => WaitId::All,
        };
        loop {
            match waitid(whom.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Err(Errno::INTR) => {}
                other => return other.map(drop),
            }
        }
    }

    /// Waits for the child's end with all else left to itself.
    fn await_end(self, child: Pid) -> io::Result<WaitStatus> {
        loop {
            self.look(child)?;
            if let Some(status) = self.reap(child)? {
                return Ok(status);
            }
        }
    }

    /// Reaps all that have ended; the child's status if it was among them.
    fn reap(self, child: Pid) -> io::Result<Option<WaitStatus>> {
        loop {
            let reaped = match self {
                Self::Child => waitpid(Some(child), WaitOptions::NOHANG),
                Self::Everybody => wait(WaitOptions::NOHANG),
            };
            match reaped {
                Ok(Some((pid, status))) if pid == child => return Ok(Some(status)),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The thread that blocks until somebody can be reaped, says so, and waits to be sent again.
struct Waiter {
    ended: Receiver<()>,
    look: Option<Sender<Pid>>,
    thread: Option<JoinHandle<()>>,
}

impl Waiter {
    fn start(family: Family) -> io::Result<Self> {
        let (tell, ended) = bounded(1);
        let (look, asked) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("uproxy-wait".into())
            .spawn(move || {
                while let Ok(child) = asked.recv() {
                    if family.look(child).is_err() || tell.send(()).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            ended,
            look: Some(look),
            thread: Some(thread),
        })
    }

    fn look_for(&self, child: Pid) {
        if let Some(look) = &self.look {
            let _ = look.send(child);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // It ends when nobody can send it again; by then the child has ended, so that it is not blocked in its look.
        self.look = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The child's own status; 128+n if a signal ended it.
fn exit_status(status: WaitStatus) -> ExitStatus {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(number)) => number.saturating_add(128),
        (None, None) => i32::from(u8::MAX),
    };
    ExitStatus::new(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;

    use crossbeam_channel::{never, unbounded};
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

    use super::*;

    fn ended(script: &str) -> ExitStatus {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        supervise(command, OsStr::new("sh"), &never())
    }

    fn signal(number: i32, from_kernel: bool) -> Signal {
        Signal {
            number,
            from_kernel,
        }
    }

    #[test]
    fn the_status_is_the_commands_own() {
        for code in [0, 1, 42, 255] {
            assert_eq!(ended(&format!("exit {code}")), ExitStatus::new(code));
        }
    }

    #[test]
    fn a_command_that_a_signal_ended_gives_128_and_its_number() {
        assert_eq!(ended("kill -TERM $$"), ExitStatus::new(143));
        assert_eq!(ended("kill -KILL $$"), ExitStatus::new(137));
    }

    #[test]
    fn a_command_that_cannot_be_run_has_a_status_of_its_own() {
        let status = |name: &str| supervise(Command::new(name), OsStr::new(name), &never());
        assert_eq!(status("/nonexistent"), ExitStatus::NOT_FOUND);
        assert_eq!(status("/etc/passwd"), ExitStatus::NOT_EXECUTABLE);
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        std::fs::write(&script, "exit 0\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        assert_eq!(status(script.to_str().unwrap()), ExitStatus::NOT_EXECUTABLE);
    }

    #[test]
    #[allow(clippy::zombie_processes)] // `attend` reaps it
    fn signals_of_processes_reach_the_child_once_each_and_those_of_the_terminal_do_not() {
        let script = "for s in HUP INT TERM USR1; do trap \"echo $s\" $s; done; echo ready; \
                      for i in 1 2 3 4 5 6 7 8 9; do read -r word && [ $word = end ] && exit 7; done";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let pid = Pid::from_child(&child);
        let (sender, signals) = unbounded();
        let supervisor = std::thread::spawn(move || {
            let waiter = Waiter::start(Family::Child).unwrap();
            attend(pid, Family::Child, &waiter, &signals)
        });
        for (number, from_kernel) in [
            (SIGTERM, false),
            (SIGINT, true),
            (SIGUSR1, false),
            (SIGHUP, false),
        ] {
            sender.send(signal(number, from_kernel)).unwrap();
            if !from_kernel {
                // The shell runs a trap when its read is interrupted; its echo tells that this signal has come.
                line.clear();
                output.read_line(&mut line).unwrap();
                let name = Number::from_named_raw(number).unwrap();
                assert!(format!("{name:?}").contains(line.trim()), "{name:?} {line}");
            }
        }
        io::Write::write_all(&mut input, b"end\n").unwrap();
        let status = supervisor.join().unwrap().unwrap();
        assert_eq!(exit_status(status), ExitStatus::new(7));
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(
            rest, "",
            "nothing came twice, nothing of the terminal's was passed on"
        );
    }

    #[test]
    #[allow(clippy::zombie_processes)] // `look` reaps it
    fn a_child_that_ended_before_we_looked_is_reaped_all_the_same() {
        let mut child = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
        drop(child.stdin.take());
        let pid = Pid::from_child(&child);
        Family::Child.look(pid).unwrap();
        let waiter = Waiter::start(Family::Child).unwrap();
        let status = attend(pid, Family::Child, &waiter, &never()).unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    #[allow(clippy::zombie_processes)] // `await_end` reaps it
    fn without_a_thread_the_end_is_awaited_all_the_same() {
        let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let status = Family::Child.await_end(Pid::from_child(&child)).unwrap();
        assert_eq!(status.exit_status(), Some(3));
    }
}
