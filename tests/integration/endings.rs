//! The end of a tunnel as its client or target sees it: every row of the table of endings on the
//! protocol page, at both ends, in both versions, with data in every place, and for clients that
//! read late or send something first.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use crate::stream::{ScriptedUpstream, Target, chunk, data_of, direct_tunnel, reset};
use crate::support::{
    Ending, GatewayProcess, RelayProcess, Running, TempHome, pattern, read_to_end,
};

/// How long a late reader waits: longer than an end waits for a connection to close that has
/// received everything. No check depends on this time.
const LATE: Duration = Duration::from_millis(1500);

/// The end under test, which is connected to the client or target.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Relay,
    Gateway,
}

/// Where the data is when the tunnel ends: it is not read before. There is more than the kernel
/// keeps for one connection, or less, or none.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Data {
    InBuffers,
    InKernel,
    None,
}

/// What the client or target does at the end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Peer {
    ReadsLate,
    WritesThenReadsLate,
}

/// One row of the table.
struct Row {
    way: &'static str,
    /// The versions that it applies to.
    versions: &'static str,
    /// What the client or target receives.
    data: &'static str,
    end: &'static str,
    /// How the log line ends, before the number of undelivered bytes.
    line: &'static str,
}

fn rows() -> Vec<Row> {
    let page = include_str!("../../src/manual/protocol.md");
    let (_, table) = page.split_once("<!-- endings -->").unwrap();
    let lines = table.trim_start().lines();
    let lines = lines.map_while(|line| line.strip_prefix('|')?.strip_suffix('|'));
    let rows: Vec<_> = lines
        .skip(2)
        .map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let [way, versions, data, end, line] = cells[..] else {
                panic!("{line}");
            };
            Row {
                way,
                versions,
                data,
                end,
                line: line.trim_matches('`'),
            }
        })
        .collect();
    assert!(rows.len() > 10);
    rows
}

/// The end under test, and what opens tunnels through it.
struct UnderTest {
    running: Running,
    opens: Box<dyn Fn(&str) -> Tunnel>,
    _home: TempHome,
}

/// A tunnel: the client or target, and the far end of the `WebSocket`.
struct Tunnel {
    authority: String,
    peer: TcpStream,
    ws: WebSocket<TcpStream>,
    /// Keeps a target listening.
    _target: Option<Target>,
}

impl UnderTest {
    fn start(role: Role, version: u8, options: &[&str]) -> Self {
        let home = TempHome::new();
        if role == Role::Gateway {
            let gateway = GatewayProcess::start(&home, options);
            let base_url = gateway.base_url();
            let GatewayProcess { running, .. } = gateway;
            let opens = move |_: &str| {
                let target = Target::start();
                let ws = direct_tunnel(&base_url, &target, version);
                Tunnel {
                    authority: target.authority(),
                    peer: target.accept(),
                    ws,
                    _target: Some(target),
                }
            };
            return Self {
                running,
                opens: Box::new(opens),
                _home: home,
            };
        }
        let upstream = ScriptedUpstream::start(version);
        let relay = RelayProcess::start(&home, &upstream.base_url(), options);
        let port = relay.port();
        let opens = move |authority: &str| {
            let (peer, ws) = upstream.tunnel_to(authority, port);
            Tunnel {
                authority: authority.to_owned(),
                peer,
                ws,
                _target: None,
            }
        };
        Self {
            running: relay.running,
            opens: Box::new(opens),
            _home: home,
        }
    }
}

fn close(code: u16) -> Message {
    Message::Close(Some(CloseFrame {
        code: code.into(),
        reason: "".into(),
    }))
}

