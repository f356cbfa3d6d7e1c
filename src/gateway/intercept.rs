//! TLS interception: the target is dialled with TLS and verified first, then the client is shown a certificate for the same
//! name with the target's choice of protocol, and the bytes between flow as they are (`manual/protocol.md`, Interception).
//!
//! What is not TLS, and a target that speaks first, is passed through untouched.

use rustls::CertificateError;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;

use super::Shared;
use super::client_hello::{self, ClientHello, FirstBytes, description};
use crate::control::deadline::Deadline;
use crate::control::outcome::{EndReason, Party, TunnelSummary};
use crate::control::phase::Phase;
use crate::crypto::tls;
use crate::http::authority::{Authority, Host};
use crate::tunnel::drive::{WaitContext, drive_until};
use crate::tunnel::error::{TlsError, TunnelError};
use crate::tunnel::pump::Pump;
use crate::tunnel::tls::Tls;

/// Looks at the client's first bytes, and puts TLS of our own on both sides if they are TLS.
///
/// # Errors
/// The tunnel has ended meanwhile.
pub(super) fn begin<'a>(
    gateway: &Shared,
    authority: &Authority,
    pump: Box<Pump<'a>>,
) -> Result<Box<Pump<'a>>, TunnelSummary> {
    let mut seen = FirstBytes::NeedMore;
    let mut pump = pump.peek(|bytes| {
        seen = client_hello::read(bytes);
        !matches!(seen, FirstBytes::NeedMore)
    })?;
    let refused = match seen {
        FirstBytes::NeedMore | FirstBytes::NotTls => return Ok(pump),
        FirstBytes::Broken { alert, reason } => Refused {
            alert,
            by: Party::Client,
            why: format!("ClientHello: {reason}"),
        },
        FirstBytes::Hello(hello) => match secure(gateway, authority, &hello, &mut pump) {
            Ok(()) => return Ok(pump),
            Err(refused) => refused,
        },
    };
    log::warn!("{authority} refused: {}", refused.why);
    let ending = pump.finish_with(&refused.alert);
    Err(TunnelSummary {
        how: EndReason::Broken {
            by: refused.by,
            why: refused.why,
        },
        ..ending
    })
}

/// An interception that did not come to be.
struct Refused {
    /// What the client's TLS is told.
    alert: Vec<u8>,
    by: Party,
    why: String,
}

impl Refused {
    fn new(description: u8, by: Party, why: impl Into<String>) -> Self {
        Self {
            alert: client_hello::alert(description).to_vec(),
            by,
            why: why.into(),
        }
    }
}

/// Puts TLS on both sides of the pump: the target's first, as the client's depends on it.
fn secure(
    gateway: &Shared,
    authority: &Authority,
    hello: &ClientHello,
    pump: &mut Pump<'_>,
) -> Result<(), Refused> {
    if let Some(sni) = &hello.sni
        && Host::parse(sni).as_ref() != Ok(&authority.host)
    {
        let why = format!(
            "the ClientHello asks for {sni:?}, which is not the host of the CONNECT request"
        );
        return Err(Refused::new(
            description::UNRECOGNIZED_NAME,
            Party::Client,
            why,
        ));
    }
    let name = tls::server_name(&authority.host).map_err(|_| {
        Refused::new(
            description::UNRECOGNIZED_NAME,
            Party::Client,
            "no certificate can carry this host's name",
        )
    })?;
    let config = tls::with_alpn(&gateway.targets, hello.alpn.clone());
    let connection = UnbufferedClientConnection::new(config, name).map_err(|error| {
        Refused::new(
            description::INTERNAL_ERROR,
            Party::Gateway,
            error.to_string(),
        )
    })?;

    let (tcp, ws, outbound, inbound) = pump.parts();
    tcp.add_tls(Tls::client(connection, &gateway.pool));
    let watch = WaitContext {
        stop: &gateway.stop,
        client: Some(ws.socket()),
        deadline: Deadline::after(gateway.limits.connect_timeout),
        phase: Phase::Tls,
        keepalive: std::time::Duration::ZERO,
        drains: true,
    };
    let alpn = drive_until(tcp, outbound, &watch, |conn, _| {
        let tls = conn.tls().filter(|tls| tls.established());
        Ok(tls.map(|tls| tls.alpn().map(<[u8]>::to_vec)))
    })
    .map_err(|fault| {
        let why = format!("TLS with the target failed: {fault}");
        Refused::new(alert_for(&fault), Party::Target, why)
    })?;

    let config = gateway
        .issuer
        .server_config(&authority.host, alpn.as_deref())
        .map_err(|error| {
            Refused::new(
                description::INTERNAL_ERROR,
                Party::Gateway,
                error.to_string(),
            )
        })?;
    let connection = UnbufferedServerConnection::new(config).map_err(|error| {
        Refused::new(
            description::INTERNAL_ERROR,
            Party::Gateway,
            error.to_string(),
        )
    })?;
    ws.add_inner_tls(Tls::server(connection, &gateway.pool), inbound)
        .map_err(|fault| {
            // rustls has already said its own alert.
            Refused {
                alert: Vec::new(),
                by: Party::Client,
                why: format!("TLS with the client failed: {fault}"),
            }
        })
}

/// The alert that tells a client what is wrong with the target ([RFC 8446, section 6.2]).
///
/// [RFC 8446, section 6.2]: https://www.rfc-editor.org/rfc/rfc8446#section-6.2
fn alert_for(fault: &TunnelError) -> u8 {
    match fault {
        TunnelError::Tls(TlsError::Rustls(rustls::Error::InvalidCertificate(error))) => match error
        {
            CertificateError::UnknownIssuer => description::UNKNOWN_CA,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                description::CERTIFICATE_EXPIRED
            }
            _ => description::BAD_CERTIFICATE,
        },
        TunnelError::Tls(TlsError::Rustls(rustls::Error::AlertReceived(alert))) => u8::from(*alert),
        TunnelError::Tls(_) => description::HANDSHAKE_FAILURE,
        _ => description::INTERNAL_ERROR,
    }
}
