//! `serve` and `env` with a separate gateway process, as an operator runs them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    EchoServer, Ending, GatewayProcess, HalfCloseServer, RelayProcess, ResourceCounts, Running,
    SESSION, TIMEOUT, TOKEN, TempHome, TestCa, binary, connect, exchange, finish, need_tool,
    pattern, read_to_end, request, upstreamproxy,
};

/// Starts a gateway over TLS with a test certificate. Also returns the option that makes `serve`
/// trust it.
pub(crate) fn tls_gateway(home: &TempHome) -> (GatewayProcess, String) {
    let ca = TestCa::new("root of the gateway");
    let (certificate, key) = ca.issue("127.0.0.1");
    let certificate = home.write("gateway.pem", certificate, 0o644);
    let key = home.write("gateway.key", key, 0o600);
    let trust = home.write("gateway-root.pem", &ca.pem, 0o644);
    let options = [
        "--tls-cert",
        certificate.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ];
    let gateway = GatewayProcess::start(home, &options);
    (gateway, format!("--upstream-ca={}", trust.display()))
}

fn state_file(home: &TempHome) -> std::path::PathBuf {
    home.join(".ccr/upstreamproxy.json")
}

/// Fails unless the state file contains every value of the ready line of `relay`. It may contain
/// more, for `env`.
#[track_caller]
fn assert_state_of(home: &TempHome, relay: &RelayProcess) {
    let state: Value = serde_json::from_slice(&fs::read(state_file(home)).unwrap()).unwrap();
    for (name, value) in relay.ready.as_object().unwrap() {
        assert_eq!(&state[name], value, "{name}");
    }
}

/// A socket that receives the `sd_notify` notifications.
fn notify_socket(home: &TempHome) -> UnixDatagram {
    let socket = UnixDatagram::bind(home.join("notify")).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

#[track_caller]
fn wait_for_notification(socket: &UnixDatagram, wanted: &str) {
    let mut buffer = [0; 4096];
    loop {
        let read = socket
            .recv(&mut buffer)
            .unwrap_or_else(|e| panic!("{wanted}: {e}"));
        if String::from_utf8_lossy(&buffer[..read])
            .lines()
            .any(|line| line == wanted)
        {
            return;
        }
    }
}

#[test]
fn serve_over_wss_reports_its_setup_and_removes_its_state_file() {
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let (gateway, trust) = tls_gateway(&home);
    assert!(gateway.base_url().starts_with("https://"));
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[&trust]);

    assert!(!home.token_file().exists(), "the token file is deleted");
    assert_eq!(relay.ready["pid"], relay.running.pid());
    assert_eq!(relay.ready["ca_bundle"], home.bundle().to_str().unwrap());
    let proxy = format!("http://127.0.0.1:{}", relay.port());
    assert_eq!(relay.ready["env"]["HTTPS_PROXY"], proxy);
    assert_eq!(
        relay.ready["env"]["SSL_CERT_FILE"],
        relay.ready["ca_bundle"]
    );
    assert_state_of(&home, &relay);
    let mode = fs::metadata(state_file(&home))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let payload = pattern(8 << 20);
    let (mut stream, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.head, "HTTP/1.1 200 Connection Established");
    let (received, ending) = exchange(&mut stream, payload.clone());
    assert_eq!(
        (received, ending),
        (HalfCloseServer::answer(&payload), Ending::Eof)
    );

    let finished = relay.stop().succeeded();
    assert_eq!(finished.text(), "", "exactly one line on standard output");
    assert!(
        finished.stderr.contains(&target.authority()),
        "one log line for the tunnel: {finished:#?}"
    );
    assert!(finished.warnings().is_empty(), "{finished:#?}");
    assert!(!state_file(&home).exists());
    assert!(
        home.bundle().exists(),
        "a child process may outlive the relay and still need the bundle"
    );
}

#[test]
fn a_gateway_with_an_untrusted_certificate_gets_no_token() {
    let home = TempHome::new();
    let (gateway, _) = tls_gateway(&home);
    let mut command = upstreamproxy(&home);
    let finished = finish(home.session(command.arg("serve"), &gateway.base_url())).succeeded();
    let line: Value = serde_json::from_slice(&finished.stdout).unwrap();
    assert_eq!(
        (&line["enabled"], &line["stage"]),
        (&false.into(), &"ca".into()),
        "{line}"
    );
    assert!(home.token_file().exists());
}

