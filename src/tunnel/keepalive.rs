//! Signs of life on a WebSocket: when a ping is due, and when silence means that the peer is gone (`manual/protocol.md`, Messages).
//!
//! Pure: it is told what happened and when, and asks nothing of the clock.

use std::time::{Duration, Instant};

/// Silent intervals in a row that end a tunnel.
const MAX_SILENT_INTERVALS: u32 = 3;

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeepaliveAction {
    /// Nothing.
    Wait,
    /// Send a ping.
    Ping,
    /// The peer is gone.
    Dead,
}

/// Keeps the time of one WebSocket's signs of life.
#[derive(Debug)]
pub(crate) struct Keepalive {
    interval: Option<Duration>,
    /// When we last sent anything.
    last_sent: Instant,
    /// When the current interval of silence from the peer began.
    silent_since: Instant,
    silent_intervals: u32,
}

impl Keepalive {
    /// A ping after each silent `interval`; zero: none, ever.
    pub(crate) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval: Some(interval).filter(|i| !i.is_zero()),
            last_sent: now,
            silent_since: now,
            silent_intervals: 0,
        }
    }

    /// Something was sent.
    pub(crate) fn on_sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// Something came; anything counts.
    pub(crate) fn on_received(&mut self, now: Instant) {
        self.silent_since = now;
        self.silent_intervals = 0;
    }

    /// When to ask for a verdict at the latest.
    pub(crate) fn next_check(&self) -> Option<Instant> {
        let interval = self.interval?;
        Some(self.last_sent.min(self.silent_since) + interval)
    }

    /// What is to be done at `now`. Only intervals in which this end was `reading` count against the peer.
    pub(crate) fn check(&mut self, now: Instant, reading: bool) -> KeepaliveAction {
        let Some(interval) = self.interval else {
            return KeepaliveAction::Wait;
        };
        let silent = now >= self.silent_since + interval;
        let quiet = now >= self.last_sent + interval;
        if silent {
            // One strike however late we are asked: a process that was stopped for an hour has heard nothing of it.
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
    fn three_silent_intervals_end_it_and_each_sends_a_ping() {
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
    fn anything_heard_starts_the_count_anew() {
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
    fn a_long_stop_of_this_process_counts_as_one_interval() {
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
    fn held_off_intervals_do_not_count_but_still_ping() {
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
    fn a_peer_that_only_talks_still_gets_its_ping() {
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
