//! No session, user or program keeps the others out: each test is one neighbour that takes what it
//! can get, and a client beside it that needs a tunnel.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use upstreamproxy::gateway::{GatewayConfig, Sessions};
use upstreamproxy::start_gateway;

use crate::support::{
    EchoServer, Ending, GatewayProcess, HandWrittenRelay, RelayProcess, SESSION, TIMEOUT, TOKEN,
    TempHome, connect, exchange, message, opening, pattern, upgrade_request,
};

/// The session and token of the neighbour.
const GREEDY: (&str, &str) = ("greedy", "token-of-the-greedy");

fn gateway_for_two(home: &TempHome, options: &[&str]) -> GatewayProcess {
    let sessions = format!("{SESSION} {TOKEN}\n{} {}\n", GREEDY.0, GREEDY.1);
    let defaults = ["--allow-private", "--intercept", "none"];
    GatewayProcess::with_sessions(home, &sessions, &[&defaults[..], options].concat())
}

#[track_caller]
fn assert_tunnel_works(port: u16, target: &EchoServer) {
    let (mut tunnel, answer) = connect(port, &target.authority());
    assert_eq!(answer.status, 200, "{answer:?}");
    let payload = pattern(100_000);
    assert_eq!(
        exchange(&mut tunnel, payload.clone()),
        (payload, Ending::Eof)
    );
}

