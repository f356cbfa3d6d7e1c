//! Counters per target host of one relay, for `status` and for the summary of `run`.
//!
//! The table is bounded: a client chooses the names. If it is full, the least active host without
//! an open tunnel makes room, and its counters are added to those of the other hosts. So the sums
//! over all rows stay exact. It makes no system call, except if two threads need it at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::control::outcome::{EndReason, Outcome};

/// The most hosts with a row.
const LIMIT: usize = 256;

/// What a relay has carried to one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostStats {
    /// Tunnels that are open now.
    pub(crate) open: u64,
    /// Tunnels that were established.
    pub(crate) tunnels: u64,
    /// Requests that were refused.
    pub(crate) refused: u64,
    /// Tunnels that broke or were cut.
    pub(crate) broken: u64,
    /// Bytes that clients sent, in tunnels that have ended.
    pub(crate) bytes_up: u64,
    /// Bytes that clients received, in tunnels that have ended.
    pub(crate) bytes_down: u64,
}

impl HostStats {
    pub(crate) fn add(&mut self, other: Self) {
        self.open += other.open;
        self.tunnels += other.tunnels;
        self.refused += other.refused;
        self.broken += other.broken;
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
    }

    /// The number of requests for the host.
    fn requests(&self) -> u64 {
        self.tunnels + self.refused
    }
}

/// The rows of the table at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostRows {
    /// Hosts without their ports, the most active ones first: by open tunnels, then by requests.
    pub(crate) rows: Vec<(String, HostStats)>,
    /// The sum over the hosts without a row.
    pub(crate) other: HostStats,
}

/// The counters of one host. An open tunnel shares them, so they are not removed.
type Row = Arc<Mutex<HostStats>>;

/// The counters of one relay. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostTable(Arc<Mutex<Hosts>>);

#[derive(Debug, Default)]
struct Hosts {
    rows: HashMap<String, Row>,
    other: Row,
}

impl HostTable {
    /// Counts a tunnel to `host` that has been established.
    pub(crate) fn opened(&self, host: &str) -> OpenTunnel {
        let row = locked(&self.0).row(host);
        {
            let mut stats = locked(&row);
            stats.open += 1;
            stats.tunnels += 1;
        }
        OpenTunnel(row)
    }

    /// Counts how a connection ended that named a host.
    pub(crate) fn record(&self, outcome: &Outcome) {
        let Some(host) = outcome.host() else { return };
        let (bytes_up, bytes_down) = outcome.bytes();
        let mut ended = HostStats {
            bytes_up,
            bytes_down,
            ..HostStats::default()
        };
        match outcome.reason {
            EndReason::Rejected(_) => ended.refused = 1,
            EndReason::Broken { .. } | EndReason::Cut | EndReason::Panicked => ended.broken = 1,
            _ => {}
        }
        let row = locked(&self.0).row(host);
        locked(&row).add(ended);
    }

    /// The counters now.
    pub(crate) fn rows(&self) -> HostRows {
        let (mut rows, other) = {
            let hosts = locked(&self.0);
            let rows = hosts.rows.iter();
            let rows = rows.map(|(host, row)| (host.clone(), *locked(row)));
            (rows.collect::<Vec<_>>(), *locked(&hosts.other))
        };
        rows.sort_by(|(host, row), (other_host, other)| {
            (other.open, other.requests(), host).cmp(&(row.open, row.requests(), other_host))
        });
        HostRows { rows, other }
    }
}

impl Hosts {
    /// The row of `host`; that of the other hosts, if every row has an open tunnel.
    fn row(&mut self, host: &str) -> Row {
        if let Some(row) = self.rows.get(host) {
            return Row::clone(row);
        }
        if self.rows.len() >= LIMIT && !self.remove_least() {
            return Row::clone(&self.other);
        }
        let row = Row::default();
        self.rows.insert(host.to_owned(), Row::clone(&row));
        row
    }

