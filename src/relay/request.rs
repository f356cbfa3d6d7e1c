//! The client's request: CONNECT ([RFC 9110, section 9.3.6]), a request in absolute-form
//! ([RFC 9112, section 3.2.2]), or SOCKS5, which differ in their first byte; its password, and
//! whether its target is served.
//!
//! [RFC 9112, section 3.2.2]: https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2
//! [RFC 9110, section 9.3.6]: https://www.rfc-editor.org/rfc/rfc9110#section-9.3.6

use std::net::SocketAddr;
use std::time::Duration;

use super::access::AccessControl;
use super::context::RelayContext;
use super::socks::{self, SocksError};
use crate::control::deadline::Deadline;
use crate::control::outcome::EndReason;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::http::authority::{Authority, Host};
use crate::http::forward::{AbsoluteTarget, AbsoluteTargetError};
use crate::http::head::{self, HeadError, RequestHead};
use crate::http::response;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::drive::{WaitContext, drive_until};
use crate::tunnel::error::TunnelError;
use crate::tunnel::opening::ESTABLISHED;

/// How many requests without the right password a connection may send.
const PASSWORD_TRIES: u32 = 4;

/// The protocol of a client, for the reply to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Socks4,
    /// The message that is read, and the reply code for its failure, if it is known.
    Socks5(socks::Stage, Option<socks::ReplyCode>),
}

impl Protocol {
    /// The last bytes for a client whose request was rejected.
    pub(super) fn refusal(self, rejection: &Rejection) -> Vec<u8> {
        match self {
            Self::Http => response::closing(rejection),
            Self::Socks4 => socks::REFUSED_4.to_vec(),
            Self::Socks5(stage, code) => {
                socks::refused(stage, code.unwrap_or_else(|| socks::code_of(rejection)))
            }
        }
    }

    /// The reply when the tunnel is open.
    pub(super) fn established(self) -> &'static [u8] {
        match self {
            Self::Http | Self::Socks4 => ESTABLISHED,
            Self::Socks5(..) => &socks::ESTABLISHED,
        }
    }
}

/// What a client requests.
pub(super) enum ClientRequest {
    /// A tunnel to this target.
    Tunnel(Authority),
    /// A response to this request in absolute-form.
    Forward(Box<RequestHead>, Box<AbsoluteTarget>),
}

/// The first message of a client.
enum FirstMessage {
    Http(RequestHead, usize),
    Socks(u8),
}

/// Reads requests from one client.
pub(super) struct RequestReader<'a> {
    pub(super) context: &'a RelayContext,
    pub(super) access: &'a AccessControl,
    /// The address of the relay's own port.
    pub(super) own_address: SocketAddr,
    pub(super) client: &'a mut Conn,
    /// Bytes after the request.
    pub(super) early: &'a mut Buffer,
    /// The protocol of the client, as far as it is known.
    pub(super) protocol: &'a mut Protocol,
}

impl RequestReader<'_> {
    /// Reads the client's first request. Bytes after it stay in `early`.
    ///
    /// # Errors
    /// `Rejected`, which the caller sends; `Abandoned` if there is no one to send it to.
    pub(super) fn read(mut self) -> Result<ClientRequest, EndReason> {
        for remaining in (0..PASSWORD_TRIES).rev() {
            let first = self.receive(|bytes| {
                Ok(match bytes.first() {
                    Some(&version @ (socks::VERSION | socks::VERSION_4)) => {
                        Some(FirstMessage::Socks(version))
                    }
                    _ => head::request(bytes)?.map(|(head, len)| FirstMessage::Http(head, len)),
                })
            });
            let (head, len) = match first.map_err(|error| unread(&error, self.early.is_empty()))? {
                FirstMessage::Http(head, len) => (head, len),
                FirstMessage::Socks(socks::VERSION) => return self.read_socks(),
                FirstMessage::Socks(_) => {
                    *self.protocol = Protocol::Socks4;
                    return Err(bad_request("the client speaks SOCKS4")
                        .remedy("use SOCKS5 or HTTP CONNECT")
                        .into());
                }
            };
            self.early.consume(len);
            if self.access.has_password(&head.fields) {
                return Ok(requested(head, self.own_address)?);
            }
            if remaining > 0 {
                // RFC 9110, section 11.7.1: the client may repeat the request with the field, and
                // Maven and git do so on the same connection.
                self.send(&response::keeping_alive(&AccessControl::challenge()))?;
            }
        }
        Err(AccessControl::challenge().into())
    }

    /// Reads a SOCKS5 request and its messages before it.
    fn read_socks(&mut self) -> Result<ClientRequest, EndReason> {
        let method = if self.access.requires_password() {
            socks::PASSWORD
        } else {
            socks::NO_AUTHENTICATION
        };
        if !self.receive_socks(socks::Stage::Methods, |bytes| socks::offers(bytes, method))? {
            let what = "the SOCKS client does not offer the required authentication method";
            return Err(bad_request(what)
                .remedy("use the user name and password of HTTPS_PROXY, if it has them")
                .into());
        }
        self.send(&socks::selected(method))?;
        if method == socks::PASSWORD {
            let access = self.access;
            let accepted = self.receive_socks(socks::Stage::Password, |bytes| {
                let parsed = socks::user_password(bytes)?;
                Ok(parsed.map(|(sent, len)| (access.is_password(sent.user, sent.password), len)))
            })?;
            if !accepted {
                return Err(AccessControl::challenge().into());
            }
            self.send(&socks::PASSWORD_ACCEPTED)?;
        }
        let target = self.receive_socks(socks::Stage::Request, socks::target)?;
        check(&target, self.own_address)?;
        Ok(ClientRequest::Tunnel(target))
    }

    /// Receives one SOCKS message.
    fn receive_socks<T>(
        &mut self,
        stage: socks::Stage,
        parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, SocksError>,
    ) -> Result<T, EndReason> {
        *self.protocol = Protocol::Socks5(stage, None);
        let received = self.receive(|bytes| Ok(parse(bytes).transpose()));
        let parsed = received.map_err(|error| unread(&error, self.early.is_empty()))?;
        let (message, len) = parsed.map_err(|error| {
            *self.protocol = Protocol::Socks5(stage, Some(error.reply_code()));
            let rejection = bad_request(error.to_string());
            EndReason::from(rejection.remedy("send a SOCKS5 CONNECT request"))
        })?;
        self.early.consume(len);
        Ok(message)
    }

    /// Receives until `parse` returns a value.
    fn receive<T>(
        &mut self,
        mut parse: impl FnMut(&[u8]) -> Result<Option<T>, TunnelError>,
    ) -> Result<T, TunnelError> {
        let wait = WaitContext {
            stop: &self.context.stop,
            client: None,
            deadline: Deadline::after(self.context.limits.head_timeout),
            phase: Phase::Head,
            keepalive: Duration::ZERO,
            drains: false,
        };
        drive_until(self.client, self.early, &wait, |_, early| {
            parse(early.filled())
        })
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), EndReason> {
        self.client
            .send(bytes)
            .and_then(|()| self.client.flush())
            .map_err(|_| EndReason::Abandoned)
    }
}

