//! Hostile upstreams: they close early, send slowly, flood, redirect, or answer something else, in
//! each phase. The client always gets either a status and one sentence, or a prefix of the data and
//! a reset. The relay neither hangs nor busy-loops nor leaks resources.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, SockRef, Socket, Type};
use tungstenite::handshake::derive_accept_key;
use upstreamproxy::{Config, Handle, start};

use crate::support::{
    Ending, RelayProcess, ResourceCounts, TIMEOUT, TOKEN, TempHome, TestCa, assert_idle, connect,
    finish, need_tool, pattern, read_to_end, skip, upstreamproxy,
};

const TARGET: &str = "target.test:443";
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
/// Opcodes of RFC 6455, section 11.8.
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;

/// Handles a connection after its request head was read.
type Behaviour = dyn Fn(&mut TcpStream, &str) -> std::io::Result<()> + Send + Sync;

/// An upstream without TLS. It serves its CA correctly; the test defines what it does at the tunnel
/// endpoint.
struct Upstream {
    port: u16,
    behaviour: Arc<Mutex<Arc<Behaviour>>>,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let nothing: Arc<Behaviour> = Arc::new(|_, _| Ok(()));
        let behaviour = Arc::new(Mutex::new(nothing));
        let current = Arc::clone(&behaviour);
        let pem = TestCa::new("ca of a hostile upstream").pem;
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (behaviour, pem) = (Arc::clone(&current.lock().unwrap()), pem.clone());
                thread::spawn(move || {
                    stream.set_read_timeout(Some(TIMEOUT))?;
                    let head = read_head(&mut stream)?;
                    if head.contains("/ca-cert ") {
                        return stream.write_all(ca_answer(&pem).as_bytes());
                    }
                    assert!(head.contains(TOKEN), "the upgrade has no token");
                    behaviour(&mut stream, &head)
                });
            }
        });
        Self { port, behaviour }
    }

    fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn set_behaviour(
        &self,
        behaviour: impl Fn(&mut TcpStream, &str) -> std::io::Result<()> + Send + Sync + 'static,
    ) {
        *self.behaviour.lock().unwrap() = Arc::new(behaviour);
    }
}

fn read_head(stream: &mut impl Read) -> std::io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head).unwrap())
}

fn ca_answer(pem: &str) -> String {
    let length = pem.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{pem}")
}

/// The correct response to the upgrade request in `head`.
fn switching_protocols(head: &str) -> Vec<u8> {
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
        .unwrap();
    let accept = derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: upstreamproxy.v2\r\n\r\n"
    )
    .into_bytes()
}

/// A complete frame from a server.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    if let Ok(short @ ..126) = u8::try_from(payload.len()) {
        frame.push(short);
    } else {
        frame.push(126);
        frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    }
    frame.extend(payload);
    frame
}

