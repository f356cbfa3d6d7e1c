//! Creates the table or the JSON document from the samples: medians over the rounds, ratios within
//! each round.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::delay::{self, Delay};
use crate::idle::Idle;
use crate::measure::{Sample, quantile};
use crate::path::Path;
use crate::plan::{Metric, Plan, TESTS, Test};
use crate::usage;

/// The name of the load generator (with the target) in the processor times.
const LOAD: &str = "load";

/// The results of one test over one path, one sample per round.
pub(crate) struct Cell {
    /// The index of the test in [`TESTS`].
    pub(crate) test: usize,
    /// The index of the path in the list of paths.
    pub(crate) path: usize,
    /// The samples, in the order of the rounds.
    pub(crate) samples: Vec<Sample>,
}

/// Everything that was measured.
pub(crate) struct Report<'a> {
    /// The command line.
    pub(crate) plan: &'a Plan,
    /// The measured paths.
    pub(crate) paths: &'a [Path],
    /// The results.
    pub(crate) cells: &'a [Cell],
    /// The number of reference paths, which are the first ones.
    pub(crate) references: usize,
    /// The memory of idle tunnels.
    pub(crate) idles: &'a [Idle],
    /// The set-up times with latency.
    pub(crate) delays: &'a [Delay],
}

impl Cell {
    fn values(&self, metric: usize) -> Vec<f64> {
        self.samples.iter().map(|s| s.values[metric]).collect()
    }

    /// The median of the ratios of each round, so that a slow round has no effect.
    fn ratio(&self, to: &Self, metric: usize) -> Option<f64> {
        let (values, references) = (self.values(metric), to.values(metric));
        median(values.iter().zip(references).map(|(a, b)| a / b).collect())
    }

    /// The processor time per amount of work of each process. All rounds are added, because the
    /// kernel counts in ticks of 10 ms.
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
    /// The table.
    pub(crate) fn table(&self) -> String {
        let mut out = format!(
            "upstreamproxy {}, {} rounds, transfers of {} s, {} processors. Medians of the rounds; ratios within each round.\n\
             Higher is better for MiB/s and 1/s, lower for us and processor time. Compare only ratios of the same run.\n",
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
        // Only in the first block of a test.
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

    /// The table of idle tunnels.
    fn idle_block(&self, out: &mut String) {
        let Some(first) = self.idles.first() else {
            return;
        };
        let title = format!("idle x{}, KiB resident", first.tunnels);
        let _ = writeln!(
            out,
            "\n{title:<28}{:>12}   each process: before, with, after",
            "per tunnel"
        );
        for idle in self.idles {
            let each: Vec<String> = idle
                .processes
                .iter()
                .map(|(role, memory)| {
                    let [before, with, after] = memory.map(|kib| whole(kib as f64));
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

    /// The table of set-up times with latency.
    fn delay_block(&self, out: &mut String) {
        if self.delays.is_empty() {
            return;
        }
        let _ = writeln!(
            out,
            "\nCONNECT to first byte, wss  {:>9}{:>9}{:>14}{:>14}",
            "p50 ms", "p99 ms", "p50 / RTT", "p99 / RTT"
        );
        for delay in self.delays {
            let name = format!("{} {}", delay::name(delay.round_trip), delay.mode);
            let _ = write!(out, "  {name:<26}");
            for share in [50, 99] {
                let took = quantile(&delay.latencies, share).as_secs_f64() * 1e3;
                let _ = write!(out, "{took:>9.1}");
            }
            for share in [50, 99] {
                let in_round_trips = in_round_trips(delay, share)
                    .map_or_else(dash, |in_round_trips| format!("{in_round_trips:.2}"));
                let _ = write!(out, "{in_round_trips:>14}");
            }
            out.push('\n');
        }
    }

    /// The ratio to each reference path, in the order of the paths.
    fn ratios(&self, cell: &Cell, metric: usize, cells: &[&Cell]) -> Vec<Option<f64>> {
        (0..self.references)
            .map(|reference| {
                let to = cells.iter().find(|c| c.path == reference)?;
                cell.ratio(to, metric)
            })
            .collect()
    }

    /// The JSON document.
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
        let process = |(role, memory): &(&str, [u64; 3])| {
            let [before, with, after] = memory;
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
                "way": delay.mode,
                "openings": delay.latencies.len(),
                "p50_ms": ms(50),
                "p99_ms": ms(99),
                "p50_round_trips": in_round_trips(delay, 50),
                "p99_round_trips": in_round_trips(delay, 99),
            })
        });
        delays.collect()
    }

    /// Path, role, KiB at rest, and peak KiB of the whole run.
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

/// The percentile `share` in round-trip times; `None` without latency.
fn in_round_trips(delay: &Delay, share: usize) -> Option<f64> {
    let round_trip = delay.round_trip as f64 / 1e3;
    (round_trip > 0.0).then(|| quantile(&delay.latencies, share).as_secs_f64() / round_trip)
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

/// Formats with a sensible number of decimal places.
fn figure(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else {
        whole(value)
    }
}

/// Formats without decimal places, in groups of three digits.
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
