//! The way to the gateway: name, TCP, TLS, WebSocket upgrade, opening. What is said when it fails is `refusal`'s.
//!
//! The token goes to the configured upstream and nowhere else: no redirect is followed.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use rustls::client::UnbufferedClientConnection;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use zeroize::Zeroizing;

use super::refusal::{Refusal, refused_by_gateway};
use super::{Relay, Shared, Upstream};
use crate::config::Limits;
use crate::control::deadline::Deadline;
use crate::control::metrics::Counters;
use crate::control::phase::Phase;
use crate::control::stop::Stop;
use crate::crypto::{random, tls};
use crate::http::authority::Authority;
use crate::http::head::{self, ResponseHead};
use crate::tunnel::buffer::{Buffer, Pool};
use crate::tunnel::conn::Conn;
use crate::tunnel::connect::connect;
use crate::tunnel::drive::{WaitContext, close_and_drain, drive_until};
use crate::tunnel::error::{OpeningError, TlsError, TunnelError, UpgradeError};
use crate::tunnel::frame::Role;
use crate::tunnel::opening::{self, ConnectResponse};
use crate::tunnel::tls::Tls;
use crate::tunnel::ws_codec::{Budget, SUBPROTOCOL_V2, Version, WsCodec};

/// How long the text of a refusal may take after its head.
const TEXT_TIMEOUT: Duration = Duration::from_secs(2);

/// An open way to the target.
pub(super) struct DialedTunnel {
    /// The WebSocket.
    pub(super) conn: Conn,
    /// What the target has already sent.
    pub(super) received: Buffer,
}

/// A phase that was passed, and what was learnt in it.
pub(crate) enum DialEvent<'a> {
    /// The gateway's name has these addresses.
    Resolve(&'a [SocketAddr]),
    /// This one answered.
    Connect(SocketAddr),
    /// TLS stands.
    Tls(&'a Tls),
    /// The WebSocket stands, and speaks this version of the wire.
    Upgrade(Version),
    /// The gateway has reached the target.
    Opening,
}

/// Has the gateway open a tunnel to `target` for `client`: over a WebSocket that stands by, else over a new one.
pub(super) fn open(
    relay: &Relay,
    target: &Authority,
    client: &TcpStream,
) -> Result<DialedTunnel, Refusal> {
    let shared = &relay.shared;
    if let Some(conn) = relay.standby.take(shared) {
        let mut way = Dialer::new(shared, Some(client));
        // One whose host has vanished is found out in the time that a dial may take.
        conn.set_user_timeout(shared.limits.connect_timeout);
        match way.ask(conn, Buffer::new(&shared.pool), target) {
            // Nothing of the client's was passed on, so that a second try can do no harm.
            Err(
                fault
                @ (TunnelError::Io(_) | TunnelError::ConnectionEnded | TunnelError::Closed(_)),
            ) => {
                log::debug!("relay: {target}: what stood by was dead: {fault}; dialling");
            }
            Err(fault) => return Err(Refusal::of(way.phase, &fault)),
            Ok(answer) => {
                Counters::add(&shared.counters.standby, 1);
                let dialled = answer?;
                dialled.conn.set_user_timeout(Duration::ZERO);
                return Ok(dialled);
            }
        }
    }
    let mut since = Instant::now();
    let mut watcher = |passed: DialEvent<'_>| match passed {
        DialEvent::Upgrade(_) => relay.standby.note_distance(shared, since.elapsed()),
        _ => since = Instant::now(),
    };
    let mut way = Dialer {
        watcher: Some(&mut watcher),
        ..Dialer::new(shared, Some(client))
    };
    way.walk(target)
        .map_err(|fault| Refusal::of(way.phase, &fault))?
}

/// A WebSocket to the gateway on which nothing was asked for yet.
pub(super) fn stand_by(shared: &Shared) -> Result<Conn, TunnelError> {
    let mut way = Dialer::new(shared, None);
    let (mut conn, mut received) = way.reach()?;
    way.upgrade(&mut conn, &mut received)?;
    Ok(conn)
}

