//! Threads and descriptors of a process, from `/proc`: ours is non-dumpable, so root alone can count them.

use std::fs;
use std::time::{Duration, Instant};

use super::{PATIENCE, skip};

/// How often a count is taken while waiting for it to fall: nothing tells when another process closes a descriptor.
const GLANCE: Duration = Duration::from_millis(20);

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Threads.
    pub(crate) threads: usize,
    /// Open descriptors.
    pub(crate) descriptors: usize,
}

impl Counts {
    /// The counts of a living process; `None`, and the test is skipped, unless root asks.
    #[track_caller]
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map(Iterator::count);
        if let (Ok(threads), Ok(descriptors)) = (count("task"), count("fd")) {
            return Some(Self {
                threads,
                descriptors,
            });
        }
        skip("only root can look into a non-dumpable process");
        None
    }

    /// Waits until the process holds no more than this again.
    #[track_caller]
    pub(crate) fn returns(self, pid: u32) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(now) = Self::of(pid) {
            if now.threads <= self.threads && now.descriptors <= self.descriptors {
                return;
            }
            assert!(Instant::now() < deadline, "was {self:?}, is still {now:?}");
            std::thread::sleep(GLANCE);
        }
    }
}

/// How much processor time `pid` uses while nothing happens to it: fails where it is not close to none.
#[track_caller]
pub(crate) fn is_idle(pid: u32) {
    /// Long enough for a spin to show, on however busy a machine.
    const HELD: Duration = Duration::from_millis(700);
    /// In the kernel's hundredths of a second.
    const MOST: u64 = 10;
    let before = ticks(pid);
    std::thread::sleep(HELD);
    let used = ticks(pid) - before;
    assert!(used <= MOST, "{used} ticks of processor time for nothing");
}

/// Processor time so far, of user and system.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let behind_the_name = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<&str> = behind_the_name.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
