//! Dials the gateway: name, TCP, TLS, WebSocket upgrade ([RFC 6455, section 4]), CONNECT request.
//!
//! `rejection` says what a failure means to the client. The token goes to the configured upstream
//! only: no redirect is followed.
//!
//! [RFC 6455, section 4]: https://www.rfc-editor.org/rfc/rfc6455#section-4

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Weak};
use std::time::Duration;

use data_encoding::BASE64;
use rustls::client::UnbufferedClientConnection;
use tungstenite::handshake::derive_accept_key;
#[cfg(feature = "cli")]
use tungstenite::protocol::frame::coding::CloseCode;
use zeroize::Zeroizing;

use super::context::{RelayContext, Upstream};
use super::rejection::DialError;
use crate::config::Limits;
use crate::config::ParentProxy;
use crate::control::deadline::Deadline;
use crate::control::peer_text::TEXT_LIMIT;
use crate::control::phase::Phase;
#[cfg(feature = "cli")]
use crate::control::rejection::Rejection;
use crate::control::stop::Stop;
use crate::crypto::secret::Credentials;
use crate::crypto::{random, tls};
use crate::http::authority::Authority;
use crate::http::base_url::BaseUrl;
use crate::http::head::{self, ResponseHead};
use crate::tunnel::buffer::{Buffer, Pool};
use crate::tunnel::conn::Conn;
use crate::tunnel::connect::{connect, resolve};
#[cfg(feature = "cli")]
use crate::tunnel::drive::close_and_drain;
use crate::tunnel::drive::{WaitContext, WatchedClient, drive_until};
use crate::tunnel::error::{OpeningError, TlsError, TunnelError, UpgradeError};
use crate::tunnel::frame::Role;
use crate::tunnel::opening::{self, ConnectResponse};
use crate::tunnel::parent;
use crate::tunnel::tls::Tls;
use crate::tunnel::ws_codec::{Budget, SUBPROTOCOL_V2, Version, WsCodec};

/// The owner of the relay's lookups: all of them are for its one session.
const OWNER: u64 = 0;
/// How long the text of a refusal may take after its head.
const TEXT_TIMEOUT: Duration = Duration::from_secs(2);

/// An open tunnel to the target.
pub(super) struct DialedTunnel {
    /// The WebSocket.
    pub(super) conn: Conn,
    /// Data that the target has already sent.
    pub(super) received: Buffer,
}

/// A phase that has succeeded, with its result.
// Without the command line, no observer reads the results.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) enum DialEvent<'a> {
    /// The gateway's name has these addresses.
    Resolve(&'a [SocketAddr]),
    /// The connection is to this address.
    Connect(SocketAddr),
    /// The TLS handshake is complete.
    Tls(&'a Tls),
    /// The WebSocket is open and uses this wire version.
    Upgrade(Version),
    /// The gateway has reached the target.
    Opening,
}

/// Opens a WebSocket to the gateway without a CONNECT request, to be kept on standby. Returns what
/// identifies the credentials that it used, too.
pub(super) fn dial_ahead(context: &RelayContext) -> Result<(Conn, Weak<Credentials>), TunnelError> {
    let credentials = context.upstream.credentials.get();
    let mut dialer = Dialer::new(context, &credentials, None);
    let (mut conn, mut received) = dialer.connect_transport()?;
    dialer.upgrade(&mut conn, &mut received)?;
    Ok((conn, Arc::downgrade(&credentials)))
}

/// Dials the gateway, reports each phase to `observer`, and closes the connection. Without a target
/// it stops after TLS, so that the gateway does not receive the credentials.
///
/// It blocks for the timeouts in `limits` at most.
///
/// # Errors
/// The rejection that a client would receive.
#[cfg(feature = "cli")]
pub(crate) fn trace(
    upstream: &Upstream,
    limits: &Limits,
    target: Option<&Authority>,
    observer: &mut dyn FnMut(DialEvent<'_>),
) -> Result<(), Rejection> {
    let rejected = |error: DialError, phase| error.rejection(phase);
    let stop =
        Stop::new().map_err(|error| rejected(TunnelError::from(error).into(), Phase::Resolve))?;
    let mut dialer = Dialer {
        upstream,
        credentials: &upstream.credentials.get(),
        limits,
        stop: &stop,
        pool: &Pool::default(),
        budget: &Budget::default(),
        client: None,
        phase: Phase::Resolve,
        observer: Some(observer),
        relay: None,
    };
    let opened = match target {
        Some(target) => dialer.connect_all(target).map(|tunnel| tunnel.conn),
        None => dialer
            .connect_transport()
            .map(|(conn, _)| conn)
            .map_err(DialError::from),
    };
    let mut conn = opened.map_err(|error| rejected(error, dialer.phase))?;
    conn.try_close(CloseCode::Away);
    close_and_drain(conn, &stop, limits.close_timeout);
    Ok(())
}

/// Dials the gateway once, phase by phase.
pub(super) struct Dialer<'a> {
    upstream: &'a Upstream,
    /// The credentials of this dial.
    credentials: &'a Arc<Credentials>,
    limits: &'a Limits,
    stop: &'a Stop,
    pool: &'a Pool,
    budget: &'a Budget,
    /// The client that waits for the tunnel. If it disconnects, the dial ends.
    client: Option<&'a TcpStream>,
    /// The phase that runs, or that failed.
    phase: Phase,
    observer: Option<&'a mut dyn FnMut(DialEvent<'_>)>,
    /// The relay; `None` for a dial without one.
    relay: Option<&'a RelayContext>,
}

