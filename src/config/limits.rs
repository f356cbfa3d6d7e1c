//! Limits in count and time, the same for relay and gateway.

use std::time::Duration;

/// The most standby connections of one relay. More burden the gateway and gain nothing.
pub(super) const MAX_STANDBY: usize = 64;

/// Limits in count and time, the same for relay and gateway.
///
/// Every duration is a field, so that tests can make them short.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum number of open tunnels, at least 1; the next request is answered 503. Default
    /// `None`: what the process limits allow, at most 1024.
    pub max_tunnels: Option<usize>,
    /// Maximum number of standby connections, which are WebSocket connections that a relay opens in
    /// advance.
    /// Default 8, at most 64; 0 disables them.
    ///
    /// Their number follows the CONNECT requests of the last 10 s. Each is kept for at most 45 s
    /// and takes a slot of the gateway. None is opened if the gateway answers within 5 ms.
    pub standby: usize,
    /// How long open tunnels may continue after a stop request. Default 10 s; 0 cuts them at once.
    pub drain_timeout: Duration,
    /// Limit for each of name resolution, TCP connect, TLS handshake and WebSocket upgrade. Default
    /// 10 s; with 0 every connection fails.
    pub connect_timeout: Duration,
    /// Interval between pings on a silent tunnel; three unanswered pings end it. Default 25 s;
    /// 0 disables pings, and only the kernel detects a vanished peer.
    pub keepalive: Duration,
    /// How long a tunnel may transfer no data, not counting pings. Default 0: no limit.
    pub idle_timeout: Duration,
    /// Limit for a whole request head from a client, and for the upgrade of an unauthenticated
    /// connection. Default 10 s.
    pub head_timeout: Duration,
    /// How long the relay waits for the response of the gateway to the CONNECT request inside the
    /// WebSocket. Default 30 s.
    pub opening_timeout: Duration,
    /// How long an authenticated WebSocket may wait for its opening. Default 5 min.
    pub standby_timeout: Duration,
    /// Limit for the whole CA download. Default 5 s.
    pub ca_timeout: Duration,
    /// Protocol version 1: how long delivery continues without new data after the client ended
    /// its stream. Default 5 s.
    pub linger: Duration,
    /// Limit for the closing handshake. Default 2 s.
    pub close_timeout: Duration,
    /// How long a tunnel must have been silent before a drain ends it. Default 2 s.
    pub drain_silence: Duration,
    /// How long a peer may accept none of the last data of a tunnel before it is reset; a quarter
    /// of it after a fault. The time starts again when the peer accepts some. Default 60 s.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_tunnels: None,
            standby: 8,
            drain_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(25),
            idle_timeout: Duration::ZERO,
            head_timeout: Duration::from_secs(10),
            opening_timeout: Duration::from_secs(30),
            standby_timeout: Duration::from_secs(300),
            ca_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(5),
            close_timeout: Duration::from_secs(2),
            drain_silence: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// Caps every duration at one year, so that it can be added to any point in time, and the
    /// number of standby connections as the setting `standby` does.
    pub(crate) fn bounded(mut self) -> Self {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        for duration in [
            &mut self.drain_timeout,
            &mut self.connect_timeout,
            &mut self.keepalive,
            &mut self.idle_timeout,
            &mut self.head_timeout,
            &mut self.opening_timeout,
            &mut self.standby_timeout,
            &mut self.ca_timeout,
            &mut self.linger,
            &mut self.close_timeout,
            &mut self.drain_silence,
            &mut self.stall_timeout,
        ] {
            *duration = YEAR.min(*duration);
        }
        self.standby = self.standby.min(MAX_STANDBY);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_too_long_to_be_added_to_a_point_in_time_and_standby_is_bounded() {
        let limits = Limits {
            standby: usize::MAX,
            keepalive: Duration::MAX,
            close_timeout: Duration::MAX,
            ..Limits::default()
        };
        let limits = limits.bounded();
        let now = std::time::Instant::now();
        assert!(
            now.checked_add(limits.keepalive + limits.close_timeout)
                .is_some()
        );
        assert_eq!(limits.linger, Limits::default().linger);
        assert_eq!(limits.standby, 64);
    }
}
