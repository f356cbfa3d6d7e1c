//! What the way through the upstream gives: set-up, echo, throughput, and what limits it (`manual/performance.md`).
//!
//! The loads are ordinary clients of a relay's port. Like a diagnosis it writes, burns and changes nothing; unlike one it makes
//! traffic. Values only; nothing is printed here.

#![allow(
    clippy::cast_precision_loss,
    reason = "figures for readers, from counts far under 2^52"
)]

mod client;
mod load;
mod machine;
mod origin;
pub(crate) mod pattern;
pub(crate) mod processor;
mod verdict;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub use origin::BenchOrigin;
pub use verdict::{Conclusion, Limit};

use crate::authority::{Authority, Host};
use crate::config::Config;
use crate::deadline::Phase;
use crate::diagnosis::Surroundings;
use crate::diagnosis::client::Port;
use crate::diagnosis::finding::Trouble;
use crate::diagnosis::round_trip::{OwnRelay, to_open};
use crate::diagnosis::stages::{self, Seen};
use crate::orchestrator::upstream;
use crate::relay::{Passed, trace};
use crate::resolver::Resolver;
use crate::secret::Secret;
use load::{Bulk, Load};
use machine::Look;
use pattern::Pattern;
use verdict::{Moved, Samples, judge};

/// How often the way is walked, phase by phase.
const WALKS: usize = 3;
/// A gateway that answers sooner is so near that nothing stands by for the next CONNECT.
const FAR: Duration = Duration::from_millis(5);
/// How many idle connections are held, and how long they are left alone before memory is looked at: both ends shed their
/// buffers after 300 ms.
const IDLE: usize = 64;
const TO_REST: Duration = Duration::from_millis(1500);
/// How many tunnels are opened at once, and how many carry bytes at once.
const AT_ONCE: [usize; 2] = [1, 32];
const STREAMS: [usize; 3] = [1, 8, 64];
const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct BenchPlan {
    /// How long each measure goes on; at most a minute.
    pub time: Duration,
    /// At most so many connections at once.
    pub streams: usize,
}

/// What a benchmark tells while it goes on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Told {
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
pub struct Row {
    /// Of what.
    pub what: String,
    /// Over what: `gateway` for a phase of the way, `tunnel`, `tunnel, nothing standing by`, `direct` for loopback.
    pub path: &'static str,
    /// What came of it.
    pub found: Found,
}

