//! The HTTP response to a refused request ([RFC 9110, section 15], [RFC 9209]): status with the
//! reason, `Proxy-Status` and one line of plain text.
//!
//! The reason is in the status line too, because most tools show nothing else of a refused CONNECT
//! request.
//!
//! [RFC 9110, section 15]: https://www.rfc-editor.org/rfc/rfc9110#section-15
//! [RFC 9209]: https://www.rfc-editor.org/rfc/rfc9209

use std::fmt::Write;

use crate::control::rejection::Rejection;

/// Separates what failed from what to do in the text of a response.
const SEPARATOR: &str = "; ";

/// The longest reason phrase. A text and the longest name fit.
const REASON_LIMIT: usize = 512;

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
        host,
        detail: _,
        of_credentials: _,
        about_target: _,
    } = rejection;
    let separator = if remedy.is_empty() { "" } else { SEPARATOR };
    let subject = host.as_ref().map(|host| format!("{host}: "));
    let subject = subject.as_deref().unwrap_or_default();
    let body = format!("{subject}{what}{separator}{remedy}\n");
    let mut head = format!(
        "HTTP/1.1 {status} {}\r\n",
        reason_phrase(what, host.as_deref())
    );
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

/// What failed and the host of the target, in printable ASCII ([RFC 9112, section 4]), at most
/// [`REASON_LIMIT`] bytes.
///
/// [RFC 9112, section 4]: https://www.rfc-editor.org/rfc/rfc9112#section-4
fn reason_phrase(what: &str, host: Option<&str>) -> String {
    let separator = if host.is_some() { ": " } else { "" };
    let parts = [what, separator, host.unwrap_or_default()];
    parts
        .iter()
        .flat_map(|part| part.chars())
        .map(|c| if matches!(c, ' '..='~') { c } else { ' ' })
        .take(REASON_LIMIT)
        .collect()
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
            .field(&("Retry-After", "1"))
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
    fn the_reason_and_the_host_are_in_the_status_line_and_in_the_body() {
        let rejection = rejection().about_target().for_target("a.example:443");
        let text = String::from_utf8(closing(&rejection)).unwrap();
        let (line, rest) = text.split_once("\r\n").unwrap();
        assert_eq!(line, "HTTP/1.1 503 all tunnels are in use: a.example");
        assert!(
            rest.ends_with("\r\n\r\na.example: all tunnels are in use; try again\n"),
            "{rest}"
        );
    }

    #[test]
    fn a_reason_is_bounded_printable_ascii() {
        let long = format!("a\r\nb\u{1b}\u{e9}{}", "x".repeat(5000));
        let bytes = closing(&Rejection::new(502, Phase::Tls, long));
        let line = bytes.split(|byte| *byte == b'\r').next().unwrap();
        assert!(line.starts_with(b"HTTP/1.1 502 a  b  xx"), "{line:?}");
        assert_eq!(line.len(), "HTTP/1.1 502 ".len() + REASON_LIMIT);
        assert_eq!(head::response(&bytes).unwrap().unwrap().0.status, 502);
    }

    #[test]
    fn a_response_that_keeps_the_connection_says_so() {
        let bytes = keeping_alive(&rejection());
        let (head, _) = head::response(&bytes).unwrap().unwrap();
        assert_eq!(head.fields.one("connection"), Some(&b"keep-alive"[..]));
    }
}