impl<'a> Dialer<'a> {
    /// A dialer that has not started, for `client`.
    pub(super) fn new(
        context: &'a RelayContext,
        credentials: &'a Arc<Credentials>,
        client: Option<&'a TcpStream>,
    ) -> Self {
        Self {
            upstream: &context.upstream,
            credentials,
            limits: &context.limits,
            stop: &context.stop,
            pool: &context.pool,
            budget: &context.budget,
            client,
            phase: Phase::Resolve,
            observer: None,
            relay: Some(context),
        }
    }

    /// Reports each phase that succeeds to `observer`.
    pub(super) fn observed_by(mut self, observer: &'a mut dyn FnMut(DialEvent<'_>)) -> Self {
        self.observer = Some(observer);
        self
    }

    /// The phase that runs, or that failed.
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Runs every phase in sequence.
    pub(super) fn connect_all(&mut self, target: &Authority) -> Result<DialedTunnel, DialError> {
        let (mut conn, mut received) = self.connect_transport()?;
        self.upgrade(&mut conn, &mut received)?;
        self.open_tunnel(conn, received, target)
    }

    /// The phases that need no credentials: name, TCP and TLS.
    fn connect_transport(&mut self) -> Result<(Conn, Buffer), TunnelError> {
        let upstream = self.upstream;
        let timeout = self.limits.connect_timeout;
        let authority = upstream.base.authority();
        let parent = upstream.parent.as_ref();
        let next_hop = parent.map_or(authority, ParentProxy::authority);
        let resolver = &upstream.resolver;
        self.phase = Phase::Resolve;
        let mut resolution = resolve(resolver, next_hop, OWNER, &self.wait_context(timeout))?;
        self.report(DialEvent::Resolve(resolution.addresses()));

        self.phase = Phase::Connect;
        let wait = self.wait_context(timeout);
        let (stream, address) = connect(resolver, next_hop, &mut resolution, &wait)?;
        if let Some(parent) = parent {
            parent::establish(&stream, parent, authority, &wait)?;
        }
        if let Some(owner) = &upstream.owner {
            owner.check(&stream, address)?;
        }
        self.report(DialEvent::Connect(address));
        let mut conn = Conn::new(stream, self.pool);
        // The relay sends first, in TLS and in HTTP.
        conn.readable = false;
        let mut received = Buffer::new(self.pool);

        if let Some(config) = &upstream.tls {
            self.phase = Phase::Tls;
            let name = tls::server_name(&authority.host).map_err(|_| TlsError::ServerName)?;
            let connection = UnbufferedClientConnection::new(config.clone(), name)?;
            conn.add_tls(Tls::client(connection, self.pool));
            let wait = self.wait_context(timeout);
            drive_until(&mut conn, &mut received, &wait, |conn, _| {
                Ok(conn.tls().is_some_and(Tls::established).then_some(()))
            })?;
            if let Some(tls) = conn.tls() {
                self.report(DialEvent::Tls(tls));
            }
        }
        Ok((conn, received))
    }

    /// The WebSocket upgrade, which sends the token.
    fn upgrade(&mut self, conn: &mut Conn, received: &mut Buffer) -> Result<(), TunnelError> {
        self.phase = Phase::Upgrade;
        let key = upgrade_key()?;
        conn.send(&upgrade_request(
            &self.upstream.base,
            self.credentials,
            &key,
        ))?;
        let wait = self.wait_context(self.limits.connect_timeout);
        let version = drive_until(conn, received, &wait, |_, received| {
            let Some((head, len)) = head::final_response(received.filled())? else {
                return Ok(None);
            };
            received.consume(len);
            let version = upgraded(&head, &key).inspect_err(|error| {
                if matches!(error, TunnelError::Upgrade(UpgradeError::Unauthorized)) {
                    self.upstream.credentials.report_refused(self.credentials);
                }
            })?;
            if let Some(relay) = self.relay {
                relay.check_ca(&head);
            }
            Ok(Some(version))
        })?;
        conn.add_websocket(WsCodec::new(Role::Client, version, self.budget), received)?;
        self.report(DialEvent::Upgrade(version));
        Ok(())
    }

    /// The CONNECT request inside the WebSocket, and its response.
    pub(super) fn open_tunnel(
        &mut self,
        mut conn: Conn,
        mut received: Buffer,
        target: &Authority,
    ) -> Result<DialedTunnel, DialError> {
        self.phase = Phase::Opening;
        if !received.is_empty() {
            return Err(TunnelError::from(OpeningError::EarlyResponse).into());
        }
        conn.send(&opening::request(target, self.credentials))?;
        let wait = self.wait_context(self.limits.opening_timeout);
        let response = drive_until(&mut conn, &mut received, &wait, |_, received| {
            ConnectResponse::read(received.filled())
        });
        // Without waiting for the peer's close: the client waits for the rejection.
        let response = response.inspect_err(|error| conn.try_close(error.close_code()))?;
        received.consume(response.len);
        if response.is_success() {
            self.report(DialEvent::Opening);
            return Ok(DialedTunnel { conn, received });
        }
        if matches!(response.status, 401 | 407) {
            self.upstream.credentials.report_refused(self.credentials);
        }
        let wait = WaitContext {
            deadline: wait.deadline.min(Deadline::after(TEXT_TIMEOUT)),
            ..wait
        };
        let expected = response.text.unwrap_or(TEXT_LIMIT).min(TEXT_LIMIT);
        // If the text is incomplete, the part that arrived is used.
        let _ = drive_until(&mut conn, &mut received, &wait, |_, received| {
            Ok((received.len() >= expected).then_some(()))
        });
        let text = received.filled();
        Err(DialError::Refused {
            status: response.status,
            error: response.error,
            text: opening::plain_text(&text[..text.len().min(expected)]),
        })
    }

    fn report(&mut self, event: DialEvent<'_>) {
        if let Some(observer) = &mut self.observer {
            observer(event);
        }
    }

    /// What bounds the waiting in the current phase.
    fn wait_context(&self, timeout: Duration) -> WaitContext<'_> {
        WaitContext {
            stop: self.stop,
            client: self.client.map(WatchedClient::that_may_half_close),
            deadline: Deadline::after(timeout),
            phase: self.phase,
            keepalive: Duration::ZERO,
            drains: false,
        }
    }
}

