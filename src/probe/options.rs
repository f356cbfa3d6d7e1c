//! What `doctor` and `bench` are pointed at, besides the settings.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::client::Port;
use crate::config::{Config, Environment, When};
use crate::http::authority::Authority;
use crate::setup::child_env::ChildEnv;
use crate::setup::gate::{self, Gate};

/// A running `serve`, as its state file describes it.
#[derive(Clone, Deserialize, PartialEq, Eq)]
pub(crate) struct RunningServe {
    /// Its process ID.
    pub pid: u32,
    /// The address that its relay listens on.
    pub relay: SocketAddr,
    /// Its upstream; `None` in the state file of an older version.
    #[serde(default)]
    pub upstream: Option<RunningUpstream>,
    /// What its variables are made of. The proxy URL may contain a password.
    #[serde(flatten)]
    pub child_env: ChildEnv,
}

/// The upstream of a running `serve`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct RunningUpstream {
    /// Its base URL.
    pub base_url: String,
    /// The session ID that is sent to it.
    pub session_id: String,
    /// It is a gateway inside the same process.
    pub embedded: bool,
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

    /// Whether its upstream is a gateway inside the same process.
    pub(crate) fn is_embedded(&self) -> bool {
        self.upstream
            .as_ref()
            .is_some_and(|upstream| upstream.embedded)
    }

    /// Points `config` to its upstream, unless `config` names one itself.
    pub(crate) fn configure(&self, config: &mut Config) {
        let open = !matches!(gate::check(config), Ok(Gate::Closed { .. }));
        let Some(upstream) = &self.upstream else {
            return;
        };
        if open || config.when == When::Never {
            return;
        }
        if let (Ok(base_url), Ok(session_id)) =
            (upstream.base_url.parse(), upstream.session_id.parse())
        {
            config.when = When::Always;
            config.base_url = Some(base_url);
            config.session_id = Some(session_id);
        }
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
