//! Moves HTTP/1.1 messages between a client and an origin: one request and its response at a time
//! ([RFC 9112]).
//!
//! The caller reads a request head with [`HttpPeer::read_request`], decides about it, and runs the
//! exchange. Bodies are forwarded as they arrive, in both directions at once, in constant memory.
//! Interim responses are forwarded too. After a 101 both connections carry another protocol.
//! A `pump` moves a stream without messages.
//!
//! [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112

use std::mem;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::buffer::Buffer;
use super::conn::Conn;
use super::error::TunnelError;
use super::keepalive::{Keepalive, KeepaliveAction};
use super::pump::PumpContext;
use super::pump::side::Side;
use super::ws_codec::WsCodec;
use crate::control::deadline::Deadline;
use crate::control::metrics::Counters;
use crate::control::phase::Phase;
use crate::http::body::{Body, BodyError};
use crate::http::head::{self, HeadError, RequestHead, ResponseHead};
use crate::net::wait::wait;

/// The time without any byte after which unused memory is released.
const RELEASE_AFTER: Duration = Duration::from_millis(300);

/// One end of an exchange: the client or the origin.
#[derive(Debug)]
pub(crate) struct HttpPeer {
    side: Side,
    /// Pings, if the connection has a WebSocket.
    keepalive: Keepalive,
}

/// The parts of a request that the exchange needs; its body follows from the client.
pub(crate) struct Request<'a> {
    /// The head for the origin.
    pub(crate) head: &'a [u8],
    pub(crate) method: &'a str,
    pub(crate) body: Body,
    /// The client speaks HTTP/1.0 and does not understand interim responses.
    pub(crate) old: bool,
    /// The request offers another protocol, so that a 101 is a valid response.
    pub(crate) upgrades: bool,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exchanged {
    /// Both messages are complete.
    Complete {
        /// The origin can receive another request.
        origin_persists: bool,
        /// The client can send another request.
        client_persists: bool,
    },
    /// The response is a 101: both connections now carry another protocol.
    Upgraded,
}

/// Why an exchange failed.
#[derive(Debug)]
pub(crate) struct ExchangeError {
    pub(crate) cause: Cause,
    /// A part of the response was sent to the client, so that no other response is possible.
    pub(crate) answered: bool,
}

/// What failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    /// The connection to the client, or the client left.
    #[error("{0}")]
    Client(TunnelError),
    /// The body of the request is malformed.
    #[error("{0}")]
    Request(BodyError),
    /// The connection to the origin.
    #[error("the connection to the origin failed: {0}")]
    Origin(TunnelError),
    /// The origin ended the connection before the first byte of its response.
    #[error("the origin closed the connection without a response")]
    NoResponse,
    /// The origin ended the connection inside its response.
    #[error("the origin closed the connection inside its response")]
    Truncated,
    /// The head of the response is malformed.
    #[error("the response of the origin is malformed: {0}")]
    ResponseHead(HeadError),
    /// The body of the response is malformed.
    #[error("the response of the origin is malformed: {0}")]
    ResponseBody(BodyError),
    /// The response is a 101, which was not requested.
    #[error("the origin changed the protocol without a request for it")]
    UnexpectedUpgrade,
    /// No data for as long as the idle timeout.
    #[error("no data for as long as the idle timeout")]
    Idle,
    /// The drain deadline has passed.
    #[error("the drain deadline has passed")]
    Cut,
}

/// The bytes that were forwarded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    /// From client to origin, with heads.
    pub(crate) up: u64,
    /// From origin to client, with heads.
    pub(crate) down: u64,
    /// How many of them the client did not acknowledge.
    pub(crate) undelivered: u64,
}

impl HttpPeer {
    /// The end at `conn`; `pending` was received from it already.
    pub(crate) fn new(conn: Conn, pending: Buffer, context: &PumpContext<'_>) -> Self {
        Self {
            side: Side::new(conn, pending),
            keepalive: Keepalive::new(context.limits.keepalive, Instant::now()),
        }
    }

    /// The connection.
    pub(crate) fn conn(&mut self) -> &mut Conn {
        &mut self.side.conn
    }

    /// The connection, and what was received from it.
    pub(crate) fn into_parts(self) -> (Conn, Buffer) {
        (self.side.conn, self.side.pending)
    }

    /// Whether the end has finished sending, or is gone.
    pub(crate) fn has_ended(&self) -> bool {
        let conn = &self.side.conn;
        conn.peer_finished() || conn.eof() || self.is_closed()
    }

