//! Opens a TCP connection to the first of several addresses that answers.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags};
use socket2::{Domain, Protocol, Socket, Type};

use super::drive::WaitContext;
use super::error::TunnelError;
use crate::control::deadline::Deadline;
use crate::control::phase::Phase;
use crate::net::wait::{OVER, wait};

/// Connects to the first of `addresses` that answers; blocks until the deadline of `context` at
/// most. Returns the socket, non-blocking and with `TCP_NODELAY`, and its address.
///
/// Each address gets an equal share of the remaining time, so that one that drops packets does not
/// use up the time of the others.
///
/// # Errors
/// The error of the last address; `TimedOut`, `ClientLeft` or `Stopped` because of `context`.
pub(crate) fn connect(
    addresses: &[SocketAddr],
    context: &WaitContext<'_>,
) -> Result<(TcpStream, SocketAddr), TunnelError> {
    let mut last = TunnelError::Io(io::Error::new(
        io::ErrorKind::NotFound,
        "the name has no address",
    ));
    for (tried, &address) in addresses.iter().enumerate() {
        let others = addresses.len() - tried;
        let share = context
            .deadline
            .remaining()
            .map_or(Deadline::never(), |left| {
                Deadline::after(left / others as u32)
            });
        match connect_to(address, context, share) {
            Ok(stream) => return Ok((stream, address)),
            Err(error @ (TunnelError::ClientLeft | TunnelError::Stopped)) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect_to(
    address: SocketAddr,
    context: &WaitContext<'_>,
    until: Deadline,
) -> Result<TcpStream, TunnelError> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => return Ok(socket.into()),
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(error.into()),
    }
    loop {
        if context.stop.requested().is_some() {
            return Err(TunnelError::Stopped);
        }
        let client = context.client.map_or(context.stop.as_fd(), AsFd::as_fd);
        let mut fds = [
            PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT),
            PollFd::from_borrowed_fd(context.stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(client, PollFlags::empty()),
        ];
        wait(&mut fds, until.instant())?;
        let [socket_events, _, client] = fds.map(|fd| fd.revents());
        if !socket_events.is_empty() {
            return match socket.take_error()? {
                None => Ok(socket.into()),
                Some(error) => Err(error.into()),
            };
        }
        if client.intersects(OVER) {
            return Err(TunnelError::ClientLeft);
        }
        if until.passed() {
            return Err(TunnelError::TimedOut(Phase::Connect));
        }
    }
}
