//! Why a request was refused: one value for the client's response, the log line and `doctor`.
//!
//! It is data only. `http::response` writes it as an HTTP response.

use std::borrow::Cow;
use std::fmt;

use crate::control::phase::Phase;

/// Why a request was refused, and what to do.
///
/// [`Display`](fmt::Display) prints what failed with its detail, without the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// The HTTP status of the response.
    pub(crate) status: u16,
    /// The phase that failed.
    pub(crate) phase: Phase,
    /// The error type of the `Proxy-Status` field ([RFC 9209, section 2.3]). `None`: the response
    /// has no such field.
    ///
    /// [RFC 9209, section 2.3]: https://www.rfc-editor.org/rfc/rfc9209#section-2.3
    pub(crate) proxy_status: Option<&'static str>,
    /// What failed. It goes to the client and contains no byte of its request; `host` does.
    pub(crate) what: Cow<'static, str>,
    /// What to do, for the client; empty if there is nothing to add.
    pub(crate) remedy: &'static str,
    /// The cause, for the log and for `doctor`. It is never sent to the client.
    pub(crate) detail: Option<String>,
    /// One more field of the response: name and value.
    pub(crate) field: Option<&'static (&'static str, &'static str)>,
    /// The target is the cause, so that the response names its host.
    pub(crate) about_target: bool,
    /// The host of the target, for the client. It was parsed, so it has printable ASCII only.
    pub(crate) host: Option<String>,
    /// The far end does not accept the credentials of this process.
    pub(crate) of_credentials: bool,
}

impl Rejection {
    /// A rejection with `status` because `what` happened in `phase`.
    pub(crate) fn new(status: u16, phase: Phase, what: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            phase,
            proxy_status: None,
            what: what.into(),
            remedy: "",
            detail: None,
            field: None,
            about_target: false,
            host: None,
            of_credentials: false,
        }
    }

    /// Sets the error type of `Proxy-Status`.
    #[must_use]
    pub(crate) fn proxy_status(mut self, error: &'static str) -> Self {
        self.proxy_status = Some(error);
        self
    }

    /// Sets what to do.
    #[must_use]
    pub(crate) fn remedy(mut self, remedy: &'static str) -> Self {
        self.remedy = remedy;
        self
    }

    /// Sets the cause, for the log and for `doctor`.
    #[must_use]
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a field to the response.
    #[must_use]
    pub(crate) fn field(mut self, field: &'static (&'static str, &'static str)) -> Self {
        self.field = Some(field);
        self
    }

    /// The target is the cause. Of a failure on the path to the gateway it is not.
    #[must_use]
    pub(crate) fn about_target(mut self) -> Self {
        self.about_target = true;
        self
    }

    /// Names the host of the target, which is `host:port`, in the response, if it is the cause.
    #[must_use]
    pub(crate) fn for_target(mut self, target: &str) -> Self {
        if !self.about_target {
            return self;
        }
        let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
        self.host = Some(host.to_owned());
        self
    }

    /// The cause is that the far end does not accept the credentials of this process.
    #[must_use]
    pub(crate) fn of_credentials(mut self) -> Self {
        self.of_credentials = true;
        self
    }

    /// Whether the gateway's policy forbids the target. The path to the gateway works in that case.
    #[cfg(feature = "cli")]
    pub(crate) fn is_policy(&self) -> bool {
        self.phase == Phase::Opening && self.status == 403
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_has_the_detail_and_not_the_remedy() {
        let rejection = Rejection::new(502, Phase::Connect, "it failed").remedy("fix it");
        assert_eq!(rejection.to_string(), "it failed");
        assert_eq!(
            rejection.detail("errno 5").to_string(),
            "it failed: errno 5"
        );
    }
}
