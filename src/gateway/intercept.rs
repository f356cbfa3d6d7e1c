//! TLS interception: connects to the target with TLS and verifies it, then accepts TLS from the
//! client with a certificate for the same name and the ALPN protocol that the target selected
//! ([RFC 7301]). The data in between is not changed (`manual/protocol.md`, Interception).
//!
//! The client's first bytes decide, whatever the target sends before them: a `ClientHello` is
//! intercepted or refused, other TLS is refused, and another protocol is passed through unchanged,
//! or refused if `--require-tls` is set.
//!
//! [RFC 7301]: https://www.rfc-editor.org/rfc/rfc7301

use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{AlertDescription, ProtocolVersion};

use super::client_certificate::NoClientCertificate;
use super::client_hello::{self, ClientHello, FirstBytes};
use super::context::GatewayContext;
use super::target_failure;
use super::tls_alert;
use crate::control::deadline::Deadline;
use crate::control::log;
use crate::control::outcome::{EndReason, Party, TunnelSummary};
use crate::control::peer_text;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::crypto::tls;
use crate::http::authority::{Authority, Host};
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::drive::{WaitContext, WatchedClient, drive_until};
use crate::tunnel::error::TunnelError;
use crate::tunnel::pump::{Held, Pump};
use crate::tunnel::tls::Tls;

/// How long to wait for a target's verdict on a missing client certificate. It takes one round
/// trip; a server that accepts usually answers with a session ticket.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(1);