/// What came of a measure.
#[derive(Clone, Debug)]
pub enum Found {
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
pub struct Figure {
    /// What it is.
    pub name: &'static str,
    /// In what.
    pub unit: &'static str,
    /// How much.
    pub value: f64,
}

/// Measures the way through the upstream of `config`, and tells of each figure when it is known. Changes nothing.
///
/// `None`: there is no way, or [`Config::cancel`] has ended it; the rows say which.
pub fn benchmark(
    config: &Config,
    about: &Surroundings,
    plan: &BenchPlan,
    tell: &mut dyn FnMut(Told),
) -> Option<Conclusion> {
    let mut run = Run {
        config,
        about,
        plan,
        tell,
        begun: Instant::now(),
        done: 0,
        planned: 0,
    };
    // Until the far end has shown that it does not speak the load.
    run.plan_for(true, false);
    match run.walk() {
        Ok(conclusion) => conclusion,
        Err((what, path, trouble)) => {
            run.not(what, path, trouble);
            None
        }
    }
}

/// What could not be measured, over what, and why.
type Stopped = (String, &'static str, Trouble);

struct Run<'a> {
    config: &'a Config,
    about: &'a Surroundings,
    plan: &'a BenchPlan,
    tell: &'a mut dyn FnMut(Told),
    begun: Instant,
    /// Measures, all about as long.
    done: usize,
    planned: usize,
}

impl Run<'_> {
    fn walk(&mut self) -> Result<Option<Conclusion>, Stopped> {
        let living = self.about.living.as_ref();
        let seen = stages::see(self.config, living.is_some())
            .map_err(|error| (error.stage().to_string(), "gateway", error.into()))?;
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let origin = BenchOrigin::start(loopback).map_err(|error| {
            let trouble = Trouble::new(
                format!("no origin could be started on loopback: {error}"),
                "raise this user's limits on processes and open files",
            );
            ("origin".to_owned(), "direct", trouble)
        })?;
        let Some(session) = &seen.session else {
            return Ok(None);
        };
        let named = self.about.target.clone();
        let target = match named {
            Some(target) => target,
            None if self.about.own_origin => Authority {
                host: Host::Address(origin.address().ip()),
                port: origin.address().port(),
            },
            None => session.base.authority().clone(),
        };
        (self.tell)(Told::Between {
            upstream: session.base.to_string(),
            target: target.to_string(),
        });

        let round_trip = self.phases(&seen, &target)?;
        if self.config.cancel.is_requested() {
            return Ok(None);
        }
        let relay = self.relay(&seen, self.config.limits.standby)?;
        let port = match (&relay, living) {
            (_, Some(living)) => Port::of_url(living.relay, &living.proxy),
            (Some(relay), None) => relay.port(),
            (None, None) => return Ok(None),
        };
        let tunnel = self.tunnel(port, &target)?;
        let direct = Arc::new(self.load(client::Way::Direct(origin.address()), true));
        let far = round_trip.is_some_and(|trip| trip >= FAR);
        let cold = if far && living.is_none() {
            self.relay(&seen, 0)?
        } else {
            None
        };
        let mut samples = Samples {
            processors: thread::available_parallelism().map_or(1, Into::into),
            round_trip,
            ..Samples::default()
        };
        self.plan_for(tunnel.speaks, cold.is_some());
        self.idle(&direct, "direct");
        self.idle(&tunnel, "tunnel");
        let standing = relay.as_ref().filter(|_| far);
        self.set_ups(&direct, &tunnel, standing, &mut samples);
        if let Some(cold) = cold {
            let load = self.load(self.way(cold.port(), &target), tunnel.speaks);
            self.set_up(
                &Arc::new(load),
                "tunnel, nothing standing by",
                1,
                Wait::for_nothing(),
            );
        }
        if tunnel.speaks {
            self.echoes(&direct, &tunnel, &mut samples);
            self.bulks(&direct, &tunnel, &mut samples);
        } else {
            let trouble = Trouble::new(
                format!("{target} does not speak the benchmark's load"),
                "run `upstreamproxy bench --origin ADDR:PORT` where the gateway can reach it, and name it with --target",
            );
            self.not("echo and throughput".to_owned(), "tunnel", trouble);
        }
        let cancelled = self.config.cancel.is_requested();
        Ok((!cancelled).then(|| judge(&samples)))
    }

    /// The phases of the way, each by the quickest of a few walks; returns the round trip, as the upgrade tells it where the
    /// token can be shown: what stands in front of a gateway may answer TCP and TLS in its place.
    fn phases(&mut self, seen: &Seen, target: &Authority) -> Result<Option<Duration>, Stopped> {
        let Some(session) = &seen.session else {
            return Ok(None);
        };
        // Nobody is shown this one: without a token the walk ends before it would be.
        let token = seen
            .token
            .clone()
            .unwrap_or_else(|| Secret::new(zeroize::Zeroizing::new(String::new())));
        let roots = seen.roots.as_deref().unwrap_or_default();
        let (id, base) = (session.id.clone(), session.base.clone());
        let upstream = upstream(id, base, token, roots, Resolver::new())
            .map_err(|error| ("tls".to_owned(), "gateway", error.into()))?;
        let target = seen.token.is_some().then_some(target);
        self.begins("the way to the gateway");
        let mut quickest: Vec<(Phase, Duration)> = Vec::new();
        let mut walked = Ok(());
        for _ in 0..WALKS {
            if walked.is_err() || self.config.cancel.is_requested() {
                break;
            }
            let mut since = Instant::now();
            walked = trace(&upstream, &self.config.limits, target, &mut |passed| {
                let (phase, took) = (phase(&passed), since.elapsed());
                since = Instant::now();
                match quickest.iter_mut().find(|(known, _)| *known == phase) {
                    Some((_, best)) => *best = took.min(*best),
                    None => quickest.push((phase, took)),
                }
            });
        }
        for (phase, took) in &quickest {
            let figure = figure("least", "ms", took.as_secs_f64() * 1e3);
            self.row(phase.to_string(), "gateway", vec![figure]);
        }
        walked.map_err(|(phase, refusal)| {
            let (what, mut remedy) = refusal.told();
            if refusal.is_policy() && self.about.target.is_none() {
                remedy = "name a far end that it allows with --target HOST:PORT";
            }
            (phase.to_string(), "gateway", Trouble::new(what, remedy))
        })?;
        let of = |wanted| quickest.iter().find(|(phase, _)| *phase == wanted);
        let trip = of(Phase::Upgrade).or_else(|| of(Phase::Connect));
        Ok(trip.map(|(_, took)| *took))
    }

