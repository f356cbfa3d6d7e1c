//! Requests in absolute-form ([RFC 9112, section 3.2.2]): the relay opens a tunnel to the origin
//! itself, with TLS for `https`, and forwards request and response.
//!
//! The client's connection persists, and so does the tunnel while the client requests the same
//! origin.
//!
//! [RFC 9112, section 3.2.2]: https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2

use std::time::{Duration, Instant};

use rustls::client::UnbufferedClientConnection;
use tungstenite::protocol::frame::coding::CloseCode;

use super::access::AccessControl;
use super::dial::DialedTunnel;
use super::request::{self, ClientRequest};
use super::state::Relay;
use crate::control::deadline::Deadline;
use crate::control::hosts::OpenTunnel;
use crate::control::outcome::{EndReason, Outcome, Party, TunnelSummary};
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::crypto::tls;
use crate::crypto::tls_error::{self, Verifier};
use crate::http::authority::Authority;
use crate::http::body::{Body, BodyError};
use crate::http::forward::{self, AbsoluteTarget};
use crate::http::head::RequestHead;
use crate::http::response;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::drive::{WaitContext, WatchedClient, close_and_drain, drive_until};
use crate::tunnel::error::{TlsError, TunnelError, tls_status};
use crate::tunnel::exchange::{self, Cause, ExchangeError, Exchanged, HttpPeer, Request, Traffic};
use crate::tunnel::frame::Role;
use crate::tunnel::pump::{Pump, PumpContext};
use crate::tunnel::remainder::{Bounds, FAULT_SHARE, TcpEnd, deliver};
use crate::tunnel::tls::Tls;

/// How long a connection may wait for the client's next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the end of an unused tunnel may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// One client that sends requests in absolute-form.
pub(super) struct Forwarder<'a> {
    relay: &'a Relay,
    context: PumpContext<'a>,
    client: HttpPeer,
    origin: Option<Origin>,
    /// Receives the outcome of each tunnel except the last.
    report: &'a mut dyn FnMut(Outcome),
}

/// A tunnel to an origin.
struct Origin {
    peer: HttpPeer,
    target: AbsoluteTarget,
    since: Instant,
    traffic: Traffic,
    /// Counts it as open.
    _open: OpenTunnel,
}

impl<'a> Forwarder<'a> {
    pub(super) fn new(
        relay: &'a Relay,
        client: Conn,
        early: Buffer,
        report: &'a mut dyn FnMut(Outcome),
    ) -> Self {
        let context = relay.pump_context();
        Self {
            relay,
            client: HttpPeer::new(client, early, &context),
            context,
            origin: None,
            report,
        }
    }

    /// Serves the request and those that follow on the same connection.
    pub(super) fn run(mut self, first: RequestHead, target: AbsoluteTarget) -> Outcome {
        let mut next = Some((first, target));
        while let Some((head, target)) = next {
            let since = Instant::now();
            match self.serve(&head, &target) {
                Ok(Served::Persists) => {}
                Ok(Served::Closes) => return self.close(EndReason::Clean),
                Ok(Served::Upgraded) => return self.upgraded(),
                Err(failure) => return self.fail(failure, since, &target),
            }
            next = match self.next_request() {
                Ok(next) => next,
                Err(reason) => return self.close(reason),
            };
        }
        self.close(EndReason::Clean)
    }

    /// Serves one request.
    fn serve(&mut self, head: &RequestHead, target: &AbsoluteTarget) -> Result<Served, Failure> {
        let body = Body::of_request(head).map_err(Failure::request_body)?;
        let reusable = self
            .origin
            .take_if(|origin| origin.target.is_same_origin(target) && origin.peer.is_idle());
        if let Some(other) = self.origin.take() {
            (self.report)(other.close(self.relay, EndReason::Clean));
        }
        if reusable.is_some() {
            self.origin = reusable;
            // RFC 9110, section 9.2.2: only an idempotent request may be repeated. The origin may
            // have ended the connection while the request was on its way.
            let repeatable = body.is_complete() && is_idempotent(&head.method);
            match self.exchange(head, target, body.clone()) {
                Err(Failure::Exchange(ExchangeError {
                    cause: Cause::NoResponse | Cause::Origin(_),
                    answered: false,
                })) if repeatable => {
                    if let Some(stale) = self.origin.take() {
                        (self.report)(stale.close(self.relay, EndReason::Clean));
                    }
                }
                result => return result,
            }
        }
        self.origin = Some(self.connect(target)?);
        self.exchange(head, target, body)
    }

