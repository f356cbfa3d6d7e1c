//! What breaks a tunnel, and the close code that says so to the other end.

use std::{fmt, io};

use tungstenite::protocol::frame::coding::CloseCode;

use super::chunk::DecodeError;
use crate::control::phase::Phase;

/// Why a tunnel broke, or did not come to be.
#[derive(Debug)]
pub(crate) enum TunnelError {
    /// The socket failed.
    Io(io::Error),
    /// The stream ended where it must not.
    Ended,
    /// TLS failed; certificates that do not verify are here too.
    Tls(rustls::Error),
    /// The peer broke the framing rules of RFC 6455.
    Frame(&'static str),
    /// The peer sent a text message.
    Text,
    /// The peer sent a message that is no chunk.
    Chunk(DecodeError),
    /// The peer sent more in one message than is taken.
    TooBig,
    /// There is no room left for messages in pieces: all tunnels of this end share it, and this one asked last.
    NoRoom,
    /// The peer sent more that makes no whole TLS record or flight than is taken.
    TlsTooBig,
    /// The peer sent data after it had said that no more would come.
    AfterFin,
    /// The peer closed with this code where the stream was not at its end.
    Closed(Option<u16>),
    /// The peer's head is no HTTP head, or one that this phase does not allow.
    Head(&'static str),
    /// Nothing was heard for as long as the phase may take, or for three keepalive intervals.
    TimedOut(Phase),
    /// The client went away before its tunnel stood.
    ClientLeft,
    /// A stop was asked for before the tunnel stood.
    Stopped,
}

impl TunnelError {
    /// The close code that answers this fault ([RFC 6455, section 7.4.1]).
    ///
    /// [RFC 6455, section 7.4.1]: https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
    pub(crate) fn close_code(&self) -> CloseCode {
        match self {
            Self::Frame(_) | Self::AfterFin => CloseCode::Protocol,
            Self::Text => CloseCode::Unsupported,
            Self::Chunk(_) => CloseCode::Invalid,
            Self::TooBig | Self::NoRoom => CloseCode::Size,
            _ => CloseCode::Error,
        }
    }

    /// What a failed look-up is: one that was given up was given up because of a stop.
    pub(crate) fn of_lookup(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::Interrupted {
            Self::Stopped
        } else {
            Self::Io(error)
        }
    }

    /// Whether time ran out, as opposed to something having failed.
    pub(crate) fn is_timeout(&self) -> bool {
        match self {
            Self::TimedOut(_) => true,
            Self::Io(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }
}

/// Whether this machine has run out of something that a tunnel is made of: descriptors, threads, memory.
pub(crate) fn exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::AGAIN,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl From<io::Error> for TunnelError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustls::Error> for TunnelError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

impl From<DecodeError> for TunnelError {
    fn from(error: DecodeError) -> Self {
        Self::Chunk(error)
    }
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Ended => f.write_str("the connection ended early"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Frame(what) => write!(f, "broken WebSocket frame: {what}"),
            Self::Text => f.write_str("a WebSocket text message, where only binary ones belong"),
            Self::Chunk(error) => error.fmt(f),
            Self::TooBig => f.write_str("a WebSocket message over 1 MiB"),
            Self::NoRoom => {
                f.write_str("no room is left here for WebSocket messages that come in pieces")
            }
            Self::TlsTooBig => f.write_str("TLS: a record or flight over 512 KiB"),
            Self::AfterFin => f.write_str("data after fin"),
            Self::Closed(Some(code)) => write!(f, "the WebSocket was closed with code {code}"),
            Self::Closed(None) => f.write_str("the WebSocket was closed without a code"),
            Self::Head(what) => f.write_str(what),
            Self::TimedOut(Phase::Stream) => {
                f.write_str("no sign of life for three keepalive intervals")
            }
            Self::TimedOut(phase) => write!(f, "timed out in {phase}"),
            Self::ClientLeft => f.write_str("the client went away"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}
