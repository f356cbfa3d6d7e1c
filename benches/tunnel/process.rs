//! A process that serves: started, awaited by its first line, told to stop, and gone in any case when its owner is.

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
use crate::{Outcome, PATIENCE};

/// One process under measurement.
pub(crate) struct Process {
    /// What it is in the tables.
    pub(crate) role: &'static str,
    /// What it held before anything went through it.
    pub(crate) at_rest: Option<Memory>,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command, its log in `folder`, and waits for the line of JSON with which it says that it is ready.
    pub(crate) fn start(
        role: &'static str,
        command: &mut Command,
        folder: &Path,
    ) -> Outcome<(Self, Value)> {
        let log = folder.join(format!("{role}.log"));
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
            // Nobody listens any more once the patience is over.
            let _ = send.send(read.map(|read| read.map(|_| line)));
        });
        let ready = match line.recv_timeout(PATIENCE) {
            Ok(Some(Ok(line))) => serde_json::from_str(&line).ok(),
            _ => None,
        };
        let ready = ready.ok_or_else(|| process.broken("did not become ready"))?;
        process.at_rest = usage::memory(process.pid());
        Ok((process, ready))
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop and wants to see it end well: every tunnel was over.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let exit = pidfd_open(pid, PidfdFlags::empty())?;
        let timeout = Timespec::try_from(PATIENCE)?;
        if poll(&mut [PollFd::new(&exit, PollFlags::IN)], Some(&timeout))? == 0 {
            return Err(self.broken("did not stop"));
        }
        let status = self.child.wait()?;
        if !status.success() {
            return Err(self.broken(&format!("ended with {status}")));
        }
        Ok(())
    }

    /// The error, with the end of its log.
    fn broken(&self, what: &str) -> crate::Failure {
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
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
