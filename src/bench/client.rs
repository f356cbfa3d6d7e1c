//! One connection of a load: through a relay's port or direct, to an origin that speaks
//! [`super::wire`] or to any server.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
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
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

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

impl Route {
    /// Opens a connection. Nothing was received from the far end yet.
    pub(super) fn open(&self) -> Result<LoadConn, Problem> {
        let conn = match self {
            Self::Direct(address) => Tunnel::direct(*address, TIMEOUT)?,
            Self::Tunnel {
                port,
                target,
                within,
            } => Tunnel::open(port, target, *within)?,
        };
        conn.stream.set_nodelay(true)?;
        conn.stream.set_read_timeout(Some(TIMEOUT))?;
        conn.stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(LoadConn(conn))
    }
}

/// A connection of a load. Its errors become problems of the measurement.
pub(super) struct LoadConn(Tunnel);

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::new(
                "the bytes received differ from the bytes sent",
                "check whether something on the path changes or loses bytes",
            ),
            _ => Self::new(
                format!("a connection of the load broke: {error}"),
                "check the logs of the relay (-v) and of the gateway",
            ),
        }
    }
}

impl LoadConn {
    /// Waits for the greeting of a benchmark origin. Any other server sends something else, or
    /// nothing.
    pub(super) fn greeted(&mut self, within: Duration) -> io::Result<()> {
        self.0.receive(Deadline::after(within), |received| {
            received.len() >= GREETING.len() || !GREETING.starts_with(received)
        })?;
        self.0.stream.set_read_timeout(Some(TIMEOUT))?;
        if self.0.received() == GREETING {
            return Ok(());
        }
        let what = "the greeting is not that of a benchmark origin";
        Err(io::Error::other(what))
    }

    /// Closes with a reset: nothing waits for more.
    pub(super) fn reset(self) {
        let _ = SockRef::from(&self.0.stream).set_linger(Some(Duration::ZERO));
    }

    /// Closes cleanly, without waiting for the far end to close.
    pub(super) fn close(self) {
        // A failure means that the far end has closed already.
        let _ = self.0.stream.shutdown(Shutdown::Write);
    }

    /// Sends the request to the origin.
    pub(super) fn request(&mut self, work: Work) -> io::Result<()> {
        self.0.stream.write_all(format!("{work}\n").as_bytes())
    }

    /// Sends one byte and reads it back.
    pub(super) fn round_trip(&mut self, byte: u8) -> io::Result<Duration> {
        let since = Instant::now();
        let mut back = [!byte];
        self.0.stream.write_all(&[byte])?;
        self.0.stream.read_exact(&mut back)?;
        if back != [byte] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(since.elapsed())
    }

    /// Reads and verifies the pattern to its end. Returns the number of bytes.
    pub(super) fn receive(&self, pattern: &TestPattern) -> io::Result<u64> {
        take(&self.0.stream, pattern)
    }

    /// Sends the pattern for this time, then the end of the stream.
    pub(super) fn send(&self, pattern: &TestPattern, time: Duration) -> io::Result<u64> {
        let sent = send(&self.0.stream, pattern, time)?;
        self.0.stream.shutdown(Shutdown::Write)?;
        Ok(sent)
    }

    /// Waits for the origin's confirmation that all `sent` bytes arrived.
    pub(super) fn confirmed(&self, sent: u64) -> io::Result<()> {
        let mut answer = String::new();
        // A decimal number of 64 bits and the line feed.
        (&self.0.stream).take(32).read_to_string(&mut answer)?;
        match answer.trim_end().parse::<u64>() {
            Ok(received) if received == sent => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
