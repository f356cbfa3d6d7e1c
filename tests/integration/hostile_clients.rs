//! Hostile clients (slow, many, vanishing, speaking other protocols) and scarce resources.
//! The process keeps running, answers, stays idle, and releases all resources afterwards.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use upstreamproxy::{Config, start_embedded};

use crate::support::{
    EchoServer, Ending, GatewayProcess, HalfCloseServer, RelayProcess, ResourceCounts, TIMEOUT,
    TempHome, TestCa, assert_idle, binary, connect, exchange, finish, need_tool, pattern,
    read_to_end, request, upstreamproxy,
};

/// Input that is not HTTP, or only the start of another protocol.
const GARBAGE: [&[u8]; 6] = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x06\x01\x00",
    b"\x03\x01\x01\xbb\x01\x02\x03\x04\x00",
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"\0\0\0\0\0\0\0\0",
    b"\xff\xfe\xfd\xfc\r\n\r\n",
];

fn relay_and_gateway(home: &TempHome, options: &[&str]) -> (RelayProcess, GatewayProcess) {
    let gateway = GatewayProcess::start(home, &[]);
    let relay = RelayProcess::start(home, &gateway.base_url(), options);
    (relay, gateway)
}

fn open_connection(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// Closes the connection with a reset.
fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!((&mut &*stream).read(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock)
}

/// Opens a tunnel. Retries while the relay has no free slot, because others may be about to release
/// theirs.
#[track_caller]
fn tunnel_when_free(port: u16, authority: &str) -> TcpStream {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let (stream, answer) = connect(port, authority);
        match answer.status {
            200 => return stream,
            503 if Instant::now() < deadline => thread::yield_now(),
            _ => panic!("{answer:?}"),
        }
    }
}

#[track_caller]
fn assert_serves(port: u16, target: &EchoServer) {
    let mut tunnel = tunnel_when_free(port, &target.authority());
    let payload = pattern(100_000);
    assert_eq!(
        exchange(&mut tunnel, payload.clone()),
        (payload, Ending::Eof)
    );
}

/// Raises the descriptor limit: these tests hold many sockets at once.
fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

/// Starts `upstreamproxy serve` under a limit set by the shell's `ulimit`.
fn serve_under(home: &TempHome, ulimit: &str, base_url: &str, options: &[&str]) -> RelayProcess {
    let mut command = home.command("sh");
    command
        .args([
            "-c",
            &format!("ulimit {ulimit} && exec \"$@\""),
            "sh",
            binary(),
            "serve",
        ])
        .args(options);
    RelayProcess::from(home.session(&mut command, base_url))
}

// Many and slow clients.

#[test]
fn slow_and_garbage_clients_do_not_block_a_good_one() {
    allow_many_descriptors();
    let (home, target) = (TempHome::new(), EchoServer::start());
    let (relay, _gateway) = relay_and_gateway(&home, &["--max-tunnels", "512"]);
    assert_serves(relay.port(), &target);
    let before = ResourceCounts::of(relay.running.pid());

    let slow: Vec<_> = (0..200)
        .map(|n| {
            let mut stream = open_connection(relay.port());
            stream
                .write_all(&b"CONNECT a.test:443 HT"[..n % 20])
                .unwrap();
            stream
        })
        .collect();
    let garbage: Vec<_> = (0..100)
        .map(|n| {
            let (stream, answer) = request(relay.port(), GARBAGE[n % GARBAGE.len()]);
            assert_eq!(answer.status, 400, "{n}: {answer:?}");
            stream
        })
        .collect();
    assert_serves(relay.port(), &target);
    assert!(
        slow.iter().all(is_open),
        "the slow clients are still connected"
    );
    assert_idle(relay.running.pid());
    drop((slow, garbage));
    if let Some(before) = before {
        before.wait_until_restored(relay.running.pid());
    }
}

