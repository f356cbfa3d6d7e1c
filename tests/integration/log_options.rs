//! The form of the log, and its file.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::Value;

use crate::support::{
    CannedServer, EchoServer, GatewayProcess, TempHome, finish, need_tool, upstreamproxy,
};
use crate::support::{RelayProcess, connect};

/// Whether the line begins with a time such as `2026-01-31T12:00:00.000Z`.
fn has_time(line: &str) -> bool {
    let form = "dddd-dd-ddTdd:dd:dd.dddZ ";
    line.len() > form.len()
        && line
            .chars()
            .zip(form.chars())
            .all(|(c, expected)| match expected {
                'd' => c.is_ascii_digit(),
                expected => c == expected,
            })
}

#[test]
fn a_server_logs_the_time_and_run_does_not() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let target = EchoServer::start();
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    drop(connect(relay.port(), &target.authority()));
    let served = relay.stop().succeeded().stderr + &gateway.running.stop().stderr;
    assert!(served.contains(" upstreamproxy: relay: "), "{served}");
    assert!(served.contains(" upstreamproxy: gateway: "), "{served}");
    assert!(served.lines().all(has_time), "{served}");
    let run = ["run", "--embedded", "--", "true"];
    let finished = finish(upstreamproxy(&TempHome::new()).args(run)).succeeded();
    assert!(!finished.stderr.lines().any(has_time), "{finished:#?}");
}

#[test]
fn the_journal_adds_the_time_itself() {
    let home = TempHome::new();
    // Standard error is this file.
    let log = fs::File::create(home.join("journal")).unwrap();
    let metadata = log.metadata().unwrap();
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());
    let script = "exec 2>journal \"$0\" serve --when never";
    let mut command = home.command("sh");
    command.args(["-c", script]).arg(crate::support::binary());
    command.current_dir(home.path()).env("RUST_LOG", "debug");
    // The file is opened by the shell again, and stays the same.
    drop(log);
    finish(command.env("JOURNAL_STREAM", stream)).succeeded();
    let text = fs::read_to_string(home.join("journal")).unwrap();
    assert!(text.starts_with("upstreamproxy: "), "{text}");
}

#[test]
fn each_line_of_the_format_json_is_an_object() {
    let home = TempHome::new();
    let arguments = ["run", "--embedded", "--log-format", "json", "--", "true"];
    let finished = finish(upstreamproxy(&home).args(arguments)).succeeded();
    let lines: Vec<Value> = finished
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let first = lines.first().unwrap_or_else(|| panic!("{finished:#?}"));
    assert_eq!(first["level"], "info", "{first}");
    assert!(
        first["target"]
            .as_str()
            .unwrap()
            .starts_with("upstreamproxy")
    );
    assert!(
        first["message"].as_str().unwrap().contains("listens on"),
        "{first}"
    );
    assert!(first["pid"].is_u64(), "{first}");
    assert!(
        has_time(&format!("{} -", first["time"].as_str().unwrap())),
        "{first}"
    );
}

#[test]
fn a_log_file_is_private_appended_to_and_created_again_after_it_was_moved_away() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let target = EchoServer::start();
    let log = home.join("relay.log");
    let option = log.to_str().unwrap().to_owned();
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--log-file", &option]);
    let first = fs::read_to_string(&log).unwrap();
    assert!(
        first.lines().all(has_time) && first.contains("listens on"),
        "{first}"
    );
    let mode = fs::metadata(&log).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let moved = home.join("relay.log.1");
    fs::rename(&log, &moved).unwrap();
    // The path is compared with the open file once a second at most.
    while !fs::read_to_string(&log).is_ok_and(|text| text.contains(" bytes down, ")) {
        drop(connect(relay.port(), &target.authority()));
    }
    let stopped = relay.stop().succeeded();
    assert_eq!(stopped.stderr, "", "the log is in the file");
    assert!(fs::read_to_string(&moved).unwrap().starts_with(&first));
}

#[test]
fn without_its_log_file_the_log_goes_to_standard_error_and_the_session_goes_on() {
    let home = TempHome::new();
    for path in ["/nonexistent/log", "/dev/null"] {
        let arguments = [
            "run",
            "--embedded",
            "--log-file",
            path,
            "--",
            "echo",
            "session",
        ];
        let finished = finish(upstreamproxy(&home).args(arguments)).succeeded();
        assert_eq!(finished.text(), "session\n");
        let warning = format!("warn: the log file {path} cannot be opened: ");
        assert!(finished.stderr.contains(&warning), "{finished:#?}");
    }
}

#[test]
fn run_prints_what_went_to_each_host() {
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (
        TempHome::new(),
        CannedServer::answering("200 OK", b"plain\n"),
    );
    let gateway = GatewayProcess::start(
        &home,
        &[
            "--resolve",
            &format!("one.test:{}:127.0.0.1", origin.port()),
        ],
    );
    let urls = format!(
        "curl -sS http://one.test:{0}/ http://one.test:{0}/; curl -sS http://two.invalid/; true",
        origin.port()
    );
    let summary = |options: &[&str]| {
        let mut command = upstreamproxy(&home);
        home.session(command.arg("run").args(options), &gateway.base_url());
        let finished = finish(command.args(["--", "sh", "-c", &urls])).succeeded();
        let lines = finished.stderr.lines().map(str::to_owned);
        lines
            .filter(|line| line.contains(" tunnel"))
            .collect::<Vec<_>>()
    };
    // Whatever the log level.
    let lines = summary(&["--summary", "-qq"]);
    let [one, two, all] = &lines[..] else {
        panic!("{lines:#?}");
    };
    assert!(
        one.starts_with("upstreamproxy: one.test: 2 tunnels, "),
        "{one}"
    );
    assert_eq!(
        two,
        "upstreamproxy: two.invalid: 0 tunnels, 0 B up, 0 B down, 1 refused"
    );
    assert!(
        all.starts_with("upstreamproxy: 2 tunnels, ") && all.ends_with(" bytes down"),
        "{all}"
    );
    fs::write(home.token_file(), crate::support::TOKEN).unwrap();
    assert_eq!(summary(&[]), [""; 0]);
}
