//! The bytes that a tunnel has carried, for its log line and for the counters.

use crate::control::metrics::Counters;
use crate::control::outcome::{EndReason, Party, TunnelSummary};
use crate::tunnel::frame::Role;

/// The direction of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client to the target.
    Up,
    /// From the target to the client.
    Down,
}

/// The numbers of forwarded bytes.
pub(super) struct Traffic<'a> {
    role: Role,
    counters: &'a Counters,
    up: u64,
    down: u64,
}

impl<'a> Traffic<'a> {
    pub(super) fn new(role: Role, counters: &'a Counters) -> Self {
        Self {
            role,
            counters,
            up: 0,
            down: 0,
        }
    }

    /// Counts bytes that were forwarded from the TCP side.
    pub(super) fn count_from_tcp(&mut self, bytes: usize) -> Direction {
        self.count(bytes, self.role == Role::Client)
    }

    /// Counts bytes that were forwarded from the WebSocket.
    pub(super) fn count_from_ws(&mut self, bytes: usize) -> Direction {
        self.count(bytes, self.role == Role::Server)
    }

    fn count(&mut self, bytes: usize, up: bool) -> Direction {
        let (own, shared, direction) = if up {
            (&mut self.up, &self.counters.bytes_up, Direction::Up)
        } else {
            (&mut self.down, &self.counters.bytes_down, Direction::Down)
        };
        *own += bytes as u64;
        Counters::add(shared, bytes as u64);
        direction
    }

    /// The number of bytes that were forwarded from target to client.
    #[cfg(feature = "gateway")]
    pub(super) fn down(&self) -> u64 {
        self.down
    }

    /// The number of forwarded bytes.
    pub(super) fn total(&self) -> u64 {
        self.up + self.down
    }

    /// The client at the relay, the target at the gateway.
    pub(super) fn tcp_party(&self) -> Party {
        match self.role {
            Role::Client => Party::Client,
            Role::Server => Party::Target,
        }
    }

    /// The summary of a tunnel that ended for `reason`. The peer of the TCP side did not
    /// acknowledge `undelivered` bytes.
    pub(super) fn summary(self, reason: EndReason, undelivered: u64) -> TunnelSummary {
        let forwarded = match self.role {
            Role::Client => self.down,
            Role::Server => self.up,
        };
        TunnelSummary {
            reason,
            up: self.up,
            down: self.down,
            // With TLS, the socket carries more bytes than the stream.
            undelivered: (undelivered.min(forwarded), self.tcp_party()),
        }
    }
}
