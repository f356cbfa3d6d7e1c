//! A gateway on a public network: many connections without a token, credentials in every wrong
//! form, forbidden targets, and interception that connects only to the host of the CONNECT request.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use upstreamproxy::gateway::{GatewayConfig, Sessions, TlsIdentity};
use upstreamproxy::start_gateway;

use crate::support::{
    CannedServer, EchoServer, Ending, GatewayProcess, HttpsOrigin, RelayProcess, ResourceCounts,
    Running, SESSION, TIMEOUT, TOKEN, TempHome, TestCa, assert_idle, binary, connect, exchange,
    finish, need_tool, pattern, read_to_end, request, upstreamproxy,
};

const NAME: &str = "origin.test";

fn port_of(gateway: &GatewayProcess) -> u16 {
    let address: SocketAddr = gateway.ready["listening"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    address.port()
}

#[track_caller]
fn assert_tunnel_works(relay: &RelayProcess, target: &EchoServer) {
    let (mut tunnel, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200, "{answer:?}");
    let payload = pattern(100_000);
    assert_eq!(
        exchange(&mut tunnel, payload.clone()),
        (payload, Ending::Eof)
    );
}

#[track_caller]
fn assert_still_echoes(tunnel: &mut TcpStream) {
    tunnel.write_all(b"still there").unwrap();
    let mut received = [0; 11];
    tunnel.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"still there");
}

// Clients without a token.

#[test]
fn a_thousand_clients_without_a_token_do_not_block_clients_with_one() {
    let limit = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    // A cap of a small machine, which a thousand connections exceed, and one which they do not.
    for cap in ["256", "2048"] {
        let (home, target) = (TempHome::new(), EchoServer::start());
        let gateway = GatewayProcess::start(&home, &["--max-tunnels", cap]);
        let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
        assert_tunnel_works(&relay, &target);
        let before = ResourceCounts::of(gateway.running.pid());
        let (mut tunnel, answer) = connect(relay.port(), &target.authority());
        assert_eq!(answer.status, 200);

        let unauthenticated: Vec<_> = (0..1_000)
            .map(|n| {
                let address = (Ipv4Addr::LOCALHOST, port_of(&gateway));
                let mut stream = TcpStream::connect(address).unwrap();
                // The gateway may have evicted this connection already.
                let _ = stream.write(&b"GET /v1/code/upstreamproxy/ws HTTP/1.1\r\nA: "[..n % 43]);
                stream
            })
            .collect();
        assert_tunnel_works(&relay, &target);
        assert_still_echoes(&mut tunnel);
        assert_idle(gateway.running.pid());
        drop((unauthenticated, tunnel));
        if let Some(before) = before {
            before.wait_until_restored(gateway.running.pid());
        }
    }
}

#[test]
fn tls_and_the_request_head_share_one_deadline_even_for_slow_clients() {
    let home = TempHome::new();
    let ca = TestCa::new("root of the gateway");
    for tls in [false, true] {
        let sessions = Sessions::parse(&format!("{SESSION} {TOKEN}\n")).unwrap();
        let mut config = GatewayConfig::new(sessions)
            .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .system_ca(home.write("roots.pem", &ca.pem, 0o644))
            .limits(|limits| limits.head_timeout = Duration::from_millis(200));
        if tls {
            let (cert_pem, key_pem) = ca.issue("127.0.0.1");
            config = config.tls(TlsIdentity::from_pem(cert_pem, key_pem));
        }
        let gateway = start_gateway(config).unwrap();
        let mut silent = TcpStream::connect(gateway.local_addr()).unwrap();
        silent.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(
            silent.read(&mut [0]).unwrap_or(0),
            0,
            "closed without an answer"
        );
        let mut slow = TcpStream::connect(gateway.local_addr()).unwrap();
        let first: &[u8] = if tls {
            &[22, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3]
        } else {
            b"GET /"
        };
        // Sends one byte at a time until the gateway closes.
        let mut result = slow.write_all(first);
        while result.is_ok() {
            thread::sleep(Duration::from_millis(5));
            result = slow.write_all(b"a");
        }
        gateway.shutdown(Duration::ZERO);
    }
}

