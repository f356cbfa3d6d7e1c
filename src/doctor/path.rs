//! The path to the gateway, phase by phase, dialed by the relay's own code.

use std::net::SocketAddr;
use std::time::Instant;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::check::{Check, Step, Verdict};
use super::far_end::FarEnd;
use crate::config::Config;
use crate::control::peer_text;
use crate::control::phase::Phase;
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
/// Why there is no round trip if the gateway's policy forbids the default far end.
pub(super) const FORBIDDEN: &str =
    "the gateway's policy forbids its own host; name a far end with --target HOST:PORT";

/// Checks the path as far as the earlier steps allow: name, TCP and TLS need no token. Without a
/// token (`token_deleted`, or not readable) the later phases are skipped.
///
/// # Errors
/// No tunnel was opened; why there is no round trip.
pub(super) fn check_all(
    config: &Config,
    prepared: Option<&Prepared>,
    target: Option<&FarEnd>,
    token_deleted: bool,
    report: &mut dyn FnMut(Check),
) -> Result<(), &'static str> {
    let mut phases = PhaseReport {
        report,
        since: Instant::now(),
        next: 0,
    };
    let Some(prepared) = prepared else {
        return phases.skip_rest("the gate is closed");
    };
    let secure = prepared.session.base.secure();
    if secure && prepared.roots.is_none() {
        return phases.skip_rest("there are no root certificates, see ca");
    }
    // Without a token there is no target, and so no phase after TLS.
    let target = target.filter(|_| prepared.token.is_some());
    let authority = target.map(|far_end| &far_end.authority);
    let upstream = match prepared.upstream(config) {
        Ok(upstream) => upstream,
        Err(error) => {
            phases.pass(|step| Check::wrong(step, error));
            return phases.skip_rest("the roots cannot be used");
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
        Ok(()) if target.is_some() => Ok(()),
        Ok(()) if token_deleted => {
            phases.skip_rest("the token file is deleted; the round trip uses it")
        }
        Ok(()) => phases.skip_rest("there is no token, see token"),
        Err(rejection) if rejection.is_policy() && target.is_some_and(|far_end| !far_end.named) => {
            let detail = "the gateway answered: its policy forbids its own host";
            phases.pass(|step| Check::ok(step, detail));
            Err(FORBIDDEN)
        }
        Err(rejection) => {
            let phase = rejection.phase;
            let what = match (phase, authority) {
                (Phase::Opening, Some(target)) => format!("{target}: {rejection}"),
                _ => rejection.to_string(),
            };
            phases.pass(|step| Check::wrong(step, Problem::new(what, rejection.remedy)));
            phases.skip_rest(&format!("{phase} failed"))
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

    fn skip_rest(&mut self, why: &str) -> Result<(), &'static str> {
        for &step in PHASES.get(self.next..).unwrap_or_default() {
            (self.report)(Check::skipped(step, why));
        }
        Err("no tunnel could be opened, see above")
    }
}

fn found(step: Step, passed: &DialEvent<'_>) -> Check {
    match passed {
        DialEvent::Resolve(addresses) => {
            let list: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
            let list = list.join(", ");
            Check::ok(step, list.as_str()).fact("addresses", list)
        }
        DialEvent::Connect(address) => {
            Check::ok(step, address.to_string()).fact("address", address.to_string())
        }
        DialEvent::Tls(tls) => secured(step, tls),
        DialEvent::Upgrade(version) => {
            let version = match version {
                Version::V1 => 1,
                Version::V2 => 2,
            };
            Check::ok(step, format!("wire version {version}")).fact("wire", version)
        }
        DialEvent::Opening => Check::ok(step, "the gateway reached the target"),
    }
}

fn secured(step: Step, tls: &Tls) -> Check {
    let version = tls.version().and_then(|version| version.as_str());
    let version = version.unwrap_or_default();
    let check = match tls.certificate().and_then(issuer_and_expiry) {
        Some((issuer, expires)) => {
            let detail = format!("{version}, certificate of {issuer} until {expires}");
            let check = Check::ok(step, detail).fact("issuer", issuer);
            check.fact("expires", expires)
        }
        None => Check::ok(step, version),
    };
    check.fact("version", version)
}

fn issuer_and_expiry(der: &CertificateDer<'_>) -> Option<(String, String)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let expires = certificate.validity().not_after.to_datetime();
    let expires = format!("{} {}", expires.date(), expires.time());
    Some((peer_text::bounded(certificate.issuer()), expires))
}
