//! The command line (`manual/operations.md`): the one place that prints, and that looks after signals.
//!
//! `options` is the table, `args` reads what was typed, `layers` lays it over the environment, `resolve` says what it means; then
//! each subcommand has its file. The library is used through its public face only.

mod args;
#[cfg(feature = "bench")]
mod bench;
mod command;
mod doctor;
mod drain;
mod env;
#[cfg(feature = "gateway")]
mod gateway;
mod layers;
mod logging;
#[cfg(not(feature = "gateway"))]
mod no_gateway;
mod options;
mod resolve;
mod run;
mod serve;
mod setup;
mod signals;
mod state;

#[cfg(not(feature = "gateway"))]
use no_gateway as gateway;

pub use crate::doctor::Step;
pub use crate::setup::child_env::documentation;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::config::Environment;

use args::{Asked, UsageError, parse};
use logging::{fail, print, say};
use options::Subcommand;
use resolve::{Task, resolve};
use signals::Signal;

/// Does what `arguments` (without the program's name) ask for, and says how to end.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    work(arguments, &Environment::of_process())
        .unwrap_or_else(|error| usage(&error))
        .into()
}

fn work(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<ExitStatus, UsageError> {
    let typed = match parse(arguments)? {
        Asked::Help(None) => {
            print(options::overview().as_bytes());
            return Ok(ExitStatus::SUCCESS);
        }
        Asked::Help(Some(subcommand)) => {
            print(options::help(subcommand).as_bytes());
            return Ok(ExitStatus::SUCCESS);
        }
        Asked::Version => {
            print(concat!("upstreamproxy ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
            return Ok(ExitStatus::SUCCESS);
        }
        Asked::Work(typed) => typed,
    };
    signals::outlive_file_limits();
    let task = resolve(&typed, environment.clone())?;
    logging::start(task.level(typed.verbosity), environment.text("RUST_LOG"));
    Ok(match task {
        Task::Run { session, command } => run::run(session, &command),
        Task::Serve(session) => serve::run(session),
        Task::Env(format) => env::run(format, environment),
        Task::Doctor {
            session,
            target,
            json,
        } => doctor::run(session, target, json),
        #[cfg(feature = "bench")]
        Task::Bench {
            session,
            target,
            plan,
            json,
        } => bench::run(session, target, plan, json),
        #[cfg(feature = "bench")]
        Task::BenchOrigin(listen) => bench::origin(listen),
        Task::Gateway(settings) => gateway::run(settings),
    })
}

fn usage(error: &UsageError) -> ExitStatus {
    let (words, status) = match error.subcommand {
        Some(subcommand @ Subcommand::Run) => {
            (format!(" {}", subcommand.name()), ExitStatus::RUN_USAGE)
        }
        Some(subcommand) => (format!(" {}", subcommand.name()), ExitStatus::USAGE),
        None => (String::new(), ExitStatus::USAGE),
    };
    fail(
        &format!("{}; see `upstreamproxy{words} --help`", error.what),
        status,
    )
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitStatus(u8);

impl ExitStatus {
    /// All went well.
    pub(crate) const SUCCESS: Self = Self(0);
    /// Something did not.
    pub(crate) const FAILED: Self = Self(1);
    /// A command line or a setting that cannot be used, outside `run`.
    pub(crate) const USAGE: Self = Self(2);
    /// `--require`, and Disabled: `EX_UNAVAILABLE` of `sysexits.h`.
    pub(crate) const DISABLED: Self = Self(69);
    /// `run` itself failed: so far from what commands use themselves as `env` and `timeout` have it.
    pub(crate) const RUN_USAGE: Self = Self(125);
    /// COMMAND was found and cannot be executed.
    pub(crate) const NOT_EXECUTABLE: Self = Self(126);
    /// COMMAND was not found.
    pub(crate) const NOT_FOUND: Self = Self(127);

    /// A status of somebody else's, a child's say.
    pub(crate) fn new(status: u8) -> Self {
        Self(status)
    }

    /// 128 and the signal's number.
    pub(crate) fn of_signal(signal: Signal) -> Self {
        Self(signal.status())
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(line: &str) -> ExitStatus {
        let arguments = line.split_whitespace().map(OsString::from);
        work(arguments, &Environment::default()).unwrap_or_else(|error| usage(&error))
    }

    #[test]
    fn a_usage_error_is_125_for_run_and_2_elsewhere() {
        for line in [
            "run",
            "run --wrong x",
            "run --keepalive never x",
            "run --max-tunnels",
        ] {
            assert_eq!(status(line), ExitStatus::RUN_USAGE, "{line}");
        }
        for line in [
            "",
            "walk",
            "serve x",
            "serve --when perhaps",
            "env --format x",
            "gateway",
            "doctor --target x",
            "bench --seconds 0",
            "bench --origin here",
            "bench --origin 127.0.0.1:0 --embedded",
            "bench --origin 0.0.0.0:0",
        ] {
            assert_eq!(status(line), ExitStatus::USAGE, "{line}");
        }
    }

    #[test]
    fn help_and_version_are_success() {
        for line in ["--help", "-V", "run --help", "gateway -h"] {
            assert_eq!(status(line), ExitStatus::SUCCESS, "{line}");
        }
    }
}
