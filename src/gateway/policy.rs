//! Which addresses the gateway dials for its clients: not those that only the inside of a network, or of this machine, should reach.
//!
//! Names are not looked at: whatever a name or an odd literal (`0177.0.0.1`) resolves to is judged, and exactly the
//! judged address is dialled (`manual/protocol.md`). Patterns by host name are not this file's either.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a gateway refuses to dial.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Policy {
    /// Every address is allowed, our own listener excepted. For tests, home use, and the embedded gateway, which dials
    /// from where its client stands.
    pub(crate) allow_private: bool,
    /// Where this gateway listens: a tunnel to it would be a loop. Refused under every setting.
    pub(crate) own: Option<SocketAddr>,
}

impl Policy {
    /// The addresses that may be dialled, in their order. Those that may not be are dropped: a name that has a private
    /// address beside its public one still works, by the public one.
    ///
    /// # Errors
    ///
    /// None is left; the refusal of the first says why.
    pub(crate) fn choose(
        &self,
        addresses: Vec<SocketAddr>,
    ) -> Result<Vec<SocketAddr>, AddressDenied> {
        let mut first_refusal = None;
        let mut chosen = addresses;
        chosen.retain(|address| match self.permits_dialling(*address) {
            Ok(()) => true,
            Err(refusal) => {
                first_refusal.get_or_insert(refusal);
                false
            }
        });
        if chosen.is_empty() {
            return Err(first_refusal.unwrap_or(AddressDenied::NoAddress));
        }
        Ok(chosen)
    }

    /// Whether `address` is one that a client may reach, whatever the port.
    pub(crate) fn permits(&self, address: IpAddr) -> Result<(), AddressDenied> {
        if self.allow_private {
            return Ok(());
        }
        match class_of(address) {
            Some(class) => Err(AddressDenied::Address { address, class }),
            None => Ok(()),
        }
    }

    fn permits_dialling(&self, address: SocketAddr) -> Result<(), AddressDenied> {
        if self.is_own(address) {
            return Err(AddressDenied::OwnListener { address });
        }
        let zoned = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
        if zoned && !self.allow_private {
            return Err(AddressDenied::Address {
                address: address.ip(),
                class: Class::Zoned,
            });
        }
        self.permits(address.ip())
    }

    /// Whether `address` is our own listener. On our port every loopback and unspecified address counts: whatever
    /// address the listener was told, one of these may lead to it.
    fn is_own(&self, address: SocketAddr) -> bool {
        self.own.is_some_and(|own| {
            let (ip, own_ip) = (untranslated(address.ip()), untranslated(own.ip()));
            own.port() == address.port()
                && (ip == own_ip || ip.is_loopback() || ip.is_unspecified())
        })
    }
}

/// Why an address is not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressDenied {
    /// The address is of a class that clients have no business with.
    Address {
        /// The address as it was resolved.
        address: IpAddr,
        /// The class that it is of.
        class: Class,
    },
    /// The address is the gateway itself.
    OwnListener {
        /// The address as it was resolved.
        address: SocketAddr,
    },
    /// There was no address to choose from.
    NoAddress,
}

impl fmt::Display for AddressDenied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { address, class } => write!(f, "{address} is refused: {class}"),
            Self::OwnListener { address } => {
                write!(f, "{address} is refused: the gateway's own listener")
            }
            Self::NoAddress => f.write_str("the name has no address"),
        }
    }
}

impl std::error::Error for AddressDenied {}

