//! `status` and `stop` beside a running `serve`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    EchoServer, GatewayProcess, RelayProcess, SESSION, TOKEN, TempHome, connect, finish,
    upstreamproxy,
};

const SOCKET: &str = ".ccr/upstreamproxy.sock";
const STATE: &str = ".ccr/upstreamproxy.json";

fn status(home: &TempHome) -> Value {
    let finished = finish(upstreamproxy(home).args(["status", "--json"])).succeeded();
    serde_json::from_slice(&finished.stdout).unwrap()
}

#[test]
fn status_reports_the_tunnels_of_the_running_serve_per_host() {
    let home = TempHome::new();
    let target = EchoServer::start();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let mode = fs::metadata(home.join(SOCKET))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // Clients that read nothing do not delay the next one.
    let silent: Vec<UnixStream> = (0..8)
        .map(|_| UnixStream::connect(home.join(SOCKET)).unwrap())
        .collect();
    let (tunnel, response) = connect(relay.port(), &target.authority());
    assert_eq!(response.status, 200);

    let report = status(&home);
    assert_eq!(report["pid"], relay.running.pid());
    assert_eq!(report["port"], relay.port());
    assert_eq!(report["upstream"]["base_url"], gateway.base_url());
    assert_eq!(report["upstream"]["session_id"], SESSION);
    assert_eq!(report["token"], "read at start");
    assert_eq!(
        (&report["total"]["open"], &report["total"]["tunnels"]),
        (&1.into(), &1.into())
    );
    assert_eq!(report["hosts"][0]["host"], "127.0.0.1", "{report}");
    assert_eq!(report["hosts"][0]["open"], 1);
    assert!(report["uptime_seconds"].is_u64(), "{report}");
    assert!(!report.to_string().contains(TOKEN));

    let text = finish(upstreamproxy(&home).arg("status")).succeeded();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("total: 1 open, 1 tunnels, 0 refused"),
        "{text}"
    );
    assert!(text.contains("  127.0.0.1: 1 open"), "{text}");
    drop((tunnel, silent));
    relay.stop().succeeded();
    assert!(!home.join(SOCKET).exists());
}

#[test]
fn stop_ends_the_running_serve_and_waits_for_it() {
    let home = TempHome::new();
    let relay = RelayProcess::from(upstreamproxy(&home).args(["serve", "--embedded"]));
    assert_eq!(status(&home)["token"], Value::Null);
    finish(upstreamproxy(&home).arg("stop")).succeeded();
    assert!(!home.join(STATE).exists() && !home.join(SOCKET).exists());
    relay.running.wait().succeeded();
}

#[test]
fn without_a_running_serve_status_and_stop_fail() {
    let home = TempHome::new();
    for subcommand in ["status", "stop"] {
        let finished = finish(upstreamproxy(&home).arg(subcommand));
        assert_eq!(finished.status.code(), Some(1));
        assert!(
            finished.stderr.contains("no serve is running"),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn the_socket_of_a_crashed_serve_is_replaced() {
    let home = TempHome::new();
    let start = || RelayProcess::from(upstreamproxy(&home).args(["serve", "--embedded"]));
    let crashed = start();
    crashed.running.signal(Signal::KILL);
    crashed.running.wait();
    assert!(home.join(SOCKET).exists());
    let relay = start();
    assert_eq!(status(&home)["pid"], relay.running.pid());
    relay.stop().succeeded();
}

#[test]
fn stop_signals_no_process_that_is_not_the_one_that_answers() {
    let home = TempHome::new();
    let relay = RelayProcess::from(upstreamproxy(&home).args(["serve", "--embedded"]));
    let mut state: Value = serde_json::from_slice(&fs::read(home.join(STATE)).unwrap()).unwrap();
    // As in another PID namespace: the number means another process, which is this test.
    state["pid"] = std::process::id().into();
    fs::write(home.join(STATE), state.to_string()).unwrap();
    let finished = finish(upstreamproxy(&home).arg("stop"));
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished.stderr.contains("another container"),
        "{}",
        finished.stderr
    );

    fs::remove_file(home.join(SOCKET)).unwrap();
    let silent = UnixListener::bind(home.join(SOCKET)).unwrap();
    drop(silent);
    let finished = finish(upstreamproxy(&home).arg("stop"));
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished.stderr.contains("does not answer"),
        "{}",
        finished.stderr
    );
    relay.stop().succeeded();
}
