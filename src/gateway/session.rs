//! The life of one connection, in the order of the page: TLS, door, standby for the opening, target, pump (`manual/protocol.md`).

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustls::server::UnbufferedServerConnection;
use tungstenite::protocol::frame::coding::CloseCode;

use super::auth::Bearer;
use super::upgrade::{self, UpgradeDecision};
use super::{Shared, intercept};
use crate::control::deadline::Deadline;
use crate::control::metrics::Counters;
use crate::control::outcome::{EndReason, Outcome};
use crate::control::phase::Phase;
use crate::http::authority::Authority;
use crate::http::head::{self, HeadError};
use crate::http::reply::Reply;
use crate::net::sockets::probe_every;
use crate::sys::memory;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::connect::connect;
use crate::tunnel::drive::{WaitContext, close_and_drain, drive_until, refuse_and_drain};
use crate::tunnel::error::{TunnelError, exhausted};
use crate::tunnel::frame::Role;
use crate::tunnel::opening::{ConnectRequest, ESTABLISHED};
use crate::tunnel::pump::{Pump, PumpContext};
use crate::tunnel::tls::Tls;
use crate::tunnel::ws_codec::{Version, WsCodec};

/// How long a refused peer may take to read its answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves one connection to its end.
pub(super) fn serve(gateway: &Shared, connection: TcpStream, peer: SocketAddr) -> Outcome {
    let since = Instant::now();
    let mut asked = None;
    // The stack of a handshake is returned while the stream is silent.
    let opened = memory::in_own_frame(|| open(gateway, connection, peer, &mut asked));
    let came_to = opened.map(|(authority, pump)| {
        let mut patterns = gateway.intercept.iter();
        let ready = if patterns.any(|pattern| pattern.matches(&authority)) {
            memory::in_own_frame(|| intercept::begin(gateway, &authority, pump))
        } else {
            Ok(pump)
        };
        ready.map_or_else(|ending| ending, Pump::run)
    });
    Outcome::new(since, asked, came_to)
}

/// Does everything before the stream.
fn open<'a>(
    gateway: &'a Shared,
    connection: TcpStream,
    peer: SocketAddr,
    asked: &mut Option<String>,
) -> Result<(Authority, Box<Pump<'a>>), EndReason> {
    let mut received = Buffer::new(&gateway.pool);
    let (mut ws, bearer, version) = admit(gateway, connection, peer, &mut received)?;
    let messages = WsCodec::new(Role::Server, version, &gateway.budget);
    let heard = ws
        .add_websocket(messages, &mut received)
        .and_then(|()| stand_by(gateway, &mut ws, &mut received));
    let opening = match heard {
        Ok(opening) => opening,
        Err(fault) => return Err(unheard(gateway, ws, peer, &fault)),
    };
    received.consume(opening.len);
    let authority = opening.authority;
    *asked = Some(authority.to_string());
    let sessions = gateway.sessions();
    let known = opening
        .authorization
        .is_some_and(|value| sessions.basic(&value, &bearer).is_some());
    if !known {
        let reply = Reply::new(
            407,
            "the session inside the tunnel is not that of the token outside",
        )
        .with("Proxy-Authenticate", "Basic realm=\"upstreamproxy\"");
        let why = "wrong session or token inside".into();
        return Err(refuse(gateway, ws, &reply, why));
    }
    let tcp = match dial(gateway, &authority, ws.socket()) {
        Ok(tcp) => tcp,
        Err((Some(reply), why)) => return Err(refuse(gateway, ws, &reply, why)),
        Err((None, _)) => return Err(EndReason::Abandoned),
    };
    Counters::add(&gateway.counters.tunnels, 1);
    tell(gateway, &mut ws, ESTABLISHED).map_err(|_| EndReason::Abandoned)?;
    let shared = PumpContext {
        limits: &gateway.limits,
        stop: &gateway.stop,
        counters: &gateway.counters,
    };
    let outbound = Buffer::new(&gateway.pool);
    let pump = Pump::new(Role::Server, tcp, ws, outbound, received, shared);
    Ok((authority, pump))
}

/// The door: a connection is to become a WebSocket, and its token is known, or it has had its answer.
fn admit(
    gateway: &Shared,
    connection: TcpStream,
    peer: SocketAddr,
    received: &mut Buffer,
) -> Result<(Conn, Bearer, Version), EndReason> {
    let _newcomer = gateway.newcomers.add(&connection);
    let mut ws = Conn::new(connection, &gateway.pool);
    match enter(gateway, &mut ws, received) {
        Ok(Entered::Open(bearer, version)) => Ok((ws, bearer, version)),
        Ok(Entered::Answered) => {
            refuse_and_drain(ws, &gateway.stop, FAREWELL);
            Err(EndReason::Answered)
        }
        Ok(Entered::Refused(status)) => {
            refuse_and_drain(ws, &gateway.stop, FAREWELL);
            let why = format!("a connection from {peer}");
            Err(refused(status, Phase::Upgrade, why))
        }
        Err(fault) => {
            log::debug!("a connection from {peer} ended before its upgrade: {fault}");
            Err(EndReason::Abandoned)
        }
    }
}

