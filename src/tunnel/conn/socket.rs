//! The socket of a connection: its options, its state in the kernel, and how it ends.

use std::io::{self, Read};
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use socket2::SockRef;

use super::layers::{Conn, Socket};
use crate::net::sockets::{Delivery, delivery};
use crate::net::wait::{OVER, wait};
use crate::sys::memory::{unacknowledged_bytes, unsent_bytes};
use crate::tunnel::error::TunnelError;

impl Conn {
    /// Whether the kernel has bytes that it has not sent because the peer's receive window is full.
    /// Bytes that were sent but not acknowledged do not count.
    pub(crate) fn has_unsent(&self) -> bool {
        let socket = SockRef::from(&*self.socket);
        // With this option poll(2) reports a socket as writable only if nothing is unsent (tcp(7)).
        // 0 restores the system's default.
        if socket.set_tcp_notsent_lowat(1).is_err() {
            return false;
        }
        let mut fds = [PollFd::from_borrowed_fd(
            self.socket.as_fd(),
            PollFlags::OUT,
        )];
        let result = wait(&mut fds, Some(Instant::now()));
        let _ = socket.set_tcp_notsent_lowat(0);
        let [events] = fds.map(|fd| fd.revents());
        result.is_ok() && !events.intersects(OVER | PollFlags::OUT)
    }

    /// Whether the peer has acknowledged the written bytes, according to the kernel. Bytes that
    /// were not acknowledged for `long` count as unanswered.
    pub(crate) fn delivery(&self, long: Duration) -> Delivery {
        delivery(&self.socket, long)
    }

    /// Makes the kernel close the connection if sent bytes are not acknowledged for this long
    /// (`TCP_USER_TIMEOUT`). Zero restores the kernel's default.
    pub(crate) fn set_user_timeout(&self, timeout: Duration) {
        // A kernel without this option uses its default, which is acceptable.
        let _ = SockRef::from(&*self.socket)
            .set_tcp_user_timeout(Some(timeout).filter(|t| !t.is_zero()));
    }

    /// The descriptor for poll(2).
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The socket, to watch it while another connection is in use.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The socket, if another thread can shut it down.
    pub(crate) fn shared_socket(&self) -> Option<&Arc<TcpStream>> {
        match &self.socket {
            Socket::Shared(socket) => Some(socket),
            Socket::Own(_) => None,
        }
    }

    /// Records the events that poll(2) has returned.
    pub(crate) fn set_readiness(&mut self, flags: PollFlags) {
        self.readable |= flags.intersects(OVER | PollFlags::IN);
        self.writable |= flags.intersects(OVER | PollFlags::OUT);
    }

    /// Reads once and drops the bytes. Returns their number; it is 0 at the end of the stream, and
    /// if there are none now.
    ///
    /// # Errors
    /// The connection has failed, which ends the stream too.
    pub(crate) fn discard(&mut self) -> io::Result<usize> {
        let mut into = [0; 16 << 10];
        match (&*self.socket).read(&mut into) {
            Ok(len) => {
                self.eof |= len == 0;
                Ok(len)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(0)
            }
            Err(error) => {
                self.eof = true;
                Err(error)
            }
        }
    }

    /// Treats the peer's direction as ended: nothing more is read.
    #[cfg(feature = "gateway")]
    pub(crate) fn mark_eof(&mut self) {
        self.eof = true;
    }

    /// Treats both directions as ended and drops the bytes that were not written.
    pub(crate) fn abandon(&mut self) {
        self.eof = true;
        self.abandoned = true;
        self.end_error = None;
        self.write_failed = false;
        self.drop_outgoing();
        self.fin_due = false;
        self.fin_sent = true;
    }

    /// Drops the bytes that were not written, and all later ones. What the peer has sent can still
    /// be read; then `fill` returns `error`, if there is one.
    pub(crate) fn abandon_writing(&mut self, error: Option<TunnelError>) {
        self.write_failed = true;
        self.drop_outgoing();
        self.end_error = self.end_error.take().or_else(|| error.map(Box::new));
    }