#[test]
fn only_a_correct_token_is_accepted_and_all_refusals_are_identical() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let basic = data_encoding::BASE64.encode(format!("{SESSION}:{TOKEN}").as_bytes());
    let cases: Vec<(String, u16)> = vec![
        (String::new(), 401),
        ("Authorization: ".to_owned(), 401),
        ("Authorization: Bearer".to_owned(), 401),
        (format!("{bearer}x"), 401),
        (bearer[..bearer.len() - 1].to_owned(), 401),
        (bearer.to_uppercase(), 401),
        (format!("Authorization: {TOKEN}"), 401),
        (format!("Authorization: Basic {basic}"), 401),
        (format!("Proxy-Authorization: Bearer {TOKEN}"), 401),
        (format!("{bearer}\r\n{bearer}"), 401),
        (format!("{bearer}, Bearer {TOKEN}"), 401),
        (format!("Authorization: Bearer wrong\r\n{bearer}"), 401),
        (format!("Authorization: Bearer {}", "a".repeat(15_000)), 401),
        (
            format!("Authorization: Bearer {}", "a".repeat(64 << 10)),
            431,
        ),
        (format!("{bearer}\r\nOrigin: https://page.test"), 403),
        (format!("{bearer}\r\nOrigin: null"), 403),
        (bearer.clone(), 101),
    ];
    let mut refusals = Vec::new();
    for (fields, status) in cases {
        let head = format!(
            "GET /v1/code/upstreamproxy/ws HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n\r\n"
        );
        let (mut stream, answer) = request(port_of(&gateway), head.as_bytes());
        assert_eq!(answer.status, status, "{fields:.60}: {answer:?}");
        if status != 101 {
            let (rest, ending) = read_to_end(&mut stream);
            assert_eq!(ending, Ending::Eof, "{fields:.60}");
            let all = [answer.head.as_bytes(), &answer.early, &rest].concat();
            assert!(!all.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes()));
            if status == 401 {
                refusals.push(all);
            }
        }
    }
    refusals.dedup();
    assert_eq!(
        refusals.len(),
        1,
        "the answer does not depend on what was wrong"
    );
}

#[test]
fn repeated_wrong_tokens_leak_no_resources() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    assert_tunnel_works(&relay, &target);
    let before = ResourceCounts::of(gateway.running.pid());
    for n in 0..1_000 {
        let head = format!(
            "GET /v1/code/upstreamproxy/ws HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {n}\r\n\r\n"
        );
        let (mut stream, answer) = request(port_of(&gateway), head.as_bytes());
        assert_eq!(answer.status, 401);
        read_to_end(&mut stream);
    }
    assert_tunnel_works(&relay, &target);
    if let Some(before) = before {
        before.wait_until_restored(gateway.running.pid());
    }
}

#[test]
fn a_tls_gateway_survives_clients_that_do_not_speak_tls() {
    let (home, ca) = (TempHome::new(), TestCa::new("root of the gateway"));
    let (certificate, key) = ca.issue("127.0.0.1");
    let [certificate, key] = [("cert.pem", certificate), ("key.pem", key)]
        .map(|(name, pem)| home.write(name, pem, 0o600).to_str().unwrap().to_owned());
    let gateway = GatewayProcess::start(&home, &["--tls-cert", &certificate, "--tls-key", &key]);
    let before = ResourceCounts::of(gateway.running.pid());
    let others: [&[u8]; 5] = [
        b"GET /v1/code/upstreamproxy/ca-cert HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\x05\x01\x00",
        &[22, 3, 1, 0xff, 0xff],
        &[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff],
        &[21, 3, 3, 0, 2, 2, 40],
    ];
    for bytes in others {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port_of(&gateway))).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // The gateway sends an alert and closes or resets.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    if let Some(before) = before {
        before.wait_until_restored(gateway.running.pid());
    }
}

