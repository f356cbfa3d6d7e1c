//! One side of a tunnel: its connection, and what was received from it.

use rustix::event::PollFlags;

use crate::net::wait::OVER;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;

/// A connection, and the data from it that was not forwarded yet.
#[derive(Debug)]
pub(in crate::tunnel) struct Side {
    pub(in crate::tunnel) conn: Conn,
    /// Received from this side and not forwarded to the other one.
    pub(in crate::tunnel) pending: Buffer,
    /// poll(2) reports at every call that the socket has ended or failed.
    pub(in crate::tunnel) over: bool,
}

impl Side {
    pub(in crate::tunnel) fn new(conn: Conn, pending: Buffer) -> Self {
        Self {
            conn,
            pending,
            over: false,
        }
    }

    /// Drops the data that was not forwarded.
    pub(in crate::tunnel) fn drop_pending(&mut self) {
        self.pending.consume(self.pending.len());
    }

    /// The events to poll for, if the side is to be read or not.
    pub(in crate::tunnel) fn interest(&self, reads: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, reads);
        flags.set(PollFlags::OUT, self.conn.wants_write());
        flags
    }

    /// Whether poll(2) would return at once without a useful event: the socket must be left out.
    pub(in crate::tunnel) fn is_skipped(&self, interest: PollFlags) -> bool {
        self.over && interest.is_empty()
    }

    /// Records the events of poll(2). Returns whether the socket ended or failed although no event
    /// was requested. No read or write would report its error then.
    pub(in crate::tunnel) fn record(&mut self, events: PollFlags, interest: PollFlags) -> bool {
        self.conn.set_readiness(events);
        let ended = events.intersects(OVER) && interest.is_empty();
        self.over |= ended;
        ended
    }

    /// Whether all received data was forwarded, and everything queued was written.
    pub(in crate::tunnel) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.conn.flushed()
    }

    /// Returns unused memory to the pool.
    pub(in crate::tunnel) fn release_buffers(&mut self) {
        self.pending.release();
        self.conn.release_buffers();
    }
}
