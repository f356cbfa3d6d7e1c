//! What a tunnel costs that stands and carries nothing: resident memory of all processes on the path, by the number of tunnels.
//!
//! The processes are fresh ones, so that nothing that an earlier load left behind hides what the tunnels take.

use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::measure::{close, round_trip_over};
use crate::path::Path;
use crate::{Outcome, usage};

/// The group's name.
pub(crate) const NAME: &str = "idle";
/// What one path takes, in seconds, for the estimate.
pub(crate) const COST: f64 = 6.0;

/// Descriptors that are none of the tunnels': logs, listeners, what the harness has open.
const OTHER_DESCRIPTORS: usize = 100;
/// How often memory is looked at, and how long it has at least and at most to come to rest: buffers are shed after 300 ms, and
/// threads with nothing to do leave after 2 s.
const GLANCE: Duration = Duration::from_millis(250);
const REST: (Duration, Duration) = (Duration::from_millis(2500), Duration::from_secs(6));

/// What the processes of one path held.
pub(crate) struct Idle {
    /// The path's name.
    pub(crate) path: &'static str,
    /// So many tunnels.
    pub(crate) tunnels: usize,
    /// Each process: its role; KiB resident before, with the tunnels, and after them.
    pub(crate) processes: Vec<(&'static str, [u64; 3])>,
}

impl Idle {
    /// KiB for each tunnel, all processes together.
    pub(crate) fn per_tunnel(&self) -> f64 {
        let sum = |when: usize| self.processes.iter().map(|p| p.1[when]).sum::<u64>() as f64;
        (sum(1) - sum(0)) / self.tunnels as f64
    }
}

/// Lets this process, and what it starts, have the descriptors that it may have; returns how many.
pub(crate) fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised it stays as it was.
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

/// Holds `wanted` tunnels, or as many as there are descriptors for, over a path that `start` makes to its target.
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
    // What is made once and kept belongs to what was there before.
    drop_all(open(1)?)?;
    let before = at_rest(&path)?;
    let held = open(tunnels)?;
    let with = at_rest(&path)?;
    drop_all(held)?;
    let after = at_rest(&path)?;
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

/// KiB resident of each process, once that falls no more.
fn at_rest(path: &Path) -> Outcome<Vec<u64>> {
    let begun = Instant::now();
    let look = || -> Outcome<Vec<u64>> {
        let looks = path.processes.iter().map(|process| {
            let memory = usage::memory(process.pid());
            let missing = || format!("the memory of the {} cannot be read", process.role);
            Ok(memory.ok_or_else(missing)?.now)
        });
        looks.collect()
    };
    let mut last = look()?;
    loop {
        thread::sleep(GLANCE);
        let now = look()?;
        let falls = now.iter().zip(&last).any(|(now, last)| now < last);
        let waited = begun.elapsed();
        if waited >= REST.1 || (waited >= REST.0 && !falls) {
            return Ok(now);
        }
        last = now;
    }
}
