//! The upstream's base URL. Parsed once; then the only source of addresses, paths and `Host` for
//! this program's own connections.
//!
//! Without I/O: any text results in a base URL or an error. No error repeats the text, because URLs
//! often contain passwords. This is not a general URL parser: a base URL has no query, no fragment
//! and no userinfo. The syntax is [RFC 3986, section
//! 3](https://www.rfc-editor.org/rfc/rfc3986#section-3).

use std::fmt;
use std::str::FromStr;

use crate::error::ValueError;
use crate::http::authority::Authority;

/// The path of the upstream's CA certificates below the base URL.
pub(crate) const CA_CERT_PATH: &str = "/v1/code/upstreamproxy/ca-cert";
/// The path below the base URL at which tunnels are opened.
pub(crate) const WS_PATH: &str = "/v1/code/upstreamproxy/ws";

/// The longest base URL. It is part of a request head of at most 16 KiB, with a token.
const LENGTH_LIMIT: usize = 2048;

/// The base URL of the upstream: `https://host[:port][/path]`, or `http://` for a loopback host.
///
/// Parsing trims white space and trailing slashes. `Display` prints the canonical form.
///
/// ```
/// use upstreamproxy::config::BaseUrl;
///
/// let base_url = BaseUrl::try_from("https://Gateway.example:8443/tenant/")?;
/// assert_eq!(base_url.to_string(), "https://gateway.example:8443/tenant");
/// assert!(BaseUrl::try_from("http://gateway.example").is_err());
/// # Ok::<(), upstreamproxy::config::ValueError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    scheme: Scheme,
    authority: Authority,
    /// Empty, or begins with a slash and does not end with one.
    path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

impl BaseUrl {
    /// Parses `text`. White space around it and trailing slashes are ignored.
    ///
    /// # Errors
    /// The text is not `https://host[:port][/path]`, or the same with `http` and a loopback host.
    pub(crate) fn parse(text: &str) -> Result<Self, ValueError> {
        let text = text.trim();
        if text.len() > LENGTH_LIMIT {
            return Err(ValueError("it is longer than 2048 bytes"));
        }
        let (scheme, rest) = text
            .split_once("://")
            .and_then(|(scheme, rest)| Some((Scheme::parse(scheme)?, rest)))
            .ok_or(ValueError("it does not begin with https:// or http://"))?;
        if rest.contains(['?', '#']) {
            return Err(ValueError("it has a query or a fragment"));
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(ValueError("it has a user name or password before the host"));
        }
        let authority = Authority::parse_or(authority, scheme.default_port())?;
        if scheme == Scheme::Http && !authority.host.is_loopback() {
            return Err(ValueError("plain http is for loopback hosts only"));
        }
        let path = path.trim_end_matches('/');
        if !is_path(path) {
            return Err(ValueError(
                "its path has a character that must be percent-encoded",
            ));
        }
        Ok(Self {
            scheme,
            authority,
            path: path.to_owned(),
        })
    }

    /// Whether connections use TLS (https and wss instead of http and ws).
    pub(crate) fn secure(&self) -> bool {
        self.scheme == Scheme::Https
    }

    /// The host and port to dial. Without a port in the URL, the default port of the scheme.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The URL of the CA download.
    pub(crate) fn ca_cert_url(&self) -> String {
        format!("{self}{CA_CERT_PATH}")
    }

    /// The request target of the WebSocket upgrade.
    pub(crate) fn ws_path(&self) -> String {
        format!("{}{WS_PATH}", self.path)
    }

    /// The value of `Host`.
    pub(crate) fn host_header(&self) -> String {
        self.authority.host_header(self.scheme.default_port())
    }
}

impl FromStr for BaseUrl {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

impl TryFrom<&str> for BaseUrl {
    type Error = ValueError;

    fn try_from(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host) = (self.scheme.name(), self.host_header());
        write!(f, "{scheme}://{host}{}", self.path)
    }
}

impl Scheme {
    fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::Https]
            .into_iter()
            .find(|scheme| text.eq_ignore_ascii_case(scheme.name()))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Whether `text` contains only characters of a path ([RFC 3986, section 3.3]), so that a request
