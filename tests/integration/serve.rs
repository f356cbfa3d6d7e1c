//! `serve` and `env` beside a gateway of their own, as an operator runs them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    EchoServer, Ending, GatewayProcess, HalfCloseServer, RelayProcess, ResourceCounts, TIMEOUT,
    TempHome, TestCa, binary, connect, exchange, finish, pattern, read_to_end, request,
    upstreamproxy,
};

/// A gateway over TLS with a certificate of the test's own, and the option that makes `serve` trust it.
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

/// Fails unless the state file says all that the ready line of `relay` said; `env` may find more in it.
#[track_caller]
fn state_is_of(home: &TempHome, relay: &RelayProcess) {
    let state: Value = serde_json::from_slice(&fs::read(state_file(home)).unwrap()).unwrap();
    for (name, value) in relay.ready.as_object().unwrap() {
        assert_eq!(&state[name], value, "{name}");
    }
}

/// A socket that the notifications of `sd_notify` come to.
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
fn serve_over_wss_says_what_it_set_up_and_leaves_nothing_behind() {
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let (gateway, trust) = tls_gateway(&home);
    assert!(gateway.base_url().starts_with("https://"));
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[&trust]);

    assert!(!home.token_file().exists(), "burnt");
    assert_eq!(relay.ready["pid"], relay.running.pid());
    assert_eq!(relay.ready["ca_bundle"], home.bundle().to_str().unwrap());
    let proxy = format!("http://127.0.0.1:{}", relay.port());
    assert_eq!(relay.ready["env"]["HTTPS_PROXY"], proxy);
    assert_eq!(
        relay.ready["env"]["SSL_CERT_FILE"],
        relay.ready["ca_bundle"]
    );
    state_is_of(&home, &relay);
    let mode = fs::metadata(state_file(&home))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let payload = pattern(8 << 20);
    let (mut stream, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.head, "HTTP/1.1 200 Connection Established");
    let (came, ending) = exchange(&mut stream, payload.clone());
    assert_eq!(
        (came, ending),
        (HalfCloseServer::answer(&payload), Ending::Eof)
    );

    let finished = relay.stop().succeeded();
    assert_eq!(
        finished.text(),
        "",
        "one line of standard output and no more"
    );
    assert!(
        finished.stderr.contains(&target.authority()),
        "a line for the tunnel: {finished:#?}"
    );
    assert!(finished.warnings().is_empty(), "{finished:#?}");
    assert!(!state_file(&home).exists());
    assert!(home.bundle().exists(), "a child may outlive us");
}

#[test]
fn a_gateway_that_nobody_vouches_for_gets_no_token() {
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
fn env_is_what_a_shell_evaluates() {
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

    // NO_PROXY is the asking shell's, merged; doing it twice changes nothing.
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
    for format in ["fish", "powershell", "dotenv"] {
        let said = finish(upstreamproxy(&home).args(["env", "--format", format])).succeeded();
        assert!(said.text().contains(lines[0]), "{format}: {said:#?}");
    }

    relay.stop().succeeded();
    let without = finish(upstreamproxy(&home).arg("env"));
    assert_eq!(without.status.code(), Some(1), "{without:#?}");
    assert!(without.stdout.is_empty());
    assert_eq!(without.stderr.lines().count(), 1, "{without:#?}");
}

#[test]
fn env_believes_no_state_file_of_a_serve_that_was_killed() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    relay.running.signal(Signal::KILL);
    relay.running.wait();
    assert!(state_file(&home).exists(), "nobody removed it");
    let finished = finish(upstreamproxy(&home).arg("env"));
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    assert!(finished.stdout.is_empty());
}

#[test]
fn a_disabled_serve_says_so_is_ready_and_exits_0() {
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

/// A `serve` that notifies, one tunnel to `target` through it, and SIGTERM on its way: the drain has begun.
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
    // The last bytes go up: this tunnel waits for an answer.
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
    let (came, ending) = exchange(&mut stream, payload.clone());
    let sent = [b"first ".to_vec(), payload].concat();
    assert_eq!(
        (came, ending),
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
fn the_second_serve_in_a_home_keeps_its_files_under_names_of_its_own() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let first = RelayProcess::start(&home, &gateway.base_url(), &[]);
    home.write_token(crate::support::TOKEN);
    let second = RelayProcess::start(&home, &gateway.base_url(), &[]);
    assert_ne!(first.ready["ca_bundle"], second.ready["ca_bundle"]);
    // The first owns the state file.
    state_is_of(&home, &first);
    second.stop().succeeded();
    assert!(
        state_file(&home).exists(),
        "and keeps it when the second goes"
    );
    first.stop().succeeded();
}

#[test]
fn what_is_no_connect_request_gets_its_status_and_a_reason() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let long = format!(
        "CONNECT a.test:443 HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(17 << 10)
    );
    let cases: [(&[u8], u16); 12] = [
        (b"GET http://a.test/ HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 405),
        (b"\x05\x01\x00", 400),
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
        assert_eq!(ending, Ending::Eof, "{case}: the refusal is read whole");
    }
}

#[test]
fn at_the_cap_the_next_client_is_told_to_come_again() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--max-tunnels", "2"]);
    let mut held: Vec<_> = (0..2)
        .map(|_| connect(relay.port(), &target.authority()))
        .collect();
    let (mut refused, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("Retry-After: 1"), "{answer:?}");
    assert_eq!(read_to_end(&mut refused).1, Ending::Eof);
    // Those within the cap go on.
    for (stream, _) in &mut held {
        stream.write_all(b"still here").unwrap();
        let mut came = [0; 10];
        stream.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"still here");
    }
}

#[test]
fn after_a_hundred_tunnels_threads_and_descriptors_are_what_they_were() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    // One tunnel first: what is made once and kept counts as the beginning.
    exchange(
        &mut connect(relay.port(), &target.authority()).0,
        pattern(10),
    );
    let (ours, theirs) = (relay.running.pid(), gateway.running.pid());
    let mut open: Vec<TcpStream> = Vec::new();
    let (Some(relay_before), Some(gateway_before)) =
        (ResourceCounts::of(ours), ResourceCounts::of(theirs))
    else {
        return;
    };
    for round in 0..100 {
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        assert_eq!(answer.status, 200, "{round}: {answer:?}");
        match round % 4 {
            0 => drop(exchange(&mut stream, pattern(100_000))),
            1 => stream.shutdown(Shutdown::Both).unwrap(),
            2 => open.push(stream),
            // A client that leaves with unread bytes resets.
            _ => stream.write_all(&pattern(100_000)).unwrap(),
        }
    }
    drop(open);
    relay_before.wait_until_restored(ours);
    gateway_before.wait_until_restored(theirs);
}
