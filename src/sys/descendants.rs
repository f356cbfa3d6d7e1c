//! The processes that this process has started, directly or not, from `/proc` (Linux).
//!
//! Root starts a session, and its command changes to another user: such a process belongs to the
//! session, although its user is not that of this process.

use std::collections::HashMap;
use std::fs;
use std::sync::{Mutex, PoisonError};

/// The longest chain of parents. Longer ones do not occur; a table that is read while processes
/// start and end could contain a loop.
const DEPTH_LIMIT: usize = 256;

/// One search at a time: other users of the machine can cause searches.
static SEARCH: Mutex<()> = Mutex::new(());

struct Process {
    parent: u32,
    /// The user ID with which it creates files and sockets.
    uid: u32,
}

/// Whether a process that this process has started has the socket with this inode, which belongs
/// to user `uid`.
///
/// Only a process that may trace another one sees its sockets. If the owner of the socket cannot
/// be found for that reason, the answer is whether a started process of this user exists.
pub(crate) fn have_socket(uid: u32, inode: u64) -> bool {
    let _one = SEARCH.lock().unwrap_or_else(PoisonError::into_inner);
    let processes = processes();
    let socket = format!("socket:[{inode}]");
    let mut hidden = false;
    for (&pid, process) in processes.iter().filter(|(_, process)| process.uid == uid) {
        let started = is_started(pid, process, &processes);
        match has_socket(pid, &socket) {
            Some(true) => return started,
            Some(false) => {}
            None => hidden |= started,
        }
    }
    hidden
}

/// Whether a chain of parents leads from the process to this one.
fn is_started(pid: u32, process: &Process, processes: &HashMap<u32, Process>) -> bool {
    let own = std::process::id();
    let mut parent = process.parent;
    for _ in 0..DEPTH_LIMIT {
        if parent == own {
            return pid != own;
        }
        match processes.get(&parent) {
            Some(process) => parent = process.parent,
            None => return false,
        }
    }
    false
}

/// Whether the process has the socket; `None` if this process may not see that.
fn has_socket(pid: u32, socket: &str) -> Option<bool> {
    let descriptors = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(descriptors) => descriptors,
        // It has ended.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(false),
        Err(_) => return None,
    };
    Some(descriptors.flatten().any(|descriptor| {
        fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == socket)
    }))
}

/// Every process that this one can see.
fn processes() -> HashMap<u32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return HashMap::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some((pid, parse(&status)?))
    })
    .collect()
}

/// The parent and the file system user ID in `/proc/PID/status` (proc(5)).
fn parse(status: &str) -> Option<Process> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    Some(Process {
        parent: field("PPid:")?.trim().parse().ok()?,
        uid: field("Uid:")?
            .split_ascii_whitespace()
            .nth(3)?
            .parse()
            .ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    fn inode(socket: impl AsFd) -> u64 {
        rustix::fs::fstat(socket).unwrap().st_ino
    }

    fn own_uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_socket_of_a_grandchild_is_found_and_one_of_a_stranger_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = inode(&listener);
        // This process is not its own descendant, and no child has the socket.
        assert!(!have_socket(own_uid(), inode));

        // The shell gets the socket as its standard input and passes it to a child.
        let script = "sleep 60 & echo ready; wait";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert!(have_socket(own_uid(), inode));
        assert!(!have_socket(own_uid() + 1, inode), "another user's");
        assert!(!have_socket(own_uid(), u64::MAX), "no such socket");
        shell.kill().unwrap();
        shell.wait().unwrap();
    }

    #[test]
    fn a_status_is_parsed_and_a_loop_of_parents_ends() {
        let process = parse("Name:\tx y\nPPid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\n").unwrap();
        assert_eq!((process.parent, process.uid), (7, 4));
        assert!(parse("Name:\tx\n").is_none());
        let process = |parent| Process { parent, uid: 1 };
        let looped = HashMap::from([
            (u32::MAX, process(u32::MAX - 1)),
            (u32::MAX - 1, process(u32::MAX)),
        ]);
        assert!(!is_started(u32::MAX, &looped[&u32::MAX], &looped));
    }
}
