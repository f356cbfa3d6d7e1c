//! The resource usage of another process, from `/proc`: memory, threads, descriptors, and processor
//! time.
//!
//! Every user can read these files, of a non-dumpable process too, unless `/proc` is mounted with
//! `hidepid`. Then the result is `None` and the table shows a dash.

use std::fs;

pub(crate) use crate::proc_usage::cpu_seconds;
use crate::proc_usage::kib;

/// Resident memory in KiB.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// The current value.
    pub(crate) now: u64,
    /// The peak value.
    pub(crate) peak: u64,
}

/// The resident memory of the process.
pub(crate) fn memory(pid: u32) -> Option<Memory> {
    Some(Memory {
        now: kib(pid, "VmRSS:")?,
        peak: kib(pid, "VmHWM:")?,
    })
}

/// The numbers of threads and open descriptors. Only root can read the descriptors of a
/// non-dumpable process.
pub(crate) fn threads_and_descriptors(pid: u32) -> Option<(u64, u64)> {
    let count = |what: &str| {
        let entries = fs::read_dir(format!("/proc/{pid}/{what}")).ok()?;
        Some(entries.count() as u64)
    };
    Some((count("task")?, count("fd")?))
}