#[test]
fn sessions_are_reloaded_at_run_time_and_open_tunnels_continue() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let (mut tunnel, _) = connect(relay.port(), &target.authority());
    let reload = |sessions: &str, expected: &str| {
        home.write("sessions", sessions, 0o600);
        reload(&gateway, expected);
    };
    reload(
        "neither a session nor a comment\n",
        "the old sessions are kept",
    );
    assert_tunnel_works(&relay, &target);

    reload("another another-token\n", "the sessions were read again");
    for _ in 0..5 {
        let (mut refused, answer) = connect(relay.port(), &target.authority());
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(!answer.has_field("WWW-Authenticate"), "{answer:?}");
        let body = [answer.early, read_to_end(&mut refused).0].concat();
        let body = String::from_utf8(body).unwrap();
        assert!(
            body.contains("does not accept this session's token"),
            "{body}"
        );
    }
    assert_still_echoes(&mut tunnel);
    let log = gateway.running.stderr();
    assert!(
        !log.contains("another-token") && !log.contains("neither a session"),
        "{log}"
    );
}

// Forbidden targets.

/// Every notation of addresses that a sandbox must not reach.
#[rustfmt::skip]
const FORBIDDEN: [&str; 57] = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "017700000001",
    "127.255.255.254", "0.0.0.0", "0", "localhost", "LOCALHOST", "localhost.", "[::1]", "[0:0:0:0:0:0:0:1]", "[::]",
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:0:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001::1]", "[2001:db8::1]", "[100::1]",
    "[fc00::1]", "[fd00:ec2::254]", "[fe80::1]", "[fec0::1]", "[ff02::1]", "10.0.0.1", "10.1", "172.16.0.1",
    "172.31.255.255", "192.168.1.1", "192.168.257", "0xc0a80101", "100.64.0.1", "100.100.100.200", "169.254.169.254",
    "169.254.43518", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.170.2", "168.63.129.16", "192.0.0.1",
    "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
];

#[test]
fn no_notation_of_a_forbidden_address_is_dialled() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let port = target.port();
    // Names that resolve to such addresses: directly, and as mapped and translated addresses.
    let resolve: Vec<String> = [
        "127.0.0.1",
        "169.254.169.254",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
    ]
    .iter()
    .enumerate()
    .map(|(n, address)| format!("name{n}.test:{port}:{address}"))
    .collect();
    let sessions = home.write("sessions", format!("{SESSION} {TOKEN}\n"), 0o600);
    let trace = home.join("trace");
    let traced = need_tool("strace");
    let mut command = home.command(if traced { "strace" } else { binary() });
    if traced {
        command.args([
            "-f",
            "-qq",
            "-e",
            "trace=connect",
            "-e",
            "signal=none",
            "-o",
        ]);
        command.arg(&trace).arg(binary());
    }
    command
        .args(["gateway", "--listen", "127.0.0.1:0", "--sessions"])
        .arg(sessions);
    for entry in &resolve {
        command.args(["--resolve", entry]);
    }
    let (gateway, ready) = Running::ready(&mut command);
    let relay = RelayProcess::start(&home, ready["base_url"].as_str().unwrap(), &[]);
    let names = (0..resolve.len()).map(|n| format!("name{n}.test"));
    for host in FORBIDDEN.iter().map(ToString::to_string).chain(names) {
        let (mut stream, answer) = connect(relay.port(), &format!("{host}:{port}"));
        read_to_end(&mut stream);
        assert_eq!(answer.status, 403, "{host}: {answer:?}");
        assert!(answer.has_field("Proxy-Status"), "{host}: {answer:?}");
    }
    assert_eq!(target.connections(), 0, "a forbidden target was dialled");
    if traced {
        let pid = i32::try_from(ready["pid"].as_u64().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        gateway.wait();
        let trace = std::fs::read_to_string(trace).unwrap();
        // The system's resolver may connect its own sockets, but no connection to this port may be
        // attempted.
        assert!(!trace.contains(&format!("htons({port})")), "{trace}");
    }
}

#[test]
fn a_gateway_does_not_dial_itself() {
    let home = TempHome::new();
    // Also with private addresses allowed.
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let port = port_of(&gateway);
    for host in [
        "127.0.0.1",
        "127.1",
        "localhost",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ] {
        let (_, answer) = connect(relay.port(), &format!("{host}:{port}"));
        assert_eq!(answer.status, 403, "{host}: {answer:?}");
    }
}

