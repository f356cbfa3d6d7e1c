//! Loggers of hosts that misbehave: they panic, block, or call the library. None of them may keep
//! a relay from stopping.
//!
//! Each test runs in its own process, because a process has one logger.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use upstreamproxy::{Config, Disabled, Handle, StatsReader, start_embedded};

use crate::support::{
    EchoServer, Ending, TempHome, TestCa, connect, exchange, finish_within, pattern,
    test_subprocess,
};

/// If set, the test runs as the host process.
const HOST: &str = "UPSTREAMPROXY_TEST_LOGGER_HOST";
/// The last line of a host process that has done its work.
const DONE: &str = "the host has ended";
/// The time limit for a host process on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The thread of the host.
const THREAD: &str = "host";
const DRAIN: Duration = Duration::from_secs(1);

/// A logger that runs one function for each record.
struct HostLogger(fn(&Record<'_>));

impl Log for HostLogger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        (self.0)(record);
    }

    fn flush(&self) {}
}

/// Runs `host` in a process whose logger is `logger`.
fn in_host_process(test: &str, logger: fn(&Record<'_>), host: fn(&Path)) {
    let home = TempHome::new();
    if std::env::var_os(HOST).is_none() {
        let test = format!("host_loggers::{test}");
        let finished = finish_within(TIMEOUT, &mut test_subprocess(&home, &test, HOST)).succeeded();
        assert!(finished.text().contains(DONE), "{finished:#?}");
        return;
    }
    log::set_boxed_logger(Box::new(HostLogger(logger))).unwrap();
    log::set_max_level(LevelFilter::Debug);
    // Only the panics of the test itself are printed.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if thread::current().name() == Some(THREAD) {
            print(panic);
        }
    }));
    let roots = home.write("roots.pem", TestCa::new("the only root").pem, 0o644);
    let host = thread::Builder::new()
        .name(THREAD.into())
        .spawn(move || host(&roots));
    host.unwrap().join().unwrap();
    println!("{DONE}");
}

fn start(roots: &Path) -> Result<Handle, Disabled> {
    let config = Config::default().system_ca(roots);
    start_embedded(&config).into_result()
}

/// One tunnel, and one request that is refused.
fn use_relay(port: u16, target: &str) {
    let (mut tunnel, answer) = connect(port, target);
    assert_eq!(answer.status, 200, "{answer:?}");
    let sent = pattern(1000);
    assert_eq!(exchange(&mut tunnel, sent.clone()), (sent, Ending::Eof));
    let (_, answer) = connect(port, "127.0.0.1:0");
    assert_eq!(answer.status, 400, "{answer:?}");
}

/// Waits until no one accepts connections on `port`.
#[track_caller]
fn assert_closes(port: u16) {
    loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
            _ => thread::yield_now(),
        }
    }
}

/// The records so far, and the one that panics.
static RECORDS: AtomicUsize = AtomicUsize::new(0);
static PANICS_AT: AtomicUsize = AtomicUsize::new(usize::MAX);
/// The record that panicked is one of another crate.
static OF_A_DEPENDENCY: AtomicBool = AtomicBool::new(false);

#[test]
fn a_logger_that_panics_at_any_record_changes_nothing() {
    let logger = |record: &Record<'_>| {
        if RECORDS.fetch_add(1, SeqCst) == PANICS_AT.load(SeqCst) {
            OF_A_DEPENDENCY.store(!record.target().starts_with("upstreamproxy"), SeqCst);
            panic!("the logger panics");
        }
    };
    in_host_process(
        "a_logger_that_panics_at_any_record_changes_nothing",
        logger,
        |roots| {
            let target = EchoServer::start();
            let lifecycle = || {
                RECORDS.store(0, SeqCst);
                let relay = match start(roots) {
                    Ok(relay) => relay,
                    // Such a record interrupts set-up, which fails open.
                    Err(disabled) => {
                        assert!(OF_A_DEPENDENCY.load(SeqCst), "{disabled}");
                        return 0;
                    }
                };
                let port = relay.port();
                use_relay(port, &target.authority());
                let report = relay.shutdown(DRAIN);
                assert_eq!((report.stats.tunnels, report.cut), (1, 0));
                assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
                RECORDS.load(SeqCst)
            };
            let records = lifecycle();
            assert!(records > 3, "{records} records");
            for at in 0..records {
                PANICS_AT.store(at, SeqCst);
                lifecycle();
            }
        },
    );
}

