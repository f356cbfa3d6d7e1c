//! The way to the gateway, walked as the relay walks it for every tunnel, with what is learnt in each phase.

use std::net::SocketAddr;
use std::time::Instant;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::FarEnd;
use super::check::{Check, Opened, Problem, Step, Verdict};
use super::stages::Seen;
use crate::config::Config;
use crate::control::phase::Phase;
use crate::crypto::secret::Secret;
use crate::net::resolver::Resolver;
use crate::orchestrator::upstream;
use crate::relay::{DialEvent, trace};
use crate::tunnel::message::Version;
use crate::tunnel::transport::Tls;

/// The phases of the way, in order.
const PHASES: [Step; 5] = [
    Step::Resolve,
    Step::Connect,
    Step::Tls,
    Step::Upgrade,
    Step::Opening,
];

/// Walks the way as far as what was `seen` allows: name, TCP and TLS need no token, and where it is `burnt` we have none.
pub(super) fn walk(
    config: &Config,
    seen: &Seen,
    target: Option<&FarEnd>,
    burnt: bool,
    tell: &mut dyn FnMut(Check),
) -> Opened {
    let mut told = Reached {
        tell,
        since: Instant::now(),
        next: 0,
    };
    let Some(session) = &seen.session else {
        told.skip_rest("the gate is closed");
        return Opened::No;
    };
    let secure = session.base.secure();
    let roots = match &seen.roots {
        Some(roots) => roots.as_slice(),
        None if !secure => &[],
        None => {
            told.skip_rest("there are no roots to trust, see ca");
            return Opened::No;
        }
    };
    // Nobody is shown this one: without a token there is no target, and so nothing beyond TLS.
    let nothing = || Secret::new(Zeroizing::new(String::new()));
    let token = seen.token.clone().unwrap_or_else(nothing);
    let target = target.filter(|_| seen.token.is_some());
    let authority = target.map(|far_end| &far_end.authority);
    let (id, base) = (session.id.clone(), session.base.clone());
    let upstream = match upstream(id, base, token, roots, Resolver::new()) {
        Ok(upstream) => upstream,
        Err(error) => {
            told.pass(|step| Check::wrong(step, error.into()));
            told.skip_rest("the roots cannot be used");
            return Opened::No;
        }
    };
    told.since = Instant::now();
    let traced = trace(&upstream, &config.limits, authority, &mut |passed| {
        told.pass(|step| found(step, &passed));
        if matches!(passed, DialEvent::Connect(_)) && !secure {
            told.pass(|step| Check::skipped(step, "plain http, which is for loopback only"));
        }
    });
    match traced {
        Ok(()) if target.is_some() => Opened::Yes,
        Ok(()) if burnt => {
            told.skip_rest("the token is burnt; the round trip shows it");
            Opened::No
        }
        Ok(()) => {
            told.skip_rest("there is no token to show, see token");
            Opened::No
        }
        Err((Phase::Opening, refusal))
            if refusal.is_policy() && target.is_some_and(|far_end| !far_end.named) =>
        {
            told.pass(|step| Check::ok(step, "the gateway answers, and forbids its own host"));
            Opened::Forbidden
        }
        Err((phase, refusal)) => {
            let (what, remedy) = refusal.told();
            let trouble = match (phase, authority) {
                (Phase::Opening, Some(target)) => Problem::new(format!("{target}: {what}"), remedy),
                _ => Problem::new(what, remedy),
            };
            told.pass(|step| Check::wrong(step, trouble));
            told.skip_rest(&format!("{phase} failed"));
            Opened::No
        }
    }
}

/// Tells each phase once, in order, with the time since the one before.
struct Reached<'a> {
    tell: &'a mut dyn FnMut(Check),
    since: Instant,
    next: usize,
}

impl Reached<'_> {
    fn pass(&mut self, finding: impl FnOnce(Step) -> Check) {
        let Some(&step) = PHASES.get(self.next) else {
            return;
        };
        let finding = finding(step);
        (self.tell)(match finding.verdict {
            Verdict::Skipped(_) => finding,
            _ => finding.after(self.since.elapsed()),
        });
        self.next += 1;
        self.since = Instant::now();
    }

    fn skip_rest(&mut self, why: &str) {
        for &step in PHASES.get(self.next..).unwrap_or_default() {
            (self.tell)(Check::skipped(step, why));
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
            Check::ok(step, format!("version {version} of the wire")).number("wire", version)
        }
        DialEvent::Opening => Check::ok(step, "the gateway reached the target"),
    }
}

fn secured(step: Step, tls: &Tls) -> Check {
    let version = tls
        .version()
        .and_then(|version| version.as_str().map(str::to_owned))
        .unwrap_or_default();
    let shown = tls.certificate().and_then(Shown::of);
    let Some(Shown { issuer, expires }) = shown else {
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

/// What a certificate says about itself.
struct Shown {
    issuer: String,
    expires: String,
}

impl Shown {
    fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let expires = certificate.validity().not_after.to_datetime();
        Some(Self {
            issuer: certificate.issuer().to_string(),
            expires: format!("{} {}", expires.date(), expires.time()),
        })
    }
}
