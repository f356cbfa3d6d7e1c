//! The limits of this process's control groups ([cgroups(7)]), version 1 and 2.
//!
//! A limit of a group also applies to the groups below it. So the smallest one counts, from the own
//! group up to the root of the mount. Without a cgroup namespace, a container sees the host's path
//! of its group, but mounts only its part of the tree: directories of the path that do not exist
//! set no limit, and the mount point is then the container's group.
//!
//! [cgroups(7)]: https://man7.org/linux/man-pages/man7/cgroups.7.html

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// The limits of the groups. `None`: no limit, or one that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupLimits {
    /// Threads and processes.
    pub(super) threads: Option<u64>,
    /// Bytes of memory.
    pub(super) memory: Option<u64>,
}

impl GroupLimits {
    pub(super) fn of_this_process() -> Self {
        let read = |name| fs::read_to_string(Path::new("/proc/self").join(name));
        match (read("cgroup"), read("mountinfo")) {
            (Ok(groups), Ok(mounts)) => Self::read(&groups, &mounts),
            _ => Self::default(),
        }
    }

    /// `groups` and `mounts` are `/proc/self/cgroup` and `/proc/self/mountinfo`.
    fn read(groups: &str, mounts: &str) -> Self {
        let smallest = |controller, files: &[&str]| {
            directories(groups, mounts, controller)
                .iter()
                .flat_map(|directory| files.iter().map(|file| directory.join(file)))
                .filter_map(|file| number_in(&file))
                .min()
        };
        Self {
            threads: smallest("pids", &["pids.max"]),
            memory: smallest(
                "memory",
                &["memory.max", "memory.high", "memory.limit_in_bytes"],
            ),
        }
    }
}

/// The directories of the own group for `controller` and of the groups above it.
fn directories(groups: &str, mounts: &str, controller: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let lists = |list: &str| list.split(',').any(|name| name == controller);
        let own = match mount.kind {
            "cgroup2" => path_of(groups, str::is_empty),
            "cgroup" if lists(mount.options) => path_of(groups, lists),
            _ => None,
        };
        let Some(own) = own else {
            continue;
        };
        // A group outside the namespace is shown as `/../other`.
        let inside = Path::new(own).strip_prefix(mount.root).ok();
        let inside = inside.filter(|path| {
            path.components()
                .all(|component| matches!(component, Component::Normal(_)))
        });
        let path = inside.unwrap_or(Path::new(""));
        found.extend(path.ancestors().map(|group| mount.point.join(group)));
    }
    found
}

/// The path of the group whose controllers match, from lines of `ID:CONTROLLERS:PATH`.
fn path_of(groups: &str, matches: impl Fn(&str) -> bool) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        matches(controllers).then_some(path)
    })
}

/// A line of `/proc/self/mountinfo`: numbers, root, mount point, options, optional fields, `-`,
/// kind, source, options of the file system.
struct Mount<'a> {
    root: &'a str,
    point: &'a Path,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut fields = file_system.split(' ');
        let kind = fields.next()?;
        Some(Self {
            root,
            point: Path::new(point),
            kind,
            options: fields.nth(1)?,
        })
    }
}

