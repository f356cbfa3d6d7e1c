//! The log as lines on a descriptor of the host, for hosts that cannot take a callback: the event
//! loop of Node or Python would have to run while it waits for a shutdown.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use nix::sys::signal::{SigSet, Signal, raise};
use rustix::event::Timespec;
use rustix::io::Errno;

use crate::sys::non_blocking::NonBlocking;
use crate::sys::signal_mask::with_signals_blocked;

/// A descriptor that lines are written to without waiting. Lines for which it has no room are
/// dropped and counted.
#[derive(Debug)]
pub(super) struct LogDescriptor {
    output: NonBlocking<OwnedFd>,
    /// The rest of a line that was written in part.
    rest: Vec<u8>,
    dropped: u64,
}

impl LogDescriptor {
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        Self {
            output: NonBlocking::new(descriptor, Timespec::default()),
            rest: Vec::new(),
            dropped: 0,
        }
    }

    /// Writes a line, and before it how many were dropped.
    pub(super) fn write(&mut self, line: &str) {
        let lost = self.dropped;
        let report = format!(
            "upstreamproxy: warn: the log is too slow: {lost} lines were dropped; read it faster, \
             or log less\n"
        );
        if lost > 0 && self.begin(&report) {
            self.dropped = 0;
        }
        if self.dropped > 0 || !self.begin(line) {
            self.dropped += 1;
        }
    }

    /// Begins to write `line`, whose rest is kept. Whether there was room for its first byte.
    fn begin(&mut self, line: &str) -> bool {
        if !self.flush() {
            return false;
        }
        self.rest.extend_from_slice(line.as_bytes());
        if !self.flush() && self.rest.len() == line.len() {
            self.rest.clear();
            return false;
        }
        true
    }

    /// Writes what is left. Whether that was possible.
    fn flush(&mut self) -> bool {
        while !self.rest.is_empty() {
            match without_sigpipe(|| self.output.write(&self.rest)) {
                Ok(written) if written > 0 => drop(self.rest.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        true
    }
}

/// Does `write` without raising SIGPIPE, whose default action ends the host.
fn without_sigpipe(write: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
    with_signals_blocked(|| {
        let result = write();
        let is_pipe = |error: &io::Error| error.raw_os_error() == Some(Errno::PIPE.raw_os_error());
        // The signal is pending for this thread then, except after a write to a socket. Raising it
        // once more changes nothing in the first case, and `wait` returns in both.
        if result.as_ref().is_err_and(is_pipe) && raise(Signal::SIGPIPE).is_ok() {
            let _ = SigSet::from(Signal::SIGPIPE).wait();
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn lines_without_room_are_dropped_whole_and_counted() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let mut log = LogDescriptor::new(pipe.into());
        let line = |number: usize| format!("{number:05}{}\n", "x".repeat(3000));
        let count = 1000;
        for number in 0..count {
            log.write(&line(number));
        }
        let dropped = log.dropped;
        assert!(dropped > 0);
        let mut read = vec![0; 1 << 20];
        let first = reader.read(&mut read).unwrap();
        log.write("the next\n");
        drop(log);
        let mut text = String::from_utf8(read[..first].to_vec()).unwrap();
        reader.read_to_string(&mut text).unwrap();
        let written = count - usize::try_from(dropped).unwrap();
        let expected: String = (0..written).map(line).collect();
        let report = format!(
            "upstreamproxy: warn: the log is too slow: {dropped} lines were dropped; read it \
             faster, or log less\nthe next\n"
        );
        assert_eq!(text, expected + &report);
    }
}
