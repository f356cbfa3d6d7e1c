//! The connections that have not sent a valid token yet. When no slot is free, the oldest of them
//! is closed, so that silent connections cannot keep clients with a token out.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::listener::Eviction;

/// How long a connection cannot be evicted. TLS and the upgrade take three round trips; a client
/// that is about to send its token must not be closed in favour of one that has just connected.
const GRACE: Duration = Duration::from_millis(300);

/// The unauthenticated connections, in the order in which they arrived.
#[derive(Debug, Default)]
pub(crate) struct Unauthenticated(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    connections: BTreeMap<u64, (Instant, TcpStream)>,
}

/// A connection's entry in the list. Dropping it removes the entry.
#[must_use = "dropping it removes the connection from the list"]
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    list: &'a Unauthenticated,
    id: u64,
}

impl Unauthenticated {
    /// Adds a connection that was just accepted. The list duplicates its descriptor, so it needs
    /// two, as a tunnel does. If there is no descriptor left, the connection cannot be evicted.
    pub(crate) fn add(&self, connection: &TcpStream) -> Entry<'_> {
        let second = connection.try_clone();
        let mut entries = self.lock();
        let id = entries.next;
        entries.next += 1;
        if let Ok(second) = second {
            entries.connections.insert(id, (Instant::now(), second));
        }
        Entry { list: self, id }
    }

    /// Closes the oldest connection, if its [`GRACE`] is over.
    pub(crate) fn evict_oldest(&self) -> Eviction {
        let mut entries = self.lock();
        let Some(first) = entries.connections.first_entry() else {
            return Eviction::None;
        };
        let grace_ends = first.get().0 + GRACE;
        if Instant::now() < grace_ends {
            return Eviction::NotBefore(grace_ends);
        }
        let (_, connection) = first.remove();
        // Its worker reads the end of stream. If this fails, the connection is closed already.
        let _ = connection.shutdown(Shutdown::Both);
        Eviction::Made
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.list.lock().connections.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_oldest_connection_is_evicted_first_and_not_before_its_grace_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let unauthenticated = Unauthenticated::default();
        assert_eq!(unauthenticated.evict_oldest(), Eviction::None);
        let accept = || {
            let client = TcpStream::connect(address).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (mut first, second, admitted) = (accept(), accept(), accept());
        let admitted_entry = unauthenticated.add(&admitted.1);
        let _entries = [
            unauthenticated.add(&first.1),
            unauthenticated.add(&second.1),
        ];
        drop(admitted_entry);
        loop {
            match unauthenticated.evict_oldest() {
                Eviction::NotBefore(time) => {
                    std::thread::sleep(time.saturating_duration_since(Instant::now()));
                }
                eviction => break assert_eq!(eviction, Eviction::Made),
            }
        }
        assert_eq!(first.0.read(&mut [0]).unwrap(), 0);
        assert_eq!(unauthenticated.lock().connections.len(), 1);
        second.0.set_nonblocking(true).unwrap();
        assert!((&second.0).read(&mut [0]).is_err(), "still connected");
    }
}
