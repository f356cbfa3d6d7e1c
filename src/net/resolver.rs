//! Resolves hosts to addresses under a deadline, and remembers which address of a host answered.
//!
//! Overrides, address literals, `localhost` and the names of the hosts file need no lookup; other
//! names go to the threads of [`LookupPool`], once per name and family at a time, and their answers
//! are used for a short time. A proxy needs this cache more than a client does: it hides from its
//! clients the connections that they would reuse, so a package manager opens a hundred tunnels to
//! one host at once. The gateway's `policy` decides which addresses may be dialed, for each dial.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dns_lookup::{AddrInfoHints, getaddrinfo};

use crate::control::deadline::Deadline;
use crate::http::authority::Host;
use crate::net::address_override::Override;
use crate::net::hosts_file::HostsFile;
use crate::net::lookup_error::LookupError;
use crate::net::lookup_pool::{Lookup, LookupPool, PoolLimits};
use crate::net::name::{Family, Found, Known, Name, Step, Waiter};

/// The lookups of a relay. It resolves the name of one gateway again and again.
const RELAY_POOL: PoolLimits = PoolLimits {
    threads: 4,
    share: 4,
    idle_time: IDLE_TIME,
};
/// The lookups of a gateway. A name needs two, one for each family. A session has a quarter of the
/// threads.
#[cfg(feature = "gateway")]
const GATEWAY_POOL: PoolLimits = PoolLimits {
    threads: 64,
    share: 16,
    idle_time: IDLE_TIME,
};
/// How long a thread waits for the next name before it ends.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// How often a caller that waits checks whether the addresses are still wanted.
const WANTED_INTERVAL: Duration = Duration::from_millis(50);
/// How many names have answers in the cache, and how many hosts an address that answered.
const CACHE_SIZE: usize = 1024;
/// The file with names that need no DNS.
const HOSTS_FILE: &str = "/etc/hosts";

/// Resolves names. Clones share the threads, the cache and the overrides.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<ResolverState>);

struct ResolverState {
    overrides: Vec<Override>,
    hosts: HostsFile,
    one_label: OneLabel,
    names: Mutex<Bounded<String, Arc<Name>>>,
    /// For each host and port the address that answered last.
    answered: Mutex<Bounded<(String, u16), SocketAddr>>,
    lookups: LookupPool,
}

/// How a name without a dot is looked up. A name with a dot is always absolute: no search list of
/// resolv.conf(5) applies, so no name below a search domain takes its place, and one name is one
/// DNS query per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OneLabel {
    /// With the search list: the operator of a relay wrote the name of the gateway.
    Searched,
    /// As an absolute name: a client of a gateway must not reach the names of the internal zone in
    /// which the gateway runs.
    #[cfg_attr(not(feature = "gateway"), allow(dead_code))]
    Absolute,
}

/// Who needs addresses, and for how long.
pub(crate) struct LookupFor<'a> {
    /// Lookups of one owner have a share of the threads: at a gateway, one session.
    pub(crate) owner: u64,
    /// The time limit.
    pub(crate) deadline: Deadline,
    /// Checked at least every 50 ms: whether the addresses are still needed.
    pub(crate) wanted: &'a dyn Fn() -> bool,
}

/// The addresses of a host, in the order in which to try them. One family may still be missing.
pub(crate) struct Resolution {
    addresses: Vec<SocketAddr>,
    /// The lookup of the missing family.
    pending: Option<Pending>,
}

/// A name of which one family is still being looked up.
struct Pending {
    waiter: Waiter,
    port: u16,
    first: Option<SocketAddr>,
}

impl Resolution {
    fn complete(addresses: Vec<SocketAddr>) -> Self {
        Self {
            addresses,
            pending: None,
        }
    }

    /// The addresses that are known.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Moves the addresses out. Later ones are still added.
    #[cfg(feature = "gateway")]
    pub(crate) fn take(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.addresses)
    }

    /// Adds the addresses that have arrived since. Returns whether all are known.
    pub(crate) fn refresh(&mut self) -> bool {
        let Some(pending) = &self.pending else {
            return true;
        };
        let known = pending.waiter.name().known();
        let complete = known.complete;
        let addresses = in_order(known, pending.port, pending.first);
        // Not replaced: what was known may have expired in the cache.
        for address in addresses {
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
        if complete {
            self.pending = None;
        }
        complete
    }
}

