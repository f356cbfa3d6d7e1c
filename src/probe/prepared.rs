//! What a connection to the upstream needs, read without changing anything: session, token and
//! roots. And a relay inside this process that uses it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::client::Port;
use crate::config::{Config, Limits};
use crate::control::log;
#[cfg(feature = "bench")]
use crate::control::metrics::Stats;
use crate::crypto::secret::Secret;
use crate::error::{Error, ErrorKind, Stage};
use crate::net::resolver::Resolver;
use crate::orchestrator::{start_relay, upstream};
use crate::relay::{Running, Upstream};
use crate::setup::gate::{self, Gate, Session};
use crate::setup::token::{self, SessionToken};
use crate::setup::{hardening, roots};

/// What a connection to the upstream needs.
pub(crate) struct Prepared {
    pub(crate) session: Session,
    /// `None`: its file is deleted, or cannot be read.
    pub(crate) token: Option<Secret>,
    /// The roots for connections to the upstream. `None`: there are none.
    pub(crate) roots: Option<Vec<CertificateDer<'static>>>,
}

impl Prepared {
    /// Reads it. Reports nothing and downloads nothing. If the token file is deleted, no token
    /// is read.
    #[cfg(feature = "bench")]
    pub(crate) fn read(config: &Config, token_deleted: bool) -> Result<Self, Error> {
        let session = session(config)?;
        let token = if token_deleted {
            None
        } else {
            Some(read_token(config)?.secret())
        };
        let roots = match trusted(config) {
            Err(error) if session.base.secure() => return Err(error),
            roots => roots.ok(),
        };
        Ok(Self {
            session,
            token,
            roots,
        })
    }

    /// The upstream. Without a token it must only be dialed without a target: then nothing is sent
    /// to it after TLS.
    pub(crate) fn upstream(&self, config: &Config) -> Result<Upstream, Error> {
        let nothing = || Secret::new(String::new());
        let token = self.token.clone().unwrap_or_else(nothing);
        let (id, base) = (self.session.id.clone(), self.session.base.clone());
        let roots = self.roots.as_deref().unwrap_or_default();
        upstream(config, id, base, token, roots, Resolver::new())
    }
}

/// The session that the gate admits. A closed gate is an error here.
pub(crate) fn session(config: &Config) -> Result<Session, Error> {
    match gate::check(config)? {
        Gate::Open(session) => Ok(session),
        Gate::Closed { reason } => Err(Error::new(
            Stage::Gate,
            ErrorKind::SwitchedOff,
            reason,
            "set both switches, or set when (--when) to always and give a base URL",
        )),
    }
}

/// Protects the process and reads the token. A token file is not deleted.
pub(crate) fn read_token(config: &Config) -> Result<SessionToken, Error> {
    if config.harden
        && let Err(error) = hardening::protect()
    {
        log::debug!("other processes of this user can read this process: {error}");
    }
    token::read(config)
}

/// The roots for connections to the upstream.
pub(crate) fn trusted(config: &Config) -> Result<Vec<CertificateDer<'static>>, Error> {
    roots::connection_roots(config, &roots::base_roots(config)?)
}

/// A relay in this process for round trips and measurements. It deletes no token file.
#[derive(Debug)]
pub(crate) struct ProbeRelay(Running);

impl ProbeRelay {
    /// Starts a relay on a free port; `None` without a token.
    pub(crate) fn start(config: &Config, prepared: &Prepared) -> Result<Option<Self>, Error> {
        if prepared.token.is_none() {
            return Ok(None);
        }
        let mut config = config.clone();
        // The configured port may be in use by the relay that is being checked.
        config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.listen_credential = false;
        // Its tunnels have ended when it stops; this bounds their closing handshakes.
        config.limits.drain_timeout = config.limits.close_timeout;
        start_relay(&config, prepared.upstream(&config)?, None).map(|running| Some(Self(running)))
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
