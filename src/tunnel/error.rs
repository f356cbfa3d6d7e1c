//! Why a tunnel failed, as typed errors, and the WebSocket close code for each.
//!
//! Errors carry data, not sentences. A caller decides by variant; `Display` is for log lines.

use std::io;

use tungstenite::protocol::frame::coding::CloseCode;

use super::chunk::DecodeError;
use crate::control::phase::Phase;
use crate::crypto::tls_error;
use crate::http::head::HeadError;
use crate::net::lookup_error::LookupError;
use crate::net::socket_owner::ForeignOwner;

/// Why a tunnel failed, before or during its stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    /// A system call on the socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The host has no addresses.
    #[error(transparent)]
    Lookup(LookupError),
    /// The process at the upstream's port belongs to another user.
    #[error(transparent)]
    ForeignOwner(#[from] ForeignOwner),
    /// The peer closed the connection in the middle of an exchange.
    #[error("the connection ended early")]
    ConnectionEnded,
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The bytes are not an HTTP message head.
    #[error(transparent)]
    Http(#[from] HeadError),
    #[error(transparent)]
    Parent(#[from] ParentError),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    #[error(transparent)]
    Opening(#[from] OpeningError),
    #[error("WebSocket: {0}")]
    WebSocket(#[from] ProtocolError),
    /// The peer closed the WebSocket with this code before the stream ended.
    #[error("the WebSocket was closed {}", .0.map_or("without a code".to_owned(), |code| format!("with code {code}")))]
    Closed(Option<u16>),
    /// The phase took too long.
    #[error("timed out in {0}")]
    TimedOut(Phase),
    /// Nothing was received for three keepalive intervals.
    #[error("no sign of life for three keepalive intervals")]
    PeerSilent,
    /// The last data of a tunnel was not accepted in time.
    #[error("it accepted no more of the last data")]
    Stalled,
    /// The client disconnected before its tunnel was open.
    #[error("the client disconnected")]
    ClientLeft,
    /// A stop was requested before the tunnel was open.
    #[error("stopped")]
    Stopped,
}

/// Why TLS failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// rustls reports an error; certificates that cannot be verified are among them.
    #[error("{}", tls_error::describe(.0))]
    Rustls(#[from] rustls::Error),
    #[error("no certificate can contain this host's name")]
    ServerName,
    #[error("a record or flight exceeds 512 KiB")]
    TooLarge,
    /// No configuration of this crate permits early data.
    #[error("unexpected early data")]
    EarlyData,
    /// rustls reports received data while data is being encrypted. `Tls::decrypt` leaves no whole
    /// record behind, so this is a defect of this crate.
    #[error("unexpected data while encrypting")]
    UnexpectedData,
}

/// Why a parent proxy did not open a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParentError {
    /// 407.
    #[error("the parent proxy requires other credentials (407)")]
    Unauthorized,
    /// Another status that is not 2xx.
    #[error("the parent proxy refused the connection with status {0}")]
    Refused(u16),
}

impl ParentError {
    /// The error for a response with this status.
    pub(crate) fn from_status(status: u16) -> Self {
        match status {
            407 => Self::Unauthorized,
            status => Self::Refused(status),
        }
    }
}

/// Why the response to a WebSocket upgrade cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpgradeError {
    /// 401, 403 or 407.
    #[error("the upstream does not accept this session's token")]
    Unauthorized,
    /// 3xx.
    #[error(
        "the upstream redirects, and a redirect is not followed: it would send the token to another server"
    )]
    Redirect,
    /// 404.
    #[error("the upstream has no tunnel endpoint at this base URL")]
    NotFound,
    /// 2xx: the response of a web page.
    #[error("the upstream answered with a page instead of switching to WebSocket")]
    Page,
    /// 429 or 503.
    #[error("the upstream has no tunnel free, or is stopping")]
    Busy,
    /// Another 5xx.
    #[error("the upstream answered the upgrade with an error of its own")]
    Unavailable,
    /// Another status that is not 101.
    #[error("the upstream did not switch to WebSocket")]
    NotSwitched,
    /// A 101 without `Upgrade: websocket` and `Connection: upgrade`.
    #[error("the upstream's 101 response does not switch to WebSocket")]
    NotWebSocket,
    #[error("the upstream's Sec-WebSocket-Accept is wrong")]
    WrongAccept,
    #[error("the upstream chose a WebSocket extension that was not offered")]
    Extension,
    #[error("the upstream chose a WebSocket subprotocol that was not offered")]
    Subprotocol,
}