/// A complete message with this data.
fn chunk(data: &[u8]) -> Vec<u8> {
    let mut message = vec![0x0a];
    let mut length = data.len();
    while length > 0x7f {
        message.push(0x80 | (length & 0x7f) as u8);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend(data);
    frame(BINARY, &message)
}

/// A `fin` message and a close frame.
fn fin_and_close() -> Vec<u8> {
    [
        frame(BINARY, &[0x10, 1]),
        frame(CLOSE, &1000_u16.to_be_bytes()),
    ]
    .concat()
}

/// Sends nothing more, and reads until the other side closes.
fn read_until_closed(stream: &mut impl Read) -> std::io::Result<()> {
    std::io::copy(stream, &mut std::io::sink()).map(|_| ())
}

/// Sends `first`, then the bytes of `again` one by one, repeatedly, until sending fails.
fn dribble(stream: &mut TcpStream, first: &[u8], again: &[u8]) -> std::io::Result<()> {
    stream.write_all(first)?;
    for byte in again.chunks(1).cycle() {
        stream.write_all(byte)?;
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn reset(stream: &TcpStream) -> std::io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Sends one CONNECT through the relay. It must be refused with `status`, `Proxy-Status`, and one
/// sentence, and the connection must end cleanly. Returns the sentence.
#[track_caller]
fn assert_refused(port: u16, case: &str, status: u16) -> String {
    let (mut stream, answer) = connect(port, TARGET);
    let (rest, ending) = read_to_end(&mut stream);
    assert_eq!(answer.status, status, "{case}: {answer:?}");
    assert!(answer.has_field("Proxy-Status"), "{case}: {answer:?}");
    assert_eq!(ending, Ending::Eof, "{case}");
    let body = String::from_utf8([answer.early, rest].concat()).unwrap();
    assert_eq!(
        body.matches('\n').count(),
        1,
        "{case}: one sentence: {body:?}"
    );
    assert!(!body.contains(TOKEN), "{case}: {body:?}");
    // The host is named only if the gateway has refused it.
    assert_eq!(
        body.starts_with("target.test: "),
        status == 403,
        "{case}: {body:?}"
    );
    body
}

/// Checks that the relay has as many threads and descriptors after `check` as before.
fn assert_resources_restored(relay: &RelayProcess, check: impl FnOnce()) {
    connect_once(relay);
    let before = ResourceCounts::of(relay.running.pid());
    check();
    if let Some(before) = before {
        before.wait_until_restored(relay.running.pid());
    }
}

/// Makes the relay create what it creates once and keeps. This belongs to the baseline.
fn connect_once(relay: &RelayProcess) {
    let (mut stream, _) = connect(relay.port(), TARGET);
    read_to_end(&mut stream);
}

/// Starts a relay inside this process, with limits that have no command-line option.
fn in_process(home: &TempHome, base_url: &str, opening_timeout: Duration) -> Handle {
    let config = Config::default()
        .when(upstreamproxy::config::When::Always)
        .base_url(base_url.parse().unwrap())
        .session_id(crate::support::SESSION.parse().unwrap())
        .token_file(home.token_file())
        .ca_bundle(home.join("bundle.crt"))
        .system_ca(home.write("roots.pem", TestCa::new("the only root").pem, 0o644))
        .harden(false)
        .limits(|limits| limits.opening_timeout = opening_timeout);
    start(&config).into_result().unwrap()
}

// TCP.

#[test]
fn a_closed_upstream_port_gives_502_each_time() {
    let (home, upstream) = (TempHome::new(), LimitedUpstream::start(1));
    let relay = RelayProcess::start(&home, &upstream.base_url(), &[]);
    upstream.close();
    assert_resources_restored(&relay, || {
        for _ in 0..1_000 {
            let sentence = assert_refused(relay.port(), "closed port", 502);
            assert!(sentence.contains("refused the connection"), "{sentence}");
        }
    });
    let finished = relay.stop().succeeded();
    // The first refusal, and at the end the number of the others.
    let warnings = finished.warnings();
    assert_eq!(warnings.len(), 2, "{finished:#?}");
    assert!(warnings[1].contains("before: 1000;"), "{finished:#?}");
}

#[test]
fn an_upstream_that_drops_packets_gives_504_at_the_connect_timeout() {
    let (home, upstream) = (TempHome::new(), LimitedUpstream::start(1));
    let options = ["--connect-timeout", "300ms"];
    let relay = RelayProcess::start(&home, &upstream.base_url(), &options);
    let _full = upstream.fill();
    assert_resources_restored(&relay, || {
        let (mut stream, answer) = connect(relay.port(), TARGET);
        assert_eq!(answer.status, 504, "{answer:?}");
        read_to_end(&mut stream);
    });
}

/// An upstream that serves a number of connections correctly and then accepts no more.
struct LimitedUpstream {
    port: u16,
    served: thread::JoinHandle<TcpListener>,
}

impl LimitedUpstream {
    fn start(connections: usize) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&address.into()).unwrap();
        socket.listen(1).unwrap();
        let listener: TcpListener = socket.into();
        let port = listener.local_addr().unwrap().port();
        let pem = TestCa::new("ca of a limited upstream").pem;
        let served = thread::spawn(move || {
            for _ in 0..connections {
                let mut stream = listener.accept().unwrap().0;
                read_head(&mut stream).unwrap();
                stream.write_all(ca_answer(&pem).as_bytes()).unwrap();
            }
            listener
        });
        Self { port, served }
    }

    fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Closes the port.
    fn close(self) {
        drop(self.served.join().unwrap());
    }

    /// Fills the backlog, so that the kernel drops all further connection requests.
    fn fill(self) -> (TcpListener, Vec<Socket>) {
        let listener = self.served.join().unwrap();
        let waiting = fill(listener.local_addr().unwrap());
        (listener, waiting)
    }
}

/// Opens more connections than the smallest backlog holds.
fn fill(address: SocketAddr) -> Vec<Socket> {
    let connections = (0..8).map(|_| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        // The connect is not waited for.
        let _ = socket.connect(&address.into());
        socket
    });
    connections.collect()
}

