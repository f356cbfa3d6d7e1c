//! A parent proxy: an HTTP proxy on the path to the upstream or, at the gateway, to targets.
//!
//! Without I/O: the URL of the proxy, which hosts it is for, and the CONNECT request to it ([RFC
//! 9110, section 9.3.6]).
//!
//! [RFC 9110, section 9.3.6]: https://www.rfc-editor.org/rfc/rfc9110#section-9.3.6

use std::fmt;
use std::str::FromStr;

use ureq::ProxyProtocol;
use zeroize::Zeroizing;

use crate::crypto::secret::basic;
use crate::error::ValueError;
use crate::http::authority::Authority;
use crate::http::direct_hosts::DirectHosts;

/// The port of `http`.
const DEFAULT_PORT: u16 = 80;

/// An HTTP proxy that this program's own connections go through:
/// `http://[USER:PASSWORD@]HOST:PORT`.
///
/// User and password are percent-encoded, as in `HTTPS_PROXY` of other programs. Without a scheme
/// it is `http`, without a port 80. `Debug` and `Display` do not show user and password.
///
/// ```
/// use upstreamproxy::config::ParentProxy;
///
/// let proxy = ParentProxy::try_from("http://user:p%40ss@proxy.example:3128")?;
/// assert_eq!(proxy.to_string(), "proxy.example:3128");
/// assert!(ParentProxy::try_from("socks5://proxy.example:1080").is_err());
/// # Ok::<(), upstreamproxy::config::ValueError>(())
/// ```
#[derive(Clone)]
pub struct ParentProxy {
    authority: Authority,
    /// The value of `Proxy-Authorization`.
    authorization: Option<Zeroizing<String>>,
    direct: DirectHosts,
}

/// Which parent proxy to use.
#[derive(Clone, Debug, Default)]
pub(crate) enum Parent {
    /// The one that the proxy variables of [`Config::inherited`](crate::Config::inherited) name.
    #[default]
    Inherited,
    /// None.
    Off,
    /// This one.
    Proxy(ParentProxy),
}

const NOT_A_URL: ValueError =
    ValueError("it is not the URL of a proxy, such as http://proxy.example:3128");
const OTHER_SCHEME: ValueError = ValueError("only http:// proxies are supported");
const BAD_USERINFO: ValueError =
    ValueError("its user name or password contains a control character, or the user name a colon");

impl ParentProxy {
    /// Hosts that are reached without the proxy, in the syntax of `NO_PROXY`. Loopback hosts always
    /// are. Default: the list is empty.
    #[must_use]
    pub fn no_proxy(mut self, list: &str) -> Self {
        self.direct = DirectHosts::parse(list);
        self
    }

    /// The same, unless there is a list already.
    pub(crate) fn or_no_proxy(self, list: &str) -> Self {
        if self.direct == DirectHosts::default() {
            self.no_proxy(list)
        } else {
            self
        }
    }

    /// The host and port to dial.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Whether connections to `target` go through the proxy.
    pub(crate) fn is_for(&self, target: &Authority) -> bool {
        !self.direct.contains(target)
    }

    /// The CONNECT request for `target`.
    pub(crate) fn request(&self, target: &Authority) -> Zeroizing<Vec<u8>> {
        let target = target.to_string();
        let (name, value) = match &self.authorization {
            Some(value) => ("\r\nProxy-Authorization: ", value.as_str()),
            None => ("", ""),
        };
        let parts = [
            "CONNECT ",
            &target,
            " HTTP/1.1\r\nHost: ",
            &target,
            name,
            value,
            "\r\n\r\n",
        ];
        // Allocated once, so that no copy of the credentials is left in freed memory.
        let mut head = Zeroizing::new(Vec::with_capacity(parts.iter().map(|p| p.len()).sum()));
        for part in parts {
            head.extend_from_slice(part.as_bytes());
        }
        head
    }
}

