//! Resolves hosts to addresses under a deadline.
//!
//! Overrides, address literals and `localhost` need no lookup; other names go to the threads of
//! [`LookupPool`]. There is no cache, because the system has one where it needs one. The gateway's
//! `policy` decides which addresses may be dialled.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use crate::control::deadline::Deadline;
use crate::http::authority::Host;
use crate::net::address_override::Override;
use crate::net::lookup_pool::{Lookup, LookupPool};

/// How many lookups of a relay run at once. It resolves the name of one gateway again and again.
const RELAY_LOOKUPS: usize = 4;
/// How many lookups of a gateway run at once: the unresolvable names of one session must not delay
/// the names of the others.
#[cfg(feature = "gateway")]
const GATEWAY_LOOKUPS: usize = 32;
/// How long a thread waits for the next name before it ends.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// Resolves names. Clones share the threads and the overrides.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<ResolverState>);

struct ResolverState {
    overrides: Vec<Override>,
    lookups: LookupPool,
}

impl Resolver {
    /// The resolver of a relay. It starts no thread before the first name.
    pub(crate) fn new() -> Self {
        Self::with_lookup(Vec::new(), Arc::new(ask_system), RELAY_LOOKUPS)
    }

    /// The resolver of a gateway, with overrides. Of two for the same host and port, the later one
    /// is used.
    #[cfg(feature = "gateway")]
    pub(crate) fn with_overrides(overrides: Vec<Override>) -> Self {
        Self::with_lookup(overrides, Arc::new(ask_system), GATEWAY_LOOKUPS)
    }

    fn with_lookup(overrides: Vec<Override>, lookup: Arc<Lookup>, limit: usize) -> Self {
        Self(Arc::new(ResolverState {
            overrides,
            lookups: LookupPool::new(lookup, IDLE_TIME, limit),
        }))
    }

    /// The addresses of `host`, each with `port`, in the order in which to try them.
    ///
    /// # Errors
    /// `TimedOut` at `deadline`; `NotFound` if the name has no address.
    pub(crate) fn resolve(
        &self,
        host: &Host,
        port: u16,
        deadline: Deadline,
    ) -> io::Result<Vec<SocketAddr>> {
        self.resolve_while(host, port, deadline, &|| true)
    }

    /// As [`Self::resolve`], and ends soon after `wanted` has become false.
    ///
    /// # Errors
    /// Also `Interrupted`, if the addresses are no longer wanted.
    pub(crate) fn resolve_while(
        &self,
        host: &Host,
        port: u16,
        deadline: Deadline,
        wanted: &dyn Fn() -> bool,
    ) -> io::Result<Vec<SocketAddr>> {
        let mut overrides = self.0.overrides.iter().rev();
        if let Some(found) = overrides.find(|o| o.host == *host && o.port == port) {
            return Ok(vec![SocketAddr::new(found.address, port)]);
        }
        match host {
            Host::Address(address) => Ok(vec![SocketAddr::new(*address, port)]),
            // "Name resolution APIs and libraries [...] SHOULD always return the IP loopback
            // address" (RFC 6761, section 6.3). So no hosts file can send loopback traffic, perhaps
            // in the clear, to another machine. https://www.rfc-editor.org/rfc/rfc6761#section-6.3
            Host::Name(name) if name == "localhost" => Ok(vec![
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
                SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
            ]),
            Host::Name(name) => self.0.lookups.look_up(name, port, deadline, wanted),
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("overrides", &self.0.overrides)
            .finish_non_exhaustive()
    }
}

fn ask_system(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (name, port).to_socket_addrs().map(Iterator::collect)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Host {
        Host::parse(text).expect(text)
    }

    #[test]
    fn literals_and_localhost_need_no_thread_and_no_time() {
        let resolver = Resolver::new();
        let passed = Deadline::after(Duration::ZERO);
        let resolve = |host: &str| resolver.resolve(&name(host), 7, passed).unwrap();
        assert_eq!(resolve("192.0.2.1"), ["192.0.2.1:7".parse().unwrap()]);
        assert_eq!(resolve("[::1]"), ["[::1]:7".parse().unwrap()]);
        assert!(resolve("localhost").iter().all(|a| a.ip().is_loopback()));
        assert_eq!(resolver.0.lookups.running_threads(), 0);
    }

    #[test]
    fn asks_the_system_and_says_not_found_for_a_name_without_addresses() {
        // Not through `resolve`, which resolves "localhost" without the system.
        assert!(
            ask_system("localhost", 7)
                .unwrap()
                .iter()
                .all(|a| a.ip().is_loopback())
        );
        let empty = Resolver::with_lookup(Vec::new(), Arc::new(|_, _| Ok(Vec::new())), 1);
        let unknown = Resolver::with_lookup(
            Vec::new(),
            Arc::new(|_, _| Err(io::Error::other("unknown"))),
            1,
        );
        for resolver in [empty, unknown] {
            let error = resolver
                .resolve(&name("a.example"), 7, Deadline::never())
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            assert!(error.to_string().contains("a.example"), "{error}");
        }
    }

    #[test]
    fn an_override_applies_to_its_port_only_and_the_later_one_is_used() {
        let overrides = ["a.example:443:192.0.2.1", "A.example.:443:[2001:db8::1]"];
        let overrides = overrides.iter().map(|o| o.parse().unwrap()).collect();
        let resolver = Resolver::with_lookup(
            overrides,
            Arc::new(|_, port| Ok(vec![([9; 4], port).into()])),
            1,
        );
        let resolve = |port| {
            resolver
                .resolve(&name("a.example"), port, Deadline::never())
                .unwrap()
        };
        assert_eq!(resolve(443), ["[2001:db8::1]:443".parse().unwrap()]);
        assert_eq!(resolve(80), ["9.9.9.9:80".parse().unwrap()]);
    }
}