    /// Whether another request can be sent to this origin. Data without a request violates HTTP.
    pub(crate) fn is_idle(&self) -> bool {
        !self.has_ended() && self.side.pending.is_empty()
    }

    fn is_closed(&self) -> bool {
        let codec = self.side.conn.websocket();
        codec.and_then(WsCodec::peer_close).is_some()
    }

    /// Reads the head of the next request, and answers pings of the `origin` that is kept for it.
    /// `None`: the client has ended the connection, or a stop was requested. Blocks until
    /// `deadline` at most.
    pub(crate) fn read_request(
        &mut self,
        mut origin: Option<&mut Self>,
        context: &PumpContext<'_>,
        deadline: Deadline,
    ) -> Result<Option<RequestHead>, TunnelError> {
        loop {
            self.fill()?;
            if let Some((head, len)) = head::request(self.side.pending.filled())? {
                self.side.pending.consume(len);
                return Ok(Some(head));
            }
            if self.has_ended() && self.side.pending.is_empty() {
                return Ok(None);
            }
            if self.has_ended() {
                return Err(TunnelError::ConnectionEnded);
            }
            if context.stop.requested().is_some() {
                return Ok(None);
            }
            if deadline.passed() {
                return Err(TunnelError::TimedOut(Phase::Head));
            }
            let until = deadline.instant();
            match &mut origin {
                Some(origin) if origin.is_idle() => {
                    // An origin that fails now is found when the next request is sent to it.
                    let _ = origin.fill();
                    let reads = [true, origin.is_idle()];
                    match pause([self, origin], reads, context, until) {
                        Err((0, error)) => return Err(error),
                        Err(_) => origin.side.conn.abandon(),
                        Ok(()) => {}
                    }
                }
                _ => {
                    let mut fds = [
                        PollFd::from_borrowed_fd(self.side.conn.fd(), self.side.interest(true)),
                        PollFd::from_borrowed_fd(context.stop.wake_fd(None), PollFlags::IN),
                    ];
                    wait(&mut fds, until)?;
                    let [events, _] = fds.map(|fd| fd.revents());
                    self.side.conn.set_readiness(events);
                }
            }
        }
    }

    /// Reads once, if the socket has bytes.
    fn fill(&mut self) -> Result<(), TunnelError> {
        if self.side.conn.readable && !self.has_ended() {
            self.side.conn.fill(&mut self.side.pending)?;
        }
        self.side.conn.flush()
    }

    /// Runs the timers of the WebSocket, if there is one.
    fn on_timer(&mut self, now: Instant, reading: bool) -> Result<(), TunnelError> {
        if self.side.conn.websocket().is_none() || self.is_closed() {
            return Ok(());
        }
        if mem::take(&mut self.side.conn.sent) {
            self.keepalive.on_sent(now);
        }
        if mem::take(&mut self.side.conn.received) {
            self.keepalive.on_received(now);
        }
        match self.keepalive.check(now, reading) {
            KeepaliveAction::Ping => self.side.conn.ping(),
            KeepaliveAction::Dead => Err(TunnelError::PeerSilent),
            KeepaliveAction::Wait => Ok(()),
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let pings = self.side.conn.websocket().is_some() && !self.is_closed();
        pings.then(|| self.keepalive.next_check()).flatten()
    }
}

/// Waits for events of both ends, until `until` at most, and runs their timers. The number in the
/// error is that of the end.
fn pause(
    ends: [&mut HttpPeer; 2],
    reads: [bool; 2],
    context: &PumpContext<'_>,
    until: Option<Instant>,
) -> Result<(), (usize, TunnelError)> {
    let stop = context.stop;
    let draining = stop.requested();
    let timers = [
        until,
        draining.and_then(Deadline::instant),
        ends[0].next_timer(),
        ends[1].next_timer(),
    ];
    let until = timers.into_iter().flatten().min();
    let interests = [0, 1].map(|n: usize| ends[n].side.interest(reads[n]));
    let fd = |n: usize| {
        let end: &HttpPeer = &*ends[n];
        let fd = if end.side.is_skipped(interests[n]) {
            std::os::fd::AsFd::as_fd(stop)
        } else {
            end.side.conn.fd()
        };
        PollFd::from_borrowed_fd(fd, interests[n])
    };
    let wake = PollFd::from_borrowed_fd(stop.wake_fd(draining), PollFlags::IN);
    let mut fds = [fd(0), fd(1), wake];
    wait(&mut fds, until).map_err(|error| (0, error.into()))?;
    let [first, second, _] = fds.map(|fd| fd.revents());
    let now = Instant::now();
    for (n, (end, events)) in ends.into_iter().zip([first, second]).enumerate() {
        if end.side.record(events, interests[n])
            && let Some(error) = end.side.conn.error()
        {
            return Err((n, error.into()));
        }
        // Received bytes must be read before the peer counts as silent.
        if events.is_empty() {
            end.on_timer(now, reads[n]).map_err(|error| (n, error))?;
        }
    }
    Ok(())
}

/// An exchange that runs.
struct Exchange<'a> {
    client: &'a mut HttpPeer,
    origin: &'a mut HttpPeer,
    request_body: Body,
    /// `None` until the head of the final response was forwarded.
    response_body: Option<Body>,
    /// Why nothing more can be read from the origin.
    origin_error: Option<TunnelError>,
    /// A part of the response was passed to the client's connection.
    answered: bool,
    origin_persists: bool,
    client_persists: bool,
    context: &'a PumpContext<'a>,
    traffic: &'a mut Traffic,
}

