//! TLS interception from the client's side: which certificate it gets, which protocol, and what is
//! refused.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
    SupportedProtocolVersion,
};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use upstreamproxy::gateway::{GatewayConfig, Sessions};
use upstreamproxy::start_gateway;

use crate::stream::{Target, chunk, opening};
use crate::support::{
    EchoServer, Ending, GatewayProcess, HttpsOrigin, RelayProcess, Running, SESSION, TOKEN,
    TempHome, TestCa, connect, exchange, finish, need_tool, read_to_end, upstreamproxy,
};

const NAME: &str = "origin.test";

fn upstream_ca_option(origin: &HttpsOrigin) -> String {
    format!("--upstream-ca={}", origin.ca_file().display())
}

/// Does a TLS handshake for [`NAME`] through the tunnel, trusting the certificates in `bundle`, and
/// requests `/hello`. Returns the certificate chain and the response.
fn handshake(
    port: u16,
    origin: &HttpsOrigin,
    bundle: &[u8],
) -> std::io::Result<(Vec<CertificateDer<'static>>, String)> {
    handshake_with(port, &origin.authority(), bundle)
}

/// The same with another target.
fn handshake_with(
    port: u16,
    target: &str,
    bundle: &[u8],
) -> std::io::Result<(Vec<CertificateDer<'static>>, String)> {
    let mut tls = open_tls(port, target, bundle);
    tls.write_all(b"GET /hello HTTP/1.1\r\nHost: origin.test\r\n\r\n")?;
    let mut reply = String::new();
    tls.read_to_string(&mut reply)?;
    let chain = tls.conn.peer_certificates().unwrap_or_default().to_vec();
    Ok((chain, reply))
}

/// A tunnel to `target` with a TLS client that trusts `bundle`.
#[track_caller]
fn open_tls(port: u16, target: &str, bundle: &[u8]) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle).map_while(Result::ok));
    let config =
        ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let (stream, answer) = connect(port, target);
    assert_eq!(answer.status, 200);
    let name = ServerName::try_from(NAME).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, stream)
}

#[test]
fn an_intercepted_client_gets_a_certificate_signed_by_the_ca_in_the_bundle() {
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let ca = origin.ca_file();
    let gateway = GatewayProcess::start(
        &home,
        &[
            "--intercept",
            NAME,
            "--resolve",
            &origin.resolve(),
            "--target-ca",
            ca.to_str().unwrap(),
        ],
    );
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let bundle = std::fs::read(relay.ready["ca_bundle"].as_str().unwrap()).unwrap();

    let (chain, reply) = handshake(relay.port(), &origin, &bundle).expect("the bundle is trusted");
    assert!(reply.ends_with(HttpsOrigin::HELLO), "{reply}");
    assert!(!chain.is_empty());
    // The origin's own CA did not sign this certificate, so a handshake that trusts only that CA
    // fails.
    let error = handshake(relay.port(), &origin, origin.ca_pem().as_bytes()).unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
}

/// A TLS server that echoes the first bytes and closes; with `close_notify` or without. Returns its
/// port.
fn closes_after_response(ca: &TestCa, close_notify: bool) -> u16 {
    let (certificate, key) = ca.issue(NAME);
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = rustls::crypto::ring::default_provider().into();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let (target, config) = (Target::start(), Arc::new(config));
    let port = target.authority().rsplit(':').next().unwrap().parse();
    thread::spawn(move || {
        loop {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = StreamOwned::new(connection, target.accept());
            let mut bytes = [0; 64];
            let read = tls.read(&mut bytes).unwrap();
            tls.write_all(&bytes[..read]).unwrap();
            if close_notify {
                tls.conn.send_close_notify();
            }
            tls.flush().unwrap();
        }
    });
    port.unwrap()
}