    /// A relay of our own with so many standing by; `None` where the token is with a living one.
    fn relay(&self, seen: &Seen, standby: usize) -> Result<Option<Arc<OwnRelay>>, Stopped> {
        let mut config = self.config.clone();
        config.limits.standby = standby;
        OwnRelay::start(&config, seen)
            .map(|relay| relay.map(Arc::new))
            .map_err(|error| ("relay".to_owned(), "tunnel", error.into()))
    }

    fn way(&self, port: Port, target: &Authority) -> client::Way {
        client::Way::Tunnel {
            port,
            target: target.clone(),
            within: to_open(&self.config.limits),
        }
    }

    fn load(&self, way: client::Way, speaks: bool) -> Load {
        Load {
            way,
            time: self.plan.time,
            speaks,
            pattern: Arc::new(Pattern::new()),
            cancel: self.config.cancel.clone(),
        }
    }

    /// The load through the relay, once it is known whether its far end speaks it.
    fn tunnel(&mut self, port: Port, target: &Authority) -> Result<Arc<Load>, Stopped> {
        let way = self.way(port, target);
        let opened = way.open();
        let mut visit = opened.map_err(|trouble| ("set-up".to_owned(), "tunnel", trouble))?;
        let speaks = visit.greets();
        visit.leave();
        Ok(Arc::new(self.load(way, speaks)))
    }

    /// What an idle connection holds in this process. First of all, while no load has left anything behind.
    fn idle(&mut self, load: &Arc<Load>, path: &'static str) {
        let count = IDLE.min(self.plan.streams);
        let what = format!("idle x{count}");
        if !self.goes_on(&what, path) {
            return;
        }
        let held = || -> Result<Option<f64>, Trouble> {
            // What is made once and kept belongs to what was there before.
            leave(load.idle(1)?);
            let before = machine::resident();
            let visits = load.idle(count)?;
            let until = Instant::now() + TO_REST;
            while Instant::now() < until && !self.config.cancel.is_requested() {
                thread::sleep(Duration::from_millis(50));
            }
            let with = machine::resident();
            leave(visits);
            let each = |(with, before): (f64, f64)| (with - before) / count as f64;
            Ok(with.zip(before).map(each))
        };
        match held() {
            Ok(each) => {
                let figures = each.map(|kib| figure("memory", "KiB each", kib));
                self.row(what, path, figures.into_iter().collect());
            }
            Err(trouble) => self.not(what, path, trouble),
        }
    }

    fn set_ups(
        &mut self,
        direct: &Arc<Load>,
        tunnel: &Arc<Load>,
        standing: Option<&Arc<OwnRelay>>,
        samples: &mut Samples,
    ) {
        let trip = samples.round_trip.unwrap_or_default();
        for at_once in AT_ONCE.into_iter().filter(|n| *n <= self.plan.streams) {
            self.set_up(direct, "direct", at_once, Wait::for_nothing());
            let relay = standing.filter(|_| at_once == 1).cloned();
            let median = self.set_up(tunnel, "tunnel", at_once, Wait { relay, trip });
            samples.set_up = samples.set_up.or(median);
        }
    }

