//! The errors of the download: what failed, and what an operator can do.

use std::io;
use std::time::Duration;

use super::agent::DownloadStep;
use crate::control::peer_text;
use crate::crypto::tls_error::{self, Verifier};
use crate::error::{Error, ErrorKind, Stage};
use crate::http::base_url::BaseUrl;
use crate::net::socket_owner::ForeignOwner;

pub(super) const CHECK_SERVER: &str = "check the base URL, and which server responds there";
const CHECK_CONNECTIVITY: &str = "check whether the upstream can be reached from here";

/// A response with status 200 whose content is not acceptable.
pub(super) struct BadContent {
    what: String,
    remedy: &'static str,
}

impl BadContent {
    pub(super) fn new(what: impl Into<String>, remedy: &'static str) -> Self {
        let what = what.into();
        Self { what, remedy }
    }

    /// Content that only the operator of the upstream can correct.
    pub(super) fn by_operator(what: impl Into<String>) -> Self {
        Self::new(what, "report it to the upstream's operator")
    }

    /// The error of the stage.
    pub(super) fn at(&self, base: &BaseUrl) -> Error {
        let what = format!("the response of {base} to the CA download {}", self.what);
        error(ErrorKind::InvalidData, what, self.remedy)
    }
}

/// A response with another status than 200.
pub(super) fn status(base: &BaseUrl, status: u16) -> Error {
    let remedy = match status {
        301..=303 | 307 | 308 => {
            "set the base URL to the target of the redirect, if that is right: redirects are not followed"
        }
        404 => "check the base URL: there is no CA download below it",
        429 | 500..=599 => "try again later",
        _ => CHECK_SERVER,
    };
    let what = format!("{base} responded to the CA download with status {status} instead of 200");
    error(ErrorKind::Rejected, what, remedy)
}

/// A request that failed at `step`.
pub(super) fn failed(
    cause: &ureq::Error,
    step: DownloadStep,
    base: &BaseUrl,
    limit: Duration,
) -> Error {
    let unreachable = |what, remedy| error(ErrorKind::Unreachable, what, remedy);
    let at_step = |cause: &dyn std::fmt::Display| {
        format!(
            "the CA download from {base} failed at {step}: {}",
            peer_text::bounded(cause)
        )
    };
    match cause {
        ureq::Error::Timeout(_) => unreachable(
            format!("the CA download from {base} took longer than {limit:?}: it ended at {step}"),
            CHECK_CONNECTIVITY,
        ),
        ureq::Error::BodyExceedsLimit(limit) => error(
            ErrorKind::InvalidData,
            format!("the response of {base} to the CA download is larger than {limit} bytes"),
            CHECK_SERVER,
        ),
        ureq::Error::Rustls(cause) => tls_failed(cause, base),
        ureq::Error::Io(cause) => {
            if let Some(cause) = cause.get_ref().and_then(|e| e.downcast_ref()) {
                return tls_failed(cause, base);
            }
            if let Some(&owner) = cause.get_ref().and_then(|e| e.downcast_ref()) {
                return foreign_owner(owner, base);
            }
            let remedy = match (step, cause.kind()) {
                (DownloadStep::Resolve, _) => "check the base URL and this machine's DNS",
                (DownloadStep::Connect, io::ErrorKind::ConnectionRefused) => {
                    "check the base URL: nothing listens there"
                }
                _ => CHECK_CONNECTIVITY,
            };
            unreachable(at_step(cause), remedy)
        }
        ureq::Error::HostNotFound => unreachable(
            format!("the host of {base} cannot be looked up"),
            "check the base URL",
        ),
        ureq::Error::Protocol(_) | ureq::Error::Http(_) | ureq::Error::LargeResponseHeader(..) => {
            error(
                ErrorKind::InvalidData,
                format!("the response of {base} to the CA download is not HTTP"),
                CHECK_SERVER,
            )
        }
        other => unreachable(at_step(other), CHECK_SERVER),
    }
}

fn foreign_owner(owner: ForeignOwner, base: &BaseUrl) -> Error {
    let what = format!("nothing was downloaded from {base}: {owner}");
    error(ErrorKind::Rejected, what, ForeignOwner::REMEDY)
}

fn tls_failed(cause: &rustls::Error, base: &BaseUrl) -> Error {
    let (what, remedy) = if let rustls::Error::InvalidCertificate(certificate) = cause {
        let flaw = tls_error::certificate_flaw(certificate, Verifier::ThisMachine);
        (
            format!("the certificate of {base} {flaw}"),
            tls_error::upstream_remedy(certificate),
        )
    } else {
        (
            format!(
                "the TLS handshake with {base} failed: {}",
                tls_error::describe(cause)
            ),
            "check the base URL, and whether that server uses TLS",
        )
    };
    error(ErrorKind::Tls, what, remedy)
}

fn error(kind: ErrorKind, what: String, remedy: &str) -> Error {
    Error::new(Stage::Ca, kind, what, remedy)
}
