//! The kernel's socket table as text: `/proc/net/tcp` and `tcp6` (Linux), where netlink is not
//! available.
//!
//! The kernel writes the whole table for each read, which may take milliseconds. So one read serves
//! all threads that wait for it. The text is searched piece by piece and never kept.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The files, and whether their addresses are IPv6. IPv4 connections of dual-stack sockets are in
/// the second one.
const FILES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// The state of a listening socket.
const LISTEN: &str = "0A";
/// How much of a table is read at once.
const PIECE: usize = 64 << 10;

/// The owner of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    /// Zero for a socket that no process has open: one that was closed, or not accepted yet. The
    /// kernel then reports root as its owner.
    pub(crate) inode: u64,
}

/// A socket to find in the table, as the texts of its two addresses. The first text that is found
/// counts.
#[derive(Debug)]
pub(super) struct Wanted(Vec<String>);

/// The tables, and the queries that wait for the next read.
#[derive(Debug, Default)]
pub(super) struct ProcTable {
    waiting: Mutex<Vec<Arc<Query>>>,
    /// Held by the thread that reads.
    reading: Mutex<()>,
    /// How often the tables were read.
    reads: AtomicUsize,
}

#[derive(Debug)]
struct Query {
    wanted: Vec<Wanted>,
    answer: OnceLock<Option<Vec<Option<Owner>>>>,
}

impl Wanted {
    /// The socket at `own` that is connected to `peer`.
    pub(super) fn connected(own: SocketAddr, peer: SocketAddr) -> Self {
        let texts = [false, true].into_iter().filter_map(|wide| {
            let (own, peer) = (hexadecimal(own, wide)?, hexadecimal(peer, wide)?);
            Some(format!("{own} {peer}"))
        });
        Self(texts.collect())
    }

    /// The socket that accepts connections to `address`.
    pub(super) fn listening(address: SocketAddr) -> Self {
        let port = address.port();
        let any = [
            (Ipv4Addr::UNSPECIFIED.into(), false),
            (Ipv6Addr::UNSPECIFIED.into(), true),
        ];
        let own = [(address.ip(), false), (address.ip(), true)];
        let texts = own.into_iter().chain(any).filter_map(|(ip, wide)| {
            if any.contains(&(ip, wide)) && address.is_ipv6() && !wide {
                return None;
            }
            let own = hexadecimal(SocketAddr::new(ip, port), wide)?;
            let zero = SocketAddr::new(any[usize::from(wide)].0, 0);
            Some(format!("{own} {} {LISTEN}", hexadecimal(zero, wide)?))
        });
        Self(texts.collect())
    }
}

impl ProcTable {
    /// The owners of the sockets; `None` for one that is not in the table.
    ///
    /// # Errors
    /// This system has no such table.
    pub(super) fn find(&self, wanted: Vec<Wanted>) -> io::Result<Vec<Option<Owner>>> {
        let query = Arc::new(Query {
            wanted,
            answer: OnceLock::new(),
        });
        lock(&self.waiting).push(Arc::clone(&query));
        let reading = lock(&self.reading);
        if query.answer.get().is_none() {
            // Each of them waits since before this read.
            let queries = std::mem::take(&mut *lock(&self.waiting));
            self.reads.fetch_add(1, Ordering::Relaxed);
            answer(&queries);
        }
        drop(reading);
        let answer = query.answer.get().cloned().flatten();
        answer.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    #[cfg(test)]
    pub(super) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

/// No code panics while it holds one of the locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the tables and answers the queries.
fn answer(queries: &[Arc<Query>]) {
    let mut search = Search::new(queries);
    let mut readable = false;
    for file in FILES {
        if search.is_complete() {
            break;
        }
        if let Ok(file) = File::open(file) {
            readable |= search.read(BufReader::with_capacity(PIECE, file)).is_ok();
        }
    }
    for (query, found) in queries.iter().zip(search.found) {
        let owners = found.into_iter().map(|found| found.map(|(_, owner)| owner));
        // No other thread answers it.
        let _ = query.answer.set(readable.then(|| owners.collect()));
    }
}

/// The texts to find and what was found.
struct Search<'a> {
    /// For each text the query, the socket in it, and the rank of the text.
    texts: HashMap<&'a str, Vec<(usize, usize, usize)>>,
    /// For each query and each of its sockets: the rank of the text that was found, and the owner.
    found: Vec<Vec<Option<(usize, Owner)>>>,
    /// The sockets whose first text was not found yet.
    open: usize,
}

impl<'a> Search<'a> {
    fn new(queries: &'a [Arc<Query>]) -> Self {
        let mut texts: HashMap<&str, Vec<_>> = HashMap::new();
        for (number, query) in queries.iter().enumerate() {
            for (socket, wanted) in query.wanted.iter().enumerate() {
                for (rank, text) in wanted.0.iter().enumerate() {
                    let places = texts.entry(text).or_default();
                    places.push((number, socket, rank));
                }
            }
        }
        let found: Vec<_> = queries
            .iter()
            .map(|query| vec![None; query.wanted.len()])
            .collect();
        let open = found.iter().map(Vec::len).sum();
        Self { texts, found, open }
    }

