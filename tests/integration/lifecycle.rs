//! The lifecycle as users see it: each stage is made to fail, and the effects on the child and the
//! host are checked.
//!
//! Fail open means: the child runs with its original environment, its exit status is passed on, the
//! token file is unchanged, and one warning names the stage and the remedy.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use rustix::process::Signal;

use crate::support::{
    CannedServer, Finished, GatewayProcess, Running, TOKEN, TempHome, TestCa, binary, finish,
    upstreamproxy,
};

/// Prints its environment and exits with 42.
const CHILD: [&str; 3] = ["sh", "-c", "env -0; exit 42"];
/// The bundle that an earlier session left.
const OLD_BUNDLE: &str = "the bundle of an earlier session\n";

/// Makes one change to a session that would start.
type Change<'a> = &'a dyn Fn(&TempHome, &mut Command);

/// Runs the child with `run` and these options, and without it. Fails unless the child sees the
/// same environment.
#[track_caller]
fn fails_open(case: &str, base_url: &str, options: &[&str], change: Change) -> Finished {
    let home = TempHome::new();
    fs::create_dir(home.join(".ccr")).unwrap();
    fs::write(home.bundle(), OLD_BUNDLE).unwrap();

    let mut command = upstreamproxy(&home);
    home.session(
        command.arg("run").args(options).arg("--").args(CHILD),
        base_url,
    );
    change(&home, &mut command);
    let with = finish(&mut command);

    let mut command = home.command(CHILD[0]);
    home.session(command.args(&CHILD[1..]), base_url);
    let token = fs::symlink_metadata(home.token_file()).is_ok();
    change(&home, &mut command);
    let without = finish(&mut command);

    assert_eq!(with.status.code(), Some(42), "{case}: {with:#?}");
    assert_eq!(
        variables(&with),
        variables(&without),
        "{case}: the child's environment"
    );
    assert!(
        token || case.starts_with("no token"),
        "{case}: the token is gone"
    );
    assert_eq!(
        fs::read_to_string(home.bundle()).unwrap(),
        OLD_BUNDLE,
        "{case}"
    );
    let left: Vec<_> = fs::read_dir(home.join(".ccr"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("tmp"))
        .collect();
    assert!(left.is_empty(), "{case}: temporary files remain: {left:?}");
    assert!(!with.stderr.contains(TOKEN), "{case}: {with:#?}");
    with
}

/// The same, and there is exactly one warning, which names the stage.
#[track_caller]
fn fails_open_at(
    stage: &str,
    case: &str,
    base_url: &str,
    options: &[&str],
    change: Change,
) -> Finished {
    let finished = fails_open(case, base_url, options, change);
    let warnings = finished.warnings();
    assert_eq!(warnings.len(), 1, "{case}: one warning: {finished:#?}");
    assert!(
        warnings[0].contains(stage),
        "{case}: names {stage}: {warnings:?}"
    );
    assert!(
        warnings[0].contains("; "),
        "{case}: contains a remedy: {warnings:?}"
    );
    finished
}

fn variables(finished: &Finished) -> Vec<Vec<u8>> {
    let mut all: Vec<_> = finished
        .stdout
        .split(|&b| b == 0)
        .map(<[u8]>::to_vec)
        .collect();
    all.sort();
    all
}

/// Sets one variable.
fn set(name: &'static str, value: &'static str) -> impl Fn(&TempHome, &mut Command) {
    move |_, command| {
        command.env(name, value);
    }
}

/// Removes one variable.
fn unset(name: &'static str) -> impl Fn(&TempHome, &mut Command) {
    move |_, command| {
        command.env_remove(name);
    }
}

fn no_change(_: &TempHome, _: &mut Command) {}

// Enabled: the tests below each remove one of its conditions.

#[test]
fn a_complete_session_starts_and_burns_its_token() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let mut command = upstreamproxy(&home);
    command.arg("run").arg("--").args(CHILD);
    let finished = finish(home.session(&mut command, &gateway.base_url()));
    assert_eq!(finished.status.code(), Some(42), "{finished:#?}");
    assert_eq!(finished.warnings(), Vec::<&str>::new());
    assert!(!home.token_file().exists(), "the token is deleted");
    let child = finished.text();
    assert!(child.contains("HTTPS_PROXY=http://127.0.0.1:"), "{child}");
    assert!(
        child.contains("CLAUDE_CODE_REMOTE_SESSION_ID="),
        "children keep the session ID"
    );
    assert!(!child.contains(TOKEN));
    let bundle = fs::read_to_string(home.bundle()).unwrap();
    assert!(
        bundle.matches("BEGIN CERTIFICATE").count() > 1,
        "the base roots and the upstream's CA"
    );
    assert_eq!(
        fs::metadata(home.bundle()).unwrap().permissions().mode() & 0o777,
        0o644
    );
}