#[test]
fn an_exchange_after_which_no_byte_can_be_missing_is_not_logged_as_broken() {
    let (home, ca) = (TempHome::new(), TestCa::new("closing origin"));
    let file = home.write("ca.pem", &ca.pem, 0o644);
    let ports = [true, false].map(|close_notify| closes_after_response(&ca, close_notify));
    let [first, second] = ports.map(|port| format!("--resolve={NAME}:{port}:127.0.0.1"));
    let target_ca = format!("--target-ca={}", file.display());
    let options = [&first, &second, &target_ca, "--intercept", "*"];
    let gateway = GatewayProcess::start(&home, &options);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let bundle = std::fs::read(relay.ready["ca_bundle"].as_str().unwrap()).unwrap();
    for port in ports {
        for sends_close_notify in [true, false] {
            for _ in 0..10 {
                let mut tls = open_tls(relay.port(), &format!("{NAME}:{port}"), &bundle);
                tls.write_all(b"GET /").unwrap();
                let mut reply = Vec::new();
                // Without close_notify it ends with an error, after the bytes.
                let _ = tls.read_to_end(&mut reply);
                assert_eq!(reply, b"GET /");
                if sends_close_notify {
                    tls.conn.send_close_notify();
                    // The relay may have closed already.
                    let _ = tls.flush();
                }
            }
        }
    }
    for log in [relay.stop().stderr, gateway.running.stop().stderr] {
        assert_eq!(log.matches(" ms, ended").count(), 40, "{log}");
    }
}

#[test]
fn without_interception_the_client_gets_the_targets_certificate() {
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let gateway = GatewayProcess::start(
        &home,
        &["--intercept", "none", "--resolve", &origin.resolve()],
    );
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let (_, reply) = handshake(relay.port(), &origin, origin.ca_pem().as_bytes()).unwrap();
    assert!(reply.ends_with(HttpsOrigin::HELLO), "{reply}");
}

#[test]
fn a_client_without_the_bundle_rejects_the_certificate() {
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let curl = |before: &[&str]| {
        finish(
            origin
                .embedded(&home, &[&upstream_ca_option(&origin), "--"])
                .args(before)
                .args(["curl", "-sS", &origin.url("/hello")]),
        )
    };
    assert_eq!(curl(&[]).succeeded().text(), HttpsOrigin::HELLO);
    // 60: the peer's certificate cannot be verified.
    let without = curl(&["env", "-u", "CURL_CA_BUNDLE", "-u", "SSL_CERT_FILE"]);
    assert_eq!(without.status.code(), Some(60), "{without:#?}");
}

#[test]
fn a_target_with_an_invalid_certificate_is_refused_and_the_log_gives_the_reason() {
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let finished = finish(origin.embedded(&home, &["--"]).args([
        "curl",
        "-sS",
        "--insecure",
        &origin.url("/hello"),
    ]));
    // That the client accepts any certificate makes no difference.
    let text = finished.text();
    assert!(
        text.contains("not issued by a CA") && !text.contains(HttpsOrigin::HELLO),
        "{finished:#?}"
    );
    let log = finished.stderr.to_lowercase();
    assert!(log.contains("certificate") && log.contains(NAME), "{log}");
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    if !need_tool("curl") {
        return;
    }
    let (home, other) = (TempHome::new(), HttpsOrigin::start("other.test"));
    let port = other.authority().rsplit(':').next().unwrap().to_owned();
    let mut command = upstreamproxy(&home);
    command
        .args([
            "run",
            "--embedded",
            "--intercept",
            NAME,
            &upstream_ca_option(&other),
        ])
        .args([
            "--resolve",
            &format!("{NAME}:{port}:127.0.0.1"),
            "--",
            "curl",
            "-sS",
        ])
        .arg(format!("https://{NAME}:{port}/hello"));
    let finished = finish(&mut command);
    let text = finished.text();
    assert!(text.contains("valid for other.test"), "{finished:#?}");
}

