//! What another process has used so far, from `/proc`: memory, threads, descriptors, and processor time.
//!
//! The files read here are open to everyone, of a non-dumpable process too, unless `/proc` is mounted with `hidepid`: then the
//! answer is `None` and the table shows a dash.

use std::fs;

pub(crate) use crate::used::cpu_seconds;
use crate::used::kib;

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
    Some(Memory {
        now: kib(pid, "VmRSS:")?,
        peak: kib(pid, "VmHWM:")?,
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
