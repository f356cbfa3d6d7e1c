//! Special-purpose IP addresses, which a gateway does not dial by default: the [IPv4] and [IPv6]
//! special-purpose registries, and the metadata services of the large clouds.
//!
//! Without I/O. `policy` decides what follows from a class.
//!
//! [IPv4]: https://www.iana.org/assignments/iana-ipv4-special-registry
//! [IPv6]: https://www.iana.org/assignments/iana-ipv6-special-registry

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use AddressClass as Class;

/// A class of special-purpose addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressClass {
    /// "This network", and the address that means all addresses of this machine.
    Unspecified,
    /// This machine.
    Loopback,
    /// A cloud's metadata or host service, which provides credentials.
    Metadata,
    /// An address that is valid only on the gateway's link.
    LinkLocal,
    /// A private network.
    Private,
    /// The shared address space of carrier-grade NAT.
    SharedSpace,
    /// Assigned to a protocol, not to hosts.
    ProtocolAssignment,
    /// For examples in documents.
    Documentation,
    /// For benchmarks of network devices.
    Benchmarking,
    /// A group of receivers.
    Multicast,
    /// Reserved, and the limited broadcast address.
    Reserved,
    /// Packets to it are discarded.
    Discard,
    /// It contains an IPv4 address that a translator interprets.
    Translated,
    /// It is limited to one interface by a zone ID.
    Zoned,
}

impl fmt::Display for AddressClass {
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

/// The addresses with the same prefix.
struct AddressRange {
    network: IpAddr,
    prefix: u32,
    class: AddressClass,
}

/// Every special-purpose range. The first one that contains an address determines its class.
#[rustfmt::skip]
const RANGES: [AddressRange; 42] = [
    // Metadata services first, because the wider ranges below contain some of them.
    v4([169, 254, 169, 254], 32, Class::Metadata),                    // most clouds
    v4([169, 254, 170, 2], 32, Class::Metadata),                      // AWS container credentials
    v4([168, 63, 129, 16], 32, Class::Metadata),                      // Azure's host, in public address space
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
    // The rest of the block with loopback, the mapped and the compatible addresses.
    v6([0, 0, 0, 0, 0, 0, 0, 0], 8, Class::Reserved),                 // RFC 4291
];

const fn v4(network: [u8; 4], prefix: u32, class: AddressClass) -> AddressRange {
    let [a, b, c, d] = network;
    AddressRange {
        network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        prefix,
        class,
    }
}

const fn v6(network: [u16; 8], prefix: u32, class: AddressClass) -> AddressRange {
    let n = network;
    AddressRange {
        network: IpAddr::V6(Ipv6Addr::new(
            n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7],
        )),
        prefix,
        class,
    }
}

impl AddressRange {
    fn contains(&self, address: IpAddr) -> bool {
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

/// The class of a special-purpose address; `None` for any other.
pub(super) fn class_of(address: IpAddr) -> Option<AddressClass> {
    let address = untranslated(address);
    RANGES
        .iter()
        .find(|range| range.contains(address))
        .map(|range| range.class)
}

/// The IPv4 address that packets to an IPv6 address reach: an IPv4-mapped one ([RFC 4291, section
/// 2.5.5.2]), and NAT64 with the well-known prefix ([RFC 6052, section 2.1]) or the first /96 of
/// the local-use prefix ([RFC 8215]). In the rest of the local-use prefix the network chooses where
/// the IPv4 address is, so the table contains all of it.
///
/// [RFC 4291, section 2.5.5.2]: https://www.rfc-editor.org/rfc/rfc4291#section-2.5.5.2
/// [RFC 6052, section 2.1]: https://www.rfc-editor.org/rfc/rfc6052#section-2.1
/// [RFC 8215]: https://www.rfc-editor.org/rfc/rfc8215
pub(super) fn untranslated(address: IpAddr) -> IpAddr {
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

    fn class(address: &str) -> Option<Class> {
        class_of(address.parse().expect(address))
    }

    /// The first and the last address of a range, and its neighbours if there are any.
    fn edges(range: &AddressRange) -> (IpAddr, IpAddr, Option<IpAddr>, Option<IpAddr>) {
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
        for range in &RANGES {
            let (first, last, before, after) = edges(range);
            let name = format!("{}/{}", range.network, range.prefix);
            assert!(range.contains(first) && range.contains(last), "{name}");
            for outside in [before, after].into_iter().flatten() {
                assert!(!range.contains(outside), "{name} contains {outside}");
            }
            // In this row or in an earlier one.
            assert!(class_of(first).is_some(), "{first}");
            assert!(
                class_of(last).is_some() || untranslated(last) != last,
                "{last}"
            );
        }
    }

    /// Written by hand, so that a wrong row cannot confirm itself: the last address before the
    /// range, its first, its last, and the first one after it; `-` if the neighbour is in another
    /// range or does not exist.
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
    fn the_first_and_last_address_of_each_range_are_special_and_its_neighbours_are_not() {
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
    fn the_ipv4_address_inside_mapped_and_nat64_forms_determines_the_class() {
        for prefix in ["::ffff:", "64:ff9b::", "64:ff9b:1::"] {
            let inside = |v4: &str| class(&format!("{prefix}{v4}"));
            assert_eq!(inside("127.0.0.1"), Some(Class::Loopback));
            assert_eq!(inside("10.255.255.255"), Some(Class::Private));
            assert_eq!(inside("169.254.169.254"), Some(Class::Metadata));
            assert_eq!(inside("0.0.0.0"), Some(Class::Unspecified));
            assert_eq!(inside("8.8.8.8"), None);
            assert_eq!(inside("11.0.0.0"), None);
        }
        // Whatever they contain: compatible, translated, 6to4, Teredo, the rest of the local-use
        // prefix.
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
    fn public_addresses_have_no_class() {
        for address in [
            "1.1.1.1",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "172.64.0.1",
        ] {
            assert_eq!(class(address), None, "{address}");
        }
    }
}
