//! The socket under a link: what the kernel knows of it and is told about it, and the ends that are the socket's own.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use socket2::SockRef;

use super::layers::Conn;
use crate::net::sockets::{Delivery, delivery};
use crate::net::wait::{OVER, wait};

impl Conn {
    /// Whether bytes lie in the kernel that the peer has no room for yet. (Whether all has been acknowledged it does not say.)
    pub(crate) fn has_unsent(&self) -> bool {
        let socket = SockRef::from(&self.socket);
        // With this mark poll(2) calls a socket writable only when nothing is unsent (tcp(7)); 0 is the kernel's own again.
        if socket.set_tcp_notsent_lowat(1).is_err() {
            return false;
        }
        let mut fds = [PollFd::from_borrowed_fd(
            self.socket.as_fd(),
            PollFlags::OUT,
        )];
        let asked = wait(&mut fds, Some(Instant::now()));
        let _ = socket.set_tcp_notsent_lowat(0);
        let [ours] = fds.map(|fd| fd.revents());
        asked.is_ok() && !ours.intersects(OVER | PollFlags::OUT)
    }

    /// What became of the bytes that were written, as far as the kernel tells; no answer for so `long` is too long.
    pub(crate) fn delivery(&self, long: Duration) -> Delivery {
        delivery(&self.socket, long)
    }

    /// Lets the kernel give up on a peer that acknowledges nothing for this long, with bytes on the way; zero: its own default.
    pub(crate) fn set_user_timeout(&self, timeout: Duration) {
        // What a kernel without the option does is its default, so a refusal changes nothing that we promise.
        let _ = SockRef::from(&self.socket)
            .set_tcp_user_timeout(Some(timeout).filter(|t| !t.is_zero()));
    }

    /// The socket, for poll.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The socket, for watching it while another link is talked with.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Takes note of what poll said of the socket.
    pub(crate) fn set_readiness(&mut self, flags: PollFlags) {
        self.readable |= flags.intersects(OVER | PollFlags::IN);
        self.writable |= flags.intersects(OVER | PollFlags::OUT);
    }

    /// Reads once and drops what came, for a socket whose bytes mean nothing any more. Returns how much, and nothing at its end.
    pub(crate) fn discard(&mut self) -> Option<usize> {
        let mut into = [0; 16 << 10];
        match (&self.socket).read(&mut into) {
            Ok(len @ 1..) => return Some(len),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Some(0);
            }
            Ok(0) | Err(_) => self.eof = true,
        }
        None
    }

    /// Takes the peer for gone: nothing more is read from it.
    pub(crate) fn mark_eof(&mut self) {
        self.eof = true;
    }

    /// Takes the connection for over both ways, though not all that was to be sent has gone.
    pub(crate) fn abandon(&mut self) {
        self.eof = true;
        self.outgoing.consume(self.outgoing.len());
        self.fin_due = false;
        self.fin_sent = true;
    }

    /// Ends the sending direction of the socket itself.
    pub(crate) fn shut_writing(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Makes the close to come a reset, so that nobody takes a part for the whole.
    pub(crate) fn reset(&self) {
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    /// What the kernel holds against the socket, if anything.
    pub(crate) fn error(&self) -> Option<io::Error> {
        self.socket.take_error().ok().flatten()
    }
}

impl Drop for Conn {
    /// A worker that panics has delivered a part at most: its peers must not take the close that comes now for the end.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.reset();
        }
    }
}
