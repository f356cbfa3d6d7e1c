//! Connections that were answered with a refusal and are read to their end, so that no reset overtakes the answer
//! (`manual/protocol.md`). No thread is spent on them: the acceptor tends a bounded list.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

/// How many are read to their end at once, for how long, and how much of each.
const LIMIT: usize = 64;
const PATIENCE: Duration = Duration::from_secs(1);
const BYTES: usize = 64 << 10;

/// Those who leave, the longest there first.
#[derive(Default)]
pub(super) struct LingeringClose(VecDeque<Leaver>);

/// One whose last bytes are still to be read.
struct Leaver {
    connection: TcpStream,
    until: Instant,
    left: usize,
}

impl LingeringClose {
    /// Sends `answer` without waiting, and sees the connection, a non-blocking one, off. One too many pushes the oldest out.
    pub(super) fn add(&mut self, connection: TcpStream, answer: &[u8]) {
        if (&connection).write_all(answer).is_err() {
            return;
        }
        let _ = connection.shutdown(Shutdown::Write);
        if self.0.len() >= LIMIT {
            self.0.pop_front();
        }
        self.0.push_back(Leaver {
            connection,
            until: Instant::now() + PATIENCE,
            left: BYTES,
        });
    }

    /// Reads what there is, and forgets those who are done.
    pub(super) fn tend(&mut self) {
        self.0.retain_mut(Leaver::goes_on);
    }

    /// What to wait for meanwhile, and how long at most.
    pub(super) fn wanted(&self) -> (impl Iterator<Item = PollFd<'_>>, Option<Instant>) {
        let fds = self
            .0
            .iter()
            .map(|leaver| PollFd::from_borrowed_fd(leaver.connection.as_fd(), PollFlags::IN));
        (fds, self.0.front().map(|leaver| leaver.until))
    }
}

impl Leaver {
    fn goes_on(&mut self) -> bool {
        let mut into = [0; 4096];
        while self.left > 0 && Instant::now() < self.until {
            match (&self.connection).read(&mut into) {
                Ok(0) => return false,
                Ok(n) => self.left = self.left.saturating_sub(n),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        false
    }
}
