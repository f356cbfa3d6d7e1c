//! What clients learn about a target that fails in the TLS handshake of an intercepted connection,
//! and about a refused request.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};

use crate::support::{
    Ending, GatewayProcess, RelayProcess, ScriptedServer, TempHome, connect, finish, need_tool,
    read_to_end, request, upstreamproxy,
};

const NAME: &str = "origin.test";

/// A CA, and certificates of any kind that it has signed.
struct Ca {
    key: KeyPair,
    params: CertificateParams,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "test root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self {
            key: KeyPair::generate().unwrap(),
            params,
        }
    }

    /// A CA with the same name and another key.
    fn impostor(&self) -> Self {
        Self {
            key: KeyPair::generate().unwrap(),
            params: self.params.clone(),
        }
    }

    fn pem(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    /// A server whose certificate for [`NAME`] was changed by `change`. Returns its port.
    fn server(&self, change: impl FnOnce(&mut CertificateParams)) -> u16 {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = rustls::crypto::ring::default_provider().into();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let (config, listener) = (
            Arc::new(config),
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
        );
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let _ = StreamOwned::new(connection, tcp).read(&mut [0; 1]);
            }
        });
        port
    }
}

/// One target, what its client must read, and the error type of `Proxy-Status`.
struct Case {
    port: u16,
    text: &'static str,
    error: &'static str,
}

