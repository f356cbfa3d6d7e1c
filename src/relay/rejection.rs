//! Why there is no tunnel to the gateway, as a [`Rejection`]: status, error type, text and remedy.
//!
//! From the gateway's response only the plain text of a policy refusal (403) goes to the client;
//! the text of any other response is for the log and for `doctor`. Nothing of the client's request
//! is repeated (`manual/protocol.md`).

use std::borrow::Cow;
use std::io;

use crate::control::outcome::EndReason;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::crypto::tls_error::{self, Verifier};
use crate::net::socket_owner::ForeignOwner;
use crate::tunnel::error::{
    ParentError, TlsError, TunnelError, UpgradeError, exhausted, tls_status,
};

/// What to do if the gateway refuses the credentials.
const CREDENTIALS_REMEDY: &str = "it may have expired, or the token is not the one of the session ID: start a new session with \
     a new token";

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// A phase on the path to the gateway failed.
    #[error(transparent)]
    Path(#[from] TunnelError),
    /// The gateway answered the CONNECT request with this status, not 2xx.
    #[error("the gateway answered {status}: {text}")]
    Refused {
        /// The status.
        status: u16,
        /// The error type of its `Proxy-Status`.
        error: Option<&'static str>,
        /// The text of the response, in printable ASCII; it may be empty.
        text: String,
    },
}

impl DialError {
    /// How the client's connection ends; `phase` is the phase that failed.
    pub(super) fn end_reason(&self, phase: Phase) -> EndReason {
        match self {
            Self::Path(TunnelError::ClientLeft) => EndReason::Abandoned,
            _ => self.rejection(phase).into(),
        }
    }

    /// The rejection for the client; `phase` is the phase that failed.
    pub(super) fn rejection(&self, phase: Phase) -> Rejection {
        match self {
            Self::Path(error) => path_failed(phase, error),
            Self::Refused {
                status,
                error,
                text,
            } => refused_by_gateway(*status, *error, text),
        }
    }
}

/// The rejection for a failure on the path to the gateway.
fn path_failed(phase: Phase, error: &TunnelError) -> Rejection {
    let status = match error {
        TunnelError::Stopped | TunnelError::Upgrade(UpgradeError::Busy) => 503,
        _ if is_overload(phase, error) => 503,
        TunnelError::Io(error) if exhausted(error) => 503,
        _ if error.is_timeout() => 504,
        _ => 502,
    };
    let Explanation {
        what,
        remedy,
        proxy_status,
        detail,
    } = explain(phase, error);
    let mut rejection = Rejection::new(status, phase, what)
        .remedy(remedy)
        .proxy_status(proxy_status);
    if proxy_status == "connection_limit_reached" {
        rejection = rejection.field(&("Retry-After", "1"));
    }
    if matches!(error, TunnelError::Upgrade(UpgradeError::Unauthorized)) {
        rejection = rejection.of_credentials();
    }
    if detail {
        rejection.detail(error.to_string())
    } else {
        rejection
    }
}

/// Whether the alert of the upstream is the one that a gateway of this program sends if it has no
/// slot for another connection: it has no thread for a handshake then.
fn is_overload(phase: Phase, error: &TunnelError) -> bool {
    use rustls::AlertDescription::InternalError;
    let TunnelError::Tls(TlsError::Rustls(rustls::Error::AlertReceived(alert))) = error else {
        return false;
    };
    phase == Phase::Tls && *alert == InternalError
}

/// What is known about an error on the path to the gateway.
struct Explanation {
    what: Cow<'static, str>,
    remedy: &'static str,
    /// The error type of RFC 9209, section 2.3.
    proxy_status: &'static str,
    /// The error's own text says more than `what`.
    detail: bool,
}

impl Explanation {
    fn new(
        what: impl Into<Cow<'static, str>>,
        remedy: &'static str,
        proxy_status: &'static str,
    ) -> Self {
        Self {
            what: what.into(),
            remedy,
            proxy_status,
            detail: true,
        }
    }

    /// `what` is the error's own text.
    fn complete(self) -> Self {
        Self {
            detail: false,
            ..self
        }
    }
}

