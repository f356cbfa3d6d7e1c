//! Very many short tunnels, with every kind of end that a client or a target can make.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::SockRef;

use super::Ground;
use super::watch::Seen;
use crate::Outcome;
use crate::path::{answer, prepared, request};

/// What the first byte asks of the target.
const ECHO: u8 = b'e';
const RESET: u8 = b'r';

/// How many bytes most of them carry.
const SMALL: usize = 1000;
/// And one of each round: over one chunk of the wire.
const LARGE: usize = 600_000;

type Kind = (&'static str, fn(&Ground<'_>, SocketAddr) -> Outcome<()>);

/// Each worker takes them in turn.
const KINDS: [Kind; 8] = [
    ("echo and end", |g, t| echo(g, t, SMALL)),
    ("client resets", client_resets),
    ("target resets", target_resets),
    ("target refuses", target_refuses),
    ("no request", no_request),
    ("client leaves early", client_leaves),
    ("both close at once", both_close),
    ("large", |g, t| echo(g, t, LARGE)),
];

/// Makes `count` of them, `at_once` at a time.
pub(super) fn run(ground: &Ground<'_>, count: u64, at_once: u64, seen: &Seen) -> Outcome<Value> {
    let target = serve()?;
    let (next, begun) = (AtomicU64::new(0), Instant::now());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    one(ground, target, number, seen);
                }
            });
        }
    });
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    Ok(json!({"tunnels": count, "at_once": at_once, "per_second": rate.round()}))
}

/// One of them, the kind by its number.
pub(super) fn one(ground: &Ground<'_>, target: SocketAddr, number: u64, seen: &Seen) {
    let (name, kind) = KINDS[number as usize % KINDS.len()];
    seen.note(name, kind(ground, target));
}

/// A target that does as the first byte says. Its threads end with this process, or with their client.
pub(super) fn serve() -> Outcome<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve_one(prepared(stream)?));
        }
    });
    Ok(address)
}

fn serve_one(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    if stream.read(&mut buffer[..1])? == 0 {
        return Ok(());
    }
    if buffer[0] == RESET {
        return SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

/// Bytes there and back, the client's end, and the target's after it.
fn echo(ground: &Ground<'_>, target: SocketAddr, length: usize) -> Outcome<()> {
    let stream = ground.path.connect_to(target)?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> std::io::Result<()> {
            (&stream).write_all(&[ECHO])?;
            let mut sent = 0;
            while sent < length {
                let piece = ground.pattern.piece(sent as u64);
                let piece = &piece[..piece.len().min(length - sent)];
                (&stream).write_all(piece)?;
                sent += piece.len();
            }
            stream.shutdown(Shutdown::Write)
        });
        let received = receive(ground, &stream, 0)?;
        sender.join().map_err(|_| "a thread panicked")??;
        if received != length as u64 {
            return Err(format!("{received} of {length} bytes came back").into());
        }
        Ok(())
    })
}

/// Reads to the end and checks every byte; returns the position.
pub(super) fn receive(
    ground: &Ground<'_>,
    mut stream: &TcpStream,
    mut position: u64,
) -> Outcome<u64> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(position);
        }
        if !ground.pattern.matches(position, &buffer[..read]) {
            return Err(format!("other bytes than were sent, from {position}").into());
        }
        position += read as u64;
    }
}

fn client_resets(ground: &Ground<'_>, target: SocketAddr) -> Outcome<()> {
    let mut stream = ground.path.connect_to(target)?;
    stream.write_all(&[ECHO])?;
    stream.write_all(&ground.pattern.piece(0)[..SMALL])?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

fn target_resets(ground: &Ground<'_>, target: SocketAddr) -> Outcome<()> {
    let mut stream = ground.path.connect_to(target)?;
    stream.write_all(&[RESET])?;
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => Err(format!("a reset came out as {other:?}").into()),
    }
}

fn target_refuses(ground: &Ground<'_>, _: SocketAddr) -> Outcome<()> {
    let stream = ground.path.enter()?;
    // Nobody listens on the port that asks for one that is free.
    (&stream).write_all(&request((Ipv4Addr::LOCALHOST, 1).into()))?;
    match answer(&stream)? {
        (502, _) => Ok(()),
        (_, head) => Err(format!("a refusal came out as {head}").into()),
    }
}

fn no_request(ground: &Ground<'_>, _: SocketAddr) -> Outcome<()> {
    let stream = ground.path.enter()?;
    (&stream).write_all(b"SSH-2.0-something\r\n\r\n")?;
    match answer(&stream)? {
        (400, _) => Ok(()),
        (_, head) => Err(format!("no request was answered with {head}").into()),
    }
}

fn client_leaves(ground: &Ground<'_>, target: SocketAddr) -> Outcome<()> {
    let stream = ground.path.enter()?;
    (&stream).write_all(&request(target))?;
    Ok(())
}

fn both_close(ground: &Ground<'_>, target: SocketAddr) -> Outcome<()> {
    let mut stream = ground.path.connect_to(target)?;
    stream.write_all(&[RESET])?;
    // The target may have been first.
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}
