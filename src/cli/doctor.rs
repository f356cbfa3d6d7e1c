//! `doctor`: has the library walk every step, and prints what it finds, as lines or as one JSON document.

use std::sync::{Arc, Mutex, PoisonError};

use crate::doctor::{Check, Fact, Verdict, diagnose};
use crate::http::authority::Authority;
use serde_json::{Map, Value, json};

use super::resolve::Session;
use super::setup::{Left, looked_at, unless_signalled};
use super::signals::{ENDING, Signals};
use super::{ExitStatus, fail, print};

/// Walks, and prints each step when it is known, or all of them at the end: 0 all well, 1 something is not.
pub(crate) fn run(session: Session, target: Option<Authority>, json: bool) -> ExitStatus {
    let signals = Signals::watch(ENDING);
    let (config, embedded, about) = match looked_at(session, target) {
        Ok(ready) => ready,
        Err(status) => return status,
    };
    let cancel = config.cancel.clone();
    // Shared with a thread that a signal may leave where it waits.
    let findings = Arc::new(Mutex::new(Vec::new()));
    let found = Arc::clone(&findings);
    let walked = unless_signalled(signals.receiver(), &cancel, move || {
        diagnose(&config, &about, &mut |finding| {
            if !json {
                print(line(&finding).as_bytes());
            }
            found
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(finding);
        });
    });
    if let Some(embedded) = embedded {
        embedded.stop();
    }
    match walked {
        Ok(()) => {}
        Err(Left::Signal(signal)) => return ExitStatus::of_signal(signal),
        Err(Left::Broken(what)) => return fail(&what, ExitStatus::FAILED),
    }
    let findings = findings.lock().unwrap_or_else(PoisonError::into_inner);
    if json {
        print(document(&findings).as_bytes());
    }
    if findings.iter().any(Check::is_wrong) {
        ExitStatus::FAILED
    } else {
        ExitStatus::SUCCESS
    }
}

/// `step: ok, DETAIL, N ms`, `step: wrong, WHAT; REMEDY`, `step: skipped, WHY`. One line, whatever came over the network.
fn line(finding: &Check) -> String {
    let text = match &finding.verdict {
        Verdict::Ok(detail) => format!("ok, {detail}"),
        Verdict::Wrong { what, remedy } => format!("wrong, {what}; {remedy}"),
        Verdict::Skipped(why) => format!("skipped, {why}"),
    };
    let took = match (&finding.verdict, finding.took) {
        (Verdict::Ok(_), Some(took)) => format!(", {} ms", took.as_millis()),
        _ => String::new(),
    };
    let mut line = format!("{}: ", finding.step);
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line + &took + "\n"
}

/// The whole diagnosis; `manual/operations.md` documents the names.
fn document(findings: &[Check]) -> String {
    let all: Vec<Value> = findings.iter().map(object).collect();
    let well = !findings.iter().any(Check::is_wrong);
    let mut text = json!({ "well": well, "findings": all }).to_string();
    text.push('\n');
    text
}

fn object(finding: &Check) -> Value {
    let mut object = Map::new();
    let mut set = |name: &str, value: Value| object.insert(name.to_owned(), value);
    set("step", finding.step.name().into());
    match &finding.verdict {
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
    if let Some(took) = finding.took {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        set("ms", millis.into());
    }
    for (name, fact) in &finding.facts {
        let value = match fact {
            Fact::Number(number) => (*number).into(),
            Fact::Text(text) => text.as_str().into(),
        };
        set(name, value);
    }
    Value::Object(object)
}
