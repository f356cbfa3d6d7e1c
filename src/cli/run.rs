//! `run`: set up, run COMMAND with the variables, tear down, exit with its status.
//!
//! The child stays in this process group and keeps the terminal, stdin, descriptors and signal
//! mask. It is never killed from here: signals that a process sends are forwarded; those of the
//! terminal reach the child directly.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::config::Environment;
use crate::control::hosts::{HostRows, HostStats};
use crate::orchestrator::Handle;
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal as Number, WaitOptions, WaitStatus, getpid, kill_process, wait, waitpid,
};
use signal_hook::consts::SIGCHLD;

use super::command::{self, CommandError};
use super::exit_status::ExitStatus;
use super::file_limit::InheritedLimit;
use super::output::{eprint_line, fail};
use super::program_options::Options;
use super::setup::{SetUp, set_up};
use super::signals::{FORWARDED, Signal, Signals, stop_self};
use super::token_watch::TokenWatch;

/// How many hosts the summary names.
const HOSTS_SHOWN: usize = 20;

/// How long tunnels of processes that COMMAND left running may continue.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs COMMAND (never empty) and returns its status.
pub(crate) fn run(options: Options, command: &[OsString], files: &InheritedLimit) -> ExitStatus {
    let Options {
        config,
        require,
        summary,
        ..
    } = options;
    let Some((name, arguments)) = command.split_first() else {
        return fail("COMMAND is missing", ExitStatus::RUN_USAGE);
    };
    let file = match command::find(name, config.inherited.lookup("PATH")) {
        Ok(file) => file,
        Err(error) => return fail(&error.to_string(), error.status()),
    };
    let signals = Signals::watch(&[FORWARDED, &[SIGCHLD]].concat());
    let embedded = config.uses_embedded_gateway();
    let mut child = Command::new(file);
    child.arg0(name).args(arguments);
    pass_service_on(&mut child, &config.inherited);
    let mut token = TokenWatch::new(&config);
    match set_up(config, signals.receiver()) {
        SetUp::Enabled(handle) => {
            handle.apply_to(&mut child);
            token.follow(&handle);
            let mut next = || token.next_signal(signals.receiver(), &handle);
            let status = supervise(child, name, &signals, &mut next, files);
            tear_down(handle, summary, embedded);
            status
        }
        SetUp::Disabled { stage, reason } if require => fail(
            &format!("nothing was run: the proxy is required, but disabled at {stage}: {reason}"),
            ExitStatus::DISABLED,
        ),
        SetUp::Disabled { .. } => {
            let mut next = || signals.receiver().recv().ok();
            supervise(child, name, &signals, &mut next, files)
        }
        SetUp::Interrupted(signal) => ExitStatus::of_signal(signal),
    }
}

/// For a service manager, COMMAND is the service: it gets the variables of the unit, and its
/// sockets. Only those are removed that contain the process ID of `run`: with them, the command
/// would take the others for those of another process.
fn pass_service_on(child: &mut Command, inherited: &Environment) {
    let own = std::process::id().to_string();
    if inherited.text("WATCHDOG_PID") == Some(&own) {
        child.env_remove("WATCHDOG_PID");
    }
    if inherited.text("LISTEN_PID") == Some(&own) {
        child.env_remove("LISTEN_PID").env_remove("LISTEN_PIDFDID");
    }
}

/// Stops what set-up started, and reports what went through: if `summary` was requested whatever
/// the log level, and with an embedded gateway in the log.
fn tear_down(handle: Handle, summary: bool, embedded: bool) {
    let hosts = handle.hosts();
    let report = handle.shutdown(DRAIN_TIMEOUT);
    let stats = report.stats;
    if report.cut > 0 {
        log::debug!(
            "{} tunnels were still open after the command ended, and were cut",
            report.cut
        );
    }
    if !summary && !embedded {
        return;
    }
    let mut lines = summary_of(&hosts.rows());
    if !summary && lines.len() == 1 && stats.refused == 0 {
        // One host: the last line has all of it.
        lines.clear();
    }
    lines.push(format!(
        "{}, {} bytes up, {} bytes down",
        tunnels(stats.tunnels),
        stats.bytes_up,
        stats.bytes_down
    ));
    for line in lines {
        if summary {
            eprint_line(&line);
        } else {
            log::info!("{line}");
        }
    }
}

/// A line for each of the most active hosts, and one for all others.
fn summary_of(hosts: &HostRows) -> Vec<String> {
    let (shown, rest) = hosts.rows.split_at(hosts.rows.len().min(HOSTS_SHOWN));
    let line = |name: &str, row: &HostStats| {
        let refused = match row.refused {
            0 => String::new(),
            refused => format!(", {refused} refused"),
        };
        let (up, down) = (row.bytes_up, row.bytes_down);
        let opened = tunnels(row.tunnels);
        format!("{name}: {opened}, {up} B up, {down} B down{refused}")
    };
    let mut lines: Vec<_> = shown.iter().map(|(host, row)| line(host, row)).collect();
    let mut others = hosts.other;
    for (_, row) in rest {
        others.add(*row);
    }
    if others != HostStats::default() {
        lines.push(line("other hosts", &others));
    }
    lines
}

fn tunnels(count: u64) -> String {
    format!("{count} tunnel{}", if count == 1 { "" } else { "s" })
}

