//! Subcommands beside a running `serve`, in the order of the README: `env`, `doctor`, `bench`.

use serde_json::Value;

use crate::support::{RelayProcess, TempHome, binary, finish, upstreamproxy};

/// Runs `up ARGUMENTS` in a shell that has evaluated `env`.
fn in_shell(home: &TempHome, arguments: &str) -> crate::support::Finished {
    let script = format!("eval \"$(\"$0\" env)\" && exec \"$0\" {arguments}");
    finish(home.command("sh").args(["-c", &script, binary()]))
}

#[test]
fn doctor_and_bench_use_the_running_serve() {
    let home = TempHome::new();
    let mut command = upstreamproxy(&home);
    let relay = RelayProcess::from(command.args(["serve", "--embedded"]));
    let finished = in_shell(&home, "doctor --json").succeeded();
    let report: Value = serde_json::from_slice(&finished.stdout).unwrap();
    assert_eq!(report["well"], true, "{report}");
    let finding = |step: &str| {
        let findings = report["findings"].as_array().unwrap();
        findings
            .iter()
            .find(|row| row["step"] == step)
            .unwrap()
            .clone()
    };
    let port = format!("through 127.0.0.1:{}", relay.port());
    let detail = finding("round trip")["detail"].to_string();
    assert!(detail.contains(&port), "{report}");

    let bench = "bench --json --seconds 0.05 --streams 1";
    let finished = in_shell(&home, bench).succeeded();
    let report: Value = serde_json::from_slice(&finished.stdout).unwrap();
    let serve = format!("through the serve with process ID {}", relay.running.pid());
    assert!(report["upstream"].to_string().contains(&serve), "{report}");
    let rows = report["rows"].as_array().unwrap();
    let measured = |row: &Value| row["path"] == "tunnel" && row.get("not_measured").is_none();
    assert!(rows.iter().any(measured), "{report}");
    // The tunnels of both went through the relay.
    let tunnels = relay
        .stop()
        .succeeded()
        .stderr
        .matches(" bytes up, ")
        .count();
    assert!(tunnels >= 5, "{tunnels}");
}