/// No opening came: what is said depends on why.
fn unheard(gateway: &Shared, mut ws: Conn, peer: SocketAddr, fault: &TunnelError) -> EndReason {
    if let TunnelError::Http(_) | TunnelError::Opening(_) = fault {
        let reply = Reply::new(400, "the opening is not a CONNECT that can be served");
        return refuse(gateway, ws, &reply, fault.to_string());
    }
    log::debug!("a WebSocket from {peer} ended before its opening: {fault}");
    let code = match fault {
        TunnelError::TimedOut(_) | TunnelError::Stopped => CloseCode::Away,
        _ => fault.close_code(),
    };
    if ws.send_close(code).is_ok() {
        close_and_drain(ws, &gateway.stop, gateway.limits.close_timeout);
    }
    EndReason::Abandoned
}

/// What became of a connection at the door.
enum Entered {
    Open(Bearer, Version),
    Answered,
    Refused(u16),
}

/// TLS, where there is any, and the request head: all within one deadline, as nothing is known of the peer yet.
fn enter(gateway: &Shared, ws: &mut Conn, received: &mut Buffer) -> Result<Entered, TunnelError> {
    let watch = WaitContext {
        stop: &gateway.stop,
        client: None,
        deadline: Deadline::after(gateway.limits.head_timeout),
        phase: Phase::Head,
        keepalive: Duration::ZERO,
        drains: false,
    };
    if let Some(config) = &gateway.tls {
        let connection = UnbufferedServerConnection::new(config.clone())?;
        ws.add_tls(Tls::server(connection, &gateway.pool));
        drive_until(ws, received, &watch, |conn, _| {
            Ok(conn.tls().is_some_and(Tls::established).then_some(()))
        })?;
    }
    let sessions = gateway.sessions();
    let door = drive_until(ws, received, &watch, |_, received| {
        Ok(match head::request(received.filled()) {
            Ok(None) => None,
            Ok(Some((head, len))) => {
                let door = upgrade::decide(&head, &received.filled()[..len], &sessions);
                received.consume(len);
                Some(door)
            }
            Err(HeadError::TooLarge) => Some(UpgradeDecision::Shut(Reply::new(
                431,
                "the request head is too large",
            ))),
            Err(HeadError::Malformed(_)) => Some(UpgradeDecision::Shut(Reply::new(
                400,
                "this is no HTTP/1.1 request",
            ))),
        })
    })?;
    match door {
        UpgradeDecision::Open {
            bearer,
            version,
            answer,
        } => {
            tell(gateway, ws, &answer)?;
            Ok(Entered::Open(bearer, version))
        }
        UpgradeDecision::CaCertificates => {
            let pem = gateway.issuer.ca_pem();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/x-pem-file\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{pem}",
                pem.len()
            );
            tell(gateway, ws, head.as_bytes())?;
            Ok(Entered::Answered)
        }
        UpgradeDecision::Shut(reply) => {
            tell(gateway, ws, &reply.to_bytes())?;
            Ok(Entered::Refused(reply.status))
        }
    }
}

/// Waits for the opening; an authenticated peer may take its time, as long as it answers pings.
fn stand_by(
    gateway: &Shared,
    ws: &mut Conn,
    received: &mut Buffer,
) -> Result<ConnectRequest, TunnelError> {
    let watch = WaitContext {
        stop: &gateway.stop,
        client: None,
        deadline: Deadline::after(gateway.limits.standby_timeout),
        phase: Phase::Opening,
        keepalive: gateway.limits.keepalive,
        drains: false,
    };
    drive_until(ws, received, &watch, |_, received| {
        ConnectRequest::read(received.filled())
    })
}

/// Why there is no way to the target: what the relay is told, if it is still there, and the reason for the log.
type NotDialled = (Option<Reply>, String);

