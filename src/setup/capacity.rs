//! The default limit on tunnels: few enough that their threads, descriptors and mappings leave room
//! for the host.
//!
//! The limit keeps the process alive: a Rust process that cannot map a thread's stack aborts
//! ([rust-lang/rust#78497]) instead of returning an error. It is computed once, at the start, from
//! the limits of the system. What other processes use of them later is not considered
//! (`manual/operations.md`, limits and tuning).
//!
//! [rust-lang/rust#78497]: https://github.com/rust-lang/rust/issues/78497

use std::fs;
use std::path::{Component, Path};
use std::str::FromStr;

use rustix::process::{Resource, getrlimit};

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

/// The limit on tunnels at once: `requested`, else the default for this process. At least 1, and
/// never so many that the process would abort.
///
/// `embedded`: relay and gateway share the process, so one tunnel of a client uses two threads.
pub(crate) fn tunnels(requested: Option<usize>, embedded: bool) -> usize {
    let limits = ProcessLimits::of_this_process();
    let Some(requested) = requested else {
        return limits.tunnels(embedded);
    };
    let most = limits.survivable(embedded);
    if requested > most {
        log::warn!(
            "{requested} tunnels would abort this process, because of its limit on mappings or address space; at most {most} are allowed"
        );
    }
    requested.clamp(1, most)
}

/// The limits of this process. `None`: no limit, or one that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ProcessLimits {
    /// Threads and processes in the control group (`pids.max`).
    group_threads: Option<u64>,
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
            group_threads: fs::read_to_string("/proc/self/cgroup")
                .ok()
                .and_then(|groups| group_threads(&groups, Path::new("/sys/fs/cgroup"))),
            user_threads: getrlimit(Resource::Nproc).current,
            files: getrlimit(Resource::Nofile).current,
            mappings: number_in(Path::new("/proc/sys/vm/max_map_count")),
            addresses: getrlimit(Resource::As).current,
        }
    }

    /// The largest limit that a setting may choose. One thread or descriptor too many is an error
    /// that is handled; one mapping too many ends the process.
    fn survivable(self, embedded: bool) -> usize {
        let limits = [
            (self.mappings, SHARE_OF_MAPPINGS / 2),
            (self.addresses, SHARE_OF_ADDRESSES),
        ];
        smallest(limits, u64::from(u32::MAX), embedded)
    }

    fn tunnels(self, embedded: bool) -> usize {
        let limits = [
            (self.group_threads, SHARE_OF_THREADS),
            (self.user_threads, SHARE_OF_THREADS),
            (self.files, SHARE_OF_FILES),
            (self.mappings, SHARE_OF_MAPPINGS),
            (self.addresses, SHARE_OF_ADDRESSES),
        ];
        smallest(limits, LARGEST_DEFAULT, embedded)
    }
}

/// The smallest of the shares, at most `most`. Half of it for each of two ends in one process. At
/// least 1.
fn smallest<const N: usize>(shares: [(Option<u64>, u64); N], most: u64, embedded: bool) -> usize {
    let allowed = shares
        .into_iter()
        .filter_map(|(limit, share)| Some(limit? / share))
        .fold(most, u64::min);
    let each = if embedded { allowed / 2 } else { allowed };
    each.max(1) as usize
}

/// The smallest `pids.max` from this process's control group up to the root of its hierarchy. The
/// hierarchies are mounted below `mounts`.
///
/// `groups` is `/proc/self/cgroup`: lines of `ID:CONTROLLERS:PATH`, see [cgroups(7)]. Without a
/// cgroup namespace, a container sees the host's path there, but mounts only its part of the tree.
/// So directories of the path that do not exist set no limit, and the mount point is then the
/// container's group.
///
/// [cgroups(7)]: https://man7.org/linux/man-pages/man7/cgroups.7.html
fn group_threads(groups: &str, mounts: &Path) -> Option<u64> {
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter_map(|(controllers, path)| {
            if controllers.is_empty() {
                // Version 2, alone or beside version 1 ("hybrid").
                let alone = smallest_on_path(mounts, path);
                let beside = smallest_on_path(&mounts.join("unified"), path);
                alone.into_iter().chain(beside).min()
            } else if controllers
                .split(',')
                .any(|controller| controller == "pids")
            {
                smallest_on_path(&mounts.join("pids"), path)
            } else {
                None
            }
        })
        .min()
}