/// A fresh `Sec-WebSocket-Key` of 16 random bytes. tungstenite's function would panic if the system
/// has no random bytes.
fn upgrade_key() -> Result<String, TunnelError> {
    let mut bytes = [0; 16];
    random::fill(&mut bytes)?;
    Ok(BASE64.encode(&bytes))
}

/// The upgrade request. It contains the token, so no library that may log it writes it.
fn upgrade_request(base: &BaseUrl, credentials: &Credentials, key: &str) -> Zeroizing<Vec<u8>> {
    let bearer = credentials.bearer();
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

/// Checks the response to the upgrade ([RFC 6455, section 4.1]).
///
/// [RFC 6455, section 4.1]: https://www.rfc-editor.org/rfc/rfc6455#section-4.1
pub(crate) fn upgraded(head: &ResponseHead, key: &str) -> Result<Version, TunnelError> {
    match head.status {
        101 => {}
        401 | 403 | 407 => return Err(UpgradeError::Unauthorized.into()),
        300..=399 => return Err(UpgradeError::Redirect.into()),
        404 => return Err(UpgradeError::NotFound.into()),
        200..=299 => return Err(UpgradeError::Page.into()),
        429 | 503 => return Err(UpgradeError::Busy.into()),
        500..=599 => return Err(UpgradeError::Unavailable.into()),
        _ => return Err(UpgradeError::NotSwitched.into()),
    }
    let fields = &head.fields;
    if !fields.lists("upgrade", "websocket") || !fields.lists("connection", "upgrade") {
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
