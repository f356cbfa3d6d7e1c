//! What `doctor` does: it checks every stage and phase, and writes, deletes and changes nothing
//! (`manual/operations.md`).
//!
//! A step that depends on a failed one is reported as skipped, so that every run reports every
//! step. Results are values; nothing is printed here.

mod check;
mod far_end;
mod hello;
mod origin;
mod path;
mod round_trip;
mod stages;
mod variables;

pub use check::Step;
pub(crate) use check::{Check, Fact, Verdict};

use crate::config::Config;
use crate::probe::client::Port;
use crate::probe::options::{ProbeOptions, RunningServe};
use crate::probe::prepared::Prepared;
use crate::probe::relay::ProbeRelay;
use check::PathResult;
use far_end::FarEnd;
use origin::Origin;

/// Runs every step and reports each when its result is known. Writes, deletes and changes nothing.
///
/// Every wait is bounded by [`Config::limits`]. [`Config::cancel`] ends the run before the next
/// group of steps.
pub(crate) fn diagnose(config: &Config, options: &ProbeOptions, report: &mut dyn FnMut(Check)) {
    let running = options.running.as_ref();
    let cancelled = || config.cancel.is_requested();
    let prepared = stages::check_all(config, running, report);
    if cancelled() {
        return;
    }
    let origin = match options.target {
        None if options.own_origin => Origin::start().ok(),
        _ => None,
    };
    let far_end = FarEnd::find(options, origin.as_ref(), &prepared);
    let opened = path::check_all(
        config,
        &prepared,
        far_end.as_ref(),
        running.is_some(),
        report,
    );
    if cancelled() {
        return;
    }
    round_trips(config, running, &prepared, opened, far_end.as_ref(), report);
    if !cancelled() {
        variables::check_all(config, running, report);
    }
}

/// Runs the round trips through the port of the running `serve`, else through a relay of this
/// process.
fn round_trips(
    config: &Config,
    running: Option<&RunningServe>,
    prepared: &Prepared,
    opened: PathResult,
    far_end: Option<&FarEnd>,
    report: &mut dyn FnMut(Check),
) {
    let Some(far_end) = far_end else {
        return round_trip::skip("the gate is closed and no --target is given", report);
    };
    if let Some(running) = running {
        let port = Port::of_url(running.relay, &running.proxy);
        return round_trip::check_all(&port, far_end, &config.limits, report);
    }
    match opened {
        PathResult::Opened => {}
        PathResult::Forbidden => return round_trip::skip(round_trip::FORBIDDEN, report),
        PathResult::Failed => {
            return round_trip::skip("no tunnel could be opened, see above", report);
        }
    }
    match ProbeRelay::start(config, prepared) {
        Ok(Some(relay)) => round_trip::check_all(&relay.port(), far_end, &config.limits, report),
        Ok(None) => round_trip::skip("there is no token, see token", report),
        Err(error) => {
            report(Check::wrong(Step::RoundTrip, error.into()));
            for step in [Step::PostQuantumHello, Step::EchHello] {
                report(Check::skipped(step, "the round trip failed"));
            }
        }
    }
}
