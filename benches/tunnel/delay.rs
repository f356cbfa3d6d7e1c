//! Measures how long a CONNECT takes if the gateway is far, from the request to the first byte of
//! the target, over wss and through a forwarder that adds latency: without standby connections
//! (cold, `--standby 0`) and with them (warm, the default).
//!
//! Warm CONNECTs are measured one at a time, with pauses in which the standby connections are
//! replaced. A burst sends more CONNECTs at once than there are standby connections; it is shown
//! separately.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::delay_forwarder::start_delay_forwarder;
use crate::measure::joined;
use crate::path::{BINARY, Gateway, Path, clean_command, with_timeouts};
use crate::progress::Progress;

/// The round-trip times of the forwarder, in milliseconds.
pub(crate) const ROUND_TRIPS: [u64; 4] = [0, 20, 50, 150];
/// How the tunnels are opened.
pub(crate) const MODES: [&str; 3] = ["cold", "warm", "burst"];

/// The number of CONNECTs in a burst: four times the maximum number of standby connections.
const BURST: usize = 32;
/// The number of bursts in a run.
const BURSTS: usize = 3;
/// The number of openings before the measurement: from them, the relay measures the round-trip time
/// and the demand.
const WARM_UP: usize = 2;
/// The round trips after a burst until all standby connections can be replaced: eight connections,
/// four at a time, three round trips each, and a reserve.
const REFILL: u32 = 8;
/// The round trips of one turn, which is a warm and a cold opening. The cold opening is also the
/// pause for the warm one.
const TURN: u32 = 5;

/// The result of one mode at one round-trip time.
pub(crate) struct Delay {
    /// The round-trip time of the forwarder, in milliseconds.
    pub(crate) round_trip: u64,
    /// One of [`MODES`].
    pub(crate) mode: &'static str,
    /// The times from the first segment to the first byte of the target.
    pub(crate) latencies: Vec<Duration>,
}

/// The name of the test at one round-trip time.
pub(crate) fn name(round_trip: u64) -> String {
    format!("delay-{round_trip}ms")
}

/// The estimated duration for one round-trip time, in seconds.
pub(crate) fn cost(round_trip: u64, turns: usize) -> f64 {
    let trips =
        (turns + WARM_UP) as f64 * f64::from(TURN) + (BURSTS as f64) * f64::from(REFILL + 5);
    1.0 + trips * round_trip as f64 / 1000.0
}

/// Measures with these round-trip times, with `turns` openings of each mode.
pub(crate) fn measure(
    round_trips: &[u64],
    turns: usize,
    progress: &mut Progress,
) -> Outcome<Vec<Delay>> {
    let gateway = Gateway::start(true)?;
    let target = speaking_target()?;
    let port = gateway.base_url.rsplit(':').next();
    let port: u16 = port.unwrap_or_default().parse()?;
    let mut delays = Vec::new();
    for &round_trip in round_trips {
        progress.part(&name(round_trip));
        let one_way = Duration::from_millis(round_trip) / 2;
        let forwarder = start_delay_forwarder((Ipv4Addr::LOCALHOST, port).into(), one_way, |_| {})?;
        let base_url = format!("https://{forwarder}");
        let relay = |mode: &'static str, options: &[&str]| {
            Path::relay(
                clean_command(BINARY),
                mode,
                &base_url,
                &gateway.files,
                options,
                target,
            )
        };
        let (cold, warm) = (relay("cold", &["--standby", "0"])?, relay("warm", &[])?);
        delays.extend(measure_at(round_trip, turns, &cold, &warm)?);
        cold.stop()?;
        warm.stop()?;
        progress.spent(cost(round_trip, turns));
    }
    gateway.process.stop()?;
    Ok(delays)
}

/// Measures with one round-trip time: warm and cold openings alternately, with a burst after each
/// third of them.
fn measure_at(round_trip: u64, turns: usize, cold: &Path, warm: &Path) -> Outcome<[Delay; 3]> {
    let mut delays = MODES.map(|mode| Delay {
        round_trip,
        mode,
        latencies: Vec::new(),
    });
    for _ in 0..WARM_UP {
        open(warm)?;
        open(cold)?;
    }
    for turn in 1..=turns {
        delays[1].latencies.push(open(warm)?);
        delays[0].latencies.push(open(cold)?);
        if turn % turns.div_ceil(BURSTS) == 0 || turn == turns {
            delays[2].latencies.extend(burst(warm)?);
            thread::sleep(Duration::from_millis(round_trip) * REFILL);
        }
    }
    Ok(delays)
}

fn burst(path: &Path) -> Outcome<Vec<Duration>> {
    let start = Barrier::new(BURST);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..BURST)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    open(path)
                })
            })
            .collect();
        threads.into_iter().map(joined).collect()
    })
}

/// Opens a tunnel, waits for the first byte of the target, and closes cleanly without waiting for
/// the other end.
fn open(path: &Path) -> Outcome<Duration> {
    let started = Instant::now();
    let mut stream = path.send_request()?;
    let (mut answer, mut filled) = ([0; 2048], 0);
    loop {
        let head = answer[..filled]
            .windows(4)
            .position(|end| end == b"\r\n\r\n");
        if head.is_some_and(|end| filled > end + 4) {
            break;
        }
        match stream.read(&mut answer[filled..])? {
            0 => {
                return Err(
                    format!("{}: the tunnel ended before its first byte", path.name).into(),
                );
            }
            count => filled += count,
        }
    }
    let took = started.elapsed();
    if !answer.starts_with(b"HTTP/1.1 200") {
        let head = String::from_utf8_lossy(&answer[..filled]);
        return Err(format!("{}: refused: {}", path.name, head.trim_end()).into());
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(took)
}

/// Starts a target that sends one byte to each client, and closes when the client does.
fn speaking_target() -> Outcome<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || -> std::io::Result<()> {
                let mut stream = with_timeouts(stream)?;
                stream.write_all(b"!")?;
                while stream.read(&mut [0; 64])? > 0 {}
                stream.shutdown(Shutdown::Write)
            });
        }
    });
    Ok(address)
}
