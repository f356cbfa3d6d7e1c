//! What a benchmark reports: values only, `cli` prints them.

use std::time::Duration;

/// A report of a running benchmark.
#[derive(Clone, Debug)]
#[non_exhaustive]
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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct Row {
    /// The name of the measurement.
    pub what: String,
    /// The path: `gateway` for a phase of dialing, `tunnel`, `tunnel, no standby`, or
    /// `direct` for loopback.
    pub path: &'static str,
    /// The result.
    pub found: Measured,
}

/// The result of a measurement.
#[derive(Clone, Debug)]
pub(crate) enum Measured {
    /// Figures.
    Figures(Vec<Figure>),
    /// Not possible.
    Not {
        /// The reason, without a full stop.
        why: String,
        /// What to do about it, as an imperative without a full stop.
        remedy: String,
    },
}

/// One figure.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
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

/// Median and 99th percentile.
pub(super) fn quantiles(latencies: &[Duration]) -> Vec<Figure> {
    let of = |name, share| {
        let at = quantile(latencies, share)?;
        Some(figure(name, "ms", at.as_secs_f64() * 1e3))
    };
    [of("p50", 50), of("p99", 99)]
        .into_iter()
        .flatten()
        .collect()
}

/// The value that `percent` percent of the samples do not exceed.
pub(super) fn quantile(latencies: &[Duration], share: usize) -> Option<Duration> {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * share).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied()
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
