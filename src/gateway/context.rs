//! What every thread of one gateway shares.

use std::hash::RandomState;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::{ClientConfig, ServerConfig};

use super::auth::Sessions;
use super::issuer::Issuer;
use super::policy::Policy;
use crate::config::Limits;
use crate::config::ParentProxy;
use crate::control::log::LogSource;
use crate::control::metrics::Counters;
use crate::control::shares::Shares;
use crate::control::stop::Stop;
use crate::http::pattern::Pattern;
use crate::listener::EvictableList;
use crate::net::resolver::Resolver;
use crate::tunnel::buffer::Pool;
use crate::tunnel::ws_codec::Budget;

/// What the sessions of one gateway share.
pub(super) struct GatewayContext {
    pub(super) sessions: RwLock<Arc<Sessions>>,
    pub(super) issuer: Issuer,
    pub(super) intercept: Vec<Pattern>,
    pub(super) log_source: LogSource,
    /// Refuses what is not TLS on intercepted tunnels.
    pub(super) require_tls: bool,
    /// The TLS server; `None`: http and ws.
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// The TLS client that verifies intercepted targets.
    pub(super) target_tls: Arc<ClientConfig>,
    pub(super) resolver: Resolver,
    /// The proxy on the path to targets.
    pub(super) parent: Option<ParentProxy>,
    pub(super) policy: Policy,
    /// The connections that have no tunnel yet. Every other connection holds a share of `tunnels`.
    pub(super) waiting: EvictableList,
    pub(super) tunnels: Shares,
    /// Makes the numbers of parties from tokens, also across a reload of the sessions.
    pub(super) party_hasher: RandomState,
    pub(super) limits: Limits,
    pub(super) stop: Arc<Stop>,
    pub(super) counters: Arc<Counters>,
    pub(super) pool: Pool,
    pub(super) budget: Budget,
}

impl GatewayContext {
    /// The sessions that are valid now.
    pub(super) fn sessions(&self) -> Arc<Sessions> {
        Arc::clone(&self.sessions.read().unwrap_or_else(PoisonError::into_inner))
    }
}