    fn set_up(
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
                // One at a time it says no more than the median, and where the standby is waited for, less.
                if at_once > 1 {
                    figures.push(figure("rate", "1/s", rate));
                }
                self.row(what, path, figures);
                quantile(&latencies, 50)
            }
            Err(trouble) => {
                self.not(what, path, trouble);
                None
            }
        }
    }

    fn echoes(&mut self, direct: &Arc<Load>, tunnel: &Arc<Load>, samples: &mut Samples) {
        for (load, path) in [(direct, "direct"), (tunnel, "tunnel")] {
            let what = "echo of 1 byte".to_owned();
            if !self.goes_on(&what, path) {
                return;
            }
            match load.echoes() {
                Ok(latencies) => {
                    self.row(what, path, quantiles(&latencies));
                    let median = quantile(&latencies, 50).filter(|_| path == "tunnel");
                    // The line may answer an upgrade late for reasons of its own: there and back takes what it takes at best.
                    samples.round_trip = match (samples.round_trip, median) {
                        (Some(known), Some(median)) => Some(known.min(median)),
                        (known, median) => known.or(median),
                    };
                }
                Err(trouble) => self.not(what, path, trouble),
            }
        }
    }

    fn bulks(&mut self, direct: &Arc<Load>, tunnel: &Arc<Load>, samples: &mut Samples) {
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
        let look = Look::now();
        let (bytes, took) = match load.bulk(bulk, streams) {
            Ok(moved) => moved,
            Err(trouble) => {
                self.not(what.to_owned(), path, trouble);
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

    /// How many measures there are, for the estimate.
    fn plan_for(&mut self, speaks: bool, cold: bool) {
        let up_to = |counts: &[usize]| counts.iter().filter(|n| **n <= self.plan.streams).count();
        let loads = if speaks { 1 + 3 * up_to(&STREAMS) } else { 0 };
        self.planned = 2 * (1 + up_to(&AT_ONCE) + loads) + usize::from(cold);
        (self.begun, self.done) = (Instant::now(), 0);
    }

    fn begins(&mut self, what: &str) {
        let pace = match u32::try_from(self.done) {
            Ok(done @ 1..) => self.begun.elapsed() / done,
            _ => self.plan.time,
        };
        let left = self.planned.saturating_sub(self.done);
        (self.tell)(Told::Begins {
            what: what.to_owned(),
            done: self.done as f64 / self.planned.max(1) as f64,
            left: pace.saturating_mul(u32::try_from(left).unwrap_or(u32::MAX)),
        });
    }

    /// Tells of the next measure; false where nobody wants it any more.
    fn goes_on(&mut self, what: &str, path: &str) -> bool {
        if self.config.cancel.is_requested() {
            return false;
        }
        self.begins(&format!("{what}, {path}"));
        self.done += 1;
        true
    }

    fn row(&mut self, what: String, path: &'static str, figures: Vec<Figure>) {
        // What was cut short says nothing.
        if !self.config.cancel.is_requested() {
            let found = Found::Figures(figures);
            (self.tell)(Told::Row(Row { what, path, found }));
        }
    }

    fn not(&mut self, what: String, path: &'static str, trouble: Trouble) {
        let Trouble {
            what: why, remedy, ..
        } = trouble;
        let found = Found::Not { why, remedy };
        (self.tell)(Told::Row(Row { what, path, found }));
    }
}

/// What a set-up waits for first: that something stands by, for as long as dialling it may take.
#[derive(Clone)]
struct Wait {
    relay: Option<Arc<OwnRelay>>,
    trip: Duration,
}

impl Wait {
    fn for_nothing() -> Self {
        Self {
            relay: None,
            trip: Duration::ZERO,
        }
    }

    fn wait(&self) {
        let Some(relay) = &self.relay else { return };
        // Three round trips, and as much again on a line that is not even.
        let until = Instant::now() + 6 * self.trip;
        while relay.stats().tunnels > 0 && relay.stats().standing_by == 0 && Instant::now() < until
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn leave(visits: Vec<client::Visit>) {
    for visit in visits {
        visit.leave();
    }
}

fn phase(passed: &Passed<'_>) -> Phase {
    match passed {
        Passed::Resolve(_) => Phase::Resolve,
        Passed::Connect(_) => Phase::Connect,
        Passed::Tls(_) => Phase::Tls,
        Passed::Upgrade(_) => Phase::Upgrade,
        Passed::Opening => Phase::Opening,
    }
}

fn figure(name: &'static str, unit: &'static str, value: f64) -> Figure {
    Figure { name, unit, value }
}

fn quantiles(latencies: &[Duration]) -> Vec<Figure> {
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
fn quantile(latencies: &[Duration], share: usize) -> Option<Duration> {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * share).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied()
}
