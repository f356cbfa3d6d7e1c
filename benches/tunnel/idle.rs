//! Measures the memory of idle tunnels: the resident memory of all processes on the path, divided
//! by the number of tunnels.
//!
//! The processes are new, so memory that an earlier load left allocated cannot hide the result.

use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::measure::{close, round_trip_over};
use crate::path::Path;
use crate::{Outcome, usage};

/// The name of the test.
pub(crate) const NAME: &str = "idle";
/// The estimated duration for one path, in seconds.
pub(crate) const COST: f64 = 6.0;

/// Descriptors for other uses: logs, listeners, the harness.
const OTHER_DESCRIPTORS: usize = 100;
/// The interval between memory readings.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The minimum and maximum time for memory to settle: buffers are released after 300 ms, and idle
/// threads end after 2 s.
const SETTLE: (Duration, Duration) = (Duration::from_millis(2500), Duration::from_secs(6));

/// The memory of the processes of one path.
pub(crate) struct Idle {
    /// The path's name.
    pub(crate) path: &'static str,
    /// The number of tunnels.
    pub(crate) tunnels: usize,
    /// For each process: its role; resident KiB before, with, and after the tunnels.
    pub(crate) processes: Vec<(&'static str, [u64; 3])>,
}

impl Idle {
    /// KiB per tunnel, all processes together.
    pub(crate) fn per_tunnel(&self) -> f64 {
        let sum = |when: usize| self.processes.iter().map(|p| p.1[when]).sum::<u64>() as f64;
        (sum(1) - sum(0)) / self.tunnels as f64
    }
}

/// Raises the descriptor limit of this process and its children to the maximum. Returns the limit.
pub(crate) fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // If this fails, the limit stays unchanged.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    let limit = getrlimit(Resource::Nofile);
    limit.current.map_or(usize::MAX, |limit| limit as usize)
}

/// Opens `wanted` tunnels, or as many as the descriptor limit allows, over a path that `start`
/// creates to its target.
pub(crate) fn measure(
    start: impl FnOnce(SocketAddr) -> Outcome<Path>,
    target: &TcpListener,
    wanted: usize,
    descriptors: usize,
) -> Outcome<Idle> {
    // Both ends of a tunnel are in this process.
    let tunnels = wanted.min(descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2);
    let path = start(target.local_addr()?)?;
    let open = |count: usize| -> Outcome<Vec<_>> {
        (0..count)
            .map(|_| {
                let (near, far) = path.pair(target)?;
                round_trip_over(&near, &far)?;
                Ok((near, far))
            })
            .collect()
    };
    // Resources that are created once and kept belong to the baseline.
    drop_all(open(1)?)?;
    let before = settled_memory(&path)?;
    let open_tunnels = open(tunnels)?;
    let with = settled_memory(&path)?;
    drop_all(open_tunnels)?;
    let after = settled_memory(&path)?;
    let processes = path.processes.iter().enumerate();
    let processes = processes
        .map(|(at, process)| (process.role, [before[at], with[at], after[at]]))
        .collect();
    let name = path.name;
    path.stop()?;
    Ok(Idle {
        path: name,
        tunnels,
        processes,
    })
}

fn drop_all(pairs: Vec<(std::net::TcpStream, std::net::TcpStream)>) -> Outcome<()> {
    for (near, far) in pairs {
        close(&near, &far)?;
        close(&far, &near)?;
    }
    Ok(())
}

/// The resident KiB of each process, once it decreases no more.
fn settled_memory(path: &Path) -> Outcome<Vec<u64>> {
    let begun = Instant::now();
    let read = || -> Outcome<Vec<u64>> {
        let values = path.processes.iter().map(|process| {
            let memory = usage::memory(process.pid());
            let missing = || format!("the memory of the {} cannot be read", process.role);
            Ok(memory.ok_or_else(missing)?.now)
        });
        values.collect()
    };
    let mut last = read()?;
    loop {
        thread::sleep(POLL_INTERVAL);
        let now = read()?;
        let decreases = now.iter().zip(&last).any(|(now, last)| now < last);
        let waited = begun.elapsed();
        if waited >= SETTLE.1 || (waited >= SETTLE.0 && !decreases) {
            return Ok(now);
        }
        last = now;
    }
}
