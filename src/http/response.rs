//! The HTTP response to a refused request ([RFC 9110, section 15], [RFC 9209]): status,
//! `Proxy-Status` and one line of plain text.
//!
//! [RFC 9110, section 15]: https://www.rfc-editor.org/rfc/rfc9110#section-15
//! [RFC 9209]: https://www.rfc-editor.org/rfc/rfc9209

use std::fmt::Write;

use crate::control::rejection::Rejection;

/// Separates what failed from what to do in the text of a response.
const SEPARATOR: &str = "; ";

/// The response to `rejection`, after which the connection is closed.
pub(crate) fn closing(rejection: &Rejection) -> Vec<u8> {
    to_bytes(rejection, "close")
}

/// The response to `rejection`, after which the client may send another request.
pub(crate) fn keeping_alive(rejection: &Rejection) -> Vec<u8> {
    to_bytes(rejection, "keep-alive")
}

/// What failed and what to do, if the text of a response from another process has both.
#[cfg(any(test, feature = "cli"))]
pub(crate) fn parse_text(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(SEPARATOR) {
        Some((what, remedy)) => (what, Some(remedy)),
        None => (text, None),
    }
}

fn to_bytes(rejection: &Rejection, connection: &str) -> Vec<u8> {
    let Rejection {
        status,
        phase,
        proxy_status,
        what,
        remedy,
        field,
        detail: _,
    } = rejection;
    let separator = if remedy.is_empty() { "" } else { SEPARATOR };
    let body = format!("{what}{separator}{remedy}\n");
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason_phrase(*status));
    // Writing to a `String` cannot fail.
    if let Some(error) = proxy_status {
        let _ = write!(
            head,
            "Proxy-Status: upstreamproxy; error={error}; details=\"{phase}\"\r\n"
        );
    }
    if let Some((name, value)) = field {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = write!(
        head,
        "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: {connection}\r\n\r\n{body}",
        body.len()
    );
    head.into_bytes()
}

/// The reason phrases of the statuses that this crate sends.
fn reason_phrase(status: u16) -> &'static str {
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
    use crate::control::phase::Phase;
    use crate::http::head;

    fn rejection() -> Rejection {
        Rejection::new(503, Phase::Head, "all tunnels are in use")
            .remedy("try again")
            .proxy_status("connection_limit_reached")
            .detail("64 of 64")
            .field("Retry-After", "1")
    }

    #[test]
    fn a_response_says_what_happened_and_closes() {
        let bytes = closing(&rejection());
        let (head, len) = head::response(&bytes).unwrap().unwrap();
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
        let text = std::str::from_utf8(&bytes[len..]).unwrap();
        assert_eq!(text, "all tunnels are in use; try again\n");
        let parsed = parse_text(text.trim_end());
        assert_eq!(parsed, ("all tunnels are in use", Some("try again")));
    }

    #[test]
    fn a_response_that_keeps_the_connection_says_so() {
        let bytes = keeping_alive(&rejection());
        let (head, _) = head::response(&bytes).unwrap().unwrap();
        assert_eq!(head.fields.one("connection"), Some(&b"keep-alive"[..]));
    }
}