/// Why there is no request head.
pub(super) fn unread(error: &TunnelError, nothing_received: bool) -> EndReason {
    let (status, what) = match error {
        TunnelError::Http(HeadError::TooLarge) => (431, HeadError::TooLarge.to_string().into()),
        TunnelError::Http(error @ HeadError::Malformed(_)) => (400, error.to_string().into()),
        TunnelError::TimedOut(_) | TunnelError::PeerSilent => {
            (408, "no complete request arrived in time".into())
        }
        TunnelError::ConnectionEnded if !nothing_received => {
            (400, "the request ended inside its head".into())
        }
        _ => return EndReason::Abandoned,
    };
    let what: std::borrow::Cow<'static, str> = what;
    Rejection::new(status, Phase::Head, what)
        .remedy("this port accepts HTTP/1.x proxy requests and SOCKS5: send one, then wait for the response")
        .proxy_status("http_request_error")
        .into()
}

/// What an HTTP request asks for, if this relay serves it.
pub(super) fn requested(
    head: RequestHead,
    own_address: SocketAddr,
) -> Result<ClientRequest, Rejection> {
    if head.method != "CONNECT" {
        let parsed = AbsoluteTarget::parse(&head.target, &head.method);
        let target = parsed.map_err(|error| match error {
            AbsoluteTargetError::NotAbsolute => Rejection::new(405, Phase::Head, error.to_string())
                .remedy("this port is a proxy: send CONNECT, or a request with a whole URL")
                .proxy_status("http_request_denied")
                .field(&("Allow", "CONNECT")),
            error => bad_request(error.to_string()).remedy("correct the URL"),
        })?;
        if head.lacks_host() {
            return Err(bad_request("the request has no Host field")
                .remedy("every HTTP/1.1 request must have one"));
        }
        check(&target.authority, own_address)?;
        return Ok(ClientRequest::Forward(Box::new(head), Box::new(target)));
    }
    let has_length = head.fields.all("content-length").any(|value| value != b"0");
    if has_length || head.fields.has("transfer-encoding") {
        // RFC 9110, section 9.3.6: content in a CONNECT request has no defined meaning, and
        // implementations differ in what they do with it.
        return Err(bad_request("a CONNECT request has no body")
            .remedy("send the bytes after the response"));
    }
    // A CONNECT request without Host is accepted: its target says the same, and simple clients send
    // nothing else.
    let authority: Authority = head
        .target
        .parse()
        .map_err(|error| bad_request(format!("the CONNECT target cannot be used: {error}")))?;
    check(&authority, own_address)?;
    Ok(ClientRequest::Tunnel(authority))
}

/// Rejects the relay's own port as a target.
fn check(authority: &Authority, own_address: SocketAddr) -> Result<(), Rejection> {
    if is_own_port(authority, own_address) {
        let what = "the target is this proxy's own port";
        return Err(Rejection::new(403, Phase::Head, what)
            .remedy("name another target: this tunnel would be an endless loop")
            .proxy_status("proxy_loop_detected"));
    }
    Ok(())
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
