//! How many tunnels may live at once, by default: few enough that their threads, descriptors and mappings leave the host room.
//!
//! This cap is what keeps the process alive, not a nicety: a Rust process whose thread stacks cannot be mapped aborts
//! ([rust-lang/rust#78497]), and no error is returned that could be answered. It is taken once, at the start, from what the
//! system allows; what others use of that meanwhile is not looked at (`manual/operations.md`, limits and tuning).
//!
//! [rust-lang/rust#78497]: https://github.com/rust-lang/rust/issues/78497

use std::fs;
use std::path::{Component, Path};
use std::str::FromStr;

use rustix::process::{Resource, getrlimit};

/// More than this is no default for anybody: whoever needs it says so with `--max-tunnels`.
const MOST: u64 = 1024;

/// A tunnel is one thread; three quarters of them are left to the host and its children.
const SHARE_OF_THREADS: u64 = 4;
/// A tunnel is two sockets; half of the descriptors are left.
const SHARE_OF_FILES: u64 = 4;
/// A thread is four mappings (stack, guard, signal stack and its guard); three quarters are left.
const SHARE_OF_MAPPINGS: u64 = 16;
/// A thread's first allocation reserves 64 MiB of addresses for glibc's malloc, whether it uses them or not; half is left.
const SHARE_OF_ADDRESSES: u64 = 128 << 20;

/// Live tunnels at once: the number that was `asked` for, else what the limits of this process allow. At least 1, and never
/// so many that the process would abort.
///
/// `embedded`: relay and gateway share the process, so what a client sees as one tunnel is one in each.
pub(crate) fn tunnels(asked: Option<usize>, embedded: bool) -> usize {
    let limits = ProcessLimits::of_this_process();
    let Some(asked) = asked else {
        return limits.tunnels(embedded);
    };
    let most = limits.survivable(embedded);
    if asked > most {
        log::warn!(
            "{asked} tunnels would abort this process under its limit on mappings or address space; it takes {most}"
        );
    }
    asked.clamp(1, most)
}

/// What the system lets this process have; `None` is no limit, or none that could be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ProcessLimits {
    /// Threads and processes in our control group (`pids.max`).
    group_threads: Option<u64>,
    /// Threads and processes of our user (`RLIMIT_NPROC`; the kernel exempts root, this does not).
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

    /// The most that anybody may ask for: a thread or a descriptor too many is an error that is answered, a mapping too
    /// many is the end of the process.
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
        smallest(limits, MOST, embedded)
    }
}

/// The smallest of the shares, at most `most`; half of it for each of two ends in one process, and at least 1.
fn smallest<const N: usize>(shares: [(Option<u64>, u64); N], most: u64, embedded: bool) -> usize {
    let allowed = shares
        .into_iter()
        .filter_map(|(limit, share)| Some(limit? / share))
        .fold(most, u64::min);
    let each = if embedded { allowed / 2 } else { allowed };
    each.max(1) as usize
}

/// The smallest `pids.max` on the way from our control group up to the root of its hierarchy, mounted below `mounts`.
///
/// `groups` is `/proc/self/cgroup`: lines of `ID:CONTROLLERS:PATH`, see [cgroups(7)]. Without a namespace of its own a
/// container sees the host's path there, but mounts only its own part of the tree: folders of the path that do not exist set
/// no limit, and the mount point itself is then the container's group.
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
                // Version 2, alone or ("hybrid") beside version 1.
                let alone = smallest_on_the_way(mounts, path);
                let beside = smallest_on_the_way(&mounts.join("unified"), path);
                alone.into_iter().chain(beside).min()
            } else if controllers
                .split(',')
                .any(|controller| controller == "pids")
            {
                smallest_on_the_way(&mounts.join("pids"), path)
            } else {
                None
            }
        })
        .min()
}

fn smallest_on_the_way(root: &Path, path: &str) -> Option<u64> {
    let path = Path::new(path.trim_start_matches('/'));
    // A group outside our namespace is shown as `/../other`; of that way only the root is ours to see.
    let inside = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    let path = if inside { path } else { Path::new("") };
    path.ancestors()
        .filter_map(|group| number_in(&root.join(group).join("pids.max")))
        .min()
}

/// The number in a file of one; `max`, anything else and no file are `None`.
fn number_in(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    u64::from_str(text.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of control groups below a temporary folder: each file, and what is in it.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("its folder");
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
    fn what_would_abort_the_process_is_not_taken_whoever_asks() {
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
    fn the_number_asked_for_is_taken_as_it_is_but_never_zero() {
        assert_eq!(tunnels(Some(5000), false), 5000);
        assert_eq!(tunnels(Some(7), true), 7);
        assert_eq!(tunnels(Some(0), false), 1);
    }

    #[test]
    fn this_process_may_have_between_one_and_the_most() {
        let alone = tunnels(None, false);
        let embedded = tunnels(None, true);
        assert!((1..=1024).contains(&alone), "{alone}");
        assert_eq!(embedded, (alone / 2).max(1));
        let limits = ProcessLimits::of_this_process();
        assert_eq!(limits.files, getrlimit(Resource::Nofile).current);
        if cfg!(target_os = "linux") {
            assert!(limits.mappings.is_some(), "every Linux has this one");
        }
    }

    #[test]
    fn no_limit_at_all_is_still_the_most() {
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
    fn the_smallest_limit_on_the_way_up_counts_in_version_2() {
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
    fn a_container_that_mounts_only_its_own_group_finds_its_limit() {
        let root = tree(&[("pids.max", "200\n"), ("pids/pids.max", "100\n")]);
        let host_path = "docker/0123456789abcdef";
        let version_2 = format!("0::/{host_path}");
        assert_eq!(group_threads(&version_2, root.path()), Some(200));
        let version_1 = format!("3:pids:/{host_path}");
        assert_eq!(group_threads(&version_1, root.path()), Some(100));
        assert_eq!(group_threads("0::/../other", root.path()), Some(200));
    }

    #[test]
    fn what_cannot_be_read_as_a_limit_is_none() {
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