#[test]
fn ten_thousand_clients_that_reset_leak_no_slot() {
    const CAP: usize = 12;
    let (home, target) = (TempHome::new(), EchoServer::start());
    let (relay, gateway) = relay_and_gateway(&home, &["--max-tunnels", "12"]);
    let port = relay.port();
    assert_serves(port, &target);
    let counts =
        [relay.running.pid(), gateway.running.pid()].map(|pid| (pid, ResourceCounts::of(pid)));
    let connect_request = format!("CONNECT {} HTTP/1.1\r\n\r\n", target.authority());
    thread::scope(|scope| {
        for n in 0..4 {
            let connect_request = &connect_request;
            scope.spawn(move || {
                for round in 0..2_500 {
                    let mut stream = open_connection(port);
                    // At the cap the relay may have answered and reset before this write.
                    let _ = match (n + round) % 5 {
                        0 => stream.write(&connect_request.as_bytes()[..10]),
                        1 if round % 10 == 0 => stream.write(connect_request.as_bytes()),
                        2 => stream.write(b"\x06\x01\x00"),
                        _ => Ok(0),
                    };
                    reset(stream);
                }
            });
        }
    });
    let tunnels: Vec<_> = (0..CAP)
        .map(|_| tunnel_when_free(port, &target.authority()))
        .collect();
    assert_eq!(connect(port, &target.authority()).1.status, 503);
    drop(tunnels);
    for (pid, before) in counts {
        if let Some(before) = before {
            before.wait_until_restored(pid);
        }
    }
    // Such a client has left before its user was known. This is not a refusal.
    let log = relay.running.stderr();
    assert!(!log.contains("refused 403"), "{log}");
}

#[test]
fn in_a_burst_of_a_thousand_each_client_gets_a_complete_answer_or_none() {
    allow_many_descriptors();
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home, &["--max-tunnels", "50"]);
    let burst: Vec<_> = (0..1_000)
        .map(|_| {
            let mut stream = open_connection(relay.port());
            // The relay may have refused and closed already.
            let _ = stream.write(b"GET / HTTP/1.1\r\n\r\n");
            stream
        })
        .collect();
    for mut stream in burst {
        let mut answer = String::new();
        // A reset after the answer comes from the kernel if the client writes only after it was
        // refused.
        let _ = stream.read_to_string(&mut answer);
        let whole = answer.starts_with("HTTP/1.1 405 ") || answer.starts_with("HTTP/1.1 503 ");
        assert!(
            answer.is_empty() || whole && answer.ends_with('\n'),
            "{answer:?}"
        );
    }
}

/// A name and a function that ends a connection in one of the possible cases.
type EndingCase<'a> = (&'a str, &'a dyn Fn(u16));

#[test]
fn every_kind_of_connection_end_releases_the_slot() {
    const CAP: usize = 3;
    let (home, target, closing) = (
        TempHome::new(),
        EchoServer::start(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let (relay, _gateway) = relay_and_gateway(&home, &["--max-tunnels", "3"]);
    let echo = target.authority();
    let resetting = closing.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in closing.incoming().map_while(Result::ok) {
            reset(stream);
        }
    });
    let nowhere = {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        closed.local_addr().unwrap().to_string()
    };
    let refused = |port, bytes: &[u8]| {
        let (mut stream, answer) = request(port, bytes);
        assert_ne!(answer.status, 200, "{answer:?}");
        read_to_end(&mut stream);
    };
    let cases: [EndingCase; 11] = [
        ("silent, then closed", &|port| drop(open_connection(port))),
        ("half a head, then reset", &|port| {
            let mut stream = open_connection(port);
            stream.write_all(b"CONNECT a").unwrap();
            reset(stream);
        }),
        ("half a head, then half-closed", &|port| {
            let mut stream = open_connection(port);
            // At the cap the relay may have refused already.
            let _ = stream.write_all(b"CONNECT a");
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }),
        ("not HTTP", &|port| refused(port, b"\x06\x01\x00")),
        ("not CONNECT", &|port| {
            refused(port, b"GET / HTTP/1.1\r\n\r\n");
        }),
        ("the relay itself", &|port| {
            refused(
                port,
                format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n").as_bytes(),
            );
        }),
        ("a target that refuses", &|port| {
            refused(
                port,
                format!("CONNECT {nowhere} HTTP/1.1\r\n\r\n").as_bytes(),
            );
        }),
        ("reset while dialling", &|port| {
            let mut stream = open_connection(port);
            let _ = write!(stream, "CONNECT {echo} HTTP/1.1\r\n\r\n");
            reset(stream);
        }),
        ("closed cleanly", &|port| {
            exchange(&mut tunnel_when_free(port, &echo), b"x".to_vec());
        }),
        ("reset by the client", &|port| {
            reset(tunnel_when_free(port, &echo));
        }),
        ("reset by the target", &|port| {
            // The reset may arrive before or after the relay has its answer.
            read_to_end(&mut connect(port, &resetting).0);
        }),
    ];
    for (case, end_connection) in cases {
        for _ in 0..2 * CAP {
            end_connection(relay.port());
        }
        let mut tunnels: Vec<_> = (0..CAP)
            .map(|_| tunnel_when_free(relay.port(), &echo))
            .collect();
        let (mut rejected, answer) = connect(relay.port(), &echo);
        assert_eq!(answer.status, 503, "{case}: {answer:?}");
        assert!(answer.has_field("Proxy-Status"), "{case}: {answer:?}");
        assert_eq!(read_to_end(&mut rejected).1, Ending::Eof, "{case}");
        for stream in &mut tunnels {
            stream.write_all(b"at the cap ").unwrap();
            stream.read_exact(&mut [0; 11]).unwrap();
        }
    }
}

