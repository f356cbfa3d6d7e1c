//! How long a CONNECT takes where the gateway is far: from the request to the target's first byte, with nothing dialled ahead
//! (cold, `--standby 0`) and with connections standing by (warm, the default), over wss through a line of our own that delays.
//!
//! Warm is measured one at a time with pauses in which the standby is refilled; what happens when more come at once than stand
//! by is the burst, shown apart.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::delay_line::start_delay_forwarder;
use crate::measure::joined;
use crate::path::{Gateway, OURS, Path, bare, prepared};
use crate::progress::Progress;

/// What one round trip through the line takes, in milliseconds.
pub(crate) const ROUND_TRIPS: [u64; 4] = [0, 20, 50, 150];
/// The ways to open a tunnel.
pub(crate) const WAYS: [&str; 3] = ["cold", "warm", "burst"];

/// So many at once in a burst: four times what stands by at most.
const BURST: usize = 32;
/// Bursts in a run.
const BURSTS: usize = 3;
/// Openings before the first that counts: the relay learns how far the gateway is, and that there is demand.
const FIRST: usize = 2;
/// After a burst, round trips until what stood by can stand by again: eight at four at a time, three round trips each.
const REFILL: u32 = 8;
/// Round trips in one turn: a warm opening and a cold one. The time of the cold one is the warm one's pause.
const TURN: u32 = 5;

/// What one way gave at one distance.
pub(crate) struct Delay {
    /// The round trip through the line, in milliseconds.
    pub(crate) round_trip: u64,
    /// Its name among [`WAYS`].
    pub(crate) way: &'static str,
    /// From the first segment to the target's first byte.
    pub(crate) latencies: Vec<Duration>,
}

/// The group's name at one distance.
pub(crate) fn name(round_trip: u64) -> String {
    format!("delay-{round_trip}ms")
}

/// What one distance takes, in seconds, for the estimate.
pub(crate) fn cost(round_trip: u64, turns: usize) -> f64 {
    let trips = (turns + FIRST) as f64 * f64::from(TURN) + (BURSTS as f64) * f64::from(REFILL + 5);
    1.0 + trips * round_trip as f64 / 1000.0
}

/// Measures at these distances, `turns` openings of each way.
pub(crate) fn measure(
    distances: &[u64],
    turns: usize,
    progress: &mut Progress,
) -> Outcome<Vec<Delay>> {
    let gateway = Gateway::start(true)?;
    let target = speaking_target()?;
    let port = gateway.base_url.rsplit(':').next();
    let port: u16 = port.unwrap_or_default().parse()?;
    let mut delays = Vec::new();
    for &round_trip in distances {
        progress.part(&name(round_trip));
        let one_way = Duration::from_millis(round_trip) / 2;
        let near = start_delay_forwarder((Ipv4Addr::LOCALHOST, port).into(), one_way, |_| {})?;
        let base_url = format!("https://{near}");
        let relay = |way: &'static str, options: &[&str]| {
            Path::relay(bare(OURS), way, &base_url, &gateway.files, options, target)
        };
        let (cold, warm) = (relay("cold", &["--standby", "0"])?, relay("warm", &[])?);
        delays.extend(at(round_trip, turns, &cold, &warm)?);
        cold.stop()?;
        warm.stop()?;
        progress.spent(cost(round_trip, turns));
    }
    gateway.process.stop()?;
    Ok(delays)
}

/// At one distance: warm and cold by turns, with a burst after each third of them.
fn at(round_trip: u64, turns: usize, cold: &Path, warm: &Path) -> Outcome<[Delay; 3]> {
    let mut found = WAYS.map(|way| Delay {
        round_trip,
        way,
        latencies: Vec::new(),
    });
    for _ in 0..FIRST {
        open(warm)?;
        open(cold)?;
    }
    for turn in 1..=turns {
        found[1].latencies.push(open(warm)?);
        found[0].latencies.push(open(cold)?);
        if turn % turns.div_ceil(BURSTS) == 0 || turn == turns {
            found[2].latencies.extend(burst(warm)?);
            thread::sleep(Duration::from_millis(round_trip) * REFILL);
        }
    }
    Ok(found)
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

/// Opens a tunnel, waits for the target's first byte, and leaves in order without waiting for the other end's leave.
fn open(path: &Path) -> Outcome<Duration> {
    let started = Instant::now();
    let mut stream = path.ask()?;
    let (mut came, mut filled) = ([0; 2048], 0);
    loop {
        let head = came[..filled].windows(4).position(|end| end == b"\r\n\r\n");
        if head.is_some_and(|end| filled > end + 4) {
            break;
        }
        match stream.read(&mut came[filled..])? {
            0 => {
                return Err(
                    format!("{}: the tunnel ended before its first byte", path.name).into(),
                );
            }
            count => filled += count,
        }
    }
    let took = started.elapsed();
    if !came.starts_with(b"HTTP/1.1 200") {
        let head = String::from_utf8_lossy(&came[..filled]);
        return Err(format!("{}: refused: {}", path.name, head.trim_end()).into());
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(took)
}

/// A target that says one byte to whoever comes, and leaves when its visitor does.
fn speaking_target() -> Outcome<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || -> std::io::Result<()> {
                let mut stream = prepared(stream)?;
                stream.write_all(b"!")?;
                while stream.read(&mut [0; 64])? > 0 {}
                stream.shutdown(Shutdown::Write)
            });
        }
    });
    Ok(address)
}
