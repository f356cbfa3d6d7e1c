//! The opening of a tunnel inside the WebSocket (`manual/protocol.md`, The opening): a CONNECT
//! request ([RFC 9110, section 9.3.6]) and its response, as HTTP/1.1 heads.
//!
//! Without I/O. The relay writes [`request`] and reads [`ConnectResponse`]; the gateway reads
//! [`ConnectRequest`] and writes the response.
//!
//! [RFC 9110, section 9.3.6]: https://www.rfc-editor.org/rfc/rfc9110#section-9.3.6

#[cfg(any(test, feature = "gateway"))]
use std::fmt;

use zeroize::Zeroizing;

use super::error::{OpeningError, TunnelError};
use crate::control::peer_text::TEXT_LIMIT;
use crate::crypto::secret::Credentials;
use crate::http::authority::Authority;
use crate::http::head;

/// The field of the gateway's 101 response that identifies its CA certificates.
pub(crate) const CA_DIGEST_FIELD: &str = "Upstreamproxy-CA";
/// The gateway's response when it is connected to the target.
pub(crate) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// The relay's request. It contains the parsed authority, never bytes of the client's request.
pub(crate) fn request(authority: &Authority, credentials: &Credentials) -> Zeroizing<Vec<u8>> {
    let basic = credentials.basic();
    // The full capacity from the start: a vector that grows leaves copies of the token behind.
    let mut head = Zeroizing::new(Vec::with_capacity(basic.len() + 400));
    for part in [
        "CONNECT ",
        &authority.to_string(),
        " HTTP/1.1\r\nProxy-Authorization: ",
        &basic,
        "\r\n\r\n",
    ] {
        head.extend_from_slice(part.as_bytes());
    }
    head
}

/// The gateway's response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConnectResponse {
    /// The status code.
    pub(crate) status: u16,
    /// The length of the head. After it, the tunnel is transparent, or the text of a refusal
    /// begins.
    pub(crate) len: usize,
    /// The length of the text, if the head has one.
    pub(crate) text: Option<usize>,
    /// The error type of `Proxy-Status`, if this crate knows it.
    pub(crate) error: Option<&'static str>,
}

impl ConnectResponse {
    /// Reads the response from the front of `bytes`; `None` if more bytes are needed. Interim
    /// responses (1xx) before it are skipped.
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<Self>, TunnelError> {
        let Some((head, len)) = head::final_response(bytes)? else {
            return Ok(None);
        };
        if head.status < 200 {
            return Err(OpeningError::SwitchedProtocols.into());
        }
        let length = head
            .fields
            .one("content-length")
            .and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        Ok(Some(Self {
            status: head.status,
            len,
            text: length,
            error: head.fields.one("proxy-status").and_then(error_type),
        }))
    }

    /// Whether the gateway is connected to the target.
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// The error types that a gateway sends in an opening ([RFC 9209, section 2.3]).
///
/// [RFC 9209, section 2.3]: https://www.rfc-editor.org/rfc/rfc9209#section-2.3
const ERROR_TYPES: [&str; 11] = [
    "connection_limit_reached",
    "connection_refused",
    "connection_timeout",
    "destination_ip_prohibited",
    "destination_ip_unroutable",
    "destination_unavailable",
    "dns_error",
    "dns_timeout",
    "http_request_denied",
    "proxy_internal_error",
    "proxy_internal_response",
];

/// The error type in a value of `Proxy-Status`. Others than these are ignored: only texts of this
/// crate go to the client.
fn error_type(value: &[u8]) -> Option<&'static str> {
    let value = std::str::from_utf8(value).ok()?;
    let named = value
        .split(';')
        .find_map(|parameter| parameter.trim().strip_prefix("error="))?;
    ERROR_TYPES.into_iter().find(|known| *known == named)
}

/// The relay's request.
#[cfg(any(test, feature = "gateway"))]
pub(crate) struct ConnectRequest {
    /// The target.
    pub(crate) authority: Authority,
    /// The value of `Proxy-Authorization`, if the field occurs exactly once.
    pub(crate) authorization: Option<Zeroizing<Vec<u8>>>,
    /// The length of the head; early data follows it.
    pub(crate) len: usize,
}

#[cfg(any(test, feature = "gateway"))]
impl fmt::Debug for ConnectRequest {
    /// Omits the credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest")
            .field("authority", &self.authority)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(any(test, feature = "gateway"))]
impl ConnectRequest {
    /// Reads the request from the front of `bytes`; `None` if more bytes are needed. Unknown fields
    /// are ignored.
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<Self>, TunnelError> {
        let Some((head, len)) = head::request(bytes)? else {
            return Ok(None);
        };
        if head.method != "CONNECT" {
            return Err(OpeningError::NotConnect.into());
        }
        let authority = head.target.parse().map_err(|_| OpeningError::NoAuthority)?;
        let authorization = head
            .fields
            .one("proxy-authorization")
            .map(|value| Zeroizing::new(value.to_vec()));
        Ok(Some(Self {
            authority,
            authorization,
            len,
        }))
    }
}

