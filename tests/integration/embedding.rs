//! A host that embeds the library: no async runtime, one process, the whole system a hundred times over, and nothing left.
//!
//! The work is done in a process of its own, as the test harness has threads that come and go. It counts from inside, where
//! also a process that has made itself non-dumpable may look, whoever it belongs to.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use upstreamproxy::{Config, EmbeddedOptions, start_embedded};

use crate::support::{
    Ending, ResourceCounts, TempHome, TestCa, connect, exchange, finish_within, pattern,
    test_subprocess,
};

/// Tells the test, run again in a process of its own, to be the host.
const HOST: &str = "UPSTREAMPROXY_TEST_EMBEDDING_HOST";
/// How often the host starts and stops everything.
const ROUNDS: usize = 100;
/// More than one chunk of the wire in each direction.
const LENGTH: usize = 1 << 20;
/// How long a hundred rounds may take on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(300);

#[test]
fn a_hundred_lives_in_one_process_leave_no_thread_and_no_descriptor() {
    if std::env::var_os(HOST).is_some() {
        return host();
    }
    let home = TempHome::new();
    let test = "embedding::a_hundred_lives_in_one_process_leave_no_thread_and_no_descriptor";
    let mut again = test_subprocess(&home, test, HOST);
    let finished = finish_within(TIMEOUT, &mut again).succeeded();
    assert!(
        finished.text().contains("a hundred lives, nothing left"),
        "the host did not run: {finished:#?}"
    );
}

/// The host's own work.
fn host() {
    let home = TempHome::new();
    let roots = home.write("roots.pem", TestCa::new("the only root").pem, 0o644);
    let (target, ended) = echo();
    let before = counts();
    for round in 0..ROUNDS {
        live(&target, &roots);
        ended.recv().unwrap();
        assert_eq!(counts(), before, "after round {round}");
    }
    println!("a hundred lives, nothing left");
}

/// One life: a gateway, a relay in front of it, a tunnel with bytes both ways, and the end of it all.
fn live(target: &str, roots: &Path) {
    let options = EmbeddedOptions {
        system_ca: Some(roots.to_owned()),
        ..EmbeddedOptions::default()
    };
    let config = Config::default().system_ca(roots);
    let relay = start_embedded(&config, options).into_result().unwrap();
    let (mut tunnel, answer) = connect(relay.port(), target);
    assert_eq!(answer.status, 200, "{answer:?}");
    let sent = pattern(LENGTH);
    let (received, ending) = exchange(&mut tunnel, sent.clone());
    assert!(
        received == sent,
        "the bytes that came back are not those that went"
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

/// A server that sends everything back, one connection after the other; it tells when one is over and closed.
fn echo() -> (String, Receiver<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // By name, so that the resolver's threads come and go too.
    let authority = format!("localhost:{}", listener.local_addr().unwrap().port());
    let (tell, ended) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            send_back(stream).unwrap();
            if tell.send(()).is_err() {
                break;
            }
        }
    });
    (authority, ended)
}

fn send_back(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}
