//! The default limit on tunnels: few enough that their threads, descriptors and mappings leave room
//! for the host.
//!
//! The limit keeps the process alive: a Rust process that cannot map a thread's stack aborts
//! ([rust-lang/rust#78497]) instead of returning an error. It is computed once, at the start, from
//! the limits of the system. What other processes use of them later is not considered
//! (`manual/operations.md`, limits and tuning).
//!
//! [rust-lang/rust#78497]: https://github.com/rust-lang/rust/issues/78497

use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::cgroup::{GroupLimits, number_in};
use crate::control::log;

/// The largest default. An operator who needs more sets `--max-tunnels`.
const LARGEST_DEFAULT: u64 = 1024;

/// A tunnel uses one thread. Three quarters are left to the host and its children.
const SHARE_OF_THREADS: u64 = 4;
/// A tunnel uses two sockets. Half of the descriptors are left.
const SHARE_OF_FILES: u64 = 4;
/// A thread uses four mappings (stack, guard, signal stack and its guard). Three quarters are left.
const SHARE_OF_MAPPINGS: u64 = 16;
/// With glibc, a thread's first allocation reserves 64 MiB of addresses, used or not. Half of the
/// address space is left.
const SHARE_OF_ADDRESSES: u64 = 128 << 20;
/// A busy tunnel uses up to half a MiB: its buffers, and those of its sockets in the kernel, which
/// count too.
const SHARE_OF_MEMORY: u64 = 512 << 10;

/// The limit on tunnels at once, and what it follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) tunnels: usize,
    pub(crate) reason: &'static str,
}

/// The limit on tunnels at once: `requested`, else the default for this process. At least 1, and
/// never so many that the process would abort.
///
/// `embedded`: relay and gateway share the process, so one tunnel of a client uses two threads.
pub(crate) fn tunnels(requested: Option<usize>, embedded: bool) -> usize {
    let Capacity { tunnels, reason } = of_this_process(requested, embedded);
    if let Some(requested) = requested.filter(|requested| *requested > tunnels) {
        log::warn!(
            "{requested} tunnels would abort this process, because of its limit on {reason}; at most {tunnels} are allowed"
        );
    }
    tunnels
}

/// The same as [`tunnels`], with the reason and without a warning.
pub(crate) fn of_this_process(requested: Option<usize>, embedded: bool) -> Capacity {
    let limits = ProcessLimits::of_this_process();
    let Some(requested) = requested else {
        return limits.default_capacity(embedded);
    };
    let most = limits.survivable(embedded);
    if requested > most.tunnels {
        return most;
    }
    Capacity {
        tunnels: requested.max(1),
        reason: "max-tunnels",
    }
}

/// The limits of this process. `None`: no limit, or one that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ProcessLimits {
    /// The limits of the control group (`pids.max`, `memory.max`).
    group: GroupLimits,
    /// Threads and processes of the user (`RLIMIT_NPROC`). The kernel exempts root, this program
    /// does not.
    user_threads: Option<u64>,
    /// Open descriptors (`RLIMIT_NOFILE`).
    files: Option<u64>,
    /// Memory mappings (`vm.max_map_count`).
    mappings: Option<u64>,
    /// Bytes of address space (`RLIMIT_AS`).
    addresses: Option<u64>,
}

impl ProcessLimits {
    fn of_this_process() -> Self {
        Self {
            group: GroupLimits::of_this_process(),
            user_threads: getrlimit(Resource::Nproc).current,
            files: getrlimit(Resource::Nofile).current,
            mappings: number_in(Path::new("/proc/sys/vm/max_map_count")),
            addresses: getrlimit(Resource::As).current,
        }
    }

    /// The largest limit that a setting may choose. One thread or descriptor too many is an error
    /// that is handled; one mapping too many ends the process.
    fn survivable(self, embedded: bool) -> Capacity {
        let limits = [
            (self.mappings, SHARE_OF_MAPPINGS / 2, MAPPINGS),
            (self.addresses, SHARE_OF_ADDRESSES, ADDRESSES),
        ];
        smallest(limits, (u64::from(u32::MAX), "u32"), embedded)
    }

    fn default_capacity(self, embedded: bool) -> Capacity {
        let group = self.group;
        let limits = [
            (
                group.threads,
                SHARE_OF_THREADS,
                "pids.max of the control group",
            ),
            (group.memory, SHARE_OF_MEMORY, "memory of the control group"),
            (self.user_threads, SHARE_OF_THREADS, "processes (ulimit -u)"),
            (self.files, SHARE_OF_FILES, "descriptors (ulimit -n)"),
            (self.mappings, SHARE_OF_MAPPINGS, MAPPINGS),
            (self.addresses, SHARE_OF_ADDRESSES, ADDRESSES),
        ];
        smallest(limits, (LARGEST_DEFAULT, "default"), embedded)
    }
}

