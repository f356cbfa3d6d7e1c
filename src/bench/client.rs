//! One connection of the load: through a relay's port or straight, to an origin that speaks [`super::wire`] or to anything.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::origin::{send, take};
use super::pattern::Pattern;
use super::wire::{GREETING, Work};
use crate::control::deadline::Deadline;
use crate::doctor::check::Problem;
use crate::doctor::client::{Port, Tunnel};
use crate::http::authority::Authority;

/// How long anything may take that a load waits for: far over a slow path's longest pause.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the far end is given to greet, where nobody knows yet whether it does.
const GREETING_PATIENCE: Duration = Duration::from_secs(3);

/// A way to the far end.
#[derive(Debug)]
pub(super) enum Way {
    /// Straight to it.
    Direct(SocketAddr),
    /// Through a relay's port.
    Tunnel {
        port: Port,
        target: Authority,
        /// What the relay's own phases may take, before it answers.
        within: Duration,
    },
}

/// A connection over a way, and what came of the far end's words.
pub(super) struct Visit {
    stream: TcpStream,
    came: Vec<u8>,
}

impl Way {
    /// A connection over it; the far end has said nothing yet.
    pub(super) fn open(&self) -> Result<Visit, Problem> {
        let (stream, came) = match self {
            Self::Direct(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE);
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
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))
        };
        prepared().map_err(|error| broke(&error))?;
        Ok(Visit { stream, came })
    }
}

impl Visit {
    /// Whether the far end greets as an origin of the benchmark does. One that says something else, or nothing, does not.
    pub(super) fn greets(&mut self) -> bool {
        self.greeting(GREETING_PATIENCE).is_ok()
    }

    /// Waits for the greeting, which is known to come.
    pub(super) fn greeted(&mut self) -> Result<(), Problem> {
        self.greeting(PATIENCE).map_err(|error| broke(&error))
    }

    fn greeting(&mut self, within: Duration) -> io::Result<()> {
        let deadline = Deadline::after(within);
        while self.came.len() < GREETING.len() && GREETING.starts_with(&self.came) {
            let left = deadline.remaining().filter(|left| !left.is_zero());
            self.stream
                .set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
            let mut piece = [0; GREETING.len()];
            let room = piece.len() - self.came.len();
            let count = self
                .stream
                .read(piece.get_mut(..room).unwrap_or_default())?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.came
                .extend_from_slice(piece.get(..count).unwrap_or_default());
        }
        self.stream.set_read_timeout(Some(PATIENCE))?;
        if self.came == GREETING {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "another greeting came",
            ))
        }
    }

    /// Leaves with a reset, after which nobody waits for more.
    pub(super) fn hang_up(self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// Leaves in order, without waiting for the far end's leave.
    pub(super) fn leave(self) {
        // One that has gone already has been left.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Says what is wanted of the origin.
    pub(super) fn ask(&mut self, work: Work) -> Result<(), Problem> {
        let line = format!("{work}\n");
        self.stream
            .write_all(line.as_bytes())
            .map_err(|error| broke(&error))
    }

    /// The same connection for another thread.
    pub(super) fn half(&self) -> Result<Self, Problem> {
        let stream = self.stream.try_clone().map_err(|error| broke(&error))?;
        Ok(Self {
            stream,
            came: Vec::new(),
        })
    }

    /// One byte there and back.
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

    /// Takes the pattern to its end: how many bytes came.
    pub(super) fn receive(&mut self, pattern: &Pattern) -> Result<u64, Problem> {
        take(&self.stream, pattern).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => wrong(),
            _ => broke(&error),
        })
    }

    /// Sends the pattern for so long, and its end.
    pub(super) fn send(&mut self, pattern: &Pattern, time: Duration) -> Result<u64, Problem> {
        send(&self.stream, pattern, time)
            .and_then(|sent| {
                self.stream.shutdown(Shutdown::Write)?;
                Ok(sent)
            })
            .map_err(|error| broke(&error))
    }

    /// Waits for the origin's word that all of the `sent` bytes came.
    pub(super) fn confirmed(&mut self, sent: u64) -> Result<(), Problem> {
        let mut answer = String::new();
        // A number of 64 bits and its line's end.
        let read = (&self.stream).take(32).read_to_string(&mut answer);
        read.map_err(|error| broke(&error))?;
        match answer.trim_end().parse::<u64>() {
            Ok(came) if came == sent => Ok(()),
            _ => Err(wrong()),
        }
    }
}

fn broke(error: &io::Error) -> Problem {
    Problem::new(
        format!("a connection of the load broke: {error}"),
        "look at the logs of the relay (-v) and of the gateway",
    )
}

fn wrong() -> Problem {
    Problem::new(
        "what came is not what was sent",
        "see whether something on the way changes or loses bytes",
    )
}
