//! `doctor`: check every step, and print the results as lines or as one JSON document.

use serde_json::{Value, json};

use crate::doctor::{Check, Verdict, diagnose};
use crate::sys::log_filter::one_line;

use super::exit_status::ExitStatus;
use super::output::{json_line, print};
use super::program_options::Options;
use super::setup::probe;

/// Runs the checks. Prints each result when it is known, or with `--json` all of them at the end.
/// The status is 0 if everything is ok, and 1 otherwise.
pub(crate) fn run(options: Options) -> ExitStatus {
    let json = options.json;
    let checks = probe(options, move |config, options| {
        let mut checks = Vec::new();
        diagnose(config, options, &mut |check| {
            if !json {
                print(line(&check).as_bytes());
            }
            checks.push(check);
        });
        checks
    });
    let checks = match checks {
        Ok(checks) => checks,
        Err(interrupted) => return interrupted.status(),
    };
    let well = !checks.iter().any(Check::is_wrong);
    if json {
        // `manual/operations.md` documents the keys.
        let findings: Vec<Value> = checks.iter().map(object).collect();
        let document = json!({ "well": well, "findings": findings });
        print(json_line(&document).as_bytes());
    }
    if well {
        ExitStatus::SUCCESS
    } else {
        ExitStatus::FAILED
    }
}

/// `step: ok, DETAIL, N ms`, `step: wrong, WHAT; REMEDY` or `step: skipped, WHY`. Always one line,
/// whatever text a peer sent.
fn line(check: &Check) -> String {
    let text = match (&check.verdict, check.took) {
        (Verdict::Ok(detail), Some(took)) => format!("ok, {detail}, {} ms", took.as_millis()),
        (Verdict::Ok(detail), None) => format!("ok, {detail}"),
        (Verdict::Wrong(problem), _) => format!("wrong, {}; {}", problem.what, problem.remedy),
        (Verdict::Skipped(why), _) => format!("skipped, {why}"),
    };
    let text = one_line(&format_args!("{}: {text}", check.step.name()));
    text + "\n"
}

fn object(check: &Check) -> Value {
    let mut object = match &check.verdict {
        Verdict::Ok(detail) => json!({ "verdict": "ok", "detail": detail }),
        Verdict::Wrong(problem) => {
            json!({ "verdict": "wrong", "what": problem.what, "remedy": problem.remedy })
        }
        Verdict::Skipped(why) => json!({ "verdict": "skipped", "why": why }),
    };
    object["step"] = check.step.name().into();
    if let Some(took) = check.took {
        object["ms"] = (took.as_millis() as u64).into();
    }
    for (name, value) in &check.facts {
        object[*name] = value.clone();
    }
    object
}
