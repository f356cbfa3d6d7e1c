//! Silence: who has vanished is found, who is only silent, stopped or slow is not taken for that.
//!
//! The intervals are short here, and the default ones in the long form (the manual, Endurance).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use tungstenite::Message;

use crate::stream::{Target, Version1, chunk};
use crate::support::{
    EchoServer, Ending, GatewayProcess, HalfCloseServer, Network, RelayProcess, Running, SESSION,
    TIMEOUT, TOKEN, TempHome, TestCa, connect, exchange, long_tests_enabled, pattern, read_to_end,
    upstreamproxy,
};

/// Many of these pass in the blink of an eye.
const SHORT: [&str; 2] = ["--keepalive", "200ms"];
/// Over what is waited for with the default interval: three times 25 s.
const LONG_TIMEOUT: Duration = Duration::from_secs(180);
/// Far over what the buffers on the way hold.
const TOO_MUCH: usize = 256 << 20;

/// What a client sends, and the end if it was met there.
type Say<'a> = &'a dyn Fn(&mut TcpStream) -> Option<ErrorKind>;

/// The options of the two ends.
fn keepalive() -> &'static [&'static str] {
    if long_tests_enabled() { &[] } else { &SHORT }
}

/// Far over three short intervals; in the long form as long as `minutes`.
fn a_while(minutes: u64) -> Duration {
    if long_tests_enabled() {
        Duration::from_secs(60 * minutes)
    } else {
        Duration::from_millis(2500)
    }
}

/// A tunnel to `target`, with more patience than usual.
#[track_caller]
fn tunnel(port: u16, target: &str) -> TcpStream {
    let (stream, answer) = connect(port, target);
    assert_eq!(answer.status, 200, "{answer:?}");
    stream.set_read_timeout(Some(LONG_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(LONG_TIMEOUT)).unwrap();
    stream
}

/// Says how long it took to find out, for the manual.
fn found(what: &str, since: Instant) {
    println!("{what}: found after {:.1} s", since.elapsed().as_secs_f64());
}

/// A gateway at the far end and the option by which a relay at the near one trusts it.
fn gateway_at_the_far_end(network: &Network, home: &TempHome) -> (Running, String, String) {
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

/// Waits for the connection's end without reading what came before it.
#[track_caller]
fn ends_unread(stream: &TcpStream) {
    let mut over = [PollFd::new(stream, PollFlags::empty())];
    let timeout = Timespec::try_from(LONG_TIMEOUT).unwrap();
    assert!(poll(&mut over, Some(&timeout)).unwrap() > 0, "still there");
}

#[track_caller]
fn answers(stream: &mut TcpStream) {
    stream.write_all(b"there?").unwrap();
    let mut came = [0; 6];
    stream.read_exact(&mut came).unwrap();
    assert_eq!(&came, b"there?");
}

#[test]
fn a_gateway_that_vanishes_is_found_by_missed_pongs_and_so_is_a_relay() {
    let Some(network) = Network::connected() else {
        return;
    };
    let home = TempHome::new();
    let (gateway, base_url, trust) = gateway_at_the_far_end(&network, &home);
    let target = network.far(EchoServer::start);
    let options = [keepalive(), &[&trust]].concat();
    let relay = network.near(|| RelayProcess::start(&home, &base_url, &options));
    let mut stream = network.near(|| tunnel(relay.port(), &target.authority()));
    answers(&mut stream);

    network.disconnect();
    let pulled = Instant::now();
    assert_eq!(read_to_end(&mut stream), (vec![], Ending::Reset));
    found("a vanished gateway", pulled);
    let deadline = Instant::now() + LONG_TIMEOUT;
    while !gateway.stderr().contains("broken by the relay") && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    found("a vanished relay", pulled);
    network.reconnect();
    // For a while its kernel remembers that nobody was there.
    let mut again = loop {
        let (stream, answer) = network.near(|| connect(relay.port(), &target.authority()));
        if answer.status == 200 {
            break stream;
        }
        assert!(Instant::now() < deadline, "the relay goes on: {answer:?}");
    };
    answers(&mut again);
    drop(again);

    let (near, far) = (relay.stop().stderr, gateway.stop().stderr);
    let why = "no sign of life for three keepalive intervals";
    for (log, who) in [(near, "gateway"), (far, "relay")] {
        assert!(
            log.contains(&format!("broken by the {who}: {why}")),
            "{log}"
        );
    }
}

#[test]
fn a_gateway_that_vanishes_while_the_client_does_not_read_is_found_too() {
    let Some(network) = Network::connected() else {
        return;
    };
    let home = TempHome::new();
    let (_gateway, base_url, trust) = gateway_at_the_far_end(&network, &home);
    // Sends until nothing goes any more, and says so.
    let (target, stuck) = network.far(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap().to_string();
        let (tell, stuck) = channel();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .set_write_timeout(Some(Duration::from_secs(2)))
                .unwrap();
            let data = pattern(1 << 20);
            while stream.write_all(&data).is_ok() {}
            tell.send(stream)
        });
        (target, stuck)
    });
    let options = [keepalive(), &[&trust]].concat();
    let relay = network.near(|| RelayProcess::start(&home, &base_url, &options));
    let client = network.near(|| tunnel(relay.port(), &target));
    let held = stuck.recv_timeout(TIMEOUT).unwrap();
    network.disconnect();
    let pulled = Instant::now();
    ends_unread(&client);
    found("a vanished gateway of a client that does not read", pulled);
    ends_unread(&held);
    found("its vanished relay", pulled);
}

