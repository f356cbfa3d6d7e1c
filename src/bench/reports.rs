//! The state of one run of `bench`, and what it reports.

use std::time::Instant;

use super::plan::{AT_ONCE, BenchPlan, STREAMS};
use super::progress::{BenchProgress, Figure, Measured, Row};
use crate::config::Config;
use crate::probe::options::ProbeOptions;
use crate::probe::problem::Problem;

/// What could not be measured, over which path, and why.
pub(super) type Stopped = (String, &'static str, Problem);

/// A run of measurements.
pub(super) struct Run<'a> {
    pub(super) config: &'a Config,
    pub(super) options: &'a ProbeOptions,
    pub(super) plan: &'a BenchPlan,
    pub(super) report: &'a mut dyn FnMut(BenchProgress),
    pub(super) begun: Instant,
    /// The number of measurements that are complete.
    pub(super) done: usize,
    pub(super) planned: usize,
    /// The gateway speaks a wire version with half-close.
    pub(super) half_close: bool,
}

impl Run<'_> {
    /// The number of measurements, for the time estimate.
    pub(super) fn plan_for(&mut self, speaks: bool, cold: bool) {
        let up_to = |counts: &[usize]| counts.iter().filter(|n| **n <= self.plan.streams).count();
        let loads = if speaks { 1 + 3 * up_to(&STREAMS) } else { 0 };
        self.planned = 2 * (1 + up_to(&AT_ONCE) + loads) + usize::from(cold);
        (self.begun, self.done) = (Instant::now(), 0);
    }

    pub(super) fn begins(&mut self, what: &str) {
        let pace = match u32::try_from(self.done) {
            Ok(done @ 1..) => self.begun.elapsed() / done,
            _ => self.plan.time,
        };
        let left = self.planned.saturating_sub(self.done);
        (self.report)(BenchProgress::Begins {
            what: what.to_owned(),
            done: self.done as f64 / self.planned.max(1) as f64,
            left: pace.saturating_mul(u32::try_from(left).unwrap_or(u32::MAX)),
        });
    }

    /// Announces the next measurement; false if the run was cancelled.
    pub(super) fn goes_on(&mut self, what: &str, path: &str) -> bool {
        if self.config.cancel.is_requested() {
            return false;
        }
        self.begins(&format!("{what}, {path}"));
        self.done += 1;
        true
    }

    pub(super) fn row(&mut self, what: String, path: &'static str, figures: Vec<Figure>) {
        // A measurement that was cut short has no meaning.
        if !self.config.cancel.is_requested() {
            let found = Measured::Figures(figures);
            (self.report)(BenchProgress::Row(Row { what, path, found }));
        }
    }

    pub(super) fn not_measured(&mut self, what: String, path: &'static str, problem: Problem) {
        let Problem {
            what: why, remedy, ..
        } = problem;
        let found = Measured::Not { why, remedy };
        (self.report)(BenchProgress::Row(Row { what, path, found }));
    }
}