impl fmt::Debug for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolution")
            .field("addresses", &self.addresses)
            .field("complete", &self.pending.is_none())
            .finish()
    }
}

impl Resolver {
    /// The resolver of a relay. It starts no thread before the first name.
    pub(crate) fn new() -> Self {
        Self::with_lookup(
            Vec::new(),
            OneLabel::Searched,
            Arc::new(system_lookup),
            RELAY_POOL,
        )
    }

    /// The resolver of a gateway, with overrides. Of two for the same host and port, the later one
    /// is used.
    #[cfg(feature = "gateway")]
    pub(crate) fn with_overrides(overrides: Vec<Override>) -> Self {
        Self::with_lookup(
            overrides,
            OneLabel::Absolute,
            Arc::new(system_lookup),
            GATEWAY_POOL,
        )
    }

    fn with_lookup(
        overrides: Vec<Override>,
        one_label: OneLabel,
        lookup: Arc<Lookup>,
        limits: PoolLimits,
    ) -> Self {
        Self(Arc::new(ResolverState {
            overrides,
            hosts: HostsFile::new(HOSTS_FILE),
            one_label,
            names: Mutex::new(Bounded::new(CACHE_SIZE)),
            answered: Mutex::new(Bounded::new(CACHE_SIZE)),
            lookups: LookupPool::new(lookup, limits),
        }))
    }

    /// The addresses of `host`, each with `port`. Blocks until addresses of one family are known;
    /// IPv4 addresses wait up to 50 ms for IPv6 addresses. The address that answered last is the
    /// first one.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; `NotWanted` soon after `wanted` has become false; `NotFound` if
    /// the name has no address; `System` if this machine has no resources left.
    pub(crate) fn resolve(
        &self,
        host: &Host,
        port: u16,
        lookup: &LookupFor<'_>,
    ) -> Result<Resolution, LookupError> {
        let shared = &self.0;
        let mut overrides = shared.overrides.iter().rev();
        if let Some(found) = overrides.find(|one| one.applies_to(host, port)) {
            let address = SocketAddr::new(found.address, port);
            return Ok(Resolution::complete(vec![address]));
        }
        let name = match host {
            Host::Address(address) => {
                let address = SocketAddr::new(*address, port);
                return Ok(Resolution::complete(vec![address]));
            }
            Host::Name(name) => name,
        };
        let first = self.last_answered(name, port);
        let local = self.local_addresses(name)?;
        if local.is_empty() {
            return self.look_up(name, port, first, lookup);
        }
        let addresses = local.into_iter().map(|ip| SocketAddr::new(ip, port));
        let mut addresses: Vec<_> = addresses.collect();
        prefer(&mut addresses, first);
        Ok(Resolution::complete(addresses))
    }

    /// Records that `address` of `host` answered: it is the first one to be tried the next time.
    pub(crate) fn remember(&self, host: &Host, address: SocketAddr) {
        if let Host::Name(name) = host {
            let key = (name.clone(), address.port());
            lock(&self.0.answered).insert(key, address);
        }
    }

    /// Records that no address of `host` answered on `port`.
    pub(crate) fn forget(&self, host: &Host, port: u16) {
        if let Host::Name(name) = host {
            lock(&self.0.answered).remove(&(name.clone(), port));
        }
    }

    fn last_answered(&self, name: &str, port: u16) -> Option<SocketAddr> {
        lock(&self.0.answered).get(&(name.to_owned(), port))
    }

