//! Writes log lines to a descriptor that other processes may share, without blocking for long.

use std::fs::{File, OpenOptions, metadata};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::net::{SendFlags, send};
use rustix::pipe::PIPE_BUF;

/// A descriptor that waits a limited time for its reader. What cannot be written is an error.
///
/// `O_NONBLOCK` on the descriptor itself would affect every process that shares it, such as a
/// child. So a socket has the flag of each call, and a pipe or a terminal is opened a second time,
/// which has its own flags. If that is not allowed, each write is preceded by poll(2). It can still
/// block if another process fills the pipe between the two calls.
#[derive(Debug)]
pub(crate) struct NonBlocking<D> {
    shared: D,
    kind: Kind,
    timeout: Timespec,
    timed_out: bool,
}

#[derive(Debug)]
enum Kind {
    Socket,
    /// A second open file description that never blocks.
    Reopened(File),
    Other,
}

impl<D: AsFd> NonBlocking<D> {
    /// One write waits up to `timeout`, and not at all after a write that has waited in vain.
    pub(crate) fn new(descriptor: D, timeout: Timespec) -> Self {
        Self {
            kind: Kind::of(&descriptor).unwrap_or(Kind::Other),
            shared: descriptor,
            timeout,
            timed_out: false,
        }
    }

    /// Whether a write can make progress now.
    fn is_ready(&mut self) -> bool {
        let fd = match &self.kind {
            Kind::Reopened(file) => file.as_fd(),
            Kind::Socket | Kind::Other => self.shared.as_fd(),
        };
        let timeout = if self.timed_out {
            Timespec::default()
        } else {
            self.timeout
        };
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&timeout));
        // If poll fails or reports an error, the write reports it.
        let ready = !matches!(ready, Ok(0));
        self.timed_out = !ready;
        ready
    }
}

impl<D: AsFd> Write for NonBlocking<D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match &mut self.kind {
            Kind::Socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(send(&self.shared, bytes, flags)?)
            }
            Kind::Reopened(file) => file.write(bytes),
            // A pipe that poll(2) has found writable has room for this much.
            Kind::Other => {
                let fits = &bytes[..bytes.len().min(PIPE_BUF)];
                Ok(rustix::io::write(&self.shared, fits)?)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Kind {
    fn of(descriptor: &impl AsFd) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd());
        let kind = metadata(&path)?.file_type();
        if kind.is_socket() {
            return Ok(Self::Socket);
        }
        // A regular file never blocks, and a second description of it would have its own offset.
        if !kind.is_fifo() && !kind.is_char_device() {
            return Ok(Self::Other);
        }
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let reopened = OpenOptions::new()
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)?;
        Ok(Self::Reopened(reopened))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_reader_that_does_not_read_does_not_block_the_writer() {
        let (reader, pipe) = io::pipe().unwrap();
        let (peer, socket) = UnixStream::pair().unwrap();
        for (descriptor, reader) in [
            (OwnedFd::from(pipe), OwnedFd::from(reader)),
            (socket.into(), peer.into()),
        ] {
            let mut stalled = NonBlocking::new(descriptor, Timespec::default());
            let line = [b'x'; 1000];
            let written = (0..10_000)
                .take_while(|_| stalled.write_all(&line).is_ok())
                .count();
            assert!((1..10_000).contains(&written), "{written}");
            drop(reader);
            assert!(
                stalled.write_all(&line).is_err(),
                "a closed reader is an error, not a signal"
            );
        }
    }
}
