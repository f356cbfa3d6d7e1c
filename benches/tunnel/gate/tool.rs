//! The tools that count: what they are started with, and where their result stands.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::baseline::INSTRUCTIONS;
use super::load::Load;
use crate::path::{OURS, bare};
use crate::{Outcome, PATIENCE};

/// Above any size: glibc copies and clears with vector instructions then, and not, from a size that depends on the processor,
/// with `rep movsb`, of which valgrind counts one instruction for each byte.
const COPIES: &str = "glibc.cpu.x86_rep_movsb_threshold=1073741824:\
    glibc.cpu.x86_rep_stosb_threshold=1073741824:\
    glibc.cpu.x86_non_temporal_threshold=1073741824";

/// How often it is looked whether a tool has written its result.
const GLANCE: Duration = Duration::from_millis(10);

/// A program that runs another and counts what it does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    /// Instructions. Valgrind shows the program a processor without AVX-512 and VAES: ring then takes AES-NI where a newer
    /// machine has better. What the kernel does is not counted.
    Callgrind,
    /// Calls of malloc and its kin. Buffers come from mmap and count as system calls.
    Memcheck,
    /// System calls, failed ones included; without futex, since who waits for a lock and how often is the scheduler's doing.
    Strace,
}

impl Tool {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Callgrind, Self::Memcheck, Self::Strace];

    /// What it counts, and how much of it in a whole run means nothing: a thread more or less, a timer that went off.
    pub(super) fn measures(self) -> &'static [(&'static str, f64)] {
        match self {
            Self::Callgrind => &[(INSTRUCTIONS, 16_384.0)],
            Self::Memcheck => &[("allocations", 64.0), ("allocated-bytes", 65_536.0)],
            Self::Strace => &[("system-calls", 16.0)],
        }
    }

    /// The least tolerance under this load, as a share of the figure: what is left to chance on a busy machine.
    pub(super) fn least(self, load: Load) -> f64 {
        match self {
            // A busy machine lets more gather than a quiet one: twice the calls there, a tenth of what small buffers would make.
            _ if load.is_flood() => 1.5,
            Self::Callgrind | Self::Memcheck => 0.03,
            // Now and then one end sees half a step.
            Self::Strace => 0.05,
        }
    }

    /// Whether it counts under this load: floods are for system calls alone, whose number depends on how much goes at once.
    pub(super) fn counts(self, load: Load) -> bool {
        self == Self::Strace || !load.is_flood()
    }

    /// The program, and the package that it comes in.
    pub(super) fn program(self) -> (&'static str, &'static str) {
        match self {
            Self::Callgrind | Self::Memcheck => ("valgrind", "valgrind"),
            Self::Strace => ("strace", "strace"),
        }
    }

    /// Where it is installed.
    pub(super) fn find(self) -> Outcome<PathBuf> {
        let (program, package) = self.program();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|folder| folder.join(program));
        let mut found = found.filter(|file| file.is_file());
        Ok(found.next().ok_or_else(|| {
            format!("{program} is not installed; install the package {package} (apt-get install {package})")
        })?)
    }

    /// The beginning of a command that runs our program under this one, its result in `result`.
    pub(super) fn command(self, program: &Path, result: &Path) -> Command {
        let mut command = bare(program);
        let option = |option: &str| {
            let mut word = OsString::from(option);
            word.push(result);
            word
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
            // The program is its own leader and strace its grandchild: whoever ends the one ends the other.
            Self::Strace => {
                command.args(["-D", "-f", "-c", "-U", "calls,name", "-e", "trace=!futex"]);
                command.arg("-o").arg(result);
            }
        }
        command.arg(OURS);
        // Valgrind makes a near gateway look like a far one, and everything slow.
        command.env("UPSTREAMPROXY_STANDBY", "0");
        command.env("UPSTREAMPROXY_CONNECT_TIMEOUT", "60s");
        command
    }

    /// The counts, in the order of [`Self::measures`], once they are there: strace writes them after its program has ended.
    pub(super) fn read(self, result: &Path) -> Outcome<Vec<f64>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(result).unwrap_or_default();
            if let Some(counts) = self.counts_in(&text) {
                return Ok(counts);
            }
            if Instant::now() > deadline {
                return Err(format!("no counts in {}", result.display()).into());
            }
            thread::sleep(GLANCE);
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
