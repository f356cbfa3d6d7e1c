//! The loads of the gate: always the same bytes in the same steps, so that the counts depend on the
//! program and not on the scheduler.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::Outcome;
use crate::measure::{close, joined, set_up};
use crate::path::Path;
use crate::pattern::{PIECE, TestPattern};

const MIB: u64 = 1 << 20;

/// The number of bytes in one step. The kernel passes on up to 64 KiB at once. A step stays below
/// this limit with the overhead of frames and TLS, so no read returns a part of it.
const STEP: usize = 32 << 10;

/// A kind of load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Up one tunnel in steps; each step waits until the previous one has arrived.
    Up,
    /// Down one tunnel in steps.
    Down,
    /// Sequential tunnels: CONNECT, one byte and back, and the end.
    SetUp,
    /// Up one tunnel at full speed. The amount per system call then also depends on the scheduler.
    FloodUp,
    /// Down one tunnel at full speed.
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

    /// Whether the counts also depend on the scheduler.
    pub(super) fn is_flood(self) -> bool {
        matches!(self, Self::FloodUp | Self::FloodDown)
    }

    /// The amount that is counted, in the unit of the figures.
    pub(super) fn amount(self) -> u64 {
        match self {
            Self::Up | Self::Down => 16,
            Self::SetUp => 100,
            Self::FloodUp | Self::FloodDown => 64,
        }
    }

    /// The unit of its figures.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::SetUp => "per tunnel",
            _ => "per MiB",
        }
    }

    /// The amount in the warm-up of every run, so that one-time costs are not counted.
    fn warm_up(self) -> u64 {
        match self {
            Self::Up | Self::Down => 1,
            Self::SetUp => 5,
            Self::FloodUp | Self::FloodDown => 0,
        }
    }
}

/// The path and the data for the loads.
pub(super) struct Context<'a> {
    pub(super) path: &'a Path,
    pub(super) listener: &'a TcpListener,
    pub(super) pattern: &'a TestPattern,
}

impl Context<'_> {
    /// Runs the warm-up, and `counted` in addition.
    pub(super) fn run(&self, counted: Option<Load>) -> Outcome<()> {
        for load in Load::ALL {
            let added = counted.filter(|counted| *counted == load);
            let amount = load.warm_up() + added.map_or(0, Load::amount);
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

    /// Fills the buffer, and checks that it contains the pattern at `position`.
    fn expect(&self, mut from: &TcpStream, position: u64, buffer: &mut [u8]) -> Outcome<()> {
        from.read_exact(buffer)?;
        if !self.pattern.matches(position, buffer) {
            return Err(format!("wrong data after {position} correct bytes").into());
        }
        Ok(())
    }
}
