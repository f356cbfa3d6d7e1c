//! The performance gate itself: its verdicts, and the baseline in the repository. `cargo bench
//! --bench tunnel -- gate` does the counting.

#[path = "../../benches/tunnel/gate/baseline.rs"]
mod baseline;

use baseline::{Baseline, INSTRUCTIONS, Verdict, shown};

const CHECKED_IN: &str = include_str!("../../benches/tunnel/gate/baseline");

const COMPILER: &str = "rustc 1.95.0 (59807616e 2026-04-14), x86_64";
const BASELINE: &str = "\
# a comment

compiler: rustc 1.95.0 (59807616e 2026-04-14), x86_64
instructions/up/ws/relay   380000  11400   a MiB
system-calls/up/ws/relay    96.50   3.00   a MiB
";

fn verdict_on(name: &str, value: f64, compiler: &str) -> Verdict {
    Baseline::parse(BASELINE)
        .unwrap()
        .judge(name, value, compiler)
}

#[test]
fn a_value_above_its_tolerance_fails() {
    let verdict = verdict_on("system-calls/up/ws/relay", 99.51, COMPILER);
    assert_eq!(verdict, Verdict::Worse);
    assert!(verdict.fails());
}

#[test]
fn a_value_within_its_tolerance_passes() {
    for value in [93.5, 96.5, 99.5] {
        let verdict = verdict_on("system-calls/up/ws/relay", value, COMPILER);
        assert_eq!(verdict, Verdict::WithinTolerance, "{value}");
        assert!(!verdict.fails());
    }
}

#[test]
fn a_value_below_its_tolerance_is_better_and_passes() {
    let verdict = verdict_on("instructions/up/ws/relay", 368_599.0, COMPILER);
    assert_eq!(verdict, Verdict::Better);
    assert!(!verdict.fails());
}

#[test]
fn a_value_that_is_not_in_the_baseline_fails() {
    let verdict = verdict_on("system-calls/up/ws/gateway", 1.0, COMPILER);
    assert_eq!(verdict, Verdict::Unknown);
    assert!(verdict.fails());
}

#[test]
fn with_another_compiler_only_instruction_counts_pass_unchecked() {
    let other = "rustc 2.0.0, x86_64";
    let instructions = verdict_on("instructions/up/ws/relay", 1e9, other);
    assert_eq!(instructions, Verdict::OtherCompiler);
    assert!(!instructions.fails());
    assert_eq!(
        verdict_on("system-calls/up/ws/relay", 1e9, other),
        Verdict::Worse
    );
}

#[test]
fn verdicts_that_fail_are_printed_in_capitals() {
    use Verdict::{Better, OtherCompiler, Unknown, WithinTolerance, Worse};
    for verdict in [WithinTolerance, Worse, Better, OtherCompiler, Unknown] {
        let word = verdict.word();
        assert_eq!(word == word.to_uppercase(), verdict.fails(), "{word}");
    }
}

#[test]
fn a_line_that_is_not_a_row_is_an_error() {
    for line in [
        "a/name",
        "a/name 1",
        "a/name one two a MiB",
        "a/name 1 inf a MiB",
    ] {
        let text = format!("compiler: rustc\n{line}\n");
        let error = Baseline::parse(&text).err().unwrap();
        assert!(error.contains(line), "{error}");
    }
    assert!(
        Baseline::parse("a/name 1 1 a MiB\n").is_err(),
        "no compiler"
    );
}

#[test]
fn a_written_baseline_is_read_back_unchanged() {
    let text = Baseline::parse(BASELINE).unwrap().text();
    let again = Baseline::parse(&text).unwrap();
    assert_eq!(again.text(), text);
    assert_eq!(again.compiler, COMPILER);
    let row = again.row("system-calls/up/ws/relay").unwrap();
    assert_eq!(shown(row.value), "96.50");
    assert_eq!(shown(row.tolerance), "3.00");
    assert_eq!(row.unit, "a MiB");
}

#[test]
fn the_baseline_has_a_value_of_each_kind_for_each_end() {
    let baseline = Baseline::parse(CHECKED_IN).unwrap();
    for row in &baseline.rows {
        assert!(row.value >= 0.0 && row.tolerance > 0.0, "{}", row.name);
    }
    for measure in [
        INSTRUCTIONS,
        "allocations",
        "allocated-bytes",
        "system-calls",
    ] {
        for load in ["up", "down", "set-up"] {
            for end in ["ws/relay", "ws/gateway", "wss/relay", "wss/gateway"] {
                let name = format!("{measure}/{load}/{end}");
                assert!(baseline.row(&name).is_some(), "no {name}; bless it");
            }
        }
    }
}
