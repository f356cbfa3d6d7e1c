//! The whole programs in `tests/examples` run and succeed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{TempHome, finish};

/// An example program, built if `cargo test` has not built it already.
fn example(name: &str, home: &TempHome) -> Command {
    let test: PathBuf = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples").join(name);
    if !program.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--example", name]);
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.env("CARGO_TARGET_DIR", profile.parent().unwrap());
        assert!(cargo.status().unwrap().success(), "{name} does not build");
    }
    home.command(program)
}

#[test]
fn a_command_runs_without_a_proxy_if_nothing_asks_for_one() {
    let home = TempHome::new();
    let mut command = example("run_command", &home);
    let finished = finish(command.args(["sh", "-c", "echo proxy: ${HTTPS_PROXY:-none}"]));
    assert_eq!(finished.succeeded().text(), "proxy: none\n");
}

#[test]
fn a_relay_in_front_of_an_embedded_gateway_carries_bytes() {
    let home = TempHome::new();
    let finished = finish(&mut example("embedded_gateway", &home)).succeeded();
    let text = finished.text();
    assert!(
        text.ends_with("1 tunnel, 18 bytes up, 18 bytes down\n"),
        "{text}"
    );
}

#[test]
fn a_gateway_and_its_relay_run_in_one_program() {
    let home = TempHome::new();
    let finished = finish(&mut example("gateway_server", &home)).succeeded();
    let text = finished.text();
    assert!(text.contains("second start: disabled at token"), "{text}");
}
