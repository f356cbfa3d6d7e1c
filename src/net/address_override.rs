//! `HOST:PORT:ADDR`: a fixed address for a name, as with curl's `--resolve`. Other than there, PORT
//! can be `*`.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::error::ValueError;
use crate::http::authority::{Host, parse_port};

/// A fixed address for a host and a port, or every port, as in `--resolve HOST:PORT:ADDR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    host: Host,
    /// `None`: every port.
    port: Option<u16>,
    pub(crate) address: IpAddr,
}

impl Override {
    /// Whether it is for this host and this port.
    pub(crate) fn applies_to(&self, host: &Host, port: u16) -> bool {
        self.host == *host && self.port.is_none_or(|own| own == port)
    }
}

impl FromStr for Override {
    type Err = ValueError;

    /// Parses `HOST:PORT:ADDR` as curl does; PORT can be `*`. An IPv6 HOST is in brackets, an IPv6
    /// ADDR may be.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        const FORM: ValueError = ValueError("it is not of the form HOST:PORT:ADDR");
        // A colon inside brackets belongs to the address.
        let host_end = if text.starts_with('[') {
            text.find(']').map(|at| at + 1)
        } else {
            text.find(':')
        };
        let (host, rest) = text.split_at(host_end.ok_or(FORM)?);
        let (port, address) = rest
            .strip_prefix(':')
            .and_then(|rest| rest.split_once(':'))
            .ok_or(FORM)?;
        let bare = address
            .strip_prefix('[')
            .and_then(|inner| inner.strip_suffix(']'));
        Ok(Self {
            host: Host::parse(host)?,
            port: match port {
                "*" => None,
                _ => Some(parse_port(port)?),
            },
            address: match bare {
                Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::V6),
                None => address.parse(),
            }
            .map_err(|_| ValueError("the part after HOST:PORT: is not an IP address"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_parsed_as_curl_parses_them() {
        for (text, address) in [
            ("a.example:1:127.0.0.1", "127.0.0.1"),
            ("a.example:1:::1", "::1"),
            ("a.example:1:[::1]", "::1"),
            ("[2001:db8::1]:1:10.0.0.1", "10.0.0.1"),
        ] {
            let parsed: Override = text.parse().expect(text);
            assert_eq!(parsed.address.to_string(), address);
            assert!(parsed.applies_to(&parsed.host, 1) && !parsed.applies_to(&parsed.host, 2));
        }
        for text in [
            "",
            "a",
            "a:1",
            "a:1:",
            "a:0:1.2.3.4",
            "a:x:1.2.3.4",
            ":1:1.2.3.4",
            "a:1:b.example",
            "a:1:[1.2.3.4]",
            "a:1:[::1",
            "[::1:1:1.2.3.4",
            "*:1:1.2.3.4",
            "a:**:1.2.3.4",
            "a:*1:1.2.3.4",
            "a:*",
            "a:1:1.2.3.4,1.2.3.5",
        ] {
            assert!(text.parse::<Override>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_star_is_every_port() {
        let every: Override = "a.example:*:[::1]".parse().unwrap();
        let (host, other) = (
            Host::parse("A.example.").unwrap(),
            Host::parse("b.example").unwrap(),
        );
        assert!(every.applies_to(&host, 1) && every.applies_to(&host, 65535));
        assert!(!every.applies_to(&other, 1));
    }
}