/// The far end of the `WebSocket`: sends `data`, ends as the row says, and reads to the end.
/// Returns the data that it received.
fn far_end(mut ws: WebSocket<TcpStream>, way: &str, data: &[u8]) -> Vec<u8> {
    let fin = || Message::binary(vec![0x10, 1]);
    let ends = match way {
        "`fin` in both directions" => vec![fin()],
        "`fin`, then a close with 1001" => vec![fin(), close(1001)],
        "a close with 1000" => vec![close(1000)],
        "a close with 1001" => vec![close(1001)],
        "a close with 1011" => vec![close(1011)],
        "a close without a code" => vec![Message::Close(None)],
        "a message that the protocol does not allow" => vec![Message::text("no")],
        _ => Vec::new(),
    };
    // Every send fails if the process under test has ended.
    for message in data.chunks(64 << 10).map(chunk).chain(ends) {
        if ws.send(message).is_err() {
            return Vec::new();
        }
    }
    match way {
        "the end of the WebSocket's connection" => {
            ws.get_ref().shutdown(Shutdown::Write).unwrap();
        }
        "a reset of the WebSocket's connection" => {
            reset(ws.get_ref().try_clone().unwrap());
            return Vec::new();
        }
        _ => {}
    }
    let mut received = Vec::new();
    while let Ok(message) = ws.read() {
        match message {
            Message::Binary(message) if message[0] == 0x0a => {
                received.extend_from_slice(data_of(&message));
            }
            _ => {}
        }
    }
    received
}

/// The options of the process under test, and the signals that end its tunnels.
fn options_and_signals(row: &Row, role: Role) -> (Vec<&'static str>, &'static [Signal]) {
    let mut options = vec!["--keepalive", "0s"];
    if role == Role::Relay {
        // Each connection to the upstream must have an opening.
        options.extend(["--standby", "0"]);
    }
    let signals: &[Signal] = match row.way {
        "`--idle-timeout`" => {
            options.extend(["--idle-timeout", "1s"]);
            &[]
        }
        "a drain" => {
            options.extend(["--drain-timeout", "1000s"]);
            &[Signal::TERM]
        }
        "the drain deadline" => {
            options.extend(["--drain-timeout", "1s"]);
            &[Signal::TERM]
        }
        "the death of the process" => &[Signal::KILL],
        _ => &[],
    };
    (options, signals)
}

/// Runs one row with all data and peers at once.
fn check(row: &Row, role: Role, version: u8) {
    let (options, signals) = options_and_signals(row, role);
    let under_test = UnderTest::start(role, version, &options);
    let mut cases = Vec::new();
    for data in [Data::None, Data::InKernel, Data::InBuffers] {
        for peer in [Peer::ReadsLate, Peer::WritesThenReadsLate] {
            // A relay whose last bytes went up waits for a response.
            let waits =
                (row.way, role, peer) == ("a drain", Role::Relay, Peer::WritesThenReadsLate);
            // A silent tunnel may end before the deadline.
            let silent = row.way == "the drain deadline" && data == Data::None;
            if !waits && !silent {
                let tunnel = (under_test.opens)(&format!("case{}.test:443", cases.len()));
                cases.push((data, peer, tunnel));
            }
        }
    }
    if row.way == "the death of the process" {
        // Not in their first 300 ms.
        thread::sleep(LATE);
    }
    // All have data, and then the signals have been sent.
    let [ready, signalled] = [(); 2].map(|()| Barrier::new(cases.len() + 1));
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = cases
            .into_iter()
            .map(|(data, peer, tunnel)| {
                let (ready, signalled) = (&ready, &signalled);
                scope.spawn(move || {
                    let size = match data {
                        Data::None => 0,
                        Data::InKernel => 200_000,
                        Data::InBuffers => 6 << 20,
                    };
                    let sent = pattern(size);
                    let Tunnel {
                        authority,
                        peer: mut stream,
                        ws,
                        _target,
                    } = tunnel;
                    let far = thread::spawn({
                        let (way, sent) = (row.way, sent.clone());
                        move || far_end(ws, way, &sent)
                    });
                    if size > 0 {
                        stream.peek(&mut [0]).unwrap();
                    }
                    ready.wait();
                    signalled.wait();
                    let context = format!("{}, {role:?}, {version}, {data:?}, {peer:?}", row.way);
                    let (received, ending) = at_the_end(row, role, peer, &mut stream, &sent);
                    drop(stream);
                    far.join().unwrap();
                    assert!(sent.starts_with(&received), "{context}");
                    // Silence may begin before the data.
                    if row.data == "all" && row.way != "`--idle-timeout`" {
                        assert_eq!(received.len(), sent.len(), "{context}");
                    }
                    match row.end {
                        "FIN" => assert_eq!(ending, Some(Ending::Eof), "{context}"),
                        "reset" => assert_eq!(ending, Some(Ending::Reset), "{context}"),
                        _ => assert_eq!(ending, None, "{context}"),
                    }
                    (context, authority, received.len())
                })
            })
            .collect();
        ready.wait();
        for signal in signals {
            under_test.running.signal(*signal);
        }
        signalled.wait();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let running = under_test.running;
    let log = if signals.is_empty() {
        running.stop()
    } else {
        running.wait()
    }
    .stderr;
    for (context, authority, received) in results {
        check_log(row, role, &log, &context, &authority, received);
    }
}