// Scarce resources.

#[test]
fn without_descriptors_the_relay_waits_and_continues_when_some_are_free() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = serve_under(
        &home,
        "-n 64",
        &gateway.base_url(),
        &["--max-tunnels", "500"],
    );
    assert_serves(relay.port(), &target);
    let before = ResourceCounts::of(relay.running.pid());
    let crowd: Vec<_> = (0..100).map(|_| open_connection(relay.port())).collect();
    relay.running.wait_for_log("cannot accept connections", 1);
    assert_idle(relay.running.pid());
    drop(crowd);
    assert_serves(relay.port(), &target);

    // A client that is accepted but finds no descriptor for the upstream connection gets a 503.
    let authority = target.authority();
    thread::scope(|scope| {
        for _ in 0..100 {
            let (port, authority) = (relay.port(), authority.as_str());
            scope.spawn(move || {
                let (_stream, answer) = connect(port, authority);
                assert!(matches!(answer.status, 200 | 503), "{answer:?}");
            });
        }
    });
    assert_serves(relay.port(), &target);
    if let Some(before) = before {
        before.wait_until_restored(relay.running.pid());
    }
}

#[test]
fn without_threads_the_relay_answers_503_and_continues_when_some_are_free() {
    if !need_tool("prlimit") {
        return;
    }
    let (home, target, elsewhere) = (TempHome::new(), EchoServer::start(), TempHome::new());
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    // The kernel does not count the threads of root.
    let mut command = home.as_unprivileged_user();
    command.args(["serve", "--allow-any-user"]);
    let relay = RelayProcess::from(home.session(&mut command, &gateway.base_url()));
    assert_serves(relay.port(), &target);
    let limit_threads_to = |limit: &str| {
        let mut prlimit = home.command_as_unprivileged_user("prlimit");
        prlimit.arg(format!("--pid={}", relay.running.pid()));
        finish(prlimit.arg(format!("--nproc={limit}:"))).succeeded();
    };
    limit_threads_to("1");
    // The thread that served already takes one more client; no further thread can be started.
    let (_tunnel, answer) = connect(relay.port(), &target.authority());
    assert!(matches!(answer.status, 200 | 503), "{answer:?}");
    for _ in 0..20 {
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(read_to_end(&mut stream).1, Ending::Eof);
    }
    assert_idle(relay.running.pid());
    limit_threads_to("10000");
    assert_serves(relay.port(), &target);
    let log = relay.stop().succeeded().stderr;
    let warnings = log.matches("cannot start a thread").count();
    assert_eq!(warnings, 1, "one warning for all clients: {log}");
}