/// Starts the child and waits until it ends.
fn supervise(
    mut command: Command,
    name: &OsStr,
    signals: &Signals,
    next_signal: &mut dyn FnMut() -> Option<Signal>,
    files: &InheritedLimit,
) -> ExitStatus {
    // Processes that outlive their parent become children of this one. So they still count as
    // started by it, whichever user they have.
    let adopts = rustix::process::set_child_subreaper(Some(Pid::INIT)).is_ok();
    let child = match files.spawn(&mut command) {
        Ok(child) => child,
        Err(error) => {
            let error = CommandError::of_exec(name, &error);
            return fail(&error.to_string(), error.status());
        }
    };
    let reaper = if adopts || getpid() == Pid::INIT {
        Reaper::All
    } else {
        Reaper::Child
    };
    // It is never waited for through std: all processes are reaped in one place.
    let child = Pid::from_child(&child);
    let ended = if signals.are_watched() {
        attend(child, reaper, next_signal)
    } else {
        reaper.wait_for(child)
    };
    match ended {
        Ok(status) => exit_status(status),
        Err(error) => fail(
            &format!("cannot wait for the command: {error}; its status is unknown"),
            ExitStatus::RUN_USAGE,
        ),
    }
}

/// Forwards signals to the child and reaps processes, until the child has ended.
///
/// Only this thread reaps and signals. So a signal cannot reach another process that has the
/// process ID of a child that was reaped.
fn attend(
    child: Pid,
    reaper: Reaper,
    next_signal: &mut dyn FnMut() -> Option<Signal>,
) -> io::Result<WaitStatus> {
    loop {
        if let Some(status) = reaper.reap(child, WaitOptions::NOHANG)? {
            return Ok(status);
        }
        // `SIGCHLD` reports that a process can be reaped.
        match next_signal() {
            Some(signal) => forward(signal, child),
            None => return reaper.wait_for(child),
        }
    }
}

fn forward(signal: Signal, child: Pid) {
    if signal.is_terminal_stop() {
        return stop_self();
    }
    if signal.from_kernel || !FORWARDED.contains(&signal.number) {
        return;
    }
    let sent = Number::from_named_raw(signal.number).map(|number| kill_process(child, number));
    if let Some(Err(error)) = sent {
        log::debug!("signal {} was not forwarded: {error}", signal.number);
    }
}

/// The processes that this process reaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaper {
    /// Only the child.
    Child,
    /// All: orphans become children of this process, and no other process can reap them.
    All,
}

impl Reaper {
    /// Waits until the child ends, without forwarding signals.
    fn wait_for(self, child: Pid) -> io::Result<WaitStatus> {
        loop {
            if let Some(status) = self.reap(child, WaitOptions::empty())? {
                return Ok(status);
            }
        }
    }

    /// Reaps processes that have ended; returns the status of the child if it was one of them.
    fn reap(self, child: Pid, options: WaitOptions) -> io::Result<Option<WaitStatus>> {
        loop {
            let reaped = match self {
                Self::Child => waitpid(Some(child), options),
                Self::All => wait(options),
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

/// The status of the child; 128+n if signal n ended it.
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
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;

    use crossbeam_channel::unbounded;
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

    use super::*;

    fn supervised(command: Command, name: &OsStr, signals: &Signals) -> ExitStatus {
        let mut next = || signals.receiver().recv().ok();
        supervise(command, name, signals, &mut next, &InheritedLimit::raise())
    }

    fn ended(script: &str) -> ExitStatus {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        supervised(command, OsStr::new("sh"), &Signals::watch(&[SIGCHLD]))
    }

    fn signal(number: i32, from_kernel: bool) -> Signal {
        Signal {
            number,
            from_kernel,
        }
    }

    #[test]
    fn the_status_is_that_of_the_command() {
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
    fn a_command_that_cannot_be_run_has_its_own_status() {
        let signals = Signals::watch(&[SIGCHLD]);
        let status = |name: &str| supervised(Command::new(name), OsStr::new(name), &signals);
        assert_eq!(status("/nonexistent"), ExitStatus::NOT_FOUND);
        assert_eq!(status("/etc/passwd"), ExitStatus::NOT_EXECUTABLE);
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
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
        let ends = Signals::watch(&[SIGCHLD]);
        let (end, supervisor_sender) = (ends.receiver().clone(), sender.clone());
        std::thread::spawn(move || end.iter().try_for_each(|end| supervisor_sender.send(end)));
        let supervisor =
            std::thread::spawn(move || attend(pid, Reaper::Child, &mut || signals.recv().ok()));
        for (number, from_kernel) in [
            (SIGTERM, false),
            (SIGINT, true),
            (SIGUSR1, false),
            (SIGHUP, false),
        ] {
            sender.send(signal(number, from_kernel)).unwrap();
            if !from_kernel {
                // The shell runs a trap when its read is interrupted; its echo shows that this
                // signal has arrived.
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
            "nothing was forwarded twice, and no signal of the terminal was forwarded"
        );
    }

    #[test]
    #[allow(clippy::zombie_processes)] // `attend` reaps it
    fn a_child_that_ended_early_is_reaped() {
        let mut child = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
        drop(child.stdin.take());
        let pid = Pid::from_child(&child);
        waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        )
        .unwrap();
        let mut never = || panic!("it waits for a signal");
        let status = attend(pid, Reaper::Child, &mut never).unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    #[allow(clippy::zombie_processes)] // `wait_for` reaps it
    fn without_a_thread_the_end_of_the_child_is_awaited() {
        let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let status = Reaper::Child.wait_for(Pid::from_child(&child)).unwrap();
        assert_eq!(status.exit_status(), Some(3));
    }
}