    /// Sends the request to the current origin and its response to the client.
    fn exchange(
        &mut self,
        head: &RequestHead,
        target: &AbsoluteTarget,
        body: Body,
    ) -> Result<Served, Failure> {
        let Some(origin) = &mut self.origin else {
            return Err(Failure::Ended(EndReason::Abandoned));
        };
        let client_persists = forward::client_persists(head);
        let request = Request {
            head: &forward::request(head, target),
            method: &head.method,
            body,
            old: head.old,
            upgrades: forward::offers_upgrade(head),
        };
        let exchanged = exchange::run(
            &mut self.client,
            &mut origin.peer,
            &request,
            &self.context,
            &mut origin.traffic,
            &mut |head, reason, persists| {
                forward::response(head, reason, persists && client_persists)
            },
        );
        match exchanged.map_err(Failure::Exchange)? {
            Exchanged::Upgraded => Ok(Served::Upgraded),
            Exchanged::Complete {
                origin_persists,
                client_persists: persists,
            } => {
                if !origin_persists && let Some(origin) = self.origin.take() {
                    (self.report)(origin.close(self.relay, EndReason::Clean));
                }
                Ok(if persists && client_persists {
                    Served::Persists
                } else {
                    Served::Closes
                })
            }
        }
    }

    /// Opens a tunnel to the origin of `target`, with TLS if the scheme requires it.
    fn connect(&mut self, target: &AbsoluteTarget) -> Result<Origin, Failure> {
        let since = Instant::now();
        let relay = self.relay;
        let dialed = relay.dial(&target.authority, self.client.conn().socket());
        let DialedTunnel { mut conn, received } = dialed.map_err(Failure::Ended)?;
        let open = relay.context.count_tunnel(&target.authority.to_string());
        let mut received = received;
        if target.tls {
            let client = self.client.conn();
            add_tls(relay, &target.authority, client, &mut conn, &mut received)?;
        }
        Ok(Origin {
            peer: HttpPeer::new(conn, received, &self.context),
            target: target.clone(),
            since,
            traffic: Traffic::default(),
            _open: open,
        })
    }

    /// Reads the next request. `None`: there is none.
    fn next_request(&mut self) -> Result<Option<(RequestHead, AbsoluteTarget)>, EndReason> {
        let deadline = Deadline::after(IDLE_TIMEOUT);
        let socket = self.client.conn().shared_socket();
        let _idle = socket.map(|socket| self.relay.newcomers.add(socket));
        let origin = self.origin.as_mut().map(|origin| &mut origin.peer);
        let head = match self.client.read_request(origin, &self.context, deadline) {
            Ok(Some(head)) => head,
            Ok(None) | Err(TunnelError::TimedOut(_)) => return Ok(None),
            Err(error) => {
                let reason = request::unread(&error, false);
                self.answer(&reason);
                return Err(reason);
            }
        };
        let requested = if self.relay.access.has_password(&head.fields) {
            request::requested(head, self.relay.own_address)
        } else {
            Err(AccessControl::challenge())
        };
        let rejection = match requested {
            Ok(ClientRequest::Forward(head, target)) => return Ok(Some((*head, *target))),
            Ok(ClientRequest::Tunnel(_)) => {
                Rejection::new(400, Phase::Head, "CONNECT follows another request")
                    .remedy("open a new connection for it")
                    .proxy_status("http_request_error")
            }
            Err(rejection) => rejection,
        };
        let reason = rejection.into();
        self.answer(&reason);
        Err(reason)
    }

    /// Sends the response of a rejection.
    fn answer(&mut self, reason: &EndReason) {
        if let EndReason::Rejected(rejection) = reason {
            let conn = self.client.conn();
            // If the client is gone, there is no one to answer.
            let _ = conn
                .send(&response::closing(rejection))
                .and_then(|()| conn.flush());
        }
    }

    /// Ends both connections after the last response was delivered.
    fn close(self, reason: EndReason) -> Outcome {
        let Self {
            relay,
            client,
            origin,
            ..
        } = self;
        let (client, _) = client.into_parts();
        let (failure, undelivered) = finish_client(relay, client, TcpEnd::Fin);
        let reason = failure.unwrap_or(reason);
        match origin {
            Some(mut origin) => {
                origin.traffic.undelivered = undelivered;
                origin.close(relay, reason)
            }
            None => Outcome::new(Instant::now(), None, Err(EndReason::Answered)),
        }
    }

    /// The connections carry another protocol from now on.
    fn upgraded(self) -> Outcome {
        let Self {
            context,
            client,
            origin,
            ..
        } = self;
        let Some(origin) = origin else {
            return Outcome::new(Instant::now(), None, Err(EndReason::Abandoned));
        };
        let (client, outbound) = client.into_parts();
        let (conn, inbound) = origin.peer.into_parts();
        let pump = Pump::new(Role::Client, client, conn, outbound, inbound, context);
        let mut summary = pump.run();
        summary.up += origin.traffic.up;
        summary.down += origin.traffic.down;
        let authority = Some(origin.target.authority.to_string());
        Outcome::new(origin.since, authority, Ok(summary))
    }

