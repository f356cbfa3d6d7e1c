//! Opens a connection to a target through a parent proxy, on a TCP connection to that proxy.
//!
//! The response's head is read without a byte beyond it, so the socket is then as one that was
//! connected to the target itself.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::drive::WaitContext;
use super::error::{ParentError, TunnelError};
use crate::config::ParentProxy;
use crate::http::authority::Authority;
use crate::http::head::{self, HEAD_LIMIT};
use crate::net::wait::wait;

/// Sends the CONNECT request for `target` over `stream`, a non-blocking connection to `proxy`, and
/// waits for its response. Blocks until the deadline of `context` at most.
///
/// # Errors
/// `Parent` if the proxy answers with another status than 2xx; `TimedOut`, `ClientLeft` or
/// `Stopped` because of `context`; the error of the connection.
pub(crate) fn establish(
    stream: &TcpStream,
    proxy: &ParentProxy,
    target: &Authority,
    context: &WaitContext<'_>,
) -> Result<(), TunnelError> {
    let request = proxy.request(target);
    let mut sent = 0;
    while sent < request.len() {
        match send(stream, &request[sent..], SendFlags::NOSIGNAL) {
            Ok(count) => sent += count,
            Err(errno) => retry(stream, PollFlags::OUT, errno.into(), context)?,
        }
    }
    let mut head = Vec::new();
    let mut bytes = [0; 1024];
    loop {
        let peeked = match recv(stream, &mut bytes, RecvFlags::PEEK) {
            Ok((_, 0)) => return Err(TunnelError::ConnectionEnded),
            Ok((_, count)) => count,
            Err(errno) => {
                retry(stream, PollFlags::IN, errno.into(), context)?;
                continue;
            }
        };
        let before = head.len();
        head.extend_from_slice(&bytes[..peeked]);
        let found = head::final_response(&head)?;
        // What the head does not need stays in the socket.
        let used = found.as_ref().map_or(head.len(), |(_, len)| *len) - before;
        recv(stream, &mut bytes[..used], RecvFlags::empty()).map_err(std::io::Error::from)?;
        match found {
            Some((head, _)) if (200..300).contains(&head.status) => return Ok(()),
            Some((head, _)) => return Err(ParentError::from_status(head.status).into()),
            None if head.len() >= HEAD_LIMIT => return Err(head::HeadError::TooLarge.into()),
            None => {}
        }
    }
}

/// Waits for `events` of the socket if `error` means that it is not ready.
fn retry(
    stream: &TcpStream,
    events: PollFlags,
    error: std::io::Error,
    context: &WaitContext<'_>,
) -> Result<(), TunnelError> {
    match error.kind() {
        ErrorKind::Interrupted => return Ok(()),
        ErrorKind::WouldBlock => {}
        _ => return Err(error.into()),
    }
    if context.stop.requested().is_some() {
        return Err(TunnelError::Stopped);
    }
    if context.deadline.passed() {
        return Err(TunnelError::TimedOut(context.phase));
    }
    let (client, client_events) = context.client_poll();
    let mut fds = [
        PollFd::from_borrowed_fd(stream.as_fd(), events),
        PollFd::from_borrowed_fd(context.stop.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(client, client_events),
    ];
    wait(&mut fds, context.deadline.instant())?;
    if context.client_has_left(fds[2].revents()) {
        return Err(TunnelError::ClientLeft);
    }
    Ok(())
}