#[test]
fn a_second_start_with_the_same_token_is_disabled_with_a_warning() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let run = || {
        let mut command = upstreamproxy(&home);
        finish(home.session(command.args(["run", "--", "true"]), &gateway.base_url())).succeeded()
    };
    assert!(run().warnings().is_empty());
    let second = run();
    assert_eq!(second.warnings().len(), 1, "{second:#?}");
    assert!(second.warnings()[0].contains("token"), "{second:#?}");
}

// The gate.

#[test]
fn a_closed_gate_is_silent_and_touches_nothing() {
    let cases: [(&str, Change); 6] = [
        ("not remote", &unset("CLAUDE_CODE_REMOTE")),
        ("remote is off", &set("CLAUDE_CODE_REMOTE", "0")),
        ("not enabled", &unset("CCR_UPSTREAM_PROXY_ENABLED")),
        ("enabled is empty", &set("CCR_UPSTREAM_PROXY_ENABLED", "")),
        (
            "enabled is not a truthy word",
            &set("CCR_UPSTREAM_PROXY_ENABLED", "2"),
        ),
        ("never", &set("UPSTREAMPROXY_WHEN", "never")),
    ];
    for (case, change) in cases {
        let finished = fails_open(case, "http://127.0.0.1:9", &[], change);
        assert_eq!(finished.stderr, "", "{case}");
        let home = TempHome::new();
        let mut command = upstreamproxy(&home);
        home.session(command.args(["run", "--", "true"]), "http://127.0.0.1:9");
        change(&home, &mut command);
        finish(&mut command).succeeded();
        assert!(!home.join(".ccr").exists(), "{case}");
    }
    let never = fails_open(
        "--when never",
        "http://127.0.0.1:9",
        &["--when", "never"],
        &no_change,
    );
    assert_eq!(never.stderr, "");
}

#[test]
fn an_enabled_session_with_invalid_settings_gives_one_warning_at_the_gate() {
    let cases: [(&str, &str, Change); 13] = [
        (
            "no session",
            "http://127.0.0.1:9",
            &unset("CLAUDE_CODE_REMOTE_SESSION_ID"),
        ),
        (
            "blank session",
            "http://127.0.0.1:9",
            &set("CLAUDE_CODE_REMOTE_SESSION_ID", "  "),
        ),
        (
            "colon",
            "http://127.0.0.1:9",
            &set("CLAUDE_CODE_REMOTE_SESSION_ID", "a:b"),
        ),
        (
            "line",
            "http://127.0.0.1:9",
            &set("CLAUDE_CODE_REMOTE_SESSION_ID", "a\r\nb"),
        ),
        (
            "not ASCII",
            "http://127.0.0.1:9",
            &set("CLAUDE_CODE_REMOTE_SESSION_ID", "é"),
        ),
        ("plain http to elsewhere", "http://example.com", &no_change),
        (
            "userinfo",
            "https://user:canary-password@example.com",
            &no_change,
        ),
        ("query", "https://example.com/?a=b", &no_change),
        ("fragment", "https://example.com/#a", &no_change),
        ("not a URL", "example.com", &no_change),
        ("port 0", "https://example.com:0", &no_change),
        ("port too high", "https://example.com:99999", &no_change),
        (
            "a bad setting",
            "http://127.0.0.1:9",
            &set("UPSTREAMPROXY_KEEPALIVE", "soon"),
        ),
    ];
    for (case, base_url, change) in cases {
        let finished = fails_open_at("gate", case, base_url, &[], change);
        assert!(
            !finished.stderr.contains("canary-password"),
            "{finished:#?}"
        );
    }
}

#[test]
fn always_without_a_base_url_does_not_send_the_token() {
    fails_open_at("gate", "always", "", &["--when", "always"], &no_change);
}

