//! `doctor`: check every step, and print the results as lines or as one JSON document.

use std::sync::{Arc, Mutex, PoisonError};

use crate::doctor::{Check, Fact, Verdict, diagnose};
use serde_json::{Map, Value, json};

use super::exit_status::ExitStatus;
use super::output::{fail, print};
use super::program_options::Options;
use super::setup::{Interrupted, prepare_check, until_signal};
use super::signals::{ENDING, Signals};

/// Runs the checks. Prints each result when it is known, or with `--json` all of them at the end.
/// The status is 0 if everything is ok, and 1 otherwise.
pub(crate) fn run(options: Options) -> ExitStatus {
    let signals = Signals::watch(ENDING);
    let json = options.json;
    let (config, gateway, options) = match prepare_check(options) {
        Ok(prepared) => prepared,
        Err(status) => return status,
    };
    let cancel = config.cancel.clone();
    // Shared with a thread that a signal may abandon.
    let checks = Arc::new(Mutex::new(Vec::new()));
    let results = Arc::clone(&checks);
    let finished = until_signal(signals.receiver(), &cancel, move || {
        diagnose(&config, &options, &mut |check| {
            if !json {
                print(line(&check).as_bytes());
            }
            results
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(check);
        });
    });
    gateway.stop();
    match finished {
        Ok(()) => {}
        Err(Interrupted::Signal(signal)) => return ExitStatus::of_signal(signal),
        Err(Interrupted::Failed(error)) => return fail(&error, ExitStatus::FAILED),
    }
    let checks = checks.lock().unwrap_or_else(PoisonError::into_inner);
    if json {
        print(document(&checks).as_bytes());
    }
    if checks.iter().any(Check::is_wrong) {
        ExitStatus::FAILED
    } else {
        ExitStatus::SUCCESS
    }
}

/// `step: ok, DETAIL, N ms`, `step: wrong, WHAT; REMEDY` or `step: skipped, WHY`. Always one line,
/// whatever text a peer sent.
fn line(check: &Check) -> String {
    let text = match &check.verdict {
        Verdict::Ok(detail) => format!("ok, {detail}"),
        Verdict::Wrong { what, remedy } => format!("wrong, {what}; {remedy}"),
        Verdict::Skipped(why) => format!("skipped, {why}"),
    };
    let took = match (&check.verdict, check.took) {
        (Verdict::Ok(_), Some(took)) => format!(", {} ms", took.as_millis()),
        _ => String::new(),
    };
    let mut line = format!("{}: ", check.step);
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line + &took + "\n"
}

/// All results as one JSON document; `manual/operations.md` documents the keys.
fn document(checks: &[Check]) -> String {
    let all: Vec<Value> = checks.iter().map(object).collect();
    let well = !checks.iter().any(Check::is_wrong);
    let mut text = json!({ "well": well, "findings": all }).to_string();
    text.push('\n');
    text
}

fn object(check: &Check) -> Value {
    let mut object = Map::new();
    let mut set = |name: &str, value: Value| object.insert(name.to_owned(), value);
    set("step", check.step.name().into());
    match &check.verdict {
        Verdict::Ok(detail) => {
            set("verdict", "ok".into());
            set("detail", detail.as_str().into());
        }
        Verdict::Wrong { what, remedy } => {
            set("verdict", "wrong".into());
            set("what", what.as_str().into());
            set("remedy", remedy.as_str().into());
        }
        Verdict::Skipped(why) => {
            set("verdict", "skipped".into());
            set("why", why.as_str().into());
        }
    }
    if let Some(took) = check.took {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        set("ms", millis.into());
    }
    for (name, fact) in &check.facts {
        let value = match fact {
            Fact::Number(number) => (*number).into(),
            Fact::Text(text) => text.as_str().into(),
        };
        set(name, value);
    }
    Value::Object(object)
}