impl FromStr for ParentProxy {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let url = ureq::Proxy::new(text.trim()).map_err(|_| {
            if text.contains("://") && !text.trim_start().starts_with("http") {
                OTHER_SCHEME
            } else {
                NOT_A_URL
            }
        })?;
        if url.protocol() != ProxyProtocol::Http {
            return Err(OTHER_SCHEME);
        }
        // ureq takes the default port for one that is not a number.
        let authority = url.uri().authority().map_or("", |found| found.as_str());
        let (_, authority) = authority.rsplit_once('@').unwrap_or(("", authority));
        let authority = Authority::parse_or(authority, DEFAULT_PORT).map_err(|_| NOT_A_URL)?;
        let userinfo = url.username().or(url.password()).is_some();
        let authorization = userinfo.then(|| {
            let user = url.username().unwrap_or_default();
            let password = url.password().unwrap_or_default();
            // RFC 7617, section 2.
            if user.contains(':') || user.chars().chain(password.chars()).any(char::is_control) {
                return Err(BAD_USERINFO);
            }
            Ok(basic(user, password))
        });
        Ok(Self {
            authority,
            authorization: authorization.transpose()?,
            direct: DirectHosts::default(),
        })
    }
}

impl TryFrom<&str> for ParentProxy {
    type Error = ValueError;

    fn try_from(text: &str) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl fmt::Display for ParentProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.authority.fmt(f)
    }
}

impl fmt::Debug for ParentProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParentProxy")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(url: &str) -> String {
        let target = "example.com:443".parse().unwrap();
        let proxy: ParentProxy = url.parse().unwrap();
        String::from_utf8(proxy.request(&target).to_vec()).unwrap()
    }

    #[test]
    fn urls_are_parsed_as_in_other_programs() {
        for (text, authority) in [
            ("http://proxy.example:3128", "proxy.example:3128"),
            ("http://proxy.example:3128/", "proxy.example:3128"),
            ("HTTP://Proxy.example", "proxy.example:80"),
            ("proxy.example:8080", "proxy.example:8080"),
            ("http://user:secret@192.0.2.1:1", "192.0.2.1:1"),
            ("http://[2001:db8::1]:3128", "[2001:db8::1]:3128"),
        ] {
            let proxy: ParentProxy = text.parse().expect(text);
            assert_eq!(proxy.to_string(), authority, "{text}");
            assert!(!format!("{proxy:?}").contains("secret"));
        }
        for (text, error) in [
            ("", NOT_A_URL),
            ("http://", NOT_A_URL),
            ("http://a b", NOT_A_URL),
            ("http://proxy.example:99999", NOT_A_URL),
            ("http://proxy.example:0", NOT_A_URL),
            ("https://proxy.example:443", OTHER_SCHEME),
            ("socks5://proxy.example:1080", OTHER_SCHEME),
            ("ftp://proxy.example", OTHER_SCHEME),
            ("http://us%0der:x@proxy.example", BAD_USERINFO),
            ("http://a%3Ab:x@proxy.example", BAD_USERINFO),
        ] {
            assert_eq!(text.parse::<ParentProxy>().unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn the_request_names_the_target_and_has_the_decoded_credentials() {
        assert_eq!(
            request("http://proxy.example:3128"),
            "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"
        );
        let with = |userinfo: &str| {
            format!(
                "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nProxy-Authorization: Basic {userinfo}\r\n\r\n"
            )
        };
        // `user:p@ss`, `user:` and `:p`.
        assert_eq!(
            request("http://user:p%40ss@a.example:1"),
            with("dXNlcjpwQHNz")
        );
        assert_eq!(request("http://user@a.example:1"), with("dXNlcjo="));
        assert_eq!(request("http://:p@a.example:1"), with("OnA="));
    }

    #[test]
    fn hosts_of_the_list_and_loopback_do_not_go_through_it() {
        let proxy: ParentProxy = "http://proxy.example:3128".parse().unwrap();
        let proxy = proxy.no_proxy("intern.example");
        for (target, through) in [
            ("example.com:443", true),
            ("a.intern.example:443", false),
            ("127.0.0.1:443", false),
        ] {
            assert_eq!(proxy.is_for(&target.parse().unwrap()), through, "{target}");
        }
    }
}