#[test]
fn a_bad_value_in_a_flag_is_a_usage_error() {
    let home = TempHome::new();
    let mut command = upstreamproxy(&home);
    let finished = finish(
        command
            .args(["run", "--keepalive", "soon", "--"])
            .args(CHILD),
    );
    assert_eq!(finished.status.code(), Some(125), "{finished:#?}");
    assert!(finished.stdout.is_empty(), "the child did not run");
}

#[test]
fn require_does_not_run_the_child_and_exits_69_at_every_stage() {
    let cases: [(&str, Change); 3] = [
        ("gate off", &unset("CLAUDE_CODE_REMOTE")),
        ("no token", &|h, _| fs::remove_file(h.token_file()).unwrap()),
        ("no CA", &no_change),
    ];
    for (case, change) in cases {
        let home = TempHome::new();
        let mut command = upstreamproxy(&home);
        home.session(
            command.args(["run", "--require", "--"]).args(CHILD),
            "http://127.0.0.1:9",
        );
        change(&home, &mut command);
        let finished = finish(&mut command);
        assert_eq!(finished.status.code(), Some(69), "{case}: {finished:#?}");
        assert!(finished.stdout.is_empty(), "{case}: the child did not run");
        assert!(!finished.stderr.is_empty(), "{case}: gives a reason");
    }
}

// The token.

#[test]
fn an_unusable_token_gives_one_warning_at_the_token() {
    let cases: [(&str, Change); 13] = [
        ("no token file", &|h, _| {
            let _ = fs::remove_file(h.token_file());
        }),
        ("empty", &|h, _| h.write_token("")),
        ("white space", &|h, _| h.write_token(" \r\n\t ")),
        ("inner line end", &|h, _| h.write_token("one\r\ntwo")),
        ("inner space", &|h, _| h.write_token("one two")),
        ("NUL", &|h, _| h.write_token("one\0two")),
        ("byte order mark", &|h, _| h.write_token("\u{feff}one")),
        ("not UTF-8", &|h, _| h.write_token(b"\xff\xfe")),
        ("64 KiB and 1", &|h, _| {
            h.write_token(vec![b'a'; 64 * 1024 + 1]);
        }),
        ("sparse 1 TiB", &|h, _| {
            fs::File::create(h.token_file())
                .unwrap()
                .set_len(1 << 40)
                .unwrap();
        }),
        ("a directory", &|h, c| {
            fs::create_dir_all(h.join("directory")).unwrap();
            c.env("UPSTREAMPROXY_TOKEN_FILE", h.join("directory"));
        }),
        ("/dev/zero", &set("UPSTREAMPROXY_TOKEN_FILE", "/dev/zero")),
        ("a link to another directory", &|h, c| {
            let link = h.join("link");
            if !link.is_symlink() {
                symlink("/proc/sys/kernel/ostype", &link).unwrap();
            }
            c.env("UPSTREAMPROXY_TOKEN_FILE", link);
        }),
    ];
    for (case, change) in cases {
        fails_open_at("token", case, "http://127.0.0.1:9", &[], change);
    }
}

#[test]
fn a_token_that_others_can_read_gives_only_a_warning() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    home.write("session_token", TOKEN, 0o644);
    let mut command = upstreamproxy(&home);
    let finished = finish(home.session(
        command.args(["run", "--", "sh", "-c", "echo $HTTPS_PROXY"]),
        &gateway.base_url(),
    ));
    assert!(
        finished.text().starts_with("http://127.0.0.1:"),
        "{finished:#?}"
    );
    assert_eq!(finished.warnings().len(), 1, "{finished:#?}");
    assert!(finished.warnings()[0].contains("token"), "{finished:#?}");
}

// The CA.