/// The text of a refusal, made printable: at most [`TEXT_LIMIT`] bytes, with a space for every byte
/// that is not printable ASCII.
pub(crate) fn plain_text(bytes: &[u8]) -> String {
    let text: String = bytes
        .iter()
        .take(TEXT_LIMIT)
        .map(|&b| {
            if (0x20..0x7f).contains(&b) {
                b as char
            } else {
                ' '
            }
        })
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::secret::Secret;

    fn credentials() -> Credentials {
        Credentials {
            session_id: "s".into(),
            token: Secret::new("t".into()),
        }
    }

    #[test]
    fn the_request_is_built_from_parts_and_read_back() {
        for authority in ["example.com:443", "[::1]:8443", "10.0.0.1:1"] {
            let authority: Authority = authority.parse().expect("an authority");
            let mut head = request(&authority, &credentials());
            assert_eq!(
                String::from_utf8_lossy(&head),
                format!("CONNECT {authority} HTTP/1.1\r\nProxy-Authorization: Basic czp0\r\n\r\n")
            );
            let len = head.len();
            head.extend_from_slice(b"early");
            let request = ConnectRequest::read(&head)
                .expect("no error")
                .expect("whole");
            assert_eq!((request.authority, request.len), (authority, len));
            assert_eq!(
                request.authorization.as_deref().map(Vec::as_slice),
                Some(&b"Basic czp0"[..])
            );
        }
    }

    #[test]
    fn refusals_and_successes_are_distinguished() {
        let read = |text: &str| ConnectResponse::read(text.as_bytes());
        assert!(read("HTTP/1.1 200 OK").expect("no error").is_none());
        let answer = read("HTTP/1.1 204 No Content\r\n\r\ndata")
            .expect("no error")
            .expect("whole");
        assert!(answer.is_success() && answer.text.is_none());
        let refusal = read("HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nnever")
            .expect("no error")
            .expect("whole");
        assert_eq!(
            refusal,
            ConnectResponse {
                status: 403,
                len: 45,
                text: Some(5),
                error: None,
            }
        );
        let interim = "HTTP/1.1 100 Continue\r\n\r\n";
        assert!(read(interim).expect("no error").is_none());
        let answer = read(&format!("{interim}HTTP/1.1 200 OK\r\n\r\n")).expect("no error");
        assert_eq!(
            answer.map(|answer| (answer.status, answer.len)),
            Some((200, 25 + 19))
        );
        assert!(read("HTTP/1.1 101 Switching Protocols\r\n\r\n").is_err());
        assert!(read("SSH-2.0").is_err());
    }

    #[test]
    fn only_known_error_types_are_read_from_a_refusal() {
        for (value, expected) in [
            (
                "upstreamproxy; error=dns_error; details=\"resolve\"",
                Some("dns_error"),
            ),
            ("a;error=connection_refused", Some("connection_refused")),
            ("a; error=made_up", None),
            ("a", None),
            ("", None),
        ] {
            let head = format!("HTTP/1.1 502 x\r\nProxy-Status: {value}\r\n\r\n");
            let answer = ConnectResponse::read(head.as_bytes()).expect("no error");
            assert_eq!(answer.expect("whole").error, expected, "{value}");
        }
    }

    #[test]
    fn a_doubled_authorization_counts_as_none() {
        let head =
            b"CONNECT a:1 HTTP/1.1\r\nProxy-Authorization: a\r\nProxy-Authorization: b\r\n\r\n";
        assert!(
            ConnectRequest::read(head)
                .expect("no error")
                .expect("whole")
                .authorization
                .is_none()
        );
    }

    #[test]
    fn the_text_of_a_refusal_contains_printable_ascii_only() {
        assert_eq!(
            plain_text(b" denied\r\n\x1b[31m by <policy> \xff"),
            "denied   [31m by <policy>"
        );
        assert_eq!(plain_text(&[b'x'; 5000]).len(), TEXT_LIMIT);
    }

    fn any_host() -> impl Strategy<Value = String> {
        let name = "([a-zA-Z0-9_-]{1,20}\\.){0,4}[a-z]{1,10}\\.?";
        let address = any::<std::net::Ipv6Addr>().prop_map(|address| format!("[{address}]"));
        prop_oneof![2 => name, 1 => address, 1 => any::<std::net::Ipv4Addr>().prop_map(|a| a.to_string())]
    }

    proptest! {
        #[test]
        fn any_request_is_read_back_in_any_segmentation(host in any_host(), port in 1_u16.., early in any::<Vec<u8>>()) {
            let authority: Authority = format!("{host}:{port}").parse().expect("an authority");
            let mut head = request(&authority, &credentials());
            let len = head.len();
            head.extend_from_slice(&early);
            for end in 0..=head.len() {
                let request = ConnectRequest::read(&head[..end]).expect("no error");
                prop_assert_eq!(request.is_some(), end >= len);
                if let Some(request) = request {
                    prop_assert_eq!((&request.authority, request.len), (&authority, len));
                    prop_assert_eq!(request.authorization.as_deref().map(Vec::as_slice), Some(&b"Basic czp0"[..]));
                }
            }
        }

        #[test]
        fn any_answer_is_the_same_in_any_segmentation(
            status in 200_u16..1000, length in prop::option::of(0_usize..2000), reason in "[ -~]{0,20}", body in any::<Vec<u8>>(),
        ) {
            let field = length.map(|n| format!("Content-Length: {n}\r\n")).unwrap_or_default();
            let mut bytes = format!("HTTP/1.1 {status} {reason}\r\n{field}\r\n").into_bytes();
            let expected = ConnectResponse { status, len: bytes.len(), text: length, error: None };
            bytes.extend_from_slice(&body);
            for end in 0..=bytes.len() {
                let answer = ConnectResponse::read(&bytes[..end]).expect("no error");
                prop_assert_eq!(answer.as_ref(), (end >= expected.len).then_some(&expected));
            }
        }
    }
}