/// Targets that fail in every way.
fn cases(ca: &Ca) -> Vec<Case> {
    const CERTIFICATE: &str = "tls_certificate_error";
    let case = |port, text, error| Case { port, text, error };
    let answering = |bytes: &'static [u8]| {
        let server = ScriptedServer::start(move |mut tcp| {
            let _ = tcp.read(&mut [0; 4096])?;
            tcp.write_all(bytes)?;
            tcp.read_to_end(&mut Vec::new()).map(drop)
        });
        server.port()
    };
    vec![
        case(
            ca.server(|params| params.not_after = date_time_ymd(2021, 1, 2)),
            "has expired by the gateway's clock",
            CERTIFICATE,
        ),
        case(
            ca.server(|params| {
                params.not_before = date_time_ymd(2500, 1, 2);
                params.not_after = date_time_ymd(2501, 1, 2);
            }),
            "is not valid yet by the gateway's clock",
            CERTIFICATE,
        ),
        case(
            ca.server(|params| {
                params.subject_alt_names =
                    CertificateParams::new(["a.example".to_owned(), "b.example".to_owned()])
                        .unwrap()
                        .subject_alt_names;
            }),
            "is for another name: it is valid for a.example, b.example",
            CERTIFICATE,
        ),
        case(
            ca.server(|params| {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
            "is a CA certificate",
            CERTIFICATE,
        ),
        case(
            ca.server(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
            "is not for servers",
            CERTIFICATE,
        ),
        case(
            ca.impostor().server(|_| {}),
            "has a wrong signature",
            CERTIFICATE,
        ),
        case(
            Ca {
                key: KeyPair::generate().unwrap(),
                params: CertificateParams::new([]).unwrap(),
            }
            .server(|_| {}),
            "was not issued by a CA that the gateway trusts",
            CERTIFICATE,
        ),
        case(
            answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            "does not speak TLS",
            "tls_protocol_error",
        ),
        case(
            answering(&[21, 3, 3, 0, 2, 2, 70]),
            "received the fatal alert protocol_version",
            "tls_alert_received",
        ),
        case(
            ScriptedServer::start(|mut tcp| tcp.read(&mut [0; 4096]).map(drop)).port(),
            "the target closed the connection",
            "connection_terminated",
        ),
    ]
}

/// `run --embedded` that intercepts the targets of `cases` and trusts `ca`, for a command.
fn run(home: &TempHome, ca: &Ca, cases: &[Case]) -> std::process::Command {
    let file = home.write("ca.pem", ca.pem(), 0o644);
    let mut command = upstreamproxy(home);
    command.args(["run", "--embedded", "--intercept", "*"]);
    command.arg("--upstream-ca").arg(file);
    for case in cases {
        command.arg(format!("--resolve={NAME}:{}:127.0.0.1", case.port));
    }
    command.arg("--");
    command
}

/// Names of variants in rustls and webpki must not be in a text for a person.
fn assert_no_debug_text(text: &str) {
    for name in [
        "CaUsedAsEndEntity",
        "BadSignature",
        "UnknownIssuer",
        "NotValid",
        "Expired",
        "InvalidPurpose",
        "InvalidMessage",
        "ProtocolVersion",
        "Context {",
    ] {
        assert!(!text.contains(name), "{name}: {text}");
    }
}

#[test]
fn curl_shows_why_tls_with_the_target_failed() {
    if !need_tool("curl") {
        return;
    }
    let (home, ca) = (TempHome::new(), Ca::new());
    let cases = cases(&ca);
    let script = "for port in \"$@\"; do curl -sSi https://origin.test:$port/; echo; done";
    let ports = cases.iter().map(|case| case.port.to_string());
    let finished = finish(
        run(&home, &ca, &cases)
            .args(["sh", "-c", script, "sh"])
            .args(ports),
    )
    .succeeded();
    let text = finished.text();
    let responses: Vec<_> = text.split("HTTP/1.1 ").collect();
    // The CONNECT request of each has its own response, which curl prints too.
    let responses: Vec<_> = responses
        .iter()
        .filter(|response| response.starts_with("50"))
        .collect();
    assert_eq!(responses.len(), cases.len(), "{finished:#?}");
    for (case, response) in cases.iter().zip(responses) {
        let line = response.lines().next().unwrap();
        assert!(line.starts_with("502 "), "{}: {response}", case.text);
        assert!(line.contains(case.text), "{}: {response}", case.text);
        let body = response.split("\r\n\r\n").nth(1).unwrap_or_default();
        assert!(
            body.starts_with("origin.test: ") && body.contains(case.text),
            "{}: {response}",
            case.text
        );
        let field = format!("Proxy-Status: upstreamproxy; error={};", case.error);
        assert!(response.contains(&field), "{}: {response}", case.text);
        // The log of a gateway calls its machine this machine.
        let at_gateway = case
            .text
            .replace("by the gateway's", "by this machine's")
            .replace("that the gateway trusts", "that is trusted here");
        assert!(
            finished.stderr.contains(&at_gateway),
            "{at_gateway}: {finished:#?}"
        );
    }
    assert_no_debug_text(&text);
    assert_no_debug_text(&finished.stderr);
}

#[test]
fn python_shows_why_tls_with_the_target_failed() {
    if !need_tool("python3") {
        return;
    }
    let (home, ca) = (TempHome::new(), Ca::new());
    let cases = cases(&ca);
    let script = "import sys, urllib.request, urllib.error\n\
                  for port in sys.argv[1:]:\n\
                  \x20   try: urllib.request.urlopen(f'https://origin.test:{port}/', data=b'x' * 300000)\n\
                  \x20   except urllib.error.HTTPError as error: print(error, error.read().decode().strip())\n";
    let ports = cases.iter().map(|case| case.port.to_string());
    let finished = finish(
        run(&home, &ca, &cases)
            .args(["python3", "-c", script])
            .args(ports),
    )
    .succeeded();
    let text = finished.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), cases.len(), "{finished:#?}");
    for (case, line) in cases.iter().zip(lines) {
        assert!(line.starts_with("HTTP Error 502: "), "{line}");
        assert_eq!(line.matches(case.text).count(), 2, "{line}");
    }
}

/// A TLS client for [`NAME`] through the tunnel that accepts the gateway's CA and offers `alpn`.
fn tls_client(
    relay: &RelayProcess,
    port: u16,
    alpn: &[&[u8]],
) -> StreamOwned<ClientConnection, TcpStream> {
    let bundle = std::fs::read(relay.ready["ca_bundle"].as_str().unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bundle).map_while(Result::ok));
    let provider = rustls::crypto::ring::default_provider().into();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let (stream, answer) = connect(relay.port(), &format!("{NAME}:{port}"));
    assert_eq!(answer.status, 200);
    let name = ServerName::try_from(NAME).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, stream)
}