    /// The addresses that this machine knows without a lookup; none if it has to be looked up.
    fn local_addresses(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        // "Name resolution APIs and libraries [...] SHOULD always return the IP loopback address"
        // (RFC 6761, section 6.3). So no hosts file can send loopback traffic, perhaps in the
        // clear, to another machine. https://www.rfc-editor.org/rfc/rfc6761#section-6.3
        if name == "localhost" {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let listed = self.0.hosts.addresses(name);
        if listed.is_empty() && ends_in_a_number(name) {
            return numeric(name);
        }
        Ok(listed)
    }

    fn look_up(
        &self,
        name: &str,
        port: u16,
        first: Option<SocketAddr>,
        lookup: &LookupFor<'_>,
    ) -> Result<Resolution, LookupError> {
        let timed_out = || LookupError::TimedOut(name.to_owned());
        if lookup.deadline.passed() {
            return Err(timed_out());
        }
        let waiter = Waiter::new(self.name(name));
        let record = waiter.name();
        for family in record.queue(lookup.owner, Instant::now()) {
            self.0.lookups.submit(lookup.owner, record, family);
        }
        let known = loop {
            let interval = Deadline::after(WANTED_INTERVAL).min(lookup.deadline);
            let until = interval.instant().unwrap_or_else(Instant::now);
            match record.wait(name, until) {
                Step::Use(known) => break known,
                Step::Fail(error) => return Err(error),
                Step::Wait if !(lookup.wanted)() => {
                    return Err(LookupError::NotWanted);
                }
                Step::Wait if lookup.deadline.passed() => match record.known() {
                    known if known.v4.is_empty() => return Err(timed_out()),
                    known => break known,
                },
                Step::Wait => {}
            }
        };
        let complete = known.complete;
        Ok(Resolution {
            addresses: in_order(known, port, first),
            pending: (!complete).then_some(Pending {
                waiter,
                port,
                first,
            }),
        })
    }

    /// The record of a name. The same record serves every caller of the same time.
    fn name(&self, name: &str) -> Arc<Name> {
        let mut names = lock(&self.0.names);
        names.get(name).unwrap_or_else(|| {
            let absolute = name.contains('.') || self.0.one_label != OneLabel::Searched;
            let query = format!("{name}{}", if absolute { "." } else { "" });
            let record = Name::new(query);
            names.insert(name.to_owned(), Arc::clone(&record));
            record
        })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("overrides", &self.0.overrides)
            .finish_non_exhaustive()
    }
}

/// The addresses with `port`: IPv6 and IPv4 in turn ([RFC 8305, section 4]), and before them the
/// one that is `first`, if it is one of them.
///
/// [RFC 8305, section 4]: https://www.rfc-editor.org/rfc/rfc8305#section-4
fn in_order(known: Known, port: u16, first: Option<SocketAddr>) -> Vec<SocketAddr> {
    let (mut v6, mut v4) = (known.v6.into_iter(), known.v4.into_iter());
    let mut addresses = Vec::with_capacity(v6.len() + v4.len());
    while v6.len() + v4.len() > 0 {
        addresses.extend(v6.next().into_iter().chain(v4.next()));
    }
    for address in &mut addresses {
        address.set_port(port);
    }
    prefer(&mut addresses, first);
    addresses
}

/// Moves `first` to the front, if it is one of `addresses`.
fn prefer(addresses: &mut [SocketAddr], first: Option<SocketAddr>) {
    let at = first.and_then(|first| addresses.iter().position(|&address| address == first));
    if let Some(at) = at {
        addresses[..=at].rotate_right(1);
    }
}

/// Whether the last label of `name` is a number, as in `0177.0.0.1`. Such a text is an IPv4 address
/// for `inet_aton(3)`, and never a name in DNS ([WHATWG URL, section 3.5]).
///
/// [WHATWG URL, section 3.5]: https://url.spec.whatwg.org/#ends-in-a-number-checker
fn ends_in_a_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x");
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// The address that the system reads `text` as, without a lookup.
fn numeric(text: &str) -> Result<Vec<IpAddr>, LookupError> {
    let hints = AddrInfoHints {
        flags: libc::AI_NUMERICHOST,
        socktype: libc::SOCK_STREAM,
        ..AddrInfoHints::default()
    };
    let not_found = || LookupError::NotFound {
        name: text.to_owned(),
        why: "it ends in a number and is not an address".to_owned(),
    };
    let found = getaddrinfo(Some(text), None, Some(hints)).map_err(|_| not_found())?;
    let addresses: Vec<IpAddr> = found.flatten().map(|found| found.sockaddr.ip()).collect();
    if addresses.is_empty() {
        return Err(not_found());
    }
    Ok(addresses)
}

/// getaddrinfo(3) for one family.
fn system_lookup(name: &str, family: Family) -> Found {
    let hints = AddrInfoHints {
        address: match family {
            Family::V6 => libc::AF_INET6,
            Family::V4 => libc::AF_INET,
        },
        socktype: libc::SOCK_STREAM,
        ..AddrInfoHints::default()
    };
    getaddrinfo(Some(name), None, Some(hints))?
        .map(|found| Ok(found?.sockaddr))
        .collect()
}

/// A map with a limit. Beyond it, the entry that was used least recently is removed.
struct Bounded<K, V> {
    entries: HashMap<K, (V, u64)>,
    limit: usize,
    uses: u64,
}

impl<K: std::hash::Hash + Eq + Clone, V: Clone> Bounded<K, V> {
    fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            limit,
            uses: 0,
        }
    }

    fn get<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: std::hash::Hash + Eq + ?Sized,
    {
        self.uses += 1;
        let (value, used) = self.entries.get_mut(key)?;
        *used = self.uses;
        Some(value.clone())
    }

    fn insert(&mut self, key: K, value: V) {
        self.uses += 1;
        if self.entries.len() >= self.limit && !self.entries.contains_key(&key) {
            let oldest = self.entries.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(key, (value, self.uses));
    }

    fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }
}

