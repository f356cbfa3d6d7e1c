//! The protocol: relay and gateway are each tested with a peer that shares no code with them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::support::{
    CannedServer, EchoServer, Ending, GatewayProcess, HalfCloseServer, PeerClient, PeerGateway,
    Python, RelayProcess, SpeaksFirstServer, TOKEN, TempHome, TestCa, connect, exchange, pattern,
    read_to_end, request,
};

/// Valid encodings that a usual gateway does not choose, and that a relay must accept.
const UNUSUAL_BUT_VALID: [&str; 9] = [
    "fragmented",
    "byte-chunks",
    "keepalives",
    "unknown-fields",
    "field-twice",
    "non-minimal",
    "big-chunks",
    "answer-204",
    "odd-case-upgrade",
];

/// Starts a peer gateway with these options and a relay that uses it.
fn relay_with_peer_gateway(
    python: &Python,
    home: &TempHome,
    options: &[&str],
) -> (RelayProcess, PeerGateway) {
    let gateway = PeerGateway::start(python, home, options);
    let relay = RelayProcess::start(home, &gateway.base_url(), &[]);
    (relay, gateway)
}

fn with_quirk(quirk: &str) -> [&str; 2] {
    ["--quirk", quirk]
}

#[test]
fn the_two_peers_agree_with_each_other() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let payload = pattern(700_000);
    for quirk in [
        "none",
        "fragmented",
        "byte-chunks",
        "keepalives",
        "unknown-fields",
        "field-twice",
        "non-minimal",
    ] {
        let gateway = PeerGateway::start(python, &home, &with_quirk(quirk));
        let client = PeerClient::new(python, &home, gateway.base_url());
        let received = client.tunnel(&target.authority(), &payload, &with_quirk(quirk));
        assert_eq!(received.report["status"], 200, "{quirk}: {received:?}");
        assert_eq!(received.body, HalfCloseServer::answer(&payload), "{quirk}");
        assert_eq!(received.report["close_code"], 1000, "{quirk}");
        let end = gateway.next_event("end");
        assert_eq!(end["up"], payload.len(), "{quirk}: {end}");
    }
}

#[test]
fn the_relay_sends_the_opening_exactly_as_on_the_protocol_page() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), EchoServer::start());
    let (relay, gateway) = relay_with_peer_gateway(python, &home, &[]);
    assert_eq!(
        gateway.next_event("ca-cert")["authorization"],
        false,
        "the request for the CA has no credentials"
    );

    let head = format!(
        "CONNECT {} HTTP/1.0\r\nX-Of-The-Client: 1\r\n\r\nearly",
        target.authority()
    );
    let (mut stream, answer) = request(relay.port(), head.as_bytes());
    assert_eq!(answer.head, "HTTP/1.1 200 Connection Established");
    let (rest, ending) = exchange(&mut stream, b" and late".to_vec());
    assert_eq!([answer.early, rest].concat(), b"early and late");
    assert_eq!(ending, Ending::Eof);

    let upgrade = gateway.next_event("upgrade");
    assert_eq!(upgrade["authorised"], true);
    assert_eq!(upgrade["content_type"], "application/proto");
    assert_eq!(
        upgrade["extensions"],
        serde_json::Value::Null,
        "no extension is offered"
    );
    assert_eq!(upgrade["subprotocols"], "upstreamproxy.v2");
    let opening = gateway.next_event("opening");
    assert_eq!(opening["exact"], true, "{opening}");
    assert_eq!(
        opening["early"], 0,
        "the client's early bytes wait for the 2xx"
    );
    let end = gateway.next_event("end");
    assert_eq!(
        (&end["fin_up"], &end["fin_down"]),
        (&true.into(), &true.into())
    );
    assert_eq!(end["close_code"], 1000, "{end}");
    assert_eq!(end["empty"], 0, "the relay sends no empty message: {end}");
}

#[test]
fn the_relay_accepts_every_unusual_but_valid_encoding_in_both_versions() {
    let Some(python) = Python::ready() else {
        return;
    };
    let target = EchoServer::start();
    let payload = pattern(1_500_000);
    for version in ["--v1", "--v2"] {
        for quirk in UNUSUAL_BUT_VALID {
            let home = TempHome::new();
            let (relay, _gateway) = relay_with_peer_gateway(
                python,
                &home,
                &[&[version], &with_quirk(quirk)[..]].concat(),
            );
            let (mut stream, answer) = connect(relay.port(), &target.authority());
            assert_eq!(
                answer.head, "HTTP/1.1 200 Connection Established",
                "{version} {quirk}"
            );
            let mut up = stream.try_clone().unwrap();
            let sent = payload.clone();
            let sender = std::thread::spawn(move || up.write_all(&sent));
            let mut received = vec![0; payload.len()];
            stream
                .read_exact(&mut received)
                .unwrap_or_else(|e| panic!("{version} {quirk}: {e}"));
            sender.join().unwrap().unwrap();
            assert!(received == payload, "{version} {quirk}: the bytes differ");
            if version == "--v2" {
                stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_to_end(&mut stream), (vec![], Ending::Eof), "{quirk}");
            }
        }
    }
}