/// Checks the log line of a tunnel to `authority`, whose client or target has received this number
/// of bytes.
#[track_caller]
fn check_log(row: &Row, role: Role, log: &str, context: &str, authority: &str, received: usize) {
    let own = if role == Role::Relay {
        "client"
    } else {
        "target"
    };
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains(&format!(" {authority} ")))
        .collect();
    if row.line.is_empty() {
        assert_eq!(lines, [""; 0], "{context}");
        return;
    }
    let far = if role == Role::Relay {
        "gateway"
    } else {
        "relay"
    };
    let expected = row.line.replace("PEER", far);
    let mut lines_of_row = expected.split("` or `");
    assert!(
        lines.len() == 1 && lines_of_row.any(|end| lines[0].contains(&format!(" ms, {end}"))),
        "{context}: {expected:?} in {log}"
    );
    // The bytes that this end has received: behind its time comes the other direction.
    let (_, counts) = lines[0].split_once(authority).unwrap();
    let counts: Vec<usize> = counts
        .split_whitespace()
        .filter_map(|w| w.parse().ok())
        .collect();
    let carried = counts[usize::from(role == Role::Relay)];
    let undelivered = format!(" bytes were not delivered to the {own}");
    let reported = lines[0].contains(&undelivered);
    match row.way {
        "the drain deadline" => assert_eq!(reported, carried > received, "{context}: {log}"),
        // "Broken" is only what has lost something.
        "a reset by the client" => {
            assert_eq!(reported, lines[0].contains("broken"), "{context}: {log}");
        }
        "a reset by the target" => {}
        _ => assert_eq!((reported, received), (false, carried), "{context}: {log}"),
    }
}

/// The client or target: what it does at the end, what it received, and how its connection ended.
fn at_the_end(
    row: &Row,
    role: Role,
    peer: Peer,
    stream: &mut TcpStream,
    sent: &[u8],
) -> (Vec<u8>, Option<Ending>) {
    if row.way.starts_with("a reset by the ") {
        reset(stream.try_clone().unwrap());
        return (Vec::new(), None);
    }
    thread::sleep(LATE);
    // The kernel reports a reset once: the write may be the call that fails.
    let mut write_failed = peer == Peer::WritesThenReadsLate && stream.write_all(b"!").is_err();
    let mut received = Vec::new();
    if row.way == "`fin` in both directions" {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    if row.way == "a drain" && role == Role::Gateway {
        let part = &mut Read::by_ref(stream).take(sent.len() as u64);
        part.read_to_end(&mut received).unwrap();
        // The target's response: the gateway waits for it. A silent tunnel may have ended.
        write_failed |= stream.write_all(b"!").is_err();
    }
    let (rest, ending) = read_to_end(stream);
    received.extend(rest);
    let ending = if write_failed { Ending::Reset } else { ending };
    (received, Some(ending))
}

fn check_all(role: Role, version: u8) {
    for row in rows() {
        let other = match role {
            Role::Relay => "a reset by the target",
            Role::Gateway => "a reset by the client",
        };
        let applies = row.versions == "both" || row.versions == version.to_string();
        if applies && row.way != other {
            check(&row, role, version);
        }
    }
}

#[test]
fn every_end_on_the_protocol_page_at_the_relay_in_version_1() {
    check_all(Role::Relay, 1);
}

#[test]
fn every_end_on_the_protocol_page_at_the_relay_in_version_2() {
    check_all(Role::Relay, 2);
}

#[test]
fn every_end_on_the_protocol_page_at_the_gateway_in_version_1() {
    check_all(Role::Gateway, 1);
}

#[test]
fn every_end_on_the_protocol_page_at_the_gateway_in_version_2() {
    check_all(Role::Gateway, 2);
}
