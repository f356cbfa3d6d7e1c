//! An origin on loopback that echoes what it receives: the far end of round trips without an
//! upstream.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use crate::control::log;
use crate::control::stop::Stop;
use crate::probe::origin::{Origin, ready};

/// How long one write may block.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts an origin on a free port. Dropping it stops it.
pub(super) fn start() -> io::Result<Origin> {
    Origin::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, serve)
}

/// Serves one connection after the other: the round trips do not overlap.
fn serve(listener: &TcpListener, stop: &Stop) {
    while ready(listener, stop, None) {
        match listener.accept() {
            // A failure is reported at the other end of the tunnel.
            Ok((stream, _)) => drop(echo(stream, stop)),
            Err(error) => {
                log::debug!("the built-in origin stopped: {error}");
                return;
            }
        }
    }
}

fn echo(mut stream: TcpStream, stop: &Stop) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut bytes = [0; 16 << 10];
    while ready(&stream, stop, None) {
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            break;
        }
        stream.write_all(bytes.get(..count).unwrap_or_default())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_back_what_it_gets_and_ends_with_a_connection_open() {
        let origin = start().unwrap();
        let mut stream = TcpStream::connect(origin.local_addr()).unwrap();
        stream.write_all(b"there and back").unwrap();
        let mut received = [0; 14];
        stream.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"there and back");
        drop(origin);
        assert!(matches!(stream.read(&mut received), Ok(0) | Err(_)));
    }
}