#[test]
fn the_relay_delivers_data_from_the_same_chunk_as_the_head() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), SpeaksFirstServer::start());
    let (relay, _gateway) = relay_with_peer_gateway(python, &home, &with_quirk("head-and-payload"));
    let (mut stream, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200);
    let (rest, ending) = exchange(&mut stream, b"HELO\r\n".to_vec());
    let all = [answer.early, rest].concat();
    assert_eq!(
        String::from_utf8_lossy(&all),
        format!("{}HELO\r\n", SpeaksFirstServer::GREETING)
    );
    assert_eq!(ending, Ending::Eof);
}

#[test]
fn a_half_close_reaches_the_target_and_its_answer_comes_back() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let (relay, gateway) = relay_with_peer_gateway(python, &home, &[]);
    let payload = pattern(2_000_000);
    let (mut stream, _) = connect(relay.port(), &target.authority());
    let (received, ending) = exchange(&mut stream, payload.clone());
    assert_eq!(received, HalfCloseServer::answer(&payload));
    assert_eq!(ending, Ending::Eof);
    let end = gateway.next_event("end");
    assert!(end["largest"].as_u64() <= Some(512 * 1024), "{end}");
}

#[test]
fn in_version_1_the_end_of_the_target_is_a_clean_end() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (
        TempHome::new(),
        CannedServer::answering("200 OK", b"and that is all"),
    );
    let (relay, gateway) = relay_with_peer_gateway(python, &home, &["--v1"]);
    let (mut stream, _) = connect(relay.port(), &target.authority());
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let (received, ending) = read_to_end(&mut stream);
    assert!(received.ends_with(b"and that is all"));
    assert_eq!(ending, Ending::Eof);
    assert_eq!(gateway.next_event("end")["close_code"], 1000);
}

#[test]
fn a_refusal_of_the_gateway_is_translated_and_its_challenge_is_not_passed_on() {
    let Some(python) = Python::ready() else {
        return;
    };
    let target = EchoServer::start();
    for (quirk, expected) in [
        ("refuse-400", 502),
        ("refuse-401", 502),
        ("refuse-403", 403),
        ("refuse-403-until-close", 403),
        ("refuse-403-long", 403),
        ("refuse-407", 502),
        ("refuse-418", 502),
        ("refuse-429", 503),
        ("refuse-500", 502),
        ("refuse-502", 502),
        ("refuse-503", 503),
        ("refuse-504", 504),
        ("answer-not-http", 502),
        ("answer-huge-head", 502),
        ("answer-nul", 502),
        ("data-before-head", 502),
        ("upgrade-200", 502),
        ("upgrade-401", 502),
        ("upgrade-403", 502),
        ("upgrade-404", 502),
        ("upgrade-407", 502),
        ("upgrade-426", 502),
        ("upgrade-429", 503),
        ("upgrade-500", 502),
        ("upgrade-503", 503),
        ("wrong-accept", 502),
        ("missing-accept", 502),
        ("extra-extension", 502),
        ("extra-subprotocol", 502),
    ] {
        let home = TempHome::new();
        let (relay, _gateway) = relay_with_peer_gateway(python, &home, &with_quirk(quirk));
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        let (body, ending) = read_to_end(&mut stream);
        assert_eq!(answer.status, expected, "{quirk}: {answer:?}");
        assert_eq!(
            ending,
            Ending::Eof,
            "{quirk}: the client can read the whole refusal"
        );
        assert!(answer.has_field("Proxy-Status"), "{quirk}: {answer:?}");
        for challenge in [
            "WWW-Authenticate",
            "Proxy-Authenticate",
            "Location",
            "X-Filler",
        ] {
            assert!(!answer.has_field(challenge), "{quirk}: {answer:?}");
        }
        let text = String::from_utf8([answer.early, body].concat()).unwrap();
        assert!(
            !text.trim().is_empty() && !text.contains("canary"),
            "{quirk}: {text:?}"
        );
        assert!(
            !text.contains(&target.port().to_string()),
            "{quirk} echoes the request: {text:?}"
        );
        if expected == 403 {
            assert!(
                text.contains("policy") && text.contains("do not retry"),
                "{quirk}: {text:?}"
            );
            assert!(
                text.len() < 2048,
                "{quirk}: more than 1 KiB of the gateway's text: {}",
                text.len()
            );
        }
        if quirk.starts_with("refuse-403") && quirk != "refuse-403-long" {
            assert!(text.contains("not on the list (7)"), "{quirk}: {text:?}");
        }
    }
    assert_eq!(target.connections(), 0, "nothing was dialled");
}

