//! The list of hosts that are reached without a parent proxy: the syntax of `NO_PROXY`.
//!
//! Without I/O. No standard defines the list; this is what curl and Go accept: names with their
//! subdomains, addresses, networks (CIDR), each with or without a port, and `*`.

use std::net::IpAddr;

use super::authority::{Authority, Host, split_port};

/// Hosts that are reached directly. Loopback hosts always are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DirectHosts(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    hosts: Hosts,
    /// `None`: every port.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    Every,
    /// This name and all names below it.
    Domain(String),
    /// The addresses that have these leading bits.
    Network(IpAddr, u8),
}

impl DirectHosts {
    /// Parses entries that are separated by commas or white space. Entries that no host can match
    /// are ignored, as other programs do.
    pub(crate) fn parse(list: &str) -> Self {
        let entries = list.split(|c: char| c == ',' || c.is_whitespace());
        Self(entries.filter_map(Entry::parse).collect())
    }

    /// Whether `authority` is reached directly.
    pub(crate) fn contains(&self, authority: &Authority) -> bool {
        authority.host.is_loopback() || self.0.iter().any(|entry| entry.matches(authority))
    }
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        let every_port = |hosts| Some(Self { hosts, port: None });
        if text == "*" {
            return every_port(Hosts::Every);
        }
        if let Some((address, length)) = text.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let length = length.parse().ok().filter(|&n| n <= width(address))?;
            return every_port(Hosts::Network(address, length));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return every_port(Hosts::Network(address, width(address)));
        }
        let (host, port) = split_port(text).ok()?;
        let host = host.strip_prefix('*').unwrap_or(host);
        let hosts = match Host::parse(host.strip_prefix('.').unwrap_or(host)).ok()? {
            Host::Name(name) => Hosts::Domain(name),
            Host::Address(address) => Hosts::Network(address, width(address)),
        };
        Some(Self { hosts, port })
    }

    fn matches(&self, authority: &Authority) -> bool {
        let host_matches = match (&self.hosts, &authority.host) {
            (Hosts::Every, _) => true,
            (Hosts::Domain(domain), Host::Name(name)) => name
                .strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            (Hosts::Network(network, length), Host::Address(address)) => {
                width(*network) == width(*address)
                    && leading(*network, *length) == leading(*address, *length)
            }
            _ => false,
        };
        host_matches && self.port.is_none_or(|port| port == authority.port)
    }
}

/// The number of bits of an address.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The first `length` bits of `address`.
fn leading(address: IpAddr, length: u8) -> u128 {
    let bits = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    bits.checked_shr(u32::from(width(address) - length))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_match_as_in_curl_and_go() {
        let rows: &[(&str, &[&str], &[&str])] = &[
            ("", &[], &["example.com:443"]),
            ("*", &["example.com:443", "192.0.2.1:1"], &[]),
            (
                "example.com",
                &["example.com:443", "a.example.com:443", "a.b.example.com:1"],
                &["notexample.com:443", "example.org:443", "com:443"],
            ),
            (
                ".example.com",
                &["example.com:443", "a.example.com:443"],
                &["ample.com:443"],
            ),
            (
                "*.Example.COM",
                &["a.example.com:443"],
                &["example.com.org:443"],
            ),
            (
                "example.com:8443",
                &["a.example.com:8443"],
                &["example.com:443"],
            ),
            (
                "192.0.2.1",
                &["192.0.2.1:443"],
                &["192.0.2.10:443", "[::1.2.3.4]:443"],
            ),
            ("192.0.2.1:80", &["192.0.2.1:80"], &["192.0.2.1:443"]),
            (
                "10.0.0.0/8",
                &["10.9.8.7:443"],
                &["11.0.0.1:443", "[::a00:1]:443"],
            ),
            (
                "0.0.0.0/0",
                &["203.0.113.9:443"],
                &["[2001:db8::1]:443", "a.example:443"],
            ),
            (
                "2001:db8::/32",
                &["[2001:db8:1::2]:443"],
                &["[2001:db9::1]:443"],
            ),
            ("::/0", &["[2001:db8:1::2]:443"], &["192.0.2.1:443"]),
            (
                "[2001:db8::1]:443",
                &["[2001:db8::1]:443"],
                &["[2001:db8::1]:80"],
            ),
            (
                "a.example, b.example c.example",
                &["b.example:1", "c.example:1"],
                &["d.example:1"],
            ),
            // Entries that match nothing.
            (
                "10.0.0.0/33,/8,a/b,10/8,exa mple,ex*mple,:80",
                &[],
                &["10.0.0.1:443", "exemple:1"],
            ),
        ];
        for (list, direct, through) in rows {
            let hosts = DirectHosts::parse(list);
            for authority in *direct {
                assert!(
                    hosts.contains(&authority.parse().unwrap()),
                    "{list}: {authority}"
                );
            }
            for authority in *through {
                assert!(
                    !hosts.contains(&authority.parse().unwrap()),
                    "{list}: {authority}"
                );
            }
        }
    }

    #[test]
    fn loopback_hosts_are_always_direct() {
        for authority in ["localhost:443", "127.0.0.1:1", "127.9.9.9:1", "[::1]:443"] {
            assert!(DirectHosts::default().contains(&authority.parse().unwrap()));
        }
    }
}
