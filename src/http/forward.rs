//! What a proxy changes in a message head that it forwards: the request target, and the fields that
//! concern one connection only ([RFC 9110, section 7.6], [RFC 9112, section 3.2]).
//!
//! [RFC 9110, section 7.6]: https://www.rfc-editor.org/rfc/rfc9110#section-7.6
//! [RFC 9112, section 3.2]: https://www.rfc-editor.org/rfc/rfc9112#section-3.2

use super::authority::Authority;
use super::head::{Fields, RequestHead, ResponseHead};
use crate::error::ValueError;

/// Fields that concern one connection only, also if `Connection` does not list them. Transfer-
/// Encoding frames the body, which is forwarded as it is, so it stays.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "upgrade",
];
/// Fields that `Connection` cannot remove: without them a message would mean something else.
const ESSENTIAL: [&str; 4] = [
    "content-length",
    "host",
    "transfer-encoding",
    "authorization",
];
/// This proxy's name in `Via`.
const VIA: &[u8] = b"1.1 upstreamproxy";

/// The target of a request in absolute-form: `http://host[:port]/path` or `https://…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AbsoluteTarget {
    /// The scheme is `https` or `wss`.
    pub(crate) tls: bool,
    /// The origin.
    pub(crate) authority: Authority,
    /// The value of `Host`.
    host: String,
    /// The target for the origin.
    path: String,
}

/// Why a request target cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AbsoluteTargetError {
    #[error("the request target is not an absolute URL")]
    NotAbsolute,
    #[error("the scheme of the URL is not http or https")]
    Scheme,
    #[error("the URL contains a user name or a password")]
    Userinfo,
    #[error("the host of the URL cannot be used: {0}")]
    Authority(ValueError),
    #[error("the URL contains a character that must be escaped")]
    Character,
}

impl AbsoluteTarget {
    /// Parses the target of a request with `method`.
    pub(crate) fn parse(target: &str, method: &str) -> Result<Self, AbsoluteTargetError> {
        let (scheme, rest) = target
            .split_once("://")
            .ok_or(AbsoluteTargetError::NotAbsolute)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => false,
            "https" | "wss" => true,
            _ => return Err(AbsoluteTargetError::Scheme),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(AbsoluteTargetError::Userinfo);
        }
        if !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err(AbsoluteTargetError::Character);
        }
        // RFC 3986, section 3.2.3: the port may be empty.
        let authority = authority.strip_suffix(':').unwrap_or(authority);
        let default_port = if tls { 443 } else { 80 };
        let authority =
            Authority::parse_or(authority, default_port).map_err(AbsoluteTargetError::Authority)?;
        let host = authority.host_header(default_port);
        let path = match path {
            // RFC 9112, section 3.2.4.
            "" if method == "OPTIONS" => "*".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        Ok(Self {
            tls,
            authority,
            host,
            path,
        })
    }
}

impl AbsoluteTarget {
    /// Whether a connection to `other` can carry a request for this target.
    pub(crate) fn is_same_origin(&self, other: &Self) -> bool {
        (self.tls, &self.authority) == (other.tls, &other.authority)
    }
}

/// Whether the request offers to change the protocol. An offer of HTTP/2 is not forwarded
/// ([RFC 9113, section 3.1], has made it obsolete).
///
/// [RFC 9113, section 3.1]: https://www.rfc-editor.org/rfc/rfc9113#section-3.1
pub(crate) fn offers_upgrade(head: &RequestHead) -> bool {
    !head.old
        && head.fields.lists("connection", "upgrade")
        && head.fields.has("upgrade")
        && !head.fields.lists("upgrade", "h2c")
}

/// The head of `request` for the origin of `target`.
pub(crate) fn request(head: &RequestHead, target: &AbsoluteTarget) -> Vec<u8> {
    // A response to an HTTP/1.0 request is never chunked, and its client would not understand that.
    let version = if head.old { "1.0" } else { "1.1" };
    let start = format!("{} {} HTTP/{version}\r\n", head.method, target.path);
    let mut bytes = start.into_bytes();
    // RFC 9112, section 3.2.2: Host follows the request target, whatever the client sent.
    field(&mut bytes, "Host", target.host.as_bytes());
    end_to_end(&mut bytes, &head.fields, |name| {
        name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case("http2-settings")
    });
    field(&mut bytes, "Via", VIA);
    if offers_upgrade(head) {
        upgrade(&mut bytes, &head.fields);
    }
    bytes.extend(b"\r\n");
    bytes
}

