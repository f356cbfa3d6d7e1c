//! What a tunnel costs: throughput, set-up, echo and memory through a real relay process and a real gateway process, in one run with
//! plain TCP forwarders and direct loopback, so that ratios mean something on any machine.
//!
//! Not a micro-benchmark: codec, head and mask are private to the library and show here only as part of the whole. Not a
//! comparison with other programs either: it needs none installed.
//!
//! Beside that: the memory of idle tunnels (`idle`), and set-up through a line that delays (`delay`).
//!
//! Every round measures every test over every path, so that what the machine does meanwhile falls on all of them alike. All
//! bytes are checked on arrival. Everything stays on 127.0.0.1, and every process started here ends with this one.
//!
//! With `soak` as its first word it is the other half of the question: what is left after very many tunnels, and after long ones.
//! With `gate` it measures no time at all, and can fail: counts, held against those that were blessed.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for readers, from counts far under 2^52"
)]

mod delay;
#[path = "../../tests/integration/support/delay.rs"]
mod delay_line;
mod forwarder;
mod gate;
mod idle;
mod measure;
mod path;
#[path = "../../src/bench/pattern.rs"]
mod pattern;
mod plan;
mod process;
mod progress;
mod report;
mod soak;
mod usage;
#[path = "../../src/bench/usage.rs"]
mod used;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use socket2::SockRef;

use crate::path::Path;
use crate::pattern::Pattern;
use crate::plan::{Asked, HELP, Plan, TESTS};
use crate::progress::Progress;
use crate::report::{Cell, Report};

/// Why there is no figure.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
/// A figure, or why there is none.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// How long anything local may take before the run fails: far over what it needs on a loaded machine, under valgrind too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The paths' names, those to compare with first.
const PATHS: [&str; 5] = ["direct", "forwarder", "2 forwarders", "ws", "wss"];
const REFERENCES: usize = 3;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "tunnel bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments
        .next_if(|first| first == forwarder::ROLE)
        .is_some()
    {
        return forwarder::run(&arguments.next().unwrap_or_default());
    }
    if arguments.next_if(|first| first == soak::WORD).is_some() {
        return soak::run(arguments);
    }
    if arguments.next_if(|first| first == gate::WORD).is_some() {
        return gate::run(arguments);
    }
    let output = match Plan::read(arguments)? {
        Asked::Help => HELP.to_owned(),
        Asked::List => TESTS
            .iter()
            .flat_map(|test| PATHS.map(|path| plan::name(test.name, path)))
            .chain(PATHS[1..].iter().map(|path| plan::name(idle::NAME, path)))
            .chain(delay::ROUND_TRIPS.map(delay::name))
            .map(|name| name + "\n")
            .collect(),
        Asked::Measure(plan) => measure(&plan)?,
    };
    Ok(io::stdout().write_all(output.as_bytes())?)
}

fn measure(plan: &Plan) -> Outcome<String> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stopped))?;
    }
    let descriptors = idle::raise_descriptor_limit();
    let pattern = Pattern::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // It bounds accept, too.
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
    let target = listener.local_addr()?;
    let mut cells = chosen(plan);
    let over: Vec<&str> = PATHS[1..]
        .iter()
        .copied()
        .filter(|path| plan.wants(&plan::name(idle::NAME, path)))
        .collect();
    let distances: Vec<u64> = delay::ROUND_TRIPS
        .into_iter()
        .filter(|&round_trip| plan.wants(&delay::name(round_trip)))
        .collect();
    if cells.is_empty() && over.is_empty() && distances.is_empty() {
        return Err("no test has such a name; --list shows them".into());
    }
    let cost = |cell: &Cell| plan.effort.cost(TESTS[cell.test].work);
    let in_rounds: f64 = cells.iter().map(cost).sum::<f64>() * plan.rounds as f64;
    let afar: f64 = distances
        .iter()
        .map(|&round_trip| delay::cost(round_trip, plan.effort.turns))
        .sum();
    let mut progress = Progress::new(in_rounds + over.len() as f64 * idle::COST + afar);

    // First, while the machine is as it was: memory is asked of processes that have done nothing else.
    let mut idles = Vec::new();
    for name in over {
        progress.part(&plan::name(idle::NAME, name));
        let start = |target| path(name, target);
        idles.push(idle::measure(
            start,
            &listener,
            plan.effort.idle,
            descriptors,
        )?);
        progress.spent(idle::COST);
        end_if(&stopped)?;
    }

    let paths = if cells.is_empty() {
        Vec::new()
    } else {
        let paths = PATHS.into_iter().map(|name| path(name, target));
        paths.collect::<Outcome<Vec<_>>>()?
    };
    for round in 0..plan.rounds {
        if cells.is_empty() {
            break;
        }
        progress.part(&format!("round {} of {}", round + 1, plan.rounds));
        // There and back by turns, so that a path does not always follow the same one.
        let count = cells.len();
        for index in 0..count {
            let place = if round % 2 == 0 {
                index
            } else {
                count - 1 - index
            };
            let cell = &mut cells[place];
            let (test, path) = (&TESTS[cell.test], &paths[cell.path]);
            let sample = measure::run(test.work, path, &listener, &pattern, &plan.effort)
                .map_err(|error| format!("{}: {error}", plan::name(test.name, path.name)))?;
            cell.samples.push(sample);
            progress.spent(plan.effort.cost(test.work));
            end_if(&stopped)?;
        }
    }

    let delays = if distances.is_empty() {
        Vec::new()
    } else {
        delay::measure(&distances, plan.effort.turns, &mut progress)?
    };
    drop(progress);
    let report = Report {
        plan,
        paths: &paths,
        cells: &cells,
        references: REFERENCES,
        idles: &idles,
        delays: &delays,
    };
    let output = if plan.json {
        format!("{}\n", report.json())
    } else {
        report.table()
    };
    for path in paths {
        path.stop()?;
    }
    Ok(output)
}

/// One of [`PATHS`], with its processes started.
fn path(name: &str, target: SocketAddr) -> Outcome<Path> {
    let [direct, one, two, ws, wss] = PATHS;
    match name {
        name if name == one => Path::forwarders(one, &["forwarder"], target),
        name if name == two => Path::forwarders(two, &["second", "first"], target),
        name if name == ws => Path::tunnel(ws, false, target),
        name if name == wss => Path::tunnel(wss, true, target),
        _ => Ok(Path::direct(direct, target)),
    }
}

fn end_if(stopped: &AtomicBool) -> Outcome<()> {
    if stopped.load(Ordering::Relaxed) {
        return Err("stopped by a signal".into());
    }
    Ok(())
}

/// The cells that the filters choose, and those to compare them with.
fn chosen(plan: &Plan) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (test, row) in TESTS.iter().enumerate() {
        let wanted = PATHS.map(|path| plan.wants(&plan::name(row.name, path)));
        if wanted.contains(&true) {
            cells.extend(
                (0..PATHS.len())
                    .filter(|&path| wanted[path] || path < REFERENCES)
                    .map(|path| Cell {
                        test,
                        path,
                        samples: Vec::new(),
                    }),
            );
        }
    }
    cells
}
