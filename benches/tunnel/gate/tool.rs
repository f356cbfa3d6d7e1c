//! The tools that count: how they are started, and how their output is read.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::baseline::INSTRUCTIONS;
use super::load::Load;
use crate::path::{BINARY, clean_command};
use crate::{Outcome, TIMEOUT};

/// Thresholds above any size, so that glibc always copies and clears with vector instructions.
/// Otherwise it uses `rep movsb` from a size that depends on the processor, and valgrind counts one
/// instruction per byte for it.
const COPIES: &str = "glibc.cpu.x86_rep_movsb_threshold=1073741824:\
    glibc.cpu.x86_rep_stosb_threshold=1073741824:\
    glibc.cpu.x86_non_temporal_threshold=1073741824";

/// The interval between attempts to read the output of a tool.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A program that runs another and counts what it does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    /// Counts instructions, without the kernel. Valgrind emulates a processor without AVX-512 and
    /// VAES, so ring uses AES-NI where a newer processor has faster instructions.
    Callgrind,
    /// Counts calls of malloc and similar functions. Buffers come from mmap and count as system
    /// calls.
    Memcheck,
    /// Counts system calls, including failed ones, but not futex: waiting for locks depends on the
    /// scheduler.
    Strace,
}

impl Tool {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Callgrind, Self::Memcheck, Self::Strace];

    /// What it counts, and the noise in a whole run, such as from one more thread or timer.
    pub(super) fn measures(self) -> &'static [(&'static str, f64)] {
        match self {
            Self::Callgrind => &[(INSTRUCTIONS, 16_384.0)],
            Self::Memcheck => &[("allocations", 64.0), ("allocated-bytes", 65_536.0)],
            Self::Strace => &[("system-calls", 16.0)],
        }
    }

    /// The minimum tolerance with this load, as a fraction of the count: the variation on a busy
    /// machine.
    pub(super) fn min_tolerance(self, load: Load) -> f64 {
        match self {
            // On a busy machine, more data gathers per call. A quiet machine needs about twice the
            // calls; buffers that stay small need ten times as many.
            _ if load.is_flood() => 1.5,
            Self::Callgrind | Self::Memcheck => 0.03,
            // Occasionally a read returns a part of a step.
            Self::Strace => 0.05,
        }
    }

    /// Whether it counts with this load. Floods only count system calls, whose number depends on
    /// the amount per call.
    pub(super) fn counts(self, load: Load) -> bool {
        self == Self::Strace || !load.is_flood()
    }

    /// The program, and the package that contains it.
    pub(super) fn program(self) -> (&'static str, &'static str) {
        match self {
            Self::Callgrind | Self::Memcheck => ("valgrind", "valgrind"),
            Self::Strace => ("strace", "strace"),
        }
    }

    /// The path of the installed program.
    pub(super) fn find(self) -> Outcome<PathBuf> {
        let (program, package) = self.program();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|directory| directory.join(program));
        let mut found = found.filter(|file| file.is_file());
        Ok(found.next().ok_or_else(|| {
            format!("{program} is not installed; install the package {package} (apt-get install {package})")
        })?)
    }

    /// A command that runs the benchmarked binary under this tool, with its output in `output`.
    /// Arguments for the binary can be added.
    pub(super) fn command(self, program: &Path, output: &Path) -> Command {
        let mut command = clean_command(program);
        let option = |option: &str| {
            let mut argument = OsString::from(option);
            argument.push(output);
            argument
        };
        match self {
            Self::Callgrind => {
                command.args(["--tool=callgrind", "--vgdb=no", "--quiet"]);
                command.arg(option("--callgrind-out-file="));
                command.env("GLIBC_TUNABLES", COPIES);
            }
            Self::Memcheck => {
                command.args(["--leak-check=no", "--undef-value-errors=no", "--vgdb=no"]);
                command.arg(option("--log-file="));
            }
            // With `-D`, the child process is the program itself, and strace its grandchild: a
            // signal to the child reaches the program, and strace ends after it.
            Self::Strace => {
                command.args(["-D", "-f", "-c", "-U", "calls,name", "-e", "trace=!futex"]);
                command.arg("-o").arg(output);
            }
        }
        command.arg(BINARY);
        // Valgrind slows everything down, so that a near gateway seems far.
        command.env("UPSTREAMPROXY_STANDBY", "0");
        command.env("UPSTREAMPROXY_CONNECT_TIMEOUT", "60s");
        command
    }

    /// Waits for the output and returns the counts, in the order of [`Self::measures`]. strace
    /// writes its output after the program has ended.
    pub(super) fn read(self, output: &Path) -> Outcome<Vec<f64>> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let text = fs::read_to_string(output).unwrap_or_default();
            if let Some(counts) = self.counts_in(&text) {
                return Ok(counts);
            }
            if Instant::now() > deadline {
                return Err(format!("no counts in {}", output.display()).into());
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn counts_in(self, text: &str) -> Option<Vec<f64>> {
        let number = |word: &str| word.replace(',', "").parse().ok();
        match self {
            Self::Callgrind => {
                let total = text
                    .lines()
                    .find_map(|line| line.strip_prefix("totals: "))?;
                Some(vec![number(total)?])
            }
            // total heap usage: 3,467 allocs, 3,449 frees, 2,896,240 bytes allocated
            Self::Memcheck => {
                let (_, usage) = text.split_once("total heap usage: ")?;
                let words: Vec<&str> = usage.split(' ').collect();
                Some(vec![number(words.first()?)?, number(words.get(4)?)?])
            }
            Self::Strace => {
                let total = text.lines().find_map(|line| line.strip_suffix(" total"))?;
                Some(vec![number(total.trim())?])
            }
        }
    }
}
