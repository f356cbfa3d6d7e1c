//! Very many short tunnels, with every kind of end that a client or a target can cause.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::SockRef;

use super::Context;
use super::watch::Tally;
use crate::Outcome;
use crate::path::{read_response, request, with_timeouts};

/// The first byte selects what the target does.
const ECHO: u8 = b'e';
const RESET: u8 = b'r';

/// The number of bytes in most tunnels.
const SMALL: usize = 1000;
/// The number of bytes in the kind `large`: more than one chunk of the protocol.
const LARGE: usize = 600_000;

type Kind = (&'static str, fn(&Context<'_>, SocketAddr) -> Outcome<()>);

/// The kinds of tunnels, used in turn.
const KINDS: [Kind; 8] = [
    ("echo and end", |context, target| {
        echo(context, target, SMALL)
    }),
    ("client resets", client_resets),
    ("target resets", target_resets),
    ("target refuses", target_refuses),
    ("no request", no_request),
    ("client disconnects early", client_disconnects),
    ("both close at once", both_close),
    ("large", |context, target| echo(context, target, LARGE)),
];

/// Opens `count` tunnels, `at_once` at a time.
pub(super) fn run(
    context: &Context<'_>,
    count: u64,
    at_once: u64,
    tally: &Tally,
) -> Outcome<Value> {
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
                    one(context, target, number, tally);
                }
            });
        }
    });
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    Ok(json!({"tunnels": count, "at_once": at_once, "per_second": rate.round()}))
}

/// Opens one tunnel; the number selects its kind.
pub(super) fn one(context: &Context<'_>, target: SocketAddr, number: u64, tally: &Tally) {
    let (name, kind) = KINDS[number as usize % KINDS.len()];
    tally.note(name, kind(context, target));
}

/// Starts a target that acts on the first byte. Its threads end with this process or with their
/// client.
pub(super) fn serve() -> Outcome<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve_one(with_timeouts(stream)?));
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

/// Sends bytes there and back; the client ends first, then the target.
fn echo(context: &Context<'_>, target: SocketAddr, length: usize) -> Outcome<()> {
    let stream = context.path.connect_to(target)?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> std::io::Result<()> {
            (&stream).write_all(&[ECHO])?;
            let mut sent = 0;
            while sent < length {
                let piece = context.pattern.piece(sent as u64);
                let piece = &piece[..piece.len().min(length - sent)];
                (&stream).write_all(piece)?;
                sent += piece.len();
            }
            stream.shutdown(Shutdown::Write)
        });
        let received = receive(context, &stream, 0)?;
        sender.join().map_err(|_| "a thread panicked")??;
        if received != length as u64 {
            return Err(format!("{received} of {length} bytes came back").into());
        }
        Ok(())
    })
}

/// Reads to the end and checks every byte. Returns the position after the last byte.
pub(super) fn receive(
    context: &Context<'_>,
    mut stream: &TcpStream,
    mut position: u64,
) -> Outcome<u64> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(position);
        }
        if !context.pattern.matches(position, &buffer[..read]) {
            return Err(format!("wrong data at position {position}").into());
        }
        position += read as u64;
    }
}

fn client_resets(context: &Context<'_>, target: SocketAddr) -> Outcome<()> {
    let mut stream = context.path.connect_to(target)?;
    stream.write_all(&[ECHO])?;
    stream.write_all(&context.pattern.piece(0)[..SMALL])?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

fn target_resets(context: &Context<'_>, target: SocketAddr) -> Outcome<()> {
    let mut stream = context.path.connect_to(target)?;
    stream.write_all(&[RESET])?;
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => Err(format!("expected a reset, got {other:?}").into()),
    }
}

fn target_refuses(context: &Context<'_>, _: SocketAddr) -> Outcome<()> {
    let stream = context.path.connect_to_entry()?;
    // Port 1 has no listener.
    (&stream).write_all(&request((Ipv4Addr::LOCALHOST, 1).into()))?;
    match read_response(&stream)? {
        (502, _) => Ok(()),
        (_, head) => Err(format!("expected status 502, got {head}").into()),
    }
}

fn no_request(context: &Context<'_>, _: SocketAddr) -> Outcome<()> {
    let stream = context.path.connect_to_entry()?;
    (&stream).write_all(b"SSH-2.0-something\r\n\r\n")?;
    match read_response(&stream)? {
        (400, _) => Ok(()),
        (_, head) => Err(format!("expected status 400, got {head}").into()),
    }
}

fn client_disconnects(context: &Context<'_>, target: SocketAddr) -> Outcome<()> {
    let stream = context.path.connect_to_entry()?;
    (&stream).write_all(&request(target))?;
    Ok(())
}

fn both_close(context: &Context<'_>, target: SocketAddr) -> Outcome<()> {
    let mut stream = context.path.connect_to(target)?;
    stream.write_all(&[RESET])?;
    // The target may have closed first.
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}
