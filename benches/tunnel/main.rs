//! Measures tunnels through a real relay process and a real gateway process: throughput, set-up,
//! echo, and memory. The same run measures plain TCP forwarders and direct loopback, so the ratios
//! are meaningful on any machine.
//!
//! This is not a micro-benchmark (see `benches/micro.rs`) and not a comparison with other programs:
//! it needs no other program.
//!
//! It also measures the memory of idle tunnels (`idle`) and the set-up over a connection with
//! latency (`delay`).
//!
//! Each round measures every test over every path, so other load on the machine affects all of them
//! equally. All bytes are checked on arrival. All connections are on 127.0.0.1, and all child
//! processes end with this process.
//!
//! Two subcommands measure something else. `soak` shows which resources remain in use after very
//! many tunnels and after long ones. `gate` measures no time: it counts instructions, allocations
//! and system calls, compares the counts with a baseline, and fails if one is too high.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for readers, from counts far under 2^52"
)]

mod delay;
#[path = "../../tests/integration/support/delay.rs"]
mod delay_forwarder;
mod forwarder;
mod gate;
mod idle;
mod measure;
mod path;
#[path = "../../src/bench/pattern.rs"]
mod pattern;
mod plan;
#[path = "../../src/bench/usage.rs"]
mod proc_usage;
mod process;
mod progress;
mod report;
mod soak;
mod usage;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use socket2::SockRef;

use crate::path::Path;
use crate::pattern::TestPattern;
use crate::plan::{HELP, Invocation, Plan, TESTS};
use crate::progress::Progress;
use crate::report::{Cell, Report};

/// The reason why there is no result.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
/// A result, or the reason why there is none.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// The timeout for each local operation: far more than it needs on a loaded machine or under
/// valgrind.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// The names of the paths; the reference paths come first.
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
    if arguments
        .next_if(|first| first == soak::SUBCOMMAND)
        .is_some()
    {
        return soak::run(arguments);
    }
    if arguments
        .next_if(|first| first == gate::SUBCOMMAND)
        .is_some()
    {
        return gate::run(arguments);
    }
    let output = match Plan::read(arguments)? {
        Invocation::Help => HELP.to_owned(),
        Invocation::List => TESTS
            .iter()
            .flat_map(|test| PATHS.map(|path| plan::name(test.name, path)))
            .chain(PATHS[1..].iter().map(|path| plan::name(idle::NAME, path)))
            .chain(delay::ROUND_TRIPS.map(delay::name))
            .map(|name| name + "\n")
            .collect(),
        Invocation::Measure(plan) => measure(&plan)?,
    };
    Ok(io::stdout().write_all(output.as_bytes())?)
}

fn measure(plan: &Plan) -> Outcome<String> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stopped))?;
    }
    let descriptors = idle::raise_descriptor_limit();
    let pattern = TestPattern::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // The timeout applies to accept too.
    SockRef::from(&listener).set_read_timeout(Some(TIMEOUT))?;
    let target = listener.local_addr()?;
    let mut cells = selected(plan);
    let idle_paths: Vec<&str> = PATHS[1..]
        .iter()
        .copied()
        .filter(|path| plan.selects(&plan::name(idle::NAME, path)))
        .collect();
    let distances: Vec<u64> = delay::ROUND_TRIPS
        .into_iter()
        .filter(|&round_trip| plan.selects(&delay::name(round_trip)))
        .collect();
    if cells.is_empty() && idle_paths.is_empty() && distances.is_empty() {
        return Err("no test name contains one of the filters; see --list".into());
    }
    let cost = |cell: &Cell| plan.effort.cost(TESTS[cell.test].work);
    let in_rounds: f64 = cells.iter().map(cost).sum::<f64>() * plan.rounds as f64;
    let for_delays: f64 = distances
        .iter()
        .map(|&round_trip| delay::cost(round_trip, plan.effort.turns))
        .sum();
    let mut progress = Progress::new(in_rounds + idle_paths.len() as f64 * idle::COST + for_delays);

    // Idle memory first, in new processes that have carried no other load.
    let mut idles = Vec::new();
    for name in idle_paths {
        progress.part(&plan::name(idle::NAME, name));
        let start = |target| path(name, target);
        idles.push(idle::measure(
            start,
            &listener,
            plan.effort.idle,
            descriptors,
        )?);
        progress.spent(idle::COST);
        check_not(&stopped)?;
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
        // Forwards and backwards in alternate rounds, so that a path does not always follow the
        // same one.
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
            check_not(&stopped)?;
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

/// Starts the processes of one of [`PATHS`].
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

fn check_not(stopped: &AtomicBool) -> Outcome<()> {
    if stopped.load(Ordering::Relaxed) {
        return Err("stopped by a signal".into());
    }
    Ok(())
}

/// The cells that the filters select, and the reference cells for them.
fn selected(plan: &Plan) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (test, row) in TESTS.iter().enumerate() {
        let is_selected = PATHS.map(|path| plan.selects(&plan::name(row.name, path)));
        if is_selected.contains(&true) {
            cells.extend(
                (0..PATHS.len())
                    .filter(|&path| is_selected[path] || path < REFERENCES)
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