#[test]
fn a_target_that_vanishes_is_found_silent_or_with_bytes_on_their_way() {
    let Some(network) = Network::connected() else {
        return;
    };
    let home = TempHome::new();
    let listener = network.far(|| std::net::TcpListener::bind((Network::FAR, 0)).unwrap());
    let target = listener.local_addr().unwrap().to_string();
    let gateway = network.near(|| GatewayProcess::start(&home, keepalive()));
    let relay = network.near(|| RelayProcess::start(&home, &gateway.base_url(), keepalive()));
    let data = pattern(1 << 20);
    // After the cable was pulled.
    let cases: [(&str, Say); 3] = [
        ("silent", &|_| None),
        ("one byte", &|client| {
            client.write_all(b"?").err().map(|e| e.kind())
        }),
        ("more than goes", &|client| {
            let mut sent = 0;
            while sent < TOO_MUCH {
                match client.write(&data) {
                    Ok(written) => sent += written,
                    Err(error) => return Some(error.kind()),
                }
            }
            panic!("nothing held the client back");
        }),
    ];
    for (case, say) in cases {
        let mut client = network.near(|| tunnel(relay.port(), &target));
        let (mut far, _) = listener.accept().unwrap();
        client.write_all(b"!").unwrap();
        far.read_exact(&mut [0]).unwrap();
        network.disconnect();
        let pulled = Instant::now();
        let ending = say(&mut client).or_else(|| client.read(&mut [0]).err().map(|e| e.kind()));
        let ending = ending.unwrap_or_else(|| panic!("{case}: an end in order"));
        assert!(
            matches!(ending, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{case}: {ending:?}"
        );
        found(&format!("a vanished target, {case}"), pulled);
        network.reconnect();
    }
    let log = gateway.running.stop().stderr;
    assert_eq!(log.matches("broken by the target").count(), 3, "{log}");
}

#[test]
fn anything_that_comes_is_a_sign_of_life() {
    let (home, gateway) = (TempHome::new(), Version1::start());
    let relay = RelayProcess::start(&home, &gateway.base_url(), &SHORT);
    let (mut client, mut ws) = gateway.tunnel(&relay);
    // It never reads, and so never answers a ping; but it talks: twenty intervals of that.
    let mut came = [0; 1];
    for _ in 0..40 {
        thread::sleep(Duration::from_millis(100));
        ws.send(chunk(b"x")).unwrap();
        client.read_exact(&mut came).unwrap();
    }
    for _ in 0..40 {
        thread::sleep(Duration::from_millis(100));
        ws.send(Message::Pong("unasked".into())).unwrap();
    }
    ws.send(chunk(b"y")).unwrap();
    client.read_exact(&mut came).unwrap();
    assert_eq!(&came, b"y");
    // Then it stops.
    assert_eq!(read_to_end(&mut client), (vec![], Ending::Reset));
}

#[test]
fn a_process_that_was_stopped_and_goes_on_loses_nothing() {
    // The one that is not stopped is patient, as it is by default: a minute is less than its three intervals.
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, keepalive());
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    survives_a_stop(&relay, &gateway.running);
    drop((relay, gateway));

    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), keepalive());
    survives_a_stop(&relay, &relay.running);
}

/// Stops `process` in the middle of a transfer and beside a silent tunnel, for far more than its own three intervals.
fn survives_a_stop(relay: &RelayProcess, process: &Running) {
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
    let (came, ending) = thread::scope(|scope| {
        let answered = scope.spawn(|| {
            let (all, _) = read_to_end(&mut far);
            far.write_all(&HalfCloseServer::answer(&all)).unwrap();
            far.shutdown(Shutdown::Write).unwrap();
        });
        let sent = scope.spawn(|| exchange(&mut stream, rest));
        thread::sleep(a_while(1));
        process.signal(Signal::CONT);
        answered.join().unwrap();
        sent.join().unwrap()
    });
    assert_eq!(came, HalfCloseServer::answer(&payload));
    assert_eq!(ending, Ending::Eof);
    silent.write_all(b"?").unwrap();
    silent_far.read_exact(&mut [0]).unwrap();
}

#[test]
fn silent_tunnels_stay_for_as_long_as_pings_are_answered() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, keepalive());
    let relay = RelayProcess::start(&home, &gateway.base_url(), keepalive());
    let target = Target::start();
    let mut tunnels: Vec<_> = (0..50).map(|_| target.tunnel(relay.port())).collect();
    thread::sleep(a_while(10));
    for (client, far) in &mut tunnels {
        far.write_all(b"still there").unwrap();
        let mut came = [0; 11];
        client.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"still there");
    }
}