#[test]
fn a_client_that_disconnects_cancels_the_dialling() {
    let upstream = Upstream::start();
    let (sender, events) = channel();
    let disconnects = |timeout, upgrades, by_reset: bool| {
        let home = TempHome::new();
        let relay =
            RelayProcess::start(&home, &upstream.base_url(), &["--connect-timeout", timeout]);
        assert_resources_restored(&relay, || {
            upstream.set_behaviour(reporting(sender.clone(), upgrades));
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).unwrap();
            write!(client, "CONNECT {TARGET} HTTP/1.1\r\n\r\n").unwrap();
            assert_eq!(events.recv_timeout(TIMEOUT), Ok("requested"));
            if by_reset {
                reset(&client).unwrap();
            }
            drop(client);
            assert_eq!(events.recv_timeout(TIMEOUT), Ok("closed"));
            upstream.set_behaviour(|_, _| Ok(()));
        });
    };
    // Only the client's reset can end the wait.
    disconnects("10m", false, true);
    disconnects("10m", true, true);
    // A clean end may be a half-close, so dialling continues to its own deadline.
    disconnects("300ms", false, false);
}

/// Reports the request, answers nothing (or nothing after the upgrade), and reports when the other
/// side has closed.
fn reporting(
    events: Sender<&'static str>,
    upgrades: bool,
) -> impl Fn(&mut TcpStream, &str) -> std::io::Result<()> + Send + Sync + 'static {
    move |stream, head| {
        if upgrades {
            stream.write_all(&switching_protocols(head))?;
        }
        events.send("requested").unwrap();
        let result = read_until_closed(stream);
        events.send("closed").unwrap();
        result
    }
}

// TLS.

/// Starts an upstream with TLS. It serves its first connection correctly and passes the others to
/// `then`.
fn tls_upstream(
    ca: &TestCa,
    then: impl Fn(TcpStream, Arc<ServerConfig>) -> std::io::Result<()> + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let base_url = format!("https://{}", listener.local_addr().unwrap());
    let (config, pem, then) = (tls_config(ca), ca.pem.clone(), Arc::new(then));
    thread::spawn(move || {
        let tcp = listener.accept().unwrap().0;
        let mut first = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), tcp);
        read_head(&mut first).unwrap();
        first.write_all(ca_answer(&pem).as_bytes()).unwrap();
        first.conn.send_close_notify();
        first.flush().unwrap();
        drop(first);
        for stream in listener.incoming().map_while(Result::ok) {
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            let (config, then) = (Arc::clone(&config), Arc::clone(&then));
            thread::spawn(move || then(stream, config));
        }
    });
    base_url
}

fn tls_config(ca: &TestCa) -> Arc<ServerConfig> {
    let (certificate, key) = ca.issue("127.0.0.1");
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap()
        .into()
}

