//! Why a tunnel failed, as typed errors, and the WebSocket close code for each.
//!
//! Errors carry data, not sentences. A caller decides by variant; `Display` is for log lines.

use std::{fmt, io};

use tungstenite::protocol::frame::coding::CloseCode;

use super::chunk::DecodeError;
use crate::control::peer_text;
use crate::control::phase::Phase;
use crate::http::head::HeadError;
use crate::net::socket_owner::ForeignOwner;

/// Why a tunnel failed, before or during its stream.
#[derive(Debug)]
pub(crate) enum TunnelError {
    /// A system call on the socket failed.
    Io(io::Error),
    /// The process at the upstream's port belongs to another user.
    ForeignOwner(ForeignOwner),
    /// The peer closed the connection in the middle of an exchange.
    ConnectionEnded,
    /// TLS failed.
    Tls(TlsError),
    /// The bytes are not an HTTP message head.
    Http(HeadError),
    /// The response to the WebSocket upgrade cannot be used.
    Upgrade(UpgradeError),
    /// The CONNECT exchange inside the WebSocket cannot be used.
    Opening(OpeningError),
    /// The peer violated RFC 6455 or the tunnel protocol.
    WebSocket(ProtocolError),
    /// The peer closed the WebSocket with this code before the stream ended.
    Closed(Option<u16>),
    /// The phase took too long.
    TimedOut(Phase),
    /// Nothing was received for three keepalive intervals.
    PeerSilent,
    /// The client disconnected before its tunnel was open.
    ClientLeft,
    /// A stop was requested before the tunnel was open.
    Stopped,
}

/// Why TLS failed.
#[derive(Debug)]
pub(crate) enum TlsError {
    /// rustls reports an error; certificates that cannot be verified are among them.
    Rustls(rustls::Error),
    /// The host cannot be the name in a certificate.
    ServerName,
    /// A record or a handshake flight exceeds 512 KiB.
    TooLarge,
    /// The peer sent early data, which no configuration of this crate permits.
    EarlyData,
    /// rustls reports received data while data is being encrypted. `Tls::decrypt` leaves no whole
    /// record behind, so this is a defect of this crate.
    UnexpectedData,
}

/// Why the response to a WebSocket upgrade cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpgradeError {
    /// 401, 403 or 407.
    Unauthorized,
    /// 3xx.
    Redirect,
    /// 404.
    NotFound,
    /// 2xx: the response of a web page.
    Page,
    /// 429 or 5xx.
    Unavailable,
    /// Another status that is not 101.
    NotSwitched,
    /// A 101 without `Upgrade: websocket` and `Connection: upgrade`.
    NotWebSocket,
    /// `Sec-WebSocket-Accept` does not match the key.
    WrongAccept,
    /// `Sec-WebSocket-Extensions` has an extension that was not offered.
    Extension,
    /// `Sec-WebSocket-Protocol` has a subprotocol that was not offered.
    Subprotocol,
}

/// Why the CONNECT exchange inside the WebSocket cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpeningError {
    /// The method is not CONNECT.
    #[cfg_attr(not(feature = "gateway"), allow(dead_code))]
    NotConnect,
    /// The request target is not an authority.
    #[cfg_attr(not(feature = "gateway"), allow(dead_code))]
    NoAuthority,
    /// The response is a 101.
    SwitchedProtocols,
    /// The gateway sent data before the request.
    EarlyResponse,
}

/// How the peer violated RFC 6455 or the tunnel protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProtocolError {
    /// An unassigned opcode.
    Opcode,
    /// A reserved bit is set.
    ReservedBit,
    /// A frame of the client without a mask, or one of the server with a mask.
    Masking,
    /// The most significant bit of a 64-bit length is set.
    Length,
    /// A control frame that is fragmented or has more than 125 bytes of payload.
    ControlFrame,
    /// A continuation frame outside a message.
    Continuation,
    /// A new message before the end of a fragmented one.
    Interleaved,
    /// A close payload of one byte, with a code that must not be sent, or with a reason that is
    /// not UTF-8.
    ClosePayload,
    /// A close with code 1000 or 1001 before the end of a fragmented message.
    CloseInMessage,
    /// A text message.
    Text,
    /// A message that is not a chunk.
    Chunk(DecodeError),
    /// A message over the size limit.
    TooLarge,
    /// The budget that all tunnels of this relay or gateway share for fragmented messages is used
    /// up.
    NoBudget,
    /// Data after `fin`.
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
            Self::TimedOut(_) | Self::PeerSilent => true,
            Self::Io(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
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

impl From<io::Error> for TunnelError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ForeignOwner> for TunnelError {
    fn from(error: ForeignOwner) -> Self {
        Self::ForeignOwner(error)
    }
}

impl From<rustls::Error> for TunnelError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(TlsError::Rustls(error))
    }
}

