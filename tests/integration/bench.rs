//! The `bench` command: it reports every measurement, names the limit, keeps the token, and can be
//! interrupted.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    EchoServer, GatewayProcess, RelayProcess, Running, TOKEN, TempHome, finish,
    start_delay_forwarder, upstreamproxy,
};

/// The round trip time of the delayed connection. With its window, one tunnel reaches only a few
/// MiB/s.
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// The JSON document of `bench --json`.
struct Measured(Value);

impl Measured {
    #[track_caller]
    fn of(command: &mut Command) -> Self {
        let finished = finish(command).succeeded();
        assert!(!format!("{}{}", finished.text(), finished.stderr).contains(TOKEN));
        let document = serde_json::from_str(&finished.text());
        Self(document.unwrap_or_else(|e| panic!("{e}: {finished:#?}")))
    }

    /// Runs `bench --json` for the session in `home` at `base_url`.
    #[track_caller]
    fn at(home: &TempHome, base_url: &str, options: &[&str]) -> Self {
        let mut command = upstreamproxy(home);
        command
            .args(["bench", "--json", "--seconds", "0.1"])
            .args(options);
        Self::of(home.session(&mut command, base_url))
    }

    fn rows(&self) -> impl Iterator<Item = &Value> {
        self.0["rows"].as_array().unwrap().iter()
    }

    /// The row for `what` over `path`.
    #[track_caller]
    fn row(&self, what: &str, path: &str) -> &Value {
        self.rows()
            .find(|row| row["what"] == what && row["path"] == path)
            .unwrap_or_else(|| panic!("no row for {what} over {path}: {:#}", self.0))
    }

    #[track_caller]
    fn value(&self, what: &str, path: &str, name: &str) -> f64 {
        let row = self.row(what, path);
        row[name]["value"]
            .as_f64()
            .unwrap_or_else(|| panic!("no {name}: {row}"))
    }

    fn limit(&self) -> &str {
        self.0["verdict"]["limit"].as_str().unwrap_or_default()
    }
}

/// Starts `bench --origin` on loopback. Returns the process and its address.
fn origin(home: &TempHome) -> (Running, String) {
    let mut command = upstreamproxy(home);
    command.args(["bench", "--origin", "127.0.0.1:0"]);
    let (running, ready) = Running::ready(&mut command);
    (running, ready["origin"].as_str().unwrap().to_owned())
}

#[test]
fn bench_of_the_embedded_gateway_measures_everything_and_names_the_limit() {
    let home = TempHome::new();
    let mut command = upstreamproxy(&home);
    command.args(["bench", "--embedded", "--json", "--seconds", "0.05"]);
    let measured = Measured::of(&mut command);
    assert!(measured.value("idle x64", "tunnel", "memory") > 0.0);
    for path in ["direct", "tunnel"] {
        for what in ["set-up x1", "set-up x32", "echo of 1 byte"] {
            let (p50, p99) = (
                measured.value(what, path, "p50"),
                measured.value(what, path, "p99"),
            );
            assert!(0.0 < p50 && p50 <= p99, "{what} {path}: {p50}, {p99}");
        }
        for direction in ["down", "up", "both"] {
            for streams in [1, 8, 64] {
                let what = format!("{direction} x{streams}");
                assert!(measured.value(&what, path, "throughput") > 0.0);
                if path == "tunnel" {
                    assert!(measured.value(&what, path, "ratio") > 0.0);
                }
            }
        }
    }
    for row in measured.rows() {
        assert_eq!(row["not_measured"], Value::Null, "{row}");
    }
    assert!(["processor", "round trip", "far end"].contains(&measured.limit()));
    let verdict = &measured.0["verdict"];
    assert!(verdict["sentence"].as_str().unwrap().contains("MiB/s"));
    assert!(!verdict["remedy"].as_str().unwrap().is_empty());
}

#[test]
fn bench_prints_a_table_with_a_verdict_and_one_progress_line_per_measurement() {
    let home = TempHome::new();
    let mut command = upstreamproxy(&home);
    command.args(["bench", "--embedded", "--seconds", "0.05", "--streams", "1"]);
    let finished = finish(&mut command).succeeded();
    let text = finished.text();
    for part in [
        "\ndown x1 ",
        "\nset-up x1 ",
        " of direct",
        "\nlimited by: ",
        "\nto do: ",
    ] {
        assert!(text.contains(part), "{part:?}: {finished:#?}");
    }
    assert!(!text.contains("x8") && !text.contains("x32"), "{text}");
    let progress = finished.stderr.lines().filter(|l| l.contains(" s left: "));
    // One for the path, and idle, set-up, echo and three transfers over two paths each.
    assert_eq!(progress.count(), 13, "{finished:#?}");
    assert!(!finished.stderr.contains('\x1b'), "{finished:#?}");
}