#[test]
fn a_failed_tls_handshake_gives_502_and_a_stalled_one_504() {
    type Raw = Box<dyn Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync>;
    let cases: [(&str, u16, Raw); 9] = [
        ("closes", 502, Box::new(|_| Ok(()))),
        ("resets", 502, Box::new(|s| reset(s))),
        (
            "not TLS",
            502,
            Box::new(|s| s.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        ),
        ("garbage", 502, Box::new(|s| s.write_all(&[0xff; 4096]))),
        (
            "a record that is too long",
            502,
            Box::new(|s| {
                s.write_all(&[22, 3, 3, 0xff, 0xff])?;
                s.write_all(&vec![2; 70_000])
            }),
        ),
        (
            "an alert",
            502,
            Box::new(|s| s.write_all(&[21, 3, 3, 0, 2, 2, 40])),
        ),
        (
            "an incomplete ServerHello",
            502,
            Box::new(|s| {
                s.write_all(&[22, 3, 3, 0, 100, 2, 0, 0, 96])?;
                s.shutdown(Shutdown::Write)
            }),
        ),
        ("silent", 504, Box::new(read_until_closed)),
        (
            "sends slowly",
            504,
            Box::new(|s| dribble(s, &[22, 3, 3, 0x3f, 0xff, 2, 0, 0x3f, 0xfb], &[0])),
        ),
    ];
    for (case, status, raw) in cases {
        let (home, ca) = (TempHome::new(), TestCa::new("root of the upstream"));
        let trust = home.write("root.pem", &ca.pem, 0o644);
        let base_url = tls_upstream(&ca, move |mut stream, _| {
            // Closing with unread bytes would send a reset.
            let _ = stream.read(&mut [0; 4096]);
            raw(&mut stream)
        });
        // A 504 needs a short timeout. A 502 must not become a 504 on a busy machine.
        let timeout = if status == 504 { "300ms" } else { "30s" };
        let trust = format!("--upstream-ca={}", trust.display());
        let relay = RelayProcess::start(&home, &base_url, &[&trust, "--connect-timeout", timeout]);
        let sentence = assert_refused(relay.port(), case, status);
        assert!(sentence.contains("upstream"), "{case}: {sentence}");
    }
}

#[test]
fn an_upstream_whose_certificate_became_untrusted_never_gets_the_token() {
    let (home, ca) = (TempHome::new(), TestCa::new("root of the upstream"));
    let trust = home.write("root.pem", &ca.pem, 0o644);
    let (sender, read_a_head) = channel();
    let other = tls_config(&TestCa::new("an untrusted root"));
    let base_url = tls_upstream(&ca, move |tcp, _| {
        let connection = ServerConnection::new(Arc::clone(&other)).unwrap();
        let mut tls = StreamOwned::new(connection, tcp);
        sender.send(read_head(&mut tls).is_ok()).unwrap();
        Ok(())
    });
    let trust = format!("--upstream-ca={}", trust.display());
    let relay = RelayProcess::start(&home, &base_url, &[&trust]);
    let sentence = assert_refused(relay.port(), "another certificate", 502);
    assert!(
        sentence.contains("not issued by a CA that is trusted"),
        "{sentence}"
    );
    assert_eq!(
        read_a_head.recv_timeout(TIMEOUT),
        Ok(false),
        "the upstream must not get a request"
    );
}

#[test]
fn tls_that_ends_without_close_notify_resets_the_client() {
    let (home, ca) = (TempHome::new(), TestCa::new("root of the upstream"));
    let trust = home.write("root.pem", &ca.pem, 0o644);
    let base_url = tls_upstream(&ca, |tcp, config| {
        let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), tcp);
        let head = read_head(&mut tls)?;
        tls.write_all(&switching_protocols(&head))?;
        tls.read_exact(&mut [0; 8])?;
        tls.write_all(&[chunk(ESTABLISHED), chunk(b"a part")].concat())?;
        // The TCP connection ends cleanly, but TLS sends no close_notify.
        tls.sock.shutdown(Shutdown::Write)?;
        read_until_closed(&mut tls.sock)
    });
    let trust = format!("--upstream-ca={}", trust.display());
    let relay = RelayProcess::start(&home, &base_url, &[&trust]);
    let (mut stream, answer) = connect(relay.port(), TARGET);
    assert_eq!(answer.status, 200, "{answer:?}");
    let (rest, ending) = read_to_end(&mut stream);
    assert!(b"a part".starts_with(&[answer.early, rest].concat()[..]));
    assert_eq!(ending, Ending::Reset);
}

// The upgrade.

#[test]
fn a_failed_upgrade_gives_502() {
    let (home, upstream) = (TempHome::new(), Upstream::start());
    let relay = RelayProcess::start(&home, &upstream.base_url(), &[]);
    assert_resources_restored(&relay, || {
        let wrong: [(&str, Box<Behaviour>); 15] = [
            ("closes", Box::new(|_, _| Ok(()))),
            ("resets", Box::new(|s, _| reset(s))),
            (
                "an incomplete head",
                Box::new(|s, _| s.write_all(b"HTTP/1.1 101 Swi")),
            ),
            (
                "not HTTP",
                Box::new(|s, _| s.write_all(b"SSH-2.0-x\r\n\r\n")),
            ),
            (
                "bare LF",
                Box::new(|s, h| {
                    let answer = String::from_utf8(switching_protocols(h)).unwrap();
                    s.write_all(answer.replace('\r', "").as_bytes())
                }),
            ),
            (
                "endless fields",
                Box::new(|s, _| {
                    s.write_all(b"HTTP/1.1 101 Switching Protocols\r\n")?;
                    while s.write_all(b"X-Filler: filler\r\n").is_ok() {}
                    Ok(())
                }),
            ),
            (
                "one long field",
                Box::new(|s, _| {
                    s.write_all(b"HTTP/1.1 101 Switching Protocols\r\nX: ")?;
                    while s.write_all(&[b'x'; 4096]).is_ok() {}
                    Ok(())
                }),
            ),
            (
                "another protocol",
                Box::new(|s, h| replaced(s, h, "websocket", "h2c")),
            ),
            (
                "no Upgrade",
                Box::new(|s, h| replaced(s, h, "Upgrade: websocket\r\n", "")),
            ),
            (
                "no Connection",
                Box::new(|s, h| replaced(s, h, "Connection: Upgrade\r\n", "")),
            ),
            (
                "Accept twice",
                Box::new(|s, h| {
                    let accept = "Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\nUpgrade:";
                    replaced(s, h, "Upgrade:", accept)
                }),
            ),
            ("status 200", Box::new(|s, h| replaced(s, h, "101", "200"))),
            (
                "deflate",
                Box::new(|s, h| {
                    let field = "Sec-WebSocket-Extensions: permessage-deflate\r\nUpgrade:";
                    replaced(s, h, "Upgrade:", field)
                }),
            ),
            (
                "another subprotocol",
                Box::new(|s, h| replaced(s, h, "proxy.v2", "proxy.v3")),
            ),
            (
                "two responses",
                Box::new(|s, h| {
                    s.write_all(&[switching_protocols(h), switching_protocols(h)].concat())?;
                    read_until_closed(s)
                }),
            ),
        ];
        for (case, behaviour) in wrong {
            upstream.set_behaviour(behaviour);
            assert_refused(relay.port(), case, 502);
        }
    });
    assert_idle(relay.running.pid());
}

