//! What limits a path, judged from the measurements: a pure function, and a sentence with the
//! numbers.

#![allow(clippy::cast_precision_loss, reason = "a count of processors")]

use std::time::Duration;

/// From this share of busy processors on, the machine is saturated.
const BUSY: f64 = 0.85;
/// This much of one processor used over a single tunnel means that one thread is the limit.
const ONE_THREAD: f64 = 0.7;
/// If many streams together move this many times what one moves, each was limited on its own.
const GAIN: f64 = 2.0;

/// What limits a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Limit {
    /// The round-trip time to the upstream: each tunnel waits for it.
    RoundTrip,
    /// This machine's processor.
    Processor,
    /// The far end, or the network on the path to it.
    FarEnd,
    /// Unknown: too little was measured.
    Unknown,
}

impl Limit {
    /// Its name in the JSON document, and its name for people.
    pub(crate) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::RoundTrip => ("round trip", "the round trip to the upstream"),
            Self::Processor => ("processor", "this machine's processor"),
            Self::FarEnd => ("far end", "the far end, or the network"),
            Self::Unknown => ("unknown", "not known"),
        }
    }
}

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct Conclusion {
    /// What limits the path.
    pub limit: Limit,
    /// A sentence with the numbers, without a full stop.
    pub sentence: String,
    /// What could be done, as an imperative without a full stop.
    pub remedy: &'static str,
}

/// The throughput of this many tunnels together, and the processor use meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) streams: usize,
    pub(super) mib_s: f64,
    /// The number of processors that were busy with this process.
    pub(super) own: Option<f64>,
    /// The share of all processors that was busy, from 0 to 1.
    pub(super) machine: Option<f64>,
}

/// The measurements that a verdict is based on.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    pub(super) processors: usize,
    /// The round-trip time to the upstream.
    pub(super) round_trip: Option<Duration>,
    /// The set-up time of a tunnel, from the request on, one at a time.
    pub(super) set_up: Option<Duration>,
    /// The best throughput over loopback without a tunnel, in MiB/s.
    pub(super) direct: Option<f64>,
    /// Downloads through tunnels, by the number of tunnels.
    pub(super) tunnels: Vec<Moved>,
}

/// Judges the samples.
pub(super) fn judge(samples: &Samples) -> Conclusion {
    let by_speed = |a: &&Moved, b: &&Moved| a.mib_s.total_cmp(&b.mib_s);
    let one = samples.tunnels.iter().find(|moved| moved.streams == 1);
    let (Some(one), Some(best)) = (one, samples.tunnels.iter().max_by(by_speed)) else {
        return without_throughput(samples);
    };
    let gain = best.mib_s / one.mib_s;
    let busy = best.machine.is_some_and(|busy| busy >= BUSY);
    let one_thread = one.own.is_some_and(|own| own >= ONE_THREAD);
    // Other processes may keep the machine busy. That is not the limit if this process uses little.
    let asks_much = best
        .own
        .is_some_and(|own| own >= 0.5 * samples.processors as f64);
    if gain >= GAIN && !one_thread && !(busy && asks_much) {
        return round_trip(samples, one, best);
    }
    if busy || gain >= GAIN {
        return processor(samples, one, best);
    }
    Conclusion {
        limit: Limit::FarEnd,
        sentence: format!(
            "{}: more tunnels do not help, and {}",
            speeds(one, best),
            idle(samples, best)
        ),
        remedy: "check the gateway's machine, the target, and the bandwidth between them and this machine",
    }
}

fn processor(samples: &Samples, one: &Moved, best: &Moved) -> Conclusion {
    let of_direct = samples.direct.filter(|direct| *direct > 0.0).map(|direct| {
        let share = 100.0 * best.mib_s / direct;
        format!("; direct over loopback the same load moves {direct:.0} MiB/s, so this is {share:.0} % of it")
    });
    let of_direct = of_direct.unwrap_or_default();
    let busy = match best.machine {
        Some(busy) if busy >= BUSY => format!(
            "{}, and {:.0} % of the {} processors are busy, {:.1} of them with this process",
            speed(best),
            100.0 * busy,
            samples.processors,
            best.own.unwrap_or_default()
        ),
        _ => format!(
            "{}, and for one tunnel this process uses {:.1} processors: a tunnel is one thread",
            speeds(one, best),
            one.own.unwrap_or_default()
        ),
    };
    Conclusion {
        limit: Limit::Processor,
        sentence: busy + &of_direct,
        remedy: "check what else keeps this machine busy, use more or faster processors, or add hosts that need no tunnel to NO_PROXY",
    }
}

fn round_trip(samples: &Samples, one: &Moved, best: &Moved) -> Conclusion {
    let window = samples.round_trip.map(|trip| {
        let kib = one.mib_s * 1024.0 * trip.as_secs_f64();
        format!(
            ": with a round trip of {}, about {kib:.0} KiB of one tunnel are in flight",
            millis(trip)
        )
    });
    Conclusion {
        limit: Limit::RoundTrip,
        sentence: format!(
            "{}, while {}{}",
            speeds(one, best),
            idle(samples, best),
            window.unwrap_or_default()
        ),
        remedy: "use more connections at once, use a nearer gateway, or increase the socket buffers of both machines (net.ipv4.tcp_rmem, net.ipv4.tcp_wmem)",
    }
}