fn smallest_on_path(root: &Path, path: &str) -> Option<u64> {
    let path = Path::new(path.trim_start_matches('/'));
    // A group outside the namespace is shown as `/../other`. Only the root of its path is visible
    // here.
    let inside = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    let path = if inside { path } else { Path::new("") };
    path.ancestors()
        .filter_map(|group| number_in(&root.join(group).join("pids.max")))
        .min()
}

/// The number in a file. `max`, any other text and a missing file are `None`.
fn number_in(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    u64::from_str(text.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of control groups below a temporary directory: each file and its content.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("its directory");
            fs::write(path, content).expect("its file");
        }
        root
    }

    const PLENTY: ProcessLimits = ProcessLimits {
        group_threads: Some(1 << 20),
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
        assert_eq!(tight.survivable(false), 250);
        assert_eq!(tight.survivable(true), 125);
        let narrow = ProcessLimits {
            addresses: Some(1 << 30),
            files: Some(8),
            ..PLENTY
        };
        assert_eq!(narrow.survivable(false), 8);
        assert_eq!(ProcessLimits::default().survivable(true), (1 << 31) - 1);
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
        assert_eq!(ProcessLimits::default().tunnels(false), 1024);
        assert_eq!(ProcessLimits::default().tunnels(true), 512);
        assert_eq!(PLENTY.tunnels(false), 1024);
    }

    #[test]
    fn the_scarcest_resource_decides() {
        for (limits, expected) in [
            (
                ProcessLimits {
                    group_threads: Some(100),
                    ..PLENTY
                },
                25,
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
            assert_eq!(limits.tunnels(false), expected, "{limits:?}");
            assert_eq!(limits.tunnels(true), expected / 2, "{limits:?}");
        }
    }

    #[test]
    fn one_tunnel_is_always_allowed() {
        for files in 0..8 {
            let limits = ProcessLimits {
                files: Some(files),
                ..PLENTY
            };
            assert_eq!(limits.tunnels(false), 1);
            assert_eq!(limits.tunnels(true), 1);
        }
    }

    #[test]
    fn the_smallest_limit_up_to_the_root_counts_in_version_2() {
        let root = tree(&[
            ("a/b/c/pids.max", "max\n"),
            ("a/b/pids.max", "300\n"),
            ("a/pids.max", "900\n"),
            ("aside/pids.max", "1\n"),
        ]);
        assert_eq!(group_threads("0::/a/b/c\n", root.path()), Some(300));
        assert_eq!(group_threads("0::/a\n", root.path()), Some(900));
        assert_eq!(group_threads("0::/\n", root.path()), None);
    }

    #[test]
    fn the_controller_of_version_1_is_found_by_its_name() {
        let root = tree(&[
            ("pids/a/pids.max", "40\n"),
            ("pids/b/pids.max", "30\n"),
            ("unified/a/pids.max", "50\n"),
        ]);
        let groups = |line: &str| format!("9:name=systemd:/b\n4:memory:/b\n{line}");
        assert_eq!(group_threads(&groups("8:pids:/a"), root.path()), Some(40));
        assert_eq!(
            group_threads(&groups("8:cpu,pids:/a:b/..\n0::/a"), root.path()),
            Some(50)
        );
        assert_eq!(
            group_threads(&groups("8:pids:/a\n0::/a"), root.path()),
            Some(40)
        );
        assert_eq!(group_threads(&groups("8:mypids:/a"), root.path()), None);
    }

    #[test]
    fn a_container_that_mounts_only_its_group_finds_its_limit() {
        let root = tree(&[("pids.max", "200\n"), ("pids/pids.max", "100\n")]);
        let host_path = "docker/0123456789abcdef";
        let version_2 = format!("0::/{host_path}");
        assert_eq!(group_threads(&version_2, root.path()), Some(200));
        let version_1 = format!("3:pids:/{host_path}");
        assert_eq!(group_threads(&version_1, root.path()), Some(100));
        assert_eq!(group_threads("0::/../other", root.path()), Some(200));
    }

    #[test]
    fn a_text_that_is_not_a_number_is_no_limit() {
        let root = tree(&[
            ("max/pids.max", "max"),
            ("empty/pids.max", ""),
            ("words/pids.max", "ten"),
            ("negative/pids.max", "-1"),
            ("huge/pids.max", "99999999999999999999999"),
        ]);
        for group in ["max", "empty", "words", "negative", "huge", "missing"] {
            let groups = format!("0::/{group}");
            assert_eq!(group_threads(&groups, root.path()), None, "{group}");
        }
        for groups in ["", "\n\n", "0", "0:", "0::", "::", ":::", "\0:pids"] {
            assert_eq!(group_threads(groups, root.path()), None, "{groups:?}");
        }
    }
}
