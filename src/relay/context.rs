//! What every thread of one relay shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustls::ClientConfig;

use super::credentials::CurrentCredentials;
use crate::config::Limits;
use crate::config::ParentProxy;
use crate::control::hosts::{HostTable, OpenTunnel};
use crate::control::log;
use crate::control::log::LogSource;
use crate::control::metrics::Counters;
use crate::control::outcome::host_of;
use crate::control::stop::Stop;
use crate::http::base_url::BaseUrl;
use crate::http::head::ResponseHead;
use crate::net::resolver::Resolver;
use crate::net::socket_owner::UpstreamOwner;
use crate::tunnel::buffer::Pool;
use crate::tunnel::opening::CA_DIGEST_FIELD;
use crate::tunnel::ws_codec::Budget;

/// The gateway, and the credentials for it.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// The base URL of its endpoints.
    pub(crate) base: BaseUrl,
    /// The session ID and the token sent to the gateway.
    pub(crate) credentials: CurrentCredentials,
    /// How to verify it; `None` for a plain upstream on loopback.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// Who may have its port; `None` if TLS verifies it.
    pub(crate) owner: Option<UpstreamOwner>,
    /// The proxy on the path to it.
    pub(crate) parent: Option<ParentProxy>,
    /// Resolves its name.
    pub(crate) resolver: Resolver,
    /// The digest of the CA certificates that were downloaded from it; `None`: none were.
    pub(crate) ca_digest: Option<String>,
}

/// What a worker and the standby pool need to dial the gateway.
#[derive(Debug)]
pub(super) struct RelayContext {
    pub(super) upstream: Upstream,
    pub(super) log_source: LogSource,
    pub(super) limits: Limits,
    pub(super) stop: Arc<Stop>,
    pub(super) counters: Arc<Counters>,
    /// The counters per target host.
    pub(super) hosts: HostTable,
    pub(super) pool: Pool,
    pub(super) budget: Budget,
    /// Whether a change of the upstream's CA was reported.
    pub(super) ca_change_reported: AtomicBool,
}

impl RelayContext {
    /// Counts a tunnel to `authority` that was established.
    pub(super) fn count_tunnel(&self, authority: &str) -> OpenTunnel {
        Counters::add(&self.counters.tunnels, 1);
        self.hosts.opened(host_of(authority))
    }

    /// Warns once if the gateway that sent this head has other CA certificates than those in the
    /// CA bundle: it has started again and generated new ones.
    pub(super) fn check_ca(&self, head: &ResponseHead) {
        let known = self.upstream.ca_digest.as_deref();
        let Some((known, now)) = known.zip(head.fields.one(CA_DIGEST_FIELD)) else {
            return;
        };
        if known.as_bytes() != now && !self.ca_change_reported.swap(true, Relaxed) {
            log::warn!(
                target: self.log_source.target(),
                "relay: the CA of {} has changed since the start: tools reject the certificates of \
                 intercepted hosts; start this program again, and let the gateway keep its CA with \
                 ca-cert (--ca-cert) and ca-key (--ca-key)",
                self.upstream.base
            );
        }
    }
}