#[test]
fn with_a_long_round_trip_the_round_trip_is_the_limit_and_a_standby_connection_helps() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let port = gateway.base_url().rsplit(':').next().unwrap().parse();
    let upstream = (Ipv4Addr::LOCALHOST, port.unwrap()).into();
    let forwarder = start_delay_forwarder(upstream, ROUND_TRIP / 2, |_| {}).unwrap();
    let (origin_process, target) = origin(&home);
    let options = ["--target", &target, "--streams", "8", "--seconds", "1"];
    let measured = Measured::at(&home, &format!("http://{forwarder}"), &options);
    let round_trip = ROUND_TRIP.as_secs_f64() * 1e3;
    assert!(measured.value("echo of 1 byte", "tunnel", "p50") >= round_trip);
    assert!(measured.value("upgrade", "gateway", "least") >= round_trip);
    let cold = measured.value("set-up x1", "tunnel, no standby", "p50");
    // One round trip each for TCP, the upgrade and the opening.
    assert!(cold >= 3.0 * round_trip, "{cold}");
    let warm = measured.value("set-up x1", "tunnel", "p50");
    assert!(round_trip <= warm && warm < cold, "{warm} {cold}");
    assert_eq!(measured.limit(), "round trip", "{:#}", measured.0);
    assert_eq!(origin_process.stop().status.code(), Some(0));
    assert_eq!(fs::read_to_string(home.token_file()).unwrap(), TOKEN);
}

#[test]
fn with_a_target_that_is_not_an_origin_bench_measures_set_up_only_and_names_the_remedy() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let echo = EchoServer::start();
    let target = echo.authority();
    let measured = Measured::at(&home, &gateway.base_url(), &["--target", &target]);
    assert!(measured.value("set-up x1", "tunnel", "p50") > 0.0);
    let row = measured.row("echo and throughput", "tunnel");
    let not_measured = &row["not_measured"];
    assert!(
        not_measured["why"].as_str().unwrap().contains(&target),
        "{row}"
    );
    assert!(
        not_measured["remedy"]
            .as_str()
            .unwrap()
            .contains("--origin")
    );
    assert_eq!(measured.limit(), "unknown");
    assert!(home.token_file().exists() && !home.join(".ccr").exists());
}

#[test]
fn next_to_a_running_serve_bench_uses_its_port() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--listen-credential"]);
    let (origin_process, target) = origin(&home);
    let options = ["--target", &target, "--streams", "1"];
    let measured = Measured::at(&home, &gateway.base_url(), &options);
    assert!(measured.value("down x1", "tunnel", "throughput") > 0.0);
    assert!(measured.rows().all(|row| row["what"] != "upgrade"));
    let log = relay.stop().stderr;
    assert!(log.contains(&format!("relay: {target} ")), "{log}");
    origin_process.stop();
}

#[test]
fn bench_fails_with_a_reason_if_there_is_no_path_to_the_target() {
    let home = TempHome::new();
    let mut command = upstreamproxy(&home);
    command.args(["bench", "--json"]);
    let closed = finish(&mut command);
    assert_eq!(closed.status.code(), Some(1), "{closed:#?}");
    let mut command = upstreamproxy(&home);
    let command = home.session(command.arg("bench"), "http://127.0.0.1:9");
    let down = finish(command);
    assert_eq!(down.status.code(), Some(1), "{down:#?}");
    assert!(down.text().contains("refused the connection"), "{down:#?}");
    let strict = GatewayProcess::strict(&home, &[]);
    let mut command = upstreamproxy(&home);
    let forbidden = finish(home.session(command.arg("bench"), &strict.base_url()));
    assert_eq!(forbidden.status.code(), Some(1), "{forbidden:#?}");
    let text = forbidden.text();
    // The measurements up to that point are reported nevertheless.
    assert!(text.contains("\nupgrade ") && text.contains("--target HOST:PORT"));
    assert!(home.token_file().exists());
}

#[test]
fn a_signal_ends_bench_at_once_and_it_reports_what_was_measured() {
    let home = TempHome::new();
    let mut command = upstreamproxy(&home);
    command.args(["bench", "--embedded", "--json", "--seconds", "30"]);
    let running = Running::spawn(&mut command);
    running.wait_for_log("set-up x1, direct", 1);
    running.signal(Signal::INT);
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(130), "{finished:#?}");
    let document: Value = serde_json::from_str(&finished.text()).unwrap();
    assert_eq!(document["signal"], 2);
    assert_eq!(document["verdict"], Value::Null);
    let rows = document["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["what"] == "connect"), "{rows:?}");
}
