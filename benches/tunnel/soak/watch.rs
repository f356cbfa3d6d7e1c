//! Reads the resources of relay and gateway repeatedly while a load runs.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Outcome;
use crate::process::Process;
use crate::usage;

/// The interval between readings, for the maximum values.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The maximum number of errors that are printed.
const MAX_PRINTED: u64 = 10;

/// The resources of one process at one moment. A value that cannot be read is 0: only root can read
/// the descriptors of a non-dumpable process.
#[derive(Clone, Copy, Default)]
struct Reading {
    kib: u64,
    threads: u64,
    descriptors: u64,
    cpu: f64,
}

impl Reading {
    fn at(pid: u32) -> Self {
        let (threads, descriptors) = usage::threads_and_descriptors(pid).unwrap_or_default();
        Self {
            kib: usage::memory(pid).map_or(0, |memory| memory.now),
            threads,
            descriptors,
            cpu: usage::cpu_seconds(pid).unwrap_or_default(),
        }
    }

    fn highest(self, other: Self) -> Self {
        Self {
            kib: self.kib.max(other.kib),
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
            cpu: self.cpu.max(other.cpu),
        }
    }
}

/// One process over one part of the run.
struct Row {
    part: &'static str,
    role: &'static str,
    took: Duration,
    /// At the start, after 10 % of the time, at the end, and the maximum.
    first: Reading,
    early: Reading,
    last: Reading,
    highest: Reading,
}

/// Reads the resources of the processes, and counts errors.
pub(super) struct Watch {
    processes: Vec<(&'static str, u32)>,
    every: Duration,
    rows: Vec<Row>,
    tally: Tally,
}

/// The results that the loads count while they run.
#[derive(Default)]
pub(super) struct Tally {
    /// The number of tunnels that ended as expected.
    pub(super) tunnels: AtomicU64,
    wrong: AtomicU64,
    silent: bool,
}

impl Tally {
    /// Counts an error.
    pub(super) fn wrong(&self, what: &str) {
        if self.wrong.fetch_add(1, Ordering::Relaxed) < MAX_PRINTED && !self.silent {
            let _ = writeln!(io::stderr(), "error: {what}");
        }
    }

