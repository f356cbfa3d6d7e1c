//! Streams through relay and gateway: every byte arrives, every kind of end is passed on, and
//! waiting uses no processor time (`manual/protocol.md`, section about the end of a tunnel).

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use data_encoding::BASE64;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use socket2::SockRef;
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::server::{Request, Response};
use tungstenite::http::HeaderValue;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

use crate::support::{
    Ending, GatewayProcess, RelayProcess, ResourceCounts, SESSION, TIMEOUT, TOKEN, TempHome,
    TestCa, connect, exchange, pattern, read_to_end,
};

/// A target whose connections the test itself handles.
pub(crate) struct Target(TcpListener);

impl Target {
    /// Listens on loopback.
    pub(crate) fn start() -> Self {
        Self(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
    }

    pub(crate) fn authority(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    pub(crate) fn accept(&self) -> TcpStream {
        let (stream, _) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// Opens a tunnel to this target through the relay at `port`. Returns the client's end and the
    /// target's.
    #[track_caller]
    pub(crate) fn tunnel(&self, port: u16) -> (TcpStream, TcpStream) {
        let (client, answer) = connect(port, &self.authority());
        assert_eq!((answer.status, answer.early.len()), (200, 0));
        (client, self.accept())
    }
}

/// A relay and a gateway.
struct Pair {
    relay: RelayProcess,
    gateway: GatewayProcess,
    _home: TempHome,
}

impl Pair {
    #[track_caller]
    fn start(options: &[&str], gateway_options: &[&str]) -> Self {
        let home = TempHome::new();
        let gateway = GatewayProcess::start(&home, &[options, gateway_options].concat());
        let relay = RelayProcess::start(&home, &gateway.base_url(), options);
        Self {
            relay,
            gateway,
            _home: home,
        }
    }

    fn pids(&self) -> [u32; 2] {
        [self.relay.running.pid(), self.gateway.running.pid()]
    }
}

/// A test gateway; the test handles its `WebSocket`s. Its thread ends with the test process.
pub(crate) struct ScriptedUpstream {
    port: u16,
    tunnels: Receiver<WebSocket<TcpStream>>,
}

impl ScriptedUpstream {
    /// Starts one that speaks this version of the protocol.
    pub(crate) fn start(version: u8) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ca = TestCa::new("ca of a test gateway").pem;
        let (send, tunnels) = channel();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut line = [0; 64];
                let read = stream.peek(&mut line).unwrap();
                if String::from_utf8_lossy(&line[..read]).contains("/ws ") {
                    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                    #[allow(clippy::result_large_err, reason = "the type is tungstenite's")]
                    let select = |_: &Request, mut response: Response| {
                        if version == 2 {
                            let protocol = HeaderValue::from_static(VERSION_2);
                            response.headers_mut().insert(PROTOCOL_FIELD, protocol);
                        }
                        Ok(response)
                    };
                    let _ = send.send(tungstenite::accept_hdr(stream, select).unwrap());
                } else {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", ca.len());
                    let _ = stream.write_all((head + &ca).as_bytes());
                }
            }
        });
        Self { port, tunnels }
    }

    pub(crate) fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Opens a tunnel through `relay`; the gateway answers 200. Returns the client's end and the
    /// gateway's.
    #[track_caller]
    pub(crate) fn tunnel(&self, relay: &RelayProcess) -> (TcpStream, WebSocket<TcpStream>) {
        self.tunnel_to("target.test:443", relay.port())
    }

    /// The same through the relay at `port`, with another target.
    #[track_caller]
    pub(crate) fn tunnel_to(&self, target: &str, port: u16) -> (TcpStream, WebSocket<TcpStream>) {
        let target = target.to_owned();
        let client = thread::spawn(move || connect(port, &target));
        let mut ws = self.tunnels.recv_timeout(TIMEOUT).unwrap();
        assert!(ws.read().unwrap().is_binary());
        ws.send(chunk(b"HTTP/1.1 200 OK\r\n\r\n")).unwrap();
        let (client, answer) = client.join().unwrap();
        assert_eq!((answer.status, answer.early.len()), (200, 0));
        (client, ws)
    }
}

