//! The measurements over each path, with the same over direct loopback: idle memory, set-up, echo,
//! bulk.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::load::{Bulk, Load};
use super::machine::{Look, resident};
use super::plan::{AT_ONCE, STREAMS};
use super::progress::{figure, quantile, quantiles};
use super::reports::Run;
use super::verdict::{Moved, Samples};
use crate::probe::problem::Problem;
use crate::probe::relay::ProbeRelay;

/// The number of idle connections, and how long they are idle before memory is read: both ends
/// release their buffers after 300 ms.
const IDLE: usize = 64;
const TO_REST: Duration = Duration::from_millis(1500);
const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

impl Run<'_> {
    /// The memory of an idle connection in this process. Measured first, before any load has left
    /// memory behind.
    pub(super) fn idle(&mut self, load: &Arc<Load>, path: &'static str) {
        let count = IDLE.min(self.plan.streams);
        let what = format!("idle x{count}");
        if !self.goes_on(&what, path) {
            return;
        }
        let held = || -> Result<Option<f64>, Problem> {
            // Memory that is allocated once and kept does not count.
            load.idle(1)?.into_iter().for_each(|conn| load.close(conn));
            let before = resident();
            let conns = load.idle(count)?;
            let until = Instant::now() + TO_REST;
            while Instant::now() < until && !self.config.cancel.is_requested() {
                thread::sleep(Duration::from_millis(50));
            }
            let with = resident();
            for conn in conns {
                load.close(conn);
            }
            let each = |(with, before): (f64, f64)| (with - before) / count as f64;
            Ok(with.zip(before).map(each))
        };
        match held() {
            Ok(each) => {
                let figures = each.map(|kib| figure("memory", "KiB each", kib));
                self.row(what, path, figures.into_iter().collect());
            }
            Err(problem) => self.not_measured(what, path, problem),
        }
    }

    pub(super) fn set_ups(
        &mut self,
        direct: &Arc<Load>,
        tunnel: &Arc<Load>,
        with_standby: Option<&Arc<ProbeRelay>>,
        samples: &mut Samples,
    ) {
        let trip = samples.round_trip.unwrap_or_default();
        for at_once in AT_ONCE.into_iter().filter(|n| *n <= self.plan.streams) {
            self.set_up(direct, "direct", at_once, Wait::for_nothing());
            let relay = with_standby.filter(|_| at_once == 1).cloned();
            let median = self.set_up(tunnel, "tunnel", at_once, Wait { relay, trip });
            samples.set_up = samples.set_up.or(median);
        }
    }

    pub(super) fn set_up(
        &mut self,
        load: &Arc<Load>,
        path: &'static str,
        at_once: usize,
        wait: Wait,
    ) -> Option<Duration> {
        let what = format!("set-up x{at_once}");
        if !self.goes_on(&what, path) {
            return None;
        }
        let since = Instant::now();
        match load.set_ups(at_once, move || wait.wait()) {
            Ok(latencies) => {
                let rate = latencies.len() as f64 / since.elapsed().as_secs_f64();
                let mut figures = quantiles(&latencies);
                // With one connection at a time the rate adds nothing to the median, and the time
                // to replace the standby connections distorts it.
                if at_once > 1 {
                    figures.push(figure("rate", "1/s", rate));
                }
                self.row(what, path, figures);
                quantile(&latencies, 50)
            }
            Err(problem) => {
                self.not_measured(what, path, problem);
                None
            }
        }
    }

    pub(super) fn echoes(&mut self, direct: &Arc<Load>, tunnel: &Arc<Load>, samples: &mut Samples) {
        for (load, path) in [(direct, "direct"), (tunnel, "tunnel")] {
            let what = "echo of 1 byte".to_owned();
            if !self.goes_on(&what, path) {
                return;
            }
            match load.echoes() {
                Ok(latencies) => {
                    self.row(what, path, quantiles(&latencies));
                    let median = quantile(&latencies, 50).filter(|_| path == "tunnel");
                    // An upgrade may be delayed for reasons other than the network: the fastest
                    // round trip counts.
                    samples.round_trip = match (samples.round_trip, median) {
                        (Some(known), Some(median)) => Some(known.min(median)),
                        (known, median) => known.or(median),
                    };
                }
                Err(problem) => self.not_measured(what, path, problem),
            }
        }
    }

    pub(super) fn bulks(&mut self, direct: &Arc<Load>, tunnel: &Arc<Load>, samples: &mut Samples) {
        for (bulk, name) in [(Bulk::Down, "down"), (Bulk::Up, "up"), (Bulk::Both, "both")] {
            for streams in STREAMS.into_iter().filter(|n| *n <= self.plan.streams) {
                let what = format!("{name} x{streams}");
                let straight = self.bulk(direct, bulk, streams, &what, "direct", None);
                let through = self.bulk(tunnel, bulk, streams, &what, "tunnel", straight);
                if bulk == Bulk::Down {
                    samples.tunnels.extend(through);
                    let best = samples.direct.unwrap_or_default();
                    samples.direct = straight.map(|direct| direct.mib_s.max(best));
                }
            }
        }
    }

    fn bulk(
        &mut self,
        load: &Arc<Load>,
        bulk: Bulk,
        streams: usize,
        what: &str,
        path: &'static str,
        direct: Option<Moved>,
    ) -> Option<Moved> {
        if !self.goes_on(what, path) {
            return None;
        }
        if bulk != Bulk::Down && !load.half_close {
            let problem = Problem::new(
                "the gateway speaks wire version 1, which has no half-close",
                "measure through a gateway that speaks version 2",
            );
            self.not_measured(what.to_owned(), path, problem);
            return None;
        }
        let look = Look::now();
        let (bytes, took) = match load.bulk(bulk, streams) {
            Ok(moved) => moved,
            Err(problem) => {
                self.not_measured(what.to_owned(), path, problem);
                return None;
            }
        };
        let busy = look.since();
        let moved = Moved {
            streams,
            mib_s: bytes as f64 / MIB / took.as_secs_f64(),
            own: busy.own,
            machine: busy.machine,
        };
        let mut figures = vec![figure("throughput", "MiB/s", moved.mib_s)];
        if let Some(direct) = direct {
            figures.push(figure("ratio", "of direct", moved.mib_s / direct.mib_s));
        }
        if let Some(own) = busy.own_seconds {
            figures.push(figure("processor", "s/GiB", own * GIB / bytes as f64));
        }
        if let Some(machine) = busy.machine {
            figures.push(figure("machine", "% busy", 100.0 * machine));
        }
        self.row(what.to_owned(), path, figures);
        Some(moved)
    }
}

/// What a set-up waits for first: a standby connection, for at most the time that dialing one may
/// take.
#[derive(Clone)]
pub(super) struct Wait {
    relay: Option<Arc<ProbeRelay>>,
    trip: Duration,
}

impl Wait {
    pub(super) fn for_nothing() -> Self {
        Self {
            relay: None,
            trip: Duration::ZERO,
        }
    }

    fn wait(&self) {
        let Some(relay) = &self.relay else { return };
        // Three round trips, doubled for jitter.
        let until = Instant::now() + 6 * self.trip;
        while relay.stats().tunnels > 0 && relay.stats().standby_open == 0 && Instant::now() < until
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
