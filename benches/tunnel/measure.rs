//! The load generator: blocking threads at both ends of a path. The target is in this process too,
//! so that the received bytes can be compared with the sent ones.
//!
//! This module does not know what the path consists of. Every socket operation has a timeout; every
//! loop has a count or a deadline.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::path::{Path, with_timeouts};
use crate::pattern::{PIECE, TestPattern};
use crate::plan::{Effort, Work};
use crate::process::Process;
use crate::{Outcome, usage};

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// The result of one test over one path in one round.
pub(crate) struct Sample {
    /// The values, in the order of the metrics of the test.
    pub(crate) values: Vec<f64>,
    /// The processor seconds of each process on the path and, last, of the load generator; `None`
    /// if they cannot be read.
    pub(crate) cpu: Vec<Option<f64>>,
    /// The amount of work for these seconds, in the unit of [`Work::cpu_per`].
    pub(crate) amount: f64,
}

/// Runs one test over one path.
pub(crate) fn run(
    work: Work,
    path: &Path,
    target: &TcpListener,
    pattern: &TestPattern,
    effort: &Effort,
) -> Outcome<Sample> {
    let processes = path.processes.iter().map(Process::pid);
    let processes: Vec<u32> = processes.chain([std::process::id()]).collect();
    let used = || processes.iter().map(|pid| usage::cpu_seconds(*pid));
    let before: Vec<_> = used().collect();
    let (values, amount) = match work {
        Work::Bulk { down, up, streams } => {
            let bulk = Bulk {
                pattern,
                seconds: effort.seconds,
                down,
                up,
            };
            let (bytes, seconds) = bulk.run(path, target, streams)?;
            (vec![bytes / MIB / seconds], bytes / GIB)
        }
        Work::SetUp { at_once } => {
            let count = if at_once == 1 {
                effort.set_ups
            } else {
                effort.set_ups_at_once
            };
            let (latencies, seconds) = set_up(path, target, count, at_once)?;
            let rate = count as f64 / seconds;
            (quantiles(&latencies, Some(rate)), count as f64)
        }
        Work::Echo => {
            let latencies = echo(path, target, effort.echoes)?;
            (quantiles(&latencies, None), effort.echoes as f64)
        }
    };
    let cpu = before
        .into_iter()
        .zip(used())
        .map(|(before, after)| Some(after? - before?))
        .collect();
    Ok(Sample {
        values,
        cpu,
        amount,
    })
}

/// A transfer with a given duration.
#[derive(Clone, Copy)]
struct Bulk<'a> {
    pattern: &'a TestPattern,
    seconds: f64,
    down: bool,
    up: bool,
}

impl Bulk<'_> {
    /// Returns the number of bytes that arrived, and the seconds from the start to the last byte.
    fn run(self, path: &Path, target: &TcpListener, streams: usize) -> Outcome<(f64, f64)> {
        let pairs = (0..streams)
            .map(|_| path.pair(target))
            .collect::<Outcome<Vec<_>>>()?;
        // The sending and receiving ends, one entry per direction.
        let flows: Vec<(&TcpStream, &TcpStream)> = pairs
            .iter()
            .flat_map(|(near, far)| {
                [
                    self.down.then_some((far, near)),
                    self.up.then_some((near, far)),
                ]
            })
            .flatten()
            .collect();
        // All start at once: both ends of each flow, and the clock.
        let start = Barrier::new(2 * flows.len() + 1);
        let (mut bytes, mut end) = (0, Instant::now());
        let started = thread::scope(|scope| {
            let threads: Vec<_> = flows
                .iter()
                .map(|(from, to)| {
                    (
                        scope.spawn(|| self.send(from, &start)),
                        scope.spawn(|| self.receive(to, &start)),
                    )
                })
                .collect();
            start.wait();
            let started = Instant::now();
            for (sender, receiver) in threads {
                let (sent, (received, ended)) = (joined(sender), joined(receiver)?);
                let sent = sent?;
                if sent != received {
                    return Err(format!("{}: {received} of {sent} bytes arrived", path.name).into());
                }
                bytes += received;
                end = end.max(ended);
            }
            Outcome::Ok(started)
        })?;
        if self.down != self.up {
            for (from, to) in flows {
                close(from, to).map_err(|error| format!("{}: at the end: {error}", path.name))?;
            }
        }
        Ok((bytes as f64, (end - started).as_secs_f64()))
    }

    fn send(self, mut to: &TcpStream, start: &Barrier) -> Outcome<u64> {
        start.wait();
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        let mut sent = 0;
        while Instant::now() < end {
            to.write_all(self.pattern.piece(sent))
                .map_err(|error| format!("sending failed after {sent} bytes: {error}"))?;
            sent += PIECE as u64;
        }
        to.shutdown(Shutdown::Write)?;
        Ok(sent)
    }

    fn receive(self, mut from: &TcpStream, start: &Barrier) -> Outcome<(u64, Instant)> {
        let mut buffer = vec![0; PIECE];
        start.wait();
        let mut received = 0;
        loop {
            let count = from
                .read(&mut buffer)
                .map_err(|error| format!("receiving failed after {received} bytes: {error}"))?;
            if count == 0 {
                return Ok((received, Instant::now()));
            }
            if !self.pattern.matches(received, &buffer[..count]) {
                return Err(format!("wrong data after {received} correct bytes").into());
            }
            received += count as u64;
        }
    }
}

