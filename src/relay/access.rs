//! Who may use the relay's port: this user and root, by the owner of the socket at the other end; and, where it is switched
//! on, whoever knows the password of the proxy URL ([RFC 9110, section 11.7]).
//!
//! [RFC 9110, section 11.7]: https://www.rfc-editor.org/rfc/rfc9110#section-11.7

use std::net::TcpStream;
use std::{fmt, io};

use super::peer_uid::PeerUid;
use crate::config::Config;
use crate::control::phase::Phase;
use crate::crypto::random;
use crate::crypto::secret::{Credentials, Secret};
use crate::http::head::Fields;
use crate::http::reply::Reply;

/// The user part of the proxy URL; nobody is told apart by it.
const USER: &str = "upstreamproxy";
const ROOT: u32 = 0;

/// The rules at the door.
#[derive(Debug)]
pub(crate) struct AccessControl {
    /// Who the kernel says is there; `None`: everybody may come.
    owners: Option<PeerUid>,
    /// Other machines may come, whose sockets no table of ours holds.
    from_afar: bool,
    own_uid: u32,
    /// What `Proxy-Authorization` must be; `None`: nothing is asked for.
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
    /// The rules that `config` asks for.
    ///
    /// # Errors
    /// No randomness for a password.
    pub(crate) fn new(config: &Config) -> io::Result<Self> {
        let owners = if config.allow_any_user {
            None
        } else {
            Some(PeerUid::new())
        };
        let owners = owners.filter(|owners| {
            let can_tell = owners.can_tell();
            if !can_tell {
                log::warn!("this kernel does not tell who connects: every user of this machine can use the port; --listen-credential helps");
            }
            can_tell
        });
        let password = config.listen_credential.then(Password::new).transpose()?;
        let own_uid = rustix::process::geteuid().as_raw();
        Ok(Self {
            owners,
            from_afar: config.allow_non_loopback,
            own_uid,
            password,
        })
    }

    /// `user:password` for the proxy URL, where one is asked for.
    pub(crate) fn userinfo(&self) -> Option<&str> {
        self.password
            .as_ref()
            .map(|password| password.userinfo.as_str())
    }

    /// Whether the user at the other end may use the port; else who it was, for the log.
    ///
    /// # Errors
    /// Another user, or one who has left already and so cannot be told from any other.
    pub(super) fn admit(&self, connection: &TcpStream) -> Result<(), String> {
        let Some(owners) = &self.owners else {
            return Ok(());
        };
        let asked = connection
            .peer_addr()
            .and_then(|peer| Ok((peer, owners.of(peer, connection.local_addr()?)?)));
        match asked {
            Ok((_, Some(uid))) if uid == self.own_uid || uid == ROOT => Ok(()),
            Ok((_, Some(uid))) => Err(format!("the connection is of user {uid}")),
            Ok((peer, None)) if self.from_afar && !peer.ip().is_loopback() => Ok(()),
            Ok((_, None)) => Err("the connection was closed before its user was known".into()),
            Err(error) => Err(format!(
                "the kernel did not tell whose connection it is: {error}"
            )),
        }
    }

    /// What another user is told.
    pub(super) fn stranger() -> Reply {
        Reply::new(403, "this proxy serves the user who started it and nobody else; --allow-any-user lifts that")
            .because("http_request_denied", Phase::Head)
    }

    /// Whether the request shows the password, where one is asked for.
    pub(super) fn knows_password(&self, fields: &Fields) -> bool {
        let Some(password) = &self.password else {
            return true;
        };
        fields
            .one("proxy-authorization")
            .is_some_and(|value| password.header.matches(value))
    }

    /// What a client without the password is told; the connection stays open for its next try.
    pub(super) fn challenge() -> Reply {
        Reply::new(
            407,
            "this proxy asks for the password that is in the HTTPS_PROXY it set",
        )
        .because("http_request_denied", Phase::Head)
        .with("Proxy-Authenticate", "Basic realm=\"upstreamproxy\"")
    }
}

impl Password {
    fn new() -> io::Result<Self> {
        let token = random::hex::<16>()?;
        let userinfo = format!("{USER}:{}", *token);
        let credentials = Credentials {
            session_id: USER.into(),
            token: Secret::from_zeroizing(token),
        };
        Ok(Self {
            header: Secret::from_zeroizing(credentials.basic()),
            userinfo,
        })
    }
}
