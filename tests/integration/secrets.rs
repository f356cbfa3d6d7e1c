//! Secrecy of the token: it occurs only in the upgrade and the opening, and no process of the same
//! user can read this program's memory.

use std::fs;
use std::path::Path;
use std::process::Command;

use data_encoding::BASE64;

use crate::support::{
    EchoServer, GatewayProcess, HttpsOrigin, PeerGateway, Python, RelayProcess, SESSION, TOKEN,
    TempHome, connect, exchange, finish, need_tool, read_to_end, request, skip, upstreamproxy,
};

/// Fails if the token is in `text`, in plain form or encoded as in the opening.
#[track_caller]
fn assert_no_secret(source: &str, text: impl AsRef<[u8]>) {
    let basic = BASE64.encode(format!("{SESSION}:{TOKEN}").as_bytes());
    for secret in [TOKEN, &basic, &BASE64.encode(TOKEN.as_bytes())] {
        let found = text
            .as_ref()
            .windows(secret.len())
            .any(|w| w == secret.as_bytes());
        assert!(
            !found,
            "{source}: {}",
            String::from_utf8_lossy(text.as_ref())
        );
    }
}

/// Checks every file below `directory`.
fn assert_no_secret_in_files(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => assert_no_secret_in_files(&path),
            kind if kind.is_file() => {
                assert_no_secret(&path.display().to_string(), fs::read(&path).unwrap());
            }
            _ => {}
        }
    }
}

fn with_verbose_log(command: &mut Command) -> &mut Command {
    command
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full")
}

#[test]
fn the_token_is_in_no_output_file_argument_or_environment() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &["-v"]);
    let mut command = upstreamproxy(&home);
    with_verbose_log(command.arg("serve"));
    let relay = RelayProcess::from(home.session(&mut command, &gateway.base_url()));
    assert_no_secret("the ready line", relay.ready.to_string());
    let (mut stream, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200);
    exchange(&mut stream, b"through".to_vec());

    // Also with refusals by the relay, the target and the gateway.
    for bytes in [
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n",
    ] {
        let (mut stream, answer) = request(relay.port(), bytes.as_bytes());
        assert_no_secret("a refusal's head", &answer.head);
        assert_no_secret(
            "a refusal",
            [answer.early, read_to_end(&mut stream).0].concat(),
        );
    }
    for file in ["cmdline", "environ"] {
        // If only root can read the file, others cannot find anything in it.
        if let Ok(content) = fs::read(format!("/proc/{}/{file}", relay.running.pid())) {
            assert_no_secret(file, content);
        }
    }
    assert_no_secret_in_files(home.path());
    let finished = relay.stop();
    assert!(
        finished.stderr.contains("upstreamproxy: debug: "),
        "the log is verbose: {finished:#?}"
    );
    assert_no_secret("the relay's log", &finished.stderr);
    assert_no_secret("the relay's output", &finished.stdout);
    assert_no_secret("the gateway's log", gateway.running.stop().stderr);
}

#[test]
fn the_token_is_not_in_the_environment_of_a_child_or_in_the_log_of_a_run() {
    let home = TempHome::new();
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    let mut command = upstreamproxy(&home);
    with_verbose_log(command.args(["run", "--", "env", "-0"]));
    let finished = finish(home.session(&mut command, &gateway.base_url())).succeeded();
    assert!(finished.text().contains("HTTPS_PROXY="), "{finished:#?}");
    assert_no_secret("the child's environment", &finished.stdout);
    assert_no_secret("the log", &finished.stderr);
}

#[test]
fn the_token_is_not_in_the_log_of_a_session_that_fails() {
    let Some(python) = Python::ready() else {
        return;
    };
    for quirk in [
        "upgrade-302",
        "upgrade-401",
        "wrong-accept",
        "refuse-407",
        "text",
        "truncated",
        "tcp-reset",
    ] {
        let (home, target) = (TempHome::new(), EchoServer::start());
        // The peer gateway knows the token, so its files are in another home.
        let elsewhere = TempHome::new();
        let gateway = PeerGateway::start(python, &elsewhere, &["--quirk", quirk]);
        let mut command = upstreamproxy(&home);
        with_verbose_log(command.arg("serve"));
        let relay = RelayProcess::from(home.session(&mut command, &gateway.base_url()));
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        assert_no_secret(quirk, &answer.head);
        assert_no_secret(
            quirk,
            [answer.early, exchange(&mut stream, b"x".to_vec()).0].concat(),
        );
        assert_no_secret_in_files(home.path());
        assert_no_secret(quirk, relay.stop().stderr);
    }
}

#[test]
fn a_real_client_never_gets_the_token() {
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start("origin.test"));
    let mut command = upstreamproxy(&home);
    with_verbose_log(&mut command)
        .args([
            "run",
            "--embedded",
            "--intercept",
            "origin.test",
            "--resolve",
            &origin.resolve(),
        ])
        .arg(format!("--upstream-ca={}", origin.ca_file().display()))
        .args(["--", "curl", "-sSv", &origin.url("/hello")]);
    let finished = finish(&mut command).succeeded().assert_tunnelled();
    // The token of an embedded run is generated and never visible, so search for the headers that
    // carry it.
    for carrier in ["Bearer ", "Proxy-Authorization: Basic"] {
        assert!(
            !finished.stderr.contains(carrier),
            "{carrier}: {finished:#?}"
        );
    }
}

#[test]
fn a_process_of_the_same_user_cannot_read_the_relays_memory() {
    let home = TempHome::new();
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    let mut command = home.as_unprivileged_user();
    let relay = RelayProcess::from(home.session(command.arg("serve"), &gateway.base_url()));
    // Control: another process of the same user can be read, so the refusal below is
    // meaningful.
    let can_read = |pid: &str| {
        let mut neighbour = home.command_as_unprivileged_user("cat");
        finish(neighbour.arg(format!("/proc/{pid}/maps")))
            .status
            .success()
    };
    if !can_read("self") {
        return skip("/proc is not readable on this system");
    }
    assert!(
        !can_read(&relay.running.pid().to_string()),
        "the relay's memory map can be read"
    );
}
