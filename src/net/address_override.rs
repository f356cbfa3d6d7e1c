//! `HOST:PORT:ADDR`: a fixed address for a name, as with curl's `--resolve`.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::error::ValueError;
use crate::http::authority::{Host, parse_port};

/// A fixed address for a host and a port, as in `--resolve HOST:PORT:ADDR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    pub(crate) host: Host,
    pub(crate) port: u16,
    pub(crate) address: IpAddr,
}

impl FromStr for Override {
    type Err = ValueError;

    /// Parses `HOST:PORT:ADDR` as curl does. An IPv6 HOST is in brackets, an IPv6 ADDR may be.
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
            port: parse_port(port)?,
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
            assert_eq!(parsed.port, 1);
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
            "a:1:1.2.3.4,1.2.3.5",
        ] {
            assert!(text.parse::<Override>().is_err(), "{text:?}");
        }
    }
}
