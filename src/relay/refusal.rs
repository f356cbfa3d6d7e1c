//! Why there is no tunnel, in three voices: the reply to the client, the reason for the log, and the remedy.
//!
//! Nothing of the gateway's answers is copied to the client but the plain text of a policy refusal; nothing of the client's
//! request at all.

use std::borrow::Cow;

use crate::control::phase::Phase;
use crate::crypto::tls;
use crate::http::reply::Reply;
use crate::tunnel::error::{TlsError, TunnelError, UpgradeError, exhausted};

/// Why there is no tunnel.
pub(crate) struct Refusal {
    /// What the client is told; nothing when it is gone.
    pub(super) reply: Option<Reply>,
    /// What the log says.
    pub(super) why: String,
}

impl Refusal {
    /// What the client is told of a failure on the way.
    pub(super) fn of(phase: Phase, fault: &TunnelError) -> Self {
        let why = fault.to_string();
        if matches!(fault, TunnelError::ClientLeft) {
            return Self { reply: None, why };
        }
        if matches!(fault, TunnelError::Stopped) {
            let reply = Reply::new(
                503,
                "upstreamproxy is stopping; try again when it runs again",
            );
            return Self {
                reply: Some(reply.because("proxy_internal_response", phase)),
                why,
            };
        }
        let status = match fault {
            TunnelError::Io(error) if exhausted(error) => 503,
            _ if fault.is_timeout() => 504,
            _ => 502,
        };
        let (what, remedy, error) = explained(phase, fault);
        let reply = Reply::new(status, format!("{what}; {remedy}")).because(error, phase);
        let why = if why == what {
            why
        } else {
            format!("{what}: {why}")
        };
        Self {
            reply: Some(reply),
            why,
        }
    }

    /// Whether the gateway itself forbids the target: everything on the way to it is well.
    pub(crate) fn is_policy(&self) -> bool {
        self.reply.as_ref().is_some_and(|reply| reply.status == 403)
    }

    /// What happened, as fully as we may say it, and what to do about it.
    pub(crate) fn told(&self) -> (&str, &str) {
        let sentence = self.reply.as_ref().map_or("", |reply| &reply.sentence);
        let (what, remedy) = Reply::parts(sentence);
        // The log's reason is the same and more, save where it shows a gateway's text that is not passed on.
        if self.why.starts_with(what) {
            (&self.why, remedy)
        } else {
            (what, remedy)
        }
    }
}

/// What happened, what to do, and the error type of `Proxy-Status`.
fn explained(phase: Phase, fault: &TunnelError) -> (Cow<'static, str>, &'static str, &'static str) {
    match (phase, fault) {
        (_, TunnelError::Io(error)) if exhausted(error) => (
            "this machine has no descriptor, thread or memory left for another tunnel".into(),
            "try again in a moment",
            "proxy_internal_error",
        ),
        (_, TunnelError::Tls(TlsError::Rustls(rustls::Error::InvalidCertificate(flaw)))) => {
            let (flaw, remedy) = tls::certificate_flaw(flaw);
            let what = format!("the upstream's certificate {flaw}");
            (what.into(), remedy, "tls_certificate_error")
        }
        (Phase::Resolve, _) if fault.is_timeout() => (
            Cow::from("looking up the upstream's name took too long"),
            "check DNS",
            "dns_timeout",
        ),
        (Phase::Resolve, _) => (
            "the upstream's name was not found".into(),
            "check the base URL and DNS",
            "dns_error",
        ),
        (Phase::Connect, _) if fault.is_timeout() => (
            "the upstream did not answer".into(),
            "check the network, or raise --connect-timeout",
            "connection_timeout",
        ),
        (Phase::Connect, TunnelError::Io(error))
            if error.kind() == std::io::ErrorKind::ConnectionRefused =>
        {
            (
                "the upstream refused the connection".into(),
                "see that it runs at the base URL",
                "connection_refused",
            )
        }
        (Phase::Connect, _) => (
            "the upstream cannot be reached".into(),
            "check the network",
            "destination_ip_unroutable",
        ),
        (Phase::Tls, TunnelError::Tls(_)) => (
            "TLS with the upstream failed".into(),
            "check the base URL's scheme and port",
            "tls_protocol_error",
        ),
        (_, TunnelError::Upgrade(error @ UpgradeError::Unauthorized)) => (
            error.to_string().into(),
            "it may have expired: start a new session",
            "http_request_denied",
        ),
        (_, TunnelError::Upgrade(error @ UpgradeError::Page)) => (
            error.to_string().into(),
            "check the base URL, and whether a login page of the network (a captive portal) answers in its place",
            "http_upgrade_failed",
        ),
        (_, TunnelError::Upgrade(error @ UpgradeError::Unavailable)) => (
            error.to_string().into(),
            "try again later",
            "http_upgrade_failed",
        ),
        (_, _) if fault.is_timeout() => (
            "the upstream took too long to answer".into(),
            "try again later",
            "http_response_timeout",
        ),
        (Phase::Upgrade, TunnelError::Upgrade(_) | TunnelError::Http(_)) => (
            fault.to_string().into(),
            "check the base URL",
            "http_upgrade_failed",
        ),
        (_, TunnelError::Io(_) | TunnelError::ConnectionEnded | TunnelError::Closed(_)) => (
            "the upstream broke the connection off".into(),
            "try again later",
            "connection_terminated",
        ),
        _ => (
            "the upstream does not keep to the protocol".into(),
            "check that the base URL leads to a gateway",
            "http_protocol_error",
        ),
    }
}

