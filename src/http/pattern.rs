//! Patterns for authorities, as in `--intercept`.

use std::str::FromStr;

use crate::error::ValueError;
use crate::http::authority::{Authority, Host, NAME, split_port};

/// A pattern for authorities: `*`, `example.com`, `*.example.com` (subdomains only) or an address,
/// each with `:PORT` or for any port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    host: HostPattern,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Any,
    Exactly(Host),
    Below(String),
}

impl Pattern {
    /// All hosts on one port.
    #[cfg(feature = "gateway")]
    pub(crate) fn any_on(port: u16) -> Self {
        Self {
            host: HostPattern::Any,
            port: Some(port),
        }
    }

    /// Whether the pattern matches `authority`.
    pub(crate) fn matches(&self, authority: &Authority) -> bool {
        let host = match (&self.host, &authority.host) {
            (HostPattern::Any, _) => true,
            (HostPattern::Exactly(host), asked) => host == asked,
            (HostPattern::Below(zone), Host::Name(name)) => name
                .strip_suffix(zone.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            (HostPattern::Below(_), Host::Address(_)) => false,
        };
        host && self.port.is_none_or(|port| port == authority.port)
    }
}

impl FromStr for Pattern {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (host, port) = split_port(text)?;
        let host = if host == "*" {
            HostPattern::Any
        } else if let Some(zone) = host.strip_prefix("*.") {
            match Host::parse(zone)? {
                Host::Name(zone) => HostPattern::Below(zone),
                Host::Address(_) => return Err(NAME),
            }
        } else {
            HostPattern::Exactly(Host::parse(host)?)
        };
        Ok(Self { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_hosts_ports_and_subdomains() {
        let matches = |pattern: &str, authority: &str| {
            let pattern: Pattern = pattern.parse().expect(pattern);
            pattern.matches(&authority.parse().expect(authority))
        };
        assert!(matches("*", "a.example:22"));
        assert!(matches("*:443", "[::1]:443"));
        assert!(!matches("*:443", "a.example:22"));
        assert!(matches("example.com", "EXAMPLE.com.:8443"));
        assert!(!matches("example.com", "a.example.com:443"));
        assert!(matches("*.example.com", "a.b.example.com:443"));
        assert!(!matches("*.example.com", "example.com:443"));
        assert!(!matches("*.example.com", "badexample.com:443"));
        assert!(matches("[::1]", "[0:0::1]:443"));
        assert!(matches("[::1]:22", "[::1]:22"));
    }

    #[test]
    fn rejects_invalid_patterns() {
        for text in ["", "*.", "a*", "*.127.0.0.1", "a:0", "a:b", "*:", "::1"] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }
}
