//! Threads and descriptors of a process, from `/proc`. The processes under test are non-dumpable,
//! so only root can count them.

use std::fs;
use std::time::{Duration, Instant};

use super::{TIMEOUT, skip};

/// The polling interval of `wait_until_restored`: there is no event when another process closes a
/// descriptor.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The resources that a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResourceCounts {
    /// Threads.
    pub(crate) threads: usize,
    /// Open descriptors.
    pub(crate) descriptors: usize,
}

impl ResourceCounts {
    /// ResourceCounts the threads and descriptors of a running process. Returns `None`, and the
    /// test is skipped, if this user may not read them.
    #[track_caller]
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map(Iterator::count);
        if let (Ok(threads), Ok(descriptors)) = (count("task"), count("fd")) {
            return Some(Self {
                threads,
                descriptors,
            });
        }
        skip("only root can inspect a non-dumpable process");
        None
    }

    /// Waits until the process holds no more than this again.
    #[track_caller]
    pub(crate) fn wait_until_restored(self, pid: u32) {
        let deadline = Instant::now() + TIMEOUT;
        while let Some(now) = Self::of(pid) {
            if now.threads <= self.threads && now.descriptors <= self.descriptors {
                return;
            }
            assert!(Instant::now() < deadline, "was {self:?}, is still {now:?}");
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Fails if `pid` uses more than a minimum of processor time while it should be idle.
#[track_caller]
pub(crate) fn assert_idle(pid: u32) {
    /// Long enough to detect a busy loop on a loaded machine.
    const INTERVAL: Duration = Duration::from_millis(700);
    /// In clock ticks of 10 ms.
    const MAX_TICKS: u64 = 10;
    let before = ticks(pid);
    std::thread::sleep(INTERVAL);
    let used = ticks(pid) - before;
    assert!(
        used <= MAX_TICKS,
        "used {used} ticks of processor time while idle"
    );
}

/// The user and system time of the process so far, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
