//! `host:port` of [RFC 3986, section 3.2] as CONNECT uses it ([RFC 9110, section 9.3.6]). Parsed
//! once, and printed from its parts.
//!
//! Without I/O: any bytes result in an authority or an error. The gateway's `policy` decides which
//! addresses may be dialled.
//!
//! [RFC 3986, section 3.2]: https://www.rfc-editor.org/rfc/rfc3986#section-3.2
//! [RFC 9110, section 9.3.6]: https://www.rfc-editor.org/rfc/rfc9110#section-9.3.6

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::error::ValueError;

/// The longest name in presentation form without its final dot ([RFC 1035, section 2.3.4]).
///
/// [RFC 1035, section 2.3.4]: https://www.rfc-editor.org/rfc/rfc1035#section-2.3.4
const NAME_LIMIT: usize = 253;
/// The longest label of a name, from the same section.
const LABEL_LIMIT: usize = 63;

const BRACKETS: ValueError =
    ValueError("an IPv6 address needs brackets, and only an IPv6 address may have them");
pub(super) const NAME: ValueError = ValueError("the host is not a name that can be looked up");
const PORT: ValueError = ValueError("the port is missing or not a number from 1 to 65535");

/// The host of an authority.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    /// A registered name: lower case, no final dot.
    Name(String),
    /// An address literal.
    Address(IpAddr),
}

impl Host {
    /// Parses a host without a port: a name, an IPv4 address, or an IPv6 address in brackets.
    pub(crate) fn parse(text: &str) -> Result<Self, ValueError> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(BRACKETS)?;
            // `Ipv6Addr` rejects a zone, as it should: a zone means nothing on another machine.
            return Ipv6Addr::from_str(inner)
                .map(|address| Self::Address(address.into()))
                .map_err(|_| BRACKETS);
        }
        if text.contains([':', ']']) {
            return Err(BRACKETS);
        }
        // Remove the final dot first: otherwise `192.0.2.1.` would be parsed as a name and print as
        // an address.
        let name = text.strip_suffix('.').unwrap_or(text);
        if let Ok(address) = name.parse() {
            return Ok(Self::Address(IpAddr::V4(address)));
        }
        let label_fits = |label: &str| {
            (1..=LABEL_LIMIT).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > NAME_LIMIT || !name.split('.').all(label_fits) {
            return Err(NAME);
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }

    /// Whether traffic to it stays on this machine, as far as its text says.
    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Name(name) => name == "localhost",
            // Not `IpAddr::to_canonical`: a mapped address is more likely an attack than intended.
            Self::Address(address) => address.is_loopback(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// A host and a port, as in a CONNECT request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Authority {
    /// The host.
    pub(crate) host: Host,
    /// The TCP port, never 0.
    pub(crate) port: u16,
}

impl FromStr for Authority {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (host, port) = text.rsplit_once(':').ok_or(PORT)?;
        Ok(Self {
            host: Host::parse(host)?,
            port: parse_port(port)?,
        })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Authority {
    /// Parses `host` or `host:port`.
    pub(crate) fn parse_or(text: &str, default_port: u16) -> Result<Self, ValueError> {
        let (host, port) = split_port(text)?;
        Ok(Self {
            host: Host::parse(host)?,
            port: port.unwrap_or(default_port),
        })
    }

    /// The value of `Host`: it has a port only if that is not the default of the scheme ([RFC 9110,
    /// section 7.2]).
    ///
    /// [RFC 9110, section 7.2]: https://www.rfc-editor.org/rfc/rfc9110#section-7.2
    pub(crate) fn host_header(&self, default_port: u16) -> String {
        if self.port == default_port {
            self.host.to_string()
        } else {
            self.to_string()
        }
    }
}

/// Splits `host` or `host:port`. A colon inside the brackets of an IPv6 address does not begin a
/// port.
pub(crate) fn split_port(text: &str) -> Result<(&str, Option<u16>), ValueError> {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => Ok((host, Some(parse_port(port)?))),
        _ => Ok((text, None)),
    }
}

/// Parses a port from 1 to 65535: decimal digits without a sign or a leading zero.
pub(crate) fn parse_port(text: &str) -> Result<u16, ValueError> {
    if !text.bytes().all(|b| b.is_ascii_digit()) || text.starts_with('0') {
        return Err(PORT);
    }
    text.parse().map_err(|_| PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, ValueError> {
        text.parse::<Authority>().map(|a| a.to_string())
    }

    #[test]
    fn an_address_with_a_final_dot_is_that_address() {
        let address = Host::Address("192.0.2.1".parse().unwrap());
        assert_eq!(Host::parse("192.0.2.1."), Ok(address));
        assert_eq!(Host::parse("192.0.2.1.."), Err(NAME));
    }

    #[test]
    fn accepts_names_addresses_and_bracketed_ipv6() {
        for (text, printed) in [
            ("example.com:443", "example.com:443"),
            ("EXAMPLE.Com.:443", "example.com:443"),
            ("_dmarc.x-y.example:1", "_dmarc.x-y.example:1"),
            ("127.0.0.1:65535", "127.0.0.1:65535"),
            ("[::1]:443", "[::1]:443"),
            ("[::ffff:127.0.0.1]:443", "[::ffff:127.0.0.1]:443"),
            ("xn--bcher-kva.example:443", "xn--bcher-kva.example:443"),
            // Not an `IpAddr`, but resolvers accept it: the gateway's policy checks the resolved
            // address.
            ("0177.0.0.1:443", "0177.0.0.1:443"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(printed), "{text}");
        }
    }

    #[test]
    fn rejects_a_text_that_is_not_an_authority() {
        for text in [
            "",
            ":",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:99999999999999999999",
            "host:+443",
            "host:-1",
            "host:443 ",
            "host:0443",
            "host:https",
            "host:０４４３",
            ":443",
            "::1:443",
            "[::1]",
            "[::1%25lo]:443",
            "[::1%lo]:443",
            "[[a]]:443",
            "[example.com]:443",
            "[]:443",
            "[::1:443",
            "::1]:443",
            "a..b:443",
            ".a:443",
            ".:443",
            "..:443",
            "a b:443",
            "a\0b:443",
            "user@host:443",
            "host/path:443",
            "bücher.example:443",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse(&format!("{}:443", "a".repeat(64))).is_err());
        assert!(parse(&format!("{}:443", "a.".repeat(127))).is_ok());
        assert!(parse(&format!("{}b.c:443", "a.".repeat(126))).is_err());
    }
}
