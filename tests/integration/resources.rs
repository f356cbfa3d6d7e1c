//! Resource use: a thousand starts, many tunnels and slow readers leave no memory, threads or
//! descriptors behind. The long variant is `cargo bench -- soak` (see Endurance in the manual).

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use upstreamproxy::config::When;
use upstreamproxy::gateway::{GatewayConfig, Sessions};
use upstreamproxy::{Config, start, start_gateway};

use crate::support::{
    EchoServer, Ending, GatewayProcess, RelayProcess, ResourceCounts, TempHome, TestCa, connect,
    exchange, finish_within, long_tests_enabled, pattern, repetitions, test_subprocess,
};

/// If set, the test runs as the host process.
const HOST: &str = "UPSTREAMPROXY_TEST_RESOURCES_HOST";
/// The time limit for a thousand starts on a loaded machine, or ten thousand in the long variant.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// How much memory may grow between an early round and the last one. A leak of 100 bytes per round
/// would be less, but the allocator does not return all freed memory.
const GROWTH_KIB: u64 = 6 << 10;

/// The resident memory of a process in KiB.
#[track_caller]
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.unwrap().parse().unwrap()
}

#[track_caller]
fn assert_little_growth(before: u64, now: u64) {
    let growth = now.saturating_sub(before);
    assert!(growth < GROWTH_KIB, "from {before} to {now} KiB");
}

#[test]
fn a_thousand_starts_and_stops_in_one_process_leak_nothing() {
    if std::env::var_os(HOST).is_some() {
        return host();
    }
    let home = TempHome::new();
    let test = "resources::a_thousand_starts_and_stops_in_one_process_leak_nothing";
    let mut subprocess = test_subprocess(&home, test, HOST);
    if long_tests_enabled() {
        subprocess.env("UPSTREAMPROXY_TEST_LONG", "1");
    }
    let finished = finish_within(TIMEOUT, &mut subprocess).succeeded();
    let output = finished.text();
    assert!(
        output.contains("nothing left"),
        "the host did not run: {finished:#?}"
    );
    // For long runs with --nocapture.
    println!(
        "{}",
        output.lines().find(|l| l.contains("nothing left")).unwrap()
    );
}

/// Starts and stops a relay repeatedly in front of a running gateway. Every tenth relay carries a
/// tunnel.
fn host() {
    let rounds = repetitions(1000, 10_000);
    let home = TempHome::new();
    let roots = home.write("roots.pem", TestCa::new("the only root").pem, 0o644);
    let token = b"token-of-the-test";
    let settings = GatewayConfig::new(Sessions::parse("session token-of-the-test").unwrap())
        .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .system_ca(&roots)
        .allow_private(true);
    let gateway = start_gateway(settings).unwrap();
    let config = Config::default()
        .when(When::Always)
        .base_url(gateway.base_url().parse().unwrap())
        .session_id("session".parse().unwrap())
        .token_file(home.token_file())
        .ca_bundle(home.join("ca-bundle.crt"))
        .system_ca(roots);
    let target = EchoServer::start();
    let pid = std::process::id();
    let settle = rounds / 5;
    let (mut counts, mut memory) = (ResourceCounts::of(pid).unwrap(), 0);
    for round in 0..rounds {
        write_token(&home.token_file(), token);
        start_and_stop(&config, (round % 10 == 0).then_some(&target));
        assert!(!home.token_file().exists());
        if round == settle {
            counts = ResourceCounts::of(pid).unwrap();
            memory = resident(pid);
        }
    }
    counts.wait_until_restored(pid);
    let now = resident(pid);
    assert_little_growth(memory, now);
    println!("{rounds} starts, nothing left: {memory} KiB after {settle}, {now} KiB now");
}

fn start_and_stop(config: &Config, target: Option<&EchoServer>) {
    let relay = start(config).into_result().unwrap();
    if let Some(target) = target {
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        assert_eq!(answer.status, 200, "{answer:?}");
        let received = exchange(&mut stream, b"payload".to_vec());
        assert_eq!(received, (b"payload".to_vec(), Ending::Eof));
    }
    assert_eq!(relay.shutdown(Duration::from_secs(10)).cut, 0);
}

fn write_token(path: &Path, token: &[u8]) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true);
    let mut file = file.mode(0o600).open(path);
    file.as_mut().unwrap().write_all(token).unwrap();
}

#[test]
fn many_tunnels_with_every_kind_of_end_leak_no_threads_descriptors_or_memory() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let port = relay.port();
    let pids = [relay.running.pid(), gateway.running.pid()];
    let churn = |count: usize| {
        thread::scope(|scope| {
            for worker in 0..8 {
                let target = &target;
                scope.spawn(move || {
                    for number in 0..count / 8 {
                        open_and_end_tunnel(port, &target.authority(), worker + number);
                    }
                });
            }
        });
    };
    churn(repetitions(800, 8000));
    if pids.iter().any(|&pid| ResourceCounts::of(pid).is_none()) {
        return;
    }
    // Memory that is retained after the first half is retained after the second.
    let before = pids.map(resident);
    let idle = ResourceCounts {
        threads: 4,
        descriptors: 16,
    };
    churn(repetitions(800, 8000));
    for (pid, before) in pids.into_iter().zip(before) {
        idle.wait_until_restored(pid);
        assert_little_growth(before, resident(pid));
    }
}

/// Opens a tunnel and ends it in one of the four ways that a client can choose.
fn open_and_end_tunnel(port: u16, target: &str, number: usize) {
    let (mut stream, answer) = connect(port, target);
    assert_eq!(answer.status, 200, "{answer:?}");
    match number % 4 {
        0 => {
            let received = exchange(&mut stream, pattern(3000));
            assert_eq!(received, (pattern(3000), Ending::Eof));
        }
        1 => stream.shutdown(Shutdown::Both).unwrap(),
        2 => drop(stream),
        // Closes with unread bytes, so the kernel sends a reset.
        _ => stream.write_all(&pattern(3000)).unwrap(),
    }
}

#[test]
fn peers_that_do_not_read_use_a_bounded_amount_of_memory() {
    const TUNNELS: u64 = 10;
    /// The maximum for one tunnel at one end: a buffer per direction in each layer, and a share of
    /// the pool.
    const EACH_KIB: u64 = 4 << 10;
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let pids = [relay.running.pid(), gateway.running.pid()];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let before = pids.map(resident);
    let streams: Vec<_> = (0..TUNNELS)
        .map(|_| {
            let (client, answer) = connect(relay.port(), &target);
            assert_eq!(answer.status, 200, "{answer:?}");
            (client, listener.accept().unwrap().0)
        })
        .collect();
    thread::scope(|scope| {
        for (client, far) in &streams {
            for stream in [client, far] {
                scope.spawn(move || fill(stream));
            }
        }
    });
    for (pid, before) in pids.into_iter().zip(before) {
        let now = resident(pid);
        assert!(
            now < before + TUNNELS * EACH_KIB,
            "from {before} to {now} KiB"
        );
    }
    drop(streams);
}

/// Writes until the peer accepts no more data for a second.
fn fill(mut stream: &TcpStream) {
    let data = pattern(1 << 20);
    let mut sent = 0;
    stream
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    loop {
        match stream.write(&data) {
            Ok(written) => sent += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 512 << 20, "the writer is never blocked");
    }
}
