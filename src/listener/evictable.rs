//! The connections that hold a slot and were not granted a tunnel yet: those that have not asked,
//! those that were refused and still read, and those that were upgraded and wait for their CONNECT
//! request.
//!
//! When no slot is free, one of them is closed: the oldest of the party that has the most. So
//! connections that do nothing cannot keep others out.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::control::shares::Shares;
use crate::net::sockets::round_trip;
use crate::net::wait::events_now;

/// A peer that sends at once what is expected of it needs up to this many round trips (TCP, TLS,
/// request), and on a busy machine this time.
const ROUND_TRIPS: u32 = 4;
const SLACK: Duration = Duration::from_millis(20);
/// For how many connections the kernel is asked for their round trip at each attempt.
const QUERIES: usize = 16;
/// How long a connection cannot be evicted while its worker has not read what has arrived. On a
/// busy machine a worker may need longer than the grace to start.
const UNREAD_GRACE: Duration = Duration::from_secs(1);
/// When to check again, if nothing else is known.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The connections without a tunnel.
#[derive(Debug)]
pub(crate) struct EvictableList {
    grace: Duration,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    next_id: u64,
    /// In the order of their IDs. A vector that is never shrunk, so that adding a connection
    /// usually allocates nothing.
    list: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    /// `None`: not known.
    party: Option<u64>,
    since: Instant,
    socket: Arc<TcpStream>,
}

/// A connection's place in the list. Dropping it removes the connection from the list.
#[must_use = "dropping it removes the connection from the list"]
#[derive(Debug)]
pub(crate) struct Evictable<'a> {
    list: &'a EvictableList,
    id: u64,
}

/// The result of [`EvictableList::evict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// There is no connection that may be evicted.
    None,
    /// No connection may be evicted before this time.
    NotBefore(Instant),
    /// A connection was evicted. Its slot will be free in a moment.
    Made,
}

impl EvictableList {
    /// An empty list. A connection that was added or whose party became known a moment ago is not
    /// evicted: one that is about to send its request must not be closed in favour of one that has
    /// just connected. This grace is a few round trips to its peer, at most `grace`.
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            grace,
            entries: Mutex::default(),
        }
    }

    /// Adds a connection that was just accepted.
    pub(crate) fn add(&self, socket: &Arc<TcpStream>) -> Evictable<'_> {
        let id = self.lock().insert(None, Arc::clone(socket));
        Evictable { list: self, id }
    }

    /// Closes the oldest connection of the party that has the most, if its grace is over. Of
    /// several parties, the unknown one is the first. `tunnels` are the shares of all other
    /// connections.
    pub(crate) fn evict(&self, tunnels: &Shares) -> Eviction {
        let mut entries = self.lock();
        let mut counts = HashMap::new();
        for entry in &entries.list {
            *counts.entry(entry.party).or_insert(0_usize) += 1;
        }
        let largest = counts
            .into_iter()
            .max_by_key(|(party, count)| (*count, party.is_none()));
        let now = Instant::now();
        let Some((party, _)) = largest else {
            // A connection without a share will be in the list soon, or has just ended.
            let all_are_tunnels = tunnels.left() == 0;
            return if all_are_tunnels {
                Eviction::None
            } else {
                Eviction::NotBefore(now + CHECK_INTERVAL)
            };
        };
        let mut not_before = None;
        let mut queries = 0..QUERIES;
        let mut of_party = entries.list.iter().filter(|entry| entry.party == party);
        let victim = of_party.find(|entry| {
            let time = entry.not_before(now, self.grace, &mut queries);
            not_before = not_before.into_iter().chain(time).min();
            time.is_none()
        });
        let Some(id) = victim.map(|entry| entry.id) else {
            return Eviction::NotBefore(not_before.unwrap_or(now + CHECK_INTERVAL));
        };
        if let Some(entry) = entries.remove(id) {
            // Its worker reads the end of the stream. If this fails, the connection is closed
            // already.
            let _ = entry.socket.shutdown(Shutdown::Both);
        }
        Eviction::Made
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// When to try to evict the connection; `None`: now. It needs one of the `queries` if it is
    /// younger than `grace`.
    fn not_before(
        &self,
        now: Instant,
        grace: Duration,
        queries: &mut Range<usize>,
    ) -> Option<Instant> {
        let age = now.duration_since(self.since);
        if age < grace {
            let time = queries.next().and_then(|_| round_trip(&self.socket));
            let grace = time.map_or(grace, |time| grace.min(ROUND_TRIPS * time + SLACK));
            if age < grace {
                return Some(self.since + grace);
            }
        }
        let unread =
            age < UNREAD_GRACE && events_now(&self.socket, PollFlags::IN).contains(PollFlags::IN);
        unread.then(|| now + CHECK_INTERVAL)
    }
}

impl Evictable<'_> {
    /// Sets the party. The connection is then the newest one of it.
    pub(crate) fn set_party(&mut self, party: u64) {
        let mut entries = self.list.lock();
        // Without an entry it was evicted.
        if let Some(entry) = entries.remove(self.id) {
            self.id = entries.insert(Some(party), entry.socket);
        }
    }

    /// Whether the connection was closed for another one.
    pub(crate) fn was_evicted(&self) -> bool {
        self.list.lock().position(self.id).is_none()
    }
}

impl Drop for Evictable<'_> {
    fn drop(&mut self) {
        let entry = self.list.lock().remove(self.id);
        // The socket may be closed by this, so the lock is free.
        drop(entry);
    }
}