/// Ends the unused direction too, and waits until the other end has seen it, so that the closing
/// does not overlap with the next test.
pub(crate) fn close(mut from: &TcpStream, to: &TcpStream) -> Outcome<()> {
    to.shutdown(Shutdown::Write)?;
    match from.read(&mut [0])? {
        0 => Ok(()),
        _ => Err("a byte that was not sent".into()),
    }
}

/// Opens and closes `count` connections, `at_once` at a time. Returns the latencies, each from the
/// first segment to the first byte from the target, and the total seconds, which include the
/// closing.
pub(crate) fn set_up(
    path: &Path,
    target: &TcpListener,
    count: usize,
    at_once: usize,
) -> Outcome<(Vec<Duration>, f64)> {
    let (to_open, to_answer) = (AtomicUsize::new(count), AtomicUsize::new(count));
    let started = Instant::now();
    let latencies = thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once)
            .map(|_| {
                (
                    scope.spawn(|| open_some(path, &to_open)),
                    scope.spawn(|| answer_some(target, &to_answer)),
                )
            })
            .collect();
        let mut latencies = Vec::with_capacity(count);
        for (opener, answerer) in threads {
            latencies.append(&mut joined(opener)?);
            joined(answerer)?;
        }
        Outcome::Ok(latencies)
    })?;
    Ok((latencies, started.elapsed().as_secs_f64()))
}

fn open_some(path: &Path, left: &AtomicUsize) -> Outcome<Vec<Duration>> {
    let mut latencies = Vec::new();
    while take_one(left) {
        let started = Instant::now();
        let stream = path.connect()?;
        round_trip(&stream, 0)?;
        latencies.push(started.elapsed());
        close(&stream, &stream)?;
    }
    Ok(latencies)
}

fn answer_some(target: &TcpListener, left: &AtomicUsize) -> Outcome<()> {
    while take_one(left) {
        let (stream, _) = target.accept()?;
        send_back(&with_timeouts(stream)?)?;
    }
    Ok(())
}

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(1)
    })
    .is_ok()
}

/// Sends one byte and back `count` times, sequentially over one connection.
fn echo(path: &Path, target: &TcpListener, count: usize) -> Outcome<Vec<Duration>> {
    let (near, far) = path.pair(target)?;
    thread::scope(|scope| {
        let echoing = scope.spawn(|| send_back(&far));
        let latencies = (0..count)
            .map(|number| {
                let started = Instant::now();
                round_trip(&near, number as u8)?;
                Ok(started.elapsed())
            })
            .collect::<Outcome<Vec<_>>>();
        // Close after an error too: this ends the other thread.
        let closed = close(&near, &near);
        joined(echoing)?;
        closed?;
        latencies
    })
}

/// Sends one byte over an open connection and back; both ends are given.
pub(crate) fn round_trip_over(mut near: &TcpStream, mut far: &TcpStream) -> Outcome<()> {
    let mut byte = [0];
    near.write_all(&[1])?;
    far.read_exact(&mut byte)?;
    far.write_all(&byte)?;
    Ok(near.read_exact(&mut byte)?)
}

fn round_trip(mut stream: &TcpStream, byte: u8) -> Outcome<()> {
    let mut back = [!byte];
    stream.write_all(&[byte])?;
    stream.read_exact(&mut back)?;
    if back != [byte] {
        return Err(format!("{byte} came back as {}", back[0]).into());
    }
    Ok(())
}

/// Sends back single bytes until the other end closes.
fn send_back(mut stream: &TcpStream) -> Outcome<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

/// The rate, if there is one, then the median and the 99th percentile in microseconds.
fn quantiles(latencies: &[Duration], rate: Option<f64>) -> Vec<f64> {
    let at = |share| quantile(latencies, share).as_secs_f64() * 1e6;
    rate.into_iter().chain([at(50), at(99)]).collect()
}

/// The percentile `share` of the latencies.
pub(crate) fn quantile(latencies: &[Duration], share: usize) -> Duration {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * share).div_ceil(100).saturating_sub(1)]
}

/// The result of a thread.
pub(crate) fn joined<T>(thread: ScopedJoinHandle<'_, Outcome<T>>) -> Outcome<T> {
    thread
        .join()
        .map_err(|_| "a thread of the load generator panicked")?
}
