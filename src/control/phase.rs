//! The phases of one tunnel, as the log, `Proxy-Status` and `doctor` name them.

use std::fmt;

/// A phase of one tunnel, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    /// Reading the request head.
    Head,
    /// Looking up a name.
    Resolve,
    /// Opening a TCP connection.
    Connect,
    /// The TLS handshake.
    Tls,
    /// The WebSocket opening handshake.
    Upgrade,
    /// The CONNECT request inside the WebSocket and its response.
    Opening,
}

impl Phase {
    /// The phase's name in the log and in `Proxy-Status`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Upgrade => "upgrade",
            Self::Opening => "opening",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
