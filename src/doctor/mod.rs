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
pub(crate) use check::{Check, Verdict};

use crate::config::Config;
use crate::error::Error;
use crate::probe::options::{ProbeOptions, RunningServe};
use crate::probe::prepared::{Prepared, ProbeRelay};
use far_end::FarEnd;

/// Runs every step and reports each when its result is known. Writes, deletes and changes nothing.
///
/// Every wait is bounded by [`Config::limits`]. [`Config::cancel`] ends the run before the next
/// group of steps.
pub(crate) fn diagnose(config: &Config, options: &ProbeOptions, report: &mut dyn FnMut(Check)) {
    let running = options.running.as_ref();
    let cancelled = || config.cancel.is_requested();
    let prepared = stages::check_all(config, running, report);
    let prepared = prepared.as_ref();
    if cancelled() {
        return;
    }
    let origin = match options.target {
        None if options.own_origin => origin::start().ok(),
        _ => None,
    };
    let far_end = FarEnd::find(options, origin.as_ref(), prepared);
    let far_end = far_end.as_ref();
    let opened = path::check_all(config, prepared, far_end, running.is_some(), report);
    if cancelled() {
        return;
    }
    if let Err(error) = round_trips(config, running, prepared, opened, far_end, report) {
        report(Check::wrong(Step::RoundTrip, error));
        for step in [Step::PostQuantumHello, Step::EchHello] {
            report(Check::skipped(step, "the round trip failed"));
        }
    }
    if !cancelled() {
        variables::check_all(config, running, report);
    }
}

/// Runs the round trips through the port of the running `serve`, else through a relay of this
/// process.
///
/// # Errors
/// The relay cannot be started.
fn round_trips(
    config: &Config,
    running: Option<&RunningServe>,
    prepared: Option<&Prepared>,
    opened: Result<(), &'static str>,
    far_end: Option<&FarEnd>,
    report: &mut dyn FnMut(Check),
) -> Result<(), Error> {
    let mut skip = |why| {
        round_trip::skip(why, report);
        Ok(())
    };
    let Some(far_end) = far_end else {
        return skip("the gate is closed and no --target is given");
    };
    let relay = match (running, opened, prepared) {
        (None, Err(why), _) => return skip(why),
        (None, Ok(()), Some(prepared)) => ProbeRelay::start(config, prepared)?,
        (Some(_), ..) | (None, Ok(()), None) => None,
    };
    let port = match (running, &relay) {
        (Some(running), _) => running.port(),
        (None, Some(relay)) => relay.port(),
        (None, None) => return skip("there is no token, see token"),
    };
    round_trip::check_all(&port, far_end, &config.limits, report);
    Ok(())
}