/// Walks the same way for who wants to know what lies on it, and hangs up. Without a target it goes no further than TLS,
/// so that the gateway does not learn who we are.
pub(crate) fn trace(
    upstream: &Upstream,
    limits: &Limits,
    target: Option<&Authority>,
    watcher: &mut dyn FnMut(DialEvent<'_>),
) -> Result<(), (Phase, Refusal)> {
    let begins = Phase::Resolve;
    let stop = Stop::new().map_err(|error| (begins, Refusal::of(begins, &error.into())))?;
    let (pool, budget) = (Pool::default(), Budget::default());
    let mut way = Dialer {
        upstream,
        limits,
        stop: &stop,
        pool: &pool,
        budget: &budget,
        client: None,
        phase: begins,
        watcher: Some(watcher),
    };
    let walked = match target {
        Some(target) => way.walk(target).map(|opened| opened.map(|to| to.conn)),
        None => way.reach().map(|(conn, _)| Ok(conn)),
    };
    let phase = way.phase;
    let mut conn = walked
        .map_err(|fault| (phase, Refusal::of(phase, &fault)))?
        .map_err(|refusal| (phase, refusal))?;
    conn.try_close(CloseCode::Away);
    close_and_drain(conn, &stop, limits.close_timeout);
    Ok(())
}

/// One walk to the gateway.
struct Dialer<'a> {
    upstream: &'a Upstream,
    limits: &'a Limits,
    stop: &'a Stop,
    pool: &'a Pool,
    budget: &'a Budget,
    /// Who waits for the tunnel, if anybody.
    client: Option<&'a TcpStream>,
    /// Where it stands.
    phase: Phase,
    /// Told of each phase when it is passed.
    watcher: Option<&'a mut dyn FnMut(DialEvent<'_>)>,
}

impl<'a> Dialer<'a> {
    /// From the beginning, with nobody who wants to know.
    fn new(shared: &'a Shared, client: Option<&'a TcpStream>) -> Self {
        Self {
            upstream: &shared.upstream,
            limits: &shared.limits,
            stop: &shared.stop,
            pool: &shared.pool,
            budget: &shared.budget,
            client,
            phase: Phase::Resolve,
            watcher: None,
        }
    }

    /// Every phase in turn. The inner error is the gateway's own refusal.
    fn walk(&mut self, target: &Authority) -> Result<Result<DialedTunnel, Refusal>, TunnelError> {
        let (mut conn, mut received) = self.reach()?;
        self.upgrade(&mut conn, &mut received)?;
        self.ask(conn, received, target)
    }

    /// Name, TCP and TLS: all that needs no credentials.
    fn reach(&mut self) -> Result<(Conn, Buffer), TunnelError> {
        let (upstream, stop) = (self.upstream, self.stop);
        let limit = self.limits.connect_timeout;
        let authority = upstream.base.authority();
        self.phase = Phase::Resolve;
        let addresses = upstream
            .resolver
            .resolve_while(
                &authority.host,
                authority.port,
                Deadline::after(limit),
                &|| stop.requested().is_none(),
            )
            .map_err(TunnelError::of_lookup)?;
        self.pass(DialEvent::Resolve(&addresses));

        self.phase = Phase::Connect;
        let (stream, address) = connect(&addresses, &self.bounded(limit))?;
        self.pass(DialEvent::Connect(address));
        let mut conn = Conn::new(stream, self.pool);
        // We speak first, on whichever layer.
        conn.readable = false;
        let mut received = Buffer::new(self.pool);

        if let Some(config) = &upstream.tls {
            self.phase = Phase::Tls;
            let name = tls::server_name(&authority.host).map_err(|_| TlsError::ServerName)?;
            let connection = UnbufferedClientConnection::new(config.clone(), name)?;
            conn.add_tls(Tls::client(connection, self.pool));
            drive_until(&mut conn, &mut received, &self.bounded(limit), |conn, _| {
                Ok(conn.tls().is_some_and(Tls::established).then_some(()))
            })?;
            if let Some(tls) = conn.tls() {
                self.pass(DialEvent::Tls(tls));
            }
        }
        Ok((conn, received))
    }

    /// The WebSocket.
    fn upgrade(&mut self, conn: &mut Conn, received: &mut Buffer) -> Result<(), TunnelError> {
        self.phase = Phase::Upgrade;
        let key = upgrade_key()?;
        self.send(conn, &upgrade_request(self.upstream, &key))?;
        let watch = self.bounded(self.limits.connect_timeout);
        let version = drive_until(conn, received, &watch, |_, received| {
            let Some((head, len)) = head::final_response(received.filled())? else {
                return Ok(None);
            };
            received.consume(len);
            upgraded(&head, &key).map(Some)
        })?;
        conn.add_websocket(WsCodec::new(Role::Client, version, self.budget), received)?;
        self.pass(DialEvent::Upgrade(version));
        Ok(())
    }