fn reset(stream: &TcpStream) {
    SockRef::from(stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// A fragment of a message of 1 MiB that never ends.
fn unfinished_message() -> Vec<u8> {
    message(&[&[0x0a][..], &vec![0; (1 << 20) - 2]].concat(), false)
}

#[test]
fn unfinished_messages_of_one_session_cost_another_neither_bytes_nor_its_end() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = gateway_for_two(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let fragment = unfinished_message();
    let _held: Vec<_> = (0..70)
        .map(|_| {
            let mut greedy = HandWrittenRelay::upgraded(gateway.port(), GREEDY.1);
            // The gateway closes those for which the session has no share left.
            let _ = greedy.stream.write_all(&fragment);
            greedy
        })
        .collect();
    for _ in 0..4 {
        assert_tunnel_works(relay.port(), &target);
    }
}

#[test]
fn websockets_that_wait_give_way_and_those_of_the_greediest_session_are_the_first() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = gateway_for_two(&home, &["--max-tunnels", "16"]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--standby", "0"]);
    let mut own = HandWrittenRelay::upgraded(gateway.port(), TOKEN);
    let greedy: Vec<_> = (0..15)
        .map(|_| HandWrittenRelay::upgraded(gateway.port(), GREEDY.1))
        .collect();
    let tunnels: Vec<_> = (0..4)
        .map(|_| {
            let (tunnel, answer) = connect(relay.port(), &target.authority());
            assert_eq!(answer.status, 200, "{answer:?}");
            tunnel
        })
        .collect();
    let closed: Vec<_> = greedy.iter().map(HandWrittenRelay::is_closed).collect();
    // On a busy machine, more than one may be closed for a tunnel.
    let oldest = closed.iter().take_while(|&&closed| closed).count();
    assert!(oldest >= 4, "{closed:?}");
    assert!(!closed[oldest..].contains(&true), "{closed:?}");
    // The other session's own WebSocket is older than all of them, and was not closed.
    assert_eq!(own.open(&target.authority(), SESSION, TOKEN), Some(200));
    drop(tunnels);
}

#[test]
fn tunnels_of_one_session_leave_slots_for_another_and_alone_it_may_use_all() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = gateway_for_two(&home, &["--max-tunnels", "12"]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let open = |(session, token): (&str, &str)| {
        let mut greedy = HandWrittenRelay::upgraded(gateway.port(), token);
        let status = greedy.open(&target.authority(), session, token);
        (status, greedy)
    };
    let mut greedy: Vec<_> = (0..12).map(|_| open(GREEDY)).collect();
    let statuses: Vec<_> = greedy.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses[..8], [Some(200); 8], "{statuses:?}");
    assert_eq!(statuses[8..], [Some(503); 4], "{statuses:?}");
    assert_tunnel_works(relay.port(), &target);
    // What it gives back it can have again.
    greedy.clear();
    for _ in 0..20 {
        assert_eq!(open(GREEDY).0, Some(200));
    }

    let alone = GatewayProcess::start(&home, &["--max-tunnels", "12"]);
    let relay = RelayProcess::start(&home_with_token(), &alone.base_url(), &[]);
    let tunnels: Vec<_> = (0..12)
        .map(|_| connect(relay.port(), &target.authority()))
        .collect();
    assert!(tunnels.iter().all(|(_, answer)| answer.status == 200));
}

/// Another home, because the relay of the first one has deleted its token.
fn home_with_token() -> TempHome {
    let home = TempHome::new();
    home.write_token(TOKEN);
    home
}

#[test]
fn silent_and_slow_local_clients_give_way_to_one_that_asks() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--max-tunnels", "32"]);
    let (mut tunnel, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut held: Vec<_> = (0..100)
        .map(|n| {
            let address = (Ipv4Addr::LOCALHOST, relay.port());
            let mut client = TcpStream::connect(address).unwrap();
            // It may have been closed for a later one already.
            let _ = client.write(&b"CONNECT example.com:443 HTTP/1.1\r\nA: "[..n % 38]);
            client
        })
        .collect();
    for _ in 0..4 {
        assert_tunnel_works(relay.port(), &target);
    }
    tunnel.write_all(b"still open").unwrap();
    tunnel.read_exact(&mut [0; 10]).unwrap();
    // The newest ones are still there.
    held.reverse();
    let newest = &held[0];
    newest.set_nonblocking(true).unwrap();
    assert!(matches!((&*newest).read(&mut [0]), Err(error)
        if error.kind() == std::io::ErrorKind::WouldBlock));
    let log = relay.stop();
    assert!(!log.stderr.contains("refused 400"), "{log:#?}");
}

#[test]
fn an_opening_that_has_begun_has_the_time_of_a_request_head() {
    let sessions = Sessions::parse(&format!("{SESSION} {TOKEN}\n")).unwrap();
    let home = TempHome::new();
    let ca = crate::support::TestCa::new("root of the gateway");
    let gateway = start_gateway(
        GatewayConfig::new(sessions)
            .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .system_ca(home.write("roots.pem", &ca.pem, 0o644))
            .limits(|limits| limits.head_timeout = Duration::from_millis(200)),
    )
    .unwrap();
    let port = gateway.local_addr().port();
    let whole = opening("example.com:443", SESSION, TOKEN);
    let waiting = HandWrittenRelay::upgraded(port, TOKEN);
    // Inside the header of the frame, the header of the chunk, the head; in fragments; one byte at
    // a time.
    let fragment = message(&[0x0a, 100, b'C'], false);
    for first in [&whole[..1], &whole[..9], &whole[..20], &fragment] {
        let mut slow = HandWrittenRelay::upgraded(port, TOKEN);
        slow.stream.write_all(first).unwrap();
        let mut rest = whole.get(first.len()..).unwrap().iter();
        let closed = loop {
            slow.stream
                .set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
            match slow.stream.read(&mut [0; 64]) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // A close frame, or the end.
                _ => break true,
            }
            // The last bytes are never sent.
            let Some(byte) = rest.next().filter(|_| rest.len() > 20) else {
                slow.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                break slow.stream.read(&mut [0; 64]).is_ok();
            };
            let _ = slow.stream.write_all(&[*byte]);
        };
        assert!(closed, "{first:x?}");
    }
    assert!(!waiting.is_closed(), "one that has not begun may wait");
    gateway.shutdown(Duration::ZERO);
}

/// A phase of a connection to the gateway: brings a new connection into it.
type Phase<'a> = (&'a str, &'a dyn Fn(&mut HandWrittenRelay));

