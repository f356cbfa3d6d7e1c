//! The user who owns the other end of a loopback connection, from the kernel's socket table
//! (Linux).
//!
//! Every user of the machine can connect to a loopback port, and can listen on one that is free. So
//! the relay serves only the sockets of its own user and of root, who can read the token anyway,
//! and sends the token over a plain connection only to such a socket. The source is `sock_diag(7)`;
//! without netlink, `proc_table`. What follows from an answer is decided elsewhere.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::{fmt, fs, io};

pub(crate) use super::proc_table::Owner;
use super::proc_table::{ProcTable, Wanted};
use super::sockets::{SocketEntry, SocketTable, unmapped};

const ROOT: u32 = 0;
/// The user ID that the kernel shows for users who are not in this user namespace, unless
/// `/proc/sys/kernel/overflowuid` has another one.
const OVERFLOW_UID: u32 = 65534;

/// Finds the users who own sockets.
#[derive(Debug)]
pub(crate) struct SocketOwners {
    /// The netlink socket, if there is one; one query at a time.
    netlink: Option<Mutex<SocketTable>>,
    proc_table: ProcTable,
}

impl SocketOwners {
    /// Opens a netlink socket. If there is none, `/proc` is read for the queries.
    pub(crate) fn new() -> Self {
        Self {
            netlink: SocketTable::open().ok().map(Mutex::new),
            proc_table: ProcTable::default(),
        }
    }

    /// Whether this system reports the owners of sockets.
    pub(crate) fn is_supported(&self) -> bool {
        // There is no such connection: a system that supports the query answers "none".
        let unused = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        self.of_client(unused, unused).is_ok()
    }

    /// Whether the answers come from netlink. Those from `/proc` take longer the more sockets there
    /// are.
    pub(crate) fn has_netlink(&self) -> bool {
        self.netlink.is_some()
    }

    /// The owner of the client's end of the connection from `client` to `local`; `None` if that end
    /// is closed.
    ///
    /// # Errors
    /// This system does not report the owners of sockets.
    pub(crate) fn of_client(
        &self,
        client: SocketAddr,
        local: SocketAddr,
    ) -> io::Result<Option<Owner>> {
        let found = self.netlink(|table| Ok(table.query(client, local)?.map(owner)));
        let owner = found.or_else(|_| {
            let wanted = Wanted::connected(unmapped(client), unmapped(local));
            Ok::<_, io::Error>(self.proc_table.find(vec![wanted])?[0])
        })?;
        Ok(owner.filter(|owner| owner.inode != 0))
    }

    /// The user who owns the server's end of the connection from `local` to `server`; `None` if it
    /// is not on this machine, or closed.
    ///
    /// A connection that no process has accepted yet belongs to the owner of the listening socket.
    /// That one is looked up first: a connection that is still not accepted afterwards was in its
    /// queue, because another listening socket at the same address is not possible meanwhile.
    ///
    /// # Errors
    /// This system does not report the owners of sockets.
    pub(crate) fn of_server(
        &self,
        server: SocketAddr,
        local: SocketAddr,
    ) -> io::Result<Option<u32>> {
        let found = self.netlink(|table| {
            let (listening, connection) = table.query_server(server, local)?;
            Ok((listening.map(owner), connection.map(owner)))
        });
        let (listening, connection) = found.or_else(|_| {
            let listening = Wanted::listening(unmapped(server));
            let listening = self.proc_table.find(vec![listening])?[0];
            let connection = Wanted::connected(unmapped(server), unmapped(local));
            Ok::<_, io::Error>((listening, self.proc_table.find(vec![connection])?[0]))
        })?;
        Ok(match connection {
            Some(owner) if owner.inode != 0 => Some(owner.uid),
            Some(_) => listening.map(|owner| owner.uid),
            None => None,
        })
    }

    fn netlink<T>(&self, ask: impl FnOnce(&SocketTable) -> io::Result<T>) -> io::Result<T> {
        let netlink = self.netlink.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        ask(&netlink.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn owner(entry: SocketEntry) -> Owner {
    Owner {
        uid: entry.uid,
        inode: entry.inode,
    }
}

/// The users whose sockets are trusted: this process's own, root, and one that is named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrustedUsers {
    own: u32,
    named: Option<u32>,
}

impl TrustedUsers {
    /// This process's own user, root, and `named`.
    pub(crate) fn new(named: Option<u32>) -> Self {
        let own = rustix::process::geteuid().as_raw();
        Self { own, named }
    }

    /// Whether the user with this ID is trusted.
    pub(crate) fn contains(self, uid: u32) -> bool {
        uid == self.own || uid == ROOT || self.named == Some(uid)
    }

    /// Whether users who are not in this user namespace have the ID of this process's own user:
    /// they cannot be distinguished then.
    pub(crate) fn are_ambiguous(self) -> bool {
        if self.own == ROOT {
            return false;
        }
        let overflow_uid = fs::read_to_string("/proc/sys/kernel/overflowuid");
        let overflow_uid = overflow_uid.ok().and_then(|text| text.trim().parse().ok());
        self.own == overflow_uid.unwrap_or(OVERFLOW_UID)
            && !fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| maps_every_user(&map))
    }
}

/// Whether a user namespace has every user ID, as the first one has.
fn maps_every_user(map: &str) -> bool {
    let counts = map.lines().filter_map(|line| {
        let count = line.split_ascii_whitespace().nth(2)?;
        count.parse::<u64>().ok()
    });
    counts.sum::<u64>() == u64::from(u32::MAX)
}

/// Checks who has the server's end of a plain connection to the upstream, before the token is sent.
#[derive(Debug)]
pub(crate) struct UpstreamOwner {
    owners: SocketOwners,
    trusted: TrustedUsers,
}

impl UpstreamOwner {
    /// Trusts this process's own user, root, and `named`.
    pub(crate) fn new(named: Option<u32>) -> Self {
        Self {
            owners: SocketOwners::new(),
            trusted: TrustedUsers::new(named),
        }
    }