    /// The opening inside the WebSocket.
    fn ask(
        &mut self,
        mut conn: Conn,
        mut received: Buffer,
        target: &Authority,
    ) -> Result<Result<DialedTunnel, Refusal>, TunnelError> {
        self.phase = Phase::Opening;
        if !received.is_empty() {
            return Err(OpeningError::EarlyResponse.into());
        }
        self.send(
            &mut conn,
            &opening::request(target, &self.upstream.credentials),
        )?;
        let watch = self.bounded(self.limits.opening_timeout);
        let heard = drive_until(&mut conn, &mut received, &watch, |_, received| {
            ConnectResponse::read(received.filled())
        });
        // Without waiting: the client has nothing to gain from our manners.
        let answer = heard.inspect_err(|fault| conn.try_close(fault.close_code()))?;
        received.consume(answer.len);
        if answer.is_success() {
            self.pass(DialEvent::Opening);
            return Ok(Ok(DialedTunnel { conn, received }));
        }
        let watch = WaitContext {
            deadline: watch.deadline.min(Deadline::after(TEXT_TIMEOUT)),
            ..watch
        };
        let wanted = answer
            .text
            .unwrap_or(opening::TEXT_LIMIT)
            .min(opening::TEXT_LIMIT);
        // However the text ends, what came of it is what there is.
        let _ = drive_until(&mut conn, &mut received, &watch, |_, received| {
            Ok((received.len() >= wanted).then_some(()))
        });
        let came = received.filled();
        Ok(Err(refused_by_gateway(
            answer.status,
            &opening::plain_text(&came[..came.len().min(wanted)]),
        )))
    }

    fn pass(&mut self, phase: DialEvent<'_>) {
        if let Some(watcher) = &mut self.watcher {
            watcher(phase);
        }
    }

    /// What bounds the present phase.
    fn bounded(&self, timeout: Duration) -> WaitContext<'_> {
        WaitContext {
            stop: self.stop,
            client: self.client,
            deadline: Deadline::after(timeout),
            phase: self.phase,
            keepalive: Duration::ZERO,
            drains: false,
        }
    }

    /// Seals `bytes` for the link's peer, at its present layer.
    fn send(&self, conn: &mut Conn, bytes: &[u8]) -> Result<(), TunnelError> {
        let mut plain = Buffer::new(self.pool);
        plain.extend(bytes);
        conn.seal(&mut plain)
    }
}

/// A fresh `Sec-WebSocket-Key`: sixteen random bytes. tungstenite's own would panic where its source of randomness fails.
fn upgrade_key() -> Result<String, TunnelError> {
    let mut bytes = [0; 16];
    random::fill(&mut bytes)?;
    Ok(BASE64.encode(&bytes))
}

/// The opening handshake's request, written by ourselves: it carries the token, and is never traced.
fn upgrade_request(upstream: &Upstream, key: &str) -> Zeroizing<Vec<u8>> {
    let base = &upstream.base;
    let bearer = upstream.credentials.bearer();
    let mut head = Zeroizing::new(Vec::with_capacity(
        bearer.len() + base.ws_path().len() + 1024,
    ));
    for part in [
        "GET ",
        &base.ws_path(),
        " HTTP/1.1\r\nHost: ",
        &base.host_header(),
        "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ",
        key,
        "\r\nSec-WebSocket-Protocol: ",
        SUBPROTOCOL_V2,
        "\r\nContent-Type: application/proto\r\nAuthorization: ",
        &bearer,
        "\r\n\r\n",
    ] {
        head.extend_from_slice(part.as_bytes());
    }
    head
}

/// Checks the answer to the upgrade ([RFC 6455, section 4.1](https://www.rfc-editor.org/rfc/rfc6455#section-4.1)).
pub(crate) fn upgraded(head: &ResponseHead, key: &str) -> Result<Version, TunnelError> {
    match head.status {
        101 => {}
        401 | 403 | 407 => return Err(UpgradeError::Unauthorized.into()),
        300..=399 => {
            return Err(UpgradeError::Redirect.into());
        }
        404 => {
            return Err(UpgradeError::NotFound.into());
        }
        200..=299 => return Err(UpgradeError::Page.into()),
        429 | 500..=599 => return Err(UpgradeError::Unavailable.into()),
        _ => {
            return Err(UpgradeError::NotSwitched.into());
        }
    }
    let says = |name, word: &[u8]| {
        head.fields
            .list(name)
            .any(|element| element.eq_ignore_ascii_case(word))
    };
    if !says("upgrade", b"websocket") || !says("connection", b"upgrade") {
        return Err(UpgradeError::NotWebSocket.into());
    }
    if head.fields.one("sec-websocket-accept") != Some(derive_accept_key(key.as_bytes()).as_bytes())
    {
        return Err(UpgradeError::WrongAccept.into());
    }
    if head
        .fields
        .list("sec-websocket-extensions")
        .next()
        .is_some()
    {
        return Err(UpgradeError::Extension.into());
    }
    match head.fields.one("sec-websocket-protocol") {
        None if !head.fields.has("sec-websocket-protocol") => Ok(Version::V1),
        Some(chosen) if chosen == SUBPROTOCOL_V2.as_bytes() => Ok(Version::V2),
        _ => Err(UpgradeError::Subprotocol.into()),
    }
}