/// A kind of address that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// "This network", and the address that means every one of our own.
    Unspecified,
    /// This machine.
    Loopback,
    /// A cloud's metadata or host service, which hands out credentials.
    Metadata,
    /// The link that the gateway is on.
    LinkLocal,
    /// A private network.
    Private,
    /// A carrier's shared space.
    SharedSpace,
    /// Protocol assignments, no hosts.
    ProtocolAssignment,
    /// For examples in texts.
    Documentation,
    /// For benchmarks of network devices.
    Benchmarking,
    /// Many receivers.
    Multicast,
    /// Reserved, and the limited broadcast.
    Reserved,
    /// Packets to it are thrown away.
    Discard,
    /// It hides an IPv4 address that some translator decides about.
    Translated,
    /// It is meant for one interface only (a zone id).
    Zoned,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "an unspecified address",
            Self::Loopback => "a loopback address",
            Self::Metadata => "a cloud metadata address",
            Self::LinkLocal => "a link-local address",
            Self::Private => "a private address",
            Self::SharedSpace => "an address of carrier-grade NAT",
            Self::ProtocolAssignment => "an address assigned to a protocol",
            Self::Documentation => "a documentation address",
            Self::Benchmarking => "a benchmarking address",
            Self::Multicast => "a multicast address",
            Self::Reserved => "a reserved address",
            Self::Discard => "a discard address",
            Self::Translated => "an address that is translated on its way",
            Self::Zoned => "an address of one interface",
        })
    }
}

/// Addresses that begin with the same bits.
struct Range {
    network: IpAddr,
    prefix: u32,
    class: Class,
}

/// Every refused range; the first that covers an address names its class. After the [IPv4] and [IPv6] special-purpose
/// registries, with the metadata services that the large clouds document.
///
/// [IPv4]: https://www.iana.org/assignments/iana-ipv4-special-registry
/// [IPv6]: https://www.iana.org/assignments/iana-ipv6-special-registry
#[rustfmt::skip]
const REFUSED: [Range; 42] = [
    // Metadata before the wider ranges that hold some of these: the log should say the graver thing.
    v4([169, 254, 169, 254], 32, Class::Metadata),                    // most clouds
    v4([169, 254, 170, 2], 32, Class::Metadata),                      // AWS container credentials
    v4([168, 63, 129, 16], 32, Class::Metadata),                      // Azure's host, in space that looks public
    v4([100, 100, 100, 200], 32, Class::Metadata),                    // Alibaba
    v4([192, 0, 0, 192], 32, Class::Metadata),                        // Oracle
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, Class::Metadata),  // AWS
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, Class::Metadata),   // Google
    v4([0, 0, 0, 0], 8, Class::Unspecified),                          // RFC 791
    v4([10, 0, 0, 0], 8, Class::Private),                             // RFC 1918
    v4([100, 64, 0, 0], 10, Class::SharedSpace),                      // RFC 6598
    v4([127, 0, 0, 0], 8, Class::Loopback),                           // RFC 1122
    v4([169, 254, 0, 0], 16, Class::LinkLocal),                       // RFC 3927
    v4([172, 16, 0, 0], 12, Class::Private),                          // RFC 1918
    v4([192, 0, 0, 0], 24, Class::ProtocolAssignment),                // RFC 6890
    v4([192, 0, 2, 0], 24, Class::Documentation),                     // RFC 5737
    v4([192, 88, 99, 0], 24, Class::Translated),                      // RFC 7526, the former 6to4 relays
    v4([192, 168, 0, 0], 16, Class::Private),                         // RFC 1918
    v4([198, 18, 0, 0], 15, Class::Benchmarking),                     // RFC 2544
    v4([198, 51, 100, 0], 24, Class::Documentation),                  // RFC 5737
    v4([203, 0, 113, 0], 24, Class::Documentation),                   // RFC 5737
    v4([224, 0, 0, 0], 4, Class::Multicast),                          // RFC 1112
    v4([240, 0, 0, 0], 4, Class::Reserved),                           // RFC 1112, and 255.255.255.255
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, Class::Unspecified),            // RFC 4291
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, Class::Loopback),               // RFC 4291
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96, Class::Translated),              // RFC 4291, "IPv4-compatible"
    v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96, Class::Translated),         // RFC 2765, "IPv4-translated"
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, Class::Translated),      // RFC 8215, see `untranslated`
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, Class::Discard),             // RFC 6666
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64, Class::Discard),             // RFC 9780, the dummy prefix
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, Class::Translated),         // RFC 4380, Teredo
    v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, Class::Benchmarking),       // RFC 5180
    v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, Class::ProtocolAssignment), // RFC 4843, ORCHID
    v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, Class::ProtocolAssignment), // RFC 7343, ORCHIDv2
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, Class::Documentation),  // RFC 3849
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, Class::Translated),         // RFC 3056, 6to4
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Class::Documentation),      // RFC 9637
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, Class::ProtocolAssignment), // RFC 9602, SRv6
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Class::Private),             // RFC 4193
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Class::LinkLocal),          // RFC 4291
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Class::Private),            // RFC 3879, site-local
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Class::Multicast),           // RFC 4291
    // What is left of the block that holds loopback, the mapped and the compatible addresses.
    v6([0, 0, 0, 0, 0, 0, 0, 0], 8, Class::Reserved),                 // RFC 4291
];