    /// Whether this system can distinguish the users.
    pub(crate) fn is_supported(&self) -> bool {
        self.owners.is_supported() && !self.trusted.are_ambiguous()
    }

    /// Checks the other end of `connection`, which is at `server`. One without an owner on this
    /// machine is trusted: only root can redirect a loopback connection. So is every owner if the
    /// system reports none.
    ///
    /// # Errors
    /// A user who is not trusted has it.
    pub(crate) fn check(
        &self,
        connection: &TcpStream,
        server: SocketAddr,
    ) -> Result<(), ForeignOwner> {
        let local = connection.local_addr();
        let owner = local.and_then(|local| self.owners.of_server(server, local));
        match owner {
            Ok(Some(uid)) if !self.trusted.contains(uid) => Err(ForeignOwner(uid)),
            _ => Ok(()),
        }
    }
}

/// The user who has the server's end of a connection, and is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForeignOwner(u32);

impl ForeignOwner {
    /// What to do about it.
    pub(crate) const REMEDY: &str = "if that is the gateway's user, set upstream-uid (--upstream-uid); if not, \
                                     stop that user's process, and start the gateway";
}

impl fmt::Display for ForeignOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(uid) = self;
        write!(
            f,
            "user {uid} has the upstream's port, and is neither this user nor root"
        )
    }
}

impl std::error::Error for ForeignOwner {}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr, TcpListener};

    use super::*;

    fn own_uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn sources() -> [SocketOwners; 2] {
        let without_netlink = SocketOwners {
            netlink: None,
            proc_table: ProcTable::default(),
        };
        [SocketOwners::new(), without_netlink]
    }

    /// A connection that is not accepted, from an address of each kind to a listening socket.
    fn connections() -> impl Iterator<Item = (TcpListener, TcpStream)> {
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        [
            ("127.0.0.1:0", Ipv4Addr::LOCALHOST.into()),
            ("0.0.0.0:0", Ipv4Addr::LOCALHOST.into()),
            ("[::1]:0", v6),
            ("[::]:0", v6),
            // A dual-stack socket, unless the system has changed the default.
            ("[::]:0", Ipv4Addr::LOCALHOST.into()),
            ("127.0.0.1:0", "::ffff:127.0.0.1".parse().unwrap()),
        ]
        .into_iter()
        .filter_map(|(listen, dial)| {
            // Not every machine has an IPv6 loopback.
            let listener = TcpListener::bind(listen).ok()?;
            let client = TcpStream::connect((dial, listener.local_addr().ok()?.port())).ok()?;
            Some((listener, client))
        })
    }

    #[test]
    fn the_owner_of_a_connection_is_its_process_user_from_either_source() {
        for (listener, client) in connections() {
            let (own, server) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            for owners in sources() {
                let found = owners.of_server(server, own).unwrap();
                assert_eq!(
                    found,
                    Some(own_uid()),
                    "not accepted: {listener:?} {owners:?}"
                );
            }
            let (accepted, _) = listener.accept().unwrap();
            let (peer, local) = (
                accepted.peer_addr().unwrap(),
                accepted.local_addr().unwrap(),
            );
            for owners in sources() {
                let client = owners.of_client(peer, local).unwrap().unwrap();
                assert_eq!(client.uid, own_uid(), "{listener:?} {owners:?}");
                let server = owners.of_server(server, own).unwrap();
                assert_eq!(server, Some(own_uid()), "{listener:?} {owners:?}");
            }
        }
    }

    #[test]
    fn a_socket_that_was_closed_has_no_owner_rather_than_root() {
        let (listener, client) = connections().next().unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let own = accepted.local_addr().unwrap();
        drop(client);
        for owners in sources() {
            assert_eq!(owners.of_client(peer, own).unwrap(), None, "{owners:?}");
        }
    }

    #[test]
    fn a_listening_socket_is_not_the_end_of_a_connection() {
        let (listener, client) = connections().next().unwrap();
        let listens = listener.local_addr().unwrap();
        let other = client.local_addr().unwrap();
        drop((listener.accept().unwrap(), client));
        let unused = SocketAddr::new(other.ip(), 1);
        for owners in sources() {
            assert_eq!(
                owners.of_client(listens, unused).unwrap(),
                None,
                "{owners:?}"
            );
            assert_eq!(
                owners.of_server(listens, unused).unwrap(),
                None,
                "{owners:?}"
            );
        }
    }

    #[test]
    fn an_address_pair_that_is_not_connected_has_no_owner() {
        let unused = "127.0.0.1:9".parse().unwrap();
        let local = "127.0.0.1:10".parse().unwrap();
        for owners in sources() {
            assert_eq!(owners.of_client(unused, local).unwrap(), None);
            assert_eq!(owners.of_server(unused, local).unwrap(), None);
        }
    }

    #[test]
    fn the_own_user_root_and_the_named_user_are_trusted() {
        let users = TrustedUsers {
            own: 1000,
            named: Some(7),
        };
        assert_eq!(
            [0, 7, 8, 1000].map(|uid| users.contains(uid)),
            [true, true, false, true]
        );
    }

    #[test]
    fn only_the_first_user_namespace_and_its_like_have_every_user() {
        for (map, every) in [
            ("         0          0 4294967295\n", true),
            ("0 0 65534\n65534 65534 4294901761\n", true),
            ("         0       1000          1\n", false),
            ("65534 1234 1\n", false),
            ("0 100000 65536\n", false),
            ("", false),
        ] {
            assert_eq!(maps_every_user(map), every, "{map:?}");
        }
    }
}
