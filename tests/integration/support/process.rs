//! Child processes with time limits: [`finish`] runs a command to its end, [`Running`] is a process
//! that serves until it is stopped.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

use super::{TIMEOUT, TempHome};

/// The binary under test.
pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_upstreamproxy")
}

/// A command for the binary under test in `home`, with a clean environment.
pub(crate) fn upstreamproxy(home: &TempHome) -> Command {
    home.command(binary())
}

/// How a process ended, and its output.
pub(crate) struct Finished {
    /// Exit code or signal.
    pub(crate) status: ExitStatus,
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: String,
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stdout, stderr) = (self.text(), &self.stderr);
        write!(
            f,
            "{}\n-- stdout:\n{stdout}\n-- stderr:\n{stderr}\n--",
            self.status
        )
    }
}

impl Finished {
    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The lines of warnings and errors in the log.
    pub(crate) fn warnings(&self) -> Vec<&str> {
        self.stderr
            .lines()
            .filter(|line| {
                // After the time, in the log of a server.
                ["upstreamproxy: warn: ", "upstreamproxy: error: "]
                    .iter()
                    .any(|level| line.contains(level))
            })
            .collect()
    }

    /// Fails the test unless the exit code is 0.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert!(self.status.success(), "{self:#?}");
        self
    }

    /// The summary line of `run --embedded`: tunnels, bytes up, bytes down.
    #[track_caller]
    pub(crate) fn tunnel_summary(&self) -> (u64, u64, u64) {
        let line = self
            .stderr
            .lines()
            .rfind(|line| line.starts_with("upstreamproxy: ") && line.ends_with(" bytes down"))
            .unwrap_or_else(|| panic!("no summary line in {self:#?}"));
        let numbers: Vec<u64> = line
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect();
        let [tunnels, up, down] = numbers[..] else {
            panic!("three numbers in {line:?}");
        };
        (tunnels, up, down)
    }

    /// Fails the test unless tunnels carried bytes in both directions.
    #[track_caller]
    pub(crate) fn assert_tunnelled(self) -> Self {
        let (tunnels, up, down) = self.tunnel_summary();
        assert!(tunnels > 0 && up > 0 && down > 0, "{self:#?}");
        self
    }
}

/// Runs the single test `test` of this test binary in a new process. The test recognises that
/// process by the variable `marker`.
pub(crate) fn test_subprocess(home: &TempHome, test: &str, marker: &str) -> Command {
    let mut command = home.command(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(marker, "1");
    command
}

/// Runs the command to its end with an empty standard input.
#[track_caller]
pub(crate) fn finish(command: &mut Command) -> Finished {
    finish_within(TIMEOUT, command)
}

/// The same, with another time limit, for operations that take long (such as a download from a
/// registry).
#[track_caller]
pub(crate) fn finish_within(timeout: Duration, command: &mut Command) -> Finished {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stdout = drain(child.stdout.take().unwrap());
    let stderr = drain(child.stderr.take().unwrap());
    let status = wait(&mut child, timeout);
    if status.is_none() {
        child.kill().unwrap();
    }
    let finished = Finished {
        status: status.unwrap_or_else(|| child.wait().unwrap()),
        stdout: stdout.join().unwrap(),
        stderr: String::from_utf8_lossy(&stderr.join().unwrap()).into_owned(),
    };
    assert!(
        status.is_some(),
        "still running after {timeout:?}: {finished:#?}"
    );
    finished
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        all
    })
}

/// Waits for the exit with `poll` on a pidfd. Returns `None` on a timeout.
fn wait(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let handle = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap();
        let mut ready = [PollFd::new(&handle, PollFlags::IN)];
        match poll(&mut ready, Some(&left)) {
            Ok(0) => return None,
            Ok(_) => return Some(child.wait().unwrap()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// A running process. Standard output is read line by line, standard error is collected. The
/// process is killed on drop.
pub(crate) struct Running {
    child: Child,
    lines: Mutex<Receiver<String>>,
    stderr: Arc<Mutex<String>>,
    stderr_ended: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts the command.
    #[track_caller]
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self::spawn_with_input(command, Stdio::null())
    }

    /// Starts the command with this standard input.
    #[track_caller]
    pub(crate) fn spawn_with_input(command: &mut Command, input: impl Into<Stdio>) -> Self {
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (send, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test may have ended already, so an error is ignored.
                let _ = send.send(line);
            }
        });
        let stderr = Arc::new(Mutex::new(String::new()));
        let log = Arc::clone(&stderr);
        let mut reader = BufReader::new(child.stderr.take().unwrap());
        let stderr_ended = thread::spawn(move || {
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                log.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self {
            child,
            lines: Mutex::new(lines),
            stderr,
            stderr_ended: Some(stderr_ended),
        }
    }

    /// Starts the command and waits for its first line of JSON.
    #[track_caller]
    pub(crate) fn ready(command: &mut Command) -> (Self, Value) {
        let running = Self::spawn(command);
        let line = running.json();
        (running, line)
    }

    /// The process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next line of standard output.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        let line = self.lines.lock().unwrap().recv_timeout(TIMEOUT);
        line.unwrap_or_else(|e| panic!("no line on standard output ({e}):\n{}", self.stderr()))
    }

    /// Waits for the next line of standard output and parses it as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?} is not JSON: {e}"))
    }

    /// Standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits until `text` occurs `times` times on standard error. It is read by a thread, so it may
    /// be behind other channels.
    #[track_caller]
    pub(crate) fn wait_for_log(&self, text: &str, times: usize) {
        let since = Instant::now();
        while self.stderr().matches(text).count() < times {
            assert!(since.elapsed() < TIMEOUT, "{text:?}: {}", self.stderr());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the exit.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Finished {
        let status = wait(&mut self.child, TIMEOUT)
            .unwrap_or_else(|| panic!("still running:\n{}", self.stderr()));
        self.stderr_ended.take().unwrap().join().unwrap();
        Finished {
            status,
            stdout: self
                .lines
                .lock()
                .unwrap()
                .iter()
                .collect::<Vec<_>>()
                .join("\n")
                .into(),
            stderr: self.stderr(),
        }
    }

    /// Sends SIGTERM and waits for the exit.
    #[track_caller]
    pub(crate) fn stop(self) -> Finished {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both calls fail only if the process has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