/// No code panics while it holds these locks, so what they protect is still consistent.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::lookup_error::LookupFailure;
    use crossbeam_channel::{Sender, unbounded};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);
    const LIMITS: PoolLimits = PoolLimits {
        threads: 8,
        share: 8,
        idle_time: IDLE_TIME,
    };

    fn name(text: &str) -> Host {
        Host::parse(text).expect(text)
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn resolver(lookup: impl Fn(&str, Family) -> Found + Send + Sync + 'static) -> Resolver {
        Resolver::with_lookup(Vec::new(), OneLabel::Absolute, Arc::new(lookup), LIMITS)
    }

    fn resolve(
        resolver: &Resolver,
        host: &str,
        limit: Duration,
    ) -> Result<Resolution, LookupError> {
        let lookup = LookupFor {
            owner: 1,
            deadline: Deadline::after(limit),
            wanted: &|| true,
        };
        resolver.resolve(&name(host), 7, &lookup)
    }

    /// The addresses of `host`, at the moment when it is resolved.
    fn found(resolver: &Resolver, host: &str) -> Vec<SocketAddr> {
        resolve(resolver, host, LONG).unwrap().addresses().to_vec()
    }

    /// One address per family.
    fn both(family: Family) -> Vec<SocketAddr> {
        addresses(match family {
            Family::V6 => &["[2001:db8::1]:0"],
            Family::V4 => &["192.0.2.1:0"],
        })
    }

    /// A resolver whose lookups of `stuck` end when the sender is dropped.
    fn stuck(stuck: Family) -> (Resolver, Sender<()>) {
        let (release, released) = unbounded::<()>();
        let resolver = resolver(move |_, family| {
            if family == stuck {
                released.recv().ok();
            }
            Ok(both(family))
        });
        (resolver, release)
    }

    #[test]
    fn literals_and_localhost_need_no_thread_and_no_time() {
        let resolver = Resolver::new();
        let resolve = |host: &str| resolve(&resolver, host, Duration::ZERO).unwrap();
        assert_eq!(
            resolve("192.0.2.1").addresses(),
            addresses(&["192.0.2.1:7"])
        );
        assert_eq!(resolve("[::1]").addresses(), addresses(&["[::1]:7"]));
        let loopback = resolve("localhost");
        assert!(loopback.addresses().iter().all(|a| a.ip().is_loopback()));
        // A notation of inet_aton(3) is an address too, and never a name in DNS.
        for text in ["0177.0.0.1", "0x7f.1", "2130706433"] {
            assert_eq!(
                resolve(text).addresses(),
                addresses(&["127.0.0.1:7"]),
                "{text}"
            );
        }
        assert_eq!(resolver.0.lookups.running_threads(), 0);
    }

    #[test]
    fn asks_the_system_and_says_not_found_for_a_name_without_addresses() {
        // Not through `resolve`, which resolves "localhost" without the system.
        let local = system_lookup("localhost", Family::V4).unwrap();
        assert!(!local.is_empty() && local.iter().all(|a| a.ip() == Ipv4Addr::LOCALHOST));
        let empty = resolver(|_, _| Ok(Vec::new()));
        let unknown = resolver(|_, _| Err(LookupFailure::Servers("unknown".to_owned())));
        let none = resolver(|_, _| Err(LookupFailure::NoAddress("no such name".to_owned())));
        for resolver in [empty, unknown, none] {
            let error = resolve(&resolver, "a.example", LONG).unwrap_err();
            assert!(matches!(error, LookupError::NotFound { .. }), "{error:?}");
            assert!(error.to_string().contains("a.example"), "{error}");
        }
        let error = resolve(&Resolver::new(), "1.2.3.4.5", LONG).unwrap_err();
        assert!(matches!(error, LookupError::NotFound { .. }), "{error:?}");
    }

    #[test]
    fn an_error_of_this_machine_keeps_its_number_and_is_not_cached() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let resolver = resolver(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            Err(LookupFailure::System(24))
        });
        for calls_so_far in [2, 4] {
            let error = resolve(&resolver, "a.example", LONG).unwrap_err();
            assert!(
                matches!(&error, LookupError::System(error) if error.raw_os_error() == Some(24)),
                "{error:?}"
            );
            assert_eq!(calls.load(Ordering::Relaxed), calls_so_far);
        }
    }

    #[test]
    fn an_override_applies_to_its_port_only_and_the_later_one_is_used() {
        let overrides = ["a.example:443:192.0.2.1", "A.example.:443:[2001:db8::1]"];
        let overrides = overrides.iter().map(|o| o.parse().unwrap()).collect();
        let lookup = Arc::new(|_: &str, family| match family {
            Family::V4 => Ok(addresses(&["9.9.9.9:0"])),
            Family::V6 => Ok(Vec::new()),
        });
        let resolver = Resolver::with_lookup(overrides, OneLabel::Absolute, lookup, LIMITS);
        let resolve = |port| {
            let lookup = LookupFor {
                owner: 1,
                deadline: Deadline::never(),
                wanted: &|| true,
            };
            let found = resolver.resolve(&name("a.example"), port, &lookup);
            found.unwrap().addresses().to_vec()
        };
        assert_eq!(resolve(443), addresses(&["[2001:db8::1]:443"]));
        assert_eq!(resolve(80), addresses(&["9.9.9.9:80"]));
    }

    #[test]
    fn only_the_name_of_a_relays_gateway_uses_the_search_list() {
        for (one_label, single) in [(OneLabel::Absolute, "gw."), (OneLabel::Searched, "gw")] {
            let queried = Arc::new(Mutex::new(Vec::new()));
            let log = Arc::clone(&queried);
            let lookup = move |name: &str, family| {
                log.lock().unwrap().push(name.to_owned());
                Ok(both(family))
            };
            let resolver = Resolver::with_lookup(Vec::new(), one_label, Arc::new(lookup), LIMITS);
            found(&resolver, "gw");
            found(&resolver, "gw.example");
            found(&resolver, "gw.test.");
            let queried = queried.lock().unwrap();
            let expected = [single, "gw.example.", "gw.test."];
            assert!(
                queried.iter().all(|name| expected.contains(&name.as_str())),
                "{queried:?}"
            );
        }
    }

    #[test]
    fn a_hundred_callers_of_one_name_make_one_lookup_per_family() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let (release, released) = unbounded::<()>();
        let resolver = resolver(move |_, family| {
            counted.fetch_add(1, Ordering::Relaxed);
            released.recv().ok();
            Ok(both(family))
        });
        thread::scope(|scope| {
            let callers: Vec<_> = (0..100)
                .map(|_| scope.spawn(|| found(&resolver, "a.example")))
                .collect();
            let waiters = || Arc::strong_count(&resolver.name("a.example"));
            // The record is held by the cache, by `waiters`, by the lookups and by each caller.
            while waiters() < 100 {
                thread::yield_now();
            }
            drop(release);
            for caller in callers {
                assert!(!caller.join().unwrap().is_empty());
            }
        });
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        found(&resolver, "a.example");
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn ipv6_addresses_are_used_at_once_and_later_ones_are_added() {
        let (resolver, release) = stuck(Family::V4);
        let mut resolution = resolve(&resolver, "a.example", LONG).unwrap();
        assert_eq!(resolution.addresses(), addresses(&["[2001:db8::1]:7"]));
        assert!(!resolution.refresh());
        drop(release);
        while !resolution.refresh() {
            thread::yield_now();
        }
        let all = addresses(&["[2001:db8::1]:7", "192.0.2.1:7"]);
        assert_eq!(resolution.addresses(), all);
        assert_eq!(found(&resolver, "a.example"), all);
    }

    #[test]
    fn a_resolver_that_drops_aaaa_queries_costs_one_short_delay() {
        let (resolver, _release) = stuck(Family::V6);
        let start = Instant::now();
        assert_eq!(found(&resolver, "a.example"), addresses(&["192.0.2.1:7"]));
        assert!(start.elapsed() >= Duration::from_millis(50));
        // While that lookup is pending, no later caller waits for it: also with no time at all.
        let record = resolver.name("a.example");
        assert!(matches!(
            record.wait("a.example", Instant::now()),
            Step::Use(_)
        ));
    }

    #[test]
    fn one_family_that_fails_is_not_a_failure() {
        for failing in [Family::V6, Family::V4] {
            let resolver = resolver(move |_, family| {
                if family == failing {
                    return Err(LookupFailure::Servers("SERVFAIL".to_owned()));
                }
                Ok(both(family))
            });
            assert_eq!(found(&resolver, "a.example").len(), 1);
        }
    }

    #[test]
    fn a_deadline_and_a_caller_that_leaves_end_the_waiting() {
        let (release, released) = unbounded::<()>();
        let resolver = resolver(move |_, family| {
            released.recv().ok();
            Ok(both(family))
        });
        let late = resolve(&resolver, "a.example", Duration::from_millis(20));
        assert!(matches!(late, Err(LookupError::TimedOut(_))), "{late:?}");
        let left = LookupFor {
            owner: 1,
            deadline: Deadline::never(),
            wanted: &|| false,
        };
        let left = resolver.resolve(&name("a.example"), 7, &left);
        assert!(matches!(left, Err(LookupError::NotWanted)), "{left:?}");
        // The lookup that they began serves the next caller.
        drop(release);
        assert!(!found(&resolver, "a.example").is_empty());
    }

    #[test]
    fn families_are_interleaved_and_the_address_that_answered_is_the_first() {
        let resolver = resolver(|_, family| {
            Ok(addresses(match family {
                Family::V6 => &["[2001:db8::1]:0", "[2001:db8::2]:0", "[2001:db8::3]:0"],
                Family::V4 => &["192.0.2.1:0", "192.0.2.2:0"],
            }))
        });
        let in_turn = addresses(&[
            "[2001:db8::1]:7",
            "192.0.2.1:7",
            "[2001:db8::2]:7",
            "192.0.2.2:7",
            "[2001:db8::3]:7",
        ]);
        let mut first = resolve(&resolver, "a.example", LONG).unwrap();
        while !first.refresh() {
            thread::yield_now();
        }
        assert_eq!(found(&resolver, "a.example"), in_turn);
        let host = name("a.example");
        resolver.remember(&host, in_turn[3]);
        let expected = [&in_turn[3..4], &in_turn[..3], &in_turn[4..]].concat();
        assert_eq!(found(&resolver, "a.example"), expected);
        // An address that the name no longer has is not tried.
        resolver.remember(&host, "203.0.113.9:7".parse().unwrap());
        assert_eq!(found(&resolver, "a.example"), in_turn);
        resolver.remember(&host, in_turn[3]);
        resolver.forget(&host, 7);
        assert_eq!(found(&resolver, "a.example"), in_turn);
    }

    #[test]
    fn the_cache_is_bounded_and_what_was_used_least_recently_is_removed() {
        let mut cache = Bounded::new(3);
        for key in 0..3 {
            cache.insert(key, key);
        }
        assert_eq!(cache.get(&0), Some(0));
        cache.insert(3, 3);
        assert_eq!(cache.get(&1), None);
        assert_eq!(cache.entries.len(), 3);
        assert_eq!(cache.get(&0), Some(0));
    }
}
