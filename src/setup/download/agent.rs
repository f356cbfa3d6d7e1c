//! The settings of ureq: everything that decides where the request is sent and how long it takes.
//!
//! No default of ureq remains that could send it elsewhere. The `unversioned` interfaces of ureq
//! are needed for the resolver, which must not start an unnamed thread, and for the step at which
//! the download failed.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use ureq::config::AutoHeaderValue;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::{
    ConnectionDetails, Connector, NextTimeout, RustlsConnector, TcpConnector, Transport,
};

use crate::control::deadline::Deadline;
use crate::http::authority::Host;
use crate::net::resolver::Resolver;

/// How many addresses of the upstream are tried. ureq has room for 16.
const ADDRESS_LIMIT: usize = 16;

/// An agent with one deadline for everything, no redirects, no proxy and no compression.
pub(super) fn agent(
    limit: Duration,
    resolver: &Resolver,
    roots: &[CertificateDer<'static>],
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
    let connector =
        ().chain(TcpConnector::default())
            .chain(recorder.connector(DownloadStep::Tls))
            .chain(RustlsConnector::default())
            .chain(recorder.connector(DownloadStep::Response));
    let resolver = ResolverAdapter {
        resolver: resolver.clone(),
        recorder: recorder.clone(),
    };
    ureq::Agent::with_parts(config, connector, resolver)
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

/// This crate's resolver for ureq, whose own resolver would start an unnamed thread and abandon it.
#[derive(Debug)]
struct ResolverAdapter {
    resolver: Resolver,
    recorder: StepRecorder,
}

impl UreqResolver for ResolverAdapter {
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
        let deadline = Deadline::after(*timeout.after);
        let found = match self.resolver.resolve(&host, port, deadline) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(ureq::Error::Timeout(timeout.reason));
            }
            found => found?,
        };
        self.recorder.record(DownloadStep::Connect);
        let mut addresses = self.empty();
        for address in found.into_iter().take(ADDRESS_LIMIT) {
            addresses.push(address);
        }
        Ok(addresses)
    }
}
