//! Responses that this program generates itself.

use crate::control::phase::Phase;

/// A response that this program generates, usually a refusal: its text is the reason.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// The status code.
    pub(crate) status: u16,
    /// What happened and what to do, in one sentence. Contains no byte of the request.
    pub(crate) sentence: String,
    /// The `Proxy-Status` error type ([RFC 9209, section
    /// 2.3](https://www.rfc-editor.org/rfc/rfc9209#section-2.3)) and the phase.
    pub(crate) proxy_status: Option<(&'static str, Phase)>,
    /// One more field: name and value.
    pub(crate) field: Option<(&'static str, &'static str)>,
    /// Whether the connection stays open for another request.
    pub(crate) stays: bool,
}

impl Reply {
    /// A response with a status and its sentence, which closes the connection.
    pub(crate) fn new(status: u16, sentence: impl Into<String>) -> Self {
        Self {
            status,
            sentence: sentence.into(),
            proxy_status: None,
            field: None,
            stays: false,
        }
    }

    /// Splits a sentence at its last semicolon: what happened, and what to do.
    pub(crate) fn parts(sentence: &str) -> (&str, &str) {
        sentence
            .rsplit_once("; ")
            .unwrap_or((sentence, "see the relay's log"))
    }

    /// Adds `Proxy-Status`: the type of the error and the phase in which it happened.
    pub(crate) fn because(mut self, error: &'static str, phase: Phase) -> Self {
        self.proxy_status = Some((error, phase));
        self
    }

    /// Adds one field.
    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.field = Some((name, value));
        self
    }

    /// Keeps the connection open for another request.
    pub(crate) fn staying(mut self) -> Self {
        self.stays = true;
        self
    }

    /// The bytes to send.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        use std::fmt::Write;
        let body = format!("{}\n", self.sentence);
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        if let Some((error, phase)) = self.proxy_status {
            // Writing to a `String` cannot fail.
            let _ = write!(
                head,
                "Proxy-Status: upstreamproxy; error={error}; details=\"{phase}\"\r\n"
            );
        }
        if let Some((name, value)) = self.field {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let _ = write!(
            head,
            "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n{body}",
            body.len(),
            if self.stays { "keep-alive" } else { "close" }
        );
        head.into_bytes()
    }
}

/// The reason phrase of a status that this program sends ([RFC 9110, section
/// 15](https://www.rfc-editor.org/rfc/rfc9110#section-15)).
fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::response;

    #[test]
    fn a_reply_contains_the_reason_and_closes_the_connection() {
        let reply = Reply::new(503, "all tunnels are in use, try again")
            .because("connection_limit_reached", Phase::Head);
        let bytes = reply.with("Retry-After", "1").to_bytes();
        let (head, len) = response(&bytes).expect("no fault").expect("whole");
        assert_eq!(head.status, 503);
        assert_eq!(head.fields.one("retry-after"), Some(&b"1"[..]));
        assert_eq!(head.fields.one("connection"), Some(&b"close"[..]));
        let length = String::from_utf8_lossy(head.fields.one("content-length").unwrap_or_default())
            .into_owned();
        assert_eq!(length, (bytes.len() - len).to_string());
        let status = head.fields.one("proxy-status").map(String::from_utf8_lossy);
        assert_eq!(
            status.as_deref(),
            Some("upstreamproxy; error=connection_limit_reached; details=\"head\"")
        );
    }
}
