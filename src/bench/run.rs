//! One run of `bench`: the measurements in order, and their reports.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::client::Route;
use super::load::Load;
use super::measures::Wait;
use super::origin;
use super::pattern::TestPattern;
use super::reports::{BenchPlan, BenchProgress, Run, millis};
use super::verdict::{Conclusion, Samples, judge};
use super::wire::LONGEST;
use crate::config::Config;
use crate::control::phase::Phase;
use crate::http::authority::Authority;
use crate::probe::client::Port;
use crate::probe::options::ProbeOptions;
use crate::probe::prepared::{Prepared, ProbeRelay, to_open};
use crate::probe::problem::Problem;
use crate::relay::{DialEvent, trace};
use crate::tunnel::ws_codec::Version;

/// How often each phase of the path is measured.
const REPEATS: usize = 3;
/// If the gateway answers sooner than this, the relay keeps no connection on standby.
const FAR: Duration = Duration::from_millis(5);
/// How long to wait for the far end's greeting while it is unknown whether it sends one.
const GREETING_PATIENCE: Duration = Duration::from_secs(3);

/// What could not be measured, over which path, and why.
type Stopped = (String, &'static str, Problem);

/// Measures the path through the upstream of `config`, and reports each figure when it is known.
/// Changes nothing.
///
/// Returns `None` if there is no path, or if [`Config::cancel`] ended it; the rows say which.
pub(crate) fn benchmark(
    config: &Config,
    options: &ProbeOptions,
    plan: &BenchPlan,
    report: &mut dyn FnMut(BenchProgress),
) -> Option<Conclusion> {
    let mut run = Run {
        config,
        options,
        plan,
        report,
        begun: Instant::now(),
        done: 0,
        planned: 0,
        half_close: true,
    };
    // Assumed until the far end shows that it is not a benchmark origin.
    run.plan_for(true, false);
    run.measure_all().unwrap_or_else(|(what, path, problem)| {
        run.row(&what, path, Err(problem));
        None
    })
}

impl Run<'_> {
    fn measure_all(&mut self) -> Result<Option<Conclusion>, Stopped> {
        let running = self.options.running.as_ref();
        let prepared = Prepared::read(self.config, running.is_some())
            .map_err(|error| (error.stage().to_string(), "gateway", error.into()))?;
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let origin = origin::start(loopback).map_err(|error| {
            let problem = Problem::new(
                format!("cannot start an origin on loopback: {error}"),
                "raise this user's limits on processes and open files",
            );
            ("origin".to_owned(), "direct", problem)
        })?;
        let base = &prepared.session.base;
        let target = match &self.options.target {
            Some(target) => target.clone(),
            None if self.options.own_origin => origin.authority(),
            None => base.authority().clone(),
        };
        (self.report)(BenchProgress::Between {
            upstream: match running {
                Some(running) => {
                    format!("{base} through the serve with process ID {}", running.pid)
                }
                None => base.to_string(),
            },
            target: target.to_string(),
        });

        let round_trip = self.phases(&prepared, &target)?;
        if self.config.cancel.is_requested() {
            return Ok(None);
        }
        let relay = self.relay(&prepared, self.config.limits.standby)?;
        let port = match (&relay, running) {
            (_, Some(running)) => running.port(),
            (Some(relay), None) => relay.port(),
            (None, None) => return Ok(None),
        };
        let tunnel = self.tunnel(port, &target)?;
        let direct = Arc::new(Load {
            half_close: true,
            ..self.load(Route::Direct(origin.local_addr()), true)
        });
        let far = round_trip.is_some_and(|trip| trip >= FAR);
        let cold = match running {
            None if far => self.relay(&prepared, 0)?,
            _ => None,
        };
        let mut samples = Samples {
            processors: thread::available_parallelism().map_or(1, Into::into),
            round_trip,
            ..Samples::default()
        };
        self.plan_for(tunnel.speaks, cold.is_some());
        self.idle(&direct, "direct");
        self.idle(&tunnel, "tunnel");
        let with_standby = relay.as_ref().filter(|_| far);
        self.set_ups(&direct, &tunnel, with_standby, &mut samples);
        if let Some(cold) = cold {
            let load = Arc::new(self.load(self.route(cold.port(), &target), tunnel.speaks));
            self.set_up(&load, "tunnel, no standby", 1, Wait::default());
        }
        if tunnel.speaks {
            self.echoes(&direct, &tunnel, &mut samples);
            self.bulks(&direct, &tunnel, &mut samples);
        } else {
            let problem = Problem::new(
                format!("{target} is not a benchmark origin"),
                "run `upstreamproxy bench --origin ADDR:PORT` on a machine that the gateway can reach, and name it with --target",
            );
            self.row("echo and throughput", "tunnel", Err(problem));
        }
        let cancelled = self.config.cancel.is_requested();
        Ok((!cancelled).then(|| judge(&samples)))
    }

    /// Measures the phases of the path, the fastest of a few attempts for each. Returns the
    /// round-trip time, from the upgrade if there is a token: a load balancer in front of the
    /// gateway may answer TCP and TLS itself.
    fn phases(
        &mut self,
        prepared: &Prepared,
        target: &Authority,
    ) -> Result<Option<Duration>, Stopped> {
        let upstream = prepared
            .upstream(self.config)
            .map_err(|error| ("tls".to_owned(), "gateway", error.into()))?;
        let target = prepared.token.is_some().then_some(target);
        self.begins("the path to the gateway");
        let mut quickest: Vec<(Phase, Duration)> = Vec::new();
        let mut walked = Ok(());
        for _ in 0..REPEATS {
            if walked.is_err() || self.config.cancel.is_requested() {
                break;
            }
            let mut since = Instant::now();
            let half_close = &mut self.half_close;
            walked = trace(&upstream, &self.config.limits, target, &mut |passed| {
                if let DialEvent::Upgrade(version) = passed {
                    *half_close = version == Version::V2;
                }
                let (phase, took) = (phase(&passed), since.elapsed());
                since = Instant::now();
                match quickest.iter_mut().find(|(known, _)| *known == phase) {
                    Some((_, best)) => *best = took.min(*best),
                    None => quickest.push((phase, took)),
                }
            });
        }
        for (phase, took) in &quickest {
            self.row(phase.name(), "gateway", Ok(vec![millis("least", *took)]));
        }
        walked.map_err(|rejection| {
            let remedy = if rejection.is_policy() && self.options.target.is_none() {
                "name a far end that it allows with --target HOST:PORT"
            } else {
                rejection.remedy
            };
            let problem = Problem::new(rejection.to_string(), remedy);
            (rejection.phase.to_string(), "gateway", problem)
        })?;
        let of = |wanted| quickest.iter().find(|(phase, _)| *phase == wanted);
        let trip = of(Phase::Upgrade).or_else(|| of(Phase::Connect));
        Ok(trip.map(|(_, took)| *took))
    }

    /// A relay in this process with at most `standby` standby connections; `None` if a running
    /// serve has consumed the token.
    fn relay(
        &self,
        prepared: &Prepared,
        standby: usize,
    ) -> Result<Option<Arc<ProbeRelay>>, Stopped> {
        let mut config = self.config.clone();
        config.limits.standby = standby;
        ProbeRelay::start(&config, prepared)
            .map(|relay| relay.map(Arc::new))
            .map_err(|error| ("relay".to_owned(), "tunnel", error.into()))
    }

    fn route(&self, port: Port, target: &Authority) -> Route {
        Route::Tunnel {
            port,
            target: target.clone(),
            within: to_open(&self.config.limits),
        }
    }

    fn load(&self, route: Route, speaks: bool) -> Load {
        Load {
            route,
            time: self.plan.time.min(LONGEST),
            speaks,
            half_close: self.half_close,
            pattern: Arc::new(TestPattern::new()),
            cancel: self.config.cancel.clone(),
        }
    }

    /// The load through the relay, once it is known whether the far end is a benchmark origin.
    fn tunnel(&mut self, port: Port, target: &Authority) -> Result<Arc<Load>, Stopped> {
        let route = self.route(port, target);
        let opened = route.open();
        let mut conn = opened.map_err(|problem| ("set-up".to_owned(), "tunnel", problem))?;
        let speaks = conn.greeted(GREETING_PATIENCE).is_ok();
        let load = self.load(route, speaks);
        load.close(conn);
        Ok(Arc::new(load))
    }
}

fn phase(passed: &DialEvent<'_>) -> Phase {
    match passed {
        DialEvent::Resolve(_) => Phase::Resolve,
        DialEvent::Connect(_) => Phase::Connect,
        DialEvent::Tls(_) => Phase::Tls,
        DialEvent::Upgrade(_) => Phase::Upgrade,
        DialEvent::Opening => Phase::Opening,
    }
}
