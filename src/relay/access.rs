//! Access control of the relay's port: the user of the client's socket, and optionally the password
//! of the proxy URL ([RFC 9110, section 11.7]).
//!
//! It does not read requests; `request` does.
//!
//! [RFC 9110, section 11.7]: https://www.rfc-editor.org/rfc/rfc9110#section-11.7

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::{fmt, io};

use rustix::event::PollFlags;

use crate::config::Config;
use crate::control::log;
use crate::control::log::LogSource;
use crate::control::outcome::EndReason;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::crypto::random;
use crate::crypto::secret::{Secret, basic};
use crate::http::head::Fields;
use crate::net::socket_owner::{Owner, SocketOwners, TrustedUsers};
use crate::net::wait::{OVER, events_now};
#[cfg(target_os = "linux")]
use crate::sys::descendants;

/// The user name in the proxy URL. It is the same for every relay: the password alone is checked.
const USER: &str = "upstreamproxy";
/// The events of poll(2) of a connection that the client has closed or reset.
const CLOSED: PollFlags = OVER.union(PollFlags::RDHUP);

/// Decides who may use the relay's port.
#[derive(Debug)]
pub(crate) struct AccessControl {
    /// Finds the user of a connection; `None`: every user may connect, and is not known.
    owners: Option<SocketOwners>,
    trusted: TrustedUsers,
    allow_any_user: bool,
    /// Other machines may connect. This kernel does not know the users of their sockets.
    allow_remote: bool,
    /// What `Proxy-Authorization` must contain; `None`: it is not required.
    password: Option<Password>,
}

struct Password {
    header: Secret,
    userinfo: String,
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(redacted)")
    }
}

impl AccessControl {
    /// The rules that `config` requests.
    ///
    /// # Errors
    /// The system has no random bytes for a password.
    pub(super) fn new(config: &Config, source: &LogSource) -> io::Result<Self> {
        let trusted = TrustedUsers::new(None);
        let owners = if config.allow_any_user {
            // Only the shares depend on the answers, so they must be cheap.
            Some(SocketOwners::new()).filter(SocketOwners::has_netlink)
        } else {
            supported_owners(trusted, source)
        };
        let password = config.listen_credential.then(Password::new).transpose()?;
        Ok(Self {
            owners,
            trusted,
            allow_any_user: config.allow_any_user,
            allow_remote: config.allow_non_loopback,
            password,
        })
    }

    /// `user:password` for the proxy URL, if a password is required.
    pub(crate) fn userinfo(&self) -> Option<&str> {
        self.password
            .as_ref()
            .map(|password| password.userinfo.as_str())
    }

    /// Checks the user of `connection` from `peer`: this process's own or root, or the one of a
    /// process that this process has started. Returns the party to which the connection belongs;
    /// `None`: all clients are one party.
    ///
    /// # Errors
    /// A rejection for another user or an unknown one; `Abandoned` if the client has already closed
    /// its socket.
    pub(super) fn admit(
        &self,
        connection: &TcpStream,
        peer: SocketAddr,
    ) -> Result<Option<u64>, EndReason> {
        let Some(owners) = &self.owners else {
            return Ok(None);
        };
        let found = connection
            .local_addr()
            .and_then(|local| owners.of_client(peer, local));
        let may_use = |owner: &Owner| {
            self.allow_any_user || self.trusted.contains(owner.uid) || is_started_here(owner)
        };
        let detail = match found {
            Ok(Some(owner)) if may_use(&owner) => return Ok(self.party(owner.uid)),
            Ok(None) if self.allow_remote && !peer.ip().is_loopback() => {
                return Ok(self.party(network(peer.ip())));
            }
            _ if self.allow_any_user => return Ok(self.party("unknown")),
            Ok(Some(owner)) => format!("the client is user {}", owner.uid),
            // A local client whose socket does not exist any more has closed it, although its reset
            // may not have arrived yet.
            Ok(None)
                if peer.ip().to_canonical().is_loopback()
                    || events_now(connection, CLOSED).intersects(CLOSED) =>
            {
                return Err(EndReason::Abandoned);
            }
            Ok(None) => "the kernel does not know the client's socket".into(),
            Err(error) => format!("the kernel did not report the client's user: {error}"),
        };
        let what = "this proxy serves only the user who started it, and root";
        Err(Rejection::new(403, Phase::Head, what)
            .remedy("run the tool as that user, or set allow-any-user (--allow-any-user)")
            .proxy_status("http_request_denied")
            .detail(detail)
            .into())
    }

