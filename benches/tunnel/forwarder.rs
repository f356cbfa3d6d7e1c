//! A plain TCP port forwarder, the reference: the cost of a hop that only copies.
//!
//! It is this program in another process, with two blocking threads per connection and no protocol.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crate::Outcome;
use crate::pattern::PIECE;

/// The first argument that makes this program a forwarder; the port to forward to follows.
pub(crate) const ROLE: &str = "--forwarder";

/// Forwards to `port` on loopback until standard input ends, which happens when the load generator
/// ends.
pub(crate) fn run(port: &str) -> Outcome<()> {
    let to: u16 = port
        .parse()
        .map_err(|_| format!("{ROLE} needs a port, not {port}"))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    writeln!(
        io::stdout(),
        "{{\"port\":{}}}",
        listener.local_addr()?.port()
    )?;
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || forward(client, to));
        }
    });
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn forward(client: TcpStream, to: u16) -> io::Result<()> {
    let target = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
    for stream in [&client, &target] {
        stream.set_nodelay(true)?;
    }
    let (client, target) = (Arc::new(client), Arc::new(target));
    let (up_from, up_to) = (Arc::clone(&client), Arc::clone(&target));
    let up = thread::spawn(move || copy(&up_from, &up_to));
    let down = copy(&target, &client);
    up.join().map_or(Ok(()), |up| up.and(down))
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer)? {
            0 => return to.shutdown(Shutdown::Write),
            count => to.write_all(&buffer[..count])?,
        }
    }
}
