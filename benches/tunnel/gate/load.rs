//! What is sent while it is counted: always the same bytes in the same steps, so that it is the program that is counted and not
//! the scheduler.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::Outcome;
use crate::measure::{close, joined, set_up};
use crate::path::Path;
use crate::pattern::{PIECE, Pattern};

const MIB: u64 = 1 << 20;

/// What is sent in one step. The kernel hands on up to 64 KiB in one piece: with what frames and TLS add, one step stays one
/// piece, and nobody reads half of it.
const STEP: usize = 32 << 10;

/// A kind of load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Up one tunnel, step by step: each waits until the one before has arrived.
    Up,
    /// Down one tunnel in the same way.
    Down,
    /// Tunnels one after the other: CONNECT, one byte there and back, and the end.
    SetUp,
    /// Up one tunnel as fast as it goes: how much a system call moves is then the scheduler's doing too.
    FloodUp,
    /// Down one tunnel in the same way.
    FloodDown,
}

impl Load {
    /// All of them, in the order of the table.
    pub(super) const ALL: [Self; 5] = [
        Self::Up,
        Self::Down,
        Self::SetUp,
        Self::FloodUp,
        Self::FloodDown,
    ];

    /// Its name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::SetUp => "set-up",
            Self::FloodUp => "flood-up",
            Self::FloodDown => "flood-down",
        }
    }

    /// Whether what is counted depends on more than the program.
    pub(super) fn is_flood(self) -> bool {
        matches!(self, Self::FloodUp | Self::FloodDown)
    }

    /// How much of it is counted.
    pub(super) fn amount(self) -> u64 {
        match self {
            Self::Up | Self::Down => 16,
            Self::SetUp => 100,
            Self::FloodUp | Self::FloodDown => 64,
        }
    }

    /// What its figures are for.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::SetUp => "a tunnel",
            _ => "a MiB",
        }
    }

    /// How much of it goes before, in every run: what is paid once is not to be counted.
    fn before(self) -> u64 {
        match self {
            Self::Up | Self::Down => 1,
            Self::SetUp => 5,
            Self::FloodUp | Self::FloodDown => 0,
        }
    }
}

/// The ends between which it goes.
pub(super) struct Ground<'a> {
    pub(super) path: &'a Path,
    pub(super) listener: &'a TcpListener,
    pub(super) pattern: &'a Pattern,
}

impl Ground<'_> {
    /// What goes before, and `counted` besides.
    pub(super) fn run(&self, counted: Option<Load>) -> Outcome<()> {
        for load in Load::ALL {
            let more = counted.filter(|counted| *counted == load);
            let amount = load.before() + more.map_or(0, Load::amount);
            match load {
                _ if amount == 0 => {}
                Load::SetUp => {
                    set_up(self.path, self.listener, usize::try_from(amount)?, 1)?;
                }
                Load::Up | Load::FloodUp => self.transfer(load, amount * MIB, true)?,
                Load::Down | Load::FloodDown => self.transfer(load, amount * MIB, false)?,
            }
        }
        Ok(())
    }

    fn transfer(&self, load: Load, bytes: u64, up: bool) -> Outcome<()> {
        let (near, far) = self.path.pair(self.listener)?;
        let (from, to) = if up { (&near, &far) } else { (&far, &near) };
        if load.is_flood() {
            self.flood(from, to, bytes)?;
        } else {
            self.steps(from, to, bytes)?;
        }
        close(&far, &near)?;
        close(&near, &far)
    }

    fn steps(&self, mut from: &TcpStream, mut to: &TcpStream, bytes: u64) -> Outcome<()> {
        let mut buffer = vec![0; STEP];
        for position in (0..bytes).step_by(STEP) {
            from.write_all(&self.pattern.piece(position)[..STEP])?;
            self.expect(to, position, &mut buffer)?;
            to.write_all(&[0])?;
            from.read_exact(&mut [0])?;
        }
        Ok(())
    }

    fn flood(&self, mut from: &TcpStream, to: &TcpStream, bytes: u64) -> Outcome<()> {
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                for position in (0..bytes).step_by(PIECE) {
                    from.write_all(self.pattern.piece(position))?;
                }
                Ok(())
            });
            let mut buffer = vec![0; PIECE];
            for position in (0..bytes).step_by(PIECE) {
                self.expect(to, position, &mut buffer)?;
            }
            joined(sender)
        })
    }

    /// Fills the buffer with what stands at `position`, and with nothing else.
    fn expect(&self, mut from: &TcpStream, position: u64, buffer: &mut [u8]) -> Outcome<()> {
        from.read_exact(buffer)?;
        if !self.pattern.matches(position, buffer) {
            return Err(format!("wrong bytes after {position} right ones").into());
        }
        Ok(())
    }
}