/// A chunk with this data.
pub(crate) fn chunk(data: &[u8]) -> Message {
    let mut message = vec![0x0a];
    let mut length = data.len();
    while length > 0x7f {
        message.push(length as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(data);
    Message::binary(message)
}

/// The data in a chunk that has only the field `data`.
pub(crate) fn data_of(message: &[u8]) -> &[u8] {
    let (tag, rest) = message.split_first().unwrap();
    assert_eq!(*tag, 0x0a);
    let length = rest.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    &rest[length..]
}

/// Whether there is something to read within [`TIMEOUT`].
fn is_readable_soon(stream: &TcpStream) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
    let timeout = Timespec::try_from(TIMEOUT).unwrap();
    poll(&mut fds, Some(&timeout)).unwrap() == 1
}

/// Processor time that the process has used, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Waits for at most `time` for the connection to break. Returns whether it is still open.
fn stays_open(stream: &TcpStream, time: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::empty())];
    let time = Timespec::try_from(time).unwrap();
    poll(&mut fds, Some(&time)).unwrap() == 0
}

/// Fails if one of the processes uses processor time while the connection is idle for a second.
#[track_caller]
fn assert_no_cpu_use(state: &str, stream: &TcpStream, pids: &[u32]) {
    const A_TENTH: u64 = 10;
    let before: Vec<_> = pids.iter().map(|&pid| ticks(pid)).collect();
    assert!(
        stays_open(stream, Duration::from_secs(1)),
        "{state}: the connection broke"
    );
    for (&pid, before) in pids.iter().zip(before) {
        let used = ticks(pid) - before;
        assert!(used < A_TENTH, "{state}: {used} ticks in 100");
    }
}

/// Writes `data` repeatedly until the other end accepts no more. Returns the number of bytes
/// written.
fn fill(mut stream: &TcpStream, data: &[u8]) -> usize {
    stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut written = 0;
    loop {
        match stream.write(&data[written % data.len()..]) {
            Ok(n) => written += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error} after {written} bytes"),
        }
    }
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    written
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

fn assert_both_directions_at_once(pair: &Pair) {
    let target = Target::start();
    let (mut client, mut far) = target.tunnel(pair.relay.port());
    let (up, down) = (pattern(16 << 20), pattern((16 << 20) + 77));
    let response = down.clone();
    let far = thread::spawn(move || exchange(&mut far, response));
    assert!(exchange(&mut client, up.clone()) == (down, Ending::Eof));
    assert!(far.join().unwrap() == (up, Ending::Eof));
}

#[test]
fn in_both_directions_at_once_every_byte_arrives_and_both_ends_are_clean() {
    assert_both_directions_at_once(&Pair::start(&[], &[]));
}

#[test]
fn in_both_directions_at_once_over_wss_too() {
    let home = TempHome::new();
    let ca = TestCa::new("ca of the upstream");
    let (certificate, key) = ca.issue("localhost");
    let file = |name, pem| home.write(name, pem, 0o600).display().to_string();
    let (certificate, key) = (file("cert.pem", certificate), file("key.pem", key));
    let ca = file("upstream-ca.pem", ca.pem);
    let gateway = GatewayProcess::start(&home, &["--tls-cert", &certificate, "--tls-key", &key]);
    let base_url = gateway.base_url().replace("127.0.0.1", "localhost");
    let relay = RelayProcess::start(&home, &base_url, &["--upstream-ca", &ca]);
    assert_both_directions_at_once(&Pair {
        relay,
        gateway,
        _home: home,
    });
}

#[test]
fn a_target_that_ends_first_still_receives_what_the_client_sends() {
    let (pair, target) = (Pair::start(&[], &[]), Target::start());
    let (mut client, mut far) = target.tunnel(pair.relay.port());
    far.write_all(b"that is all").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        read_to_end(&mut client),
        (b"that is all".to_vec(), Ending::Eof)
    );
    client.write_all(b"and this is mine").unwrap();
    drop(client);
    assert_eq!(
        read_to_end(&mut far),
        (b"and this is mine".to_vec(), Ending::Eof)
    );
}