    /// Counts the outcome of a tunnel.
    pub(super) fn note(&self, kind: &str, outcome: Outcome<()>) {
        match outcome {
            Ok(()) => {
                self.tunnels.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.wrong(&format!("{kind}: {error}")),
        }
    }
}

impl Watch {
    pub(super) fn new(processes: &[Process], every: Duration) -> Self {
        Self {
            processes: processes.iter().map(|p| (p.role, p.pid())).collect(),
            every,
            rows: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// A tally that is not part of the result.
    pub(super) fn uncounted() -> Tally {
        Tally {
            silent: true,
            ..Tally::default()
        }
    }

    pub(super) fn errors(&self) -> u64 {
        self.tally.wrong.load(Ordering::Relaxed)
    }

    fn readings(&self) -> Vec<Reading> {
        self.processes.iter().map(|p| Reading::at(p.1)).collect()
    }

    /// Reads the resources once, while no load runs.
    pub(super) fn rest(&mut self, part: &'static str) {
        for (&(role, _), reading) in self.processes.iter().zip(self.readings()) {
            self.rows.push(Row {
                part,
                role,
                took: Duration::ZERO,
                first: reading,
                early: reading,
                last: reading,
                highest: reading,
            });
        }
    }

    /// Waits until no process has more threads or descriptors than at rest. Returns whether this
    /// happened.
    pub(super) fn settles(&self, deadline: Instant) -> bool {
        loop {
            let mut pairs = self.rows.iter().zip(self.readings());
            if pairs
                .all(|(r, l)| l.threads <= r.last.threads && l.descriptors <= r.last.descriptors)
            {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Reads the resources while `load` runs. Returns the result of `load`.
    pub(super) fn during(
        &mut self,
        part: &'static str,
        load: impl FnOnce(&Tally) -> Outcome<Value> + Send,
    ) -> Outcome<(&'static str, Value)> {
        let first = self.readings();
        let (begun, over) = (Instant::now(), AtomicBool::new(false));
        let history = Mutex::new(Vec::<(Duration, Vec<Reading>)>::new());
        let result = thread::scope(|scope| {
            scope.spawn(|| {
                let mut printed = Instant::now();
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(POLL_INTERVAL);
                    let readings = self.readings();
                    if printed.elapsed() >= self.every {
                        printed = Instant::now();
                        self.print_progress(part, begun.elapsed(), &readings);
                    }
                    history.lock().unwrap().push((begun.elapsed(), readings));
                }
            });
            let result = load(&self.tally);
            over.store(true, Ordering::Relaxed);
            result
        });
        let (took, last) = (begun.elapsed(), self.readings());
        let history = history.into_inner().unwrap();
        for (place, &(role, _)) in self.processes.iter().enumerate() {
            let readings = || history.iter().map(|(at, readings)| (*at, readings[place]));
            self.rows.push(Row {
                part,
                role,
                took,
                first: first[place],
                early: readings()
                    .find(|(at, _)| *at >= took / 10)
                    .map_or(first[place], |(_, reading)| reading),
                last: last[place],
                highest: readings().fold(last[place], |highest, (_, reading)| {
                    highest.highest(reading)
                }),
            });
        }
        Ok((part, result?))
    }

    /// Prints a progress line.
    fn print_progress(&self, part: &str, at: Duration, readings: &[Reading]) {
        let mut line = format!(
            "{part} {:.0} s, {} tunnels, {} errors",
            at.as_secs_f64(),
            self.tally.tunnels.load(Ordering::Relaxed),
            self.errors()
        );
        for (&(role, _), reading) in self.processes.iter().zip(readings) {
            let _ = write!(
                line,
                "; {role} {} MiB, {} threads, {} fds",
                mib(reading.kib),
                reading.threads,
                reading.descriptors
            );
        }
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// The table.
    pub(super) fn table(&self, results: &[(&str, Value)]) -> String {
        let mut out = format!(
            "upstreamproxy {}, {} processors. For each part: resident MiB at the start, after 10 % of the time, at the end, and the\n\
             maximum; threads and descriptors at the end (maximum); processor seconds.\n\n{:<20}{:<9}{:>7}{:>8}{:>8}{:>8}{:>8}{:>15}{:>15}{:>8}\n",
            env!("CARGO_PKG_VERSION"),
            thread::available_parallelism().map_or(0, usize::from),
            "part",
            "process",
            "s",
            "start",
            "10 %",
            "end",
            "max",
            "threads",
            "descriptors",
            "cpu s",
        );
        for row in &self.rows {
            let pair = |last: u64, max: u64| format!("{last} ({max})");
            let _ = writeln!(
                out,
                "{:<20}{:<9}{:>7.0}{:>8}{:>8}{:>8}{:>8}{:>15}{:>15}{:>8.1}",
                row.part,
                row.role,
                row.took.as_secs_f64(),
                mib(row.first.kib),
                mib(row.early.kib),
                mib(row.last.kib),
                mib(row.highest.kib),
                pair(row.last.threads, row.highest.threads),
                pair(row.last.descriptors, row.highest.descriptors),
                row.last.cpu - row.first.cpu,
            );
        }
        out.push('\n');
        for (part, result) in results {
            let _ = writeln!(out, "{part}: {result}");
        }
        let _ = writeln!(
            out,
            "{} tunnels ended as expected, {} errors",
            self.tally.tunnels.load(Ordering::Relaxed),
            self.errors()
        );
        out
    }

    /// The JSON document.
    pub(super) fn json(&self, results: &[(&str, Value)]) -> String {
        let reading = |l: &Reading| json!({"rss_kib": l.kib, "threads": l.threads, "descriptors": l.descriptors});
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "part": row.part, "process": row.role, "seconds": row.took.as_secs_f64(),
                    "begin": reading(&row.first), "tenth": reading(&row.early), "end": reading(&row.last),
                    "most": reading(&row.highest), "cpu_seconds": row.last.cpu - row.first.cpu,
                })
            })
            .collect();
        let results: serde_json::Map<String, Value> = results
            .iter()
            .map(|(part, result)| ((*part).to_owned(), result.clone()))
            .collect();
        let tunnels = self.tally.tunnels.load(Ordering::Relaxed);
        let all =
            json!({"parts": rows, "loads": results, "tunnels": tunnels, "errors": self.errors()});
        format!("{all}\n")
    }
}

fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}
