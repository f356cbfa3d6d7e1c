//! Standard output and standard error. Writing never panics, and never blocks without limit.

use std::io::{self, Stderr, Write};

use rustix::event::Timespec;
use serde::Serialize;

use super::exit_status::ExitStatus;
use crate::sys::non_blocking::NonBlocking;

/// How long one line may wait for a reader of standard error. After a line was dropped, the next
/// ones do not wait.
const WRITE_TIMEOUT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Prints to standard output. If it is closed, this is neither an error nor a panic.
pub(crate) fn print(bytes: &[u8]) {
    let mut output = io::stdout();
    if let Err(error) = output.write_all(bytes).and_then(|()| output.flush()) {
        log::debug!("standard output cannot be written to: {error}");
    }
}

/// `value` as one line of JSON.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    // Only a map with keys that are no strings, or a failed conversion, would be an error.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

/// Standard error that never blocks for long.
pub(crate) fn stderr() -> NonBlocking<Stderr> {
    NonBlocking::new(io::stderr(), WRITE_TIMEOUT)
}

/// Prints one line to standard error, whatever the log level.
pub(crate) fn eprint_line(text: &str) {
    let _ = stderr().write_all(format!("upstreamproxy: {text}\n").as_bytes());
}

/// Prints to standard error without a prefix or a line end: a line that is overwritten later.
#[cfg(feature = "bench")]
pub(crate) fn eprint(text: &str) {
    let _ = stderr().write_all(text.as_bytes());
}

/// Prints an error, and returns the status to exit with.
pub(crate) fn fail(error: &str, status: ExitStatus) -> ExitStatus {
    eprint_line(&format!("error: {error}"));
    status
}