#[test]
fn a_reset_arrives_at_the_other_end_as_a_reset_after_the_data_before_it() {
    let (pair, target) = (Pair::start(&[], &[]), Target::start());
    let baseline = pair.pids().map(ResourceCounts::of);
    let (mut client, mut far) = target.tunnel(pair.relay.port());
    far.write_all(b"half of it").unwrap();
    client.read_exact(&mut [0; 10]).unwrap();
    reset(far);
    assert_eq!(read_to_end(&mut client), (Vec::new(), Ending::Reset));
    let (mut client, mut far) = target.tunnel(pair.relay.port());
    client.write_all(b"half of it").unwrap();
    far.read_exact(&mut [0; 10]).unwrap();
    reset(client);
    assert_eq!(read_to_end(&mut far), (Vec::new(), Ending::Reset));
    for (pid, baseline) in pair.pids().into_iter().zip(baseline) {
        if let Some(baseline) = baseline {
            baseline.wait_until_restored(pid);
        }
    }
}

#[test]
fn if_neither_end_reads_no_byte_is_lost_and_no_processor_time_used() {
    // Far more than three keepalive intervals: the peer is slow, and must not be taken for a dead
    // one.
    let options = ["--keepalive", "1s", "--idle-timeout", "2s"];
    let (pair, target) = (Pair::start(&options, &[]), Target::start());
    let (client, far) = target.tunnel(pair.relay.port());
    let data = pattern(8 << 20);
    let (up, down) = (fill(&client, &data), fill(&far, &data));
    assert_no_cpu_use("neither end reads", &client, &pair.pids());
    assert!(
        stays_open(&client, Duration::from_secs(5)),
        "the connection broke while its buffers were full"
    );
    let rest = |mut stream: TcpStream, expected: usize| {
        let expected = data.repeat(expected / data.len() + 1)[..expected].to_vec();
        stream.shutdown(Shutdown::Write).unwrap();
        thread::spawn(move || {
            let (received, ending) = read_to_end(&mut stream);
            assert_eq!((received.len(), ending), (expected.len(), Ending::Eof));
            assert!(received == expected);
        })
    };
    let ends = [rest(client, down), rest(far, up)];
    for end in ends {
        end.join().unwrap();
    }
}

#[test]
fn waiting_uses_no_processor_time_in_any_state() {
    let (pair, target) = (Pair::start(&[], &[]), Target::start());
    let (client, far) = target.tunnel(pair.relay.port());
    assert_no_cpu_use("an open tunnel", &client, &pair.pids());
    client.shutdown(Shutdown::Write).unwrap();
    assert_no_cpu_use("the client has ended", &client, &pair.pids());
    drop((client, far));
    let (mut client, far) = target.tunnel(pair.relay.port());
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), (Vec::new(), Ending::Eof));
    assert_no_cpu_use("the target has ended", &client, &pair.pids());
}

#[test]
fn in_version_1_a_slow_client_that_ended_gets_all_data_before_the_close() {
    let (home, gateway) = (TempHome::new(), ScriptedUpstream::start(1));
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--keepalive", "2s"]);
    let (mut client, mut ws) = gateway.tunnel(&relay);
    client.shutdown(Shutdown::Write).unwrap();
    let data = pattern(4 << 20);
    for part in data.chunks(512 << 10) {
        ws.send(chunk(part)).unwrap();
    }
    // The pings measure the time: after the fourth one, the linger time of 5 s is over.
    let mut before = 0;
    for n in 0..4 {
        assert!(ws.read().unwrap().is_ping());
        if n == 2 {
            before = ticks(relay.running.pid());
        }
    }
    let used = ticks(relay.running.pid()) - before;
    assert!(used < 20, "{used} ticks in 200");
    let reader = thread::spawn(move || {
        let mut received = vec![0; 4 << 20];
        client.read_exact(&mut received).unwrap();
        (received, read_to_end(&mut client))
    });
    // The linger time starts only now, when the client has received everything.
    let close = loop {
        match ws.read().unwrap() {
            Message::Close(frame) => break frame.unwrap().code,
            other => assert!(other.is_ping(), "{other:?}"),
        }
    };
    assert_eq!(close, CloseCode::Normal);
    let (received, end) = reader.join().unwrap();
    assert!(received == data);
    assert_eq!(
        end,
        (Vec::new(), Ending::Reset),
        "the client cannot know that it has received everything"
    );
}

