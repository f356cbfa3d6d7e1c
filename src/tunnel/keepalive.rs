//! Keepalive of a WebSocket: when to send a ping, and when a silent peer counts as gone
//! (`manual/protocol.md`, Messages).
//!
//! Without I/O: the caller passes the time and every event.

use std::time::{Duration, Instant};

/// The number of silent intervals in a row that end a tunnel.
const MAX_SILENT_INTERVALS: u32 = 3;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeepaliveAction {
    /// Nothing.
    Wait,
    /// Send a ping.
    Ping,
    /// Give up: the peer is gone.
    Dead,
}

/// The keepalive state of one WebSocket.
#[derive(Debug)]
pub(crate) struct Keepalive {
    interval: Option<Duration>,
    /// When this end last sent anything.
    last_sent: Instant,
    /// When the current interval without received bytes began.
    silent_since: Instant,
    silent_intervals: u32,
}

impl Keepalive {
    /// A keepalive that pings after each silent `interval`; never if it is zero.
    pub(crate) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval: Some(interval).filter(|i| !i.is_zero()),
            last_sent: now,
            silent_since: now,
            silent_intervals: 0,
        }
    }

    /// Records that bytes were sent.
    pub(crate) fn on_sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// Records that bytes were received; anything counts as a sign of life.
    pub(crate) fn on_received(&mut self, now: Instant) {
        self.silent_since = now;
        self.silent_intervals = 0;
    }

    /// The time of the next [`Self::check`]; `None` without a keepalive.
    pub(crate) fn next_check(&self) -> Option<Instant> {
        let interval = self.interval?;
        Some(self.last_sent.min(self.silent_since) + interval)
    }

    /// The action due at `now`. An interval counts against the peer only if this end was `reading`.
    pub(crate) fn check(&mut self, now: Instant, reading: bool) -> KeepaliveAction {
        let Some(interval) = self.interval else {
            return KeepaliveAction::Wait;
        };
        let silent = now >= self.silent_since + interval;
        let quiet = now >= self.last_sent + interval;
        if silent {
            // One interval, however late this check is: a process that was suspended for an hour
            // could not receive anything.
            self.silent_since = now;
            self.silent_intervals = if reading {
                self.silent_intervals + 1
            } else {
                0
            };
            if self.silent_intervals >= MAX_SILENT_INTERVALS {
                return KeepaliveAction::Dead;
            }
        }
        if silent || quiet {
            self.last_sent = now;
            return KeepaliveAction::Ping;
        }
        KeepaliveAction::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(25);

    #[test]
    fn three_silent_intervals_end_the_tunnel_and_each_sends_a_ping() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(INTERVAL, start);
        assert_eq!(keepalive.next_check(), Some(start + INTERVAL));
        assert_eq!(
            keepalive.check(start + INTERVAL / 2, true),
            KeepaliveAction::Wait
        );
        assert_eq!(
            keepalive.check(start + INTERVAL, true),
            KeepaliveAction::Ping
        );
        assert_eq!(
            keepalive.check(start + 2 * INTERVAL, true),
            KeepaliveAction::Ping
        );
        assert_eq!(
            keepalive.check(start + 3 * INTERVAL, true),
            KeepaliveAction::Dead
        );
    }

    #[test]
    fn received_bytes_reset_the_count() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(INTERVAL, start);
        for n in 1..20 {
            assert_eq!(
                keepalive.check(start + n * INTERVAL, true),
                KeepaliveAction::Ping
            );
            keepalive.on_received(start + n * INTERVAL);
        }
    }

    #[test]
    fn a_long_suspension_of_this_process_counts_as_one_interval() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(INTERVAL, start);
        assert_eq!(
            keepalive.check(start + 100 * INTERVAL, true),
            KeepaliveAction::Ping
        );
        assert_eq!(
            keepalive.check(start + 100 * INTERVAL, true),
            KeepaliveAction::Wait
        );
    }

    #[test]
    fn intervals_without_reading_do_not_count_but_send_pings() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(INTERVAL, start);
        for n in 1..20 {
            assert_eq!(
                keepalive.check(start + n * INTERVAL, false),
                KeepaliveAction::Ping
            );
        }
    }

    #[test]
    fn a_peer_that_only_sends_still_gets_a_ping() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(INTERVAL, start);
        keepalive.on_received(start + INTERVAL / 2);
        assert_eq!(keepalive.next_check(), Some(start + INTERVAL));
        assert_eq!(
            keepalive.check(start + INTERVAL, true),
            KeepaliveAction::Ping
        );
        keepalive.on_received(start + INTERVAL);
        assert_eq!(
            keepalive.check(start + 2 * INTERVAL, true),
            KeepaliveAction::Ping
        );
    }
}
