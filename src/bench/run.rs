//! One run of `bench`: the measurements in order, and their reports.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::client;
use super::load::Load;
use super::measures::Wait;
use super::origin::BenchOrigin;
use super::pattern::TestPattern;
use super::plan::BenchPlan;
use super::progress::{BenchProgress, figure};
use super::reports::{Run, Stopped};
use super::verdict::{Conclusion, Samples, judge};
use super::wire::LONGEST;
use crate::config::Config;
use crate::control::phase::Phase;
use crate::crypto::secret::Secret;
use crate::http::authority::{Authority, Host};
use crate::net::resolver::Resolver;
use crate::orchestrator::upstream;
use crate::probe::client::Port;
use crate::probe::options::ProbeOptions;
use crate::probe::prepared::{self, Prepared};
use crate::probe::problem::Problem;
use crate::probe::relay::{ProbeRelay, to_open};
use crate::relay::{DialEvent, trace};
use crate::tunnel::ws_codec::Version;

/// How often each phase of the path is measured.
const REPEATS: usize = 3;
/// If the gateway answers sooner than this, the relay keeps no connection on standby.
const FAR: Duration = Duration::from_millis(5);

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
    match run.measure_all() {
        Ok(conclusion) => conclusion,
        Err((what, path, problem)) => {
            run.not_measured(what, path, problem);
            None
        }
    }
}

impl Run<'_> {
    fn measure_all(&mut self) -> Result<Option<Conclusion>, Stopped> {
        let running = self.options.running.as_ref();
        let prepared = prepared::prepare(self.config, running.is_some())
            .map_err(|error| (error.stage().to_string(), "gateway", error.into()))?;
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let origin = BenchOrigin::start(loopback).map_err(|error| {
            let problem = Problem::new(
                format!("cannot start an origin on loopback: {error}"),
                "raise this user's limits on processes and open files",
            );
            ("origin".to_owned(), "direct", problem)
        })?;
        let Some(session) = &prepared.session else {
            return Ok(None);
        };
        let named = self.options.target.clone();
        let target = match named {
            Some(target) => target,
            None if self.options.own_origin => Authority {
                host: Host::Address(origin.local_addr().ip()),
                port: origin.local_addr().port(),
            },
            None => session.base.authority().clone(),
        };
        (self.report)(BenchProgress::Between {
            upstream: session.base.to_string(),
            target: target.to_string(),
        });

        let round_trip = self.phases(&prepared, &target)?;
        if self.config.cancel.is_requested() {
            return Ok(None);
        }
        let relay = self.relay(&prepared, self.config.limits.standby)?;
        let port = match (&relay, running) {
            (_, Some(running)) => Port::of_url(running.relay, &running.proxy),
            (Some(relay), None) => relay.port(),
            (None, None) => return Ok(None),
        };
        let tunnel = self.tunnel(port, &target)?;
        let direct = Arc::new(Load {
            half_close: true,
            ..self.load(client::Route::Direct(origin.local_addr()), true)
        });
        let far = round_trip.is_some_and(|trip| trip >= FAR);
        let cold = if far && running.is_none() {
            self.relay(&prepared, 0)?
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
        let with_standby = relay.as_ref().filter(|_| far);
        self.set_ups(&direct, &tunnel, with_standby, &mut samples);
        if let Some(cold) = cold {
            let load = self.load(self.route(cold.port(), &target), tunnel.speaks);
            self.set_up(
                &Arc::new(load),
                "tunnel, no standby",
                1,
                Wait::for_nothing(),
            );
        }
        if tunnel.speaks {
            self.echoes(&direct, &tunnel, &mut samples);
            self.bulks(&direct, &tunnel, &mut samples);
        } else {
            let problem = Problem::new(
                format!("{target} is not a benchmark origin"),
                "run `upstreamproxy bench --origin ADDR:PORT` on a machine that the gateway can reach, and name it with --target",
            );
            self.not_measured("echo and throughput".to_owned(), "tunnel", problem);
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
        let Some(session) = &prepared.session else {
            return Ok(None);
        };
        // An empty token is never sent: without a token the attempt ends before the upgrade.
        let token = prepared
            .token
            .clone()
            .unwrap_or_else(|| Secret::new(String::new()));
        let roots = prepared.roots.as_deref().unwrap_or_default();
        let (id, base) = (session.id.clone(), session.base.clone());
        let upstream = upstream(id, base, token, roots, Resolver::new())
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
            let figure = figure("least", "ms", took.as_secs_f64() * 1e3);
            self.row(phase.to_string(), "gateway", vec![figure]);
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

    fn route(&self, port: Port, target: &Authority) -> client::Route {
        client::Route::Tunnel {
            port,
            target: target.clone(),
            within: to_open(&self.config.limits),
        }
    }

    fn load(&self, route: client::Route, speaks: bool) -> Load {
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
        let speaks = conn.greets();
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
