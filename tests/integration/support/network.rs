//! Two network namespaces connected by a virtual cable. Disconnecting the cable simulates a host
//! that vanishes without closing its connections.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Finished, finish, need_tool, skip_unsupported};

/// The addresses of the two ends, from a documentation block (RFC 5737).
const NEAR: &str = "192.0.2.1";
const FAR: &str = "192.0.2.2";

/// Two namespaces and the cable between them. They are removed on drop.
pub(crate) struct Network {
    near: Namespace,
    far: Namespace,
}

/// One namespace. A process that does nothing else keeps it alive.
struct Namespace {
    holder: Child,
    handle: File,
}

impl Network {
    /// The address at the far end.
    pub(crate) const FAR: &str = FAR;

    /// Creates the two namespaces and connects them. Returns `None`, and the test is skipped, if
    /// the tools or the permissions are missing.
    #[track_caller]
    pub(crate) fn connected() -> Option<Self> {
        if !need_tool("unshare") || !need_tool("ip") {
            return None;
        }
        if !geteuid().is_root() {
            skip_unsupported("only root can make network namespaces");
            return None;
        }
        let Some((near, far)) = Namespace::new().zip(Namespace::new()) else {
            skip_unsupported("this system does not allow network namespaces");
            return None;
        };
        let network = Self { near, far };
        let far_pid = network.far.holder.id().to_string();
        let cable = ["link", "add", "cable", "type", "veth", "peer"];
        let made = network
            .near
            .ip(&[&cable[..], &["name", "cable", "netns", &far_pid]].concat());
        if !made.status.success() {
            skip_unsupported(&format!(
                "this system has no virtual Ethernet pairs: {made:?}"
            ));
            return None;
        }
        for (namespace, address) in [(&network.near, NEAR), (&network.far, FAR)] {
            let address = format!("{address}/30");
            for arguments in [
                &["link", "set", "lo", "up"][..],
                &["address", "add", &address, "dev", "cable"],
                &["link", "set", "cable", "up"],
            ] {
                namespace.ip(arguments).succeeded();
            }
        }
        Some(network)
    }

    /// Runs `work` in the near namespace: its sockets, threads and processes are created there.
    pub(crate) fn near<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.near.inside(work)
    }

    /// Runs `work` in the far namespace.
    pub(crate) fn far<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.far.inside(work)
    }

    /// Disconnects the cable: packets are dropped, and neither end is notified.
    pub(crate) fn disconnect(&self) {
        self.far.ip(&["link", "set", "cable", "down"]).succeeded();
    }

    /// Reconnects the cable.
    pub(crate) fn reconnect(&self) {
        self.far.ip(&["link", "set", "cable", "up"]).succeeded();
    }
}

impl Namespace {
    fn new() -> Option<Self> {
        // It exits when its standard input closes, so at the latest when this process exits.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = holder.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        if line != "ready\n" {
            let _ = holder.wait();
            return None;
        }
        let handle = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        Some(Self { holder, handle })
    }

    /// Runs `work` on a new thread, because entering the namespace affects the calling thread only.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                use std::os::fd::AsFd;
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.handle.as_fd(), network).unwrap();
                work()
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn ip(&self, arguments: &[&str]) -> Finished {
        self.inside(|| finish(Command::new("ip").args(arguments)))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Both calls fail only if the process has exited already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
