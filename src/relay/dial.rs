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

use super::refusal::{self, Refusal, refused_by_gateway};
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
use crate::tunnel::drive::{WaitContext, converse, farewell};
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::message::{Budget, SUBPROTOCOL_V2, Version, WsCodec};
use crate::tunnel::opening::{self, ConnectResponse};
use crate::tunnel::transport::Tls;

/// How long the text of a refusal may take after its head.
const TEXT_TIMEOUT: Duration = Duration::from_secs(2);

/// An open way to the target.
pub(super) struct DialedTunnel {
    /// The WebSocket.
    pub(super) link: Conn,
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
    if let Some(link) = relay.standby.take(shared) {
        let mut way = Dialer::new(shared, Some(client));
        // One whose host has vanished is found out in the time that a dial may take.
        link.set_user_timeout(shared.limits.connect_timeout);
        match way.ask(link, Buffer::new(&shared.pool), target) {
            // Nothing of the client's was passed on, so that a second try can do no harm.
            Err(fault @ (TunnelError::Io(_) | TunnelError::Ended | TunnelError::Closed(_))) => {
                log::debug!("relay: {target}: what stood by was dead: {fault}; dialling");
            }
            Err(fault) => return Err(Refusal::of(way.phase, &fault)),
            Ok(answer) => {
                Counters::add(&shared.counters.standby, 1);
                let dialled = answer?;
                dialled.link.set_user_timeout(Duration::ZERO);
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
    let (mut link, mut received) = way.reach()?;
    way.upgrade(&mut link, &mut received)?;
    Ok(link)
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
        Some(target) => way.walk(target).map(|opened| opened.map(|to| to.link)),
        None => way.reach().map(|(link, _)| Ok(link)),
    };
    let phase = way.phase;
    let mut link = walked
        .map_err(|fault| (phase, Refusal::of(phase, &fault)))?
        .map_err(|refusal| (phase, refusal))?;
    link.part_with(CloseCode::Away);
    farewell(link, &stop, limits.close_timeout);
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
        let (mut link, mut received) = self.reach()?;
        self.upgrade(&mut link, &mut received)?;
        self.ask(link, received, target)
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
        let mut link = Conn::new(stream, self.pool);
        // We speak first, on whichever layer.
        link.readable = false;
        let mut received = Buffer::new(self.pool);

        if let Some(config) = &upstream.tls {
            self.phase = Phase::Tls;
            let name = tls::server_name(&authority.host)
                .map_err(|_| TunnelError::Head("no certificate can carry this host's name"))?;
            let connection = UnbufferedClientConnection::new(config.clone(), name)?;
            link.secure(Tls::client(connection, self.pool));
            converse(&mut link, &mut received, &self.bounded(limit), |link, _| {
                Ok(link.tls().is_some_and(Tls::established).then_some(()))
            })?;
            if let Some(tls) = link.tls() {
                self.pass(DialEvent::Tls(tls));
            }
        }
        Ok((link, received))
    }

    /// The WebSocket.
    fn upgrade(&mut self, link: &mut Conn, received: &mut Buffer) -> Result<(), TunnelError> {
        self.phase = Phase::Upgrade;
        let key = upgrade_key()?;
        self.send(link, &upgrade_request(self.upstream, &key))?;
        let watch = self.bounded(self.limits.connect_timeout);
        let version = converse(link, received, &watch, |_, received| {
            let Some((head, len)) = head::final_response(received.filled())? else {
                return Ok(None);
            };
            received.consume(len);
            upgraded(&head, &key).map(Some)
        })?;
        link.frame(WsCodec::new(Role::Client, version, self.budget), received)?;
        self.pass(DialEvent::Upgrade(version));
        Ok(())
    }

    /// The opening inside the WebSocket.
    fn ask(
        &mut self,
        mut link: Conn,
        mut received: Buffer,
        target: &Authority,
    ) -> Result<Result<DialedTunnel, Refusal>, TunnelError> {
        self.phase = Phase::Opening;
        if !received.is_empty() {
            return Err(TunnelError::Head(
                "the gateway sent data before it was asked for any",
            ));
        }
        self.send(
            &mut link,
            &opening::request(target, &self.upstream.credentials),
        )?;
        let watch = self.bounded(self.limits.opening_timeout);
        let heard = converse(&mut link, &mut received, &watch, |_, received| {
            ConnectResponse::read(received.filled())
        });
        // Without waiting: the client has nothing to gain from our manners.
        let answer = heard.inspect_err(|fault| link.part_with(fault.close_code()))?;
        received.consume(answer.len);
        if answer.is_success() {
            self.pass(DialEvent::Opening);
            return Ok(Ok(DialedTunnel { link, received }));
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
        let _ = converse(&mut link, &mut received, &watch, |_, received| {
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
    fn send(&self, link: &mut Conn, bytes: &[u8]) -> Result<(), TunnelError> {
        let mut plain = Buffer::new(self.pool);
        plain.extend(bytes);
        link.seal(&mut plain)
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
        401 | 403 | 407 => return Err(TunnelError::Head(refusal::UNAUTHORIZED)),
        300..=399 => {
            return Err(TunnelError::Head(
                "the upstream redirects, and a redirect is not followed: it would carry the token away",
            ));
        }
        404 => {
            return Err(TunnelError::Head(
                "the upstream has no tunnel endpoint at this base URL",
            ));
        }
        200..=299 => return Err(TunnelError::Head(refusal::PAGE)),
        429 | 500..=599 => return Err(TunnelError::Head(refusal::UNWELL)),
        _ => {
            return Err(TunnelError::Head(
                "the upstream did not switch to WebSocket",
            ));
        }
    }
    let says = |name, word: &[u8]| {
        head.fields
            .list(name)
            .any(|element| element.eq_ignore_ascii_case(word))
    };
    if !says("upgrade", b"websocket") || !says("connection", b"upgrade") {
        return Err(TunnelError::Head(
            "the upstream's 101 is not one to WebSocket",
        ));
    }
    if head.fields.one("sec-websocket-accept") != Some(derive_accept_key(key.as_bytes()).as_bytes())
    {
        return Err(TunnelError::Head(
            "the upstream's Sec-WebSocket-Accept is wrong",
        ));
    }
    if head
        .fields
        .list("sec-websocket-extensions")
        .next()
        .is_some()
    {
        return Err(TunnelError::Head(
            "the upstream chose a WebSocket extension that was not offered",
        ));
    }
    match head.fields.one("sec-websocket-protocol") {
        None if !head.fields.has("sec-websocket-protocol") => Ok(Version::V1),
        Some(chosen) if chosen == SUBPROTOCOL_V2.as_bytes() => Ok(Version::V2),
        _ => Err(TunnelError::Head(
            "the upstream chose a WebSocket subprotocol that was not offered",
        )),
    }
}