#[test]
fn http_2_and_http_1_1_both_work() {
    if !need_tool("curl") || !need_tool("node") {
        return;
    }
    let home = TempHome::new();
    let ca = crate::support::TestCa::new("h2 root");
    let (certificate, key) = ca.issue(NAME);
    let ca = home.write("ca.pem", &ca.pem, 0o644);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/h2_origin.js");
    let (_origin, ready) = Running::ready(
        home.command("node")
            .arg(script)
            .arg(home.write("cert.pem", certificate, 0o644))
            .arg(home.write("key.pem", key, 0o600)),
    );
    let port = &ready["port"];
    for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let mut command = upstreamproxy(&home);
        command
            .args(["run", "--embedded", "--intercept", NAME, "--resolve"])
            .arg(format!("{NAME}:{port}:127.0.0.1"))
            .args([Path::new("--upstream-ca"), &ca])
            .args([
                "--",
                "curl",
                "-sS",
                "-w",
                "curl saw %{http_version}",
                option,
            ])
            .arg(format!("https://{NAME}:{port}/"));
        let finished = finish(&mut command).succeeded().assert_tunnelled();
        let origin_saw = if version == "2" { "2.0" } else { version };
        assert_eq!(
            finished.text(),
            format!("origin saw {origin_saw}\ncurl saw {version}")
        );
    }
}

#[test]
fn two_embedded_runs_at_the_same_time_do_not_interfere() {
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    // The second run is the child of the first, so both run at the same time in one home.
    let mut command = origin.embedded(&home, &[&upstream_ca_option(&origin), "--"]);
    command
        .args(["sh", "-c", "\"$@\" && curl -sS \"$URL\"", "sh"])
        .arg(crate::support::binary())
        .args([
            "run",
            "--embedded",
            "--intercept",
            NAME,
            "--resolve",
            &origin.resolve(),
        ])
        .args([
            &upstream_ca_option(&origin),
            "--",
            "curl",
            "-sS",
            &origin.url("/hello"),
        ])
        .env("URL", origin.url("/hello"));
    let finished = finish(&mut command).succeeded();
    assert_eq!(finished.text(), HttpsOrigin::HELLO.repeat(2));
    let summaries = finished
        .stderr
        .lines()
        .filter(|l| l.ends_with(" bytes down"));
    assert_eq!(summaries.count(), 2, "{finished:#?}");
    assert!(
        !home.bundle().exists(),
        "each run keeps its bundle in a separate directory"
    );
}

/// The alerts of the protocol page.
const ALERTS: [(&str, u8); 6] = [
    ("unexpected_message", 10),
    ("record_overflow", 22),
    ("handshake_failure", 40),
    ("decode_error", 50),
    ("protocol_version", 70),
    ("unrecognized_name", 112),
];

/// The bytes of an example on the protocol page.
fn example(text: &str, hello: &[u8]) -> Vec<u8> {
    if let Some(text) = text.strip_prefix('"') {
        return text.trim_end_matches('"').as_bytes().to_vec();
    }
    let record = |part: &[u8]| [&[22, 3, 1, 0, part.len() as u8], part].concat();
    let bytes = text.split_whitespace().map(|word| match word {
        "LEN" => hello[3..5].to_vec(),
        "MSG" => hello[5..].to_vec(),
        "PARTS" => hello[5..].chunks(40).flat_map(record).collect(),
        byte => vec![u8::from_str_radix(byte, 16).unwrap()],
    });
    bytes.collect::<Vec<_>>().concat()
}