#[test]
fn a_redirect_at_the_upgrade_is_not_followed() {
    let Some(python) = Python::ready() else {
        return;
    };
    for quirk in ["upgrade-301", "upgrade-302", "upgrade-307", "upgrade-308"] {
        let (home, elsewhere) = (TempHome::new(), EchoServer::start());
        let location = format!("http://{}/v1/code/upstreamproxy/ws", elsewhere.authority());
        let options = ["--quirk", quirk, "--elsewhere", &location];
        let (relay, _gateway) = relay_with_peer_gateway(python, &home, &options);
        let (mut stream, answer) = connect(relay.port(), "target.test:443");
        assert_eq!(answer.status, 502, "{quirk}");
        read_to_end(&mut stream);
        assert_eq!(elsewhere.connections(), 0, "{quirk} was followed");
    }
}

#[test]
fn a_broken_tunnel_delivers_a_prefix_and_then_a_reset() {
    let Some(python) = Python::ready() else {
        return;
    };
    let target = SpeaksFirstServer::start();
    for (quirk, code) in [
        ("text", Some(1003)),
        ("truncated", Some(1007)),
        ("bad-wire-type", Some(1007)),
        ("field-zero", Some(1007)),
        ("long-varint", Some(1007)),
        ("open-group", Some(1007)),
        ("too-big", Some(1009)),
        ("data-after-fin", Some(1002)),
        ("close-before-fin", None),
        ("close-1011", None),
        ("close-1008", None),
        ("tcp-reset", None),
        ("tcp-fin", None),
    ] {
        let home = TempHome::new();
        let (relay, gateway) = relay_with_peer_gateway(python, &home, &with_quirk(quirk));
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        assert_eq!(answer.status, 200, "{quirk}");
        let (rest, ending) = read_to_end(&mut stream);
        let all = [answer.early, rest].concat();
        assert!(
            SpeaksFirstServer::GREETING.as_bytes().starts_with(&all),
            "{quirk}: {:?}",
            String::from_utf8_lossy(&all)
        );
        // After the `fin`, the client may have read the clean end before the fault arrived.
        let clean_end_came_first = quirk == "data-after-fin" && ending == Ending::Eof;
        assert!(ending == Ending::Reset || clean_end_came_first, "{quirk}");
        if let Some(code) = code {
            let end = gateway.next_event("end");
            assert_eq!(end["close_code"], code, "{quirk}: {end}");
        }
        let log = relay.stop().stderr;
        assert!(
            log.contains(&target.authority()),
            "{quirk}: no log line: {log}"
        );
    }
}

#[test]
fn relay_and_gateway_work_with_the_peers_over_tls() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let ca = TestCa::new("root of the gateway");
    let (certificate, key) = ca.issue("127.0.0.1");
    let [trust, certificate, key] = [
        ("root.pem", &ca.pem),
        ("gateway.pem", &certificate),
        ("gateway.key", &key),
    ]
    .map(|(name, pem)| home.write(name, pem, 0o600).to_str().unwrap().to_owned());
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    let payload = pattern(3_000_000);

    let gateway = PeerGateway::start(python, &home, &tls);
    let base_url = gateway.base_url().replace("http:", "https:");
    let relay = RelayProcess::start(&home, &base_url, &["--upstream-ca", &trust]);
    let (mut stream, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200);
    let received = exchange(&mut stream, payload.clone());
    assert_eq!(received, (HalfCloseServer::answer(&payload), Ending::Eof));

    let gateway = GatewayProcess::start(&home, &tls);
    let client = PeerClient::new(python, &home, gateway.base_url());
    let received = client.tunnel(&target.authority(), &payload, &["--ca", &trust]);
    assert_eq!(
        received.body,
        HalfCloseServer::answer(&payload),
        "{:?}",
        received.report
    );
    assert_eq!(received.report["close_code"], 1000, "{:?}", received.report);
}