    /// Ends both connections because a request failed. The client receives a response if none was
    /// begun; otherwise its connection is reset, so that it does not take a part for the whole.
    fn fail(mut self, failure: Failure, since: Instant, target: &AbsoluteTarget) -> Outcome {
        let authority = Some(target.authority.to_string());
        let (reason, answered) = failure.reason();
        let reason = reason.for_target(authority.as_deref());
        let stop = &self.relay.context.stop;
        if let EndReason::Rejected(_) = reason {
            self.answer(&reason);
            let (client, _) = self.client.into_parts();
            close_and_drain(client, stop, CLOSE_TIMEOUT);
        } else {
            let (client, _) = self.client.into_parts();
            if answered {
                // The first failure is the reason.
                let (_, undelivered) = finish_client(self.relay, client, TcpEnd::Reset);
                if let Some(origin) = &mut self.origin {
                    origin.traffic.undelivered = undelivered;
                }
            }
        }
        match self.origin {
            Some(origin) if !matches!(reason, EndReason::Rejected(_)) => origin.abort(reason),
            Some(origin) => {
                drop(origin.abort(EndReason::Abandoned));
                Outcome::new(since, authority, Err(reason))
            }
            None => Outcome::new(since, authority, Err(reason)),
        }
    }
}

/// Delivers the last response to the client, and ends the connection. Returns why this failed, and
/// how many bytes the client did not acknowledge.
fn finish_client(relay: &Relay, mut client: Conn, end: TcpEnd) -> (Option<EndReason>, u64) {
    let context = &relay.context;
    let stall = context.limits.stall_timeout;
    let bounds = Bounds {
        stop: &context.stop,
        stall: match end {
            TcpEnd::Fin => stall,
            TcpEnd::Reset => stall / FAULT_SHARE,
        },
        last_read: match end {
            TcpEnd::Fin => CLOSE_TIMEOUT,
            TcpEnd::Reset => Duration::ZERO,
        },
    };
    let mut rest = Buffer::new(&context.pool);
    let result = deliver(&mut client, &mut rest, bounds, |client| match end {
        TcpEnd::Fin => client.send_fin(true),
        TcpEnd::Reset => Ok(()),
    });
    if result.is_err() || end == TcpEnd::Reset {
        client.reset();
    }
    match result {
        Ok(()) => (None, 0),
        Err(TunnelError::Stopped) => (Some(EndReason::Cut), client.undelivered()),
        Err(error) => {
            let (by, why) = (Party::Client, error.to_string());
            (Some(EndReason::Broken { by, why }), client.undelivered())
        }
    }
}

/// How a request was served.
enum Served {
    /// The client may send another request.
    Persists,
    /// The client's connection ends after the response.
    Closes,
    /// Both connections carry another protocol now.
    Upgraded,
}

/// Why a request was not served.
enum Failure {
    /// There is no tunnel, or the request cannot be forwarded.
    Ended(EndReason),
    Exchange(ExchangeError),
}

impl Failure {
    fn request_body(error: BodyError) -> Self {
        let status = if error == BodyError::Coding { 501 } else { 400 };
        let rejection = Rejection::new(status, Phase::Head, error.to_string())
            .remedy("send one Content-Length, or Transfer-Encoding: chunked")
            .proxy_status("http_request_error");
        Self::Ended(rejection.into())
    }

    /// How the connection ends, and whether a part of a response was sent.
    fn reason(self) -> (EndReason, bool) {
        let (cause, answered) = match self {
            Self::Ended(reason) => return (reason, false),
            Self::Exchange(ExchangeError { cause, answered }) => (cause, answered),
        };
        let (by, proxy_status) = match cause {
            Cause::Client(TunnelError::ConnectionEnded) => {
                return (EndReason::ClientClosed, answered);
            }
            Cause::Cut => return (EndReason::Cut, true),
            Cause::Idle => return (EndReason::Idle, true),
            Cause::Request(error) if !answered => return Self::request_body(error).reason(),
            Cause::Client(_) | Cause::Request(_) => (Party::Client, None),
            Cause::Origin(_) => (Party::Gateway, Some("connection_terminated")),
            Cause::NoResponse | Cause::Truncated => {
                (Party::Target, Some("http_response_incomplete"))
            }
            Cause::ResponseHead(_) | Cause::ResponseBody(_) | Cause::UnexpectedUpgrade => {
                (Party::Target, Some("http_protocol_error"))
            }
        };
        let why = cause.to_string();
        match proxy_status {
            Some(proxy_status) if !answered => {
                let rejection = Rejection::new(502, Phase::Opening, why)
                    .remedy("try again; if it happens again, report it to the origin's operator")
                    .proxy_status(proxy_status)
                    .about_target();
                (rejection.into(), false)
            }
            _ => (EndReason::Broken { by, why }, answered),
        }
    }
}