/// A complete `ClientHello` without a server name.
fn client_hello() -> Vec<u8> {
    let provider = rustls::crypto::ring::default_provider().into();
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut client = ClientConnection::new(config.into(), address.into()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// What the target does before the client's first byte.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Silent,
    Sends(&'static [u8]),
    Ends,
}

/// How the client sends its first bytes.
#[derive(Clone, Copy, Debug)]
enum Sent {
    AtOnce,
    ByteByByte,
    ThenEnd,
}

/// Opens a tunnel, sends `bytes`, and asserts that the gateway does what `expected` says.
#[track_caller]
fn assert_treated(relay: &RelayProcess, bytes: &[u8], before: Before, sent: Sent, expected: &str) {
    let context = format!("{before:?} {sent:?} {bytes:?}");
    let target = Target::start();
    let (mut client, mut far) = target.tunnel(relay.port());
    match before {
        Before::Silent => {}
        Before::Sends(greeting) => {
            far.write_all(greeting).unwrap();
            let mut received = vec![0; greeting.len()];
            client.read_exact(&mut received).expect(&context);
            assert_eq!(received, greeting);
        }
        Before::Ends => {
            far.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&mut client), (Vec::new(), Ending::Eof));
        }
    }
    client.set_nodelay(true).unwrap();
    match sent {
        Sent::ByteByByte => {
            for byte in bytes {
                // The gateway may have refused the beginning already.
                let _ = client.write_all(&[*byte]);
            }
        }
        Sent::AtOnce => client.write_all(bytes).unwrap(),
        Sent::ThenEnd => {
            client.write_all(bytes).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
    }
    match expected {
        "passed through" => {
            let mut received = vec![0; bytes.len()];
            far.read_exact(&mut received).expect(&context);
            assert_eq!(received, bytes, "{context}");
        }
        "intercepted" => {
            let mut received = [0; 64];
            far.read_exact(&mut received).expect(&context);
            assert_eq!(received[..2], [22, 3], "{context}");
            assert_ne!(
                received[..],
                bytes[..64],
                "{context}: the client's own hello"
            );
        }
        alert => {
            let (received, ending) = read_to_end(&mut client);
            let code = ALERTS.iter().find(|(name, _)| *name == alert).unwrap().1;
            if before == Before::Ends {
                // The end of the target was forwarded, so no alert can follow.
                assert!(received.is_empty(), "{context}");
            } else if !(received.is_empty() && ending == Ending::Reset) {
                assert_eq!(received, [21, 3, 3, 0, 2, 2, code], "{context}");
            }
            drop(client);
            let reached = read_to_end(&mut far).0;
            assert!(
                reached.is_empty(),
                "{context}: the target received {reached:?}"
            );
        }
    }
}

/// The rows of the table behind `marker` on the protocol page.
fn table(marker: &str) -> Vec<Vec<&'static str>> {
    let page = include_str!("../../src/manual/protocol.md");
    let (_, table) = page.split_once(marker).unwrap();
    let lines = table.trim_start().lines();
    let rows = lines.map_while(|line| line.strip_prefix('|')?.strip_suffix('|'));
    let cells = |row: &'static str| row.split('|').map(|cell| cell.trim().trim_matches('`'));
    rows.skip(2).map(|row| cells(row).collect()).collect()
}

#[test]
fn the_first_bytes_on_the_protocol_page_have_their_results_in_any_order() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &["--intercept", "*"]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let hello = client_hello();
    for row in table("<!-- first-bytes -->") {
        let [_, bytes, expected] = row[..] else {
            panic!("{row:?}");
        };
        let bytes = example(bytes, &hello);
        for sent in [Sent::AtOnce, Sent::ByteByByte, Sent::ThenEnd] {
            for before in [
                Before::Silent,
                Before::Sends(b"220 ready\r\n"),
                Before::Sends(b"\n"),
                Before::Sends(&[21, 3, 3, 0, 2, 1, 90]),
                Before::Sends(&[22]),
                Before::Ends,
            ] {
                let expected = match (expected, before, sent) {
                    ("intercepted", Before::Silent, Sent::AtOnce | Sent::ByteByByte) => expected,
                    // The end may arrive with the hello or after it.
                    ("intercepted", Before::Silent, Sent::ThenEnd) => continue,
                    ("intercepted", _, _) => "handshake_failure",
                    _ => expected,
                };
                assert_treated(&relay, &bytes, before, sent, expected);
            }
        }
    }
}

#[test]
fn require_tls_refuses_everything_else_on_intercepted_targets() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &["--intercept", "127.0.0.1", "--require-tls"]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let hello = client_hello();
    for row in table("<!-- first-bytes -->") {
        let bytes = example(row[1], &hello);
        let expected = match row[2] {
            "passed through" => "unexpected_message",
            other => other,
        };
        let sent = if bytes.is_empty() {
            Sent::ThenEnd
        } else {
            Sent::AtOnce
        };
        assert_treated(&relay, &bytes, Before::Silent, sent, expected);
    }
    // Nothing of a target that speaks first reaches the client.
    for greeting in [b"220 ready\r\n".as_slice(), &[21, 3, 3, 0, 2, 1, 90]] {
        let target = Target::start();
        let (mut client, mut far) = target.tunnel(relay.port());
        far.write_all(greeting).unwrap();
        let received = read_to_end(&mut client);
        assert_eq!(received, (vec![21, 3, 3, 0, 2, 2, 10], Ending::Eof));
    }
    // A target that is not intercepted is not affected.
    let echo = EchoServer::start();
    let (mut client, answer) = connect(relay.port(), &format!("localhost:{}", echo.port()));
    assert_eq!(answer.status, 200);
    assert_eq!(
        exchange(&mut client, b"plain".to_vec()),
        (b"plain".to_vec(), Ending::Eof)
    );
    drop(client);
    let log = gateway.running.stop().stderr;
    assert!(
        log.contains("which require-tls (--require-tls) does not allow"),
        "{log}"
    );
}

/// Opens a WebSocket to the gateway and sends the opening, these messages and their end in one
/// write.
#[track_caller]
fn in_one_write(gateway: &GatewayProcess, target: &Target, version: u8, rest: Vec<Message>) {
    let mut ws = opening(&gateway.base_url(), target, version);
    for message in rest {
        ws.write(message).unwrap();
    }
    ws.flush().unwrap();
    // Until the gateway has closed.
    while ws.read().is_ok() {}
}

#[test]
fn an_end_in_the_same_read_as_the_hello_does_not_bypass_interception() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &["--intercept", "*"]);
    let hello = client_hello();
    let fin = || Message::binary(vec![0x10, 1]);
    let close = || {
        Message::Close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        }))
    };
    let alert = [21, 3, 3, 0, 2, 1, 90];
    let both = |bytes: &[u8]| {
        let with_fin = [&chunk(bytes).into_data()[..], &[0x10, 1]].concat();
        Message::binary(with_fin)
    };
    let cases = [
        (2, vec![chunk(&hello), fin()]),
        (2, vec![both(&hello)]),
        (2, vec![both(&hello), close()]),
        (2, vec![chunk(&hello), chunk(b"and data"), fin()]),
        (2, vec![chunk(&hello[..30]), chunk(&hello[30..40]), fin()]),
        (2, vec![both(&hello[..3])]),
        (2, vec![chunk(&alert), chunk(&hello), fin()]),
        (2, vec![chunk(&hello), close()]),
        (1, vec![chunk(&hello), close()]),
        (1, vec![chunk(&hello[..30]), close()]),
        (1, vec![chunk(&alert), chunk(&hello), close()]),
    ];
    for (version, messages) in cases {
        let target = Target::start();
        let shown = format!("{version} {messages:?}");
        in_one_write(&gateway, &target, version, messages);
        let reached = read_to_end(&mut target.accept()).0;
        assert!(
            reached.is_empty(),
            "{shown}: the target received {reached:?}"
        );
    }
    // Another protocol passes, also with its end.
    let target = Target::start();
    in_one_write(&gateway, &target, 1, vec![chunk(b"plain"), close()]);
    let reached = read_to_end(&mut target.accept());
    assert_eq!(reached, (b"plain".to_vec(), Ending::Eof));
}

#[test]
fn a_slow_hello_is_refused_and_a_slow_handshake_ends() {
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let sessions = Sessions::parse(&format!("{SESSION} {TOKEN}")).unwrap();
    let config = GatewayConfig::new(sessions)
        .listen("127.0.0.1:0".parse().unwrap())
        .intercept(["*".parse().unwrap()])
        .resolve([origin.resolve().parse().unwrap()])
        .target_ca(origin.ca_file())
        .allow_private(true)
        .limits(|limits| {
            limits.head_timeout = Duration::from_millis(300);
            limits.connect_timeout = Duration::from_secs(1);
        });
    let gateway = start_gateway(config).unwrap();
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let hello = client_hello();
    // A client that is silent for longer than that, as with a server that speaks first.
    let quiet = Target::start();
    let (mut patient, mut patient_far) = quiet.tunnel(relay.port());

    for part in [&hello[..1], &hello[..5], &hello[..100]] {
        let target = Target::start();
        let (mut client, mut far) = target.tunnel(relay.port());
        client.write_all(part).unwrap();
        let (alert, ending) = read_to_end(&mut client);
        assert_eq!(
            (alert, ending),
            (vec![21, 3, 3, 0, 2, 2, 40], Ending::Eof),
            "{} bytes",
            part.len()
        );
        drop(client);
        assert_eq!(read_to_end(&mut far).0, b"");
    }
    // A client that receives the gateway's half of the handshake and stops.
    let (mut client, answer) = connect(relay.port(), &origin.authority());
    assert_eq!(answer.status, 200);
    client.write_all(&hello).unwrap();
    let (flight, ending) = read_to_end(&mut client);
    assert_eq!((flight[0], ending), (22, Ending::Eof));

    patient_far.write_all(b"220 ready").unwrap();
    patient.read_exact(&mut [0; 9]).unwrap();
    patient.write_all(b"EHLO x").unwrap();
    patient_far.read_exact(&mut [0; 6]).unwrap();
    drop((patient, patient_far));
    relay.stop();
    gateway.shutdown(Duration::ZERO);
}

/// A TLS server that asks for a client certificate. It echoes the first bytes. Returns its port.
fn asks_for_certificate(
    ca: &TestCa,
    is_required: bool,
    version: &'static SupportedProtocolVersion,
    tickets: usize,
) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (certificate, key) = ca.issue(NAME);
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap())
        .unwrap();
    let mut verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    if !is_required {
        verifier = verifier.allow_unauthenticated();
    }
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.send_tls13_tickets = tickets;
    let (target, config) = (Target::start(), Arc::new(config));
    let port = target.authority().rsplit(':').next().unwrap().parse();
    thread::spawn(move || {
        loop {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = StreamOwned::new(connection, target.accept());
            let mut bytes = [0; 64];
            if let Ok(read) = tls.read(&mut bytes) {
                let _ = tls.write_all(&bytes[..read]);
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
        }
    });
    port.unwrap()
}

#[test]
fn a_target_that_requires_a_client_certificate_gives_its_alert_and_a_remedy() {
    let (home, ca) = (TempHome::new(), TestCa::new("client authentication"));
    let file = home.write("ca.pem", &ca.pem, 0o644);
    let (tls12, tls13) = (&rustls::version::TLS12, &rustls::version::TLS13);
    let required = [tls12, tls13].map(|version| asks_for_certificate(&ca, true, version, 2));
    let optional = [
        asks_for_certificate(&ca, false, tls12, 0),
        asks_for_certificate(&ca, false, tls13, 2),
        asks_for_certificate(&ca, false, tls13, 0),
    ];
    let resolve = required
        .iter()
        .chain(&optional)
        .map(|port| format!("--resolve={NAME}:{port}:127.0.0.1"));
    let target_ca = format!("--target-ca={}", file.display());
    let options: Vec<_> = resolve.chain([target_ca]).collect();
    let mut options: Vec<_> = options.iter().map(String::as_str).collect();
    options.extend(["--intercept", "*"]);
    let gateway = GatewayProcess::start(&home, &options);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let bundle = std::fs::read(relay.ready["ca_bundle"].as_str().unwrap()).unwrap();
    let request = |port| handshake_with(relay.port(), &format!("{NAME}:{port}"), &bundle);
    for port in required {
        let error = request(port).unwrap_err().to_string();
        assert!(
            error.contains("fatal alert: CertificateRequired"),
            "{error}"
        );
    }
    for port in optional {
        let (_, reply) = request(port).unwrap();
        assert!(reply.starts_with("GET /hello"), "{reply}");
    }
    let log = gateway.running.stop().stderr;
    let remedy = |line: &&str| {
        line.contains("interception failed") && line.contains("asks for a client certificate")
    };
    assert_eq!(log.lines().filter(remedy).count(), 2, "{log}");
    assert!(!log.contains("rustls"), "{log}");
}