#[test]
fn a_gateway_that_answers_no_ping_counts_as_dead_and_the_client_is_reset() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = PeerGateway::start(python, &home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--keepalive", "200ms"]);
    let (mut stream, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200);
    stream.write_all(b"alive").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    // The kernel of the stopped process still accepts bytes: only the missing pongs show the fault.
    gateway.running.signal(Signal::STOP);
    assert_eq!(read_to_end(&mut stream), (vec![], Ending::Reset));
}

#[test]
fn a_gateway_that_stops_reading_slows_the_client_and_no_byte_is_lost() {
    /// Far more than all buffers on the path can hold together.
    const TOO_MUCH: usize = 96 << 20;
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let (relay, gateway) = relay_with_peer_gateway(python, &home, &[]);
    let (mut stream, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200);
    gateway.running.signal(Signal::STOP);
    let payload = pattern(1 << 20);
    let mut sent = 0;
    stream.set_nonblocking(true).unwrap();
    while sent < TOO_MUCH && writable(&stream) {
        let at = sent % payload.len();
        match stream.write(&payload[at..]) {
            Ok(written) => sent += written,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    stream.set_nonblocking(false).unwrap();
    assert!(sent < TOO_MUCH, "no backpressure reached the client");
    gateway.running.signal(Signal::CONT);
    let rest = payload[sent % payload.len()..].to_vec();
    let total = sent + rest.len();
    let (received, ending) = exchange(&mut stream, rest);
    let tail = &payload[payload.len() - 8..];
    assert_eq!(
        received,
        [format!("{total} bytes ").as_bytes(), tail].concat()
    );
    assert_eq!(ending, Ending::Eof);
}

/// Whether the socket accepts bytes within 2 s. A wrong `false` makes the test weaker, but not
/// wrong.
fn writable(stream: &TcpStream) -> bool {
    let mut ready = [PollFd::new(stream, PollFlags::OUT)];
    let timeout = Timespec {
        tv_sec: 2,
        tv_nsec: 0,
    };
    poll(&mut ready, Some(&timeout)).unwrap() > 0
}

#[test]
fn a_fault_in_the_same_read_as_the_answer_is_not_overlooked() {
    let Some(python) = Python::ready() else {
        return;
    };
    let target = SpeaksFirstServer::start();
    for quirk in [
        "text",
        "truncated",
        "field-zero",
        "close-before-fin",
        "close-1011",
    ] {
        let home = TempHome::new();
        let options = [&with_quirk(quirk)[..], &["--quirk", "corked"]].concat();
        let gateway = PeerGateway::start(python, &home, &options);
        // Without pings, only the fault itself can end the tunnel.
        let relay = RelayProcess::start(&home, &gateway.base_url(), &["--keepalive", "0"]);
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        if answer.status == 200 {
            let (rest, ending) = read_to_end(&mut stream);
            let all = [answer.early, rest].concat();
            assert!(
                SpeaksFirstServer::GREETING.as_bytes().starts_with(&all),
                "{quirk}"
            );
            assert_eq!(ending, Ending::Reset, "{quirk}");
        } else {
            assert_eq!(answer.status, 502, "{quirk}: {answer:?}");
        }
    }
}

/// Starts a gateway and a peer client that uses it.
fn gateway_with_peer_client<'a>(
    python: &'a Python,
    home: &'a TempHome,
    options: &[&str],
) -> (PeerClient<'a>, GatewayProcess) {
    let gateway = GatewayProcess::start(home, options);
    (PeerClient::new(python, home, gateway.base_url()), gateway)
}

#[test]
fn the_gateway_accepts_every_unusual_but_valid_encoding() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let (client, _gateway) = gateway_with_peer_client(python, &home, &[]);
    let payload = pattern(1_500_000);
    for quirk in [
        "none",
        "many-chunks",
        "head-and-payload",
        "early-data",
        "unknown-header",
        "unknown-fields",
        "field-twice",
        "non-minimal",
        "fragmented",
        "keepalives",
        "origin",
    ] {
        for chunk in ["1000", "65536", "524288"] {
            let options = [&with_quirk(quirk)[..], &["--chunk", chunk]].concat();
            let received = client.tunnel(&target.authority(), &payload, &options);
            if quirk == "origin" {
                assert_ne!(
                    received.report["upgrade"], 101,
                    "a request of a browser must be refused: {received:?}"
                );
                continue;
            }
            assert_eq!(
                received.report["subprotocol"], "upstreamproxy.v2",
                "{quirk}: {received:?}"
            );
            assert_eq!(
                received.report["head"], "HTTP/1.1 200 Connection Established",
                "{quirk}"
            );
            assert_eq!(
                received.body,
                HalfCloseServer::answer(&payload),
                "{quirk} {chunk}"
            );
            assert_eq!(
                received.report["close_code"], 1000,
                "{quirk} {chunk}: {:?}",
                received.report
            );
        }
    }
}

