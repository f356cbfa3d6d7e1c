//! TLS interception from the client's side: which certificate it gets, which protocol, and what is
//! refused.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::stream::Target;
use crate::support::{
    EchoServer, Ending, GatewayProcess, HttpsOrigin, RelayProcess, Running, TempHome, connect,
    exchange, finish, need_tool, read_to_end, upstreamproxy,
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
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle).map_while(Result::ok));
    let config =
        ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let (stream, answer) = connect(port, &origin.authority());
    assert_eq!(answer.status, 200);
    let name = ServerName::try_from(NAME).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut tls = StreamOwned::new(connection, stream);
    tls.write_all(b"GET /hello HTTP/1.1\r\nHost: origin.test\r\n\r\n")?;
    let mut reply = String::new();
    tls.read_to_string(&mut reply)?;
    let chain = tls.conn.peer_certificates().unwrap_or_default().to_vec();
    Ok((chain, reply))
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
    // 35: the TLS handshake failed with an alert. That the client accepts any certificate makes no
    // difference.
    assert_eq!(finished.status.code(), Some(35), "{finished:#?}");
    assert!(finished.stdout.is_empty());
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
    assert_eq!(finished.status.code(), Some(35), "{finished:#?}");
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
    let bytes = text.split_whitespace().map(|word| match word {
        "LEN" => hello[3..5].to_vec(),
        "MSG" => hello[5..].to_vec(),
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
fn the_first_bytes_on_the_protocol_page_have_their_results_whoever_speaks_first() {
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
    assert!(log.contains("which --require-tls does not allow"), "{log}");
}
