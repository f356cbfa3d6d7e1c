//! The life of one connection, in the order of the page: head, dial, opening, pump, outcome (`manual/protocol.md`).

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::dial;
use super::refusal::Refusal;
use super::{AccessControl, Relay};
use crate::control::deadline::Deadline;
use crate::control::metrics::Counters;
use crate::control::outcome::{EndReason, Outcome};
use crate::control::phase::Phase;
use crate::http::authority::{Authority, Host};
use crate::http::head::{self, HeadError, RequestHead};
use crate::http::reply::Reply;
use crate::sys::memory;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::drive::{WaitContext, drive_until, refuse_and_drain};
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::opening::ESTABLISHED;
use crate::tunnel::pump::{Pump, PumpContext};

/// How long a refused client may take to read its answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often a client may ask without the right password before its connection is closed.
const PASSWORD_TRIES: u32 = 4;

/// Serves one connection to its end.
pub(super) fn serve(relay: &Relay, connection: TcpStream) -> Outcome {
    let since = Instant::now();
    let mut authority = None;
    // The stack of a handshake is returned while the stream is silent.
    let came_to = memory::in_own_frame(|| open(relay, connection, &mut authority)).map(Pump::run);
    Outcome::new(since, authority, came_to)
}

/// Does everything before the stream.
fn open<'a>(
    relay: &'a Relay,
    connection: TcpStream,
    asked: &mut Option<String>,
) -> Result<Box<Pump<'a>>, EndReason> {
    let admitted = relay.entry.admit(&connection);
    let mut client = Conn::new(connection, &relay.shared.pool);
    if let Err(why) = admitted {
        return Err(refuse(relay, client, (AccessControl::stranger(), why)));
    }
    let mut early = Buffer::new(&relay.shared.pool);
    let target = match read_head(relay, &mut client, &mut early)? {
        Ok(target) => target,
        Err(refusal) => return Err(refuse(relay, client, refusal)),
    };
    *asked = Some(target.to_string());
    let dialled = match dial::open(relay, &target, client.socket()) {
        Ok(dialled) => dialled,
        Err(Refusal {
            reply: Some(reply),
            why,
        }) => return Err(refuse(relay, client, (reply, why))),
        Err(Refusal { reply: None, .. }) => return Err(EndReason::Abandoned),
    };
    Counters::add(&relay.shared.counters.tunnels, 1);
    let mut answer = Buffer::new(&relay.shared.pool);
    answer.extend(ESTABLISHED);
    // It goes out before anything else is looked at: what the gateway has sent with its own answer may be a fault.
    client
        .seal(&mut answer)
        .and_then(|()| client.flush())
        .map_err(|_| EndReason::Abandoned)?;
    let shared = PumpContext {
        limits: &relay.shared.limits,
        stop: &relay.shared.stop,
        counters: &relay.shared.counters,
    };
    Ok(Pump::new(
        Role::Client,
        client,
        dialled.conn,
        early,
        dialled.received,
        shared,
    ))
}

/// What a client is refused with: the reply, and the reason for the log.
type Refused = (Reply, String);