#[test]
fn with_little_address_space_the_relay_accepts_fewer_clients_and_does_not_abort() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    // A cap larger than the address space allows: connections that would abort the process are not
    // accepted.
    let options = ["--max-tunnels", "100000"];
    let relay = serve_under(&home, "-v 500000", &gateway.base_url(), &options);
    let _crowd: Vec<_> = (0..30).map(|_| open_connection(relay.port())).collect();
    let mut tunnels = Vec::new();
    let refused = (0..300).find_map(|_| {
        let (tunnel, answer) = connect(relay.port(), &target.authority());
        tunnels.push(tunnel);
        (answer.status != 200).then_some(answer.status)
    });
    assert_eq!(refused, Some(503), "{}", tunnels.len());
    assert!(tunnels.len() > 1, "silent clients give way");
    drop(tunnels);
    assert_serves(relay.port(), &target);
    let log = relay.stop().succeeded().stderr;
    assert!(log.contains("would abort this process"), "{log}");
}

// The listener.

#[test]
fn the_relay_listens_on_one_address_and_children_do_not_inherit_the_socket() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home, &[]);
    for other in ["127.0.0.2", "::1"] {
        let address = SocketAddr::new(other.parse().unwrap(), relay.port());
        assert!(TcpStream::connect(address).is_err(), "{address}");
    }
    let list = [
        "sh",
        "-c",
        "for fd in /proc/$$/fd/*; do echo ${fd##*/}; done",
    ];
    let mut without = home.command(list[0]);
    let without = finish(without.args(&list[1..])).succeeded().text();
    let mut with = upstreamproxy(&home);
    let with = finish(with.args(["run", "--embedded", "--"]).args(list));
    assert_eq!(with.succeeded().text(), without, "the child's descriptors");
}

// The head.

#[test]
fn an_invalid_head_is_refused_and_nothing_is_dialled() {
    let home = TempHome::new();
    let (relay, gateway) = relay_and_gateway(&home, &["-v"]);
    let long_label = format!("{}.test:443", "a".repeat(64));
    let long_host = format!("{}:443", "a.".repeat(127) + "test");
    let targets = [
        "a.test",
        "a.test:",
        "a.test:0",
        "a.test:65536",
        "a.test:99999999999999999999",
        "a.test:+443",
        "a.test:-1",
        "a.test:0443x",
        "a.test:https",
        "a.test:\u{ff10}\u{ff14}",
        "[::1]",
        "::1:443",
        "[::1%25lo]:443",
        "[[a]]:443",
        "[a.test]:443",
        "[::1:443",
        "a..test:443",
        ".a.test:443",
        "...:443",
        ":443",
        "a.test:443:443",
        "user@a.test:443",
        "http://a.test:443",
        "a.test:443/path",
        "*:443",
        &long_label,
        &long_host,
    ];
    let line = |target: &str| format!("CONNECT {target} HTTP/1.1\r\n\r\n");
    let mut cases: Vec<(String, u16)> = targets.map(|target| (line(target), 400)).into();
    let malformed = [
        "CONNECT a.test:443 HTTP/2\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1x\r\n\r\n",
        "CONNECT a.test:443 HTTP/2.0\r\n\r\n",
        "CONNECT a.test:443 http/1.1\r\n\r\n",
        "CONNECT a.test:443\r\n\r\n",
        "CONNECT  a.test:443 HTTP/1.1\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1\nHost: a\n\n",
        "CONNECT a.test:443 HTTP/1.1\r\n folded\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1\r\nA : b\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test/path\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1\r\nA: \0\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        "CONNECT a.test:443 HTTP/1.1\r\nContent-Length:\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    cases.extend(malformed.map(|head| (head.to_owned(), 400)));
    let others = [
        "POST / HTTP/1.1\r\n\r\n",
        "GET a.test/ HTTP/1.1\r\n\r\n",
        "connect a.test:443 HTTP/1.1\r\n\r\n",
    ];
    cases.extend(others.map(|head| (head.to_owned(), 405)));
    let port = relay.port();
    let own = [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!("LOCALHOST:{port}"),
    ];
    cases.extend(own.map(|target| (line(&target), 403)));
    for (head, status) in cases {
        let (mut stream, answer) = request(port, head.as_bytes());
        assert_eq!(answer.status, status, "{head:?}: {answer:?}");
        assert!(answer.has_field("Proxy-Status"), "{head:?}: {answer:?}");
        let (rest, ending) = read_to_end(&mut stream);
        let body = [answer.early, rest].concat();
        let body = String::from_utf8(body).unwrap();
        assert_eq!(body.lines().count(), 1, "{head:?}: one line: {body:?}");
        assert_eq!(ending, Ending::Eof, "{head:?}");
    }
    let log = gateway.running.stop().stderr;
    assert!(!log.contains("CONNECT") && !log.contains("a.test"), "{log}");
    // `PRI` is the start of HTTP/2 without TLS. Its empty line ends a head without fields.
    assert_eq!(
        request(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").1.status,
        400
    );
}

#[test]
fn an_endless_head_is_refused_at_the_limit() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home, &[]);
    let start = "CONNECT a.test:443 HTTP/1.1\r\n";
    let many_fields = start.to_owned() + &"A: b\r\n".repeat(10_000) + "\r\n";
    let long_field = format!("{start}A: {}\r\n\r\n", "b".repeat(64 << 10));
    let long_target = format!("CONNECT {}:443 HTTP/1.1\r\n\r\n", "a".repeat(64 << 10));
    for head in [many_fields, long_field, long_target] {
        let (mut stream, answer) = request(relay.port(), head.as_bytes());
        assert_eq!(answer.status, 431, "{answer:?}");
        read_to_end(&mut stream);
    }
    // The relay stops reading an endless head, so the sender is blocked long before it has sent a
    // gigabyte.
    let mut endless = open_connection(relay.port());
    endless.write_all(start.as_bytes()).unwrap();
    let line = "A: b\r\n".repeat(10_000);
    let mut sent = 0_usize;
    while sent < 1 << 30 && endless.write_all(line.as_bytes()).is_ok() {
        sent += line.len();
    }
    assert!(sent < 64 << 20, "{sent} bytes were taken");
}

