//! The settings of ureq: everything that decides where the request is sent and how long it takes.
//!
//! No default of ureq remains that could send it elsewhere. The `unversioned` interfaces of ureq
//! are needed for name and connection, which are those of the tunnels (`tunnel::connect`), and for
//! the step at which the download failed.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use ureq::config::AutoHeaderValue;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::{
    ConnectionDetails, Connector, NextTimeout, RustlsConnector, Transport,
};

use super::transport::TcpTransport;
use crate::config::ParentProxy;
use crate::control::deadline::Deadline;
use crate::control::phase::Phase;
use crate::control::stop::Stop;
use crate::http::authority::{Authority, Host};
use crate::net::resolver::{Resolution, Resolver};
use crate::net::socket_owner::UpstreamOwner;
use crate::tunnel::connect::{connect, resolve};
use crate::tunnel::drive::WaitContext;
use crate::tunnel::error::TunnelError;
use crate::tunnel::parent;

/// The owner of the lookups: there is one session.
const OWNER: u64 = 0;

/// An agent with one deadline for everything, no redirects and no compression. A parent
/// proxy is used by the connector, not by ureq.
pub(super) fn agent(
    limit: Duration,
    resolver: &Resolver,
    parent: Option<ParentProxy>,
    roots: &[CertificateDer<'static>],
    owner: Option<UpstreamOwner>,
    recorder: &StepRecorder,
) -> ureq::Agent {
    let roots = roots.iter().map(|root| Certificate::from_der(root));
    let roots: Vec<_> = roots.map(|root| root.to_owned()).collect();
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .build();
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .max_redirects(0)
        .http_status_as_error(false)
        .proxy(None)
        .max_idle_connections(0)
        .accept_encoding(AutoHeaderValue::None)
        .tls_config(tls)
        .build();
    let dial = Dial {
        resolver: resolver.clone(),
        owner: owner.map(Arc::new),
        parent,
        recorder: recorder.clone(),
        resolved: Arc::default(),
    };
    let connector =
        ().chain(dial.clone())
            .chain(recorder.connector(DownloadStep::Tls))
            .chain(RustlsConnector::default())
            .chain(recorder.connector(DownloadStep::Response));
    ureq::Agent::with_parts(config, connector, dial)
}

/// The step of a download, for errors: ureq only reports that the time is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum DownloadStep {
    #[default]
    Resolve,
    Connect,
    Tls,
    Response,
    Body,
}

impl fmt::Display for DownloadStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "looking up its name",
            Self::Connect => "connecting to it",
            Self::Tls => "the TLS handshake",
            Self::Response => "waiting for its response",
            Self::Body => "reading its response",
        })
    }
}

/// Records the current step.
#[derive(Clone, Debug, Default)]
pub(super) struct StepRecorder(Arc<Mutex<DownloadStep>>);

impl StepRecorder {
    pub(super) fn record(&self, step: DownloadStep) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    pub(super) fn step(&self) -> DownloadStep {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connector(&self, step: DownloadStep) -> StepConnector {
        StepConnector {
            step,
            recorder: self.clone(),
        }
    }
}

/// An element of ureq's chain of connectors that only records a step.
#[derive(Debug)]
struct StepConnector {
    step: DownloadStep,
    recorder: StepRecorder,
}

impl<In: Transport> Connector<In> for StepConnector {
    type Out = In;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<In>, ureq::Error> {
        self.recorder.record(self.step);
        Ok(chained)
    }
}

/// The result of a lookup: the target, the host to connect to, and its addresses.
#[derive(Debug)]
struct Found {
    target: Authority,
    next_hop: Authority,
    resolution: Resolution,
}

/// Name lookup and TCP for ureq. Its own resolver would start an unnamed thread and abandon it, and
/// its own connector tries one address after the other.
#[derive(Clone, Debug)]
struct Dial {
    resolver: Resolver,
    /// Who may have the upstream's port; `None` if TLS verifies it.
    owner: Option<Arc<UpstreamOwner>>,
    parent: Option<ParentProxy>,
    recorder: StepRecorder,
    /// What the lookup found, for the connector. ureq passes a list of addresses, to which no
    /// address can be added later.
    resolved: Arc<Mutex<Option<Found>>>,
}

impl UreqResolver for Dial {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        _: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let host = uri.host().and_then(|host| Host::parse(host).ok());
        let host = host.ok_or(ureq::Error::HostNotFound)?;
        let target = Authority { host, port };
        let parent = self.parent.as_ref();
        let next_hop = parent.map_or(&target, ParentProxy::authority).clone();
        let resolution = bounded(timeout, Phase::Resolve, |wait| {
            resolve(&self.resolver, &next_hop, OWNER, wait)
        })?;
        self.recorder.record(DownloadStep::Connect);
        let mut addresses = self.empty();
        // ureq only checks that there is one.
        addresses.push(resolution.addresses()[0]);
        *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = Some(Found {
            target,
            next_hop,
            resolution,
        });
        Ok(addresses)
    }
}

impl Connector for Dial {
    type Out = TcpTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<TcpTransport>, ureq::Error> {
        let mut shared = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = shared.take().ok_or(ureq::Error::HostNotFound)?;
        drop(shared);
        let (next_hop, addresses) = (&found.next_hop, &mut found.resolution);
        let (stream, address) = bounded(details.timeout, Phase::Connect, |wait| {
            let (stream, address) = connect(&self.resolver, next_hop, addresses, wait)?;
            if let Some(parent) = &self.parent {
                parent::establish(&stream, parent, &found.target, wait)?;
            }
            Ok((stream, address))
        })?;
        if let Some(owner) = &self.owner {
            owner.check(&stream, address).map_err(io::Error::other)?;
        }
        Ok(Some(TcpTransport::new(stream, details.config)?))
    }
}

/// Calls `run` within ureq's time limit, and converts its error.
fn bounded<T>(
    timeout: NextTimeout,
    phase: Phase,
    run: impl FnOnce(&WaitContext<'_>) -> Result<T, TunnelError>,
) -> Result<T, ureq::Error> {
    let stop = Stop::new()?;
    let wait = WaitContext {
        stop: &stop,
        client: None,
        deadline: Deadline::after(*timeout.after),
        phase,
        keepalive: Duration::ZERO,
        drains: false,
    };
    run(&wait).map_err(|error| match error {
        error if error.is_timeout() => ureq::Error::Timeout(timeout.reason),
        TunnelError::Io(error) => error.into(),
        error => io::Error::other(error.to_string()).into(),
    })
}