/// Opens the TCP connection to the target: every address is checked after the look-up, and the very one that was checked is dialled.
fn dial(gateway: &Shared, authority: &Authority, relay: &TcpStream) -> Result<Conn, NotDialled> {
    let failed = |phase| {
        move |fault: TunnelError| {
            let reply = not_reached(phase, &fault);
            (reply, fault.to_string())
        }
    };
    let timeout = gateway.limits.connect_timeout;
    let wanted = || gateway.stop.requested().is_none();
    let until = Deadline::after(timeout);
    let addresses = gateway
        .resolver
        .resolve_while(&authority.host, authority.port, until, &wanted)
        .map_err(TunnelError::of_lookup)
        .map_err(failed(Phase::Resolve))?;
    let permitted = gateway.policy.choose(addresses).map_err(|refusal| {
        let reply = Reply::new(
            403,
            format!("the target's address is not allowed: {refusal}"),
        );
        let reply = reply.because("destination_ip_prohibited", Phase::Connect);
        (Some(reply), refusal.to_string())
    })?;
    let watch = WaitContext {
        stop: &gateway.stop,
        client: Some(relay),
        deadline: Deadline::after(timeout),
        phase: Phase::Connect,
        keepalive: Duration::ZERO,
        drains: false,
    };
    let (stream, _) = connect(&permitted, &watch).map_err(failed(Phase::Connect))?;
    probe_every(&stream, gateway.limits.keepalive);
    Ok(Conn::new(stream, &gateway.pool))
}

/// What the relay is told of a target that was not reached in `phase`; nothing once it has left. What is our own doing is
/// not said of the target.
fn not_reached(phase: Phase, fault: &TunnelError) -> Option<Reply> {
    let (status, sentence, error) = match fault {
        TunnelError::ClientLeft => return None,
        TunnelError::Stopped => (503, "the gateway is stopping", "proxy_internal_response"),
        TunnelError::Io(error) if exhausted(error) => (
            503,
            "the gateway has no descriptor, thread or memory left for it",
            "proxy_internal_error",
        ),
        _ => match (phase, fault.is_timeout()) {
            (Phase::Resolve, true) => (
                504,
                "looking up the target's name took too long",
                "dns_timeout",
            ),
            (Phase::Resolve, false) => (502, "the target's name was not found", "dns_error"),
            (_, true) => (
                504,
                "the target did not answer in time",
                "connection_timeout",
            ),
            (_, false) => (
                502,
                "the target refused the connection or cannot be reached",
                "connection_refused",
            ),
        },
    };
    Some(Reply::new(status, sentence).because(error, phase))
}

/// Seals `bytes` for the peer, at its present layer.
fn tell(gateway: &Shared, ws: &mut Conn, bytes: &[u8]) -> Result<(), TunnelError> {
    let mut plain = Buffer::new(&gateway.pool);
    plain.extend(bytes);
    ws.seal(&mut plain)
}

/// Answers the opening with a refusal, and closes.
fn refuse(gateway: &Shared, mut ws: Conn, reply: &Reply, why: String) -> EndReason {
    let code = if matches!(reply.status, 403 | 407) {
        CloseCode::Policy
    } else {
        CloseCode::Normal
    };
    if tell(gateway, &mut ws, &reply.to_bytes())
        .and_then(|()| ws.send_close(code))
        .is_ok()
    {
        close_and_drain(ws, &gateway.stop, gateway.limits.close_timeout);
    }
    refused(reply.status, Phase::Opening, why)
}

fn refused(status: u16, phase: Phase, why: String) -> EndReason {
    EndReason::Refused { status, phase, why }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_target_is_blamed_for_what_is_its_own_and_for_nothing_else() {
        let of = |kind: io::ErrorKind| TunnelError::Io(kind.into());
        let errno = |errno: rustix::io::Errno| TunnelError::Io(errno.into());
        for (phase, fault, expected) in [
            (
                Phase::Resolve,
                TunnelError::of_lookup(io::ErrorKind::Interrupted.into()),
                Some(503),
            ),
            (Phase::Resolve, of(io::ErrorKind::TimedOut), Some(504)),
            (Phase::Resolve, of(io::ErrorKind::NotFound), Some(502)),
            (Phase::Resolve, errno(rustix::io::Errno::AGAIN), Some(503)),
            (Phase::Connect, TunnelError::Stopped, Some(503)),
            (Phase::Connect, TunnelError::ClientLeft, None),
            (
                Phase::Connect,
                TunnelError::TimedOut(Phase::Connect),
                Some(504),
            ),
            (
                Phase::Connect,
                of(io::ErrorKind::ConnectionRefused),
                Some(502),
            ),
            (Phase::Connect, errno(rustix::io::Errno::MFILE), Some(503)),
        ] {
            let reply = not_reached(phase, &fault);
            let status = reply.as_ref().map(|reply| reply.status);
            assert_eq!(status, expected, "{phase}: {fault:?}");
            let blamed = reply.is_some_and(|reply| reply.sentence.contains("the target"));
            assert_eq!(
                blamed,
                matches!(status, Some(502 | 504)),
                "{phase}: {fault:?}"
            );
        }
    }
}