/// The number in a file. `max`, any other text and a missing file are `None`.
pub(super) fn number_in(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    u64::from_str(text.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of control groups below a temporary directory: each file and its content.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            for (path, content) in files {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            Self(root)
        }

        /// The line of a mount of the group `root` at `point` in the tree.
        fn mount(&self, root: &str, point: &str, kind: &str, options: &str) -> String {
            let point = self.0.path().join(point);
            let point = point.to_str().unwrap().trim_end_matches('/');
            format!("31 23 0:28 {root} {point} rw,nosuid shared:9 - {kind} none rw,{options}\n")
        }

        fn version_2(&self, groups: &str) -> GroupLimits {
            GroupLimits::read(groups, &self.mount("/", "", "cgroup2", "nsdelegate"))
        }
    }

    fn limits(threads: Option<u64>, memory: Option<u64>) -> GroupLimits {
        GroupLimits { threads, memory }
    }

    #[test]
    fn the_smallest_limit_up_to_the_root_of_the_mount_counts_in_version_2() {
        let tree = Tree::new(&[
            ("a/b/c/pids.max", "max\n"),
            ("a/b/c/memory.max", "5000\n"),
            ("a/b/c/memory.high", "4000\n"),
            ("a/b/pids.max", "300\n"),
            ("a/pids.max", "900\n"),
            ("a/memory.max", "7000\n"),
            ("aside/pids.max", "1\n"),
        ]);
        for (group, threads, memory) in [
            ("/a/b/c", Some(300), Some(4000)),
            ("/a", Some(900), Some(7000)),
            ("/", None, None),
        ] {
            let found = tree.version_2(&format!("0::{group}\n"));
            assert_eq!(found, limits(threads, memory), "{group}");
        }
    }

    #[test]
    fn the_controllers_of_version_1_are_found_by_their_names_and_mounts() {
        let tree = Tree::new(&[
            ("p/a/pids.max", "40\n"),
            ("p/b/pids.max", "30\n"),
            ("m/b/memory.limit_in_bytes", "9223372036854771712\n"),
            ("m/memory.limit_in_bytes", "6000\n"),
            ("u/a/pids.max", "50\n"),
        ]);
        let mounts = tree.mount("/", "p", "cgroup", "cpu,pids")
            + &tree.mount("/", "m", "cgroup", "memory")
            + &tree.mount("/", "u", "cgroup2", "nsdelegate")
            + &tree.mount("/", "p", "tmpfs", "pids");
        let read = |groups: &str| GroupLimits::read(groups, &mounts);
        let found = read("9:name=systemd:/b\n8:cpu,pids:/a\n4:memory:/b\n");
        assert_eq!(found, limits(Some(40), Some(6000)));
        assert_eq!(read("8:pids:/a:b/..\n0::/a"), limits(Some(50), None));
        assert_eq!(read("8:pids:/a\n0::/a"), limits(Some(40), None));
        assert_eq!(read("8:mypids:/a"), limits(None, None));
    }

    #[test]
    fn a_container_that_mounts_only_its_group_finds_its_limits() {
        let tree = Tree::new(&[("pids.max", "200\n"), ("sub/memory.max", "100\n")]);
        let host = "/docker/0123456789abcdef";
        // The mount shows its root if there is no namespace.
        let bound = tree.mount(host, "", "cgroup2", "");
        let groups = format!("0::{host}/sub");
        let found = GroupLimits::read(&groups, &bound);
        assert_eq!(found, limits(Some(200), Some(100)));
        for group in [host, "/../other"] {
            let found = tree.version_2(&format!("0::{group}"));
            assert_eq!(found, limits(Some(200), None), "{group}");
        }
    }

    #[test]
    fn a_text_that_is_not_a_number_is_no_limit() {
        let tree = Tree::new(&[
            ("max/pids.max", "max"),
            ("empty/pids.max", ""),
            ("words/pids.max", "ten"),
            ("negative/pids.max", "-1"),
            ("huge/pids.max", "99999999999999999999999"),
        ]);
        for group in ["max", "empty", "words", "negative", "huge", "missing"] {
            let found = tree.version_2(&format!("0::/{group}"));
            assert_eq!(found, GroupLimits::default(), "{group}");
        }
        for groups in ["", "\n\n", "0", "0:", "0::", "::", ":::", "\0:pids"] {
            assert_eq!(tree.version_2(groups).threads, None, "{groups:?}");
        }
        for mounts in [
            "",
            "\n",
            " - ",
            "1 2 3 / /a rw - cgroup2",
            "1 2 - cgroup2 a b",
        ] {
            let found = GroupLimits::read("0::/", mounts);
            assert_eq!(found, GroupLimits::default(), "{mounts:?}");
        }
    }
}
