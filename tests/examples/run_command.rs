//! Runs a command with the proxy that this environment asks for, or without one: what a session
//! launcher does.
//!
//! ```sh
//! cargo run --example run_command -- curl -sSI https://example.com
//! ```

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

use std::process::{Command, ExitCode};
use std::time::Duration;

use upstreamproxy::{Config, Started, start};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: run_command COMMAND [ARG...]");
        return ExitCode::from(2);
    };
    let mut command = Command::new(&program);
    command.args(arguments);

    // Blocks for the time of set-up. Whatever fails, the command runs: without a proxy.
    let relay = match start(&Config::from_env()) {
        Started::Enabled(relay) => {
            relay.apply_to(&mut command);
            Some(relay)
        }
        Started::Disabled(disabled) => {
            if !disabled.is_silent() {
                eprintln!("no proxy: {disabled}");
            }
            None
        }
    };

    let status = command.status();
    if let Some(relay) = relay {
        // Processes that the command left behind get one second.
        let report = relay.shutdown(Duration::from_secs(1));
        eprintln!(
            "{} tunnels, {} reset at the end",
            report.stats.tunnels, report.cut
        );
    }
    match status {
        Ok(status) => ExitCode::from(status.code().map_or(1, |code| code as u8)),
        Err(error) => {
            eprintln!("{} cannot be started: {error}", program.display());
            ExitCode::from(127)
        }
    }
}