const fn v4(network: [u8; 4], prefix: u32, class: Class) -> Range {
    let [a, b, c, d] = network;
    Range {
        network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        prefix,
        class,
    }
}

const fn v6(network: [u16; 8], prefix: u32, class: Class) -> Range {
    let n = network;
    Range {
        network: IpAddr::V6(Ipv6Addr::new(
            n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7],
        )),
        prefix,
        class,
    }
}

impl Range {
    fn covers(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= self.prefix
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= self.prefix
            }
            _ => false,
        }
    }
}

fn class_of(address: IpAddr) -> Option<Class> {
    let address = untranslated(address);
    REFUSED
        .iter()
        .find(|range| range.covers(address))
        .map(|range| range.class)
}

/// The IPv4 address inside an IPv6 one where packets really go there: IPv4-mapped ([RFC 4291, section 2.5.5.2]), and
/// NAT64 by the well-known prefix ([RFC 6052, section 2.1]) or by the first /96 of the local-use one ([RFC 8215]). Elsewhere
/// in the local-use prefix the place of the IPv4 address is the network's own choice, so the table refuses all of it.
///
/// [RFC 4291, section 2.5.5.2]: https://www.rfc-editor.org/rfc/rfc4291#section-2.5.5.2
/// [RFC 6052, section 2.1]: https://www.rfc-editor.org/rfc/rfc6052#section-2.1
/// [RFC 8215]: https://www.rfc-editor.org/rfc/rfc8215
fn untranslated(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0 | 1, 0, 0, 0, high, low] => {
            IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Policy = Policy {
        allow_private: false,
        own: None,
    };

    fn class(address: &str) -> Option<Class> {
        match STRICT.permits(address.parse().expect(address)) {
            Ok(()) => None,
            Err(AddressDenied::Address { class, .. }) => Some(class),
            Err(other) => panic!("{other}"),
        }
    }

    fn sockets(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|a| a.parse().expect(a)).collect()
    }

    /// First and last address of a range, and its neighbours where there are any.
    fn edges(range: &Range) -> (IpAddr, IpAddr, Option<IpAddr>, Option<IpAddr>) {
        match range.network {
            IpAddr::V4(network) => {
                let first = network.to_bits();
                let last = first | u32::MAX.checked_shr(range.prefix).unwrap_or(0);
                let ip = |bits| IpAddr::V4(Ipv4Addr::from_bits(bits));
                let (before, after) = (first.checked_sub(1), last.checked_add(1));
                (ip(first), ip(last), before.map(ip), after.map(ip))
            }
            IpAddr::V6(network) => {
                let first = network.to_bits();
                let last = first | u128::MAX.checked_shr(range.prefix).unwrap_or(0);
                let ip = |bits| IpAddr::V6(Ipv6Addr::from_bits(bits));
                let (before, after) = (first.checked_sub(1), last.checked_add(1));
                (ip(first), ip(last), before.map(ip), after.map(ip))
            }
        }
    }

    #[test]
    fn every_range_begins_and_ends_where_the_table_says() {
        for range in &REFUSED {
            let (first, last, before, after) = edges(range);
            let name = format!("{}/{}", range.network, range.prefix);
            assert!(range.covers(first) && range.covers(last), "{name}");
            for outside in [before, after].into_iter().flatten() {
                assert!(!range.covers(outside), "{name} covers {outside}");
            }
            // By way of the policy: refused, be it by this row or by one that stands before it.
            assert!(STRICT.permits(first).is_err(), "{first}");
            assert!(
                STRICT.permits(last).is_err() || untranslated(last) != last,
                "{last}"
            );
        }
    }

    /// Written out by hand, so that a wrong row cannot agree with itself: the last address before, the first, the last,
    /// the first after; `-` where the neighbour is refused for another reason or there is none.
    #[rustfmt::skip]
    const EDGES: [(&str, &str, &str, &str, Class); 34] = [
        ("-", "0.0.0.0", "0.255.255.255", "1.0.0.0", Class::Unspecified),
        ("9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0", Class::Private),
        ("100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0", Class::SharedSpace),
        ("126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0", Class::Loopback),
        ("168.63.129.15", "168.63.129.16", "168.63.129.16", "168.63.129.17", Class::Metadata),
        ("169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0", Class::LinkLocal),
        ("-", "169.254.169.254", "169.254.169.254", "-", Class::Metadata),
        ("-", "169.254.170.2", "169.254.170.2", "-", Class::Metadata),
        ("-", "100.100.100.200", "100.100.100.200", "-", Class::Metadata),
        ("172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0", Class::Private),
        ("191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0", Class::ProtocolAssignment),
        ("192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0", Class::Documentation),
        ("192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0", Class::Translated),
        ("192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0", Class::Private),
        ("198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0", Class::Benchmarking),
        ("198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0", Class::Documentation),
        ("203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0", Class::Documentation),
        ("223.255.255.255", "224.0.0.0", "239.255.255.255", "-", Class::Multicast),
        ("-", "240.0.0.0", "255.255.255.255", "-", Class::Reserved),
        ("-", "::", "::", "-", Class::Unspecified),
        ("-", "::1", "::1", "-", Class::Loopback),
        ("-", "::2", "::ffff:ffff", "-", Class::Translated),
        ("-", "64:ff9b:1:0:0:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "-", Class::Translated),
        ("-", "100::", "100::ffff:ffff:ffff:ffff", "-", Class::Discard),
        ("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "2001:1::", Class::Translated),
        ("2001:1:ffff:ffff:ffff:ffff:ffff:ffff", "2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff", "2001:2:1::", Class::Benchmarking),
        ("2001:f:ffff:ffff:ffff:ffff:ffff:ffff", "2001:10::", "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff", "2001:30::", Class::ProtocolAssignment),
        ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::", Class::Documentation),
        ("2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::", Class::Translated),
        ("3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::", Class::Documentation),
        ("fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe00::", Class::Private),
        ("fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-", Class::LinkLocal),
        ("-", "fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-", Class::Private),
        ("-", "ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-", Class::Multicast),
    ];

    #[test]
    fn refuses_the_first_and_last_address_of_each_range_and_not_its_neighbours() {
        for (before, first, last, after, expected) in EDGES {
            assert_eq!(class(first), Some(expected), "{first}");
            assert_eq!(class(last), Some(expected), "{last}");
            for neighbour in [before, after] {
                if neighbour != "-" {
                    assert_eq!(class(neighbour), None, "{neighbour}");
                }
            }
        }
    }

    #[test]
    fn judges_the_ipv4_address_inside_mapped_and_nat64_forms() {
        for prefix in ["::ffff:", "64:ff9b::", "64:ff9b:1::"] {
            let inside = |v4: &str| class(&format!("{prefix}{v4}"));
            assert_eq!(inside("127.0.0.1"), Some(Class::Loopback));
            assert_eq!(inside("10.255.255.255"), Some(Class::Private));
            assert_eq!(inside("169.254.169.254"), Some(Class::Metadata));
            assert_eq!(inside("0.0.0.0"), Some(Class::Unspecified));
            assert_eq!(inside("8.8.8.8"), None);
            assert_eq!(inside("11.0.0.0"), None);
        }
        // Whatever they hide: compatible, translated, 6to4, Teredo, the rest of the local-use prefix.
        for address in [
            "::8.8.8.8",
            "::ffff:0:8.8.8.8",
            "2002:808:808::1",
            "2001:0:808:808::1",
            "64:ff9b:1:808:8:800::",
        ] {
            assert_eq!(class(address), Some(Class::Translated), "{address}");
        }
    }

    #[test]
    fn public_addresses_are_permitted() {
        for address in [
            "1.1.1.1",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "172.64.0.1",
        ] {
            assert_eq!(class(address), None, "{address}");
        }
    }

    #[test]
    fn private_addresses_of_a_mixed_answer_are_dropped() {
        let mixed = sockets(&["10.0.0.1:443", "1.1.1.1:443", "[::1]:443", "[2606::1]:443"]);
        let chosen = STRICT.choose(mixed).unwrap();
        assert_eq!(chosen, sockets(&["1.1.1.1:443", "[2606::1]:443"]));
    }

    #[test]
    fn an_answer_of_private_addresses_alone_is_refused_by_its_first() {
        let refusal = STRICT.choose(sockets(&["10.0.0.1:443", "127.0.0.1:443"]));
        let text = refusal.unwrap_err().to_string();
        assert_eq!(text, "10.0.0.1 is refused: a private address");
        assert_eq!(STRICT.choose(vec![]), Err(AddressDenied::NoAddress));
    }

    #[test]
    fn an_address_with_a_zone_is_refused() {
        let zoned = sockets(&["[2606::1%2]:443"]);
        assert!(STRICT.choose(zoned.clone()).is_err());
        let relaxed = Policy {
            allow_private: true,
            own: None,
        };
        assert_eq!(relaxed.choose(zoned.clone()), Ok(zoned));
    }

    #[test]
    fn the_own_listener_is_refused_even_where_private_addresses_are_allowed() {
        for own in ["127.0.0.1:8443", "0.0.0.0:8443", "[::]:8443", "[::1]:8443"] {
            let policy = Policy {
                allow_private: true,
                own: Some(own.parse().unwrap()),
            };
            for target in [
                own,
                "127.0.0.1:8443",
                "127.8.8.8:8443",
                "0.0.0.0:8443",
                "[::1]:8443",
                "[::]:8443",
                "[::ffff:127.0.0.1]:8443",
                "[64:ff9b::127.0.0.1]:8443",
            ] {
                let refusal = policy.choose(sockets(&[target]));
                assert!(
                    matches!(refusal, Err(AddressDenied::OwnListener { .. })),
                    "{own} {target}: {refusal:?}"
                );
            }
            for target in ["127.0.0.1:8444", "10.0.0.1:8443", "1.1.1.1:8443"] {
                assert!(policy.choose(sockets(&[target])).is_ok(), "{own} {target}");
            }
        }
    }

    #[test]
    fn a_listener_on_one_outside_address_is_refused_there_too() {
        let policy = Policy {
            allow_private: true,
            own: Some("192.168.1.5:8443".parse().unwrap()),
        };
        assert!(policy.choose(sockets(&["192.168.1.5:8443"])).is_err());
        assert!(
            policy
                .choose(sockets(&["[::ffff:192.168.1.5]:8443"]))
                .is_err()
        );
        assert!(policy.choose(sockets(&["192.168.1.6:8443"])).is_ok());
    }
}
