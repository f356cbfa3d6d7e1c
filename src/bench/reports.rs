//! What `bench` measures and reports: values only, `cli` prints them.

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::probe::options::ProbeOptions;
use crate::probe::problem::Problem;

/// The number of tunnels that are opened at once.
pub(super) const AT_ONCE: [usize; 2] = [1, 32];
/// The numbers of connections that carry bytes at once.
pub(super) const STREAMS: [usize; 3] = [1, 8, 64];

/// The amount of measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BenchPlan {
    /// The duration of each measurement; at most one minute.
    pub time: Duration,
    /// The maximum number of connections at once.
    pub streams: usize,
}

impl Default for BenchPlan {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(1),
            streams: 64,
        }
    }
}

/// A report of a running benchmark.
#[derive(Debug)]
pub(crate) enum BenchProgress {
    /// The two ends of the path.
    Between {
        /// The upstream's base URL.
        upstream: String,
        /// The far end of the tunnels.
        target: String,
    },
    /// A measurement begins.
    Begins {
        /// Its name.
        what: String,
        /// The share of the run that is complete, from 0 to 1.
        done: f64,
        /// The estimated time until the end.
        left: Duration,
    },
    /// A measurement is complete, or was not possible.
    Row(Row),
}

/// One measurement over one path.
#[derive(Debug)]
pub(crate) struct Row {
    /// The name of the measurement.
    pub what: String,
    /// The path: `gateway` for a phase of dialing, `tunnel`, `tunnel, no standby`, or
    /// `direct` for loopback.
    pub path: &'static str,
    /// The figures, or why there are none.
    pub found: Result<Vec<Figure>, Problem>,
}

/// One figure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// Its name.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Its value.
    pub value: f64,
}

/// Makes a figure.
pub(super) fn figure(name: &'static str, unit: &'static str, value: f64) -> Figure {
    Figure { name, unit, value }
}

/// A figure in milliseconds.
pub(super) fn millis(name: &'static str, time: Duration) -> Figure {
    figure(name, "ms", time.as_secs_f64() * 1e3)
}

/// Median and 99th percentile.
pub(super) fn quantiles(latencies: &[Duration]) -> Vec<Figure> {
    let of = |(name, share)| Some(millis(name, quantile(latencies, share)?));
    [("p50", 50), ("p99", 99)]
        .into_iter()
        .filter_map(of)
        .collect()
}

/// The value that `percent` percent of the samples do not exceed.
pub(super) fn quantile(latencies: &[Duration], share: usize) -> Option<Duration> {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * share).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied()
}

/// A run of measurements.
pub(super) struct Run<'a> {
    pub(super) config: &'a Config,
    pub(super) options: &'a ProbeOptions,
    pub(super) plan: &'a BenchPlan,
    pub(super) report: &'a mut dyn FnMut(BenchProgress),
    pub(super) begun: Instant,
    /// The number of measurements that are complete.
    pub(super) done: usize,
    pub(super) planned: usize,
    /// The gateway speaks a wire version with half-close.
    pub(super) half_close: bool,
}

impl Run<'_> {
    /// The number of measurements, for the time estimate.
    pub(super) fn plan_for(&mut self, speaks: bool, cold: bool) {
        let up_to = |counts: &[usize]| counts.iter().filter(|n| **n <= self.plan.streams).count();
        let loads = if speaks { 1 + 3 * up_to(&STREAMS) } else { 0 };
        self.planned = 2 * (1 + up_to(&AT_ONCE) + loads) + usize::from(cold);
        (self.begun, self.done) = (Instant::now(), 0);
    }

    pub(super) fn begins(&mut self, what: &str) {
        let pace = match u32::try_from(self.done) {
            Ok(done @ 1..) => self.begun.elapsed() / done,
            _ => self.plan.time,
        };
        let left = self.planned.saturating_sub(self.done);
        (self.report)(BenchProgress::Begins {
            what: what.to_owned(),
            done: self.done as f64 / self.planned.max(1) as f64,
            left: pace.saturating_mul(u32::try_from(left).unwrap_or(u32::MAX)),
        });
    }

    /// Makes one measurement and reports its figures. `None` if it failed, or if the run was
    /// cancelled before it.
    pub(super) fn measure<T>(
        &mut self,
        what: &str,
        path: &'static str,
        work: impl FnOnce() -> Result<(Vec<Figure>, T), Problem>,
    ) -> Option<T> {
        if self.config.cancel.is_requested() {
            return None;
        }
        self.begins(&format!("{what}, {path}"));
        self.done += 1;
        let (found, result) = match work() {
            Ok((figures, result)) => (Ok(figures), Some(result)),
            Err(problem) => (Err(problem), None),
        };
        self.row(what, path, found);
        result
    }

    pub(super) fn row(
        &mut self,
        what: &str,
        path: &'static str,
        found: Result<Vec<Figure>, Problem>,
    ) {
        // A measurement that was cut short has no meaning.
        if found.is_err() || !self.config.cancel.is_requested() {
            let what = what.to_owned();
            (self.report)(BenchProgress::Row(Row { what, path, found }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_samples_and_of_none_there_is_none() {
        let samples: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        for share in [1, 50, 99, 100] {
            let at = Duration::from_millis(share as u64);
            assert_eq!(quantile(&samples, share), Some(at));
        }
        let one = [Duration::from_millis(7)];
        assert_eq!(quantile(&one, 50), quantile(&one, 99));
        assert_eq!(quantile(&[], 50), None);
    }
}
