//! The processor use of this process and of the machine between two samples, and the memory of this
//! process, read from `/proc`. Without `/proc` nothing is known.

use std::fs;
use std::time::Instant;

use super::usage::{cpu_seconds, kib};

/// One sample.
pub(super) struct Look {
    at: Instant,
    own: Option<f64>,
    /// Ticks of all processors: idle, total.
    machine: Option<(f64, f64)>,
}

/// The use between two samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Busy {
    /// Processor seconds of this process.
    pub(super) own_seconds: Option<f64>,
    /// The average number of processors that were busy with this process.
    pub(super) own: Option<f64>,
    /// The share of all processors that was busy with anything, from 0 to 1.
    pub(super) machine: Option<f64>,
}

impl Look {
    /// Takes a sample now.
    pub(super) fn now() -> Self {
        Self {
            at: Instant::now(),
            own: cpu_seconds(std::process::id()),
            machine: fs::read_to_string("/proc/stat")
                .ok()
                .and_then(|stat| ticks(&stat)),
        }
    }

    /// The use since this sample.
    pub(super) fn since(&self) -> Busy {
        let now = Self::now();
        let seconds = (now.at - self.at).as_secs_f64();
        let own_seconds = now.own.zip(self.own).map(|(after, before)| after - before);
        let machine = now.machine.zip(self.machine).and_then(|(after, before)| {
            let all = after.1 - before.1;
            (all > 0.0).then(|| (1.0 - (after.0 - before.0) / all).clamp(0.0, 1.0))
        });
        Busy {
            own_seconds,
            own: own_seconds
                .filter(|_| seconds > 0.0)
                .map(|own| own / seconds),
            machine,
        }
    }
}

/// The resident memory of this process, in KiB.
pub(super) fn resident() -> Option<f64> {
    kib(std::process::id(), "VmRSS:").map(|kib| kib as f64)
}

/// Idle and total ticks in the first line of `/proc/stat`: user, nice, system, idle, iowait and
/// more, of all processors.
fn ticks(stat: &str) -> Option<(f64, f64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<f64> = line
        .split_whitespace()
        // Guest time is already included in user time.
        .take(8)
        .map_while(|field| field.parse().ok())
        .collect();
    let idle = fields.get(3)? + fields.get(4)?;
    Some((idle, fields.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_all_ticks_are_read_and_guests_count_once() {
        let stat = "cpu  10 1 20 60 5 1 2 1 7 7\ncpu0 1 1 1 1\n";
        assert_eq!(ticks(stat), Some((65.0, 100.0)));
        for none in ["", "cpu", "cpu  1 2", "intr 5"] {
            assert_eq!(ticks(none), None, "{none:?}");
        }
    }

    #[test]
    fn memory_that_was_touched_is_resident() {
        let before = resident();
        let touched = vec![1_u8; 8 << 20];
        let with = resident();
        assert!(touched.iter().all(|byte| *byte == 1));
        assert!(
            before
                .zip(with)
                .is_none_or(|(before, with)| with > 0.0 && before > 0.0)
        );
    }

    #[test]
    fn what_this_process_burns_is_seen() {
        let look = Look::now();
        let mut sum = 0_u64;
        while look.since().own_seconds.is_some_and(|own| own < 0.02) {
            sum = (0..100_000_u64).fold(sum, |sum, n| sum.wrapping_mul(31) ^ n);
        }
        assert!(std::hint::black_box(sum) > 0);
        let busy = look.since();
        assert!(busy.own.is_none_or(|own| own > 0.0), "{busy:?}");
    }
}