#[test]
fn bytes_after_the_head_are_sent_after_the_answer_in_order() {
    let (home, target) = (TempHome::new(), HalfCloseServer::start());
    let (relay, _gateway) = relay_and_gateway(&home, &[]);
    let head = format!("CONNECT {} HTTP/1.1\r\n\r\n", target.authority());
    for length in [1, 1_000, 64 << 10, 200 << 10, 3 << 20] {
        let payload = pattern(length);
        let mut stream = open_connection(relay.port());
        let all = [head.as_bytes(), &payload].concat();
        let (received, ending) = exchange(&mut stream, all);
        let answer = HalfCloseServer::answer(&payload);
        let head = b"HTTP/1.1 200 Connection Established\r\n\r\n";
        assert_eq!(received, [&head[..], &answer].concat(), "{length}");
        assert_eq!(ending, Ending::Eof, "{length}");
    }
}

#[test]
fn half_a_head_followed_by_a_half_close_is_answered() {
    let home = TempHome::new();
    let (relay, _gateway) = relay_and_gateway(&home, &[]);
    let mut stream = open_connection(relay.port());
    let (received, ending) = exchange(
        &mut stream,
        b"CONNECT a.test:443 HTTP/1.1\r\nHost:".to_vec(),
    );
    assert!(
        received.starts_with(b"HTTP/1.1 400 "),
        "{}",
        String::from_utf8_lossy(&received)
    );
    assert_eq!(ending, Ending::Eof);
}

#[test]
fn the_whole_head_has_one_deadline_even_for_slow_clients() {
    let home = TempHome::new();
    let roots = home.write("roots.pem", TestCa::new("the only root").pem, 0o644);
    let config = Config::default()
        .harden(false)
        .system_ca(roots)
        .limits(|limits| limits.head_timeout = Duration::from_millis(200));
    let relay = start_embedded(&config).into_result().unwrap();
    let mut silent = open_connection(relay.port());
    let (received, ending) = read_to_end(&mut silent);
    assert!(
        received.starts_with(b"HTTP/1.1 408 "),
        "{}",
        String::from_utf8_lossy(&received)
    );
    assert_eq!(ending, Ending::Eof);

    let mut slow = open_connection(relay.port());
    slow.write_all(b"CONNECT a.test:443 HTTP/1.1\r\nA: ")
        .unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(10)))
        .unwrap();
    let mut received = [0; 12];
    // Sends one byte at a time until there is an answer.
    while slow.read_exact(&mut received).is_err() {
        slow.write_all(b"b").unwrap();
    }
    assert_eq!(&received, b"HTTP/1.1 408");
}
