//! The limit on open descriptors of this process: the soft limit is raised to the hard one.
//!
//! The usual soft limit of 1024 exists for programs that use select(2), which cannot handle higher
//! descriptors. This program uses poll(2); the child of `run` may not, so it gets the inherited
//! limit. Only the binary does this: a library does not change the limits of its host.

use std::io;
use std::process::{Child, Command};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit that this process has inherited.
pub(super) struct InheritedLimit(Rlimit);

impl InheritedLimit {
    /// Raises the soft limit to the hard one.
    pub(super) fn raise() -> Self {
        let inherited = getrlimit(Resource::Nofile);
        set(inherited.maximum, &inherited);
        Self(inherited)
    }

    /// Starts `command` with the inherited limit. Until it has started, other threads cannot open
    /// descriptors above this limit either.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        set(self.0.current, &self.0);
        let child = command.spawn();
        set(self.0.maximum, &self.0);
        child
    }
}

fn set(current: Option<u64>, inherited: &Rlimit) {
    let limit = Rlimit {
        current,
        maximum: inherited.maximum,
    };
    // Fails only where a sandbox forbids the call. Then fewer tunnels are possible.
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::debug!("the limit on descriptors was not changed: {error}");
    }
}