/// Reads the CONNECT request; what came behind its head stays in `early`.
fn read_head(
    relay: &Relay,
    client: &mut Conn,
    early: &mut Buffer,
) -> Result<Result<Authority, Refused>, EndReason> {
    let watch = WaitContext {
        stop: &relay.shared.stop,
        client: None,
        deadline: Deadline::after(relay.shared.limits.head_timeout),
        phase: Phase::Head,
        keepalive: Duration::ZERO,
        drains: false,
    };
    let mut tries = 0;
    let met = drive_until(client, early, &watch, |client, early| {
        loop {
            let (head, len) = match head::request(early.filled()) {
                Ok(None) => return Ok(None),
                Ok(Some(request)) => request,
                Err(error) => return Ok(Some(Err(not_a_head(error)))),
            };
            early.consume(len);
            if relay.entry.knows_password(&head.fields) {
                return Ok(Some(target(&head, relay)));
            }
            tries += 1;
            if tries == PASSWORD_TRIES {
                return Ok(Some(Err(AccessControl::challenge())));
            }
            // RFC 9110, section 11.7.1: the client may repeat the request with the right field, and Maven and git do so here.
            let mut bytes = Buffer::new(&relay.shared.pool);
            bytes.extend(&AccessControl::challenge().staying().to_bytes());
            client.seal(&mut bytes)?;
            client.flush()?;
        }
    });
    match met {
        Ok(result) => Ok(result.map_err(|reply| (reply.clone(), reply.sentence))),
        Err(TunnelError::TimedOut(_)) => {
            let reply = Reply::new(
                408,
                "no whole CONNECT request came in time; send one, then wait for the answer",
            );
            Ok(Err((
                reply.because("http_request_error", Phase::Head),
                "timed out".into(),
            )))
        }
        Err(TunnelError::ConnectionEnded) if !early.is_empty() => {
            let reply = Reply::new(400, "the request ended in the middle of its head");
            Ok(Err((
                reply.because("http_request_error", Phase::Head),
                "ended early".into(),
            )))
        }
        Err(_) => Err(EndReason::Abandoned),
    }
}

fn not_a_head(error: HeadError) -> Reply {
    let status = match error {
        HeadError::TooLarge => 431,
        HeadError::Malformed(_) => 400,
    };
    Reply::new(
        status,
        format!("{error}; this port takes HTTP/1.x CONNECT requests"),
    )
    .because("http_request_error", Phase::Head)
}

/// The target of a request, if it is one that we serve.
fn target(head: &RequestHead, relay: &Relay) -> Result<Authority, Reply> {
    let bad =
        |sentence: String| Reply::new(400, sentence).because("http_request_error", Phase::Head);
    if head.method != "CONNECT" {
        return Err(Reply::new(
            405,
            "this port serves CONNECT only; use it as HTTPS_PROXY, not as HTTP_PROXY",
        )
        .because("http_request_denied", Phase::Head)
        .with("Allow", "CONNECT"));
    }
    // RFC 9110, section 9.3.6: content in a CONNECT request has no defined meaning, and readers differ about it.
    let length = head.fields.all("content-length").any(|value| value != b"0");
    if length || head.fields.has("transfer-encoding") {
        return Err(bad(
            "a CONNECT request has no body; send the bytes after the answer".into(),
        ));
    }
    let authority: Authority = head
        .target
        .parse()
        .map_err(|error| bad(format!("the CONNECT target is unusable: {error}")))?;
    let own = relay.own_address;
    // A listener on the unspecified address listens on loopback too.
    let on_loopback = own.ip().is_loopback() || own.ip().is_unspecified();
    let loops = match &authority.host {
        Host::Address(address) => {
            let address = address.to_canonical();
            // Linux takes the unspecified address for the loopback one.
            let any =
                address.is_unspecified() || own.ip().is_unspecified() && address.is_loopback();
            any || address == own.ip()
        }
        Host::Name(name) => name == "localhost" && on_loopback,
    };
    if loops && authority.port == own.port() {
        return Err(Reply::new(
            403,
            "this is the proxy's own port; a tunnel from it to itself would never end",
        )
        .because("http_request_denied", Phase::Head));
    }
    Ok(authority)
}

/// Sends the refusal and waits a little for the client to have read it, so that no reset overtakes it.
fn refuse(relay: &Relay, mut client: Conn, (reply, why): Refused) -> EndReason {
    let (status, phase) = (
        reply.status,
        reply.proxy_status.map_or(Phase::Head, |(_, phase)| phase),
    );
    let mut bytes = Buffer::new(&relay.shared.pool);
    bytes.extend(&reply.to_bytes());
    if client.seal(&mut bytes).is_ok() {
        refuse_and_drain(client, &relay.shared.stop, FAREWELL);
    }
    EndReason::Refused { status, phase, why }
}