fn replaced(stream: &mut TcpStream, head: &str, what: &str, with: &str) -> std::io::Result<()> {
    let answer = String::from_utf8(switching_protocols(head)).unwrap();
    stream.write_all(answer.replacen(what, with, 1).as_bytes())?;
    read_until_closed(stream)
}

#[test]
fn an_upgrade_without_a_timely_answer_gives_504() {
    let (home, upstream) = (TempHome::new(), Upstream::start());
    let options = ["--connect-timeout", "300ms"];
    let relay = RelayProcess::start(&home, &upstream.base_url(), &options);
    upstream.set_behaviour(|s, _| read_until_closed(s));
    assert_refused(relay.port(), "silent", 504);
    upstream.set_behaviour(|s, _| dribble(s, b"HTTP/1.1 101 Switching Protocols\r\nX: ", b"x"));
    assert_refused(relay.port(), "sends slowly", 504);
}

#[test]
fn the_relay_is_idle_while_an_upstream_keeps_many_clients_waiting() {
    let (home, upstream) = (TempHome::new(), Upstream::start());
    let relay = RelayProcess::start(&home, &upstream.base_url(), &["--connect-timeout", "10m"]);
    assert_resources_restored(&relay, || {
        let (sender, events) = channel();
        upstream.set_behaviour(reporting(sender, true));
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).unwrap();
                write!(client, "CONNECT {TARGET} HTTP/1.1\r\n\r\nearly").unwrap();
                assert_eq!(events.recv_timeout(TIMEOUT), Ok("requested"));
                client
            })
            .collect();
        assert_idle(relay.running.pid());
        for client in waiting {
            reset(&client).unwrap();
        }
    });
}

// The opening.