#[test]
fn in_version_1_data_before_the_close_reaches_a_slow_client_after_the_gateway_disconnected() {
    let (home, gateway) = (TempHome::new(), ScriptedUpstream::start(1));
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let (mut client, mut ws) = gateway.tunnel(&relay);
    let data = pattern(4 << 20);
    let expected = data.clone();
    let sender = thread::spawn(move || {
        for part in data.chunks(512 << 10) {
            ws.send(chunk(part)).unwrap();
        }
        // The gateway disconnects without waiting for the answer, so the answer causes a reset.
        let (code, reason) = (CloseCode::Normal, "".into());
        ws.close(Some(CloseFrame { code, reason })).unwrap();
    });
    // The client reads slowly, so that the reset arrives while much data is not delivered yet.
    let (mut received, mut part) = (Vec::new(), vec![0; 64 << 10]);
    while stays_open(&client, Duration::from_millis(5)) && received.len() < expected.len() {
        let read = client.read(&mut part).unwrap();
        received.extend_from_slice(&part[..read]);
    }
    let (rest, ending) = read_to_end(&mut client);
    received.extend(rest);
    sender.join().unwrap();
    assert_eq!((received.len(), ending), (expected.len(), Ending::Eof));
    assert!(received == expected);
}

/// The field and the value that select version 2.
const PROTOCOL_FIELD: &str = "Sec-WebSocket-Protocol";
const VERSION_2: &str = "upstreamproxy.v2";

