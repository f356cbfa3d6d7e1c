//! `bench`: measure the path through the upstream, show the progress, and print a table with a
//! verdict or one JSON document. With `--origin` it serves as the target of a `bench` on another
//! machine.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::bench::{BenchPlan, BenchProgress, Conclusion, Row, benchmark, start_origin};
use crate::sys::log_filter::one_line;
use serde_json::{Value, json};

use super::exit_status::ExitStatus;
use super::output::{eprint, eprint_line, fail, json_line, print};
use super::program_options::Options;
use super::setup::{Interrupted, probe};
use super::signals::{Signal, Signals};

/// The results so far.
#[derive(Default)]
struct Results {
    upstream: String,
    target: String,
    rows: Vec<Row>,
}

/// Measures and prints the results. The status is 0 if there is a verdict, 1 if the path could not
/// be measured, and 128+n if signal n arrived first.
pub(crate) fn run(options: Options) -> ExitStatus {
    let (plan, json) = (options.plan, options.json);
    // Shared with a thread that a signal may abandon.
    let results = Arc::new(Mutex::new(Results::default()));
    let shared = Arc::clone(&results);
    let measured = probe(options, move |config, options| {
        let progress = Progress {
            is_terminal: io::stderr().is_terminal(),
        };
        let conclusion = benchmark(config, options, &plan, &mut |event| {
            let mut results = shared.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                BenchProgress::Between { upstream, target } => {
                    (results.upstream, results.target) = (upstream, target);
                }
                BenchProgress::Begins { what, done, left } => progress.show(&what, done, left),
                BenchProgress::Row(row) => results.rows.push(row),
            }
        });
        progress.clear();
        conclusion
    });
    let (conclusion, signal) = match measured {
        Ok(conclusion) => (conclusion, None),
        Err(Interrupted::Signal(signal)) => (None, Some(signal)),
        Err(failed) => return failed.status(),
    };
    let results = results.lock().unwrap_or_else(PoisonError::into_inner);
    let text = if json {
        document(&results, plan, conclusion.as_ref(), signal)
    } else {
        table(&results, plan, conclusion.as_ref(), signal)
    };
    print(text.as_bytes());
    match (conclusion, signal) {
        (_, Some(signal)) => ExitStatus::of_signal(signal),
        (Some(_), None) => ExitStatus::SUCCESS,
        (None, None) => ExitStatus::FAILED,
    }
}

/// Serves as the target of another `bench` until a signal requests a stop.
pub(crate) fn serve_origin(listen: SocketAddr) -> ExitStatus {
    let signals = Signals::stop_requests(false);
    let origin = match start_origin(listen) {
        Ok(origin) => origin,
        Err(error) => {
            let error =
                format!("cannot listen on {listen}: {error}; choose another address or port");
            return fail(&error, ExitStatus::FAILED);
        }
    };
    let ready = json!({ "origin": origin.local_addr().to_string(), "pid": std::process::id() });
    print(json_line(&ready).as_bytes());
    while let Ok(signal) = signals.receiver().recv() {
        if signal.is_fatal() {
            break;
        }
    }
    ExitStatus::SUCCESS
}

/// The progress: on a terminal one line that is overwritten, otherwise one line per measurement.
struct Progress {
    is_terminal: bool,
}

/// Returns to the beginning of the line and clears it.
const CLEAR_LINE: &str = "\r\x1b[K";

impl Progress {
    fn show(&self, what: &str, done: f64, left: Duration) {
        let line = format!(
            "{:3.0} %, about {} s left: {what}",
            100.0 * done,
            left.as_secs()
        );
        if self.is_terminal {
            eprint(&format!("{CLEAR_LINE}{line}"));
        } else {
            eprint_line(&line);
        }
    }

    fn clear(&self) {
        if self.is_terminal {
            eprint(CLEAR_LINE);
        }
    }
}

/// The results as a table for people.
fn table(
    results: &Results,
    plan: BenchPlan,
    conclusion: Option<&Conclusion>,
    signal: Option<Signal>,
) -> String {
    let mut out = String::new();
    if !results.upstream.is_empty() {
        let _ = writeln!(
            out,
            "upstreamproxy {}, {} to {}, {} s per measurement\n",
            env!("CARGO_PKG_VERSION"),
            results.upstream,
            results.target,
            plan.time.as_secs_f64()
        );
    }
    for row in &results.rows {
        let found = match &row.found {
            Ok(figures) => figures.iter().fold(String::new(), |mut text, figure| {
                let value = rounded(figure.value);
                let name = match figure.name {
                    "p50" | "p99" | "least" => format!("{} ", figure.name),
                    _ => String::new(),
                };
                let cell = format!("{name}{value} {}", figure.unit);
                let _ = write!(text, "{cell:<18}");
                text
            }),
            Err(problem) => format!("not measured, {}; {}", problem.what, problem.remedy),
        };
        let _ = writeln!(
            out,
            "{:<20}{:<28}{}",
            row.what,
            row.path,
            one_line(&format_args!("{}", found.trim_end()))
        );
    }
    match (conclusion, signal) {
        (Some(conclusion), _) => {
            let _ = writeln!(
                out,
                "\nlimited by: {}\n{}\nto do: {}",
                conclusion.limit.names().1,
                conclusion.sentence,
                conclusion.remedy
            );
        }
        (None, Some(signal)) => {
            let _ = writeln!(out, "\nstopped by signal {} before the end", signal.number);
        }
        (None, None) => {}
    }
    out
}

/// `value` with its significant decimal places.
fn rounded(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// The results as JSON for programs; `manual/performance.md` documents the keys.
fn document(
    results: &Results,
    plan: BenchPlan,
    conclusion: Option<&Conclusion>,
    signal: Option<Signal>,
) -> String {
    let rows: Vec<Value> = results.rows.iter().map(object).collect();
    let verdict = conclusion.map(|conclusion| {
        json!({
            "limit": conclusion.limit.names().0,
            "sentence": conclusion.sentence,
            "remedy": conclusion.remedy,
        })
    });
    let document = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "upstream": results.upstream,
        "target": results.target,
        "processors": std::thread::available_parallelism().map_or(1, usize::from),
        "seconds": plan.time.as_secs_f64(),
        "rows": rows,
        "verdict": verdict,
        "signal": signal.map(|signal| signal.number),
    });
    json_line(&document)
}

fn object(row: &Row) -> Value {
    let mut object = json!({ "what": row.what, "path": row.path });
    match &row.found {
        Ok(figures) => {
            for figure in figures {
                object[figure.name] = json!({ "value": figure.value, "unit": figure.unit });
            }
        }
        Err(problem) => {
            object["not_measured"] = json!({ "why": problem.what, "remedy": problem.remedy });
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_significant_decimal_places() {
        for (value, text) in [(1234.5, "1234"), (56.78, "56.8"), (0.123, "0.12")] {
            assert_eq!(rounded(value), text);
        }
    }
}