    /// Counts `bytes` as dropped, which were not encoded because the socket has failed.
    pub(crate) fn count_dropped(&mut self, bytes: usize) {
        self.dropped += bytes as u64;
    }

    /// Whether the socket has failed, so that nothing can be written.
    pub(crate) fn write_failed(&self) -> bool {
        self.write_failed
    }

    /// The error of a socket to which nothing can be written.
    pub(crate) fn take_write_error(&mut self) -> Option<TunnelError> {
        self.write_failed.then(|| {
            self.end_error
                .take()
                .map_or(TunnelError::ConnectionEnded, |error| *error)
        })
    }

    /// The number of written bytes that the peer has not acknowledged and still needs.
    pub(crate) fn unacknowledged(&self) -> u64 {
        if self.abandoned {
            return 0;
        }
        // A FIN counts as a byte.
        let bytes = unacknowledged_bytes(&self.socket) as u64;
        bytes.saturating_sub(self.shut.into())
    }

    /// The number of written bytes that the peer has acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.written.saturating_sub(self.unacknowledged())
    }

    /// The number of encoded bytes that the peer's kernel does not have, as far as this one knows.
    pub(crate) fn undelivered(&self) -> u64 {
        let in_kernel = match self.unacknowledged() {
            0 => 0,
            // The peer has this kernel: what was sent is in its receive buffer. An acknowledgement
            // may be delayed, and a reset of the peer may overtake it.
            unacknowledged if self.peer_is_local() => {
                unacknowledged.min(unsent_bytes(&self.socket) as u64)
            }
            unacknowledged => unacknowledged,
        };
        self.outgoing.len() as u64 + self.dropped + in_kernel
    }

    fn peer_is_local(&self) -> bool {
        let local = self.socket.local_addr();
        local.is_ok_and(|address| address.ip().to_canonical().is_loopback())
    }

    /// The same without the end of TLS, which is no data.
    pub(crate) fn undelivered_data(&self) -> u64 {
        self.undelivered().saturating_sub(self.close_notify)
    }

    /// Ends the sending direction of the socket, once: the peer has received a complete stream.
    pub(crate) fn shut_writing(&mut self) {
        if !mem::replace(&mut self.shut, true) {
            // This fails if the peer is gone, which needs no action.
            let _ = self.socket.shutdown(Shutdown::Write);
            if mem::take(&mut self.resets) {
                let _ = SockRef::from(&*self.socket).set_linger(None);
            }
        }
    }

    /// Makes the kernel send a reset when the socket is closed, also if the process is killed,
    /// unless [`Self::shut_writing`] is called before.
    pub(crate) fn reset_if_incomplete(&mut self) {
        if !self.shut {
            self.reset();
        }
    }

    /// Makes the kernel send a reset when the socket is closed, so that the peer does not take
    /// partial data for all of it.
    pub(crate) fn reset(&mut self) {
        if !mem::replace(&mut self.resets, true) {
            let _ = SockRef::from(&*self.socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// The socket's pending error, if any.
    pub(crate) fn error(&self) -> Option<io::Error> {
        self.socket.take_error().ok().flatten()
    }
}

impl Drop for Conn {
    /// A worker that panics may have delivered a part of the data only: the peer gets a reset.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.reset();
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::TcpListener;

    use rustix::net::sockopt::set_tcp_quickack;

    use super::*;
    use crate::tunnel::buffer::Pool;

    #[test]
    fn what_the_kernel_of_a_local_peer_has_is_delivered_also_if_a_reset_overtakes_its_acknowledgement()
     {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let mut conn = Conn::new(stream, &Pool::default());
        // The kernel delays most acknowledgements after this, but not all.
        let delayed = (0..100).any(|_| {
            set_tcp_quickack(&peer, false).unwrap();
            conn.send(b"data").unwrap();
            conn.flush().unwrap();
            conn.unacknowledged() > 0
        });
        assert!(delayed, "no acknowledgement was delayed");
        SockRef::from(&peer)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(peer);
        assert!(conn.error().is_some());
        assert_eq!(conn.undelivered(), 0);
    }
}
