//! Two network namespaces of a test's own with a cable between them that can be pulled: how a host vanishes without a word.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Finished, finish, need_tool, not_here};

/// The two ends' addresses, from a block that is nobody's (RFC 5737).
const NEAR: &str = "192.0.2.1";
const FAR: &str = "192.0.2.2";

/// Two places and the cable between them; gone when dropped.
pub(crate) struct Network {
    near: Place,
    far: Place,
}

/// One namespace, kept by a process that does nothing else.
struct Place {
    holder: Child,
    namespace: File,
}

impl Network {
    /// The address at the far end.
    pub(crate) const FAR: &str = FAR;

    /// A plugged cable; `None`, and the test is skipped, where there are no tools or no rights for it.
    #[track_caller]
    pub(crate) fn plugged() -> Option<Self> {
        if !need_tool("unshare") || !need_tool("ip") {
            return None;
        }
        if !geteuid().is_root() {
            not_here("only root can make network namespaces");
            return None;
        }
        let Some((near, far)) = Place::new().zip(Place::new()) else {
            not_here("this system allows no network namespaces");
            return None;
        };
        let network = Self { near, far };
        let there = network.far.holder.id().to_string();
        let cable = ["link", "add", "cable", "type", "veth", "peer"];
        let made = network
            .near
            .ip(&[&cable[..], &["name", "cable", "netns", &there]].concat());
        if !made.status.success() {
            not_here(&format!("this system has no virtual cable: {made:?}"));
            return None;
        }
        for (place, address) in [(&network.near, NEAR), (&network.far, FAR)] {
            let address = format!("{address}/30");
            for words in [
                &["link", "set", "lo", "up"][..],
                &["address", "add", &address, "dev", "cable"],
                &["link", "set", "cable", "up"],
            ] {
                place.ip(words).succeeded();
            }
        }
        Some(network)
    }

    /// Does `work` at the near end: its sockets, threads and processes are there.
    pub(crate) fn near<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.near.inside(work)
    }

    /// The same at the far end.
    pub(crate) fn far<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.far.inside(work)
    }

    /// Pulls the cable: no packet passes, and nobody is told.
    pub(crate) fn pull(&self) {
        self.far.ip(&["link", "set", "cable", "down"]).succeeded();
    }

    /// Plugs it in again.
    pub(crate) fn plug(&self) {
        self.far.ip(&["link", "set", "cable", "up"]).succeeded();
    }
}

impl Place {
    fn new() -> Option<Self> {
        // It ends when its standard input does, so with this process at the latest.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = holder.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        if line != "there\n" {
            let _ = holder.wait();
            return None;
        }
        let namespace = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        Some(Self { holder, namespace })
    }

    /// On a thread of its own, so that nobody else is moved.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                use std::os::fd::AsFd;
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.namespace.as_fd(), network).unwrap();
                work()
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn ip(&self, words: &[&str]) -> Finished {
        self.inside(|| finish(Command::new("ip").args(words)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