/// The head of `response` for the client, whose connection persists or not.
pub(crate) fn response(head: &ResponseHead, reason: &[u8], persists: bool) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {} ", head.status).into_bytes();
    bytes.extend_from_slice(reason);
    bytes.extend_from_slice(b"\r\n");
    end_to_end(&mut bytes, &head.fields, |_| false);
    field(&mut bytes, "Via", VIA);
    match head.status {
        101 => upgrade(&mut bytes, &head.fields),
        100..=199 => {}
        _ if persists => {}
        _ => field(&mut bytes, "Connection", b"close"),
    }
    bytes.extend(b"\r\n");
    bytes
}

/// Whether the client keeps its connection open for another request.
pub(crate) fn client_persists(head: &RequestHead) -> bool {
    let closes = ["connection", "proxy-connection"]
        .iter()
        .any(|name| head.fields.lists(name, "close"));
    !head.old && !closes
}

/// Appends the fields that are forwarded, except where `skip` says so.
fn end_to_end(bytes: &mut Vec<u8>, fields: &Fields, skip: impl Fn(&str) -> bool) {
    for (name, value) in fields.iter() {
        let is = |other: &&str| name.eq_ignore_ascii_case(other);
        let listed = fields.lists("connection", name) && !ESSENTIAL.iter().any(is);
        if !HOP_BY_HOP.iter().any(is) && !listed && !skip(name) {
            field(bytes, name, value);
        }
    }
}

/// Appends the offer or the acceptance of another protocol.
fn upgrade(bytes: &mut Vec<u8>, fields: &Fields) {
    for protocol in fields.all("upgrade") {
        field(bytes, "Upgrade", protocol);
    }
    field(bytes, "Connection", b"Upgrade");
}

