//! `bench`: has the library measure the way through the upstream, with a line of progress, and prints a table and a verdict, or one
//! JSON document. With `--origin` it is the far end that such a measurement needs behind a gateway elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::bench::{BenchOrigin, BenchPlan, BenchProgress, Conclusion, Measured, Row, benchmark};
use crate::http::authority::Authority;
use crate::sys::log_filter::one_line;
use serde_json::{Map, Value, json};

use super::logging::put;
use super::resolve::Session;
use super::setup::{Left, looked_at, unless_signalled};
use super::signals::{ENDING, Signal, Signals};
use super::{ExitStatus, fail, print, say};

/// All that was told so far.
#[derive(Default)]
struct Heard {
    upstream: String,
    target: String,
    rows: Vec<Row>,
}

/// Measures, and prints what was measured: 0 if there is a verdict, 1 if there was no way, 128+n if a signal came first.
pub(crate) fn run(
    session: Session,
    target: Option<Authority>,
    plan: BenchPlan,
    json: bool,
) -> ExitStatus {
    let signals = Signals::watch(ENDING);
    let (config, embedded, about) = match looked_at(session, target) {
        Ok(ready) => ready,
        Err(status) => return status,
    };
    let cancel = config.cancel.clone();
    // Shared with a thread that a signal may leave where it waits.
    let heard = Arc::new(Mutex::new(Heard::default()));
    let listener = Arc::clone(&heard);
    let mut progress = Progress::default();
    let measured = unless_signalled(signals.receiver(), &cancel, move || {
        let conclusion = benchmark(&config, &about, &plan, &mut |told| {
            let mut heard = listener.lock().unwrap_or_else(PoisonError::into_inner);
            match told {
                BenchProgress::Between { upstream, target } => {
                    (heard.upstream, heard.target) = (upstream, target);
                }
                BenchProgress::Begins { what, done, left } => progress.tell(&what, done, left),
                BenchProgress::Row(row) => heard.rows.push(row),
            }
        });
        progress.ends();
        conclusion
    });
    if let Some(embedded) = embedded {
        embedded.stop();
    }
    let (conclusion, signal) = match measured {
        Ok(conclusion) => (conclusion, None),
        Err(Left::Signal(signal)) => (None, Some(signal)),
        Err(Left::Broken(what)) => return fail(&what, ExitStatus::FAILED),
    };
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let text = if json {
        document(&heard, plan, conclusion.as_ref(), signal)
    } else {
        table(&heard, plan, conclusion.as_ref(), signal)
    };
    print(text.as_bytes());
    match (conclusion, signal) {
        (_, Some(signal)) => ExitStatus::of_signal(signal),
        (Some(_), None) => ExitStatus::SUCCESS,
        (None, None) => ExitStatus::FAILED,
    }
}

/// Serves as the far end until a signal says stop.
pub(crate) fn origin(listen: SocketAddr) -> ExitStatus {
    let signals = Signals::orders(false);
    let origin = match BenchOrigin::start(listen) {
        Ok(origin) => origin,
        Err(error) => {
            let what =
                format!("cannot listen on {listen}: {error}; choose another address or port");
            return fail(&what, ExitStatus::FAILED);
        }
    };
    let ready = json!({ "origin": origin.local_addr().to_string(), "pid": std::process::id() });
    print(format!("{ready}\n").as_bytes());
    while let Ok(signal) = signals.receiver().recv() {
        if signal.is_fatal() {
            break;
        }
    }
    ExitStatus::SUCCESS
}

/// The line of progress: rewritten on a terminal, one for each measure elsewhere.
struct Progress {
    rewrites: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            rewrites: io::stderr().is_terminal(),
        }
    }
}

/// Back to the line's begin, and nothing on it.
const FRESH_LINE: &str = "\r\x1b[K";

impl Progress {
    fn tell(&mut self, what: &str, done: f64, left: Duration) {
        let line = format!(
            "{:3.0} %, about {} s left: {what}",
            100.0 * done,
            left.as_secs()
        );
        if self.rewrites {
            put(&format!("{FRESH_LINE}{line}"));
        } else {
            say(&line);
        }
    }

    fn ends(&mut self) {
        if self.rewrites {
            put(FRESH_LINE);
        }
    }
}

/// For readers.
fn table(
    heard: &Heard,
    plan: BenchPlan,
    conclusion: Option<&Conclusion>,
    signal: Option<Signal>,
) -> String {
    let mut out = String::new();
    if !heard.upstream.is_empty() {
        let _ = writeln!(
            out,
            "upstreamproxy {}, {} to {}, {} s for each measure\n",
            env!("CARGO_PKG_VERSION"),
            heard.upstream,
            heard.target,
            plan.time.as_secs_f64()
        );
    }
    for row in &heard.rows {
        let found = match &row.found {
            Measured::Figures(figures) => figures.iter().fold(String::new(), |mut text, figure| {
                let value = in_few_places(figure.value);
                let name = match figure.name {
                    "p50" | "p99" | "least" => format!("{} ", figure.name),
                    _ => String::new(),
                };
                let cell = format!("{name}{value} {}", figure.unit);
                let _ = write!(text, "{cell:<18}");
                text
            }),
            Measured::Not { why, remedy } => format!("not measured, {why}; {remedy}"),
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
                name(conclusion),
                conclusion.sentence,
                conclusion.remedy
            );
        }
        (None, Some(signal)) => {
            let _ = writeln!(out, "\nended by signal {} before the end", signal.number);
        }
        (None, None) => {}
    }
    out
}

/// The limit as its reader says it.
fn name(conclusion: &Conclusion) -> &'static str {
    use crate::bench::Limit;
    match conclusion.limit {
        Limit::RoundTrip => "the upstream's round trip",
        Limit::Processor => "this machine's processor",
        Limit::FarEnd => "the far end, or the network",
        _ => "not known",
    }
}

/// As many places as mean something.
fn in_few_places(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// For programs; `manual/performance.md` documents the names.
fn document(
    heard: &Heard,
    plan: BenchPlan,
    conclusion: Option<&Conclusion>,
    signal: Option<Signal>,
) -> String {
    let rows: Vec<Value> = heard.rows.iter().map(object).collect();
    let verdict = conclusion.map(|conclusion| {
        json!({
            "limit": conclusion.limit.name(),
            "sentence": conclusion.sentence,
            "remedy": conclusion.remedy,
        })
    });
    let document = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "upstream": heard.upstream,
        "target": heard.target,
        "processors": std::thread::available_parallelism().map_or(1, usize::from),
        "seconds": plan.time.as_secs_f64(),
        "rows": rows,
        "verdict": verdict,
        "signal": signal.map(|signal| signal.number),
    });
    format!("{document}\n")
}

fn object(row: &Row) -> Value {
    let mut object = Map::new();
    object.insert("what".to_owned(), row.what.as_str().into());
    object.insert("path".to_owned(), row.path.into());
    match &row.found {
        Measured::Figures(figures) => {
            for figure in figures {
                let found = json!({ "value": figure.value, "unit": figure.unit });
                object.insert(figure.name.to_owned(), found);
            }
        }
        Measured::Not { why, remedy } => {
            let not = json!({ "why": why, "remedy": remedy });
            object.insert("not_measured".to_owned(), not);
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_places_that_mean_something() {
        for (value, text) in [(1234.5, "1234"), (56.78, "56.8"), (0.123, "0.12")] {
            assert_eq!(in_few_places(value), text);
        }
    }
}
