//! The steps of one tunnel, as logs, `Proxy-Status` and `doctor` name them.

use std::fmt;

/// A step in the life of one tunnel, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    /// Reading the request head.
    Head,
    /// Looking a name up.
    Resolve,
    /// Opening a TCP connection.
    Connect,
    /// The TLS handshake.
    Tls,
    /// The WebSocket opening handshake.
    Upgrade,
    /// The CONNECT inside the WebSocket and its answer.
    Opening,
    /// The stream itself.
    Stream,
}

impl Phase {
    /// The phase's name as logs and `Proxy-Status` show it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Upgrade => "upgrade",
            Self::Opening => "opening",
            Self::Stream => "stream",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
