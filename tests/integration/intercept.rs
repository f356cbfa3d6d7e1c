//! TLS interception from the client's side: which certificate it gets, which protocol, and what is
//! refused.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::{
    GatewayProcess, HttpsOrigin, RelayProcess, Running, SpeaksFirstServer, TempHome, connect,
    finish, need_tool, upstreamproxy,
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

#[test]
fn a_target_that_speaks_first_is_never_intercepted() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &["--intercept", "*"]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let target = SpeaksFirstServer::start();
    let (mut tunnel, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200);
    let greeting = SpeaksFirstServer::GREETING.as_bytes();
    let mut received = answer.early;
    let early = received.len();
    received.resize(greeting.len(), 0);
    tunnel.read_exact(&mut received[early..]).unwrap();
    assert_eq!(received, greeting);
    // The start of a ClientHello. An interception would wait for the rest of it.
    let sent = [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    tunnel.write_all(&sent).unwrap();
    let mut echoed = [0; 11];
    tunnel.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, sent);
}
