//! Resources: what a thousand lives, many tunnels and slow readers leave in memory, threads and descriptors. The long form is
//! `cargo bench -- soak` (the manual, Endurance).

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

/// Tells the test, run again in a process of its own, to be the host.
const HOST: &str = "UPSTREAMPROXY_TEST_RESOURCES_HOST";
/// How long a thousand starts may take on a loaded machine, and ten thousand.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// What a process may hold more after very many rounds than after some: less than a leak of 100 bytes a round would be, were
/// it not for the allocator, which keeps what it once had.
const GROWTH_KIB: u64 = 6 << 10;

/// Resident memory in KiB.
#[track_caller]
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.unwrap().parse().unwrap()
}

#[track_caller]
fn grew_little(before: u64, now: u64) {
    let growth = now.saturating_sub(before);
    assert!(growth < GROWTH_KIB, "from {before} to {now} KiB");
}

#[test]
fn a_thousand_starts_and_stops_in_one_process_leave_nothing() {
    if std::env::var_os(HOST).is_some() {
        return host();
    }
    let home = TempHome::new();
    let test = "resources::a_thousand_starts_and_stops_in_one_process_leave_nothing";
    let mut again = test_subprocess(&home, test, HOST);
    if long_tests_enabled() {
        again.env("UPSTREAMPROXY_TEST_LONG", "1");
    }
    let finished = finish_within(TIMEOUT, &mut again).succeeded();
    let said = finished.text();
    assert!(said.contains("nothing left"), "did not run: {finished:#?}");
    // For whoever runs the long form with --nocapture.
    println!(
        "{}",
        said.lines().find(|l| l.contains("nothing left")).unwrap()
    );
}

/// The host's own work: a relay comes and goes before a gateway that stays; every tenth time somebody uses it.
fn host() {
    let rounds = repetitions(1000, 10_000);
    let home = TempHome::new();
    let roots = home.write("roots.pem", TestCa::new("the only root").pem, 0o644);
    let token = b"token-of-the-test";
    let mut settings = GatewayConfig::default();
    settings.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    settings.sessions = Sessions::parse("session token-of-the-test").unwrap();
    settings.system_ca = Some(roots.clone());
    settings.allow_private = true;
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
        live(&config, (round % 10 == 0).then_some(&target));
        assert!(!home.token_file().exists());
        if round == settle {
            counts = ResourceCounts::of(pid).unwrap();
            memory = resident(pid);
        }
    }
    counts.wait_until_restored(pid);
    let now = resident(pid);
    grew_little(memory, now);
    println!("{rounds} lives, nothing left: {memory} KiB after {settle}, {now} KiB now");
}

fn live(config: &Config, target: Option<&EchoServer>) {
    let relay = start(config).into_result().unwrap();
    if let Some(target) = target {
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        assert_eq!(answer.status, 200, "{answer:?}");
        let came = exchange(&mut stream, b"a life".to_vec());
        assert_eq!(came, (b"a life".to_vec(), Ending::Eof));
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
fn many_tunnels_of_every_end_leave_no_thread_no_descriptor_and_no_memory() {
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
                        one(port, &target.authority(), worker + number);
                    }
                });
            }
        });
    };
    churn(repetitions(800, 8000));
    if pids.iter().any(|&pid| ResourceCounts::of(pid).is_none()) {
        return;
    }
    // What is on its way out after the first half is so after the second.
    let before = pids.map(resident);
    let idle = ResourceCounts {
        threads: 4,
        descriptors: 16,
    };
    churn(repetitions(800, 8000));
    for (pid, before) in pids.into_iter().zip(before) {
        idle.wait_until_restored(pid);
        grew_little(before, resident(pid));
    }
}

/// A tunnel with one of the ends that a client can make of it.
fn one(port: u16, target: &str, number: usize) {
    let (mut stream, answer) = connect(port, target);
    assert_eq!(answer.status, 200, "{answer:?}");
    match number % 4 {
        0 => {
            let came = exchange(&mut stream, pattern(3000));
            assert_eq!(came, (pattern(3000), Ending::Eof));
        }
        1 => stream.shutdown(Shutdown::Both).unwrap(),
        2 => drop(stream),
        // Left with bytes on their way, and so by a reset.
        _ => stream.write_all(&pattern(3000)).unwrap(),
    }
}

#[test]
fn readers_that_do_not_read_cost_a_bounded_amount_of_memory() {
    const TUNNELS: u64 = 10;
    /// What one tunnel may hold at one end: a buffer each way in each layer, and some of the pool's.
    const EACH_KIB: u64 = 4 << 10;
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let pids = [relay.running.pid(), gateway.running.pid()];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let before = pids.map(resident);
    let held: Vec<_> = (0..TUNNELS)
        .map(|_| {
            let (client, answer) = connect(relay.port(), &target);
            assert_eq!(answer.status, 200, "{answer:?}");
            (client, listener.accept().unwrap().0)
        })
        .collect();
    thread::scope(|scope| {
        for (client, far) in &held {
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
    drop(held);
}

/// Writes until nothing has been taken for a while.
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
        assert!(sent < 512 << 20, "nothing held it back");
    }
}
