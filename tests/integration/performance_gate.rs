//! The performance gate can fail: its judgement, and the baseline that is checked in. The counting itself is
//! `cargo bench --bench tunnel -- gate`.

#[path = "../../benches/tunnel/gate/baseline.rs"]
mod baseline;

use baseline::{Baseline, INSTRUCTIONS, Verdict, shown};

const CHECKED_IN: &str = include_str!("../../benches/tunnel/gate/baseline");

const COMPILER: &str = "rustc 1.95.0 (59807616e 2026-04-14), x86_64";
const ONE: &str = "\
# a comment

compiler: rustc 1.95.0 (59807616e 2026-04-14), x86_64
instructions/up/ws/relay   380000  11400   a MiB
system-calls/up/ws/relay    96.50   3.00   a MiB
";

fn judged(name: &str, value: f64, compiler: &str) -> Verdict {
    Baseline::parse(ONE).unwrap().judge(name, value, compiler)
}

#[test]
fn a_figure_over_its_tolerance_fails() {
    let verdict = judged("system-calls/up/ws/relay", 99.51, COMPILER);
    assert_eq!(verdict, Verdict::Worse);
    assert!(verdict.fails());
}

#[test]
fn a_figure_within_its_tolerance_is_held() {
    for value in [93.5, 96.5, 99.5] {
        let verdict = judged("system-calls/up/ws/relay", value, COMPILER);
        assert_eq!(verdict, Verdict::Held, "{value}");
        assert!(!verdict.fails());
    }
}

#[test]
fn a_figure_under_its_tolerance_is_better_and_no_failure() {
    let verdict = judged("instructions/up/ws/relay", 368_599.0, COMPILER);
    assert_eq!(verdict, Verdict::Better);
    assert!(!verdict.fails());
}

#[test]
fn a_figure_that_nobody_blessed_fails() {
    let verdict = judged("system-calls/up/ws/gateway", 1.0, COMPILER);
    assert_eq!(verdict, Verdict::Unknown);
    assert!(verdict.fails());
}

#[test]
fn of_another_compiler_only_instructions_are_let_pass() {
    let other = "rustc 2.0.0, x86_64";
    let instructions = judged("instructions/up/ws/relay", 1e9, other);
    assert_eq!(instructions, Verdict::OtherCompiler);
    assert!(!instructions.fails());
    assert_eq!(
        judged("system-calls/up/ws/relay", 1e9, other),
        Verdict::Worse
    );
}

#[test]
fn verdicts_that_fail_are_said_in_capitals() {
    use Verdict::{Better, Held, OtherCompiler, Unknown, Worse};
    for verdict in [Held, Worse, Better, OtherCompiler, Unknown] {
        let word = verdict.word();
        assert_eq!(word == word.to_uppercase(), verdict.fails(), "{word}");
    }
}

#[test]
fn refuses_a_line_that_is_no_row() {
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
fn what_is_written_is_what_is_read() {
    let text = Baseline::parse(ONE).unwrap().text();
    let again = Baseline::parse(&text).unwrap();
    assert_eq!(again.text(), text);
    assert_eq!(again.compiler, COMPILER);
    let row = again.row("system-calls/up/ws/relay").unwrap();
    assert_eq!(shown(row.value), "96.50");
    assert_eq!(shown(row.tolerance), "3.00");
    assert_eq!(row.unit, "a MiB");
}

#[test]
fn the_baseline_holds_a_figure_of_each_kind_for_each_end() {
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
