//! Keepalive: a vanished peer is detected; a peer that is only silent, stopped, or slow is not
//! taken for a vanished one.
//!
//! The keepalive intervals are short here. The long form of the tests uses the default intervals
//! (see Endurance in the manual).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use tungstenite::Message;

use crate::stream::{ScriptedUpstream, Target, chunk};
use crate::support::{
    EchoServer, Ending, GatewayProcess, HalfCloseServer, Network, RelayProcess, Running, SESSION,
    TIMEOUT, TOKEN, TempHome, TestCa, connect, exchange, long_tests_enabled, pattern, read_to_end,
    upstreamproxy,
};

/// A keepalive interval that keeps the tests short.
const SHORT: [&str; 2] = ["--keepalive", "200ms"];
/// Longer than detection takes with the default interval (three times 25 s).
const LONG_TIMEOUT: Duration = Duration::from_secs(180);
/// Far more than all buffers on the path can hold.
const TOO_MUCH: usize = 256 << 20;

/// What a client sends. Returns the error if sending already failed.
type Send<'a> = &'a dyn Fn(&mut TcpStream) -> Option<ErrorKind>;

/// The keepalive options of relay and gateway.
fn keepalive() -> &'static [&'static str] {
    if long_tests_enabled() { &[] } else { &SHORT }
}

/// Far more than three short intervals; in the long form, this number of minutes.
fn long_pause(minutes: u64) -> Duration {
    if long_tests_enabled() {
        Duration::from_secs(60 * minutes)
    } else {
        Duration::from_millis(2500)
    }
}

/// Opens a tunnel to `target` with long read and write timeouts.
#[track_caller]
fn tunnel(port: u16, target: &str) -> TcpStream {
    let (stream, answer) = connect(port, target);
    assert_eq!(answer.status, 200, "{answer:?}");
    stream.set_read_timeout(Some(LONG_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(LONG_TIMEOUT)).unwrap();
    stream
}

/// Prints how long the detection took, for the manual.
fn print_detected(what: &str, since: Instant) {
    println!(
        "{what}: detected after {:.1} s",
        since.elapsed().as_secs_f64()
    );
}

/// Starts a gateway on the far side of the network. Returns it, its base URL, and the option that
/// makes a relay trust it.
fn far_gateway(network: &Network, home: &TempHome) -> (Running, String, String) {
    let ca = TestCa::new("root of the far gateway");
    let (certificate, key) = ca.issue(Network::FAR);
    let certificate = home.write("gateway.pem", certificate, 0o644);
    let key = home.write("gateway.key", key, 0o600);
    let trust = home.write("gateway-root.pem", &ca.pem, 0o644);
    let sessions = home.write("sessions", format!("{SESSION} {TOKEN}\n"), 0o600);
    let mut command = upstreamproxy(home);
    command
        .args(["gateway", "--allow-private", "--intercept", "none"])
        .args(["--listen", &format!("{}:0", Network::FAR)])
        .arg("--sessions")
        .arg(sessions)
        .arg("--tls-cert")
        .arg(certificate)
        .arg("--tls-key")
        .arg(key)
        .args(keepalive());
    let (running, ready) = network.far(|| Running::ready(&mut command));
    let base_url = ready["base_url"].as_str().unwrap().to_owned();
    (
        running,
        base_url,
        format!("--upstream-ca={}", trust.display()),
    )
}

/// Waits until the connection is broken, without reading.
#[track_caller]
fn wait_until_broken(stream: &TcpStream) {
    let mut broken = [PollFd::new(stream, PollFlags::empty())];
    let timeout = Timespec::try_from(LONG_TIMEOUT).unwrap();
    assert!(
        poll(&mut broken, Some(&timeout)).unwrap() > 0,
        "the connection is still open"
    );
}

#[track_caller]
fn assert_echo(stream: &mut TcpStream) {
    stream.write_all(b"there?").unwrap();
    let mut received = [0; 6];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"there?");
}

