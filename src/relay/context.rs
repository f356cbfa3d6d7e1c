//! What every thread of one relay shares.

use std::sync::Arc;

use rustls::ClientConfig;

use crate::config::Limits;
use crate::config::ParentProxy;
use crate::control::log::LogSource;
use crate::control::metrics::Counters;
use crate::control::stop::Stop;
use crate::crypto::secret::Credentials;
use crate::http::base_url::BaseUrl;
use crate::net::resolver::Resolver;
use crate::net::socket_owner::UpstreamOwner;
use crate::tunnel::buffer::Pool;
use crate::tunnel::ws_codec::Budget;

/// The gateway, and the credentials for it.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// The base URL of its endpoints.
    pub(crate) base: BaseUrl,
    /// The session ID and the token sent to the gateway.
    pub(crate) credentials: Credentials,
    /// How to verify it; `None` for a plain upstream on loopback.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// Who may have its port; `None` if TLS verifies it.
    pub(crate) owner: Option<UpstreamOwner>,
    /// The proxy on the path to it.
    pub(crate) parent: Option<ParentProxy>,
    /// Resolves its name.
    pub(crate) resolver: Resolver,
}

/// What a worker and the standby pool need to dial the gateway.
#[derive(Debug)]
pub(super) struct RelayContext {
    pub(super) upstream: Upstream,
    pub(super) log_source: LogSource,
    pub(super) limits: Limits,
    pub(super) stop: Arc<Stop>,
    pub(super) counters: Arc<Counters>,
    pub(super) pool: Pool,
    pub(super) budget: Budget,
}