#[test]
fn a_failed_opening_gives_502() {
    let (home, upstream) = (TempHome::new(), Upstream::start());
    let relay = RelayProcess::start(&home, &upstream.base_url(), &[]);
    let big = {
        let mut header = vec![0x80 | BINARY, 127];
        header.extend((2_u64 << 20).to_be_bytes());
        header
    };
    let wrong: Vec<(&str, Vec<u8>)> = vec![
        ("only the end", vec![]),
        ("a close", frame(CLOSE, &1000_u16.to_be_bytes())),
        ("a close for policy", frame(CLOSE, &1008_u16.to_be_bytes())),
        ("a close without a code", frame(CLOSE, b"")),
        ("a close of one byte", frame(CLOSE, b"\x03")),
        ("text", frame(TEXT, b"HTTP/1.1 200 OK\r\n\r\n")),
        ("a reserved opcode", frame(3, b"")),
        ("a reserved bit", vec![0xc0 | BINARY, 0]),
        (
            "a masked frame",
            vec![0x80 | BINARY, 0x82, 1, 2, 3, 4, 5, 6],
        ),
        ("a long ping", frame(PING, &[0; 126])),
        ("a fragmented ping", vec![PING, 0]),
        ("a continuation without a start", vec![0x80, 0]),
        (
            "a length above 2^63",
            [&[0x80 | BINARY, 127][..], &[0xff; 8]].concat(),
        ),
        ("too large", big),
        ("not a chunk", frame(BINARY, b"\x0a\x7fshort")),
        ("not HTTP", chunk(b"220 smtp.test ready\r\n")),
        ("a head with NUL", chunk(b"HTTP/1.1 200 O\0K\r\n\r\n")),
        ("a head with bare LF", chunk(b"HTTP/1.1 200 OK\n\n")),
        (
            "an endless head",
            chunk(&[b"HTTP/1.1 200 OK\r\nX: ", &vec![b'x'; 20_000][..]].concat()),
        ),
        ("an incomplete head", chunk(b"HTTP/1.1 200 O")),
        ("101", chunk(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")),
        ("a fin", frame(BINARY, &[0x10, 1])),
    ];
    assert_resources_restored(&relay, || {
        for (case, answer) in wrong {
            for same_write in [false, true] {
                let answer = answer.clone();
                upstream.set_behaviour(move |stream, head| {
                    if same_write {
                        stream.write_all(&[switching_protocols(head), answer.clone()].concat())?;
                    } else {
                        stream.write_all(&switching_protocols(head))?;
                        // The opening has arrived; this is the answer to it.
                        stream.read_exact(&mut [0; 8])?;
                        stream.write_all(&answer)?;
                    }
                    stream.shutdown(Shutdown::Write)?;
                    read_until_closed(stream)
                });
                assert_refused(
                    relay.port(),
                    &format!("{case}, in one write: {same_write}"),
                    502,
                );
            }
        }
        upstream.set_behaviour(|stream, head| {
            stream.write_all(&switching_protocols(head))?;
            stream.read_exact(&mut [0; 8])?;
            reset(stream)
        });
        assert_refused(relay.port(), "a reset", 502);
        // A refusal whose body does not arrive is still a refusal.
        upstream.set_behaviour(|stream, head| {
            let refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nnot";
            stream.write_all(&switching_protocols(head))?;
            stream.read_exact(&mut [0; 8])?;
            stream.write_all(&chunk(refusal))?;
            read_until_closed(stream)
        });
        let sentence = assert_refused(relay.port(), "an incomplete body", 403);
        assert!(sentence.contains("policy, do not retry"), "{sentence}");
    });
    assert_idle(relay.running.pid());
}

#[test]
fn the_relay_closes_with_the_code_that_fits_the_fault_in_the_answer_to_the_opening() {
    let (home, upstream) = (TempHome::new(), Upstream::start());
    let relay = RelayProcess::start(&home, &upstream.base_url(), &[]);
    for (case, answer, expected) in [
        ("a reserved opcode", frame(3, b""), 1002_u16),
        ("text", frame(TEXT, b"HTTP/1.1 200 OK\r\n\r\n"), 1003),
        ("not a chunk", frame(BINARY, b"\x0a\x7fshort"), 1007),
    ] {
        let (sender, received) = channel();
        upstream.set_behaviour(move |stream, head| {
            stream.write_all(&switching_protocols(head))?;
            let mut opening = [0; 6];
            stream.read_exact(&mut opening)?;
            // All of the opening is read: a reset would discard the relay's close frame.
            stream.read_exact(&mut vec![0; usize::from(opening[1] & 0x7f)])?;
            stream.write_all(&answer)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest)?;
            let _ = sender.send(rest);
            Ok(())
        });
        assert_refused(relay.port(), case, 502);
        let rest = received.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(rest[..2], [0x80 | CLOSE, 0x80 | 2], "{case}: {rest:?}");
        let code = [rest[6] ^ rest[2], rest[7] ^ rest[3]];
        assert_eq!(u16::from_be_bytes(code), expected, "{case}");
    }
}

#[test]
fn an_opening_without_a_timely_answer_gives_504_despite_other_frames() {
    let (home, upstream) = (TempHome::new(), Upstream::start());
    let relay = in_process(&home, &upstream.base_url(), Duration::from_millis(300));
    upstream.set_behaviour(|stream, head| {
        stream.write_all(&switching_protocols(head))?;
        read_until_closed(stream)
    });
    assert_refused(relay.port(), "silent", 504);
    for again in [
        frame(PING, b"are you there"),
        frame(BINARY, b""),
        frame(0xa, b""),
    ] {
        upstream.set_behaviour(move |stream, head| {
            stream.write_all(&switching_protocols(head))?;
            stream.read_exact(&mut [0; 8])?;
            dribble(stream, b"", &again)
        });
        assert_refused(relay.port(), "sends other frames", 504);
    }
    upstream.set_behaviour(|stream, head| {
        stream.write_all(&switching_protocols(head))?;
        stream.read_exact(&mut [0; 8])?;
        stream.write_all(&chunk(b"HTTP/1.1 200 OK\r\nX: "))?;
        dribble(stream, b"", &chunk(b"x"))
    });
    assert_refused(relay.port(), "sends slowly", 504);
}

// The stream.

#[test]
fn broken_frames_in_a_stream_deliver_a_prefix_and_then_a_reset() {
    let (home, upstream) = (TempHome::new(), Upstream::start());
    let relay = RelayProcess::start(&home, &upstream.base_url(), &[]);
    let broken: Vec<(&str, Vec<u8>)> = vec![
        ("a reserved bit", vec![0xa0 | BINARY, 0]),
        ("a reserved opcode", frame(4, b"x")),
        ("a masked frame", vec![0x80 | BINARY, 0x80, 1, 2, 3, 4]),
        ("a fragmented ping", vec![PING, 0]),
        ("a long ping", frame(PING, &[0; 126])),
        ("an incomplete frame", chunk(b" never whole")[..10].to_vec()),
        ("an incomplete header", vec![0x80 | BINARY, 127, 0, 0]),
        (
            "an incomplete message",
            [&[BINARY, 3][..], b"\x0a\x05a"].concat(),
        ),
        (
            "a message inside a message",
            [&[BINARY, 3][..], b"\x0a\x05a", &chunk(b"x")].concat(),
        ),
        (
            "a close inside a message",
            [&[BINARY, 3][..], b"\x0a\x05a", &frame(CLOSE, b"\x03\xe8")].concat(),
        ),
        (
            "a close with a code that must not be sent",
            frame(CLOSE, &1005_u16.to_be_bytes()),
        ),
        (
            "a close with a reason that is not UTF-8",
            frame(CLOSE, b"\x03\xe8\xff\xff"),
        ),
        (
            "data after the close",
            [frame(CLOSE, b"\x03\xe8"), chunk(b"late")].concat(),
        ),
    ];
    assert_resources_restored(&relay, || {
        for (case, bytes) in broken {
            upstream.set_behaviour(move |stream, head| {
                stream.write_all(&switching_protocols(head))?;
                stream.read_exact(&mut [0; 8])?;
                stream.write_all(&[chunk(ESTABLISHED), chunk(b"whole"), bytes.clone()].concat())?;
                stream.shutdown(Shutdown::Write)?;
                read_until_closed(stream)
            });
            let (mut stream, answer) = connect(relay.port(), TARGET);
            // If the relay has already read the fault when the tunnel would open, no tunnel opens.
            if answer.status == 200 {
                let (rest, ending) = read_to_end(&mut stream);
                let received = [answer.early, rest].concat();
                assert!(
                    b"whole never".starts_with(&received[..]),
                    "{case}: {received:?}"
                );
                assert_eq!(ending, Ending::Reset, "{case}");
            } else {
                assert_eq!(answer.status, 502, "{case}: {answer:?}");
            }
        }
    });
    assert_idle(relay.running.pid());
}

#[test]
fn a_flood_of_pings_gets_few_pongs_and_the_data_still_flows() {
    const ROUNDS: usize = 20_000;
    let (home, upstream) = (TempHome::new(), Upstream::start());
    let relay = RelayProcess::start(&home, &upstream.base_url(), &[]);
    let payload = Arc::new(pattern(ROUNDS));
    let (sender, pong_bytes) = channel();
    let sent = Arc::clone(&payload);
    upstream.set_behaviour(move |stream, head| {
        stream.write_all(&switching_protocols(head))?;
        stream.read_exact(&mut [0; 8])?;
        stream.write_all(&chunk(ESTABLISHED))?;
        let mut reading = stream.try_clone()?;
        let answered = thread::spawn(move || std::io::copy(&mut reading, &mut std::io::sink()));
        for byte in sent.chunks(1) {
            let ping = frame(PING, &[7; 125]);
            stream.write_all(&[ping.clone(), frame(0xa, b"unasked"), chunk(byte)].concat())?;
        }
        stream.write_all(&fin_and_close())?;
        stream.shutdown(Shutdown::Write)?;
        sender.send(answered.join().unwrap()?).unwrap();
        Ok(())
    });
    let (mut stream, answer) = connect(relay.port(), TARGET);
    assert_eq!(answer.status, 200, "{answer:?}");
    stream.shutdown(Shutdown::Write).unwrap();
    let (rest, ending) = read_to_end(&mut stream);
    assert!(
        [answer.early, rest].concat() == *payload,
        "the data is incomplete or out of order"
    );
    assert_eq!(ending, Ending::Eof);
    let answered = pong_bytes.recv_timeout(TIMEOUT).unwrap();
    let if_each_is_answered = (ROUNDS * 125) as u64;
    assert!(
        answered < if_each_is_answered,
        "{answered} bytes of pongs: each ping got a pong"
    );
}

// Names and routes, in a network namespace.

/// Set when the test runs again, inside new namespaces.
const INSIDE: &str = "UPSTREAMPROXY_TEST_INSIDE_NAMESPACE";

#[test]
fn failing_names_and_unreachable_routes_are_answered_in_time() {
    if std::env::var_os(INSIDE).is_some() {
        return check_names_and_routes();
    }
    if !need_tool("unshare") || !need_tool("ip") {
        return;
    }
    let home = TempHome::new();
    let mut allowed = home.command("unshare");
    if !finish(allowed.args(["-m", "-n", "true"])).status.success() {
        return skip("this system allows no namespaces");
    }
    home.write("resolv.conf", "nameserver 127.0.0.1\n", 0o644);
    let script = "mount --bind $HOME/resolv.conf /etc/resolv.conf && ip link set lo up && \
        ip route add unreachable 198.51.100.1 && ip route add prohibit 198.51.100.2 && \
        ip route add blackhole 198.51.100.3 && exec \"$@\"";
    let mut again = home.command("unshare");
    again
        .args(["-m", "-n", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "hostile_upstream::failing_names_and_unreachable_routes_are_answered_in_time",
            "--nocapture",
        ])
        .env(INSIDE, "1");
    let finished = finish(&mut again).succeeded();
    assert!(
        finished.text().contains("all were answered"),
        "{finished:#?}"
    );
}

fn check_names_and_routes() {
    start_name_server();
    let home = TempHome::new();
    let mut command = upstreamproxy(&home);
    command.args(["serve", "--embedded", "--connect-timeout", "1s"]);
    let relay = RelayProcess::from(&mut command);
    let status = |target: &str| {
        let (mut stream, answer) = connect(relay.port(), target);
        assert!(
            answer.status == 200 || answer.has_field("Proxy-Status"),
            "{target}: {answer:?}"
        );
        stream.shutdown(Shutdown::Write).unwrap();
        read_to_end(&mut stream);
        answer.status
    };
    for route in [
        "198.51.100.1",
        "198.51.100.2",
        "198.51.100.3",
        "198.51.100.4",
    ] {
        assert_eq!(status(&format!("{route}:443")), 502, "{route}");
    }
    for (name, expected) in [
        ("missing.test", 502),
        ("failing.test", 502),
        ("empty.test", 502),
        ("silent.test", 504),
    ] {
        assert_eq!(status(&format!("{name}:443")), expected, "{name}");
    }
    // A name with several addresses: the first two drop packets, one is unreachable, the last one
    // works.
    let live = TcpListener::bind("127.0.0.3:0").unwrap();
    let port = live.local_addr().unwrap().port();
    thread::spawn(move || for _ in live.incoming() {});
    let _dropping =
        ["127.0.0.1", "127.0.0.2"].map(|address| full_listener(&format!("{address}:{port}")));
    assert_eq!(status(&format!("several.test:{port}")), 200);
    println!("all were answered");
}

/// A listener with a full backlog, and the connections that fill it.
pub(crate) fn full_listener(address: &str) -> (Socket, Vec<Socket>) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(1).unwrap();
    (listener, fill(address))
}