#[test]
fn a_shell_can_evaluate_the_output_of_env() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let script = "eval \"$(\"$0\" env)\" && printf '%s\\n' \"$HTTPS_PROXY\" \"$SSL_CERT_FILE\" \"$NO_PROXY\"";
    let shell = || home.command("sh");
    let evaluated = finish(shell().args(["-c", script, binary()]))
        .succeeded()
        .text();
    let lines: Vec<_> = evaluated.lines().collect();
    assert_eq!(lines[0], relay.ready["env"]["HTTPS_PROXY"]);
    assert_eq!(lines[1], relay.ready["env"]["SSL_CERT_FILE"]);

    // The NO_PROXY of the calling shell is merged in. Evaluating twice changes nothing.
    let twice = format!("export NO_PROXY=of.the.shell; eval \"$(\"$0\" env)\"; {script}");
    let twice = finish(shell().args(["-c", &twice, binary()]))
        .succeeded()
        .text();
    let merged = twice.lines().nth(2).unwrap();
    assert_eq!(merged.matches("of.the.shell").count(), 1, "{merged}");
    assert!(merged.starts_with("localhost,127.0.0.1"), "{merged}");
    assert_eq!(
        merged.matches("metadata.google.internal").count(),
        1,
        "{merged}"
    );

    let json = finish(upstreamproxy(&home).args(["env", "--format", "json"])).succeeded();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json, relay.ready["env"]);
    for format in [
        "fish",
        "powershell",
        "dotenv",
        "github",
        "docker",
        "systemd",
    ] {
        let finished = finish(upstreamproxy(&home).args(["env", "--format", format])).succeeded();
        assert!(
            finished.text().contains(lines[0]),
            "{format}: {finished:#?}"
        );
    }

    relay.stop().succeeded();
    let without = finish(upstreamproxy(&home).arg("env"));
    assert_eq!(without.status.code(), Some(1), "{without:#?}");
    assert!(without.stdout.is_empty());
    assert_eq!(without.stderr.lines().count(), 1, "{without:#?}");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config {
        failure_persistence: None,
        ..proptest::test_runner::Config::with_cases(6)
    })]

    #[test]
    fn shells_read_back_every_value_that_env_quotes(
        values in proptest::collection::vec("[ -~\\n\\t\\\\'\"$`%é]{1,12}", 3),
    ) {
        const NAMES: [&str; 3] = ["JAVA_TOOL_OPTIONS", "HGRCPATH", "PHP_INI_SCAN_DIR"];
        let home = TempHome::new();
        let gateway = GatewayProcess::start(&home, &[]);
        let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
        for (shell, script) in [
            ("sh", r#"eval "$(up env)""#),
            ("fish", "up env --format fish | source"),
        ] {
            if !need_tool(shell) {
                continue;
            }
            let directory = home.path().join("bin");
            let _ = std::fs::create_dir(&directory);
            let _ = std::os::unix::fs::symlink(binary(), directory.join("up"));
            let path = format!("{}:/usr/bin:/bin", directory.display());
            let script = format!("{script}; printf '%s\\0' {}", NAMES.map(|n| format!("\"${n}\"")).join(" "));
            let environment = NAMES.into_iter().zip(&values);
            let mut command = home.command(shell);
            command.args(["-c", &script]).env("PATH", path).envs(environment);
            let seen = finish(&mut command).succeeded().text();
            for ((name, value), seen) in NAMES.iter().zip(&values).zip(seen.split('\0')) {
                let (inherited, own) = seen.split_at(value.len().min(seen.len()));
                proptest::prop_assert_eq!(inherited, value, "{}", name);
                proptest::prop_assert!(own.contains("ca-bundle.crt"), "{} {}", name, own);
            }
        }
        relay.stop().succeeded();
    }
}

#[test]
fn a_shell_can_leave_the_proxy_also_after_serve_has_ended() {
    const SCRIPT: &str = r#"
        seen() { env | grep -v '^_='; }
        export JAVA_TOOL_OPTIONS=-Da=b PHP_INI_SCAN_DIR=/p:
        before=$(seen)
        eval "$("$0" env)" && once=$(seen)
        eval "$("$0" env)" && twice=$(seen)
        kill "$1" && while kill -0 "$1" 2>/dev/null; do sleep 0.05; done
        eval "$("$0" env --unset)" && after=$(seen)
        test "$once" != "$before" && test "$twice" = "$once" || exit 3
        test "$after" = "$before" || { echo "$after"; exit 4; }
        "$0" env --unset
    "#;
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let pid = relay.running.pid().to_string();
    // A process that has ended is signalled until it is waited for, so that this thread waits.
    let waiting = std::thread::spawn(move || relay.running.wait());
    let left = finish(home.command("sh").args(["-c", SCRIPT, binary(), &pid])).succeeded();
    assert_eq!(left.text(), "");
    assert!(left.stderr.contains("nothing is removed"), "{left:#?}");
    waiting.join().unwrap();

    let refused = finish(upstreamproxy(&home).args(["env", "--unset", "--format", "docker"]));
    assert_eq!(refused.status.code(), Some(2), "{refused:#?}");
}

