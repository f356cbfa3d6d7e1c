//! The measurements over each path, with the same over direct loopback: idle memory, set-up, echo,
//! bulk.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::load::{Bulk, Load};
use super::machine::{Look, resident};
use super::reports::{AT_ONCE, Run, STREAMS, figure, quantile, quantiles};
use super::verdict::{Moved, Samples};
use crate::probe::prepared::ProbeRelay;
use crate::probe::problem::Problem;

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
        self.measure(&format!("idle x{count}"), path, || {
            // Memory that is allocated once and kept does not count.
            load.idle(1)?.into_iter().for_each(|conn| load.close(conn));
            let before = resident();
            let conns = load.idle(count)?;
            let until = Instant::now() + TO_REST;
            while Instant::now() < until && !load.cancel.is_requested() {
                thread::sleep(Duration::from_millis(50));
            }
            let with = resident();
            for conn in conns {
                load.close(conn);
            }
            let each = |(with, before): (f64, f64)| (with - before) / count as f64;
            let figures = with.zip(before).map(each);
            let figures = figures.map(|kib| figure("memory", "KiB each", kib));
            Ok((figures.into_iter().collect(), ()))
        });
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
            self.set_up(direct, "direct", at_once, Wait::default());
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
        let median = self.measure(&format!("set-up x{at_once}"), path, || {
            let since = Instant::now();
            let latencies = load.set_ups(at_once, move || wait.wait())?;
            let rate = latencies.len() as f64 / since.elapsed().as_secs_f64();
            let mut figures = quantiles(&latencies);
            // With one connection at a time the rate adds nothing to the median, and the time to
            // replace the standby connections distorts it.
            if at_once > 1 {
                figures.push(figure("rate", "1/s", rate));
            }
            Ok((figures, quantile(&latencies, 50)))
        });
        median.flatten()
    }

    pub(super) fn echoes(&mut self, direct: &Arc<Load>, tunnel: &Arc<Load>, samples: &mut Samples) {
        let mut echo = |load: &Load, path| {
            let median = self.measure("echo of 1 byte", path, || {
                let latencies = load.echoes()?;
                Ok((quantiles(&latencies), quantile(&latencies, 50)))
            });
            median.flatten()
        };
        echo(direct, "direct");
        let median = echo(tunnel, "tunnel");
        // An upgrade may be delayed for reasons other than the network: the fastest round trip
        // counts.
        samples.round_trip = samples.round_trip.into_iter().chain(median).min();
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
        self.measure(what, path, || {
            if bulk != Bulk::Down && !load.half_close {
                return Err(Problem::new(
                    "the gateway speaks wire version 1, which has no half-close",
                    "measure through a gateway that speaks version 2",
                ));
            }
            let look = Look::now();
            let (bytes, took) = load.bulk(bulk, streams)?;
            let busy = look.since();
            let moved = Moved {
                streams,
                mib_s: bytes as f64 / MIB / took.as_secs_f64(),
                own: busy.own,
                machine: busy.machine,
            };
            let ratio = direct.map(|direct| moved.mib_s / direct.mib_s);
            let processor = busy.own_seconds.map(|own| own * GIB / bytes as f64);
            let machine = busy.machine.map(|machine| 100.0 * machine);
            let figures = [
                ("throughput", "MiB/s", Some(moved.mib_s)),
                ("ratio", "of direct", ratio),
                ("processor", "s/GiB", processor),
                ("machine", "% busy", machine),
            ];
            let known = |(name, unit, value): (_, _, Option<f64>)| Some(figure(name, unit, value?));
            Ok((figures.into_iter().filter_map(known).collect(), moved))
        })
    }
}

/// What a set-up waits for first: a standby connection, for at most the time that dialing one may
/// take. By default nothing.
#[derive(Clone, Default)]
pub(super) struct Wait {
    relay: Option<Arc<ProbeRelay>>,
    trip: Duration,
}

impl Wait {
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