#[test]
fn only_a_request_of_http_1_is_answered_and_nothing_of_it_reaches_the_target() {
    const HTTP: &[&[u8]] = &[b"http/1.1"];
    let home = TempHome::new();
    let received = Arc::new(Mutex::new(Vec::new()));
    let ended = Arc::new(AtomicUsize::new(0));
    let (all, ends) = (Arc::clone(&received), Arc::clone(&ended));
    let target = ScriptedServer::start(move |mut tcp| {
        let mut hello = [0; 4096];
        let len = tcp.read(&mut hello)?;
        tcp.write_all(b"this is not TLS\r\n")?;
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest);
        all.lock().unwrap().extend_from_slice(&hello[..len]);
        all.lock().unwrap().extend_from_slice(&rest);
        ends.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let port = target.port();
    let resolve = format!("{NAME}:{port}:127.0.0.1");
    let gateway = GatewayProcess::start(&home, &["--intercept", "*", "--resolve", &resolve]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let reply = |alpn: &[&[u8]], request: &[u8]| {
        let mut tls = tls_client(&relay, port, alpn);
        let mut reply = Vec::new();
        let read = tls
            .write_all(request)
            .and_then(|()| tls.read_to_end(&mut reply));
        (String::from_utf8(reply).unwrap(), read.map(drop))
    };
    let get = b"GET /canary HTTP/1.1\r\nHost: origin.test\r\n\r\n";
    for alpn in [HTTP, &[&b"h2"[..], &b"http/1.1"[..]]] {
        let (text, read) = reply(alpn, get);
        assert!(
            text.starts_with("HTTP/1.1 502 TLS with the target failed"),
            "{text}"
        );
        assert!(
            text.ends_with("which versions of TLS it supports\n"),
            "{text}"
        );
        // With close_notify: nothing is missing.
        read.unwrap();
    }
    let (text, _) = reply(HTTP, b"HEAD /canary HTTP/1.1\r\nHost: origin.test\r\n\r\n");
    assert!(
        text.starts_with("HTTP/1.1 502 ") && text.ends_with("\r\n\r\n"),
        "{text}"
    );
    let long = format!(
        "GET /canary HTTP/1.1\r\nCookie: {}\r\n\r\n",
        "x".repeat(40_000)
    );
    let (text, _) = reply(HTTP, long.as_bytes());
    assert!(text.starts_with("HTTP/1.1 502 "), "{text}");
    // Another protocol gets the end of the connection, without close_notify.
    for request in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        b"EHLO canary\r\n",
        b"\x00\x01canary",
        b"GET /canary\nHost: x\n\n",
    ] {
        let (text, read) = reply(HTTP, request);
        assert_eq!(text, "", "{request:?}");
        assert!(read.is_err(), "{request:?}");
    }
    // A client that offers HTTP/2 alone, or nothing, gets an alert.
    for alpn in [&[&b"h2"[..]][..], &[]] {
        let (text, read) = reply(alpn, get);
        let error = read.unwrap_err().to_string();
        assert!(text.is_empty() && error.contains("fatal alert"), "{error}");
    }
    relay.stop().succeeded();
    drop(gateway.running.stop());
    let connections = target.connections();
    assert_eq!(connections, 10);
    let received = received.lock().unwrap().clone();
    assert!(!received.windows(6).any(|window| window == b"canary"));
    // Each connection begins with a ClientHello, and at most an alert follows.
    assert_eq!(received.first(), Some(&22));
    assert_eq!(ended.load(Ordering::Relaxed), connections);
}

#[test]
fn the_reason_of_a_refusal_is_in_the_status_line_and_a_warning_of_run() {
    if !need_tool("curl") {
        return;
    }
    let home = TempHome::new();
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    let gateway = GatewayProcess::start(&home, &[]);
    let mut command = upstreamproxy(&home);
    home.session(command.arg("run"), &gateway.base_url());
    let script = format!(
        "for url in no.invalid:1 no.invalid:1 127.0.0.1:{closed_port}; do \
         curl -sv --noproxy '' https://$url/ 2>&1 | grep -a '^< HTTP\\|^< Proxy-Status'; done; true"
    );
    let finished = finish(command.args(["--", "sh", "-c", &script])).succeeded();
    let text = finished.text().replace('\r', "");
    for line in [
        "< HTTP/1.1 502 the target's name was not found: no.invalid\n\
         < Proxy-Status: upstreamproxy; error=dns_error; details=\"opening\"\n",
        "< HTTP/1.1 502 the target refused the connection: 127.0.0.1\n\
         < Proxy-Status: upstreamproxy; error=connection_refused; details=\"opening\"\n",
    ] {
        assert!(text.contains(line), "{finished:#?}");
    }
    let log = &finished.stderr;
    let warning = "upstreamproxy: warn: relay: no.invalid:1 refused 502 in opening: \
                   the target's name was not found: ";
    assert_eq!(log.matches(warning).count(), 1, "{log}");
    assert!(log.contains("; check its name\n"), "{log}");
    let repeated = "warn: relay: requests refused like those in the warnings before: 1; ";
    assert!(log.contains(repeated), "{log}");
}

#[test]
fn refused_credentials_are_a_warning_each_time_with_what_to_do() {
    let home = TempHome::new();
    let gateway =
        GatewayProcess::with_sessions(&home, "session-of-another a-token-of-another", &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["-q"]);
    for _ in 0..3 {
        let (mut client, answer) = connect(relay.port(), "a.example:443");
        assert_eq!(answer.status, 502);
        read_to_end(&mut client);
    }
    let log = relay.stop().succeeded().stderr;
    let lines = log.lines().filter(|line| {
        line.contains(" upstreamproxy: warn: relay: a.example:443 refused 502 in upgrade: ")
            && line.contains("does not accept this session's token")
            && line.ends_with("start a new session with a new token")
    });
    assert_eq!(lines.count(), 3, "{log}");
}

#[test]
fn a_gateway_at_its_limit_is_reported_as_such_over_tls_too() {
    let (home, ca) = (TempHome::new(), crate::support::TestCa::new("gateway root"));
    let (certificate, key) = ca.issue("127.0.0.1");
    let file = |name: &str, text: &str| home.write(name, text, 0o600).display().to_string();
    let (cert, key) = (file("cert.pem", &certificate), file("key.pem", &key));
    let ca = file("ca.pem", &ca.pem);
    let echo = crate::support::EchoServer::start();
    for tls in [false, true] {
        let options = ["--max-tunnels=1", "--tls-cert", &cert, "--tls-key", &key];
        let options = if tls { &options[..] } else { &options[..1] };
        let gateway = GatewayProcess::start(&home, options);
        let url = gateway.base_url();
        let options = ["--upstream-ca", &ca, "--standby=0"];
        let options = if tls { &options[..] } else { &options[2..] };
        home.write_token(crate::support::TOKEN);
        let relay = RelayProcess::start(&home, &url, options);
        let (first, answer) = connect(relay.port(), &echo.authority());
        assert_eq!(answer.status, 200, "{answer:?}");
        let (mut second, answer) = connect(relay.port(), &echo.authority());
        let (body, ending) = read_to_end(&mut second);
        let text = String::from_utf8([answer.early.clone(), body].concat()).unwrap();
        assert_eq!((answer.status, ending), (503, Ending::Eof), "{answer:?}");
        assert!(answer.has_field("Retry-After"), "{answer:?}");
        assert!(text.contains("no tunnel free"), "{text}");
        drop((first, second));
        let phase = if tls { "tls" } else { "upgrade" };
        let log = relay.stop().succeeded().stderr;
        assert!(log.contains(&format!("refused 503 in {phase}: ")), "{log}");
        let log = gateway.running.stop().stderr;
        assert!(log.contains("all 1 slots are in use"), "{log}");
    }
}

#[test]
fn a_request_with_a_whole_url_gets_the_host_and_the_reason() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let bytes = b"GET http://no.invalid/ HTTP/1.1\r\nHost: no.invalid\r\n\r\n";
    let (mut client, answer) = request(relay.port(), bytes);
    let (body, _) = read_to_end(&mut client);
    let text = String::from_utf8([answer.early.clone(), body].concat()).unwrap();
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(
        text,
        "no.invalid: the target's name was not found; check its name\n"
    );
}