#[test]
fn a_relay_that_leaves_in_any_phase_frees_its_slot_and_its_share() {
    const CAP: usize = 6;
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = gateway_for_two(&home, &["--max-tunnels", "6"]);
    // It accepts no connection, and its backlog is full, so a connection to it stays unanswered.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    silent.listen(0).unwrap();
    let unanswered = silent.local_addr().unwrap().as_socket().unwrap();
    let _backlog = TcpStream::connect(unanswered).unwrap();
    let send = |relay: &mut HandWrittenRelay, bytes: &[u8]| relay.stream.write_all(bytes).unwrap();
    let upgrade = |relay: &mut HandWrittenRelay| {
        assert_eq!(relay.upgrade(GREEDY.1), Some(101));
    };
    let open = |relay: &mut HandWrittenRelay| {
        upgrade(relay);
        assert_eq!(
            relay.open(&target.authority(), GREEDY.0, GREEDY.1),
            Some(200)
        );
    };
    let phases: [Phase; 8] = [
        ("connected", &|_| {}),
        ("half a head", &|relay| {
            send(relay, &upgrade_request(GREEDY.1).as_bytes()[..50]);
        }),
        ("refused", &|relay| {
            assert_eq!(relay.upgrade("wrong"), Some(401));
        }),
        ("upgraded", &upgrade),
        ("half an opening", &|relay| {
            upgrade(relay);
            let opening = opening(&target.authority(), GREEDY.0, GREEDY.1);
            send(relay, &opening[..30]);
        }),
        ("an unanswered target", &|relay| {
            upgrade(relay);
            let opening = opening(&unanswered.to_string(), GREEDY.0, GREEDY.1);
            send(relay, &opening);
        }),
        ("open", &open),
        ("an unfinished message", &|relay| {
            open(relay);
            send(relay, &unfinished_message());
        }),
    ];
    for (phase, enter) in phases {
        for with_reset in [true, false] {
            for _ in 0..3 * CAP {
                let mut relay = HandWrittenRelay::connect(gateway.port());
                // A slot may be free a moment later only.
                enter(&mut relay);
                if with_reset {
                    reset(&relay.stream);
                }
            }
            let case = format!("{phase}, reset: {with_reset}");
            let mut tunnels = Vec::new();
            let deadline = std::time::Instant::now() + TIMEOUT;
            while tunnels.len() < 4 {
                assert!(std::time::Instant::now() < deadline, "{case}");
                let mut relay = HandWrittenRelay::connect(gateway.port());
                let opened = relay.upgrade(TOKEN).is_some_and(|status| status == 101)
                    && relay.open(&target.authority(), SESSION, TOKEN) == Some(200);
                if opened {
                    tunnels.push(relay);
                } else {
                    thread::yield_now();
                }
            }
        }
    }
}

/// Does `work` again and again until `stop` is set.
fn repeat<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    stop: &'scope AtomicBool,
    mut work: impl FnMut() + Send + 'scope,
) {
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            work();
        }
    });
}

#[test]
fn beside_the_worst_neighbour_every_tunnel_of_another_session_opens() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = gateway_for_two(&home, &["--max-tunnels", "64"]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let port = gateway.port();
    // What one step of the neighbour does may fail: the gateway defends itself.
    let attempt = |token: &str, bytes: &[u8]| {
        let mut greedy = HandWrittenRelay::connect(port);
        if greedy.upgrade(token) == Some(101) {
            let _ = greedy.stream.write_all(bytes);
        }
        greedy
    };
    let (attempt, target) = (&attempt, &target);
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        // Tunnels that stay, as many as it gets.
        let own_tunnel = opening(&target.authority(), GREEDY.0, GREEDY.1);
        let _tunnels: Vec<_> = (0..64).map(|_| attempt(GREEDY.1, &own_tunnel)).collect();
        // WebSockets that wait, messages that do not end, and names that no one knows.
        let fragment = unfinished_message();
        let unknown = opening("does-not-exist.invalid:443", GREEDY.0, GREEDY.1);
        for bytes in [Vec::new(), fragment, unknown] {
            let mut held = std::collections::VecDeque::new();
            repeat(scope, stop, move || {
                held.push_back(attempt(GREEDY.1, &bytes));
                if held.len() > 64 {
                    held.pop_front();
                }
            });
        }
        // Wrong tokens, and connections that are reset in the middle of the head.
        repeat(scope, stop, move || drop(attempt("wrong", b"")));
        repeat(scope, stop, move || {
            let mut greedy = HandWrittenRelay::connect(port);
            let _ = greedy.stream.write_all(b"GET /v1/code/");
            reset(&greedy.stream);
        });
        let result = thread::scope(|inner| {
            let client = inner.spawn(|| {
                for _ in 0..40 {
                    assert_tunnel_works(relay.port(), target);
                }
            });
            client.join()
        });
        stop.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}
