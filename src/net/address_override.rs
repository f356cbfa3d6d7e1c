//! `HOST:PORT:ADDR`: a fixed address for a name, as with curl's `--resolve`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::http::authority::{AuthorityError, Host, parse_port};

/// A fixed address for a host and a port, as in `--resolve HOST:PORT:ADDR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The host that a client requests.
    pub host: Host,
    /// The port that the override applies to.
    pub port: u16,
    /// The address to use.
    pub address: IpAddr,
}

impl FromStr for Override {
    type Err = OverrideError;

    /// Parses `HOST:PORT:ADDR` as curl does. An IPv6 HOST is in brackets, an IPv6 ADDR may be.
    fn from_str(text: &str) -> Result<Self, OverrideError> {
        // A colon inside brackets belongs to the address.
        let host_end = if text.starts_with('[') {
            text.find(']').map(|at| at + 1)
        } else {
            text.find(':')
        };
        let (host, rest) = text.split_at(host_end.ok_or(OverrideError::Form)?);
        let (port, address) = rest
            .strip_prefix(':')
            .and_then(|rest| rest.split_once(':'))
            .ok_or(OverrideError::Form)?;
        let bare = address
            .strip_prefix('[')
            .and_then(|inner| inner.strip_suffix(']'));
        Ok(Self {
            host: Host::parse(host).map_err(OverrideError::Host)?,
            port: parse_port(port).ok_or(OverrideError::Host(AuthorityError::Port))?,
            address: match bare {
                Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::V6),
                None => address.parse(),
            }
            .map_err(|_| OverrideError::Address)?,
        })
    }
}

/// Why a text is not an [`Override`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideError {
    /// It does not have three parts.
    Form,
    /// The first two parts are not a host and a port.
    Host(AuthorityError),
    /// The last part is not an IP address.
    Address,
}

impl fmt::Display for OverrideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => f.write_str("it is not of the form HOST:PORT:ADDR"),
            Self::Host(error) => error.fmt(f),
            Self::Address => f.write_str("the part after HOST:PORT: is not an IP address"),
        }
    }
}

impl std::error::Error for OverrideError {}

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