fn field(bytes: &mut Vec<u8>, name: &str, value: &[u8]) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(b": ");
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head;

    fn head_of(text: &str) -> RequestHead {
        head::request(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn absolute_targets_are_split_into_origin_and_path() {
        for (target, tls, authority, host, path) in [
            ("http://a.example", false, "a.example:80", "a.example", "/"),
            (
                "HTTP://A.example:80/x?y=z",
                false,
                "a.example:80",
                "a.example",
                "/x?y=z",
            ),
            (
                "http://a.example:8080?q",
                false,
                "a.example:8080",
                "a.example:8080",
                "/?q",
            ),
            (
                "https://a.example:443/",
                true,
                "a.example:443",
                "a.example",
                "/",
            ),
            (
                "https://a.example:80/%20",
                true,
                "a.example:80",
                "a.example:80",
                "/%20",
            ),
            (
                "https://[2001:db8::1]/x",
                true,
                "[2001:db8::1]:443",
                "[2001:db8::1]",
                "/x",
            ),
            ("http://[::1]:81/", false, "[::1]:81", "[::1]:81", "/"),
            (
                "http://192.0.2.1:/x",
                false,
                "192.0.2.1:80",
                "192.0.2.1",
                "/x",
            ),
            (
                "ws://a.example/chat",
                false,
                "a.example:80",
                "a.example",
                "/chat",
            ),
            (
                "http://a.example//b/../c",
                false,
                "a.example:80",
                "a.example",
                "//b/../c",
            ),
            (
                "http://a.example/http://b/",
                false,
                "a.example:80",
                "a.example",
                "/http://b/",
            ),
        ] {
            let parsed = AbsoluteTarget::parse(target, "GET").expect(target);
            let found = (
                parsed.tls,
                parsed.authority.to_string(),
                parsed.host,
                parsed.path,
            );
            let expected = (tls, authority.to_owned(), host.to_owned(), path.to_owned());
            assert_eq!(found, expected, "{target}");
        }
    }

    #[test]
    fn other_targets_are_errors() {
        let options = AbsoluteTarget::parse("http://a.example", "OPTIONS").unwrap();
        assert_eq!(options.path, "*");
        for target in [
            "/",
            "*",
            "",
            "a.example:443",
            "a.example/x",
            "http:/a/",
            "ftp://a.example/",
            "file:///x",
            "http://",
            "http:///x",
            "http://user@a.example/",
            "http://u:p@a.example/",
            "http://a.example:0/",
            "http://a.example:65536/",
            "http://a.example:x/",
            "http://a b/",
            "http://a.example/#x",
            "http://a.example/\u{e9}",
            "http://::1/",
            "http://a.example:80:80/",
            "javascript://a/",
            "http://a%2eexample/",
        ] {
            let parsed = AbsoluteTarget::parse(target, "GET");
            assert!(parsed.is_err(), "{target}: {parsed:?}");
        }
    }

    #[test]
    fn the_request_for_the_origin_has_no_field_of_this_connection() {
        let head = head_of(
            "POST http://a.example/x HTTP/1.1\r\nHOST: other\r\nX-A: 1\r\nProxy-Authorization: Basic eA==\r\n\
             Proxy-Connection: keep-alive\r\nConnection: x-gone, Host, close\r\nX-Gone: 1\r\nTE: trailers\r\n\
             Keep-Alive: timeout=5\r\nAuthorization: Bearer y\r\ncontent-length: 3\r\nX-a: 2\r\n\r\n",
        );
        let target = AbsoluteTarget::parse(&head.target, &head.method).unwrap();
        assert_eq!(
            String::from_utf8(request(&head, &target)).unwrap(),
            "POST /x HTTP/1.1\r\nHost: a.example\r\nX-A: 1\r\nAuthorization: Bearer y\r\n\
             content-length: 3\r\nX-a: 2\r\nVia: 1.1 upstreamproxy\r\n\r\n"
        );
        assert!(!client_persists(&head));
        let old = head_of("GET http://a.example/ HTTP/1.0\r\n\r\n");
        assert!(request(&old, &target).starts_with(b"GET /x HTTP/1.0\r\nHost: a.example\r\n"));
        assert!(!client_persists(&old));
    }

    #[test]
    fn an_offer_of_a_websocket_is_forwarded_and_one_of_http_2_is_not() {
        let websocket = head_of(
            "GET http://a/ HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        let target = AbsoluteTarget::parse(&websocket.target, "GET").unwrap();
        let bytes = request(&websocket, &target);
        let text = String::from_utf8(bytes).unwrap();
        assert!(
            text.ends_with("Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
            "{text}"
        );
        let h2c = head_of(
            "GET http://a/ HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
        );
        let text = String::from_utf8(request(&h2c, &target)).unwrap();
        assert!(
            !text.to_ascii_lowercase().contains("upgrade: h2c"),
            "{text}"
        );
        assert!(!text.contains("HTTP2"), "{text}");
    }

    #[test]
    fn the_response_for_the_client_says_whether_its_connection_persists() {
        let bytes = b"HTTP/1.0 404 Not Here\r\nConnection: close\r\nX: 1\r\nKeep-Alive: 1\r\n\r\n";
        let (head, _) = head::response(bytes).unwrap().unwrap();
        let text = |persists| {
            String::from_utf8(response(&head, head::reason_phrase(bytes), persists)).unwrap()
        };
        assert_eq!(
            text(true),
            "HTTP/1.1 404 Not Here\r\nX: 1\r\nVia: 1.1 upstreamproxy\r\n\r\n"
        );
        assert_eq!(
            text(false),
            "HTTP/1.1 404 Not Here\r\nX: 1\r\nVia: 1.1 upstreamproxy\r\nConnection: close\r\n\r\n"
        );
        let bytes = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        let (head, _) = head::response(bytes).unwrap().unwrap();
        let text = String::from_utf8(response(&head, head::reason_phrase(bytes), true)).unwrap();
        assert!(
            text.contains("Upgrade: websocket\r\nConnection: Upgrade\r\n"),
            "{text}"
        );
    }
}