    /// Removes the least active host without an open tunnel. `false`: there is none.
    fn remove_least(&mut self) -> bool {
        let silent = self
            .rows
            .iter()
            .filter(|(_, row)| Arc::strong_count(row) == 1);
        let least = silent.min_by_key(|(_, row)| locked(row).requests());
        let removed = least.map(|(host, _)| host.clone());
        let Some(row) = removed.and_then(|host| self.rows.remove(&host)) else {
            return false;
        };
        locked(&self.other).add(*locked(&row));
        true
    }
}

/// An open tunnel. Dropping it counts it as ended.
#[must_use = "dropping it counts the tunnel as ended"]
#[derive(Debug)]
pub(crate) struct OpenTunnel(Row);

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        locked(&self.0).open -= 1;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::control::outcome::{Party, TunnelSummary};
    use crate::control::phase::Phase;
    use crate::control::rejection::Rejection;

    fn ended(authority: &str, up: u64, down: u64) -> Outcome {
        let summary = TunnelSummary {
            reason: EndReason::Clean,
            up,
            down,
            undelivered: (0, Party::Client),
        };
        Outcome::new(Instant::now(), Some(authority.to_owned()), Ok(summary))
    }

    fn refused(authority: &str) -> Outcome {
        let rejection = Rejection::new(502, Phase::Upgrade, "it failed");
        Outcome::new(
            Instant::now(),
            Some(authority.to_owned()),
            Err(rejection.into()),
        )
    }

    #[test]
    fn a_tunnel_is_counted_when_it_opens_and_its_bytes_when_it_ends() {
        let table = HostTable::default();
        let first = table.opened("a.example");
        let second = table.opened("a.example");
        assert_eq!(table.rows().rows[0].1.open, 2);
        drop(first);
        table.record(&ended("a.example:443", 3, 5));
        table.record(&ended("[::1]:80", 1, 0));
        table.record(&refused("b.example:443"));
        let unnamed = Outcome::new(Instant::now(), None, Err(EndReason::Abandoned));
        table.record(&unnamed);
        let HostRows { rows, other } = table.rows();
        assert_eq!(other, HostStats::default());
        let names: Vec<&str> = rows.iter().map(|(host, _)| &**host).collect();
        assert_eq!(names, ["a.example", "b.example", "[::1]"]);
        let row = rows[0].1;
        assert_eq!((row.open, row.tunnels), (1, 2));
        assert_eq!((row.bytes_up, row.bytes_down), (3, 5));
        assert_eq!((rows[1].1.refused, rows[1].1.tunnels), (1, 0));
        drop(second);
        assert_eq!(table.rows().rows[0].1.open, 0);
    }

    #[test]
    fn a_full_table_drops_the_least_active_host_and_keeps_the_sums() {
        let table = HostTable::default();
        for _ in 0..2 {
            drop(table.opened("busy.example"));
        }
        for number in 0..LIMIT * 2 {
            table.record(&refused(&format!("{number}.example:443")));
        }
        let HostRows { rows, other } = table.rows();
        assert_eq!(rows.len(), LIMIT);
        assert_eq!(rows[0].0, "busy.example");
        let refused: u64 = rows.iter().map(|(_, row)| row.refused).sum();
        assert_eq!(refused + other.refused, LIMIT as u64 * 2);
    }

    #[test]
    fn a_tunnel_without_a_row_ends_among_the_other_hosts() {
        let table = HostTable::default();
        let mut open: Vec<OpenTunnel> = (0..=LIMIT)
            .map(|number| table.opened(&format!("{number}.example")))
            .collect();
        let last = format!("{LIMIT}.example");
        assert_eq!(table.rows().other.open, 1);
        // The host gets a row while its first tunnel is open.
        drop(open.remove(0));
        let again = table.opened(&last);
        assert_eq!(table.rows().other.open, 1);
        drop(open);
        assert_eq!(table.rows().other.open, 0);
        let rows = table.rows().rows;
        assert_eq!((&rows[0].0, rows[0].1.open), (&last, 1));
        drop(again);
        assert!(table.rows().rows.iter().all(|(_, row)| row.open == 0));
    }
}
