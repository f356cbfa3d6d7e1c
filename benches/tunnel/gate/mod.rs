//! A gate that keeps time out of it: instructions, system calls and allocations of the real relay and the real gateway, held
//! against a baseline that is checked in.
//!
//! How long something takes depends on the machine's mood; how often it is done does not. Each count is the difference of two runs
//! that differ by a known amount of one load, so that starting, stopping and what is paid once fall out, and is given for each
//! MiB or tunnel of it. Floods are the exception: how much one system call moves is the scheduler's doing too, and their
//! tolerance is wide, but buffers that no longer grow show all the same.
//!
//! What it does not see: what the kernel does, how well caches are used, and who waits for whom. Throughput is for the bench.
//! Instructions are those of another path through ring and the C library than a new processor would take (see `tool`).

mod baseline;
mod counting;
mod load;
mod plan;
mod tool;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};

use self::baseline::{Baseline, Row, Verdict, shown};
use self::counting::{Counting, FOUND, Figure, place};
use self::plan::{Asked, HELP, Plan};
use crate::Outcome;
use crate::path::OURS;

/// The first word that asks for all this.
pub(crate) const WORD: &str = "gate";

/// The baseline, where it is checked in.
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/tunnel/gate/baseline");
/// What to do where a figure is as it must be.
const BLESS: &str = "cargo bench --bench tunnel -- gate --bless";
/// How often something is counted that seems worse: chance adds to a count more often than it takes away, and the lowest is
/// what the program needs.
const TRIES: usize = 3;

/// Runs as the arguments say.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Outcome<()> {
    match Plan::read(arguments)? {
        Asked::Help => Ok(io::stdout().write_all(HELP.as_bytes())?),
        Asked::Check(plan) => check(&plan),
        Asked::Bless(plan) => bless(&plan),
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
            note("some are worse than they were: counted again");
        }
        again
    })?;
    let (table, verdicts) = table(&figures, &baseline, &compiler);
    io::stdout().write_all(table.as_bytes())?;
    if verdicts.contains(&Verdict::OtherCompiler) {
        note(&format!(
            "instructions are not held: the baseline is of {}, this is {compiler}; to hold them here: {BLESS}",
            baseline.compiler
        ));
    }
    if verdicts.contains(&Verdict::Better) {
        note(&format!("some are better; to keep them so: {BLESS}"));
    }
    let failing = verdicts.iter().filter(|verdict| verdict.fails()).count();
    if failing > 0 {
        return Err(format!(
            "{failing} of {} figures fail; {FOUND} tells the instructions by function (callgrind_annotate reads them) and the \
             system calls by name; if it must be so: {BLESS}",
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
        // Of the others the old ones stay.
        let before = read_baseline()?.rows;
        rows.extend(before.into_iter().filter(|row| !plan.wants(&row.name)));
        rows.sort_by_key(|row| place(&row.name));
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

/// For readers, and what is to be said of each.
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
        // Of next to nothing no share means anything.
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

/// What built the program, as it says itself, and for which processor.
fn compiler() -> Outcome<String> {
    const MARK: &[u8] = b"rustc version ";
    let program = fs::read(OURS)?;
    let at = program
        .windows(MARK.len())
        .position(|window| window == MARK);
    let at = at.ok_or_else(|| format!("{OURS} does not say which rustc made it"))? + MARK.len();
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

/// Progress and remarks, beside the result.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