const MAPPINGS: &str = "mappings (vm.max_map_count)";
const ADDRESSES: &str = "address space (ulimit -v)";

/// The smallest of the shares, at most `most`. Half of it for each of two ends in one process. At
/// least 1.
fn smallest<const N: usize>(
    shares: [(Option<u64>, u64, &'static str); N],
    most: (u64, &'static str),
    embedded: bool,
) -> Capacity {
    let (allowed, reason) = shares
        .into_iter()
        .filter_map(|(limit, share, reason)| Some((limit? / share, reason)))
        .fold(
            most,
            |least, next| if next.0 < least.0 { next } else { least },
        );
    let each = if embedded { allowed / 2 } else { allowed };
    Capacity {
        tunnels: each.max(1) as usize,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: ProcessLimits = ProcessLimits {
        group: GroupLimits {
            threads: Some(1 << 20),
            memory: Some(1 << 40),
        },
        user_threads: Some(1 << 20),
        files: Some(1 << 20),
        mappings: Some(1 << 20),
        addresses: Some(1 << 40),
    };

    #[test]
    fn a_number_that_would_abort_the_process_is_reduced() {
        let tight = ProcessLimits {
            mappings: Some(2000),
            ..PLENTY
        };
        assert_eq!(tight.survivable(false).tunnels, 250);
        assert_eq!(tight.survivable(true).tunnels, 125);
        let narrow = ProcessLimits {
            addresses: Some(1 << 30),
            files: Some(8),
            ..PLENTY
        };
        assert_eq!(narrow.survivable(false).tunnels, 8);
        assert_eq!(
            ProcessLimits::default().survivable(true).tunnels,
            (1 << 31) - 1
        );
    }

    #[test]
    fn a_requested_number_is_used_but_never_zero() {
        assert_eq!(tunnels(Some(5000), false), 5000);
        assert_eq!(tunnels(Some(7), true), 7);
        assert_eq!(tunnels(Some(0), false), 1);
    }

    #[test]
    fn the_default_is_between_one_and_the_largest() {
        let alone = tunnels(None, false);
        let embedded = tunnels(None, true);
        assert!((1..=1024).contains(&alone), "{alone}");
        assert_eq!(embedded, (alone / 2).max(1));
        let limits = ProcessLimits::of_this_process();
        assert_eq!(limits.files, getrlimit(Resource::Nofile).current);
        if cfg!(target_os = "linux") {
            assert!(limits.mappings.is_some(), "every Linux has this limit");
        }
    }

    #[test]
    fn without_limits_the_default_is_the_largest() {
        assert_eq!(
            ProcessLimits::default().default_capacity(false).tunnels,
            1024
        );
        assert_eq!(ProcessLimits::default().default_capacity(true).tunnels, 512);
        assert_eq!(PLENTY.default_capacity(false).tunnels, 1024);
    }

    #[test]
    fn the_scarcest_resource_decides() {
        for (limits, expected) in [
            (
                ProcessLimits {
                    group: GroupLimits {
                        threads: Some(100),
                        ..PLENTY.group
                    },
                    ..PLENTY
                },
                25,
            ),
            (
                ProcessLimits {
                    group: GroupLimits {
                        memory: Some(32 << 20),
                        ..PLENTY.group
                    },
                    ..PLENTY
                },
                64,
            ),
            (
                ProcessLimits {
                    user_threads: Some(50),
                    ..PLENTY
                },
                12,
            ),
            (
                ProcessLimits {
                    files: Some(64),
                    ..PLENTY
                },
                16,
            ),
            (
                ProcessLimits {
                    mappings: Some(2000),
                    ..PLENTY
                },
                125,
            ),
            (
                ProcessLimits {
                    addresses: Some(4 << 30),
                    ..PLENTY
                },
                32,
            ),
        ] {
            assert_eq!(
                limits.default_capacity(false).tunnels,
                expected,
                "{limits:?}"
            );
            assert_eq!(
                limits.default_capacity(true).tunnels,
                expected / 2,
                "{limits:?}"
            );
        }
    }

    #[test]
    fn one_tunnel_is_always_allowed() {
        for files in 0..8 {
            let limits = ProcessLimits {
                files: Some(files),
                ..PLENTY
            };
            assert_eq!(limits.default_capacity(false).tunnels, 1);
            assert_eq!(limits.default_capacity(true).tunnels, 1);
        }
    }
}
