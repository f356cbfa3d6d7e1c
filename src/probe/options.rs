//! What `doctor` and `bench` are pointed at, besides the settings.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::http::authority::Authority;

/// A running `serve`, as its state file describes it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RunningServe {
    /// Its process ID.
    pub pid: u32,
    /// The address that its relay listens on.
    pub relay: SocketAddr,
    /// The proxy URL, possibly with a password.
    pub proxy: String,
    /// The path of its merged bundle.
    pub ca_bundle: PathBuf,
    /// The path of its wget settings file, if it wrote one.
    pub wgetrc: Option<PathBuf>,
}

impl std::fmt::Debug for RunningServe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningServe")
            .field("pid", &self.pid)
            .field("relay", &self.relay)
            .finish_non_exhaustive()
    }
}

/// What to check or measure, besides the settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProbeOptions {
    /// The far end of the round trips. `None`: the base URL's host, or the built-in origin.
    pub target: Option<Authority>,
    /// Without a target, use an origin inside this process. For an embedded gateway.
    pub own_origin: bool,
    /// The `serve` that runs beside this: it has consumed the token, and the round trips use its
    /// port.
    pub running: Option<RunningServe>,
}