#[test]
fn an_invalid_ca_download_gives_one_warning_at_the_ca() {
    let good = TestCa::new("good").pem;
    let ca_and_key = {
        let (certificate, key) = TestCa::new("with a key").issue("a.test");
        certificate + &key
    };
    let elsewhere = CannedServer::answering("200 OK", good.as_bytes());
    let redirect = |status: &str| {
        let head = format!(
            "HTTP/1.1 {status}\r\nLocation: {}/\r\nContent-Length: 0\r\n\r\n",
            elsewhere.url()
        );
        CannedServer::start(head)
    };
    let endless = {
        let mut body = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{good}").into_bytes();
        body.resize(3 << 20, b'\n');
        CannedServer::start(body)
    };
    let cases = [
        (
            "a captive portal",
            CannedServer::answering("200 OK", b"<html>Please log in</html>"),
        ),
        ("empty", CannedServer::answering("200 OK", b"")),
        (
            "no content",
            CannedServer::start("HTTP/1.1 204 No Content\r\n\r\n"),
        ),
        (
            "partial content",
            CannedServer::answering("206 Partial Content", good.as_bytes()),
        ),
        (
            "created",
            CannedServer::answering("201 Created", good.as_bytes()),
        ),
        (
            "not found",
            CannedServer::answering("404 Not Found", good.as_bytes()),
        ),
        (
            "unavailable",
            CannedServer::answering("503 Service Unavailable", b""),
        ),
        ("moved", redirect("301 Moved Permanently")),
        ("found", redirect("302 Found")),
        ("temporarily", redirect("307 Temporary Redirect")),
        ("permanently", redirect("308 Permanent Redirect")),
        (
            "cut off",
            CannedServer::answering("200 OK", &good.as_bytes()[..good.len() / 2]),
        ),
        (
            "not base64",
            CannedServer::answering(
                "200 OK",
                b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
            ),
        ),
        (
            "not DER",
            CannedServer::answering(
                "200 OK",
                b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
            ),
        ),
        (
            "a private key in it",
            CannedServer::answering("200 OK", ca_and_key.as_bytes()),
        ),
        ("over 1 MiB", endless),
        (
            "shorter than its length",
            CannedServer::start(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{good}"
            )),
        ),
        ("not HTTP", CannedServer::start("SSH-2.0-x\r\n\r\n")),
        ("silent", CannedServer::start("")),
    ];
    for (case, server) in cases {
        fails_open_at("ca", case, &server.url(), &[], &no_change);
        assert!(
            server.connections() > 0,
            "{case}: the server got no request"
        );
    }
    assert_eq!(elsewhere.connections(), 0, "a redirect was followed");
}

#[test]
fn a_ca_that_cannot_be_merged_or_written_gives_one_warning_at_the_ca() {
    let gateway_home = TempHome::new();
    let gateway = GatewayProcess::start(&gateway_home, &[]);
    let cases: [(&str, &[&str], Change); 5] = [
        (
            "no base roots",
            &["--system-ca", "/nonexistent/roots.pem"],
            &no_change,
        ),
        (
            "empty base roots",
            &["--system-ca", "/dev/null"],
            &no_change,
        ),
        ("no home", &[], &unset("HOME")),
        ("relative home", &[], &set("HOME", "home")),
        ("home is a file", &[], &set("HOME", binary())),
    ];
    for (case, options, change) in cases {
        fails_open_at("ca", case, &gateway.base_url(), options, change);
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    fails_open_at(
        "ca",
        "refused",
        &format!("http://{address}"),
        &[],
        &no_change,
    );
}

#[test]
fn a_link_in_place_of_the_bundle_is_replaced_and_not_followed() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let precious = home.write("precious", "keep me", 0o600);
    fs::create_dir(home.join(".ccr")).unwrap();
    symlink(&precious, home.bundle()).unwrap();
    let mut command = upstreamproxy(&home);
    finish(home.session(command.args(["run", "--", "true"]), &gateway.base_url())).succeeded();
    assert_eq!(fs::read_to_string(precious).unwrap(), "keep me");
    assert!(!home.bundle().is_symlink());
}

// The relay.

#[test]
fn a_relay_that_cannot_listen_keeps_the_token() {
    let gateway_home = TempHome::new();
    let gateway = GatewayProcess::start(&gateway_home, &[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|a| (taken, a.to_string())).unwrap();
    let home = TempHome::new();
    let mut command = upstreamproxy(&home);
    command
        .args(["run", "--listen", &taken.1, "--"])
        .args(CHILD);
    let finished = finish(home.session(&mut command, &gateway.base_url()));
    assert_eq!(finished.status.code(), Some(42), "{finished:#?}");
    assert_eq!(finished.warnings().len(), 1, "{finished:#?}");
    assert!(finished.warnings()[0].contains("relay"), "{finished:#?}");
    assert!(!finished.text().contains("HTTPS_PROXY"), "{finished:#?}");
    assert_eq!(
        fs::read_to_string(home.token_file()).unwrap(),
        TOKEN,
        "a retry is possible"
    );
}

// The burn.

#[test]
fn a_token_that_cannot_be_deleted_gives_a_warning_and_the_relay_runs() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    // File modes do not restrict root.
    let mut command = home.as_unprivileged_user();
    let directory = home.join("read-only");
    fs::create_dir(&directory).unwrap();
    let token = directory.join("session_token");
    fs::rename(home.token_file(), &token).unwrap();
    // A file that the user can write to would be emptied.
    fs::set_permissions(&token, fs::Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o555)).unwrap();
    home.session(
        command.args(["run", "--", "sh", "-c", "echo $HTTPS_PROXY; exit 42"]),
        &gateway.base_url(),
    );
    command.env("UPSTREAMPROXY_TOKEN_FILE", &token);
    let finished = finish(&mut command);
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(finished.status.code(), Some(42), "{finished:#?}");
    assert!(
        finished.text().starts_with("http://127.0.0.1:"),
        "{finished:#?}"
    );
    assert_eq!(finished.warnings().len(), 1, "{finished:#?}");
    assert!(finished.warnings()[0].contains("burn"), "{finished:#?}");
    assert_eq!(fs::read_to_string(&token).unwrap(), TOKEN);
}