#[test]
fn the_gateway_speaks_version_1_to_a_client_that_does_not_offer_2() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), CannedServer::answering("200 OK", b"all"));
    let (client, _gateway) = gateway_with_peer_client(python, &home, &[]);
    let received = client.tunnel(&target.authority(), b"GET / HTTP/1.0\r\n\r\n", &["--v1"]);
    assert_eq!(received.report["subprotocol"], serde_json::Value::Null);
    assert_eq!(received.report["status"], 200);
    assert!(received.body.ends_with(b"all"), "{received:?}");
    assert_eq!(received.report["close_code"], 1000, "{received:?}");
}

#[test]
fn the_gateway_reaches_an_ipv6_authority() {
    let Some(python) = Python::ready() else {
        return;
    };
    let Ok(listener) = std::net::TcpListener::bind("[::1]:0") else {
        return crate::support::skip("this machine has no IPv6 loopback");
    };
    let target = format!("[::1]:{}", listener.local_addr().unwrap().port());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let home = TempHome::new();
    let (client, _gateway) = gateway_with_peer_client(python, &home, &[]);
    let received = client.tunnel(&target, b"over six", &[]);
    assert_eq!(received.body, b"over six", "{received:?}");
    server.join().unwrap();
}

#[test]
fn the_gateway_closes_a_tunnel_that_breaks_the_protocol_with_the_right_code() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let (client, _gateway) = gateway_with_peer_client(python, &home, &[]);
    for (quirk, code) in [
        ("text", 1003),
        ("truncated", 1007),
        ("bad-wire-type", 1007),
        ("field-zero", 1007),
        ("long-varint", 1007),
        ("too-big", 1009),
        ("data-after-fin", 1002),
    ] {
        let received = client.tunnel(&target.authority(), b"some", &with_quirk(quirk));
        assert_eq!(received.report["status"], 200, "{quirk}");
        assert_eq!(received.report["close_code"], code, "{quirk}: {received:?}");
    }
}

#[test]
fn the_gateway_refuses_wrong_credentials_before_it_dials() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), EchoServer::start());
    let (client, _gateway) = gateway_with_peer_client(python, &home, &[]);
    let authority = target.authority();
    for bearer in [
        ["--bearer", "wrong"],
        ["--bearer", &TOKEN[1..]],
        ["--quirk", "no-bearer"],
    ] {
        let received = client.tunnel(&authority, b"", &bearer);
        assert_eq!(received.report["upgrade"], 401, "{bearer:?}: {received:?}");
    }
    let wrong_session = format!("other:{TOKEN}");
    for basic in [
        ["--basic", "session-of-the-test:wrong"],
        ["--basic", &wrong_session],
        ["--basic", "no colon"],
        ["--quirk", "no-basic"],
    ] {
        let received = client.tunnel(&authority, b"", &basic);
        assert_eq!(received.report["upgrade"], 101, "{basic:?}: {received:?}");
        assert_eq!(received.report["status"], 407, "{basic:?}: {received:?}");
    }
    for wrong in ["no-http", "huge-head"] {
        let received = client.tunnel(&authority, b"", &with_quirk(wrong));
        assert_ne!(received.report["status"], 200, "{wrong}: {received:?}");
    }
    assert_eq!(target.connections(), 0, "nothing was dialled");
}

#[test]
fn the_gateway_refuses_private_and_local_addresses() {
    let Some(python) = Python::ready() else {
        return;
    };
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::strict(&home, &[]);
    let client = PeerClient::new(python, &home, gateway.base_url());
    let port = target.port();
    for host in [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.0.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "172.16.0.1",
        "[fe80::1]",
        "[fc00::1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ] {
        let received = client.tunnel(&format!("{host}:{port}"), b"", &[]);
        let status = received.report["status"].as_u64();
        assert!(
            matches!(status, Some(400 | 403 | 502)),
            "{host}: {received:?}"
        );
    }
    assert_eq!(target.connections(), 0, "nothing was dialled");
}

#[test]
fn the_gateway_answers_502_for_a_target_that_refuses() {
    let Some(python) = Python::ready() else {
        return;
    };
    let home = TempHome::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let authority = closed.local_addr().unwrap().to_string();
    drop(closed);
    let (client, _gateway) = gateway_with_peer_client(python, &home, &[]);
    assert_eq!(client.tunnel(&authority, b"", &[]).report["status"], 502);
}
