//! The address policy: which addresses a gateway dials for its clients.
//!
//! It checks addresses, not names: the addresses that a name or a literal such as `0177.0.0.1`
//! resolves to are checked, and exactly these are dialed (`manual/protocol.md`).

use std::net::{IpAddr, SocketAddr};

use super::address_class::{AddressClass, class_of, untranslated};
use crate::net::sockets::is_local;

/// The settings of the address policy.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Policy {
    /// Permits every address except the gateway's own listener: for tests, for home use, and for
    /// the embedded gateway, which dials from the client's own machine.
    pub(crate) allow_private: bool,
    /// The gateway's own listener. It is always refused: a tunnel to it would be a loop.
    pub(crate) own: Option<SocketAddr>,
}

impl Policy {
    /// The permitted addresses, in their order. A name with a private and a public address works
    /// through the public one.
    ///
    /// # Errors
    /// No address is permitted: the reason for the first one.
    pub(crate) fn choose(
        &self,
        addresses: Vec<SocketAddr>,
    ) -> Result<Vec<SocketAddr>, AddressDenied> {
        let mut first_denied = None;
        let mut permitted = addresses;
        permitted.retain(|address| match self.permits_socket(*address) {
            Ok(()) => true,
            Err(denied) => {
                first_denied.get_or_insert(denied);
                false
            }
        });
        if permitted.is_empty() {
            return Err(first_denied.unwrap_or(AddressDenied::NoAddress));
        }
        Ok(permitted)
    }

    /// Checks `address` on any port.
    pub(crate) fn permits(&self, address: IpAddr) -> Result<(), AddressDenied> {
        if self.allow_private {
            return Ok(());
        }
        match class_of(address) {
            Some(class) => Err(AddressDenied::Address { address, class }),
            None => Ok(()),
        }
    }

    fn permits_socket(&self, address: SocketAddr) -> Result<(), AddressDenied> {
        if self.is_own(address) {
            return Err(AddressDenied::OwnListener { address });
        }
        let zoned = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
        if zoned && !self.allow_private {
            return Err(AddressDenied::Address {
                address: address.ip(),
                class: AddressClass::Zoned,
            });
        }
        self.permits(address.ip())
    }

    /// Whether `address` reaches the gateway's own listener. On its port every loopback and
    /// unspecified address counts, because the listener may be reachable through them; and if it
    /// listens on all addresses, every address that this machine has now.
    fn is_own(&self, address: SocketAddr) -> bool {
        let Some(own) = self.own.filter(|own| own.port() == address.port()) else {
            return false;
        };
        let (ip, own_ip) = (untranslated(address.ip()), untranslated(own.ip()));
        // An IPv6 address may have a zone.
        let on_this_machine = || {
            is_local(if ip.is_ipv4() {
                (ip, 0).into()
            } else {
                address
            })
        };
        let both_families = own_ip.is_ipv6();
        ip == own_ip
            || ip.is_loopback()
            || ip.is_unspecified()
            || own_ip.is_unspecified() && (both_families || ip.is_ipv4()) && on_this_machine()
    }
}

/// Why an address is not dialed. The addresses are those from the lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressDenied {
    /// A special-purpose address.
    #[error("{address} is refused: {class}")]
    Address {
        address: IpAddr,
        class: AddressClass,
    },
    #[error("{address} is refused: the gateway's own listener")]
    OwnListener { address: SocketAddr },
    #[error("the name has no address")]
    NoAddress,
}

impl AddressDenied {
    /// The reason without the address, for the client.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Address { class, .. } => class.to_string(),
            Self::OwnListener { .. } => "the gateway's own listener".to_owned(),
            Self::NoAddress => "the name has no address".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Policy = Policy {
        allow_private: false,
        own: None,
    };

    fn sockets(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|a| a.parse().expect(a)).collect()
    }

    #[test]
    fn private_addresses_of_a_mixed_lookup_are_dropped() {
        let mixed = sockets(&["10.0.0.1:443", "1.1.1.1:443", "[::1]:443", "[2606::1]:443"]);
        let permitted = STRICT.choose(mixed).unwrap();
        assert_eq!(permitted, sockets(&["1.1.1.1:443", "[2606::1]:443"]));
    }

    #[test]
    fn a_lookup_with_only_private_addresses_is_refused_for_the_first() {
        let denied = STRICT.choose(sockets(&["10.0.0.1:443", "127.0.0.1:443"]));
        let text = denied.unwrap_err().to_string();
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
                let denied = policy.choose(sockets(&[target]));
                assert!(
                    matches!(denied, Err(AddressDenied::OwnListener { .. })),
                    "{own} {target}: {denied:?}"
                );
            }
            for target in ["127.0.0.1:8444", "10.0.0.1:8443", "1.1.1.1:8443"] {
                assert!(policy.choose(sockets(&[target])).is_ok(), "{own} {target}");
            }
        }
    }

    #[test]
    fn a_listener_on_an_external_address_is_refused_on_that_address() {
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