/// Starts a name server. Depending on the name, it answers NXDOMAIN, SERVFAIL, nothing at all, or
/// several addresses.
fn start_name_server() {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            let query = &query[..length];
            // The header's 12 bytes, then labels up to the empty one, then type and class.
            let end = 12 + query[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
            let asks_for_ipv4 = query[end - 4..end - 2] == [0, 1];
            let first_label = &query[13..13 + usize::from(query[12])];
            let (code, addresses): (u8, &[[u8; 4]]) = match first_label {
                b"missing" => (3, &[]),
                b"failing" => (2, &[]),
                b"silent" => continue,
                b"several" if asks_for_ipv4 => (
                    0,
                    &[
                        [127, 0, 0, 1],
                        [127, 0, 0, 2],
                        [198, 51, 100, 1],
                        [127, 0, 0, 3],
                    ],
                ),
                _ => (0, &[]),
            };
            let mut answer = query[..2].to_vec();
            answer.extend([
                0x81,
                0x80 | code,
                0,
                1,
                0,
                addresses.len() as u8,
                0,
                0,
                0,
                0,
            ]);
            answer.extend(&query[12..end]);
            for address in addresses {
                // The name in the question, type A, class IN, TTL 60 s, length 4.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(address);
            }
            let _ = socket.send_to(&answer, client);
        }
    });
}
