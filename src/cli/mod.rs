//! The command line (`manual/operations.md`): the only code that prints, exits or handles signals.
//!
//! `args` parses the arguments, `resolve` gives every option its value, and each subcommand has its
//! own file. The options are the settings of the library (`config`) and the table in
//! `program_options`.

mod args;
#[cfg(feature = "bench")]
mod bench;
mod ca;
mod command;
mod completions;
mod doctor;
mod drain;
mod env;
mod exit_status;
mod file_limit;
#[cfg(feature = "gateway")]
mod gateway;
#[cfg(feature = "gateway")]
mod gateway_options;
mod help;
#[cfg(feature = "gateway")]
mod identity_files;
mod log_file;
mod logging;
mod manual_page;
mod options;
mod output;
mod pages;
mod program_options;
mod resolve;
mod run;
mod serve;
mod service_manager;
mod setup;
mod signals;
mod socket_activation;
mod state;
mod suggestion;
mod token_watch;
mod unit;

pub use crate::doctor::Step;
pub use crate::setup::child_env::documentation;

use std::ffi::OsString;
use std::mem;
use std::process::ExitCode;

use crate::config::{Environment, Subcommand};

use args::{Invocation, UsageError, parse};
use exit_status::ExitStatus;
use output::{fail, print};
use program_options::Options;

/// Runs the subcommand in `arguments` (without the name of the program).
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    execute(arguments, &Environment::of_process())
        .unwrap_or_else(|error| report(&error))
        .into()
}

fn execute(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<ExitStatus, UsageError> {
    let arguments = match parse(arguments)? {
        Invocation::Help(about, detail) => {
            let width = help::width();
            let text = match about {
                Some(subcommand) => help::help(subcommand, detail, width),
                None => help::overview(width),
            };
            return Ok(print_success(&text));
        }
        Invocation::Version => {
            let version = concat!("upstreamproxy ", env!("CARGO_PKG_VERSION"), "\n");
            return Ok(print_success(version));
        }
        Invocation::Nothing => {
            let overview = help::overview(help::width());
            let error = format!("a subcommand is missing\n\n{}", overview.trim_end());
            return Ok(fail(&error, ExitStatus::USAGE));
        }
        Invocation::Subcommand(arguments) => arguments,
    };
    signals::survive_file_size_limit();
    let mut options = Options::resolve(&arguments, environment)?;
    logging::start(
        mem::take(&mut options.log),
        options.log_level(arguments.subcommand, arguments.verbosity),
        is_server(arguments.subcommand),
        environment,
    );
    let files = file_limit::InheritedLimit::raise();
    Ok(match arguments.subcommand {
        Subcommand::Run => run::run(options, &arguments.words, &files),
        Subcommand::Serve => serve::run(options),
        Subcommand::Env if options.unset => env::unset(options.format, environment),
        Subcommand::Env => env::run(options.format, environment),
        Subcommand::Ca => ca::run(&options.config),
        Subcommand::Doctor => doctor::run(options),
        #[cfg(feature = "bench")]
        Subcommand::Bench => match options.origin {
            Some(listen) => bench::serve_origin(listen),
            None => bench::run(options),
        },
        #[cfg(feature = "gateway")]
        Subcommand::Gateway => gateway::run(options),
        Subcommand::Unit => unit::run(&arguments.words)?,
        Subcommand::Completions => print_success(&completions::script(&arguments.words)),
        Subcommand::Man => print_success(&manual_page::page()),
        // The parser has answered the others, and accepts only the subcommands of this build.
        _ => ExitStatus::USAGE,
    })
}

/// Whether the subcommand serves others until it is stopped.
fn is_server(subcommand: Subcommand) -> bool {
    matches!(subcommand, Subcommand::Serve | Subcommand::Gateway)
}

fn print_success(text: &str) -> ExitStatus {
    print(text.as_bytes());
    ExitStatus::SUCCESS
}

/// Reports a usage error, with a hint where to find help.
fn report(error: &UsageError) -> ExitStatus {
    let subcommand = match error.subcommand {
        Some(subcommand) => format!(" {}", pages::name(subcommand)),
        None => String::new(),
    };
    let status = match error.subcommand {
        Some(Subcommand::Run) => ExitStatus::RUN_USAGE,
        _ => ExitStatus::USAGE,
    };
    let hint = format!("see `upstreamproxy{subcommand} --help`");
    fail(&format!("{}; {hint}", error.what), status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(line: &str) -> ExitStatus {
        let arguments = line.split_whitespace().map(OsString::from);
        execute(arguments, &Environment::default()).unwrap_or_else(|error| report(&error))
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
        for line in [
            "--help",
            "-V",
            "run --help",
            "serve -h",
            #[cfg(feature = "gateway")]
            "gateway -h",
        ] {
            assert_eq!(status(line), ExitStatus::SUCCESS, "{line}");
        }
    }
}
