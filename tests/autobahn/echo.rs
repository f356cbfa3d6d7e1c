//! The sockets of `upstreamproxy::fuzzing::Echo`, for the Autobahn suite: `echo server PORT` or
//! `echo client PORT CASES`.
//!
//! The opening handshake is the minimum that the suite accepts. Other tests cover the handshake of
//! the project.

use std::env;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;
use upstreamproxy::fuzzing::Echo;

/// Longer than any pause of the suite.
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["server", port] => serve(port.parse()?),
        ["client", port, cases] => {
            let (port, cases) = (port.parse()?, cases.parse::<u32>()?);
            for case in 1..=cases {
                visit(port, &format!("/runCase?case={case}&agent=upstreamproxy"))?;
            }
            visit(port, "/updateReports?agent=upstreamproxy")
        }
        _ => Err("usage: echo server PORT, or echo client PORT CASES".into()),
    }
}

fn serve(port: u16) -> Outcome<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    println!("listening");
    for connection in listener.incoming() {
        // The suite breaks connections deliberately: an error ends only that connection.
        if let Err(error) = accept(connection?) {
            eprintln!("{error}");
        }
    }
    Ok(())
}

fn accept(mut stream: TcpStream) -> Outcome<()> {
    let (head, early) = read_head(&mut stream)?;
    let key = field(&head, "sec-websocket-key").ok_or("no key")?;
    let accept = derive_accept_key(key.as_bytes());
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    echo_until_closed(stream, Echo::server(), &early)
}

fn visit(port: u16, path: &str) -> Outcome<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let key = generate_key();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )?;
    let (head, early) = read_head(&mut stream)?;
    if field(&head, "sec-websocket-accept") != Some(&derive_accept_key(key.as_bytes())) {
        return Err(format!("{path}: {head}").into());
    }
    // The suite breaks connections deliberately: an error ends only that connection.
    if let Err(error) = echo_until_closed(stream, Echo::client(), &early) {
        eprintln!("{path}: {error}");
    }
    Ok(())
}

/// Reads a head; returns it with the bytes that arrived after it.
fn read_head(stream: &mut TcpStream) -> Outcome<(String, Vec<u8>)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let mut part = [0; 4096];
        let n = stream.read(&mut part)?;
        bytes.extend_from_slice(&part[..n]);
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let early = bytes.split_off(end + 4);
            return Ok((String::from_utf8(bytes)?, early));
        }
        if n == 0 {
            return Err("the connection ended inside a head".into());
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.trim())
}

/// Echoes until the WebSocket is closed. Then ends the connection without a reset, because a reset
/// can discard the close frame.
fn echo_until_closed(mut stream: TcpStream, mut echo: Echo, early: &[u8]) -> Outcome<()> {
    stream.write_all(&echo.receive(early))?;
    let mut part = vec![0; 64 << 10];
    while !echo.is_closed() {
        let n = stream.read(&mut part)?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&echo.receive(&part[..n]))?;
    }
    stream.shutdown(Shutdown::Write)?;
    while stream.read(&mut part)? > 0 {}
    Ok(())
}
