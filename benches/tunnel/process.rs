//! A child process that is a service. It is ready when it prints its first line, is stopped by
//! SIGTERM, and is killed when its owner drops it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

use crate::usage::{self, Memory};
use crate::{Outcome, TIMEOUT};

/// One process under measurement.
pub(crate) struct Process {
    /// Its name in the tables.
    pub(crate) role: &'static str,
    /// Its memory before the first connection.
    pub(crate) at_rest: Option<Memory>,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command with its log in `directory`, and waits for the JSON line that reports
    /// that it is ready.
    pub(crate) fn start(
        role: &'static str,
        command: &mut Command,
        directory: &Path,
    ) -> Outcome<(Self, Value)> {
        let log = directory.join(format!("{role}.log"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|error| format!("the {role} cannot be started: {error}"))?;
        let stdout = child.stdout.take();
        let mut process = Self {
            role,
            at_rest: None,
            child,
            log,
        };
        let (send, line) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            let read = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
            // The receiver is gone after the timeout.
            let _ = send.send(read.map(|read| read.map(|_| line)));
        });
        let ready = match line.recv_timeout(TIMEOUT) {
            Ok(Some(Ok(line))) => serde_json::from_str(&line).ok(),
            _ => None,
        };
        let ready = ready.ok_or_else(|| process.error("did not become ready"))?;
        process.at_rest = usage::memory(process.pid());
        Ok((process, ready))
    }

    /// The process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and waits for the exit, which must be successful: all tunnels have ended
    /// before.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let exit = pidfd_open(pid, PidfdFlags::empty())?;
        let timeout = Timespec::try_from(TIMEOUT)?;
        if poll(&mut [PollFd::new(&exit, PollFlags::IN)], Some(&timeout))? == 0 {
            return Err(self.error("did not stop"));
        }
        let status = self.child.wait()?;
        if !status.success() {
            return Err(self.error(&format!("ended with {status}")));
        }
        Ok(())
    }

    /// The error, with the end of its log.
    fn error(&self, what: &str) -> crate::Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        format!(
            "the {} {what}; its log ends: {}",
            self.role,
            last.join(" / ")
        )
        .into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