fn explain(phase: Phase, error: &TunnelError) -> Explanation {
    let new = |what: &'static str, remedy, token| Explanation::new(what, remedy, token);
    match (phase, error) {
        (_, TunnelError::Stopped) => new(
            "upstreamproxy is stopping",
            "try again after it has started again",
            "proxy_internal_response",
        )
        .complete(),
        (_, TunnelError::Io(error)) if exhausted(error) => new(
            "this machine has no descriptors, ports, threads or memory left for another tunnel",
            "try again in a moment",
            "proxy_internal_error",
        ),
        (_, TunnelError::Tls(TlsError::Rustls(rustls::Error::InvalidCertificate(flaw)))) => {
            let remedy = tls_error::upstream_remedy(flaw);
            let flaw = tls_error::certificate_flaw(flaw, Verifier::ThisMachine);
            let what = format!("the upstream's certificate {flaw}");
            Explanation::new(what, remedy, "tls_certificate_error").complete()
        }
        (_, TunnelError::Parent(error)) => parent_failed(*error),
        (Phase::Resolve, _) if error.is_timeout() => new(
            "the lookup of the upstream's name took too long",
            "check DNS",
            "dns_timeout",
        ),
        (Phase::Resolve, _) => new(
            "the upstream's name was not found",
            "check the base URL and DNS",
            "dns_error",
        ),
        (_, TunnelError::ForeignOwner(owner)) => Explanation::new(
            owner.to_string(),
            ForeignOwner::REMEDY,
            "destination_ip_prohibited",
        )
        .complete(),
        (Phase::Connect, _) if error.is_timeout() => new(
            "the upstream did not answer",
            "check the network, or raise connect-timeout (--connect-timeout)",
            "connection_timeout",
        ),
        (Phase::Connect, TunnelError::Io(error))
            if error.kind() == io::ErrorKind::ConnectionRefused =>
        {
            new(
                "the upstream refused the connection",
                "check that it runs at the base URL",
                "connection_refused",
            )
        }
        (Phase::Connect, _) => new(
            "the upstream cannot be reached",
            "check the network",
            "destination_ip_unroutable",
        ),
        _ if is_overload(phase, error) => new(
            "the upstream ended the TLS handshake with internal_error: it has no tunnel free, or a \
             fault",
            "try again in a moment",
            "connection_limit_reached",
        )
        .complete(),
        (Phase::Tls, TunnelError::Tls(_)) => new(
            "TLS with the upstream failed",
            "check the scheme and port of the base URL",
            tls_status(error),
        ),
        (_, TunnelError::Upgrade(upgrade)) => upgrade_failed(phase, *upgrade),
        (_, _) if error.is_timeout() => new(
            "the upstream took too long to answer",
            "try again later",
            "http_response_timeout",
        ),
        (Phase::Upgrade, TunnelError::Http(error)) => Explanation::new(
            error.to_string(),
            "check the base URL",
            "http_upgrade_failed",
        )
        .complete(),
        (_, TunnelError::Io(_) | TunnelError::ConnectionEnded | TunnelError::Closed(_)) => new(
            "the upstream closed the connection",
            "try again later",
            "connection_terminated",
        ),
        _ => new(
            "the upstream violated the protocol",
            "check that the base URL leads to a gateway",
            "http_protocol_error",
        ),
    }
}

fn parent_failed(error: ParentError) -> Explanation {
    let (remedy, token) = match error {
        ParentError::Unauthorized => (
            "set user and password in parent-proxy (--parent-proxy) or the inherited HTTPS_PROXY",
            "proxy_configuration_error",
        ),
        ParentError::Refused(_) => (
            "ask its operator to allow the upstream, or set parent-proxy (--parent-proxy)",
            "destination_unavailable",
        ),
    };
    Explanation::new(error.to_string(), remedy, token).complete()
}

fn upgrade_failed(phase: Phase, error: UpgradeError) -> Explanation {
    let (remedy, token) = match error {
        UpgradeError::Unauthorized => (CREDENTIALS_REMEDY, "http_request_denied"),
        UpgradeError::Page => (
            "check the base URL, and whether a login page of the network (a captive portal) answers \
             instead of the upstream",
            "http_upgrade_failed",
        ),
        UpgradeError::Busy => ("try again in a moment", "connection_limit_reached"),
        UpgradeError::Unavailable => ("try again later", "http_upgrade_failed"),
        _ if phase == Phase::Upgrade => ("check the base URL", "http_upgrade_failed"),
        _ => (
            "check that the base URL leads to a gateway",
            "http_protocol_error",
        ),
    };
    Explanation::new(error.to_string(), remedy, token).complete()
}

