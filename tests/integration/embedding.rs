//! A host that embeds the library: no async runtime; everything starts and stops a hundred times in
//! one process and leaks nothing.
//!
//! The test runs in a separate process, because the test harness starts and ends threads. That
//! process counts its own resources: a process may always inspect itself, even if it is
//! non-dumpable.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use upstreamproxy::{Config, start, start_embedded};

use crate::support::{
    Ending, ResourceCounts, TempHome, TestCa, connect, exchange, finish_within, pattern,
    test_subprocess,
};

/// If set, the test runs as the host process.
const HOST: &str = "UPSTREAMPROXY_TEST_EMBEDDING_HOST";
/// How often the host starts and stops everything.
const ROUNDS: usize = 100;
/// More than one chunk of the wire format in each direction.
const LENGTH: usize = 1 << 20;
/// The time limit for a hundred rounds on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(300);

#[test]
fn a_hundred_starts_and_stops_in_one_process_leak_no_thread_and_no_descriptor() {
    if std::env::var_os(HOST).is_some() {
        return host();
    }
    let home = TempHome::new();
    let test =
        "embedding::a_hundred_starts_and_stops_in_one_process_leak_no_thread_and_no_descriptor";
    let mut subprocess = test_subprocess(&home, test, HOST);
    let finished = finish_within(TIMEOUT, &mut subprocess).succeeded();
    assert!(
        finished.text().contains("a hundred rounds, nothing left"),
        "the host did not run: {finished:#?}"
    );
}

/// The work of the host process.
fn host() {
    let home = TempHome::new();
    let roots = home.write("roots.pem", TestCa::new("the only root").pem, 0o644);
    let (target, ended) = start_echo_server();
    let before = counts();
    for round in 0..ROUNDS {
        start_and_stop(&target, &roots);
        ended.recv().unwrap();
        assert_eq!(counts(), before, "after round {round}");
    }
    println!("a hundred rounds, nothing left");
}

/// Starts a gateway and a relay, sends bytes both ways through a tunnel, and stops everything.
fn start_and_stop(target: &str, roots: &Path) {
    let config = Config::default().system_ca(roots);
    let relay = start_embedded(&config).into_result().unwrap();
    let (mut tunnel, answer) = connect(relay.port(), target);
    assert_eq!(answer.status, 200, "{answer:?}");
    let sent = pattern(LENGTH);
    let (received, ending) = exchange(&mut tunnel, sent.clone());
    assert!(
        received == sent,
        "the received bytes differ from the sent bytes"
    );
    assert_eq!(ending, Ending::Eof);
    drop(tunnel);
    let stats = relay.stats();
    assert_eq!(
        (stats.tunnels, stats.bytes_up, stats.bytes_down),
        (1, LENGTH as u64, LENGTH as u64)
    );
    let report = relay.shutdown(Duration::from_secs(10));
    assert_eq!(report.cut, 0);
}

fn counts() -> ResourceCounts {
    ResourceCounts::of(std::process::id()).unwrap()
}

/// An echo server that serves one connection after another. It reports each connection that is
/// closed.
fn start_echo_server() -> (String, Receiver<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // A name instead of an address, so that the resolver's threads also start and end.
    let authority = format!("localhost:{}", listener.local_addr().unwrap().port());
    let (report, ended) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            echo_all(stream).unwrap();
            if report.send(()).is_err() {
                break;
            }
        }
    });
    (authority, ended)
}

fn echo_all(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

#[test]
fn one_configuration_serves_many_starts_and_keeps_the_exceptions_of_the_host() {
    let home = TempHome::new();
    let roots = home.write("roots.pem", TestCa::new("the only root").pem, 0o644);
    let embedded = [
        ("UPSTREAMPROXY_EMBEDDED", "1"),
        ("NO_PROXY", "environment.test"),
    ];
    let mut without_environment = Config::default();
    without_environment.set("embedded", "true").unwrap();
    for config in [
        Config::from_environment(embedded.into_iter().collect()),
        without_environment,
    ] {
        let config = config.system_ca(&roots).harden(false);
        for _ in 0..3 {
            let relay = start(&config).into_result().unwrap();
            let mut command = Command::new("sh");
            command
                .args(["-c", "echo $NO_PROXY"])
                .env("NO_PROXY", "host.test");
            relay.apply_to(&mut command);
            let printed = String::from_utf8(command.output().unwrap().stdout).unwrap();
            assert!(printed.contains("host.test"), "{printed}");
            relay.shutdown(Duration::from_secs(10));
        }
    }
}