/// line can contain it unchanged.
///
/// [RFC 3986, section 3.3]: https://www.rfc-editor.org/rfc/rfc3986#section-3.3
fn is_path(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let fits = match byte {
            b'%' => {
                let mut hex_digit = || bytes.next().is_some_and(|b| b.is_ascii_hexdigit());
                hex_digit() && hex_digit()
            }
            _ => byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte),
        };
        if !fits {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> BaseUrl {
        BaseUrl::parse(text).expect(text)
    }

    #[test]
    fn prints_itself_in_one_canonical_form() {
        for (text, printed) in [
            ("https://api.example.com", "https://api.example.com"),
            ("https://api.example.com/", "https://api.example.com"),
            ("HTTPS://API.Example.com.:443//", "https://api.example.com"),
            (
                " https://h.example:8443/A/b%2F/\n",
                "https://h.example:8443/A/b%2F",
            ),
            ("https://h.example:80", "https://h.example:80"),
            ("https://10.0.0.1/x:y@z", "https://10.0.0.1/x:y@z"),
            ("https://[2001:DB8::1]/a", "https://[2001:db8::1]/a"),
            ("https://[::1]:8443", "https://[::1]:8443"),
            ("http://localhost:80", "http://localhost"),
            ("http://LOCALHOST.:8080/", "http://localhost:8080"),
            ("http://127.255.0.9:443", "http://127.255.0.9:443"),
            ("http://[::1]/p/", "http://[::1]/p"),
        ] {
            let base = parse(text);
            assert_eq!(base.to_string(), printed, "{text}");
            assert_eq!(parse(printed), base, "parsing what was printed: {text}");
        }
    }

    #[test]
    fn has_every_address_that_a_connection_needs() {
        let base = parse("https://h.example/tenant/7/");
        assert!(base.secure());
        assert_eq!(base.authority().to_string(), "h.example:443");
        assert_eq!(base.host_header(), "h.example");
        assert_eq!(base.ws_path(), "/tenant/7/v1/code/upstreamproxy/ws");
        assert_eq!(
            base.ca_cert_url(),
            "https://h.example/tenant/7/v1/code/upstreamproxy/ca-cert"
        );

        let base = parse("http://[::1]:8443");
        assert!(!base.secure());
        assert_eq!(base.authority().to_string(), "[::1]:8443");
        assert_eq!(base.host_header(), "[::1]:8443");
        assert_eq!(base.ws_path(), "/v1/code/upstreamproxy/ws");
        assert_eq!(
            base.ca_cert_url(),
            "http://[::1]:8443/v1/code/upstreamproxy/ca-cert"
        );
    }

    #[test]
    fn the_default_base_url_is_one() {
        let default = crate::config::DEFAULT_BASE_URL;
        assert_eq!(parse(default).to_string(), default);
    }

    #[test]
    fn rejects_a_text_that_is_not_a_base_url_and_reports_why() {
        let brackets = "an IPv6 address needs brackets, and only an IPv6 address may have them";
        let name = "the host is not a name that can be looked up";
        let port = "the port is missing or not a number from 1 to 65535";
        let scheme = "it does not begin with https:// or http://";
        let userinfo = "it has a user name or password before the host";
        let query_or_fragment = "it has a query or a fragment";
        let path = "its path has a character that must be percent-encoded";
        let plain_http = "plain http is for loopback hosts only";
        let too_long = "it is longer than 2048 bytes";
        let long = format!("https://h/{}", "a".repeat(LENGTH_LIMIT));
        for (text, expected) in [
            ("", scheme),
            ("h.example", scheme),
            ("//h.example", scheme),
            ("https:/h.example", scheme),
            ("https:h.example", scheme),
            ("ftp://h.example", scheme),
            ("wss://h.example", scheme),
            ("xhttps://h.example", scheme),
            ("\u{feff}https://h.example", scheme),
            ("https://", name),
            ("https:///path", name),
            ("https://a..b", name),
            ("https://h example", name),
            ("https://h\r\nX", name),
            ("https://h\\.example", name),
            ("https://%68.example", name),
            ("https://b\u{fc}cher.example", name),
            ("https://::1", brackets),
            ("https://[::1", brackets),
            ("https://[::1%25lo]", brackets),
            ("https://[h.example]:1", brackets),
            ("https://h.example:", port),
            ("https://h.example:0", port),
            ("https://h.example:99999", port),
            ("https://h.example:+1", port),
            ("https://h.example:0443", port),
            ("https://h.example:https", port),
            ("https://canary@h.example", userinfo),
            ("https://user:canary@h.example", userinfo),
            ("https://@h.example", userinfo),
            ("https://h.example/?canary", query_or_fragment),
            ("https://h.example?", query_or_fragment),
            ("https://h.example#canary", query_or_fragment),
            ("https://h.example/a b", path),
            ("https://h.example/a\r\nX: y", path),
            ("https://h.example/\u{e4}", path),
            ("https://h.example/%2", path),
            ("https://h.example/%", path),
            ("https://h.example/%2g", path),
            ("https://h.example/a\\b", path),
            ("http://h.example", plain_http),
            ("http://10.0.0.1", plain_http),
            ("http://0.0.0.0", plain_http),
            ("http://[::]", plain_http),
            ("http://[::ffff:127.0.0.1]", plain_http),
            ("http://127.1", plain_http),
            ("http://localhost.example", plain_http),
            (&long, too_long),
        ] {
            let error = BaseUrl::parse(text).expect_err(text);
            assert_eq!(error.to_string(), expected, "{text:?}");
            assert!(!error.to_string().contains("canary"), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_a_base_url_or_an_error(text in ".*", tail in "[!-~]*") {
            let _ = BaseUrl::parse(&text);
            if let Ok(base) = BaseUrl::parse(&format!("https://{tail}")) {
                let printed = base.to_string();
                proptest::prop_assert_eq!(BaseUrl::parse(&printed), Ok(base));
            }
        }
    }
}
