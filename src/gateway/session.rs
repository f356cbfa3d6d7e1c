//! One relay connection from accept to its outcome: TLS, upgrade, CONNECT request, target, pump
//! (`manual/protocol.md`).

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::server::UnbufferedServerConnection;
use tungstenite::protocol::frame::coding::CloseCode;

use super::auth::Bearer;
use super::context::GatewayContext;
use super::upgrade::{self, UpgradeDecision};
use super::{intercept, target};
use crate::control::deadline::Deadline;
use crate::control::log;
use crate::control::metrics::Counters;
use crate::control::outcome::{EndReason, Outcome};
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::control::shares::Share;
use crate::http::authority::Authority;
use crate::http::head::{self, HeadError};
use crate::http::response;
use crate::sys::memory;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::drive::{WaitContext, close_and_drain, drive_until, refuse_and_drain};
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::opening::{CA_DIGEST_FIELD, ConnectRequest, ESTABLISHED};
use crate::tunnel::pump::{Pump, PumpContext};
use crate::tunnel::tls::Tls;
use crate::tunnel::ws_codec::{Version, WsCodec};

/// How long a refused peer may take to read its response.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves one connection until it ends.
pub(super) fn serve(gateway: &GatewayContext, connection: TcpStream, peer: SocketAddr) -> Outcome {
    let since = Instant::now();
    let mut target = None;
    // The stack of a handshake is returned while the stream is silent.
    let result = memory::in_own_frame(|| open(gateway, connection, peer, &mut target)).map(
        |(authority, pump, _share)| {
            let mut patterns = gateway.intercept.iter();
            let ready = if patterns.any(|pattern| pattern.matches(&authority)) {
                memory::in_own_frame(|| intercept::begin(gateway, &authority, pump))
            } else {
                Ok(pump)
            };
            ready.map_or_else(|ended| ended, Pump::run)
        },
    );
    Outcome::new(since, target, result).with_peer(peer)
}

/// Everything before the stream. Until the tunnel has its share, the connection can be evicted.
fn open<'a>(
    gateway: &'a GatewayContext,
    connection: TcpStream,
    peer: SocketAddr,
    target: &mut Option<String>,
) -> Result<(Authority, Box<Pump<'a>>, Share), EndReason> {
    let connection = Arc::new(connection);
    let mut waiting = gateway.waiting.add(&connection);
    let mut received = Buffer::new(&gateway.pool);
    let (mut ws, bearer, version) = admit(gateway, connection, peer, &mut received)?;
    let holder = bearer.party(&gateway.party_hasher);
    let competes = gateway.sessions().several_parties();
    let party = competes.then_some(holder);
    waiting.set_party(holder);
    let codec = WsCodec::new(Role::Server, version, &gateway.budget.of(party));
    let request = ws
        .add_websocket(codec, &mut received)
        .and_then(|()| read_request(gateway, &mut ws, &mut received));
    let request = match request {
        Ok(request) => request,
        Err(error) => return Err(no_request(gateway, ws, peer, &error)),
    };
    received.consume(request.len);
    let authority = request.authority.clone();
    *target = Some(authority.to_string());
    let share = authorize(gateway, &request, &bearer)
        .and_then(|()| gateway.tunnels.take(party, 1).ok_or_else(share_used_up));
    let share = match share {
        Ok(share) => share,
        Err(rejection) => return Err(reject(gateway, ws, rejection)),
    };
    drop(waiting);
    let tcp = match target::dial(gateway, &authority, holder, ws.socket()) {
        Ok(tcp) => tcp,
        Err(EndReason::Rejected(rejection)) => return Err(reject(gateway, ws, *rejection)),
        Err(reason) => return Err(reason),
    };
    Counters::add(&gateway.counters.tunnels, 1);
    ws.send(ESTABLISHED).map_err(|_| EndReason::Abandoned)?;
    let shared = PumpContext {
        limits: &gateway.limits,
        stop: &gateway.stop,
        counters: &gateway.counters,
    };
    let outbound = Buffer::new(&gateway.pool);
    let pump = Pump::new(Role::Server, tcp, ws, outbound, received, shared);
    Ok((authority, pump, share))
}

/// Makes the connection a WebSocket if its token is known. Otherwise the peer has received its
/// response when this returns.
fn admit(
    gateway: &GatewayContext,
    connection: Arc<TcpStream>,
    peer: SocketAddr,
    received: &mut Buffer,
) -> Result<(Conn, Bearer, Version), EndReason> {
    let mut ws = Conn::new(connection, &gateway.pool);
    let answered = match handshake(gateway, &mut ws, received) {
        Ok(Handshake::Open(bearer, version)) => return Ok((ws, bearer, version)),
        Ok(Handshake::Answered(reason)) => reason,
        Err(error) => {
            log::debug!(target: gateway.log_source.target(), "gateway: a connection from {peer} ended before its upgrade: {error}");
            return Err(EndReason::Abandoned);
        }
    };
    refuse_and_drain(ws, &gateway.stop, REJECTION_TIMEOUT);
    Err(answered)
}

/// The result of the handshakes before the WebSocket.
enum Handshake {
    /// The connection is a WebSocket.
    Open(Bearer, Version),
    /// The response was another one than 101.
    Answered(EndReason),
}