/// An upgraded `WebSocket` to the gateway at `base`, without a relay, in which the opening for
/// `target` is queued.
#[track_caller]
pub(crate) fn opening(base: &str, target: &Target, version: u8) -> WebSocket<TcpStream> {
    let mut request = format!("{}/v1/code/upstreamproxy/ws", base.replace("http:", "ws:"))
        .into_client_request()
        .unwrap();
    let headers = request.headers_mut();
    let bearer = format!("Bearer {TOKEN}").parse().unwrap();
    headers.insert("Authorization", bearer);
    if version == 2 {
        headers.insert(PROTOCOL_FIELD, HeaderValue::from_static(VERSION_2));
    }
    let stream = TcpStream::connect(base.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let (mut ws, _) = tungstenite::client(request, stream).unwrap();
    let basic = BASE64.encode(format!("{SESSION}:{TOKEN}").as_bytes());
    let authority = target.authority();
    let opening =
        format!("CONNECT {authority} HTTP/1.1\r\nProxy-Authorization: Basic {basic}\r\n\r\n");
    ws.write(chunk(opening.as_bytes())).unwrap();
    ws
}

/// A tunnel to `target` through the gateway at `base`, without a relay.
#[track_caller]
pub(crate) fn direct_tunnel(base: &str, target: &Target, version: u8) -> WebSocket<TcpStream> {
    let mut ws = opening(base, target, version);
    ws.flush().unwrap();
    let answer = ws.read().unwrap().into_data();
    assert!(
        String::from_utf8_lossy(&answer).contains(" 200 "),
        "{answer:?}"
    );
    ws
}

#[test]
fn in_version_1_a_slow_reader_gets_everything_that_the_target_sent_before_its_end() {
    let home = TempHome::new();
    let (gateway, target) = (GatewayProcess::start(&home, &[]), Target::start());
    // The case to test is a size between what the kernel's buffers hold and what the gateway holds
    // in addition: then the gateway knows of the target's end while data still waits for the
    // reader. Which sizes these are depends on the kernel, so the test tries many.
    let sizes: Vec<usize> = (8..32).map(|n| n * 200_000 + 17).collect();
    let tunnels: Vec<_> = sizes
        .iter()
        .map(|&size| {
            let ws = direct_tunnel(&gateway.base_url(), &target, 1);
            let mut far = target.accept();
            let sender = thread::spawn(move || far.write_all(&pattern(size)));
            (ws, sender)
        })
        .collect();
    // Longer than the gateway waits for the answer to its close.
    thread::sleep(Duration::from_secs(3));
    let mut tunnels: Vec<_> = sizes.into_iter().zip(tunnels).collect();
    for (_, (ws, _)) in &mut tunnels {
        // If the socket was closed too early, this ping causes a reset, which discards the waiting
        // data.
        ws.send(Message::Ping(b"reading soon".as_slice().into()))
            .unwrap();
    }
    thread::sleep(Duration::from_millis(200));
    for (size, (mut ws, sender)) in tunnels {
        let mut received = Vec::<u8>::new();
        let code = loop {
            match ws.read().unwrap() {
                Message::Binary(message) => received.extend_from_slice(data_of(&message)),
                Message::Pong(_) => {}
                Message::Close(frame) => break frame.unwrap().code,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((received.len(), code), (size, CloseCode::Normal));
        assert!(received == pattern(size));
        sender.join().unwrap().unwrap();
    }
}

#[test]
fn in_version_1_data_that_crosses_the_relays_close_is_delivered() {
    let (home, gateway) = (TempHome::new(), ScriptedUpstream::start(1));
    let relay = RelayProcess::start(&home, &gateway.base_url(), &["--idle-timeout", "1s"]);
    let (mut client, mut ws) = gateway.tunnel(&relay);
    // The relay has sent its close. The gateway sends data before it reads the close.
    assert!(is_readable_soon(ws.get_ref()));
    ws.send(chunk(b"last words")).unwrap();
    match ws.read().unwrap() {
        Message::Close(frame) => assert_eq!(frame.unwrap().code, CloseCode::Away),
        other => panic!("{other:?}"),
    }
    let _ = ws.flush();
    assert_eq!(
        read_to_end(&mut client),
        (b"last words".to_vec(), Ending::Reset)
    );
}

#[test]
fn in_version_1_a_client_that_ended_first_is_reset_although_the_gateway_answers_the_close() {
    let (home, gateway) = (TempHome::new(), ScriptedUpstream::start(1));
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let (mut client, mut ws) = gateway.tunnel(&relay);
    client.shutdown(Shutdown::Write).unwrap();
    ws.send(chunk(b"some of it")).unwrap();
    match ws.read().unwrap() {
        Message::Close(frame) => assert_eq!(frame.unwrap().code, CloseCode::Normal),
        other => panic!("{other:?}"),
    }
    let _ = ws.flush();
    assert_eq!(
        read_to_end(&mut client),
        (b"some of it".to_vec(), Ending::Reset)
    );
}

#[test]
fn data_in_one_segment_with_a_fault_is_delivered_before_the_reset() {
    let (home, gateway) = (TempHome::new(), ScriptedUpstream::start(1));
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let port = relay.port();
    let client = thread::spawn(move || connect(port, "target.test:443"));
    let mut ws = gateway.tunnels.recv_timeout(TIMEOUT).unwrap();
    assert!(ws.read().unwrap().is_binary());
    // Written at once: the answer, data, and a message that the protocol does not allow.
    for message in [
        chunk(b"HTTP/1.1 200 OK\r\n\r\n"),
        chunk(b"data before it"),
        Message::text("a fault"),
    ] {
        ws.write(message).unwrap();
    }
    ws.flush().unwrap();
    let (mut client, answer) = client.join().unwrap();
    assert_eq!(answer.status, 200);
    let (rest, ending) = read_to_end(&mut client);
    assert_eq!([answer.early, rest].concat(), b"data before it");
    assert_eq!(ending, Ending::Reset);
}

#[test]
fn a_ping_is_answered_during_a_saturated_upload() {
    let (home, gateway) = (TempHome::new(), ScriptedUpstream::start(1));
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let (client, mut ws) = gateway.tunnel(&relay);
    let data = pattern(8 << 20);
    let written = fill(&client, &data);
    ws.send(Message::Ping("now".into())).unwrap();
    let sender = thread::spawn(move || {
        // The test ends before all of it is accepted.
        while (&client).write_all(&data).is_ok() {}
    });
    let mut read = 0;
    loop {
        match ws.read().unwrap() {
            Message::Pong(payload) => break assert_eq!(payload, "now"),
            Message::Binary(part) => read += part.len(),
            other => panic!("{other:?}"),
        }
        assert!(
            read < 4 * written,
            "no pong in {read} bytes, {written} of them before the ping"
        );
    }
    drop(ws);
    sender.join().unwrap();
}

#[test]
fn an_intercepted_target_that_does_not_answer_in_tls_gives_an_alert_and_no_panic() {
    let (pair, target) = (Pair::start(&[], &["--intercept", "*"]), Target::start());
    let (mut client, mut far) = target.tunnel(pair.relay.port());
    client.write_all(&client_hello()).unwrap();
    far.read_exact(&mut [0; 5]).unwrap();
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let (alert, ending) = read_to_end(&mut client);
    assert_eq!((alert.len(), alert[0], ending), (7, 21, Ending::Eof));
    drop((client, far));
    let Pair { relay, gateway, .. } = pair;
    relay.stop().succeeded();
    let finished = gateway.running.stop();
    assert!(!finished.stderr.contains("panic"), "{finished:#?}");
}

#[test]
fn a_drain_ends_idle_tunnels_and_lets_a_waiting_one_get_its_answer() {
    let (pair, target) = (Pair::start(&[], &[]), Target::start());
    let port = pair.relay.port();
    let (mut silent, mut silent_far) = target.tunnel(port);
    silent.write_all(b"hello").unwrap();
    silent_far.read_exact(&mut [0; 5]).unwrap();
    silent_far.write_all(b"hello").unwrap();
    silent.read_exact(&mut [0; 5]).unwrap();
    let (mut waiting, mut waiting_far) = target.tunnel(port);
    waiting.write_all(b"question").unwrap();
    pair.relay.running.signal(Signal::TERM);
    // The stream did not say that it is complete, so this is no end of stream.
    assert_eq!(read_to_end(&mut silent), (Vec::new(), Ending::Reset));
    assert_eq!(read_to_end(&mut silent_far), (Vec::new(), Ending::Reset));
    waiting_far.read_exact(&mut [0; 8]).unwrap();
    waiting_far.write_all(b"answer").unwrap();
    drop(waiting_far);
    assert_eq!(read_to_end(&mut waiting), (b"answer".to_vec(), Ending::Eof));
    drop(waiting);
    pair.relay.running.wait().succeeded();
}

#[test]
fn a_second_signal_resets_open_tunnels_so_no_client_takes_a_part_for_the_whole() {
    let (pair, target) = (
        Pair::start(&["--drain-timeout", "1000s"], &[]),
        Target::start(),
    );
    let (mut client, mut far) = target.tunnel(pair.relay.port());
    far.write_all(b"a part").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    // A question without an answer, so that the drain waits.
    client.write_all(b"?").unwrap();
    far.read_exact(&mut [0]).unwrap();
    pair.relay.running.signal(Signal::TERM);
    // Once no connection is accepted, the first signal has been handled.
    while TcpStream::connect((Ipv4Addr::LOCALHOST, pair.relay.port())).is_ok() {
        thread::sleep(Duration::from_millis(10));
    }
    assert!(stays_open(&client, Duration::from_millis(50)));
    pair.relay.running.signal(Signal::TERM);
    assert_eq!(read_to_end(&mut client), (Vec::new(), Ending::Reset));
    assert_eq!(read_to_end(&mut far), (Vec::new(), Ending::Reset));
    assert_eq!(pair.relay.running.wait().status.code(), Some(143));
}

#[test]
fn sighup_during_a_drain_of_the_gateway_ends_no_tunnel() {
    let (pair, target) = (
        Pair::start(&["--drain-timeout", "1000s"], &[]),
        Target::start(),
    );
    let (mut client, mut far) = target.tunnel(pair.relay.port());
    client.write_all(b"?").unwrap();
    far.read_exact(&mut [0]).unwrap();
    let gateway = &pair.gateway.running;
    gateway.signal(Signal::TERM);
    let address = pair.gateway.base_url().replace("http://", "");
    while TcpStream::connect(&address).is_ok() {
        thread::sleep(Duration::from_millis(10));
    }
    gateway.signal(Signal::HUP);
    far.write_all(b"!").unwrap();
    drop(far);
    assert_eq!(read_to_end(&mut client), (b"!".to_vec(), Ending::Eof));
    drop(client);
    pair.gateway.running.wait().succeeded();
}

/// A complete `ClientHello`.
fn client_hello() -> Vec<u8> {
    let provider = rustls::crypto::ring::default_provider().into();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    // A client that speaks HTTP/1.1 would get a response in TLS.
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut client =
        rustls::ClientConnection::new(config.into(), IpAddr::V4(Ipv4Addr::LOCALHOST).into())
            .unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}