// Interception.

/// Requests `/hello` over TLS through a tunnel to `authority`, with or without an SNI name. Returns
/// the response.
fn request_over_tls(
    relay: &RelayProcess,
    authority: &str,
    sni: Option<&str>,
) -> std::io::Result<String> {
    let bundle = std::fs::read(relay.ready["ca_bundle"].as_str().unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    let bundle = rustls::pki_types::CertificateDer::pem_slice_iter(&bundle);
    roots.add_parsable_certificates(bundle.map_while(Result::ok));
    let mut config =
        ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.enable_sni = sni.is_some();
    let (stream, answer) = connect(relay.port(), authority);
    assert_eq!(answer.status, 200, "{answer:?}");
    let name = ServerName::try_from(sni.unwrap_or(NAME).to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut tls = StreamOwned::new(connection, stream);
    tls.write_all(b"GET /hello HTTP/1.1\r\nHost: origin.test\r\n\r\n")?;
    let mut reply = String::new();
    tls.read_to_string(&mut reply)?;
    Ok(reply)
}

#[test]
fn interception_connects_only_to_the_host_of_the_connect_request() {
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let other = HttpsOrigin::start("other.test");
    let ca = origin.ca_file();
    let gateway = GatewayProcess::start(
        &home,
        &[
            "--intercept",
            "*",
            "--resolve",
            &origin.resolve(),
            "--resolve",
            &other.resolve(),
            "--target-ca",
            ca.to_str().unwrap(),
        ],
    );
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let reply = request_over_tls(&relay, &origin.authority(), Some(NAME)).unwrap();
    assert!(reply.ends_with(HttpsOrigin::HELLO), "{reply}");
    let reply = request_over_tls(&relay, &origin.authority(), None).unwrap();
    assert!(
        reply.ends_with(HttpsOrigin::HELLO),
        "without a name: {reply}"
    );

    let error = request_over_tls(&relay, &origin.authority(), Some("other.test")).unwrap_err();
    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    // Its certificate is from a CA that the gateway does not trust.
    let error = request_over_tls(&relay, &other.authority(), Some("other.test")).unwrap_err();
    assert!(error.to_string().contains("fatal alert"), "{error}");
    let log = gateway.running.stop().stderr;
    assert!(
        log.contains("which is not the host of the CONNECT request"),
        "{log}"
    );
}

#[test]
fn a_gateway_that_starts_again_with_another_ca_is_reported_by_relay_and_doctor() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &["--intercept", "*:443"]);
    let base_url = gateway.base_url();
    let relay = RelayProcess::start(&home, &base_url, &[]);
    assert_tunnel_works(&relay, &target);
    let log = gateway.running.stop().stderr;
    assert!(
        log.contains("the interception CA is new at each start"),
        "{log}"
    );

    let address = base_url.strip_prefix("http://").unwrap();
    let _again = GatewayProcess::start(&home, &["--intercept", "*:443", "--listen", address]);
    for _ in 0..3 {
        assert_tunnel_works(&relay, &target);
    }
    let mut doctor = upstreamproxy(&home);
    let diagnosis = finish(home.session(doctor.arg("doctor"), &base_url)).text();
    let line = diagnosis.lines().find(|line| line.starts_with("ca: wrong"));
    assert!(
        line.is_some_and(
            |line| line.contains("lacks a CA certificate") && line.contains("--ca-cert")
        ),
        "{diagnosis}"
    );
    let log = relay.stop().stderr;
    let warnings = log.matches("has changed since the start").count();
    assert_eq!(warnings, 1, "{log}");
}

/// Sends SIGHUP, and waits for `line` in the log of the gateway.
fn reload(gateway: &GatewayProcess, line: &str) {
    gateway.running.signal(Signal::HUP);
    gateway.running.wait_for_log(line, 1);
}

