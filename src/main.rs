//! The binary: passes its arguments to the library's command line and exits with its status.

use std::process::ExitCode;

fn main() -> ExitCode {
    upstreamproxy::cli::main(std::env::args_os().skip(1))
}
