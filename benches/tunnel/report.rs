//! From samples to a table for readers or a JSON document for programs: medians over the rounds, ratios within each round.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::delay::{self, Delay};
use crate::idle::Idle;
use crate::measure::{Sample, quantile};
use crate::path::Path;
use crate::plan::{Metric, Plan, TESTS, Test};
use crate::usage;

/// The load generator, target included, where processor time is shown.
const LOAD: &str = "load";

/// What one test gave over one path, one sample a round.
pub(crate) struct Cell {
    /// The test's place in [`TESTS`].
    pub(crate) test: usize,
    /// The path's place in the list of paths.
    pub(crate) path: usize,
    /// The samples, in the order of the rounds.
    pub(crate) samples: Vec<Sample>,
}

/// Everything that was measured.
pub(crate) struct Report<'a> {
    /// How.
    pub(crate) plan: &'a Plan,
    /// Over what.
    pub(crate) paths: &'a [Path],
    /// The figures.
    pub(crate) cells: &'a [Cell],
    /// How many paths there are to compare with; they come first among the paths.
    pub(crate) references: usize,
    /// What idle tunnels hold.
    pub(crate) idles: &'a [Idle],
    /// Set-up from afar.
    pub(crate) delays: &'a [Delay],
}

impl Cell {
    fn values(&self, metric: usize) -> Vec<f64> {
        self.samples.iter().map(|s| s.values[metric]).collect()
    }

    /// The median of the ratios of each round: what slows a whole round cancels out.
    fn ratio(&self, to: &Self, metric: usize) -> Option<f64> {
        let (ours, theirs) = (self.values(metric), to.values(metric));
        median(ours.iter().zip(theirs).map(|(a, b)| a / b).collect())
    }

    /// Processor time for each of the amount, with its user: all rounds together, since the kernel counts in ticks of 10 ms.
    fn cpu<'a>(&self, paths: &'a [Path]) -> Vec<(&'a str, Option<f64>)> {
        let amount: f64 = self.samples.iter().map(|s| s.amount).sum();
        let (_, factor) = TESTS[self.test].work.cpu_per();
        let processes = paths[self.path].processes.iter();
        processes
            .map(|process| process.role)
            .chain([LOAD])
            .enumerate()
            .map(|(place, role)| {
                let seconds: Option<f64> = self.samples.iter().map(|s| s.cpu[place]).sum();
                (role, seconds.map(|seconds| seconds * factor / amount))
            })
            .collect()
    }
}

