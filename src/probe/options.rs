//! What `doctor` and `bench` are pointed at, besides the settings.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;

use serde::Deserialize;

use super::client::Port;
use crate::config::Environment;
use crate::http::authority::Authority;
use crate::setup::child_env::ChildEnv;

/// A running `serve`, as its state file describes it.
#[derive(Clone, Deserialize, PartialEq, Eq)]
pub(crate) struct RunningServe {
    /// Its process ID.
    pub pid: u32,
    /// The address that its relay listens on.
    pub relay: SocketAddr,
    /// What its variables are made of. The proxy URL may contain a password.
    #[serde(flatten)]
    pub child_env: ChildEnv,
}

impl fmt::Debug for RunningServe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningServe")
            .field("pid", &self.pid)
            .field("relay", &self.relay)
            .finish_non_exhaustive()
    }
}

impl RunningServe {
    /// The port of its relay.
    pub(crate) fn port(&self) -> Port {
        Port::of_url(self.relay, &self.child_env.proxy)
    }

    /// The variables that it sets for a child that inherits `environment`.
    pub(crate) fn variables(&self, environment: &Environment) -> Vec<(String, OsString)> {
        self.child_env.variables(environment)
    }
}

/// What to check or measure, besides the settings.
#[derive(Clone, Debug)]
pub(crate) struct ProbeOptions {
    /// The far end of the round trips. `None`: the base URL's host, or the built-in origin.
    pub target: Option<Authority>,
    /// Without a target, use an origin inside this process. For an embedded gateway.
    pub own_origin: bool,
    /// The `serve` that runs beside this: it has consumed the token, and the round trips use its
    /// port.
    pub running: Option<RunningServe>,
}