    /// The number of the party that `key` identifies. The user who started the relay, and root, are
    /// one party; it has competitors only if others may connect.
    fn party(&self, key: impl Hash) -> Option<u64> {
        (self.allow_any_user || self.allow_remote).then(|| {
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            hasher.finish()
        })
    }

    /// Whether the request has the password, if one is required.
    pub(super) fn has_password(&self, fields: &Fields) -> bool {
        let Some(password) = &self.password else {
            return true;
        };
        fields
            .one("proxy-authorization")
            .is_some_and(|value| password.header.matches(value))
    }

    /// Whether a password is required.
    pub(super) fn requires_password(&self) -> bool {
        self.password.is_some()
    }

    /// Whether these are the user name and the password, if they are required.
    pub(super) fn is_password(&self, user: &[u8], password: &[u8]) -> bool {
        let value = basic(user, password);
        let required = self.password.as_ref();
        required.is_none_or(|required| required.header.matches(value.as_bytes()))
    }

    /// The rejection of a request without the password.
    pub(super) fn challenge() -> Rejection {
        Rejection::new(407, Phase::Head, "this proxy requires a password")
            .remedy("use the proxy URL of HTTPS_PROXY, which contains it")
            .proxy_status("http_request_denied")
            .field(&("Proxy-Authenticate", "Basic realm=\"upstreamproxy\""))
    }
}

/// The source of the users of connections, if this system has one. Warns if every user can use the
/// port, or if the answers take long.
fn supported_owners(trusted: TrustedUsers, source: &LogSource) -> Option<SocketOwners> {
    let owners = SocketOwners::new();
    let supported = owners.is_supported();
    let why = if !supported {
        "this kernel does not report the users of connections"
    } else if trusted.are_ambiguous() {
        "users outside of this user namespace cannot be distinguished from this one"
    } else {
        if !owners.has_netlink() {
            log::warn!(
                target: source.target(),
                "netlink is not available: /proc/net/tcp is read for the user of each client, \
                 which costs time if this machine has many connections; permit the address \
                 family AF_NETLINK"
            );
        }
        return Some(owners);
    };
    log::warn!(
        target: source.target(),
        "{why}: every user of this machine can use the port; set \
         listen-credential (--listen-credential) to require a password"
    );
    supported.then_some(owners)
}

/// Whether a process that this process has started, directly or not, has the socket: a command that
/// root starts may change to another user.
fn is_started_here(owner: &Owner) -> bool {
    #[cfg(target_os = "linux")]
    return descendants::have_socket(owner.uid, owner.inode);
    #[cfg(not(target_os = "linux"))]
    return {
        let _ = owner;
        false
    };
}

/// The part of a machine's address that it cannot choose: all of IPv4, the first half of IPv6.
fn network(address: IpAddr) -> [u8; 8] {
    let mut network = [0; 8];
    match address.to_canonical() {
        IpAddr::V4(address) => network[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => network.copy_from_slice(&address.octets()[..8]),
    }
    network
}

impl Password {
    fn new() -> io::Result<Self> {
        let password = random::hex::<16>()?;
        Ok(Self {
            header: Secret::from_zeroizing(basic(USER, &*password)),
            userinfo: format!("{USER}:{}", *password),
        })
    }
}
