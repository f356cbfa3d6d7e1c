//! What the client of an intercepted connection receives if TLS with the target has failed.
//!
//! Most tools show an alert as `bad certificate`, and nothing about its cause. So a client that
//! offers HTTP/1.1 by ALPN gets TLS with a certificate of the gateway, and a response with status
//! 502 that has the cause. Nothing of its request is sent to the target. Any other client gets the
//! alert: without ALPN it may speak another protocol, which has no place for the cause.

use std::time::Duration;

use rustls::CertificateError;
use rustls::server::UnbufferedServerConnection;

use super::client_hello::ClientHello;
use super::context::GatewayContext;
use crate::control::deadline::Deadline;
use crate::control::log;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::crypto::tls_error::{self, Verifier};
use crate::http::authority::Authority;
use crate::http::head::{self, HeadError};
use crate::http::response;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::drive::{WaitContext, drive_until};
use crate::tunnel::error::{TlsError, TunnelError, tls_status};
use crate::tunnel::tls::Tls;

/// The only protocol in which the cause can be sent: HTTP/2 begins with frames of both ends.
const HTTP_1_1: &[u8] = b"http/1.1";
/// How long the client's request may take after the handshake. A client of HTTP sends it with its
/// last flight, and one of a protocol in which the server speaks first waits.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What a target that asks for a client certificate needs.
pub(super) const NO_CLIENT_CERTIFICATE: &str = "it asks for a client certificate, which cannot pass an intercepting gateway: choose patterns of \
     intercept (--intercept) that do not match it";

/// The rejection for a client whose target has failed in the TLS handshake.
pub(super) fn rejection(error: &TunnelError, asks_for_certificate: bool) -> Rejection {
    let (what, remedy) = if let TunnelError::Tls(TlsError::Rustls(
        rustls::Error::InvalidCertificate(flaw),
    )) = error
    {
        let remedy = match flaw {
            CertificateError::UnknownIssuer => {
                "if the target can be trusted, name its CA with target-ca (--target-ca) at the \
                 gateway, or with upstream-ca (--upstream-ca) if it is embedded"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "use a name that the certificate has"
            }
            _ => "report it to the target's operator",
        };
        let flaw = tls_error::certificate_flaw(flaw, Verifier::Gateway);
        (format!("the target's certificate {flaw}"), remedy)
    } else {
        let remedy = if asks_for_certificate {
            NO_CLIENT_CERTIFICATE
        } else {
            "check its port, and which versions of TLS it supports"
        };
        let what = format!("TLS with the target failed: {}", cause(error));
        (what, remedy)
    };
    let status = if error.is_timeout() { 504 } else { 502 };
    Rejection::new(status, Phase::Tls, what)
        .remedy(remedy)
        .proxy_status(tls_status(error))
        .about_target()
}

/// The error without the prefix that says that it is one of TLS.
pub(super) fn cause(error: &TunnelError) -> String {
    match error {
        TunnelError::Tls(error) => error.to_string(),
        TunnelError::ConnectionEnded => "the target closed the connection".to_owned(),
        error => error.to_string(),
    }
}

/// Completes the client's TLS handshake, and answers its request with `rejection`. Returns whether
/// the handshake has begun: then no alert can be sent any more. Blocks until the client has sent
/// its request, for the limits of the handshake and [`REQUEST_TIMEOUT`].
pub(super) fn answer(
    gateway: &GatewayContext,
    authority: &Authority,
    hello: &ClientHello,
    rejection: Rejection,
    ws: &mut Conn,
    inbound: &mut Buffer,
) -> bool {
    if !hello.alpn.iter().any(|protocol| protocol == HTTP_1_1) {
        return false;
    }
    let issuer = gateway.issuer();
    let Ok(config) = issuer.server_config(&authority.host, Some(HTTP_1_1)) else {
        return false;
    };
    let Ok(connection) = UnbufferedServerConnection::new(config) else {
        return false;
    };
    let tls = Tls::server(connection, &gateway.pool);
    let rejection = rejection.for_target(&authority.to_string());
    if let Err(error) = respond(gateway, tls, &rejection, ws, inbound) {
        log::debug!(target: gateway.log_source.target(), "gateway: {authority}: the client was not answered: {error}");
    }
    true
}

fn respond(
    gateway: &GatewayContext,
    tls: Tls,
    rejection: &Rejection,
    ws: &mut Conn,
    inbound: &mut Buffer,
) -> Result<(), TunnelError> {
    let limits = &gateway.limits;
    let wait = |limit: Duration| WaitContext {
        stop: &gateway.stop,
        client: None,
        deadline: Deadline::after(limit),
        phase: Phase::Tls,
        keepalive: Duration::ZERO,
        drains: false,
    };
    ws.add_inner_tls(tls, inbound)?;
    let handshake = wait(limits.connect_timeout);
    drive_until(ws, inbound, &handshake, |conn, _| {
        match conn.accepts_data() {
            true => Ok(Some(())),
            false if conn.peer_finished() => Err(TunnelError::ConnectionEnded),
            false => Ok(None),
        }
    })?;
    let request = wait(REQUEST_TIMEOUT.min(limits.head_timeout));
    let method = drive_until(ws, inbound, &request, |conn, received| {
        match head::request(received.filled()) {
            Ok(Some((head, _))) => Ok(Some(head.method)),
            // It is a request nevertheless, and it goes nowhere.
            Err(HeadError::TooLarge) => Ok(Some(String::new())),
            Ok(None) if conn.peer_finished() => Err(TunnelError::ConnectionEnded),
            Ok(None) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })?;
    let mut bytes = response::closing(rejection);
    if method == "HEAD" {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        bytes.truncate(end.map_or(0, |at| at + 4));
    }
    ws.send(&bytes)?;
    ws.send_fin(true)
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn each_failure_has_words_an_error_type_and_a_remedy() {
        let rustls = |error: rustls::Error| TunnelError::from(error);
        for (error, status, what, proxy_status) in [
            (
                rustls(CertificateError::Expired.into()),
                502,
                "the target's certificate has expired by the gateway's clock",
                "tls_certificate_error",
            ),
            (
                rustls(rustls::Error::AlertReceived(
                    AlertDescription::ProtocolVersion,
                )),
                502,
                "received the fatal alert protocol_version",
                "tls_alert_received",
            ),
            (
                rustls(rustls::Error::InvalidMessage(
                    rustls::InvalidMessage::InvalidContentType,
                )),
                502,
                "does not speak TLS",
                "tls_protocol_error",
            ),
            (
                TunnelError::ConnectionEnded,
                502,
                "the target closed the connection",
                "connection_terminated",
            ),
            (
                TunnelError::TimedOut(Phase::Tls),
                504,
                "timed out in tls",
                "connection_timeout",
            ),
        ] {
            let rejection = rejection(&error, false);
            assert_eq!(rejection.status, status, "{error}");
            assert_eq!(rejection.proxy_status, Some(proxy_status), "{error}");
            assert!(rejection.what.contains(what), "{}", rejection.what);
            assert!(!rejection.remedy.is_empty());
        }
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired).into();
        assert_eq!(rejection(&alert, true).remedy, NO_CLIENT_CERTIFICATE);
    }
}