static BLOCKS: AtomicBool = AtomicBool::new(false);

#[test]
fn a_logger_that_never_returns_does_not_keep_the_relay_from_stopping() {
    let logger = |_: &Record<'_>| {
        while BLOCKS.load(SeqCst) {
            thread::park();
        }
    };
    in_host_process(
        "a_logger_that_never_returns_does_not_keep_the_relay_from_stopping",
        logger,
        |roots| {
            let target = EchoServer::start();
            let relay = start(roots).unwrap();
            let port = relay.port();
            BLOCKS.store(true, SeqCst);
            for _ in 0..3 {
                use_relay(port, &target.authority());
            }
            let report = relay.shutdown(DRAIN);
            assert_eq!((report.stats.tunnels, report.stats.refused), (3, 3));
            assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
        },
    );
}

static TARGETS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

#[test]
fn the_target_of_a_line_is_the_relay_or_the_gateway_and_its_port() {
    let logger = |record: &Record<'_>| {
        let record = (record.target().to_owned(), record.args().to_string());
        TARGETS.lock().unwrap().push(record);
    };
    in_host_process(
        "the_target_of_a_line_is_the_relay_or_the_gateway_and_its_port",
        logger,
        |roots| {
            let target = EchoServer::start();
            let relays = [start(roots).unwrap(), start(roots).unwrap()];
            let ports = relays.each_ref().map(Handle::port);
            for relay in relays {
                use_relay(relay.port(), &target.authority());
                relay.shutdown(DRAIN);
            }
            let lines = TARGETS.lock().unwrap();
            for port in ports {
                let of_relay: Vec<_> = lines
                    .iter()
                    .filter(|(target, _)| *target == format!("upstreamproxy::relay::{port}"))
                    .map(|(_, text)| text.as_str())
                    .collect();
                for part in ["listens on", "bytes up", "refused 400"] {
                    let count = of_relay.iter().filter(|text| text.contains(part)).count();
                    assert_eq!(count, 1, "{part}: {of_relay:#?}");
                }
            }
            for (target, text) in lines.iter() {
                for name in ["relay", "gateway"] {
                    let prefix = format!("upstreamproxy::{name}::");
                    let port = target.strip_prefix(&prefix).map(str::parse::<u16>);
                    let named = text.starts_with(&format!("{name}: "));
                    assert!(!named || matches!(port, Some(Ok(_))), "{target}: {text}");
                }
            }
        },
    );
}

static STATS: OnceLock<StatsReader> = OnceLock::new();
static RELAY: Mutex<Option<Handle>> = Mutex::new(None);

#[test]
fn a_logger_may_read_the_counters_and_stop_the_relay() {
    let logger = |record: &Record<'_>| {
        if record.args().to_string().contains("bytes up")
            && let Some(stats) = STATS.get()
        {
            assert_eq!(stats.read().tunnels, 1);
            if let Some(relay) = RELAY.lock().unwrap().take() {
                relay.shutdown(DRAIN);
            }
        }
    };
    in_host_process(
        "a_logger_may_read_the_counters_and_stop_the_relay",
        logger,
        |roots| {
            let target = EchoServer::start();
            let relay = start(roots).unwrap();
            let port = relay.port();
            STATS.set(relay.stats_reader()).unwrap();
            *RELAY.lock().unwrap() = Some(relay);
            let (mut tunnel, answer) = connect(port, &target.authority());
            assert_eq!(answer.status, 200, "{answer:?}");
            exchange(&mut tunnel, pattern(1000));
            assert_closes(port);
        },
    );
}

#[test]
fn a_logger_that_waits_for_the_thread_that_stops_the_relay_is_no_deadlock() {
    static LOCK: Mutex<()> = Mutex::new(());
    let logger = |_: &Record<'_>| drop(LOCK.lock());
    in_host_process(
        "a_logger_that_waits_for_the_thread_that_stops_the_relay_is_no_deadlock",
        logger,
        |roots| {
            let target = EchoServer::start();
            let relay = start(roots).unwrap();
            let (mut tunnel, _) = connect(relay.port(), &target.authority());
            exchange(&mut tunnel, pattern(1000));
            // An event loop that stops the relay cannot run the logger's part meanwhile.
            let held = LOCK.lock();
            relay.shutdown(DRAIN);
            drop(held);
        },
    );
}
