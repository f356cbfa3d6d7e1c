//! Longer loads: a mixed load, ends that do not read, small messages next to a bulk transfer, and a
//! slow reader.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Context;
use super::churn;
use super::plan::Plan;
use super::watch::Tally;
use crate::path::Path;
use crate::pattern::PIECE;
use crate::{Outcome, TIMEOUT};

/// The pause between two short tunnels of the mixed load.
const BETWEEN: Duration = Duration::from_millis(20);
/// The pause of a slow reader after each piece.
const SLOW: Duration = Duration::from_millis(5);
/// How long neither end reads.
const STALL: Duration = Duration::from_secs(3);
/// The size of a small message, which is its sending time.
const STAMP: usize = 8;
/// The number of small messages.
const STAMPS: usize = 500;
/// The interval between small messages.
const APART: Duration = Duration::from_millis(10);

/// Idle tunnels, bulk transfers in each direction, a slow reader, and short tunnels of every kind,
/// all at the same time.
pub(super) fn mixed(context: &Context<'_>, plan: &Plan, tally: &Tally) -> Outcome<Value> {
    let idle = (0..plan.idle)
        .map(|_| context.path.pair(context.listener))
        .collect::<Outcome<Vec<_>>>()?;
    let floods = (0..3)
        .map(|_| context.path.pair(context.listener))
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
                        churn::one(context, target, number, tally);
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
                // Down, up, and down to a slow reader.
                let (from, to) = if place == 1 { (near, far) } else { (far, near) };
                let pause = if place == 2 { SLOW } else { Duration::ZERO };
                let over = &over;
                let sender = scope.spawn(move || send(context, from, Until::Stopped(over)));
                let receiver = scope.spawn(move || receive_slowly(context, to, pause));
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
                tally.wrong(&format!(
                    "bulk transfer: {received} of {sent} bytes arrived"
                ));
            }
            moved += received;
        }
        for churn in churns {
            churn.join().map_err(|_| "a thread panicked")?;
        }
        Outcome::Ok(moved)
    })?;
    for (near, far) in &idle {
        tally.note("idle tunnel", ping(near, far));
    }
    Ok(json!({"silent": idle.len(), "gib_moved": gib(moved)}))
}

/// Idle tunnels, to measure their processor time. At the end, each one is used once.
pub(super) fn silent(context: &Context<'_>, plan: &Plan, tally: &Tally) -> Outcome<Value> {
    let idle = (0..plan.idle)
        .map(|_| context.path.pair(context.listener))
        .collect::<Outcome<Vec<_>>>()?;
    thread::sleep(plan.silent);
    for (near, far) in &idle {
        tally.note("idle tunnel", ping(near, far));
    }
    Ok(json!({"tunnels": idle.len()}))
}

/// Neither end reads for some time: no byte may be lost, no memory may grow, and the transfer
/// continues when the ends read again.
pub(super) fn stalled(context: &Context<'_>) -> Outcome<Value> {
    let pairs = (0..8)
        .map(|_| context.path.pair(context.listener))
        .collect::<Outcome<Vec<_>>>()?;
    let stalled = AtomicBool::new(true);
    let (mut bytes, begun) = (0, Instant::now());
    thread::scope(|scope| {
        let mut flows = Vec::new();
        for (near, far) in &pairs {
            for (from, to) in [(near, far), (far, near)] {
                let stalled = &stalled;
                // More than all buffers on the path can hold.
                let sender = scope.spawn(move || send(context, from, Until::Bytes(32 << 20)));
                let receiver = scope.spawn(move || {
                    while stalled.load(Ordering::Relaxed) {
                        thread::sleep(SLOW);
                    }
                    receive_slowly(context, to, Duration::ZERO)
                });
                flows.push((sender, receiver));
            }
        }
        thread::sleep(STALL);
        stalled.store(false, Ordering::Relaxed);
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

/// The latency of small messages up, alone and during a bulk transfer down the same tunnel; for
/// comparison also without a tunnel.
pub(super) fn latency(context: &Context<'_>) -> Outcome<Value> {
    let direct = Path::direct("direct", context.listener.local_addr()?);
    let mut results = serde_json::Map::new();
    for path in [&direct, context.path] {
        let (near, far) = path.pair(context.listener)?;
        let alone = p50_and_p99(stamps(&near, &far)?);
        let beside = p50_and_p99(during_bulk(context, &near, &far)?);
        let figures = json!({
            "alone_ms": alone, "beside_a_flood_ms": beside, "ratio_of_p99": (beside[1] / alone[1]).round(),
        });
        results.insert(path.name.to_owned(), figures);
    }
    Ok(results.into())
}

fn during_bulk(context: &Context<'_>, near: &TcpStream, far: &TcpStream) -> Outcome<Vec<Duration>> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let bulk = scope.spawn(|| send(context, far, Until::Stopped(&over)));
        let sink = scope.spawn(|| receive_slowly(context, near, Duration::ZERO));
        let took = stamps(near, far);
        over.store(true, Ordering::Relaxed);
        let (sent, received) = (joined(bulk)?, joined(sink)?);
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

/// Transfers this number of MiB in both directions at the same time; both readers are slow.
pub(super) fn slow(context: &Context<'_>, mebibytes: u64) -> Outcome<Value> {
    let (near, far) = context.path.pair(context.listener)?;
    let (bytes, begun) = (mebibytes << 20, Instant::now());
    thread::scope(|scope| {
        let flows = [(&near, &far), (&far, &near)].map(|(from, to)| {
            (
                scope.spawn(move || send(context, from, Until::Bytes(bytes))),
                scope.spawn(move || receive_slowly(context, to, SLOW)),
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

/// When a sender stops.
#[derive(Clone, Copy)]
enum Until<'a> {
    Stopped(&'a AtomicBool),
    Bytes(u64),
}

/// Sends the pattern, then ends the direction. Returns the number of bytes sent.
fn send(context: &Context<'_>, mut to: &TcpStream, until: Until<'_>) -> Outcome<u64> {
    // Backpressure may last longer than any other operation here.
    to.set_write_timeout(Some(TIMEOUT * 3))?;
    let mut sent = 0;
    loop {
        match until {
            Until::Stopped(over) if over.load(Ordering::Relaxed) => break,
            Until::Bytes(bytes) if sent >= bytes => break,
            _ => {}
        }
        to.write_all(context.pattern.piece(sent))
            .map_err(|error| format!("sending failed after {sent} bytes: {error}"))?;
        sent += PIECE as u64;
    }
    to.shutdown(Shutdown::Write)?;
    Ok(sent)
}

/// Reads to the end with a pause after each piece, and checks every byte.
fn receive_slowly(context: &Context<'_>, mut from: &TcpStream, pause: Duration) -> Outcome<u64> {
    let (mut buffer, mut position) = (vec![0; PIECE], 0);
    loop {
        let read = from
            .read(&mut buffer)
            .map_err(|error| format!("reading failed after {position} bytes: {error}"))?;
        if read == 0 {
            return Ok(position);
        }
        if !context.pattern.matches(position, &buffer[..read]) {
            return Err(format!("wrong data at position {position}").into());
        }
        position += read as u64;
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
}

/// Sends small messages up, each with its sending time. Returns the latencies. Does not use the
/// other direction.
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

/// Sends one byte in each direction, then ends both.
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
        Ok(_) => Err("more data than was sent".into()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {
            Err("the connection was reset".into())
        }
        Err(error) => Err(error.into()),
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Outcome<T>>) -> Outcome<T> {
    thread.join().map_err(|_| "a thread panicked")?
}

fn gib(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1 << 30) * 100.0).round() / 100.0
}