impl Entries {
    fn insert(&mut self, party: Option<u64>, socket: Arc<TcpStream>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.list.push(Entry {
            id,
            party,
            since: Instant::now(),
            socket,
        });
        id
    }

    fn position(&self, id: u64) -> Option<usize> {
        self.list.binary_search_by_key(&id, |entry| entry.id).ok()
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let at = self.position(id)?;
        Some(self.list.remove(at))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Connections to a listener: the client's end and the accepted one.
    struct Peers(TcpListener);

    impl Peers {
        fn new() -> Self {
            Self(TcpListener::bind("127.0.0.1:0").unwrap())
        }

        fn accept(&self) -> (TcpStream, Arc<TcpStream>) {
            let client = TcpStream::connect(self.0.local_addr().unwrap()).unwrap();
            client.set_nonblocking(true).unwrap();
            (client, Arc::new(self.0.accept().unwrap().0))
        }
    }

    /// Shares of which all are taken: there are no connections but those in a list.
    fn none_left() -> Shares {
        Shares::new(0)
    }

    fn is_closed(client: &TcpStream) -> bool {
        matches!((&*client).read(&mut [0]), Ok(0))
    }

    #[test]
    fn the_oldest_connection_is_evicted_first_and_not_before_its_grace_ends() {
        let (peers, list) = (Peers::new(), EvictableList::new(Duration::from_millis(300)));
        assert_eq!(list.evict(&none_left()), Eviction::None);
        let (first, second, admitted) = (peers.accept(), peers.accept(), peers.accept());
        let admitted_entry = list.add(&admitted.1);
        let entries = [list.add(&first.1), list.add(&second.1)];
        drop(admitted_entry);
        loop {
            match list.evict(&none_left()) {
                Eviction::NotBefore(time) => {
                    std::thread::sleep(time.saturating_duration_since(Instant::now()));
                }
                eviction => break assert_eq!(eviction, Eviction::Made),
            }
        }
        assert_eq!(
            entries.each_ref().map(Evictable::was_evicted),
            [true, false]
        );
        assert_eq!(
            [&first.0, &second.0, &admitted.0].map(is_closed),
            [true, false, false]
        );
        drop(entries);
        assert!(list.lock().list.is_empty());
    }

    #[test]
    fn a_connection_whose_request_was_not_read_yet_is_spared() {
        let (peers, list) = (Peers::new(), EvictableList::new(Duration::ZERO));
        let (asking, silent) = (peers.accept(), peers.accept());
        (&asking.0).write_all(b"CONNECT").unwrap();
        while events_now(&asking.1, PollFlags::IN).is_empty() {}
        let entries = [list.add(&asking.1), list.add(&silent.1)];
        assert_eq!(list.evict(&none_left()), Eviction::Made);
        assert!(entries[1].was_evicted());
        assert!(matches!(list.evict(&none_left()), Eviction::NotBefore(_)));
        (&*asking.1).read_exact(&mut [0; 7]).unwrap();
        assert_eq!(list.evict(&none_left()), Eviction::Made);
        assert!(entries[0].was_evicted());
    }

    #[test]
    fn a_connection_that_is_neither_a_tunnel_nor_in_the_list_is_waited_for() {
        let list = EvictableList::new(Duration::ZERO);
        let tunnels = Shares::new(2);
        let _first = tunnels.take(None, 1).unwrap();
        assert!(matches!(list.evict(&tunnels), Eviction::NotBefore(_)));
        let _second = tunnels.take(None, 1).unwrap();
        assert_eq!(list.evict(&tunnels), Eviction::None);
    }

    #[test]
    fn the_grace_of_a_near_peer_is_short() {
        let hour = Duration::from_secs(3600);
        let (peers, list) = (Peers::new(), EvictableList::new(hour));
        let (_client, own) = peers.accept();
        let _entry = list.add(&own);
        // The round trips on loopback take microseconds.
        let limit = Instant::now() + hour / 60;
        assert!(matches!(list.evict(&none_left()), Eviction::NotBefore(time) if time < limit));
    }

    #[test]
    fn the_party_with_the_most_connections_loses_its_oldest() {
        let (peers, list) = (Peers::new(), EvictableList::new(Duration::ZERO));
        let connections: Vec<_> = (0..7).map(|_| peers.accept()).collect();
        let mut entries: Vec<_> = connections.iter().map(|(_, own)| list.add(own)).collect();
        // The first is the only one of its party, and the last has no party yet.
        entries[0].set_party(9);
        for entry in &mut entries[1..6] {
            entry.set_party(1);
        }
        let evicted = |entries: &[Evictable<'_>]| -> Vec<usize> {
            let evicted = entries.iter().enumerate();
            let evicted = evicted.filter(|(_, entry)| entry.was_evicted());
            evicted.map(|(at, _)| at).collect()
        };
        for at in 1..=4 {
            assert_eq!(list.evict(&none_left()), Eviction::Made);
            assert_eq!(evicted(&entries), (1..=at).collect::<Vec<_>>());
        }
        // All parties have one connection: the unknown one is the first.
        assert_eq!(list.evict(&none_left()), Eviction::Made);
        assert_eq!(evicted(&entries), [1, 2, 3, 4, 6]);
        // A party that is set afterwards does not bring a connection back.
        entries[6].set_party(3);
        list.evict(&none_left());
        list.evict(&none_left());
        assert_eq!(list.evict(&none_left()), Eviction::None);
    }
}
