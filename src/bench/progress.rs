//! What a benchmark tells: values only, `cli` prints them.

use std::time::Duration;

/// What a benchmark tells while it goes on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) enum BenchProgress {
    /// Between what it measures.
    Between {
        /// The upstream's base URL.
        upstream: String,
        /// The far end of the tunnels.
        target: String,
    },
    /// A measure begins.
    Begins {
        /// Which.
        what: String,
        /// The share of all that is done, 0 to 1.
        done: f64,
        /// About how much longer it takes.
        left: Duration,
    },
    /// Something was measured, or could not be.
    Row(Row),
}

/// One measure over one path.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct Row {
    /// Of what.
    pub what: String,
    /// Over what: `gateway` for a phase of the way, `tunnel`, `tunnel, nothing standing by`, `direct` for loopback.
    pub path: &'static str,
    /// What came of it.
    pub found: Found,
}

/// What came of a measure.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// These figures.
    Figures(Vec<Figure>),
    /// Nothing.
    Not {
        /// Why, without a full stop.
        why: String,
        /// What to do about it, as an imperative without a full stop.
        remedy: String,
    },
}

/// One figure.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub(crate) struct Figure {
    /// What it is.
    pub name: &'static str,
    /// In what.
    pub unit: &'static str,
    /// How much.
    pub value: f64,
}

/// A figure.
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

/// What so many of a hundred do not exceed.
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
