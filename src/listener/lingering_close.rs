//! Refused connections whose remaining input is still read, so that a reset does not overtake the
//! response (`manual/protocol.md`). The acceptor reads them; they need no thread. Their number is
//! limited.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

/// The most connections at once.
const CONNECTION_LIMIT: usize = 64;
/// How long one connection is read.
const TIME_LIMIT: Duration = Duration::from_secs(1);
/// How much is read of one connection.
const BYTE_LIMIT: usize = 64 << 10;

/// The refused connections, the oldest first.
#[derive(Default)]
pub(super) struct LingeringClose(VecDeque<Closing>);

/// A connection whose response was sent and whose input is read to its end.
struct Closing {
    connection: TcpStream,
    until: Instant,
    bytes_left: usize,
}

impl LingeringClose {
    /// Sends `response` on a non-blocking connection and shuts its write side down. If there are
    /// too many connections, the oldest is dropped.
    pub(super) fn add(&mut self, connection: TcpStream, response: &[u8]) {
        if (&connection).write_all(response).is_err() {
            return;
        }
        let _ = connection.shutdown(Shutdown::Write);
        if self.0.len() >= CONNECTION_LIMIT {
            self.0.pop_front();
        }
        self.0.push_back(Closing {
            connection,
            until: Instant::now() + TIME_LIMIT,
            bytes_left: BYTE_LIMIT,
        });
    }

    /// Reads the input that is available, and drops the connections that are finished.
    pub(super) fn drain(&mut self) {
        self.0.retain_mut(Closing::drain);
    }

    /// The descriptors to poll, and when to call [`Self::drain`] at the latest.
    pub(super) fn poll_fds(&self) -> (impl Iterator<Item = PollFd<'_>>, Option<Instant>) {
        let fds = self
            .0
            .iter()
            .map(|closing| PollFd::from_borrowed_fd(closing.connection.as_fd(), PollFlags::IN));
        (fds, self.0.front().map(|closing| closing.until))
    }
}

impl Closing {
    /// Reads the available input. `false`: the connection is finished.
    fn drain(&mut self) -> bool {
        let mut into = [0; 4096];
        while self.bytes_left > 0 && Instant::now() < self.until {
            match (&self.connection).read(&mut into) {
                Ok(0) => return false,
                Ok(n) => self.bytes_left = self.bytes_left.saturating_sub(n),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        false
    }
}
