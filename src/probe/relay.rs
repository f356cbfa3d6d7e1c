//! A relay inside this process, for round trips and measurements.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::client::Port;
use super::prepared::Prepared;
use crate::config::{Config, Limits};
#[cfg(feature = "bench")]
use crate::control::metrics::Stats;
use crate::error::Error;
use crate::net::resolver::Resolver;
use crate::orchestrator::{start_relay, upstream};
use crate::relay::Running;

/// A relay in this process for the round trips. It deletes no token file.
#[derive(Debug)]
pub(crate) struct ProbeRelay(Running);

impl ProbeRelay {
    /// Starts a relay on a free port; `None` without a token.
    pub(crate) fn start(config: &Config, prepared: &Prepared) -> Result<Option<Self>, Error> {
        let (Some(session), Some(token)) = (&prepared.session, &prepared.token) else {
            return Ok(None);
        };
        let (id, base) = (session.id.clone(), session.base.clone());
        let roots = prepared.roots.as_deref().unwrap_or_default();
        let upstream = upstream(id, base, token.clone(), roots, Resolver::new())?;
        let mut config = config.clone();
        // The configured port may be in use by the relay that is being checked.
        config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.listen_credential = false;
        // Its tunnels have ended when it stops; this bounds their closing handshakes.
        config.limits.drain_timeout = config.limits.close_timeout;
        start_relay(&config, upstream, None).map(|running| Some(Self(running)))
    }

    /// The port of the relay.
    pub(crate) fn port(&self) -> Port {
        Port::open(self.0.local_addr())
    }

    /// The counters of the relay.
    #[cfg(feature = "bench")]
    pub(crate) fn stats(&self) -> Stats {
        self.0.stats()
    }
}

/// The upper bound of the relay's own phases, before it responds to CONNECT.
pub(crate) fn to_open(limits: &Limits) -> Duration {
    let phases = limits.connect_timeout.saturating_mul(5);
    phases.saturating_add(limits.opening_timeout)
}