/// Writes the head of a response for the client. Its arguments are the head, its reason phrase, and
/// whether the client's connection persists.
pub(crate) type WriteHead<'a> = dyn FnMut(&ResponseHead, &[u8], bool) -> Vec<u8> + 'a;

/// Sends `request` to `origin` and its response to `client`.
///
/// Blocks until both messages are complete.
pub(crate) fn run(
    client: &mut HttpPeer,
    origin: &mut HttpPeer,
    request: &Request<'_>,
    context: &PumpContext<'_>,
    traffic: &mut Traffic,
    write_head: &mut WriteHead<'_>,
) -> Result<Exchanged, ExchangeError> {
    let mut exchange = Exchange {
        client,
        origin,
        request_body: request.body.clone(),
        response_body: None,
        origin_error: None,
        answered: false,
        origin_persists: true,
        client_persists: true,
        context,
        traffic,
    };
    exchange
        .run(request, write_head)
        .map_err(|cause| ExchangeError {
            cause,
            answered: exchange.answered,
        })
}

impl Exchange<'_> {
    fn run(
        &mut self,
        request: &Request<'_>,
        write_head: &mut WriteHead<'_>,
    ) -> Result<Exchanged, Cause> {
        self.send_to_origin(request.head)?;
        let mut last_data = Instant::now();
        let mut released = false;
        loop {
            if self.context.stop.requested().is_some_and(Deadline::passed) {
                return Err(Cause::Cut);
            }
            let before = (self.traffic.up, self.traffic.down);
            self.read()?;
            self.forward_request()?;
            if let Some(upgraded) = self.forward_response(request, write_head)? {
                return Ok(upgraded);
            }
            self.flush()?;
            if let Some(done) = self.end()? {
                return Ok(done);
            }
            let now = Instant::now();
            if before != (self.traffic.up, self.traffic.down) {
                last_data = now;
                released = false;
                continue;
            }
            let idle = self.context.limits.idle_timeout;
            let idle_at = (!idle.is_zero()).then(|| last_data + idle);
            if idle_at.is_some_and(|at| at <= now) {
                return Err(Cause::Idle);
            }
            let release_at = (!released).then(|| last_data + RELEASE_AFTER);
            if release_at.is_some_and(|at| at <= now) {
                self.client.side.release_buffers();
                self.origin.side.release_buffers();
                released = true;
                continue;
            }
            let until = idle_at.into_iter().chain(release_at).min();
            let reads = [self.reads_client(), self.reads_origin()];
            pause([self.client, self.origin], reads, self.context, until).map_err(
                |(n, error)| match n {
                    0 => Cause::Client(error),
                    _ => Cause::Origin(error),
                },
            )?;
        }
    }

    fn reads_client(&self) -> bool {
        self.client.side.pending.is_empty() && !self.client.has_ended()
    }

    /// Whether to read from the origin: its earlier data was forwarded, or is an incomplete head.
    fn reads_origin(&self) -> bool {
        let room = self.origin.side.pending.is_empty() || self.response_body.is_none();
        room && !self.origin.has_ended() && self.origin_error.is_none()
    }

    fn read(&mut self) -> Result<(), Cause> {
        if self.reads_client() && self.client.side.conn.readable {
            self.client.fill().map_err(Cause::Client)?;
        }
        if self.reads_origin() && self.origin.side.conn.readable {
            // What arrived before an error is forwarded first.
            self.origin_error = self.origin.fill().err();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Cause> {
        self.client.side.conn.flush().map_err(Cause::Client)?;
        if self.origin.side.conn.flush().is_err() {
            // The origin may have refused the request before it closed the connection. If not,
            // reading reports the error.
            self.origin.side.conn.abandon_writing(None);
            self.origin_persists = false;
            self.client_persists = false;
            self.request_body = Body::EMPTY;
        }
        Ok(())
    }

    fn forward_request(&mut self) -> Result<(), Cause> {
        let pending = &mut self.client.side.pending;
        if self.request_body.is_complete() || pending.is_empty() {
            return Ok(());
        }
        if !self.origin.side.conn.flushed() {
            return Ok(());
        }
        let len = self
            .request_body
            .take(pending.filled())
            .map_err(Cause::Request)?;
        count(&mut self.traffic.up, len, &self.context.counters.bytes_up);
        let conn = &mut self.origin.side.conn;
        conn.encode_front(pending, len).map_err(Cause::Origin)
    }

    fn send_to_origin(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        let counter = &self.context.counters.bytes_up;
        count(&mut self.traffic.up, bytes.len(), counter);
        self.origin.side.conn.send(bytes).map_err(Cause::Origin)
    }

    fn send_to_client(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        let counter = &self.context.counters.bytes_down;
        count(&mut self.traffic.down, bytes.len(), counter);
        self.answered = true;
        self.client.side.conn.send(bytes).map_err(Cause::Client)
    }

    fn forward_response(
        &mut self,
        request: &Request<'_>,
        write_head: &mut WriteHead<'_>,
    ) -> Result<Option<Exchanged>, Cause> {
        while self.response_body.is_none() {
            let pending = &self.origin.side.pending;
            let Some((head, len)) =
                head::response(pending.filled()).map_err(Cause::ResponseHead)?
            else {
                return Ok(None);
            };
            if !self.client.side.conn.flushed() {
                return Ok(None);
            }
            if head.status == 101 && !request.upgrades {
                return Err(Cause::UnexpectedUpgrade);
            }
            let body = Body::of_response(&head, request.method).map_err(Cause::ResponseBody)?;
            let interim = (100..200).contains(&head.status);
            if !interim {
                let persists = !head.old && !head.fields.lists("connection", "close");
                self.origin_persists &= persists && !body.ends_with_connection();
                // A client whose request is refused early may never send the rest of its body.
                self.client_persists &=
                    !body.ends_with_connection() && self.request_body.is_complete();
                if body.ends_with_connection() {
                    self.client.side.conn.reset_if_incomplete();
                }
                self.response_body = Some(body);
            }
            let reason = head::reason_phrase(&self.origin.side.pending.filled()[..len]);
            let rewritten = write_head(&head, reason, self.client_persists);
            self.origin.side.pending.consume(len);
            if !interim || head.status == 101 || !request.old {
                self.send_to_client(&rewritten)?;
            }
            if head.status == 101 {
                self.flush()?;
                return Ok(Some(Exchanged::Upgraded));
            }
        }
        let pending = &mut self.origin.side.pending;
        if let Some(body) = &mut self.response_body
            && !body.is_complete()
            && !pending.is_empty()
            && self.client.side.conn.flushed()
        {
            let len = body.take(pending.filled()).map_err(Cause::ResponseBody)?;
            let counter = &self.context.counters.bytes_down;
            count(&mut self.traffic.down, len, counter);
            let conn = &mut self.client.side.conn;
            conn.encode_front(pending, len).map_err(Cause::Client)?;
        }
        Ok(None)
    }

    /// Whether the exchange has ended.
    fn end(&mut self) -> Result<Option<Exchanged>, Cause> {
        if self.client.has_ended() && self.client.side.pending.is_empty() {
            if !self.request_body.is_complete() {
                return Err(Cause::Client(TunnelError::ConnectionEnded));
            }
            self.client_persists = false;
            // The origin sees what it would see without a proxy.
            if !self.origin.has_ended() {
                let sent = self.origin.side.conn.send_fin(true);
                sent.map_err(Cause::Origin)?;
                self.origin_persists = false;
            }
        }
        if !self.client.side.conn.flushed() {
            // What was received may have to wait for that.
            return Ok(None);
        }
        let gone = self.origin.has_ended() || self.origin_error.is_some();
        let drained = self.origin.side.pending.is_empty();
        match &self.response_body {
            Some(body) if body.is_complete() => {}
            Some(_) if !gone || !drained => return Ok(None),
            None if !gone => return Ok(None),
            body => {
                if let Some(error) = self.origin_error.take() {
                    return Err(Cause::Origin(error));
                }
                let conn = &self.origin.side.conn;
                let clean = conn.peer_finished() && conn.peer_finished_cleanly();
                let until_close = body.as_ref().is_some_and(Body::ends_with_connection);
                if !(until_close && clean) {
                    return Err(if body.is_none() && drained {
                        Cause::NoResponse
                    } else {
                        Cause::Truncated
                    });
                }
            }
        }
        let complete = self.request_body.is_complete();
        // Bytes after the response were not requested.
        Ok(Some(Exchanged::Complete {
            origin_persists: self.origin_persists && complete && !gone && drained,
            client_persists: self.client_persists && complete,
        }))
    }
}

fn count(own: &mut u64, bytes: usize, shared: &std::sync::atomic::AtomicU64) {
    *own += bytes as u64;
    Counters::add(shared, bytes as u64);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use socket2::SockRef;

    use super::*;
    use crate::config::Limits;
    use crate::control::stop::Stop;
    use crate::http::forward;
    use crate::tunnel::buffer::Pool;

    /// Two connected sockets: the first for an exchange, the second for its peer.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        (stream, peer)
    }

    /// Exchanges a request with a body of `length` bytes, of which the client has sent `sent`.
    /// `origin` plays the other side. Returns the result, and what the client receives.
    fn exchanged(
        length: usize,
        sent: usize,
        origin: impl FnOnce(TcpStream) + Send,
    ) -> (Result<Exchanged, ExchangeError>, Vec<u8>) {
        let (limits, stop) = (Limits::default(), Stop::new().unwrap());
        let (counters, pool) = (Counters::default(), Pool::default());
        let context = PumpContext {
            limits: &limits,
            stop: &stop,
            counters: &counters,
        };
        let head = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        let (parsed, _) = head::request(head.as_bytes()).unwrap().unwrap();
        let request = Request {
            head: head.as_bytes(),
            method: "POST",
            body: Body::of_request(&parsed).unwrap(),
            old: false,
            upgrades: false,
        };
        let (client, mut client_peer) = connection();
        let (server, server_peer) = connection();
        let result = thread::scope(|scope| {
            scope.spawn(|| origin(server_peer));
            let mut sender = client_peer.try_clone().unwrap();
            scope.spawn(move || {
                // The exchange may end before it has read everything.
                let _ = sender.write_all(&vec![b'x'; sent]);
            });
            let peer =
                |stream| HttpPeer::new(Conn::new(stream, &pool), Buffer::new(&pool), &context);
            let (mut client, mut server) = (peer(client), peer(server));
            run(
                &mut client,
                &mut server,
                &request,
                &context,
                &mut Traffic::default(),
                &mut forward::response,
            )
        });
        let mut received = Vec::new();
        // The client's connection may be reset, because not all of its bytes were read.
        let _ = client_peer.read_to_end(&mut received);
        (result, received)
    }

    fn reset(stream: &TcpStream) {
        SockRef::from(stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }

    #[test]
    fn an_origin_that_resets_inside_its_head_ends_the_exchange() {
        let (result, received) = exchanged(0, 0, |mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-").unwrap();
            // The exchange has read this when its own head arrives here.
            stream.read_exact(&mut [0; 10]).unwrap();
            reset(&stream);
        });
        let error = result.unwrap_err();
        assert!(
            matches!(error.cause, Cause::Origin(_) | Cause::Truncated),
            "{error:?}"
        );
        assert!(!error.answered && received.is_empty());
    }

    #[test]
    fn a_refusal_reaches_the_client_although_the_upload_fails() {
        let (result, received) = exchanged(64 << 20, 8 << 20, |mut stream| {
            stream.read_exact(&mut [0; 10]).unwrap();
            let refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno\n";
            stream.write_all(refusal).unwrap();
            // Closed with unread data, so the kernel sends a reset.
        });
        let expected = Exchanged::Complete {
            origin_persists: false,
            client_persists: false,
        };
        assert_eq!(result.ok(), Some(expected));
        let received = String::from_utf8_lossy(&received);
        assert!(received.starts_with("HTTP/1.1 413 "), "{received}");
        assert!(received.ends_with("no\n"), "{received}");
    }
}
