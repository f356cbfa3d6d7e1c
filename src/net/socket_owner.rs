//! The user who owns the other end of a loopback connection, from the kernel's socket table
//! (Linux).
//!
//! The relay acts with the authority of its session for every client, and every user of the machine
//! can connect to loopback. So the client's socket must belong to this process's user, or to root,
//! who can read the token anyway. The source is `sock_diag(7)`; without netlink, `/proc/net/tcp`
//! and `tcp6`. It does not decide who may connect; `access` does.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use super::sockets::{SocketTable, unmapped};

/// Finds the user who owns a socket.
#[derive(Debug)]
pub(crate) struct PeerUid {
    /// The netlink socket, if there is one; one query at a time.
    netlink: Option<Mutex<SocketTable>>,
}

/// The owner of a connected socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    uid: u32,
    /// Zero for a socket that its process has closed: the kernel then reports root as its owner.
    inode: u64,
}

impl PeerUid {
    /// Opens a netlink socket. If there is none, `/proc` is read for each query.
    pub(crate) fn new() -> Self {
        Self {
            netlink: SocketTable::open().ok().map(Mutex::new),
        }
    }

    /// Whether this system reports the owners of sockets.
    pub(crate) fn is_supported(&self) -> bool {
        // There is no such connection: a system that supports the query answers "none".
        let unused = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        self.of(unused, unused).is_ok()
    }

    /// The user who owns the client's end of the connection from `client` to `local`; `None` if
    /// that end is closed.
    ///
    /// # Errors
    /// This system does not report the owners of sockets.
    pub(crate) fn of(&self, client: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
        let found = match &self.netlink {
            Some(netlink) => {
                let netlink = netlink.lock().unwrap_or_else(PoisonError::into_inner);
                let entry = netlink.query(client, local);
                entry.map(|entry| {
                    entry.map(|entry| Owner {
                        uid: entry.uid,
                        inode: entry.inode,
                    })
                })
            }
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        let owner = found.or_else(|_| look_up(client, local))?;
        Ok(owner
            .filter(|owner| owner.inode != 0)
            .map(|owner| owner.uid))
    }
}

/// The owner according to the tables in `/proc`. They list the socket of a dual-stack client under
/// IPv6.
fn look_up(client: SocketAddr, local: SocketAddr) -> io::Result<Option<Owner>> {
    let (client, local) = (unmapped(client), unmapped(local));
    let mut readable = false;
    for (table, wide) in [("/proc/net/tcp", false), ("/proc/net/tcp6", true)] {
        let (Some(from), Some(to)) = (hexadecimal(client, wide), hexadecimal(local, wide)) else {
            continue;
        };
        let Ok(text) = fs::read_to_string(table) else {
            continue;
        };
        readable = true;
        if let Some(owner) = find(&text, &from, &to) {
            return Ok(Some(owner));
        }
    }
    if readable {
        Ok(None)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The owner of the socket at `from` that is connected to `to`.
fn find(table: &str, from: &str, to: &str) -> Option<Owner> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        if columns.next()? != from || columns.next()? != to {
            return None;
        }
        // st, tx:rx, tr:when, retrnsmt, uid, timeout, inode
        let uid = columns.nth(4)?.parse().ok()?;
        let inode = columns.nth(1)?.parse().ok()?;
        Some(Owner { uid, inode })
    })
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
    use std::net::{Ipv6Addr, TcpListener, TcpStream};

    use super::*;

    fn own_uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn connected(listen: &str, dial: IpAddr) -> Option<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind(listen).ok()?;
        let client = TcpStream::connect((dial, listener.local_addr().ok()?.port())).ok()?;
        Some((client, listener.accept().ok()?.0))
    }

    #[test]
    fn the_owner_of_a_connection_is_its_process_user_from_either_source() {
        let pairs = [
            ("127.0.0.1:0", "127.0.0.1".parse().unwrap()),
            ("[::1]:0", IpAddr::V6(Ipv6Addr::LOCALHOST)),
            ("127.0.0.1:0", "::ffff:127.0.0.1".parse().unwrap()),
        ];
        let peer_uid = PeerUid::new();
        for (listen, dial) in pairs {
            // Not every machine has an IPv6 loopback.
            let Some((_client, local)) = connected(listen, dial) else {
                continue;
            };
            let (peer, own) = (local.peer_addr().unwrap(), local.local_addr().unwrap());
            if let Some(netlink) = &peer_uid.netlink {
                let found = netlink.lock().unwrap().query(peer, own).unwrap();
                assert_eq!(
                    found.map(|owner| owner.uid),
                    Some(own_uid()),
                    "{listen} {dial}"
                );
            }
            assert_eq!(
                peer_uid.of(peer, own).unwrap(),
                Some(own_uid()),
                "{listen} {dial}"
            );
            assert_eq!(
                look_up(peer, own).unwrap().map(|owner| owner.uid),
                Some(own_uid()),
                "{listen} {dial}"
            );
        }
    }

    #[test]
    fn a_socket_that_was_closed_has_no_owner_rather_than_root() {
        let (client, local) = connected("127.0.0.1:0", "127.0.0.1".parse().unwrap()).unwrap();
        let (peer, own) = (local.peer_addr().unwrap(), local.local_addr().unwrap());
        drop(client);
        let without_netlink = PeerUid { netlink: None };
        for peer_uid in [PeerUid::new(), without_netlink] {
            assert_eq!(peer_uid.of(peer, own).unwrap(), None, "{peer_uid:?}");
        }
    }

    #[test]
    fn an_address_pair_that_is_not_connected_has_no_owner() {
        let unused = "127.0.0.1:9".parse().unwrap();
        let local = "127.0.0.1:10".parse().unwrap();
        assert_eq!(PeerUid::new().of(unused, local).unwrap(), None);
        assert_eq!(look_up(unused, local).unwrap(), None);
    }

    #[test]
    fn lines_of_the_table_are_matched_by_both_addresses() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 111 1 0\n\
             1: 0100007F:D431 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 222 1 0\n";
        let found = find(table, "0100007F:D431", "0100007F:1F90");
        assert_eq!(
            found,
            Some(Owner {
                uid: 1001,
                inode: 222
            })
        );
        assert_eq!(find(table, "0100007F:D431", "0100007F:1F91"), None);
        assert_eq!(find("", "a", "b"), None);
    }
}