// `run` itself.

#[test]
fn run_exits_with_the_status_of_the_child() {
    let home = TempHome::new();
    for code in [0, 1, 42, 255] {
        let mut command = upstreamproxy(&home);
        let finished = finish(command.args(["run", "--", "sh", "-c", &format!("exit {code}")]));
        assert_eq!(finished.status.code(), Some(code));
    }
    let mut command = upstreamproxy(&home);
    let killed = finish(command.args(["run", "--", "sh", "-c", "kill -TERM $$"]));
    assert_eq!(killed.status.code(), Some(128 + 15), "{killed:#?}");
}

#[test]
fn a_command_that_cannot_run_burns_nothing() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let plain = home.write("plain", "", 0o644);
    for (command, code) in [
        ("no-such-command-here", 127),
        (plain.to_str().unwrap(), 126),
        ("/", 126),
    ] {
        let mut run = upstreamproxy(&home);
        let finished = finish(home.session(run.args(["run", "--", command]), &gateway.base_url()));
        assert_eq!(
            finished.status.code(),
            Some(code),
            "{command}: {finished:#?}"
        );
        assert!(
            home.token_file().exists(),
            "{command}: the token file is gone"
        );
    }
}

#[test]
fn arguments_reach_the_child_byte_for_byte() {
    use std::os::unix::ffi::OsStrExt;
    let home = TempHome::new();
    let odd: [&[u8]; 6] = [b"a b", b"line\nend", b"\xff\xfe", b"--", b"", b"--when"];
    let mut command = upstreamproxy(&home);
    command.args(["run", "--", "printf", "%s\\0"]);
    command.args(odd.map(std::ffi::OsStr::from_bytes));
    let finished = finish(&mut command).succeeded();
    assert_eq!(finished.stdout, [odd.join(&0), vec![0]].concat());
}

#[test]
fn a_signal_from_another_process_reaches_the_child_once() {
    // `wait` lets the trap run at once. A second TERM would exit with 9. `sleep` does not inherit
    // the pipes: a shell may lose a signal that arrives directly after its fork, and then `sleep`
    // remains.
    const CHILD: &str = r#"
        trap 'echo "{\"got\":\"TERM\"}"; kill $!; trap "exit 9" TERM; exit 7' TERM
        sleep 600 >/dev/null 2>&1 & echo '{"ready":true}'; wait"#;
    let home = TempHome::new();
    let mut command = upstreamproxy(&home);
    let (running, _) = Running::ready(command.args(["run", "--", "sh", "-c", CHILD]));
    running.signal(Signal::TERM);
    assert_eq!(running.json()["got"], "TERM");
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(7), "{finished:#?}");
    assert_eq!(finished.text(), "", "the signal arrived once");
}

#[test]
fn a_signal_during_set_up_ends_run_without_a_child_and_keeps_the_token() {
    let home = TempHome::new();
    // An upstream that accepts the request for the CA and does not answer, so set-up is in
    // progress.
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let base_url = format!("http://{}", upstream.local_addr().unwrap());
    let mut command = upstreamproxy(&home);
    command.arg("run").arg("--").args(CHILD);
    let running = Running::spawn(home.session(&mut command, &base_url));
    let _connection = upstream.accept().unwrap();
    running.signal(Signal::TERM);
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(128 + 15), "{finished:#?}");
    assert!(finished.stdout.is_empty(), "the child ran");
    assert_eq!(fs::read_to_string(home.token_file()).unwrap(), TOKEN);
}