    /// Nothing better can be found.
    fn is_complete(&self) -> bool {
        self.open == 0
    }

    fn read(&mut self, mut table: impl BufRead) -> io::Result<()> {
        let mut line = String::new();
        while !self.is_complete() {
            line.clear();
            if table.read_line(&mut line)? == 0 {
                break;
            }
            self.match_line(&line);
        }
        Ok(())
    }

    fn match_line(&mut self, line: &str) -> Option<()> {
        // sl: local remote st tx:rx tr:when retrnsmt uid timeout inode
        let (_, rest) = line.split_once(": ")?;
        let (addresses, columns) = rest.split_at_checked(rest.match_indices(' ').nth(1)?.0)?;
        let mut columns = columns.split_ascii_whitespace();
        let state = columns.next()?;
        let with_state = (state == LISTEN).then(|| format!("{addresses} {state}"));
        let places = self.texts.get(with_state.as_deref().unwrap_or(addresses))?;
        let uid = columns.nth(3)?.parse().ok()?;
        let inode = columns.nth(1)?.parse().ok()?;
        for &(query, socket, rank) in places {
            let found = &mut self.found[query][socket];
            if found.is_none_or(|(better, _)| rank < better) {
                *found = Some((rank, Owner { uid, inode }));
                self.open -= usize::from(rank == 0);
            }
        }
        Some(())
    }
}

/// An address in the format of the tables: each four bytes as one native-endian number, in
/// hexadecimal.
fn hexadecimal(address: SocketAddr, wide: bool) -> Option<String> {
    let octets = match (address.ip(), wide) {
        (IpAddr::V4(ip), false) => ip.octets().to_vec(),
        (IpAddr::V4(ip), true) => ip.to_ipv6_mapped().octets().to_vec(),
        (IpAddr::V6(ip), true) => ip.octets().to_vec(),
        (IpAddr::V6(_), false) => return None,
    };
    let mut text = String::with_capacity(2 * octets.len() + 5);
    for word in octets.chunks_exact(4) {
        let word = word.try_into().map_or(0, u32::from_ne_bytes);
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{word:08X}");
    }
    let _ = write!(text, ":{:04X}", address.port());
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn search(table: &str, wanted: Vec<Wanted>) -> Vec<Option<Owner>> {
        let queries = [Arc::new(Query {
            wanted,
            answer: OnceLock::new(),
        })];
        let mut search = Search::new(&queries);
        search.read(format!("{HEAD}{table}").as_bytes()).unwrap();
        search.found[0]
            .iter()
            .map(|found| found.map(|(_, owner)| owner))
            .collect()
    }

    #[test]
    fn lines_are_matched_by_both_addresses_and_by_their_state() {
        let table = "   0: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 111 1 0\n\
             \x20  1: 0100007F:D431 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 222 1 0\n\
             \x20  2: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1002        0 333 1 0\n\
             \x20  3: 0100007F:1F91 00000000:0000 07 00000000:00000000 00:00000000 00000000  1003        0 444 1 0\n";
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let found = search(
            table,
            vec![
                Wanted::connected(at(0xD431), at(0x1F90)),
                Wanted::connected(at(0xD431), at(0x1F91)),
                Wanted::listening(at(0x1F90)),
                Wanted::listening(at(0x1F91)),
            ],
        );
        let owner = |uid, inode| Some(Owner { uid, inode });
        assert_eq!(found, [owner(1001, 222), None, owner(1002, 333), None]);
        assert_eq!(search("", vec![Wanted::listening(at(1))]), [None]);
        assert_eq!(
            search("garbage\n: \n", vec![Wanted::listening(at(1))]),
            [None]
        );
    }

    #[test]
    fn the_most_specific_listening_socket_counts() {
        let table = "   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0  1 0 11 1\n\
             \x20  1: 00000000:1F90 00000000:0000 0A 0:0 0:0 0  2 0 22 1\n\
             \x20  2: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0  3 0 33 1\n";
        let wanted = || {
            vec![Wanted::listening(SocketAddr::from((
                Ipv4Addr::LOCALHOST,
                0x1F90,
            )))]
        };
        let lines: Vec<&str> = table.split_inclusive('\n').collect();
        for (table, uid) in [
            (table.to_owned(), 3),
            (lines[..2].concat(), 2),
            (lines[0].to_owned(), 1),
        ] {
            assert_eq!(
                search(&table, wanted())[0].map(|owner| owner.uid),
                Some(uid)
            );
        }
    }

    #[test]
    fn one_read_serves_all_threads_that_wait() {
        let table = ProcTable::default();
        let unused = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let ask = || table.find(vec![Wanted::connected(unused, unused)]).unwrap();
        thread::scope(|scope| {
            let reading = lock(&table.reading);
            let threads: Vec<_> = (0..32).map(|_| scope.spawn(ask)).collect();
            while lock(&table.waiting).len() < threads.len() {
                thread::yield_now();
            }
            drop(reading);
            for thread in threads {
                assert_eq!(thread.join().unwrap(), [None]);
            }
        });
        assert_eq!(table.reads(), 1);
        ask();
        assert_eq!(
            table.reads(),
            2,
            "a later query is not answered by an earlier read"
        );
    }
}