#[test]
fn a_vanished_gateway_and_a_vanished_relay_are_detected_by_missed_pongs() {
    let Some(network) = Network::connected() else {
        return;
    };
    let home = TempHome::new();
    let (gateway, base_url, trust) = far_gateway(&network, &home);
    let target = network.far(EchoServer::start);
    let options = [keepalive(), &[&trust]].concat();
    let relay = network.near(|| RelayProcess::start(&home, &base_url, &options));
    let mut stream = network.near(|| tunnel(relay.port(), &target.authority()));
    assert_echo(&mut stream);

    network.disconnect();
    let disconnected = Instant::now();
    assert_eq!(read_to_end(&mut stream), (vec![], Ending::Reset));
    print_detected("a vanished gateway", disconnected);
    let deadline = Instant::now() + LONG_TIMEOUT;
    while !gateway.stderr().contains("broken by the relay") && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    print_detected("a vanished relay", disconnected);
    network.reconnect();
    // For some time its kernel remembers that the host was unreachable.
    let mut again = loop {
        let (stream, answer) = network.near(|| connect(relay.port(), &target.authority()));
        if answer.status == 200 {
            break stream;
        }
        assert!(
            Instant::now() < deadline,
            "the relay does not recover: {answer:?}"
        );
    };
    assert_echo(&mut again);
    drop(again);

    let (near, far) = (relay.stop().stderr, gateway.stop().stderr);
    let why = "no sign of life for three keepalive intervals";
    for (log, peer) in [(near, "gateway"), (far, "relay")] {
        assert!(
            log.contains(&format!("broken by the {peer}: {why}")),
            "{log}"
        );
    }
}

#[test]
fn a_vanished_gateway_is_detected_while_the_client_does_not_read() {
    let Some(network) = Network::connected() else {
        return;
    };
    let home = TempHome::new();
    let (_gateway, base_url, trust) = far_gateway(&network, &home);
    // The target sends until its socket accepts no more, then passes the socket to the test.
    let (target, stuck) = network.far(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap().to_string();
        let (stuck_sender, stuck) = channel();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .set_write_timeout(Some(Duration::from_secs(2)))
                .unwrap();
            let data = pattern(1 << 20);
            while stream.write_all(&data).is_ok() {}
            stuck_sender.send(stream)
        });
        (target, stuck)
    });
    let options = [keepalive(), &[&trust]].concat();
    let relay = network.near(|| RelayProcess::start(&home, &base_url, &options));
    let client = network.near(|| tunnel(relay.port(), &target));
    let target_stream = stuck.recv_timeout(TIMEOUT).unwrap();
    network.disconnect();
    let disconnected = Instant::now();
    wait_until_broken(&client);
    print_detected(
        "a vanished gateway while the client does not read",
        disconnected,
    );
    wait_until_broken(&target_stream);
    print_detected("the vanished relay of this gateway", disconnected);
}