/// What the gateway's own refusal becomes for the client (`manual/protocol.md`): rebuilt, never copied.
pub(super) fn refused_by_gateway(answered: u16, text: &str) -> Refusal {
    let said = if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    };
    let (status, what, remedy, error) = match answered {
        403 => (
            403,
            format!("refused by the gateway{said} (policy, do not retry)").into(),
            "ask its operator to allow this target",
            "http_request_denied",
        ),
        502 => (
            502,
            Cow::from("the gateway could not reach the target"),
            "check its name and port",
            "destination_unavailable",
        ),
        504 => (
            504,
            "the target did not answer the gateway in time".into(),
            "try again later",
            "connection_timeout",
        ),
        429 | 503 => (
            503,
            "the gateway has no tunnel free, or is stopping".into(),
            "try again in a moment",
            "connection_limit_reached",
        ),
        407 => (
            502,
            "the gateway does not accept this session".into(),
            "it may have ended, start a new one",
            "http_request_denied",
        ),
        _ => (
            502,
            "the gateway refused the tunnel in a way that this proxy does not pass on".into(),
            "tell its operator",
            "http_protocol_error",
        ),
    };
    let mut reply = Reply::new(status, format!("{what}; {remedy}")).because(error, Phase::Opening);
    if status == 503 {
        reply = reply.with("Retry-After", "1");
    }
    Refusal {
        reply: Some(reply),
        why: format!("the gateway answered {answered}{said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_gateway_says_what_happened_and_what_to_do() {
        for (answered, status) in [
            (403, 403),
            (502, 502),
            (504, 504),
            (429, 503),
            (503, 503),
            (407, 502),
            (401, 502),
            (302, 502),
        ] {
            let refusal = refused_by_gateway(answered, "canary");
            let (what, remedy) = refusal.told();
            let sentence = format!("{what}; {remedy}");
            let reply = refusal.reply.as_ref().unwrap();
            assert_eq!(reply.status, status, "{answered}");
            assert_eq!(reply.field.is_some(), status == 503, "{answered}");
            assert_eq!(reply.sentence, sentence);
            // Its text is passed on where it is policy, and is the log's alone elsewhere.
            assert_eq!(sentence.contains("canary"), answered == 403, "{sentence}");
            assert!(refusal.why.contains("canary"), "{}", refusal.why);
        }
    }

    #[test]
    fn a_failure_on_the_way_is_told_once_and_with_its_remedy() {
        let refusal = Refusal::of(Phase::Upgrade, &UpgradeError::Unauthorized.into());
        assert_eq!(
            refusal.why,
            "the upstream does not accept this session's token"
        );
        assert!(refusal.told().1.contains("new session"));
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let refusal = Refusal::of(Phase::Connect, &TunnelError::Io(refused));
        let (what, remedy) = refusal.told();
        assert!(
            what.starts_with("the upstream refused the connection: "),
            "{what}"
        );
        assert_eq!(remedy, "see that it runs at the base URL");
        assert_eq!(refusal.reply.unwrap().status, 502);
        let late = Refusal::of(Phase::Tls, &TunnelError::TimedOut(Phase::Tls));
        assert_eq!(late.reply.unwrap().status, 504);
        assert!(
            Refusal::of(Phase::Resolve, &TunnelError::ClientLeft)
                .reply
                .is_none()
        );
    }
}
