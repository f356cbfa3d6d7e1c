//! TLS interception: connects to the target with TLS and verifies it, then accepts TLS from the
//! client with a certificate for the same name and the ALPN protocol that the target selected
//! ([RFC 7301]). The data in between is not changed (`manual/protocol.md`, Interception).
//!
//! Connections that do not begin with a `ClientHello` are passed through unchanged.
//!
//! [RFC 7301]: https://www.rfc-editor.org/rfc/rfc7301

use std::time::Duration;

use rustls::AlertDescription;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;

use super::client_hello::{self, ClientHello, FirstBytes};
use super::context::GatewayContext;
use super::tls_alert;
use crate::control::deadline::Deadline;
use crate::control::log;
use crate::control::outcome::{EndReason, Party, TunnelSummary};
use crate::control::peer_text;
use crate::control::phase::Phase;
use crate::crypto::tls;
use crate::http::authority::{Authority, Host};
use crate::tunnel::drive::{WaitContext, WatchedClient, drive_until};
use crate::tunnel::pump::Pump;
use crate::tunnel::tls::Tls;

/// Waits for the client's first bytes. If they are TLS, adds TLS to both connections.
///
/// # Errors
/// The tunnel has ended meanwhile, or interception failed.
pub(super) fn begin<'a>(
    gateway: &GatewayContext,
    authority: &Authority,
    pump: Box<Pump<'a>>,
) -> Result<Box<Pump<'a>>, TunnelSummary> {
    let mut first = FirstBytes::NeedMore;
    let mut pump = pump.peek(|bytes| {
        first = client_hello::sniff(bytes);
        !matches!(first, FirstBytes::NeedMore)
    })?;
    let error = match first {
        FirstBytes::NeedMore | FirstBytes::NotTls => return Ok(pump),
        FirstBytes::Broken { alert, reason } => InterceptError {
            alert,
            by: Party::Client,
            why: format!("ClientHello: {reason}"),
        },
        FirstBytes::Hello(hello) => match add_tls(gateway, authority, &hello, &mut pump) {
            Ok(()) => return Ok(pump),
            Err(error) => error,
        },
    };
    log::warn!(target: gateway.log_source.target(), "gateway: {authority}: interception failed: {}", error.why);
    let summary = pump.finish_with(&error.alert);
    Err(TunnelSummary {
        reason: EndReason::Broken {
            by: error.by,
            why: error.why,
        },
        ..summary
    })
}

/// Why interception failed. The client receives a TLS alert, since its tunnel is open already.
struct InterceptError {
    /// The alert record for the client; empty if rustls has sent one.
    alert: Vec<u8>,
    by: Party,
    why: String,
}

impl InterceptError {
    fn new(alert: AlertDescription, by: Party, why: impl Into<String>) -> Self {
        Self {
            alert: tls_alert::fatal(alert),
            by,
            why: why.into(),
        }
    }

    /// A failure of the gateway.
    fn internal(error: &dyn std::fmt::Display) -> Self {
        Self::new(
            AlertDescription::InternalError,
            Party::Gateway,
            error.to_string(),
        )
    }
}

/// Adds TLS to both connections of the pump: the target's first, because the client's depends on
/// it.
fn add_tls(
    gateway: &GatewayContext,
    authority: &Authority,
    hello: &ClientHello,
    pump: &mut Pump<'_>,
) -> Result<(), InterceptError> {
    if let Some(sni) = &hello.sni
        && Host::parse(sni).as_ref() != Ok(&authority.host)
    {
        return Err(InterceptError::new(
            AlertDescription::UnrecognisedName,
            Party::Client,
            format!(
                "the ClientHello names {:?}, which is not the host of the CONNECT request",
                peer_text::bounded(sni)
            ),
        ));
    }
    let name = tls::server_name(&authority.host).map_err(|_| {
        InterceptError::new(
            AlertDescription::UnrecognisedName,
            Party::Client,
            "no certificate can contain this host's name",
        )
    })?;
    let config = tls::with_alpn(&gateway.target_tls, hello.alpn.clone());
    let connection = UnbufferedClientConnection::new(config, name)
        .map_err(|error| InterceptError::internal(&error))?;

    let (tcp, ws, outbound, inbound) = pump.parts();
    tcp.add_tls(Tls::client(connection, &gateway.pool));
    let wait = WaitContext {
        stop: &gateway.stop,
        client: Some(WatchedClient::that_may_half_close(ws.socket())),
        deadline: Deadline::after(gateway.limits.connect_timeout),
        phase: Phase::Tls,
        keepalive: Duration::ZERO,
        drains: true,
    };
    let alpn = drive_until(tcp, outbound, &wait, |conn, _| {
        let tls = conn.tls().filter(|tls| tls.established());
        Ok(tls.map(|tls| tls.alpn().map(<[u8]>::to_vec)))
    })
    .map_err(|error| {
        let why = format!("TLS with the target failed: {error}");
        InterceptError::new(tls_alert::for_target(&error), Party::Target, why)
    })?;

    let config = gateway
        .issuer
        .server_config(&authority.host, alpn.as_deref())
        .map_err(|error| InterceptError::internal(&error))?;
    let connection = UnbufferedServerConnection::new(config)
        .map_err(|error| InterceptError::internal(&error))?;
    ws.add_inner_tls(Tls::server(connection, &gateway.pool), inbound)
        .map_err(|error| InterceptError {
            alert: Vec::new(),
            by: Party::Client,
            why: format!("TLS with the client failed: {error}"),
        })
}
