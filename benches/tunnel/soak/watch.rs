//! What relay and gateway hold, looked at again and again while something goes on.

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

/// How often it is looked, for the highest figures.
const GLANCE: Duration = Duration::from_millis(100);
/// How many of the things that went wrong are told.
const TOLD: u64 = 10;

/// One look at one process. What cannot be seen is 0: descriptors of a non-dumpable process are root's to see.
#[derive(Clone, Copy, Default)]
struct Look {
    kib: u64,
    threads: u64,
    descriptors: u64,
    cpu: f64,
}

impl Look {
    fn at(pid: u32) -> Self {
        let (threads, descriptors) = usage::held(pid).unwrap_or_default();
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
    /// At its begin, after a tenth of it, at its end, and the highest between.
    first: Look,
    early: Look,
    last: Look,
    highest: Look,
}

/// Looks at the processes, and counts what goes wrong.
pub(super) struct Watch {
    processes: Vec<(&'static str, u32)>,
    every: Duration,
    rows: Vec<Row>,
    seen: Seen,
}

/// What the loads tell while they go on.
#[derive(Default)]
pub(super) struct Seen {
    /// Tunnels that ended as they should.
    pub(super) tunnels: AtomicU64,
    wrong: AtomicU64,
    silent: bool,
}

impl Seen {
    /// Something did not go as it should.
    pub(super) fn wrong(&self, what: &str) {
        if self.wrong.fetch_add(1, Ordering::Relaxed) < TOLD && !self.silent {
            let _ = writeln!(io::stderr(), "wrong: {what}");
        }
    }

    /// The tunnel came to `outcome`.
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
            seen: Seen::default(),
        }
    }

    /// One that counts for nobody.
    pub(super) fn unseen() -> Seen {
        Seen {
            silent: true,
            ..Seen::default()
        }
    }

    pub(super) fn errors(&self) -> u64 {
        self.seen.wrong.load(Ordering::Relaxed)
    }

    fn looks(&self) -> Vec<Look> {
        self.processes.iter().map(|p| Look::at(p.1)).collect()
    }

    /// One look while nothing goes on.
    pub(super) fn rest(&mut self, part: &'static str) {
        for (&(role, _), look) in self.processes.iter().zip(self.looks()) {
            self.rows.push(Row {
                part,
                role,
                took: Duration::ZERO,
                first: look,
                early: look,
                last: look,
                highest: look,
            });
        }
    }

    /// Waits until no process holds more threads or descriptors than at rest.
    pub(super) fn settles(&self, deadline: Instant) -> bool {
        loop {
            let mut pairs = self.rows.iter().zip(self.looks());
            if pairs
                .all(|(r, l)| l.threads <= r.last.threads && l.descriptors <= r.last.descriptors)
            {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(GLANCE);
        }
    }

    /// Looks at the processes while `load` goes on, and returns what it says of itself.
    pub(super) fn during(
        &mut self,
        part: &'static str,
        load: impl FnOnce(&Seen) -> Outcome<Value> + Send,
    ) -> Outcome<(&'static str, Value)> {
        let first = self.looks();
        let (begun, over) = (Instant::now(), AtomicBool::new(false));
        let history = Mutex::new(Vec::<(Duration, Vec<Look>)>::new());
        let said = thread::scope(|scope| {
            scope.spawn(|| {
                let mut told = Instant::now();
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(GLANCE);
                    let looks = self.looks();
                    if told.elapsed() >= self.every {
                        told = Instant::now();
                        self.tell(part, begun.elapsed(), &looks);
                    }
                    history.lock().unwrap().push((begun.elapsed(), looks));
                }
            });
            let said = load(&self.seen);
            over.store(true, Ordering::Relaxed);
            said
        });
        let (took, last) = (begun.elapsed(), self.looks());
        let history = history.into_inner().unwrap();
        for (place, &(role, _)) in self.processes.iter().enumerate() {
            let looks = || history.iter().map(|(at, looks)| (*at, looks[place]));
            self.rows.push(Row {
                part,
                role,
                took,
                first: first[place],
                early: looks()
                    .find(|(at, _)| *at >= took / 10)
                    .map_or(first[place], |(_, look)| look),
                last: last[place],
                highest: looks().fold(last[place], |highest, (_, look)| highest.highest(look)),
            });
        }
        Ok((part, said?))
    }

    /// A line of progress.
    fn tell(&self, part: &str, at: Duration, looks: &[Look]) {
        let mut line = format!(
            "{part} {:.0} s, {} tunnels, {} wrong",
            at.as_secs_f64(),
            self.seen.tunnels.load(Ordering::Relaxed),
            self.errors()
        );
        for (&(role, _), look) in self.processes.iter().zip(looks) {
            let _ = write!(
                line,
                "; {role} {} MiB, {} threads, {} fds",
                mib(look.kib),
                look.threads,
                look.descriptors
            );
        }
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// For readers.
    pub(super) fn table(&self, said: &[(&str, Value)]) -> String {
        let mut out = format!(
            "upstreamproxy {}, {} processors. Resident MiB at the begin of each part, after a tenth of it, at its end, and the\n\
             highest; threads and descriptors at its end and the highest; processor seconds in it.\n\n{:<20}{:<9}{:>7}{:>8}{:>8}{:>8}{:>8}{:>15}{:>15}{:>8}\n",
            env!("CARGO_PKG_VERSION"),
            thread::available_parallelism().map_or(0, usize::from),
            "part",
            "process",
            "s",
            "begin",
            "10 %",
            "end",
            "most",
            "threads",
            "descriptors",
            "cpu s",
        );
        for row in &self.rows {
            let pair = |last: u64, most: u64| format!("{last} ({most})");
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
        for (part, said) in said {
            let _ = writeln!(out, "{part}: {said}");
        }
        let _ = writeln!(
            out,
            "{} tunnels ended as they should, {} did not",
            self.seen.tunnels.load(Ordering::Relaxed),
            self.errors()
        );
        out
    }

    /// For programs.
    pub(super) fn json(&self, said: &[(&str, Value)]) -> String {
        let look = |l: &Look| json!({"rss_kib": l.kib, "threads": l.threads, "descriptors": l.descriptors});
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "part": row.part, "process": row.role, "seconds": row.took.as_secs_f64(),
                    "begin": look(&row.first), "tenth": look(&row.early), "end": look(&row.last),
                    "most": look(&row.highest), "cpu_seconds": row.last.cpu - row.first.cpu,
                })
            })
            .collect();
        let said: serde_json::Map<String, Value> = said
            .iter()
            .map(|(part, said)| ((*part).to_owned(), said.clone()))
            .collect();
        let tunnels = self.seen.tunnels.load(Ordering::Relaxed);
        let all =
            json!({"parts": rows, "loads": said, "tunnels": tunnels, "errors": self.errors()});
        format!("{all}\n")
    }
}

fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}
