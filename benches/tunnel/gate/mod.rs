//! The performance gate: counts instructions, system calls and allocations of the real relay and
//! the real gateway, and compares the counts with a baseline in the repository. It measures no
//! time.
//!
//! Times depend on the state of the machine; counts do not. Each count is the difference of two
//! runs that differ by a known amount of one load, divided by this amount, so the costs of
//! starting, stopping and warming up cancel out. The flood loads are an exception: the amount per
//! system call also depends on the scheduler. Their tolerance is wide, but still detects buffers
//! that no longer grow.
//!
//! The gate does not see work in the kernel, cache misses, or waiting; the benchmark measures
//! throughput. Valgrind emulates an older processor, so ring and the C library use other
//! instructions than on a new one (see `tool`).

mod baseline;
mod counting;
mod load;
mod plan;
mod tool;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};

use self::baseline::{Baseline, Row, Verdict, shown};
use self::counting::{Counting, Figure, TOOL_OUTPUT, sort_key};
use self::plan::{HELP, Invocation, Plan};
use crate::Outcome;
use crate::path::BINARY;

/// The name of this subcommand.
pub(crate) const SUBCOMMAND: &str = "gate";

/// The baseline file in the repository.
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/tunnel/gate/baseline");
/// The command that makes the current counts the baseline.
const BLESS: &str = "cargo bench --bench tunnel -- gate --bless";
/// The maximum number of runs if a count is worse. Chance increases a count more often than it
/// decreases it, so the lowest count is used.
const TRIES: usize = 3;

/// Runs the subcommand with these arguments.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Outcome<()> {
    match Plan::read(arguments)? {
        Invocation::Help => Ok(io::stdout().write_all(HELP.as_bytes())?),
        Invocation::Check(plan) => check(&plan),
        Invocation::Bless(plan) => bless(&plan),
    }
}

fn check(plan: &Plan) -> Outcome<()> {
    let (compiler, baseline) = (compiler()?, read_baseline()?);
    let worse = |figure: &Figure| {
        baseline.judge(&figure.name, figure.lowest(), &compiler) == Verdict::Worse
    };
    let figures = Counting::new()?.all(plan, |rounds, figures| {
        let again = rounds < TRIES && figures.iter().any(worse);
        if again {
            note("some counts are worse than the baseline; counting again");
        }
        again
    })?;
    let (table, verdicts) = table(&figures, &baseline, &compiler);
    io::stdout().write_all(table.as_bytes())?;
    if verdicts.contains(&Verdict::OtherCompiler) {
        note(&format!(
            "instructions are not compared: the baseline is of {}, this is {compiler}; to compare them here, run: {BLESS}",
            baseline.compiler
        ));
    }
    if verdicts.contains(&Verdict::Better) {
        note(&format!(
            "some counts are better; to make them the baseline, run: {BLESS}"
        ));
    }
    let failing = verdicts.iter().filter(|verdict| verdict.fails()).count();
    if failing > 0 {
        return Err(format!(
            "{failing} of {} counts fail; {TOOL_OUTPUT} has the instructions by function (read them with callgrind_annotate) and \
             the system calls by name; if the change is intended, run: {BLESS}",
            figures.len()
        )
        .into());
    }
    Ok(())
}

fn bless(plan: &Plan) -> Outcome<()> {
    let figures = Counting::new()?.all(plan, |rounds, _| rounds < plan.rounds)?;
    let mut rows: Vec<Row> = figures.iter().map(Figure::blessed).collect();
    if plan.is_part() {
        // Counts that were not selected keep their values.
        let before = read_baseline()?.rows;
        rows.extend(before.into_iter().filter(|row| !plan.selects(&row.name)));
        rows.sort_by_key(|row| sort_key(&row.name));
    }
    let baseline = Baseline {
        compiler: compiler()?,
        rows,
    };
    fs::write(BASELINE, baseline.text())?;
    Ok(io::stdout().write_all(baseline.text().as_bytes())?)
}

fn read_baseline() -> Outcome<Baseline> {
    let text = fs::read_to_string(BASELINE).map_err(|error| format!("{BASELINE}: {error}"))?;
    Ok(Baseline::parse(&text)?)
}

/// The table, and the verdict on each count.
fn table(figures: &[Figure], baseline: &Baseline, compiler: &str) -> (String, Vec<Verdict>) {
    let mut text = format!(
        "{:<34}{:>12}{:>12}{:>9}{:>9}  {:<10}verdict\n",
        "name", "baseline", "now", "change", "allowed", "unit"
    );
    let mut verdicts = Vec::new();
    for figure in figures {
        let now = figure.lowest();
        let verdict = baseline.judge(&figure.name, now, compiler);
        let row = baseline.row(&figure.name);
        // A percentage of a value near zero is meaningless.
        let share = |part: f64, of: f64| {
            let percent = 100.0 * part / of;
            if percent.abs() < 1000.0 {
                format!("{percent:+.1} %")
            } else {
                "-".to_owned()
            }
        };
        let (then, change, allowed) = row.map_or_else(Default::default, |row| {
            (
                shown(row.value),
                share(now - row.value, row.value),
                share(row.tolerance, row.value),
            )
        });
        let _ = writeln!(
            text,
            "{:<34}{then:>12}{:>12}{change:>9}{allowed:>9}  {:<10}{}",
            figure.name,
            shown(now),
            figure.unit,
            verdict.word()
        );
        verdicts.push(verdict);
    }
    (text, verdicts)
}

/// The compiler named in the binary, and the processor architecture.
fn compiler() -> Outcome<String> {
    const MARK: &[u8] = b"rustc version ";
    let program = fs::read(BINARY)?;
    let at = program
        .windows(MARK.len())
        .position(|window| window == MARK);
    let at =
        at.ok_or_else(|| format!("{BINARY} does not name the rustc that built it"))? + MARK.len();
    let version: Vec<u8> = program[at..]
        .iter()
        .copied()
        .take_while(|byte| *byte >= b' ')
        .collect();
    Ok(format!(
        "rustc {}, {}",
        String::from_utf8_lossy(&version),
        std::env::consts::ARCH
    ))
}

/// Prints progress or a remark to standard error.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