/// Waits for the client's first bytes. If they are TLS, adds TLS to both connections.
///
/// # Errors
/// The tunnel has ended meanwhile, or was refused.
pub(super) fn begin<'a>(
    gateway: &GatewayContext,
    authority: &Authority,
    pump: Box<Pump<'a>>,
) -> Result<Box<Pump<'a>>, TunnelSummary> {
    let held = if gateway.require_tls {
        Held::Both
    } else {
        Held::FromWs
    };
    let mut first = FirstBytes::NeedMore;
    let mut pump = pump.peek(held, gateway.limits.head_timeout, |bytes, ended| {
        first = if ended {
            client_hello::sniff_all(bytes)
        } else {
            client_hello::sniff(bytes)
        };
        !matches!(first, FirstBytes::NeedMore)
    })?;
    let error = match first {
        FirstBytes::NotTls if !gateway.require_tls => return Ok(pump),
        FirstBytes::Hello(hello) => match add_tls(gateway, authority, &hello, &mut pump) {
            Ok(()) => return Ok(pump),
            Err(error) => error,
        },
        FirstBytes::Broken { alert, reason } => InterceptError {
            alert,
            by: Party::Client,
            why: format!("ClientHello: {reason}"),
            rejection: None,
        },
        FirstBytes::NotTls => InterceptError::not_tls(Party::Client),
        FirstBytes::NeedMore if gateway.require_tls && pump.tls_obstacle().is_some() => {
            InterceptError::not_tls(Party::Target)
        }
        FirstBytes::NeedMore => InterceptError::new(
            AlertDescription::HandshakeFailure,
            Party::Client,
            "ClientHello: timed out before it was complete",
        ),
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

/// Why interception failed. The client receives a TLS alert, or a response inside TLS, since its
/// tunnel is open already.
struct InterceptError {
    /// The alert record for the client; empty if rustls has sent one, or if the client's TLS
    /// handshake has begun.
    alert: Vec<u8>,
    by: Party,
    why: String,
    /// The response for a client of HTTP, if TLS with the target has failed.
    rejection: Option<Box<Rejection>>,
}

impl InterceptError {
    fn new(alert: AlertDescription, by: Party, why: impl Into<String>) -> Self {
        Self {
            alert: tls_alert::fatal(alert),
            by,
            why: why.into(),
            rejection: None,
        }
    }

    /// `--require-tls` is set, and `by` speaks another protocol.
    fn not_tls(by: Party) -> Self {
        let why = format!(
            "the {} speaks another protocol than TLS, which require-tls (--require-tls) does not allow",
            by.name()
        );
        Self::new(AlertDescription::UnexpectedMessage, by, why)
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

/// Whether the server name of a `ClientHello` is `host`.
fn names(server_name: &str, host: &Host) -> bool {
    Host::parse(server_name).as_ref() == Ok(host)
}

/// Adds TLS to both connections of the pump: the target's first, because the client's depends on
/// it.
fn add_tls(
    gateway: &GatewayContext,
    authority: &Authority,
    hello: &ClientHello,
    pump: &mut Pump<'_>,
) -> Result<(), InterceptError> {
    if let Some(name) = hello
        .sni
        .as_deref()
        .filter(|name| !names(name, &authority.host))
    {
        return Err(InterceptError::new(
            AlertDescription::UnrecognisedName,
            Party::Client,
            format!(
                "the ClientHello names {:?}, which is not the host of the CONNECT request",
                peer_text::bounded(name)
            ),
        ));
    }
    if let Some((by, why)) = pump.tls_obstacle() {
        return Err(InterceptError::new(
            AlertDescription::HandshakeFailure,
            by,
            why,
        ));
    }
    let (tcp, ws, outbound, inbound) = pump.parts();
    let client = WatchedClient::that_may_half_close(ws.socket());
    let wait = handshake_wait(gateway, Some(client));
    let alpn = match connect(gateway, authority, hello, &wait, tcp, outbound) {
        Ok(alpn) => alpn,
        Err(mut error) => {
            if let Some(rejection) = error.rejection.take()
                && target_failure::answer(gateway, authority, hello, *rejection, ws, inbound)
            {
                error.alert.clear();
            }
            return Err(error);
        }
    };
    let config = gateway
        .issuer()
        .server_config(&authority.host, alpn.as_deref())
        .map_err(|error| InterceptError::internal(&error))?;
    let connection = UnbufferedServerConnection::new(config)
        .map_err(|error| InterceptError::internal(&error))?;
    let wait = handshake_wait(gateway, None);
    ws.add_inner_tls(Tls::server(connection, &gateway.pool), inbound)
        .and_then(|()| {
            drive_until(ws, inbound, &wait, |conn, _| match conn.accepts_data() {
                true => Ok(Some(())),
                false if conn.peer_finished() => Err(TunnelError::ConnectionEnded),
                false => Ok(None),
            })
        })
        .map_err(|error| InterceptError {
            alert: Vec::new(),
            by: Party::Client,
            why: format!(
                "TLS with the client failed: {}",
                target_failure::cause(&error)
            ),
            rejection: None,
        })
}

/// What bounds one TLS handshake.
fn handshake_wait<'a>(
    gateway: &'a GatewayContext,
    client: Option<WatchedClient<'a>>,
) -> WaitContext<'a> {
    WaitContext {
        stop: &gateway.stop,
        client,
        deadline: Deadline::after(gateway.limits.connect_timeout),
        phase: Phase::Tls,
        keepalive: Duration::ZERO,
        drains: true,
    }
}

/// Does the TLS handshake with the target. Returns the protocol that it selected.
fn connect(
    gateway: &GatewayContext,
    authority: &Authority,
    hello: &ClientHello,
    wait: &WaitContext<'_>,
    tcp: &mut Conn,
    outbound: &mut Buffer,
) -> Result<Option<Vec<u8>>, InterceptError> {
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
    tcp.add_tls(Tls::client(connection, &gateway.pool));
    NoClientCertificate::take_requested();
    let result = drive_until(tcp, outbound, wait, |conn, _| {
        let tls = conn.tls().filter(|tls| tls.established());
        Ok(tls.map(|tls| (tls.alpn().map(<[u8]>::to_vec), tls.version())))
    });
    let requested = NoClientCertificate::take_requested();
    let result = result.and_then(|(alpn, version)| {
        // In TLS 1.2 the target's verdict is a part of the handshake.
        if requested && version == Some(ProtocolVersion::TLSv1_3) {
            await_verdict(wait, tcp, outbound)?;
        }
        Ok(alpn)
    });
    result.map_err(|error| {
        let mut why = format!(
            "TLS with the target failed: {}",
            target_failure::cause(&error)
        );
        if requested {
            why.push_str("; ");
            why.push_str(target_failure::NO_CLIENT_CERTIFICATE);
        }
        // After a stop or without a client there is no one to answer.
        let answers = !matches!(error, TunnelError::Stopped | TunnelError::ClientLeft);
        InterceptError {
            rejection: answers.then(|| Box::new(target_failure::rejection(&error, requested))),
            ..InterceptError::new(tls_alert::for_target(&error), Party::Target, why)
        }
    })
}

/// Waits until the target has accepted or refused that there is no client certificate. A TLS 1.3
/// client completes its handshake before that ([RFC 8446, section 4.4.2.4]).
///
/// [RFC 8446, section 4.4.2.4]: https://www.rfc-editor.org/rfc/rfc8446#section-4.4.2.4
fn await_verdict(
    wait: &WaitContext<'_>,
    tcp: &mut Conn,
    outbound: &mut Buffer,
) -> Result<(), TunnelError> {
    let wait = WaitContext {
        deadline: wait.deadline.min(Deadline::after(VERDICT_TIMEOUT)),
        ..*wait
    };
    tcp.received = false;
    let verdict = drive_until(tcp, outbound, &wait, |conn, _| {
        let whole = conn.tls().is_some_and(|tls| tls.incoming.is_empty());
        Ok((conn.received && whole).then_some(()))
    });
    match verdict {
        // If it is an alert, `drive_until` has deferred the error.
        Ok(()) => tcp.fill(outbound),
        // A server may accept silently.
        Err(TunnelError::TimedOut(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::client_hello::tests::{hello_with_name, table};

    #[test]
    fn the_names_on_the_protocol_page_have_their_results() {
        let rows = table("<!-- server-names -->");
        assert!(rows.len() > 8);
        for row in rows {
            let [host, name, expected] = row[..] else {
                panic!("{row:?}");
            };
            let host = Host::parse(host).unwrap();
            let hello = hello_with_name(Some(name).filter(|name| *name != "none"));
            let FirstBytes::Hello(hello) = client_hello::sniff(&hello) else {
                panic!("{row:?}");
            };
            let result = match hello.sni {
                Some(sni) if !names(&sni, &host) => "unrecognized_name",
                _ => "intercepted",
            };
            assert_eq!(result, expected, "{row:?}");
        }
    }
}