#[test]
fn env_ignores_the_state_file_of_a_killed_serve() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    relay.running.signal(Signal::KILL);
    relay.running.wait();
    assert!(
        state_file(&home).exists(),
        "a killed process cannot remove it"
    );
    let finished = finish(upstreamproxy(&home).arg("env"));
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    assert!(finished.stdout.is_empty());
}

#[test]
fn a_disabled_serve_reports_why_notifies_ready_and_exits_0() {
    let home = TempHome::new();
    let socket = notify_socket(&home);
    fs::remove_file(home.token_file()).unwrap();
    let mut command = upstreamproxy(&home);
    command
        .arg("serve")
        .env("NOTIFY_SOCKET", home.join("notify"));
    let finished = finish(home.session(&mut command, "http://127.0.0.1:9")).succeeded();
    let line: Value = serde_json::from_slice(&finished.stdout).unwrap();
    assert_eq!(
        (&line["enabled"], &line["stage"]),
        (&false.into(), &"token".into()),
        "{line}"
    );
    assert!(!line["reason"].as_str().unwrap().is_empty());
    wait_for_notification(&socket, "READY=1");
    assert!(!state_file(&home).exists());
}

/// Starts a `serve` that notifies, opens one tunnel to `target` through it, and sends SIGTERM. The
/// drain has started when this returns.
fn draining(
    home: &TempHome,
    gateway: &GatewayProcess,
    target: &str,
    options: &[&str],
) -> (RelayProcess, TcpStream) {
    let socket = notify_socket(home);
    let mut command = upstreamproxy(home);
    command
        .arg("serve")
        .args(options)
        .env("NOTIFY_SOCKET", home.join("notify"));
    let relay = RelayProcess::from(home.session(&mut command, &gateway.base_url()));
    wait_for_notification(&socket, "READY=1");
    let (mut stream, answer) = connect(relay.port(), target);
    assert_eq!(answer.status, 200);
    // The last bytes of the tunnel go up, so it counts as waiting for an answer.
    stream.write_all(b"first ").unwrap();
    relay.running.signal(Signal::TERM);
    wait_for_notification(&socket, "STOPPING=1");
    (relay, stream)
}

#[test]
fn a_drain_lets_an_open_tunnel_finish_and_exits_0() {
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let (relay, mut stream) = draining(&home, &gateway, &target.authority(), &[]);
    let payload = pattern(4 << 20);
    let (received, ending) = exchange(&mut stream, payload.clone());
    let sent = [b"first ".to_vec(), payload].concat();
    assert_eq!(
        (received, ending),
        (HalfCloseServer::answer(&sent), Ending::Eof)
    );
    let finished = relay.running.wait();
    assert_eq!(finished.status.code(), Some(0), "{finished:#?}");
}

#[test]
fn a_tunnel_cut_at_the_deadline_is_reset_and_the_exit_status_is_1() {
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let options = ["--drain-timeout", "300ms"];
    let (relay, mut stream) = draining(&home, &gateway, &target.authority(), &options);
    assert_eq!(read_to_end(&mut stream), (vec![], Ending::Reset));
    let finished = relay.running.wait();
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
}

#[test]
fn a_second_signal_ends_the_drain_at_once() {
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let options = ["--drain-timeout", "10m"];
    let (relay, _stream) = draining(&home, &gateway, &target.authority(), &options);
    relay.running.signal(Signal::TERM);
    let finished = relay.running.wait();
    assert_eq!(finished.status.code(), Some(128 + 15), "{finished:#?}");
}

#[test]
fn a_second_serve_in_the_same_home_uses_other_file_names() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let first = RelayProcess::start(&home, &gateway.base_url(), &[]);
    home.write_token(crate::support::TOKEN);
    let second = RelayProcess::start(&home, &gateway.base_url(), &[]);
    assert_ne!(first.ready["ca_bundle"], second.ready["ca_bundle"]);
    // The first relay owns the state file.
    assert_state_of(&home, &first);
    second.stop().succeeded();
    assert!(
        state_file(&home).exists(),
        "the first relay keeps it when the second one stops"
    );
    first.stop().succeeded();
}

