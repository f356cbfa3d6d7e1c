//! A TCP connection to the first of several addresses that answers, within one deadline and with a stop in sight.

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

/// Connects to the first of `addresses` that answers, and says which it was. The socket is non-blocking, and has no delay. Each gets an equal share of what is left, so that one that swallows
/// packets cannot use up the time of those behind it.
///
/// # Errors
/// The last address' error; `TimedOut`, `ClientLeft` or `Stopped` from the watch.
pub(crate) fn connect(
    addresses: &[SocketAddr],
    watch: &WaitContext<'_>,
) -> Result<(TcpStream, SocketAddr), TunnelError> {
    let mut last = TunnelError::Io(io::Error::new(
        io::ErrorKind::NotFound,
        "the name has no address",
    ));
    for (tried, &address) in addresses.iter().enumerate() {
        let others = addresses.len() - tried;
        let share = watch
            .deadline
            .remaining()
            .map_or(Deadline::never(), |left| {
                Deadline::after(left / others as u32)
            });
        match connect_to(address, watch, share) {
            Ok(stream) => return Ok((stream, address)),
            Err(over @ (TunnelError::ClientLeft | TunnelError::Stopped)) => return Err(over),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

fn connect_to(
    address: SocketAddr,
    watch: &WaitContext<'_>,
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
        if watch.stop.requested().is_some() {
            return Err(TunnelError::Stopped);
        }
        let client = watch.client.map_or(watch.stop.as_fd(), AsFd::as_fd);
        let mut fds = [
            PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT),
            PollFd::from_borrowed_fd(watch.stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(client, PollFlags::empty()),
        ];
        wait(&mut fds, until.instant())?;
        let [ours, _, client] = fds.map(|fd| fd.revents());
        if !ours.is_empty() {
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
