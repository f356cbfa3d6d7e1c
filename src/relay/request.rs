//! The client's CONNECT request: its head ([RFC 9112]), its password, and whether its target is
//! served ([RFC 9110, section 9.3.6]).
//!
//! [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112
//! [RFC 9110, section 9.3.6]: https://www.rfc-editor.org/rfc/rfc9110#section-9.3.6

use std::net::SocketAddr;
use std::time::Duration;

use super::access::AccessControl;
use super::context::RelayContext;
use crate::control::deadline::Deadline;
use crate::control::outcome::EndReason;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::http::authority::{Authority, Host};
use crate::http::head::{self, HeadError, RequestHead};
use crate::http::response;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::drive::{WaitContext, drive_until};
use crate::tunnel::error::TunnelError;

/// How many requests without the right password a connection may send.
const PASSWORD_TRIES: u32 = 4;

/// Reads the CONNECT request and returns its target. Bytes after its head stay in `early`.
///
/// # Errors
/// `Rejected`, which the caller sends; `Abandoned` if there is no one to send it to.
pub(super) fn read_target(
    context: &RelayContext,
    access: &AccessControl,
    own_address: SocketAddr,
    client: &mut Conn,
    early: &mut Buffer,
) -> Result<Authority, EndReason> {
    let wait = WaitContext {
        stop: &context.stop,
        client: None,
        deadline: Deadline::after(context.limits.head_timeout),
        phase: Phase::Head,
        keepalive: Duration::ZERO,
        drains: false,
    };
    for remaining in (0..PASSWORD_TRIES).rev() {
        let read = drive_until(client, early, &wait, |_, early| {
            Ok(head::request(early.filled())?)
        });
        let (head, len) = read.map_err(|error| unread(&error, early.is_empty()))?;
        early.consume(len);
        if access.has_password(&head.fields) {
            return Ok(target(&head, own_address)?);
        }
        if remaining > 0 {
            // RFC 9110, section 11.7.1: the client may repeat the request with the field, and
            // Maven and git do so on the same connection.
            let mut bytes = Buffer::new(&context.pool);
            bytes.extend(&response::keeping_alive(&AccessControl::challenge()));
            client
                .encode(&mut bytes)
                .and_then(|()| client.flush())
                .map_err(|_| EndReason::Abandoned)?;
        }
    }
    Err(AccessControl::challenge().into())
}

/// Why there is no request head.
fn unread(error: &TunnelError, nothing_received: bool) -> EndReason {
    let (status, what) = match error {
        TunnelError::Http(HeadError::TooLarge) => (431, HeadError::TooLarge.to_string().into()),
        TunnelError::Http(error @ HeadError::Malformed(_)) => (400, error.to_string().into()),
        TunnelError::TimedOut(_) | TunnelError::PeerSilent => {
            (408, "no complete CONNECT request arrived in time".into())
        }
        TunnelError::ConnectionEnded if !nothing_received => {
            (400, "the request ended inside its head".into())
        }
        _ => return EndReason::Abandoned,
    };
    let what: std::borrow::Cow<'static, str> = what;
    Rejection::new(status, Phase::Head, what)
        .remedy("this port accepts HTTP/1.x CONNECT requests: send one, then wait for the response")
        .proxy_status("http_request_error")
        .into()
}

/// The target of a request, if this relay serves it.
fn target(head: &RequestHead, own_address: SocketAddr) -> Result<Authority, Rejection> {
    if head.method != "CONNECT" {
        let what = "this port serves only CONNECT";
        return Err(Rejection::new(405, Phase::Head, what)
            .remedy("use it as HTTPS_PROXY, not as HTTP_PROXY")
            .proxy_status("http_request_denied")
            .field("Allow", "CONNECT"));
    }
    let has_length = head.fields.all("content-length").any(|value| value != b"0");
    if has_length || head.fields.has("transfer-encoding") {
        // RFC 9110, section 9.3.6: content in a CONNECT request has no defined meaning, and
        // implementations differ in what they do with it.
        return Err(bad_request("a CONNECT request has no body")
            .remedy("send the bytes after the response"));
    }
    let authority: Authority = head
        .target
        .parse()
        .map_err(|error| bad_request(format!("the CONNECT target cannot be used: {error}")))?;
    if is_own_port(&authority, own_address) {
        let what = "the target is this proxy's own port";
        return Err(Rejection::new(403, Phase::Head, what)
            .remedy("name another target: this tunnel would be an endless loop")
            .proxy_status("http_request_denied"));
    }
    Ok(authority)
}

fn bad_request(what: impl Into<std::borrow::Cow<'static, str>>) -> Rejection {
    Rejection::new(400, Phase::Head, what).proxy_status("http_request_error")
}

/// Whether a connection to `authority` would reach the relay's own listener.
fn is_own_port(authority: &Authority, own: SocketAddr) -> bool {
    let unspecified = own.ip().is_unspecified();
    authority.port == own.port()
        && match &authority.host {
            Host::Address(address) => {
                let address = address.to_canonical();
                // Linux treats the unspecified address as loopback, and a listener on the
                // unspecified address listens on loopback too.
                address.is_unspecified()
                    || unspecified && address.is_loopback()
                    || address == own.ip()
            }
            Host::Name(name) => name == "localhost" && (own.ip().is_loopback() || unspecified),
        }
}
