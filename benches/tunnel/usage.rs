//! What another process has used so far, from `/proc`: processor time and memory.
//!
//! The files read here are open to everyone, of a non-dumpable process too, unless `/proc` is mounted with `hidepid`: then the
//! answer is `None` and the table shows a dash.

use std::fs;

/// The unit of the times in `/proc/PID/stat`: 10 ms on every Linux, whatever its kernel's own clock. See [proc_pid_stat(5)].
///
/// [proc_pid_stat(5)]: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
const SECONDS_PER_TICK: f64 = 0.01;

/// Processor seconds of all its threads, those that ended included.
pub(crate) fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold blanks. After it the state is field 3, user and system time 14 and 15.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).take(2);
    let mut ticks = || times.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) * SECONDS_PER_TICK)
}

/// Resident memory in KiB.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// At this moment.
    pub(crate) now: u64,
    /// The most so far.
    pub(crate) peak: u64,
}

/// How much of its memory is and was resident.
pub(crate) fn memory(pid: u32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some(Memory {
        now: field("VmRSS:")?,
        peak: field("VmHWM:")?,
    })
}

/// Threads and open descriptors; the latter of a non-dumpable process are shown to root only.
pub(crate) fn held(pid: u32) -> Option<(u64, u64)> {
    let count = |what: &str| {
        let entries = fs::read_dir(format!("/proc/{pid}/{what}")).ok()?;
        Some(entries.count() as u64)
    };
    Some((count("task")?, count("fd")?))
}