/// Why the CONNECT exchange inside the WebSocket cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpeningError {
    #[cfg_attr(not(feature = "gateway"), allow(dead_code))]
    #[error("the opening is not a CONNECT request")]
    NotConnect,
    #[cfg_attr(not(feature = "gateway"), allow(dead_code))]
    #[error("the target of the opening is not an authority")]
    NoAuthority,
    #[error("the gateway answered the opening with a 101")]
    SwitchedProtocols,
    #[error("the gateway sent data before the opening")]
    EarlyResponse,
}

/// How the peer violated RFC 6455 or the tunnel protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("an unassigned opcode")]
    Opcode,
    #[error("a reserved bit is set")]
    ReservedBit,
    /// A frame of the client without a mask, or one of the server with a mask.
    #[error("wrong masking for this direction")]
    Masking,
    #[error("a length over 63 bits")]
    Length,
    #[error("a control frame that is fragmented or over 125 bytes")]
    ControlFrame,
    #[error("a continuation frame outside a message")]
    Continuation,
    #[error("a new message inside a fragmented one")]
    Interleaved,
    /// A close payload of one byte, with a code that must not be sent, or with a reason that is
    /// not UTF-8.
    #[error("a close payload that is not allowed")]
    ClosePayload,
    /// A close with code 1000 or 1001 before the end of a fragmented message.
    #[error("a close in the middle of a message")]
    CloseInMessage,
    #[error("a text message, only binary ones are allowed")]
    Text,
    /// A message that is not a chunk.
    #[error(transparent)]
    Chunk(#[from] DecodeError),
    #[error("a message over 1 MiB")]
    TooLarge,
    /// The share of this session of the memory for fragmented messages is used up.
    #[error("no memory is left for fragmented messages")]
    NoBudget,
    #[error("data after fin")]
    DataAfterFin,
}

impl TunnelError {
    /// The close code that reports this error to the peer ([RFC 6455, section 7.4.1]).
    ///
    /// [RFC 6455, section 7.4.1]: https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
    pub(crate) fn close_code(&self) -> CloseCode {
        match self {
            Self::WebSocket(error) => match error {
                ProtocolError::Text => CloseCode::Unsupported,
                ProtocolError::Chunk(_) => CloseCode::Invalid,
                ProtocolError::TooLarge | ProtocolError::NoBudget => CloseCode::Size,
                _ => CloseCode::Protocol,
            },
            _ => CloseCode::Error,
        }
    }

    /// Whether a time limit expired.
    pub(crate) fn is_timeout(&self) -> bool {
        match self {
            Self::TimedOut(_)
            | Self::PeerSilent
            | Self::Stalled
            | Self::Lookup(LookupError::TimedOut(_)) => true,
            Self::Io(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }
}

/// The error type of `Proxy-Status` for a failed TLS handshake ([RFC 9209, section 2.3]).
///
/// [RFC 9209, section 2.3]: https://www.rfc-editor.org/rfc/rfc9209#section-2.3
pub(crate) fn tls_status(error: &TunnelError) -> &'static str {
    match error {
        TunnelError::Tls(TlsError::Rustls(rustls::Error::InvalidCertificate(_))) => {
            "tls_certificate_error"
        }
        TunnelError::Tls(TlsError::Rustls(rustls::Error::AlertReceived(_))) => "tls_alert_received",
        TunnelError::Tls(_) => "tls_protocol_error",
        error if error.is_timeout() => "connection_timeout",
        _ => "connection_terminated",
    }
}

/// Whether this machine has no descriptors, ephemeral ports, threads or memory left.
pub(crate) fn exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::AGAIN,
        Errno::ADDRNOTAVAIL,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl From<LookupError> for TunnelError {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::System(error) => Self::Io(error),
            error => Self::Lookup(error),
        }
    }
}

impl From<rustls::Error> for TunnelError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error.into())
    }
}

impl From<DecodeError> for TunnelError {
    fn from(error: DecodeError) -> Self {
        Self::WebSocket(error.into())
    }
}
