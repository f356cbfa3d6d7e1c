//! Standard output and standard error. Writing never panics, and never blocks without limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Stderr, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use serde::Serialize;

use super::exit_status::ExitStatus;

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

/// Prints one line to standard error, whatever the log level.
pub(crate) fn eprint_line(text: &str) {
    let _ = NonBlockingStderr::open().write_all(format!("upstreamproxy: {text}\n").as_bytes());
}

/// Prints to standard error without a prefix or a line end: a line that is overwritten later.
#[cfg(feature = "bench")]
pub(crate) fn eprint(text: &str) {
    let _ = NonBlockingStderr::open().write_all(text.as_bytes());
}

/// Prints an error, and returns the status to exit with.
pub(crate) fn fail(error: &str, status: ExitStatus) -> ExitStatus {
    eprint_line(&format!("error: {error}"));
    status
}

/// Standard error that waits at most [`WRITE_TIMEOUT`] for its reader. What cannot be written is
/// dropped.
///
/// `O_NONBLOCK` on descriptor 2 itself would affect every process that shares it, such as the
/// child. So a pipe or a terminal is opened a second time, which has its own flags. If that is not
/// allowed, each write is preceded by poll(2). It can still block if another process fills the pipe
/// between the two calls.
pub(crate) struct NonBlockingStderr {
    own: Option<File>,
    shared: Stderr,
    timed_out: bool,
}

impl NonBlockingStderr {
    /// Opens standard error a second time, if possible.
    pub(crate) fn open() -> Self {
        Self {
            own: reopen().ok(),
            shared: io::stderr(),
            timed_out: false,
        }
    }

    /// Whether a write can make progress now.
    fn is_ready(&mut self) -> bool {
        let fd = match &self.own {
            Some(file) => file.as_fd(),
            None => self.shared.as_fd(),
        };
        let timeout = if self.timed_out {
            Timespec::default()
        } else {
            WRITE_TIMEOUT
        };
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&timeout));
        // If poll fails or reports an error, the write reports it.
        let ready = !matches!(ready, Ok(0));
        self.timed_out = !ready;
        ready
    }
}

impl Write for NonBlockingStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match &mut self.own {
            Some(file) => file.write(bytes),
            None => self.shared.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A second open file description of standard error that never blocks.
fn reopen() -> io::Result<File> {
    let path = "/proc/self/fd/2";
    let kind = std::fs::metadata(path)?.file_type();
    // A regular file never blocks, and a second description of it would have its own offset.
    if !kind.is_fifo() && !kind.is_char_device() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new()
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_without_a_reader_does_not_block() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let mut stalled = NonBlockingStderr {
            own: Some(File::from(writer)),
            shared: io::stderr(),
            timed_out: false,
        };
        let line = [b'x'; 1000];
        let written = (0..1000)
            .take_while(|_| stalled.write_all(&line).is_ok())
            .count();
        assert!((1..1000).contains(&written));
        assert!(stalled.timed_out);
        drop(reader);
        assert!(
            stalled.write_all(&line).is_err(),
            "a closed reader is an error, not a signal"
        );
    }
}