/// The rejection for a refusal of the gateway (`manual/protocol.md`).
fn refused_by_gateway(answered: u16, error: Option<&'static str>, text: &str) -> Rejection {
    let said = if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    };
    let (status, what, remedy, proxy_status) = match (answered, error) {
        (403, error) => (
            403,
            Cow::from(format!(
                "refused by the gateway{said} (policy, do not retry)"
            )),
            "ask its operator to allow this target",
            error.unwrap_or("http_request_denied"),
        ),
        (502, Some("dns_error")) => (
            502,
            "the target's name was not found".into(),
            "check its name",
            "dns_error",
        ),
        (502, Some("connection_refused")) => (
            502,
            "the target refused the connection".into(),
            "check its name and port",
            "connection_refused",
        ),
        (502, error) => (
            502,
            "the gateway could not reach the target".into(),
            "check its name and port",
            error.unwrap_or("destination_unavailable"),
        ),
        (504, Some("dns_timeout")) => (
            504,
            "the lookup of the target's name took too long at the gateway".into(),
            "try again later",
            "dns_timeout",
        ),
        (504, _) => (
            504,
            "the target did not answer the gateway in time".into(),
            "try again later",
            "connection_timeout",
        ),
        (503, Some(error @ "proxy_internal_response")) => (
            503,
            "the gateway is stopping".into(),
            "try again in a moment",
            error,
        ),
        (503, Some(error @ "proxy_internal_error")) => (
            503,
            "the gateway has no descriptors, ports, threads or memory left".into(),
            "try again in a moment",
            error,
        ),
        (429 | 503, _) => (
            503,
            "the gateway has no tunnel free, or is stopping".into(),
            "try again in a moment",
            "connection_limit_reached",
        ),
        (407, _) => (
            502,
            "the gateway does not accept this session".into(),
            CREDENTIALS_REMEDY,
            "http_request_denied",
        ),
        _ => (
            502,
            "the gateway refused the tunnel for a reason that is not passed on".into(),
            "see the relay's log, and report it to the gateway's operator",
            "http_protocol_error",
        ),
    };
    // A gateway of this program uses the same words.
    let said = if text == what || answered == 403 {
        ""
    } else {
        &said
    };
    let detail = format!("the gateway answered {answered}{said}");
    let mut rejection = Rejection::new(status, Phase::Opening, what)
        .remedy(remedy)
        .proxy_status(proxy_status)
        .detail(detail)
        .about_target();
    if status == 503 {
        rejection = rejection.field(&("Retry-After", "1"));
    }
    if answered == 407 {
        rejection = rejection.of_credentials();
    }
    rejection
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::response;

    fn body(rejection: &Rejection) -> String {
        let bytes = response::closing(rejection);
        let text = String::from_utf8(bytes).unwrap();
        text.split_once("\r\n\r\n").unwrap().1.trim_end().to_owned()
    }

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
            let rejection = refused_by_gateway(answered, None, "canary");
            let sentence = body(&rejection);
            assert_eq!(rejection.status, status, "{answered}");
            assert_eq!(rejection.field.is_some(), status == 503, "{answered}");
            assert_eq!(
                sentence,
                format!("{}; {}", rejection.what, rejection.remedy)
            );
            // Only the text of a policy refusal goes to the client; the log has every text.
            assert_eq!(sentence.contains("canary"), answered == 403, "{sentence}");
            assert!(rejection.to_string().contains("canary"), "{rejection}");
        }
    }

    #[test]
    fn a_failure_on_the_path_is_reported_once_and_with_its_remedy() {
        let rejection = path_failed(Phase::Upgrade, &UpgradeError::Unauthorized.into());
        assert_eq!(
            rejection.to_string(),
            "the upstream does not accept this session's token"
        );
        assert!(rejection.remedy.contains("new session"));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let rejection = path_failed(Phase::Connect, &TunnelError::Io(refused));
        let text = rejection.to_string();
        assert!(
            text.starts_with("the upstream refused the connection: "),
            "{text}"
        );
        assert_eq!(rejection.remedy, "check that it runs at the base URL");
        assert_eq!(rejection.status, 502);
        let busy = path_failed(Phase::Upgrade, &UpgradeError::Busy.into());
        assert_eq!(
            (busy.status, busy.proxy_status, busy.field),
            (
                503,
                Some("connection_limit_reached"),
                Some(&("Retry-After", "1"))
            )
        );
        let late = path_failed(Phase::Tls, &TunnelError::TimedOut(Phase::Tls));
        assert_eq!(late.status, 504);
        let left = DialError::Path(TunnelError::ClientLeft);
        assert_eq!(left.end_reason(Phase::Resolve), EndReason::Abandoned);
    }
}
