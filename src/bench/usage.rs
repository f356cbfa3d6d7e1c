//! Processor time and memory of a process, all threads included, from `/proc`. `None` if it cannot
//! be read.

use std::fs;

/// The unit of the times in `/proc/PID/stat`: 10 ms on every Linux, independent of the kernel's own
/// clock. See [proc_pid_stat(5)].
///
/// [proc_pid_stat(5)]: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
const SECONDS_PER_TICK: f64 = 0.01;

/// Processor seconds of all threads, including those that have ended.
pub(crate) fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may contain spaces. After it, the state is field 3, user and
    // system time are 14 and 15.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).take(2);
    let mut ticks = || times.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) * SECONDS_PER_TICK)
}

/// The KiB in the status line `field`, for example `VmRSS:`.
pub(crate) fn kib(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
