//! A canary for a token: it is found nowhere but in the upgrade and the opening, and no neighbour can read our memory.

use std::fs;
use std::path::Path;
use std::process::Command;

use data_encoding::BASE64;

use crate::support::{
    EchoServer, GatewayProcess, HttpsOrigin, PeerGateway, Python, RelayProcess, SESSION, TOKEN,
    TempHome, connect, exchange, finish, need_tool, read_to_end, request, skip, upstreamproxy,
};

/// Fails if the token is in `text`, plainly or as the opening carries it.
#[track_caller]
fn holds_no_secret(place: &str, text: impl AsRef<[u8]>) {
    let basic = BASE64.encode(format!("{SESSION}:{TOKEN}").as_bytes());
    for secret in [TOKEN, &basic, &BASE64.encode(TOKEN.as_bytes())] {
        let found = text
            .as_ref()
            .windows(secret.len())
            .any(|w| w == secret.as_bytes());
        assert!(
            !found,
            "{place}: {}",
            String::from_utf8_lossy(text.as_ref())
        );
    }
}

/// Every file under `folder`.
fn no_file_holds_a_secret(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => no_file_holds_a_secret(&path),
            kind if kind.is_file() => {
                holds_no_secret(&path.display().to_string(), fs::read(&path).unwrap());
            }
            _ => {}
        }
    }
}

fn talkative(command: &mut Command) -> &mut Command {
    command
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full")
}

#[test]
fn the_token_is_in_no_output_no_file_no_argument_and_no_environment() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &["-v"]);
    let mut command = upstreamproxy(&home);
    talkative(command.arg("serve"));
    let relay = RelayProcess::from(home.session(&mut command, &gateway.base_url()));
    holds_no_secret("the ready line", relay.ready.to_string());
    let (mut stream, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200);
    exchange(&mut stream, b"through".to_vec());

    // Refusals, too: of ours, of the target, of the gateway.
    for bytes in [
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n",
    ] {
        let (mut stream, answer) = request(relay.port(), bytes.as_bytes());
        holds_no_secret("a refusal's head", &answer.head);
        holds_no_secret(
            "a refusal",
            [answer.early, read_to_end(&mut stream).0].concat(),
        );
    }
    for file in ["cmdline", "environ"] {
        // Where only root can read it, others have nothing to find.
        if let Ok(content) = fs::read(format!("/proc/{}/{file}", relay.running.pid())) {
            holds_no_secret(file, content);
        }
    }
    no_file_holds_a_secret(home.path());
    let finished = relay.stop();
    assert!(
        finished.stderr.contains("upstreamproxy: debug: "),
        "the log was talkative: {finished:#?}"
    );
    holds_no_secret("the relay's log", &finished.stderr);
    holds_no_secret("the relay's output", &finished.stdout);
    holds_no_secret("the gateway's log", gateway.running.stop().stderr);
}

#[test]
fn the_token_is_in_no_childs_environment_and_no_log_of_a_run() {
    let home = TempHome::new();
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    let mut command = upstreamproxy(&home);
    talkative(command.args(["run", "--", "env", "-0"]));
    let finished = finish(home.session(&mut command, &gateway.base_url())).succeeded();
    assert!(finished.text().contains("HTTPS_PROXY="), "{finished:#?}");
    holds_no_secret("the child's environment", &finished.stdout);
    holds_no_secret("the log", &finished.stderr);
}

#[test]
fn the_token_is_in_no_log_of_a_session_that_breaks() {
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
        // The outside gateway was told the token, so its files are apart from ours.
        let elsewhere = TempHome::new();
        let gateway = PeerGateway::start(python, &elsewhere, &["--quirk", quirk]);
        let mut command = upstreamproxy(&home);
        talkative(command.arg("serve"));
        let relay = RelayProcess::from(home.session(&mut command, &gateway.base_url()));
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        holds_no_secret(quirk, &answer.head);
        holds_no_secret(
            quirk,
            [answer.early, exchange(&mut stream, b"x".to_vec()).0].concat(),
        );
        no_file_holds_a_secret(home.path());
        holds_no_secret(quirk, relay.stop().stderr);
    }
}

#[test]
fn the_token_stays_in_the_relay_when_a_real_client_goes_through() {
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start("origin.test"));
    let mut command = upstreamproxy(&home);
    talkative(&mut command)
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
    // The token is one that we never see, so look for what would carry it.
    for carrier in ["Bearer ", "Proxy-Authorization: Basic"] {
        assert!(
            !finished.stderr.contains(carrier),
            "{carrier}: {finished:#?}"
        );
    }
}

#[test]
fn a_process_of_the_same_user_cannot_read_our_memory() {
    let home = TempHome::new();
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    let mut command = home.as_unprivileged_user();
    let relay = RelayProcess::from(home.session(command.arg("serve"), &gateway.base_url()));
    // Its neighbour, of the same user: first a process that may be read, so that the refusal means something.
    let reads = |pid: &str| {
        let mut neighbour = home.command_as_unprivileged_user("cat");
        finish(neighbour.arg(format!("/proc/{pid}/maps")))
            .status
            .success()
    };
    if !reads("self") {
        return skip("/proc is closed here");
    }
    assert!(
        !reads(&relay.running.pid().to_string()),
        "its memory map can be read"
    );
}
