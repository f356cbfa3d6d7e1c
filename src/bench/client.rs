//! One connection of a load: through a relay's port or direct, to an origin that speaks
//! [`super::wire`] or to any server.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::origin::{send, take};
use super::pattern::TestPattern;
use super::wire::{GREETING, Work};
use crate::control::deadline::Deadline;
use crate::http::authority::Authority;
use crate::probe::client::{Port, Tunnel};
use crate::probe::problem::Problem;

/// The upper bound of every wait of a load: far longer than the longest pause of a slow path.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait for the far end's greeting while it is unknown whether it sends one.
const GREETING_PATIENCE: Duration = Duration::from_secs(3);

/// How the far end is reached.
#[derive(Debug)]
pub(super) enum Route {
    /// Directly.
    Direct(SocketAddr),
    /// Through a relay's port.
    Tunnel {
        port: Port,
        target: Authority,
        /// The upper bound of the relay's own phases, before it responds to CONNECT.
        within: Duration,
    },
}

/// A connection, and what was received on it so far.
pub(super) struct LoadConn {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Route {
    /// Opens a connection. Nothing was received from the far end yet.
    pub(super) fn open(&self) -> Result<LoadConn, Problem> {
        let (stream, received) = match self {
            Self::Direct(address) => {
                let stream = TcpStream::connect_timeout(address, TIMEOUT);
                (stream.map_err(|error| broke(&error))?, Vec::new())
            }
            Self::Tunnel {
                port,
                target,
                within,
            } => Tunnel::open(port, target, *within)?.into_parts(),
        };
        let prepared = || {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))
        };
        prepared().map_err(|error| broke(&error))?;
        Ok(LoadConn { stream, received })
    }
}

impl LoadConn {
    /// Whether the far end greets as a benchmark origin does. Any other server sends something
    /// else, or nothing.
    pub(super) fn greets(&mut self) -> bool {
        self.greeting(GREETING_PATIENCE).is_ok()
    }

    /// Waits for the greeting of a known origin.
    pub(super) fn greeted(&mut self) -> Result<(), Problem> {
        self.greeting(TIMEOUT).map_err(|error| broke(&error))
    }

    fn greeting(&mut self, within: Duration) -> io::Result<()> {
        let deadline = Deadline::after(within);
        while self.received.len() < GREETING.len() && GREETING.starts_with(&self.received) {
            let left = deadline.remaining().filter(|left| !left.is_zero());
            self.stream
                .set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
            let mut piece = [0; GREETING.len()];
            let room = piece.len() - self.received.len();
            let count = self
                .stream
                .read(piece.get_mut(..room).unwrap_or_default())?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received
                .extend_from_slice(piece.get(..count).unwrap_or_default());
        }
        self.stream.set_read_timeout(Some(TIMEOUT))?;
        if self.received == GREETING {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the greeting is not that of a benchmark origin",
            ))
        }
    }

    /// Closes with a reset: nothing waits for more.
    pub(super) fn reset(self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// Closes cleanly, without waiting for the far end to close.
    pub(super) fn close(self) {
        // A failure means that the far end has closed already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Sends the request to the origin.
    pub(super) fn request(&mut self, work: Work) -> Result<(), Problem> {
        let line = format!("{work}\n");
        self.stream
            .write_all(line.as_bytes())
            .map_err(|error| broke(&error))
    }

    /// The same connection, for another thread.
    pub(super) fn duplicate(&self) -> Result<Self, Problem> {
        let stream = self.stream.try_clone().map_err(|error| broke(&error))?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    /// Sends one byte and reads it back.
    pub(super) fn round_trip(&mut self, byte: u8) -> Result<Duration, Problem> {
        let since = Instant::now();
        let mut back = [!byte];
        let mut trip = |stream: &mut TcpStream| {
            stream.write_all(&[byte])?;
            stream.read_exact(&mut back)
        };
        trip(&mut self.stream).map_err(|error| broke(&error))?;
        if back != [byte] {
            return Err(wrong());
        }
        Ok(since.elapsed())
    }

    /// Reads and verifies the pattern to its end. Returns the number of bytes.
    pub(super) fn receive(&mut self, pattern: &TestPattern) -> Result<u64, Problem> {
        take(&self.stream, pattern).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => wrong(),
            _ => broke(&error),
        })
    }

    /// Sends the pattern for this time, then the end of the stream.
    pub(super) fn send(&mut self, pattern: &TestPattern, time: Duration) -> Result<u64, Problem> {
        send(&self.stream, pattern, time)
            .and_then(|sent| {
                self.stream.shutdown(Shutdown::Write)?;
                Ok(sent)
            })
            .map_err(|error| broke(&error))
    }

    /// Waits for the origin's confirmation that all `sent` bytes arrived.
    pub(super) fn confirmed(&mut self, sent: u64) -> Result<(), Problem> {
        let mut answer = String::new();
        // A decimal number of 64 bits and the line feed.
        let read = (&self.stream).take(32).read_to_string(&mut answer);
        read.map_err(|error| broke(&error))?;
        match answer.trim_end().parse::<u64>() {
            Ok(received) if received == sent => Ok(()),
            _ => Err(wrong()),
        }
    }
}

fn broke(error: &io::Error) -> Problem {
    Problem::new(
        format!("a connection of the load broke: {error}"),
        "check the logs of the relay (-v) and of the gateway",
    )
}

fn wrong() -> Problem {
    Problem::new(
        "the bytes received differ from the bytes sent",
        "check whether something on the path changes or loses bytes",
    )
}
