//! What every thread of one gateway shares.

use std::hash::RandomState;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::{ClientConfig, ServerConfig};

use super::auth::Sessions;
use super::certificate_names::CertificateNames;
use super::interception_ca;
use super::issuer::Issuer;
use super::policy::Policy;
use super::validity::Validity;
use crate::config::Limits;
use crate::config::ParentProxy;
use crate::control::log;
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
    pub(super) issuer: RwLock<Arc<Issuer>>,
    pub(super) intercept: Vec<Pattern>,
    pub(super) log_source: LogSource,
    /// Refuses what is not TLS on intercepted tunnels.
    pub(super) require_tls: bool,
    /// The TLS server; `None`: http and ws.
    pub(super) tls: Option<RwLock<TlsServer>>,
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

/// The gateway's TLS server.
pub(super) struct TlsServer {
    pub(super) config: Arc<ServerConfig>,
    pub(super) validity: Option<Validity>,
    /// The names of the certificate.
    pub(super) names: CertificateNames,
}

impl GatewayContext {
    /// The TLS server of new connections; `None`: http and ws.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let tls = self.tls.as_ref()?;
        let server = tls.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&server.config))
    }

    /// The issuer of certificates for intercepted hosts.
    pub(super) fn issuer(&self) -> Arc<Issuer> {
        Arc::clone(&self.issuer.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Warns about certificates that have expired, or soon will.
    pub(super) fn report_validity(&self) {
        let Ok(now) = interception_ca::now() else {
            return;
        };
        let tls = self.tls.as_ref().and_then(|tls| {
            let server = tls.read().unwrap_or_else(PoisonError::into_inner);
            server.validity?.problem(now)
        });
        let ca = self.issuer().ca_validity().and_then(|ca| ca.problem(now));
        if let Some(problem) = tls {
            log::warn!(
                target: self.log_source.target(),
                "the certificate in tls-cert (--tls-cert) {problem}; renew it: relays reject an invalid one"
            );
        }
        if let Some(problem) = ca.filter(|_| !self.intercept.is_empty()) {
            log::warn!(
                target: self.log_source.target(),
                "the interception CA {problem}; renew ca-cert (--ca-cert), or start the gateway again if it is \
                 not set: tools reject the certificates of an invalid one"
            );
        }
    }

    /// The sessions that are valid now.
    pub(super) fn sessions(&self) -> Arc<Sessions> {
        Arc::clone(&self.sessions.read().unwrap_or_else(PoisonError::into_inner))
    }
}