impl Origin {
    /// Ends an unused tunnel, and reports what it carried.
    fn close(self, relay: &Relay, reason: EndReason) -> Outcome {
        let context = &relay.context;
        let (mut conn, mut received) = self.peer.into_parts();
        let wait = WaitContext {
            stop: &context.stop,
            client: None,
            deadline: Deadline::after(CLOSE_TIMEOUT),
            phase: Phase::Opening,
            keepalive: Duration::ZERO,
            drains: true,
        };
        // The target ends its direction too, and then the gateway closes the WebSocket.
        if conn.send_fin(true).and_then(|()| conn.flush()).is_ok() {
            let _ = drive_until(&mut conn, &mut received, &wait, |conn, received| {
                received.consume(received.len());
                Ok((conn.fin_sent() && conn.peer_finished()).then_some(()))
            });
        }
        conn.try_close(if conn.peer_finished() {
            CloseCode::Normal
        } else {
            CloseCode::Away
        });
        close_and_drain(conn, &context.stop, CLOSE_TIMEOUT);
        Self::outcome(self.since, &self.target, self.traffic, reason)
    }

    /// Ends the tunnel although a message is incomplete.
    fn abort(self, reason: EndReason) -> Outcome {
        let (mut conn, _) = self.peer.into_parts();
        conn.try_close(CloseCode::Error);
        Self::outcome(self.since, &self.target, self.traffic, reason)
    }

    fn outcome(
        since: Instant,
        target: &AbsoluteTarget,
        traffic: Traffic,
        reason: EndReason,
    ) -> Outcome {
        let summary = TunnelSummary {
            reason,
            up: traffic.up,
            down: traffic.down,
            undelivered: (traffic.undelivered, Party::Client),
        };
        Outcome::new(since, Some(target.authority.to_string()), Ok(summary))
    }
}

/// Adds TLS to the tunnel and verifies the origin.
fn add_tls(
    relay: &Relay,
    authority: &Authority,
    client: &Conn,
    conn: &mut Conn,
    received: &mut Buffer,
) -> Result<(), Failure> {
    let context = &relay.context;
    let rejected = |proxy_status, what: String, remedy| {
        let rejection = Rejection::new(502, Phase::Tls, what)
            .remedy(remedy)
            .proxy_status(proxy_status)
            .about_target();
        Failure::Ended(rejection.into())
    };
    let config = relay.origin_tls.config().map_err(|error| {
        rejected(
            "proxy_configuration_error",
            format!("TLS with the origin is not possible: {error}"),
            "send CONNECT, and let the client verify the origin",
        )
    })?;
    let connection = tls::server_name(&authority.host)
        .map_err(|_| TlsError::ServerName)
        .and_then(|name| UnbufferedClientConnection::new(config, name).map_err(TlsError::Rustls))
        .map_err(|error| {
            rejected(
                "tls_protocol_error",
                error.to_string(),
                "check the host of the URL",
            )
        })?;
    let wait = WaitContext {
        stop: &context.stop,
        client: Some(WatchedClient::that_may_half_close(client.socket())),
        deadline: Deadline::after(context.limits.connect_timeout),
        phase: Phase::Tls,
        keepalive: Duration::ZERO,
        drains: true,
    };
    let shaken = conn
        .add_inner_tls(Tls::client(connection, &context.pool), received)
        .and_then(|()| {
            drive_until(conn, received, &wait, |conn, _| {
                Ok(conn.accepts_data().then_some(()))
            })
        });
    shaken.map_err(|error| match error {
        TunnelError::ClientLeft => Failure::Ended(EndReason::Abandoned),
        TunnelError::Tls(TlsError::Rustls(rustls::Error::InvalidCertificate(flaw))) => {
            let flaw = tls_error::certificate_flaw(&flaw, Verifier::ThisMachine);
            let what = format!("the certificate of the origin {flaw}");
            rejected(
                "tls_certificate_error",
                what,
                "add its CA to the system's roots, if it can be trusted",
            )
        }
        error => {
            let _ = conn.flush();
            rejected(
                tls_status(&error),
                format!("TLS with the origin failed: {error}"),
                "check the scheme and port of the URL",
            )
        }
    })
}

/// Whether the method is idempotent ([RFC 9110, section 9.2.2]).
///
/// [RFC 9110, section 9.2.2]: https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2
fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "TRACE"
    )
}