/// TLS, if configured, and the request head. Both share one deadline, because the peer is not
/// authenticated yet.
fn handshake(
    gateway: &GatewayContext,
    ws: &mut Conn,
    received: &mut Buffer,
) -> Result<Handshake, TunnelError> {
    let wait = WaitContext {
        stop: &gateway.stop,
        client: None,
        deadline: Deadline::after(gateway.limits.head_timeout),
        phase: Phase::Head,
        keepalive: Duration::ZERO,
        drains: false,
    };
    if let Some(config) = gateway.tls() {
        let connection = UnbufferedServerConnection::new(config)?;
        ws.add_tls(Tls::server(connection, &gateway.pool));
        drive_until(ws, received, &wait, |conn, _| {
            Ok(conn.tls().is_some_and(Tls::established).then_some(()))
        })?;
    }
    let request = drive_until(ws, received, &wait, |_, received| {
        Ok(head::request(received.filled())?)
    });
    let decision = match request {
        Ok((head, len)) => {
            let decision = upgrade::decide(&head, &received.filled()[..len], &gateway.sessions());
            received.consume(len);
            decision
        }
        Err(TunnelError::Http(error)) => UpgradeDecision::Reject(invalid_head(error)),
        Err(error) => return Err(error),
    };
    match decision {
        UpgradeDecision::Open {
            bearer,
            version,
            mut response,
        } => {
            if !gateway.intercept.is_empty() {
                // Before the empty line.
                response.truncate(response.len() - 2);
                let issuer = gateway.issuer();
                for part in [CA_DIGEST_FIELD, ": ", issuer.ca_digest(), "\r\n\r\n"] {
                    response.extend_from_slice(part.as_bytes());
                }
            }
            ws.send(&response)?;
            Ok(Handshake::Open(bearer, version))
        }
        UpgradeDecision::CaCertificates => {
            let issuer = gateway.issuer();
            let pem = issuer.ca_pem();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/x-pem-file\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{pem}",
                pem.len()
            );
            ws.send(head.as_bytes())?;
            Ok(Handshake::Answered(EndReason::Answered))
        }
        UpgradeDecision::Reject(rejection) => {
            ws.send(&response::closing(&rejection))?;
            Ok(Handshake::Answered(rejection.into()))
        }
    }
}

fn invalid_head(error: HeadError) -> Rejection {
    let (status, what) = match error {
        HeadError::TooLarge => (431, "the request head is too large"),
        HeadError::Malformed(_) => (400, "this is not an HTTP/1.1 request"),
    };
    Rejection::new(status, Phase::Upgrade, what).detail(error.to_string())
}

/// Waits for the CONNECT request. The peer is authenticated and may wait for minutes, as long as it
/// answers pings. But a message that has begun must be complete soon.
fn read_request(
    gateway: &GatewayContext,
    ws: &mut Conn,
    received: &mut Buffer,
) -> Result<ConnectRequest, TunnelError> {
    let standby = Deadline::after(gateway.limits.standby_timeout);
    let mut has_begun = false;
    loop {
        let deadline = if has_begun {
            standby.min(Deadline::after(gateway.limits.head_timeout))
        } else {
            standby
        };
        let wait = WaitContext {
            stop: &gateway.stop,
            client: None,
            deadline,
            phase: Phase::Opening,
            keepalive: gateway.limits.keepalive,
            drains: false,
        };
        let request = drive_until(ws, received, &wait, |ws, received| {
            if let Some(request) = ConnectRequest::read(received.filled())? {
                return Ok(Some(Some(request)));
            }
            let begun = !received.is_empty() || ws.has_partial_input();
            Ok((begun != has_begun).then_some(None))
        })?;
        match request {
            Some(request) => return Ok(request),
            None => has_begun = !has_begun,
        }
    }
}

/// Ends a WebSocket on which no valid CONNECT request arrived.
fn no_request(
    gateway: &GatewayContext,
    mut ws: Conn,
    peer: SocketAddr,
    error: &TunnelError,
) -> EndReason {
    if let TunnelError::Http(_) | TunnelError::Opening(_) = error {
        let what = "the opening is not a CONNECT request that can be served";
        let rejection = Rejection::new(400, Phase::Opening, what).detail(error.to_string());
        return reject(gateway, ws, rejection);
    }
    log::debug!(target: gateway.log_source.target(), "gateway: a WebSocket from {peer} ended before its opening: {error}");
    let code = match error {
        TunnelError::TimedOut(_) | TunnelError::PeerSilent | TunnelError::Stopped => {
            CloseCode::Away
        }
        _ => error.close_code(),
    };
    if ws.send_close(code).is_ok() {
        close_and_drain(ws, &gateway.stop, gateway.limits.close_timeout);
    }
    EndReason::Abandoned
}

/// Checks that the session of the CONNECT request has the token of the upgrade.
fn authorize(
    gateway: &GatewayContext,
    request: &ConnectRequest,
    bearer: &Bearer,
) -> Result<(), Rejection> {
    let sessions = gateway.sessions();
    let authorization = request.authorization.as_ref();
    if authorization.is_some_and(|value| sessions.basic(value, bearer)) {
        return Ok(());
    }
    let what = "the session of the opening does not have the token of the upgrade";
    Err(Rejection::new(407, Phase::Opening, what)
        .field(&("Proxy-Authenticate", "Basic realm=\"upstreamproxy\"")))
}

/// The rejection of a session that has as many tunnels as it may have beside the others.
fn share_used_up() -> Rejection {
    let what = "this session has its share of the gateway's tunnels";
    Rejection::new(503, Phase::Opening, what)
        .remedy("try again when one of them has ended")
        .proxy_status("connection_limit_reached")
        .field(&("Retry-After", "1"))
}

/// Answers the CONNECT request with a rejection, and closes the WebSocket.
fn reject(gateway: &GatewayContext, mut ws: Conn, rejection: Rejection) -> EndReason {
    let code = if matches!(rejection.status, 403 | 407) {
        CloseCode::Policy
    } else {
        CloseCode::Normal
    };
    let sent = ws
        .send(&response::closing(&rejection))
        .and_then(|()| ws.send_close(code));
    if sent.is_ok() {
        close_and_drain(ws, &gateway.stop, gateway.limits.close_timeout);
    }
    rejection.into()
}
