//! Loads that last: everything mixed, ends that do not read, small messages beside a flood, a slow reader.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Ground;
use super::churn;
use super::plan::Plan;
use super::watch::Seen;
use crate::path::Path;
use crate::pattern::PIECE;
use crate::{Outcome, PATIENCE};

/// Between two short tunnels of the mixed load.
const BETWEEN: Duration = Duration::from_millis(20);
/// How slow the slow readers are: a piece, then this.
const SLOW: Duration = Duration::from_millis(5);
/// How long nobody reads.
const STALL: Duration = Duration::from_secs(3);
/// A small message: the time it was sent at.
const STAMP: usize = 8;
/// How many small messages, and how far apart.
const STAMPS: usize = 500;
const APART: Duration = Duration::from_millis(10);

/// Silent tunnels, floods each way, a slow reader, and short tunnels of every kind, all at once.
pub(super) fn mixed(ground: &Ground<'_>, plan: &Plan, seen: &Seen) -> Outcome<Value> {
    let idle = (0..plan.idle)
        .map(|_| ground.path.pair(ground.listener))
        .collect::<Outcome<Vec<_>>>()?;
    let floods = (0..3)
        .map(|_| ground.path.pair(ground.listener))
        .collect::<Outcome<Vec<_>>>()?;
    let target = churn::serve()?;
    let over = AtomicBool::new(false);
    let moved = thread::scope(|scope| {
        let churns: Vec<_> = (0..4)
            .map(|worker| {
                let over = &over;
                scope.spawn(move || {
                    let mut number = worker;
                    while !over.load(Ordering::Relaxed) {
                        churn::one(ground, target, number, seen);
                        number += 1;
                        thread::sleep(BETWEEN);
                    }
                })
            })
            .collect();
        let flows: Vec<_> = floods
            .iter()
            .enumerate()
            .map(|(place, (near, far))| {
                // Down, up, and down to a reader that takes its time.
                let (from, to) = if place == 1 { (near, far) } else { (far, near) };
                let pause = if place == 2 { SLOW } else { Duration::ZERO };
                let over = &over;
                let sender = scope.spawn(move || send(ground, from, Until::BenchProgress(over)));
                let receiver = scope.spawn(move || receive_slowly(ground, to, pause));
                (sender, receiver)
            })
            .collect();
        thread::sleep(plan.mixed);
        over.store(true, Ordering::Relaxed);
        let mut moved = 0;
        for (sender, receiver) in flows {
            let sent = joined(sender)?;
            let received = joined(receiver)?;
            if sent != received {
                seen.wrong(&format!("flood: {received} of {sent} bytes arrived"));
            }
            moved += received;
        }
        for churn in churns {
            churn.join().map_err(|_| "a thread panicked")?;
        }
        Outcome::Ok(moved)
    })?;
    for (near, far) in &idle {
        seen.note("silent tunnel", ping(near, far));
    }
    Ok(json!({"silent": idle.len(), "gib_moved": gib(moved)}))
}

/// Tunnels on which nothing is said, for their processor time; then each is used.
pub(super) fn silent(ground: &Ground<'_>, plan: &Plan, seen: &Seen) -> Outcome<Value> {
    let idle = (0..plan.idle)
        .map(|_| ground.path.pair(ground.listener))
        .collect::<Outcome<Vec<_>>>()?;
    thread::sleep(plan.silent);
    for (near, far) in &idle {
        seen.note("silent tunnel", ping(near, far));
    }
    Ok(json!({"tunnels": idle.len()}))
}

/// Neither end reads: nothing may be lost, nothing may grow, and all goes on when they read again.
pub(super) fn stalled(ground: &Ground<'_>) -> Outcome<Value> {
    let pairs = (0..8)
        .map(|_| ground.path.pair(ground.listener))
        .collect::<Outcome<Vec<_>>>()?;
    let held = AtomicBool::new(true);
    let (mut bytes, begun) = (0, Instant::now());
    thread::scope(|scope| {
        let mut flows = Vec::new();
        for (near, far) in &pairs {
            for (from, to) in [(near, far), (far, near)] {
                let held = &held;
                // More than all the buffers on the way hold.
                let sender = scope.spawn(move || send(ground, from, Until::Bytes(32 << 20)));
                let receiver = scope.spawn(move || {
                    while held.load(Ordering::Relaxed) {
                        thread::sleep(SLOW);
                    }
                    receive_slowly(ground, to, Duration::ZERO)
                });
                flows.push((sender, receiver));
            }
        }
        thread::sleep(STALL);
        held.store(false, Ordering::Relaxed);
        for (sender, receiver) in flows {
            let (sent, received) = (joined(sender)?, joined(receiver)?);
            if sent != received {
                return Err(format!("{received} of {sent} bytes arrived").into());
            }
            bytes += received;
        }
        Outcome::Ok(())
    })?;
    let after = begun.elapsed().saturating_sub(STALL);
    Ok(
        json!({"tunnels": pairs.len(), "gib_moved": gib(bytes), "stalled_s": STALL.as_secs(), "then_s": after.as_secs_f64()}),
    )
}

/// How long small messages up take, alone and beside a flood down the same tunnel; the same without a tunnel, to compare.
pub(super) fn latency(ground: &Ground<'_>) -> Outcome<Value> {
    let direct = Path::direct("direct", ground.listener.local_addr()?);
    let mut said = serde_json::Map::new();
    for path in [&direct, ground.path] {
        let (near, far) = path.pair(ground.listener)?;
        let alone = p50_and_p99(stamps(&near, &far)?);
        let beside = p50_and_p99(beside_a_flood(ground, &near, &far)?);
        let figures = json!({
            "alone_ms": alone, "beside_a_flood_ms": beside, "ratio_of_p99": (beside[1] / alone[1]).round(),
        });
        said.insert(path.name.to_owned(), figures);
    }
    Ok(said.into())
}