/// Without bulk measurements, set-up alone is judged.
fn without_throughput(samples: &Samples) -> Conclusion {
    let verdict = samples
        .set_up
        .zip(samples.round_trip)
        .filter(|(_, trip)| !trip.is_zero());
    let sentence = match verdict {
        Some((set_up, trip)) => format!(
            "throughput was not measured; the set-up of a tunnel takes {}, {:.1} times the upstream's round trip of {}",
            millis(set_up),
            set_up.as_secs_f64() / trip.as_secs_f64(),
            millis(trip)
        ),
        None => "throughput was not measured".to_owned(),
    };
    Conclusion {
        limit: Limit::Unknown,
        sentence,
        remedy: "run `upstreamproxy bench --origin ADDR:PORT` on a machine that the gateway can reach, and name it here with --target",
    }
}

fn speeds(one: &Moved, best: &Moved) -> String {
    if best.streams == one.streams {
        return speed(one);
    }
    format!("{} and {}", speed(one), speed(best))
}

fn speed(moved: &Moved) -> String {
    match moved.streams {
        1 => format!("one tunnel moves {:.0} MiB/s", moved.mib_s),
        many => format!("{many} tunnels together move {:.0} MiB/s", moved.mib_s),
    }
}

fn idle(samples: &Samples, best: &Moved) -> String {
    let processors = samples.processors;
    match (best.machine, best.own) {
        (Some(busy), _) if busy < BUSY => {
            let idle = 100.0 * (1.0 - busy);
            format!("{idle:.0} % of the {processors} processors are idle")
        }
        (_, Some(own)) => format!("this process uses {own:.1} of {processors} processors"),
        _ => "the processor use is unknown".to_owned(),
    }
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(streams: usize, mib_s: f64, own: f64, machine: f64) -> Moved {
        Moved {
            streams,
            mib_s,
            own: Some(own),
            machine: Some(machine),
        }
    }

    fn judged(tunnels: &[Moved]) -> Conclusion {
        judge(&Samples {
            processors: 4,
            round_trip: Some(Duration::from_millis(50)),
            set_up: Some(Duration::from_millis(200)),
            direct: Some(3000.0),
            tunnels: tunnels.to_vec(),
        })
    }

    #[test]
    fn one_tunnel_far_below_many_on_an_idle_machine_waits_for_the_round_trip() {
        let verdict = judged(&[
            moved(1, 12.0, 0.1, 0.05),
            moved(8, 95.0, 0.5, 0.2),
            moved(64, 110.0, 0.6, 0.2),
        ]);
        assert_eq!(verdict.limit, Limit::RoundTrip);
        for part in [
            "one tunnel moves 12 MiB/s",
            "64 tunnels together move 110",
            "50.0 ms",
            "614 KiB",
            "80 %",
        ] {
            assert!(
                verdict.sentence.contains(part),
                "{part}: {}",
                verdict.sentence
            );
        }
    }

    #[test]
    fn a_machine_that_is_busy_throughout_is_the_limit_whatever_the_streams_gain() {
        for many in [610.0, 2400.0] {
            let verdict = judged(&[moved(1, 600.0, 1.8, 0.6), moved(8, many, 3.9, 0.98)]);
            assert_eq!(verdict.limit, Limit::Processor);
            assert!(
                verdict.sentence.contains("98 % of the 4 processors"),
                "{}",
                verdict.sentence
            );
            assert!(
                verdict.sentence.contains("loopback"),
                "{}",
                verdict.sentence
            );
        }
    }

    #[test]
    fn one_thread_at_its_end_is_the_processor_and_no_round_trip() {
        let verdict = judged(&[moved(1, 600.0, 0.95, 0.3), moved(8, 2000.0, 3.0, 0.8)]);
        assert_eq!(verdict.limit, Limit::Processor);
        assert!(
            verdict.sentence.contains("a tunnel is one thread"),
            "{}",
            verdict.sentence
        );
    }

    #[test]
    fn where_more_tunnels_do_not_help_and_the_machine_is_idle_it_is_the_far_end() {
        let verdict = judged(&[moved(1, 11.0, 0.1, 0.05), moved(8, 11.5, 0.1, 0.06)]);
        assert_eq!(verdict.limit, Limit::FarEnd);
        assert!(
            verdict
                .sentence
                .contains("94 % of the 4 processors are idle"),
            "{}",
            verdict.sentence
        );
    }

    #[test]
    fn without_throughput_the_verdict_gives_set_up_in_round_trips_and_names_the_origin() {
        let verdict = judged(&[]);
        assert_eq!(verdict.limit, Limit::Unknown);
        assert!(
            verdict.sentence.contains("4.0 times"),
            "{}",
            verdict.sentence
        );
        assert!(verdict.remedy.contains("--origin"));
        assert_eq!(
            judge(&Samples::default()).sentence,
            "throughput was not measured"
        );
    }

    #[test]
    fn a_machine_that_others_keep_busy_does_not_hide_the_round_trip() {
        let verdict = judged(&[moved(1, 12.0, 0.1, 0.99), moved(8, 95.0, 0.5, 1.0)]);
        assert_eq!(verdict.limit, Limit::RoundTrip);
        assert!(
            verdict.sentence.contains("uses 0.5 of 4 processors"),
            "{}",
            verdict.sentence
        );
    }

    #[test]
    fn what_cannot_be_read_of_the_machine_is_no_reason_to_blame_it() {
        let mut many = moved(8, 100.0, 0.0, 0.0);
        (many.own, many.machine) = (None, None);
        let mut one = many;
        (one.streams, one.mib_s) = (1, 10.0);
        assert_eq!(judged(&[one, many]).limit, Limit::RoundTrip);
    }
}