#[test]
fn a_vanished_target_is_detected_idle_or_with_unacknowledged_bytes() {
    let Some(network) = Network::connected() else {
        return;
    };
    let home = TempHome::new();
    let listener = network.far(|| std::net::TcpListener::bind((Network::FAR, 0)).unwrap());
    let target = listener.local_addr().unwrap().to_string();
    let gateway = network.near(|| GatewayProcess::start(&home, keepalive()));
    let relay = network.near(|| RelayProcess::start(&home, &gateway.base_url(), keepalive()));
    let data = pattern(1 << 20);
    // What the client sends after the network was disconnected.
    let cases: [(&str, Send); 3] = [
        ("nothing sent", &|_| None),
        ("one byte", &|client| {
            client.write_all(b"?").err().map(|e| e.kind())
        }),
        ("more than the buffers hold", &|client| {
            let mut sent = 0;
            while sent < TOO_MUCH {
                match client.write(&data) {
                    Ok(written) => sent += written,
                    Err(error) => return Some(error.kind()),
                }
            }
            panic!("no backpressure reached the client");
        }),
    ];
    for (case, send) in cases {
        let mut client = network.near(|| tunnel(relay.port(), &target));
        let (mut far, _) = listener.accept().unwrap();
        client.write_all(b"!").unwrap();
        far.read_exact(&mut [0]).unwrap();
        network.disconnect();
        let disconnected = Instant::now();
        let ending = send(&mut client).or_else(|| client.read(&mut [0]).err().map(|e| e.kind()));
        let ending = ending.unwrap_or_else(|| panic!("{case}: the tunnel ended cleanly"));
        assert!(
            matches!(ending, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{case}: {ending:?}"
        );
        print_detected(&format!("a vanished target, {case}"), disconnected);
        network.reconnect();
    }
    let log = gateway.running.stop().stderr;
    assert_eq!(log.matches("broken by the target").count(), 3, "{log}");
}

#[test]
fn any_received_frame_counts_as_activity() {
    let (home, gateway) = (TempHome::new(), ScriptedUpstream::start(1));
    let relay = RelayProcess::start(&home, &gateway.base_url(), &SHORT);
    let (mut client, mut ws) = gateway.tunnel(&relay);
    // The gateway never reads, so it answers no ping. But it sends, for twenty intervals.
    let mut received = [0; 1];
    for _ in 0..40 {
        thread::sleep(Duration::from_millis(100));
        ws.send(chunk(b"x")).unwrap();
        client.read_exact(&mut received).unwrap();
    }
    for _ in 0..40 {
        thread::sleep(Duration::from_millis(100));
        ws.send(Message::Pong("unasked".into())).unwrap();
    }
    ws.send(chunk(b"y")).unwrap();
    client.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"y");
    // Then it stops sending.
    assert_eq!(read_to_end(&mut client), (vec![], Ending::Reset));
}

#[test]
fn a_process_that_is_stopped_and_continued_loses_no_byte() {
    // The process that is not stopped keeps the default interval: the pause of up to a minute is
    // shorter than three of its intervals.
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, keepalive());
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    assert_survives_a_stop(&relay, &gateway.running);
    drop((relay, gateway));

    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), keepalive());
    assert_survives_a_stop(&relay, &relay.running);
}

/// Stops `process` during a transfer and with an idle tunnel open, for far more than its three
/// keepalive intervals.
fn assert_survives_a_stop(relay: &RelayProcess, process: &Running) {
    let target = Target::start();
    let pair = || {
        let pair = target.tunnel(relay.port());
        for stream in [&pair.0, &pair.1] {
            stream.set_read_timeout(Some(LONG_TIMEOUT)).unwrap();
            stream.set_write_timeout(Some(LONG_TIMEOUT)).unwrap();
        }
        pair
    };
    let (mut silent, mut silent_far) = pair();
    let (mut stream, mut far) = pair();
    let payload = pattern(32 << 20);
    stream.write_all(&payload[..1 << 20]).unwrap();
    process.signal(Signal::STOP);
    let rest = payload[1 << 20..].to_vec();
    let (received, ending) = thread::scope(|scope| {
        let answered = scope.spawn(|| {
            let (all, _) = read_to_end(&mut far);
            far.write_all(&HalfCloseServer::answer(&all)).unwrap();
            far.shutdown(Shutdown::Write).unwrap();
        });
        let sent = scope.spawn(|| exchange(&mut stream, rest));
        thread::sleep(long_pause(1));
        process.signal(Signal::CONT);
        answered.join().unwrap();
        sent.join().unwrap()
    });
    assert_eq!(received, HalfCloseServer::answer(&payload));
    assert_eq!(ending, Ending::Eof);
    silent.write_all(b"?").unwrap();
    silent_far.read_exact(&mut [0]).unwrap();
}

#[test]
fn idle_tunnels_stay_open_as_long_as_pings_are_answered() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, keepalive());
    let relay = RelayProcess::start(&home, &gateway.base_url(), keepalive());
    let target = Target::start();
    let mut tunnels: Vec<_> = (0..50).map(|_| target.tunnel(relay.port())).collect();
    thread::sleep(long_pause(10));
    for (client, far) in &mut tunnels {
        far.write_all(b"still there").unwrap();
        let mut received = [0; 11];
        client.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"still there");
    }
}