impl From<TlsError> for TunnelError {
    fn from(error: TlsError) -> Self {
        Self::Tls(error)
    }
}

impl From<HeadError> for TunnelError {
    fn from(error: HeadError) -> Self {
        Self::Http(error)
    }
}

impl From<UpgradeError> for TunnelError {
    fn from(error: UpgradeError) -> Self {
        Self::Upgrade(error)
    }
}

impl From<OpeningError> for TunnelError {
    fn from(error: OpeningError) -> Self {
        Self::Opening(error)
    }
}

impl From<ProtocolError> for TunnelError {
    fn from(error: ProtocolError) -> Self {
        Self::WebSocket(error)
    }
}

impl From<DecodeError> for TunnelError {
    fn from(error: DecodeError) -> Self {
        Self::WebSocket(ProtocolError::Chunk(error))
    }
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::ForeignOwner(error) => error.fmt(f),
            Self::ConnectionEnded => f.write_str("the connection ended early"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Http(error) => error.fmt(f),
            Self::Upgrade(error) => error.fmt(f),
            Self::Opening(error) => error.fmt(f),
            Self::WebSocket(error) => write!(f, "WebSocket: {error}"),
            Self::Closed(Some(code)) => write!(f, "the WebSocket was closed with code {code}"),
            Self::Closed(None) => f.write_str("the WebSocket was closed without a code"),
            Self::PeerSilent => f.write_str("no sign of life for three keepalive intervals"),
            Self::TimedOut(phase) => write!(f, "timed out in {phase}"),
            Self::ClientLeft => f.write_str("the client disconnected"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustls(error) => f.write_str(&peer_text::bounded(error)),
            Self::ServerName => f.write_str("no certificate can contain this host's name"),
            Self::TooLarge => f.write_str("a record or flight exceeds 512 KiB"),
            Self::EarlyData => f.write_str("unexpected early data"),
            Self::UnexpectedData => f.write_str("unexpected data while encrypting"),
        }
    }
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unauthorized => "the upstream does not accept this session's token",
            Self::Redirect => {
                "the upstream redirects, and a redirect is not followed: it would send the token to another server"
            }
            Self::NotFound => "the upstream has no tunnel endpoint at this base URL",
            Self::Page => "the upstream answered with a page instead of switching to WebSocket",
            Self::Unavailable => "the upstream answered the upgrade with an error of its own",
            Self::NotSwitched => "the upstream did not switch to WebSocket",
            Self::NotWebSocket => "the upstream's 101 response does not switch to WebSocket",
            Self::WrongAccept => "the upstream's Sec-WebSocket-Accept is wrong",
            Self::Extension => "the upstream chose a WebSocket extension that was not offered",
            Self::Subprotocol => "the upstream chose a WebSocket subprotocol that was not offered",
        })
    }
}

impl fmt::Display for OpeningError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotConnect => "the opening is not a CONNECT request",
            Self::NoAuthority => "the target of the opening is not an authority",
            Self::SwitchedProtocols => "the gateway answered the opening with a 101",
            Self::EarlyResponse => "the gateway sent data before the opening",
        })
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opcode => "an unassigned opcode",
            Self::ReservedBit => "a reserved bit is set",
            Self::Masking => "wrong masking for this direction",
            Self::Length => "a length over 63 bits",
            Self::ControlFrame => "a control frame that is fragmented or over 125 bytes",
            Self::Continuation => "a continuation frame outside a message",
            Self::Interleaved => "a new message inside a fragmented one",
            Self::ClosePayload => "a close payload that is not allowed",
            Self::CloseInMessage => "a close in the middle of a message",
            Self::Text => "a text message, only binary ones are allowed",
            Self::Chunk(error) => return error.fmt(f),
            Self::TooLarge => "a message over 1 MiB",
            Self::NoBudget => "no memory is left for fragmented messages",
            Self::DataAfterFin => "data after fin",
        })
    }
}
