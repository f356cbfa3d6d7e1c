//! The path to the gateway, phase by phase, dialed by the relay's own code.

use std::net::SocketAddr;
use std::time::Instant;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::check::{Check, PathResult, Step, Verdict};
use super::far_end::FarEnd;
use crate::config::Config;
use crate::control::phase::Phase;
use crate::crypto::secret::Secret;
use crate::net::resolver::Resolver;
use crate::orchestrator::upstream;
use crate::probe::prepared::Prepared;
use crate::probe::problem::Problem;
use crate::relay::{DialEvent, trace};
use crate::tunnel::tls::Tls;
use crate::tunnel::ws_codec::Version;

/// The phases of the path, in order.
const PHASES: [Step; 5] = [
    Step::Resolve,
    Step::Connect,
    Step::Tls,
    Step::Upgrade,
    Step::Opening,
];

/// Checks the path as far as the earlier steps allow: name, TCP and TLS need no token. Without a
/// token (`token_deleted`, or not readable) the later phases are skipped.
pub(super) fn check_all(
    config: &Config,
    prepared: &Prepared,
    target: Option<&FarEnd>,
    token_deleted: bool,
    report: &mut dyn FnMut(Check),
) -> PathResult {
    let mut phases = PhaseReport {
        report,
        since: Instant::now(),
        next: 0,
    };
    let Some(session) = &prepared.session else {
        phases.skip_rest("the gate is closed");
        return PathResult::Failed;
    };
    let secure = session.base.secure();
    let roots = match &prepared.roots {
        Some(roots) => roots.as_slice(),
        None if !secure => &[],
        None => {
            phases.skip_rest("there are no root certificates, see ca");
            return PathResult::Failed;
        }
    };
    // An empty token is never sent: without a token there is no target, and so no phase after TLS.
    let nothing = || Secret::new(String::new());
    let token = prepared.token.clone().unwrap_or_else(nothing);
    let target = target.filter(|_| prepared.token.is_some());
    let authority = target.map(|far_end| &far_end.authority);
    let (id, base) = (session.id.clone(), session.base.clone());
    let upstream = match upstream(id, base, token, roots, Resolver::new()) {
        Ok(upstream) => upstream,
        Err(error) => {
            phases.pass(|step| Check::wrong(step, error.into()));
            phases.skip_rest("the roots cannot be used");
            return PathResult::Failed;
        }
    };
    phases.since = Instant::now();
    let traced = trace(&upstream, &config.limits, authority, &mut |passed| {
        phases.pass(|step| found(step, &passed));
        if matches!(passed, DialEvent::Connect(_)) && !secure {
            phases.pass(|step| Check::skipped(step, "plain http (loopback only)"));
        }
    });
    match traced {
        Ok(()) if target.is_some() => PathResult::Opened,
        Ok(()) if token_deleted => {
            phases.skip_rest("the token file is deleted; the round trip uses it");
            PathResult::Failed
        }
        Ok(()) => {
            phases.skip_rest("there is no token, see token");
            PathResult::Failed
        }
        Err(rejection) if rejection.is_policy() && target.is_some_and(|far_end| !far_end.named) => {
            phases.pass(|step| {
                Check::ok(
                    step,
                    "the gateway answered: its policy forbids its own host",
                )
            });
            PathResult::Forbidden
        }
        Err(rejection) => {
            let phase = rejection.phase;
            let what = match (phase, authority) {
                (Phase::Opening, Some(target)) => format!("{target}: {rejection}"),
                _ => rejection.to_string(),
            };
            phases.pass(|step| Check::wrong(step, Problem::new(what, rejection.remedy)));
            phases.skip_rest(&format!("{phase} failed"));
            PathResult::Failed
        }
    }
}

/// Reports each phase once, in order, with the time since the previous one.
struct PhaseReport<'a> {
    report: &'a mut dyn FnMut(Check),
    since: Instant,
    next: usize,
}

impl PhaseReport<'_> {
    fn pass(&mut self, check: impl FnOnce(Step) -> Check) {
        let Some(&step) = PHASES.get(self.next) else {
            return;
        };
        let check = check(step);
        (self.report)(match check.verdict {
            Verdict::Skipped(_) => check,
            _ => check.after(self.since.elapsed()),
        });
        self.next += 1;
        self.since = Instant::now();
    }

    fn skip_rest(&mut self, why: &str) {
        for &step in PHASES.get(self.next..).unwrap_or_default() {
            (self.report)(Check::skipped(step, why));
        }
        self.next = PHASES.len();
    }
}

fn found(step: Step, passed: &DialEvent<'_>) -> Check {
    match passed {
        DialEvent::Resolve(addresses) => {
            let list: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
            let list = list.join(", ");
            Check::ok(step, list.as_str()).text("addresses", list)
        }
        DialEvent::Connect(address) => {
            Check::ok(step, address.to_string()).text("address", address.to_string())
        }
        DialEvent::Tls(tls) => secured(step, tls),
        DialEvent::Upgrade(version) => {
            let version = match version {
                Version::V1 => 1,
                Version::V2 => 2,
            };
            Check::ok(step, format!("wire version {version}")).number("wire", version)
        }
        DialEvent::Opening => Check::ok(step, "the gateway reached the target"),
    }
}

fn secured(step: Step, tls: &Tls) -> Check {
    let version = tls
        .version()
        .and_then(|version| version.as_str().map(str::to_owned))
        .unwrap_or_default();
    let info = tls.certificate().and_then(CertificateInfo::of);
    let Some(CertificateInfo { issuer, expires }) = info else {
        return Check::ok(step, version.as_str()).text("version", version);
    };
    Check::ok(
        step,
        format!("{version}, certificate of {issuer} until {expires}"),
    )
    .text("version", version)
    .text("issuer", issuer)
    .text("expires", expires)
}

/// Issuer and expiry of a certificate.
struct CertificateInfo {
    issuer: String,
    expires: String,
}

impl CertificateInfo {
    fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let expires = certificate.validity().not_after.to_datetime();
        Some(Self {
            issuer: certificate.issuer().to_string(),
            expires: format!("{} {}", expires.date(), expires.time()),
        })
    }
}