#[test]
fn a_request_that_is_not_a_valid_connect_gets_its_status_and_a_reason() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let long = format!(
        "CONNECT a.test:443 HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(17 << 10)
    );
    let cases: [(&[u8], u16); 12] = [
        (b"GET ftp://a.test/ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 405),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"CONNECT a.test HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT a.test:0 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT a.test:65536 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT ::1:443 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT a.test:443 HTTP/1.1\nHost: a\n\n", 400),
        (
            b"CONNECT a.test:443 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            400,
        ),
        (long.as_bytes(), 431),
    ];
    for (bytes, status) in cases {
        let case = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let (mut stream, answer) = request(relay.port(), bytes);
        assert_eq!(answer.status, status, "{case}: {answer:?}");
        assert_eq!(
            answer.has_field("Allow"),
            status == 405,
            "{case}: {answer:?}"
        );
        let (rest, ending) = read_to_end(&mut stream);
        let body = String::from_utf8([answer.early, rest].concat()).unwrap();
        assert!(
            !body.trim().is_empty() && !body.contains("a.test"),
            "{case}: {body:?}"
        );
        assert_eq!(
            ending,
            Ending::Eof,
            "{case}: the client can read the whole refusal"
        );
    }
}

#[test]
fn at_the_tunnel_limit_the_next_client_gets_503_and_retry_after() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--max-tunnels", "2"]);
    let mut open: Vec<_> = (0..2)
        .map(|_| connect(relay.port(), &target.authority()))
        .collect();
    let (mut refused, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("Retry-After: 1"), "{answer:?}");
    assert_eq!(read_to_end(&mut refused).1, Ending::Eof);
    // The tunnels within the limit continue.
    for (stream, _) in &mut open {
        stream.write_all(b"still here").unwrap();
        let mut received = [0; 10];
        stream.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"still here");
    }
    let (_, again) = connect(relay.port(), &target.authority());
    assert_eq!(again.status, 503, "{again:?}");
    let log = relay.stop().stderr;
    let lines = log.matches("all 2 slots are in use: 1 connections were refused");
    assert_eq!(lines.count(), 1, "one line for both: {log}");
}

#[test]
fn a_gateway_without_a_free_slot_is_reported_as_503_with_retry_after() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &["--max-tunnels", "2"]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--standby", "0"]);
    let _open: Vec<_> = (0..2)
        .map(|_| connect(relay.port(), &target.authority()))
        .collect();
    let (mut refused, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("Retry-After: 1"), "{answer:?}");
    assert!(
        answer.head.contains("connection_limit_reached"),
        "{answer:?}"
    );
    assert_eq!(read_to_end(&mut refused).1, Ending::Eof);
    let log = relay.stop().stderr;
    assert!(log.contains("refused 503 in upgrade"), "{log}");
    let log = gateway.running.stop().stderr;
    assert!(log.contains("all 2 slots are in use"), "{log}");
}

#[test]
fn the_soft_limit_on_descriptors_is_raised_and_the_child_gets_the_inherited_one() {
    let home = TempHome::new();
    let under_limit = |script: &str| {
        let mut command = home.command("sh");
        command.args(["-c", script, binary()]);
        finish(&mut command).succeeded().text()
    };
    let printed =
        under_limit("ulimit -n 512; ulimit -S -n 256; exec \"$0\" run -- sh -c 'ulimit -S -n'");
    assert!(printed.lines().any(|line| line == "256"), "{printed}");

    let sessions = home.write("sessions", format!("{SESSION} {TOKEN}\n"), 0o600);
    let mut command = home.command("sh");
    let script = "ulimit -n 512; ulimit -S -n 256; exec \"$0\" \"$@\"";
    command
        .args(["-c", script, binary(), "gateway", "--listen", "127.0.0.1:0"])
        .arg("--sessions")
        .arg(sessions);
    let (_running, ready) = Running::ready(&mut command);
    // A quarter of the hard limit.
    assert_eq!(ready["max_tunnels"], 128, "{ready}");
    assert_eq!(ready["max_tunnels_reason"], "descriptors (ulimit -n)");
}

#[test]
fn after_a_hundred_tunnels_the_counts_of_threads_and_descriptors_are_restored() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    // One tunnel first: resources that are created once and kept belong to the baseline.
    exchange(
        &mut connect(relay.port(), &target.authority()).0,
        pattern(10),
    );
    let (relay_pid, gateway_pid) = (relay.running.pid(), gateway.running.pid());
    let mut open: Vec<TcpStream> = Vec::new();
    let (Some(relay_before), Some(gateway_before)) = (
        ResourceCounts::of(relay_pid),
        ResourceCounts::of(gateway_pid),
    ) else {
        return;
    };
    for round in 0..100 {
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        assert_eq!(answer.status, 200, "{round}: {answer:?}");
        match round % 4 {
            0 => drop(exchange(&mut stream, pattern(100_000))),
            1 => stream.shutdown(Shutdown::Both).unwrap(),
            2 => open.push(stream),
            // A client that closes with unread bytes resets.
            _ => stream.write_all(&pattern(100_000)).unwrap(),
        }
    }
    drop(open);
    relay_before.wait_until_restored(relay_pid);
    gateway_before.wait_until_restored(gateway_pid);
}