fn beside_a_flood(
    ground: &Ground<'_>,
    near: &TcpStream,
    far: &TcpStream,
) -> Outcome<Vec<Duration>> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| send(ground, far, Until::BenchProgress(&over)));
        let sink = scope.spawn(|| receive_slowly(ground, near, Duration::ZERO));
        let took = stamps(near, far);
        over.store(true, Ordering::Relaxed);
        let (sent, received) = (joined(flood)?, joined(sink)?);
        if sent != received {
            return Err(format!("{received} of {sent} bytes arrived").into());
        }
        took
    })
}

fn p50_and_p99(mut all: Vec<Duration>) -> [f64; 2] {
    all.sort_unstable();
    [50, 99].map(|part| (all[all.len() * part / 100].as_secs_f64() * 1e5).round() / 100.0)
}

/// So many MiB each way at once, both readers slow.
pub(super) fn slow(ground: &Ground<'_>, mebibytes: u64) -> Outcome<Value> {
    let (near, far) = ground.path.pair(ground.listener)?;
    let (bytes, begun) = (mebibytes << 20, Instant::now());
    thread::scope(|scope| {
        let flows = [(&near, &far), (&far, &near)].map(|(from, to)| {
            (
                scope.spawn(move || send(ground, from, Until::Bytes(bytes))),
                scope.spawn(move || receive_slowly(ground, to, SLOW)),
            )
        });
        for (sender, receiver) in flows {
            let (sent, received) = (joined(sender)?, joined(receiver)?);
            if sent != received || received < bytes {
                return Err(format!("{received} of {sent} bytes arrived").into());
            }
        }
        Outcome::Ok(())
    })?;
    let rate = mebibytes as f64 / begun.elapsed().as_secs_f64();
    Ok(json!({"mib_each_way": mebibytes, "mib_per_second_each_way": rate.round()}))
}

/// When a sender is done.
#[derive(Clone, Copy)]
enum Until<'a> {
    BenchProgress(&'a AtomicBool),
    Bytes(u64),
}

/// Sends the pattern and then its end; returns how much it was.
fn send(ground: &Ground<'_>, mut to: &TcpStream, until: Until<'_>) -> Outcome<u64> {
    // Who holds back everything may do so for longer than anything else here takes.
    to.set_write_timeout(Some(PATIENCE * 3))?;
    let mut sent = 0;
    loop {
        match until {
            Until::BenchProgress(over) if over.load(Ordering::Relaxed) => break,
            Until::Bytes(bytes) if sent >= bytes => break,
            _ => {}
        }
        to.write_all(ground.pattern.piece(sent))
            .map_err(|error| format!("sending broke off after {sent} bytes: {error}"))?;
        sent += PIECE as u64;
    }
    to.shutdown(Shutdown::Write)?;
    Ok(sent)
}

/// Reads to the end, a pause after each piece, and checks every byte.
fn receive_slowly(ground: &Ground<'_>, mut from: &TcpStream, pause: Duration) -> Outcome<u64> {
    let (mut buffer, mut position) = (vec![0; PIECE], 0);
    loop {
        let read = from
            .read(&mut buffer)
            .map_err(|error| format!("reading broke off after {position} bytes: {error}"))?;
        if read == 0 {
            return Ok(position);
        }
        if !ground.pattern.matches(position, &buffer[..read]) {
            return Err(format!("other bytes than were sent, from {position}").into());
        }
        position += read as u64;
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
}

/// Small messages up, each with its time; returns how long each took. The other direction is not touched.
fn stamps(near: &TcpStream, far: &TcpStream) -> Outcome<Vec<Duration>> {
    let epoch = Instant::now();
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> Outcome<()> {
            for _ in 0..STAMPS {
                let now = u64::try_from(epoch.elapsed().as_nanos())?;
                let mut to = near;
                to.write_all(&now.to_be_bytes())?;
                thread::sleep(APART);
            }
            Ok(())
        });
        let mut took = Vec::with_capacity(STAMPS);
        let (mut from, mut stamp) = (far, [0; STAMP]);
        for _ in 0..STAMPS {
            from.read_exact(&mut stamp)?;
            let sent = Duration::from_nanos(u64::from_be_bytes(stamp));
            took.push(epoch.elapsed().saturating_sub(sent));
        }
        joined(sender)?;
        Ok(took)
    })
}

/// One byte there and one back.
fn ping(mut near: &TcpStream, mut far: &TcpStream) -> Outcome<()> {
    let mut byte = [0];
    near.write_all(b"?")?;
    far.read_exact(&mut byte)?;
    far.write_all(b"!")?;
    near.read_exact(&mut byte)?;
    near.shutdown(Shutdown::Write)?;
    far.shutdown(Shutdown::Write)?;
    match near.read(&mut byte) {
        Ok(0) => Ok(()),
        Ok(_) => Err("more than was sent".into()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Err("it was reset".into()),
        Err(error) => Err(error.into()),
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Outcome<T>>) -> Outcome<T> {
    thread.join().map_err(|_| "a thread panicked")?
}

fn gib(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1 << 30) * 100.0).round() / 100.0
}