#[test]
fn a_renewed_certificate_is_used_without_a_restart() {
    let (home, ca) = (TempHome::new(), TestCa::new("root of the gateway"));
    let write = |(certificate, key): (String, String)| {
        [("cert.pem", certificate), ("key.pem", key)]
            .map(|(name, pem)| home.write(name, pem, 0o600).to_str().unwrap().to_owned())
    };
    let [certificate, key] = write(ca.issue_expired("127.0.0.1"));
    let gateway = GatewayProcess::start(&home, &["--tls-cert", &certificate, "--tls-key", &key]);
    let log = gateway.running.stderr();
    assert!(
        log.contains("tls-cert (--tls-cert) has expired on 2021-01-01"),
        "{log}"
    );

    let renewed = ca.issue("127.0.0.1");
    // The certificate is renewed before its key.
    write((renewed.0.clone(), fs::read_to_string(&key).unwrap()));
    reload(&gateway, "--tls-cert: the old certificate is kept: ");
    write(renewed);
    reload(&gateway, "--tls-cert: the renewed certificate is used");
    let trust = home.write("root.pem", &ca.pem, 0o644);
    let relay = RelayProcess::start(
        &home,
        &gateway.base_url(),
        &["--upstream-ca", trust.to_str().unwrap()],
    );
    let target = EchoServer::start();
    assert_tunnel_works(&relay, &target);
}

#[test]
fn a_key_file_that_others_may_read_or_change_is_reported() {
    let (home, ca) = (TempHome::new(), TestCa::new("root of the gateway"));
    let (certificate, key) = ca.issue("127.0.0.1");
    let certificate = home.write("cert.pem", certificate, 0o644);
    for (mode, may) in [
        (0o600, None),
        (0o640, None),
        (0o644, Some("read")),
        (0o660, Some("change")),
    ] {
        let key = home.write("key.pem", &key, mode);
        let options = [certificate.to_str().unwrap(), key.to_str().unwrap()];
        let gateway =
            GatewayProcess::start(&home, &["--tls-cert", options[0], "--tls-key", options[1]]);
        let log = gateway.running.stop().stderr;
        let reported = may.map(|may| format!("key file {}: other users can {may} it", options[1]));
        match reported {
            Some(line) => assert!(log.contains(&line), "{mode:o}: {log}"),
            None => assert!(!log.contains("key file"), "{mode:o}: {log}"),
        }
    }
}

#[test]
fn a_certificate_with_many_names_makes_no_long_log_lines() {
    let names: Vec<_> = (0..900)
        .map(|number| format!("{number}-{}.test", "n".repeat(50)))
        .collect();
    let (home, origin) = (
        TempHome::new(),
        HttpsOrigin::with_certificate_for(NAME, &names),
    );
    let ca = origin.ca_file();
    let gateway = GatewayProcess::start(
        &home,
        &[
            "--intercept",
            "*",
            "--resolve",
            &origin.resolve(),
            "--target-ca",
            ca.to_str().unwrap(),
        ],
    );
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    request_over_tls(&relay, &origin.authority(), Some(NAME)).unwrap_err();
    let log = gateway.running.stop().stderr;
    assert!(log.contains("and 892 more"), "{log}");
    let longest = log.lines().map(str::len).max();
    assert!(longest.is_some_and(|length| length < 2048), "{log}");
}

#[test]
fn a_target_that_fails_the_tls_handshake_ends_the_interception_with_a_reason() {
    let home = TempHome::new();
    let options = ["--intercept", "*", "--connect-timeout", "500ms"];
    let gateway = GatewayProcess::start(&home, &options);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let (silent, echo) = (CannedServer::start(""), EchoServer::start());
    let closing = TcpListener::bind("127.0.0.1:0").unwrap();
    let closing_authority = closing.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut stream in closing.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    for target in [silent.authority(), echo.authority(), closing_authority] {
        let error = request_over_tls(&relay, &target, None);
        assert!(error.is_err(), "{target}: {error:?}");
    }
    // Data that is not TLS passes through nevertheless.
    assert_tunnel_works(&relay, &echo);
    let log = gateway.running.stop().stderr;
    let reasons = log
        .matches("interception failed: TLS with the target failed")
        .count();
    assert_eq!(reasons, 3, "{log}");
}