impl Report<'_> {
    /// For readers.
    pub(crate) fn table(&self) -> String {
        let mut out = format!(
            "upstreamproxy {}, {} rounds, transfers of {} s, {} processors. Medians of the rounds; ratios are taken within each\n\
             round. Higher is better for MiB/s and 1/s, lower for us and processor time. Only ratios of one run mean anything.\n",
            env!("CARGO_PKG_VERSION"),
            self.plan.rounds,
            self.plan.effort.seconds,
            processors(),
        );
        for (index, test) in TESTS.iter().enumerate() {
            let cells: Vec<&Cell> = self.cells.iter().filter(|c| c.test == index).collect();
            for (metric, what) in test.work.metrics().iter().enumerate() {
                if !cells.is_empty() {
                    self.block(&mut out, test, (metric, what), &cells);
                }
            }
        }
        self.idle_block(&mut out);
        self.delay_block(&mut out);
        if self.cells.is_empty() {
            return out;
        }
        let _ = writeln!(
            out,
            "\n{:<24}{:>12}{:>12}",
            "memory, MiB resident", "at rest", "peak"
        );
        for (path, role, rest, peak) in self.memory() {
            let (rest, peak) = (mib(rest), mib(peak));
            let _ = writeln!(
                out,
                "  {:<22}{rest:>12}{peak:>12}",
                format!("{path} {role}")
            );
        }
        out
    }

    /// One metric of one test over all paths.
    fn block(
        &self,
        out: &mut String,
        test: &Test,
        (metric, what): (usize, &Metric),
        cells: &[&Cell],
    ) {
        let title = format!("{} {}, {}", test.name, what.name, what.unit);
        let _ = write!(out, "\n{title:<28}{:>9}{:>17}", "median", "min .. max");
        for reference in self.paths.iter().take(self.references) {
            let _ = write!(out, "{:>15}", format!("x {}", reference.name));
        }
        // Once a test is enough.
        let has_cpu = metric == 0;
        if has_cpu {
            let _ = write!(out, "   processor, {}", test.work.cpu_per().0);
        }
        out.push('\n');
        for cell in cells {
            let path = &self.paths[cell.path];
            let values = cell.values(metric);
            let (low, high) = range(&values);
            let _ = write!(
                out,
                "  {:<26}{:>9}{:>17}",
                path.name,
                median(values).map_or_else(dash, whole),
                format!("{} .. {}", whole(low), whole(high)),
            );
            for ratio in self.ratios(cell, metric, cells) {
                let _ = write!(
                    out,
                    "{:>15}",
                    ratio.map_or_else(dash, |r| format!("{r:.2}"))
                );
            }
            if has_cpu {
                let cpu: Vec<String> = cell
                    .cpu(self.paths)
                    .into_iter()
                    .map(|(role, cpu)| format!("{} {role}", cpu.map_or_else(dash, figure)))
                    .collect();
                let _ = write!(out, "   {}", cpu.join(" + "));
            }
            out.push('\n');
        }
    }

    /// Idle tunnels over all paths.
    fn idle_block(&self, out: &mut String) {
        let Some(first) = self.idles.first() else {
            return;
        };
        let title = format!("idle x{}, KiB resident", first.tunnels);
        let _ = writeln!(
            out,
            "\n{title:<28}{:>12}   each process: before, with, after",
            "a tunnel"
        );
        for idle in self.idles {
            let each: Vec<String> = idle
                .processes
                .iter()
                .map(|(role, held)| {
                    let [before, with, after] = held.map(|kib| whole(kib as f64));
                    format!("{role} {before}, {with}, {after}")
                })
                .collect();
            let _ = writeln!(
                out,
                "  {:<26}{:>12.1}   {}",
                idle.path,
                idle.per_tunnel(),
                each.join("; ")
            );
        }
    }

    /// Set-up from afar.
    fn delay_block(&self, out: &mut String) {
        if self.delays.is_empty() {
            return;
        }
        let _ = writeln!(
            out,
            "\nCONNECT to first byte, wss  {:>9}{:>9}{:>14}{:>14}",
            "p50 ms", "p99 ms", "p50 / trip", "p99 / trip"
        );
        for delay in self.delays {
            let name = format!("{} {}", delay::name(delay.round_trip), delay.way);
            let _ = write!(out, "  {name:<26}");
            for share in [50, 99] {
                let took = quantile(&delay.latencies, share).as_secs_f64() * 1e3;
                let _ = write!(out, "{took:>9.1}");
            }
            for share in [50, 99] {
                let trips = trips(delay, share).map_or_else(dash, |trips| format!("{trips:.2}"));
                let _ = write!(out, "{trips:>14}");
            }
            out.push('\n');
        }
    }

    /// Against each path to compare with, in their order.
    fn ratios(&self, cell: &Cell, metric: usize, cells: &[&Cell]) -> Vec<Option<f64>> {
        (0..self.references)
            .map(|reference| {
                let to = cells.iter().find(|c| c.path == reference)?;
                cell.ratio(to, metric)
            })
            .collect()
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let mut results = Vec::new();
        for cell in self.cells {
            let (test, path) = (&TESTS[cell.test], &self.paths[cell.path]);
            let peers: Vec<&Cell> = self.cells.iter().filter(|c| c.test == cell.test).collect();
            let cpu: serde_json::Map<_, _> = cell
                .cpu(self.paths)
                .into_iter()
                .map(|(role, cpu)| (role.to_owned(), json!(cpu)))
                .collect();
            for (metric, what) in test.work.metrics().iter().enumerate() {
                let ratios: serde_json::Map<_, _> = self
                    .paths
                    .iter()
                    .zip(self.ratios(cell, metric, &peers))
                    .map(|(reference, ratio)| (reference.name.to_owned(), json!(ratio)))
                    .collect();
                let values = cell.values(metric);
                results.push(json!({
                    "test": test.name,
                    "path": path.name,
                    "metric": what.name,
                    "unit": what.unit,
                    "rounds": values,
                    "median": median(values.clone()),
                    "ratio_to": ratios,
                    "cpu": cpu,
                    "cpu_unit": test.work.cpu_per().0,
                }));
            }
        }
        let memory: Vec<Value> = self
            .memory()
            .map(|(path, role, rest, peak)| {
                json!({ "path": path, "process": role, "at_rest_kib": rest, "peak_kib": peak })
            })
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "rounds": self.plan.rounds,
            "seconds": self.plan.effort.seconds,
            "processors": processors(),
            "results": results,
            "idle": self.idle_json(),
            "delay": self.delay_json(),
            "memory": memory,
        })
    }

    fn idle_json(&self) -> Vec<Value> {
        let process = |(role, held): &(&str, [u64; 3])| {
            let [before, with, after] = held;
            json!({ "process": role, "before_kib": before, "with_kib": with, "after_kib": after })
        };
        let idles = self.idles.iter().map(|idle| {
            json!({
                "path": idle.path,
                "tunnels": idle.tunnels,
                "kib_per_tunnel": idle.per_tunnel(),
                "processes": idle.processes.iter().map(process).collect::<Vec<_>>(),
            })
        });
        idles.collect()
    }

    fn delay_json(&self) -> Vec<Value> {
        let delays = self.delays.iter().map(|delay| {
            let ms = |share| quantile(&delay.latencies, share).as_secs_f64() * 1e3;
            json!({
                "round_trip_ms": delay.round_trip,
                "way": delay.way,
                "openings": delay.latencies.len(),
                "p50_ms": ms(50),
                "p99_ms": ms(99),
                "p50_round_trips": trips(delay, 50),
                "p99_round_trips": trips(delay, 99),
            })
        });
        delays.collect()
    }

    /// Path, role, KiB at rest and at the peak of the whole run.
    fn memory(&self) -> impl Iterator<Item = (&str, &str, Option<u64>, Option<u64>)> {
        self.paths.iter().flat_map(|path| {
            path.processes.iter().map(|process| {
                let rest = process.at_rest.map(|memory| memory.now);
                let peak = usage::memory(process.pid()).map(|memory| memory.peak);
                (path.name, process.role, rest, peak)
            })
        })
    }
}

/// In round trips of the line, where it has any.
fn trips(delay: &Delay, share: usize) -> Option<f64> {
    let line = delay.round_trip as f64 / 1e3;
    (line > 0.0).then(|| quantile(&delay.latencies, share).as_secs_f64() / line)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

fn range(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, 0.0), |(low, high), &value| {
            (value.min(low), value.max(high))
        })
}

fn dash() -> String {
    "-".to_owned()
}

/// With as many places as mean something.
fn figure(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else {
        whole(value)
    }
}

/// Without places, in groups of three digits.
fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn mib(kib: Option<u64>) -> String {
    kib.map_or_else(dash, |kib| format!("{:.1}", kib as f64 / 1024.0))
}
