//! SOCKS5 ([RFC 1928]) with the command CONNECT, without authentication or with the relay's
//! password ([RFC 1929]).
//!
//! Without I/O, for any bytes at any segmentation. Host names are passed on; the gateway resolves
//! them. `request` reads the messages.
//!
//! [RFC 1928]: https://www.rfc-editor.org/rfc/rfc1928
//! [RFC 1929]: https://www.rfc-editor.org/rfc/rfc1929

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::control::rejection::Rejection;
use crate::http::authority::{Authority, Host};

/// The first byte of SOCKS5, and of SOCKS4, which is refused.
pub(super) const VERSION: u8 = 5;
pub(super) const VERSION_4: u8 = 4;

/// The method "no authentication required".
pub(super) const NO_AUTHENTICATION: u8 = 0;
/// The method "user name and password".
pub(super) const PASSWORD: u8 = 2;
/// The method that says that none is acceptable.
const NO_METHOD: u8 = 0xff;
/// The version of the user name and password message.
const PASSWORD_VERSION: u8 = 1;

const CONNECT: u8 = 1;
const ADDRESS_V4: u8 = 1;
const DOMAIN_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;

/// What is next in the exchange: which reply a refusal must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The client's list of methods.
    Methods,
    /// The user name and the password.
    Password,
    /// The request.
    Request,
}

/// The reply code for a failure (RFC 1928, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyCode {
    GeneralFailure = 1,
    NotAllowed = 2,
    HostUnreachable = 4,
    ConnectionRefused = 5,
    CommandNotSupported = 7,
    AddressTypeNotSupported = 8,
}

/// Why a message cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SocksError {
    #[error("the SOCKS message has a wrong version")]
    Version,
    #[error("the SOCKS command is not CONNECT")]
    Command,
    #[error("the SOCKS address type is unknown")]
    AddressType,
    #[error("the SOCKS request names no valid host and port")]
    Authority,
}

impl SocksError {
    /// The reply to the request.
    pub(super) fn reply_code(self) -> ReplyCode {
        match self {
            Self::Command => ReplyCode::CommandNotSupported,
            Self::AddressType => ReplyCode::AddressTypeNotSupported,
            Self::Version | Self::Authority => ReplyCode::GeneralFailure,
        }
    }
}

/// The message and its length, or `None` if more bytes are needed.
type Parsed<T> = Result<Option<(T, usize)>, SocksError>;

/// Parses the client's list of methods: whether it has `method`.
pub(super) fn offers(bytes: &[u8], method: u8) -> Parsed<bool> {
    if bytes.first().is_some_and(|&version| version != VERSION) {
        return Err(SocksError::Version);
    }
    Ok(counted(bytes, 1).map(|(methods, len)| (methods.contains(&method), len)))
}

/// The user name and the password of RFC 1929.
#[derive(Debug)]
pub(super) struct UserPassword<'a> {
    pub(super) user: &'a [u8],
    pub(super) password: &'a [u8],
}

/// Parses the user name and the password.
pub(super) fn user_password(bytes: &[u8]) -> Parsed<UserPassword<'_>> {
    if bytes
        .first()
        .is_some_and(|&version| version != PASSWORD_VERSION)
    {
        return Err(SocksError::Version);
    }
    let parsed = counted(bytes, 1).and_then(|(user, end)| {
        let (password, len) = counted(bytes, end)?;
        Some((UserPassword { user, password }, len))
    });
    Ok(parsed)
}

/// Parses the request: its target.
pub(super) fn target(bytes: &[u8]) -> Parsed<Authority> {
    if bytes.first().is_some_and(|&version| version != VERSION) {
        return Err(SocksError::Version);
    }
    if bytes.get(1).is_some_and(|&command| command != CONNECT) {
        return Err(SocksError::Command);
    }
    let Some(&address_type) = bytes.get(3) else {
        return Ok(None);
    };
    let address = &bytes[4..];
    let host = match address_type {
        ADDRESS_V4 => address
            .first_chunk::<4>()
            .map(|octets| (Host::Address(Ipv4Addr::from(*octets).into()), 4)),
        ADDRESS_V6 => address
            .first_chunk::<16>()
            .map(|octets| (Host::Address(Ipv6Addr::from(*octets).into()), 16)),
        DOMAIN_NAME => match counted(address, 0) {
            Some((name, len)) => Some((named(name)?, len)),
            None => None,
        },
        _ => return Err(SocksError::AddressType),
    };
    let Some((host, len)) = host else {
        return Ok(None);
    };
    let Some(port) = address.get(len..len + 2) else {
        return Ok(None);
    };
    let port = u16::from_be_bytes([port[0], port[1]]);
    if port == 0 {
        return Err(SocksError::Authority);
    }
    Ok(Some((Authority { host, port }, 4 + len + 2)))
}

/// The host of a domain name. Some clients send an address as text.
fn named(name: &[u8]) -> Result<Host, SocksError> {
    let text = std::str::from_utf8(name).map_err(|_| SocksError::Authority)?;
    let host = match text.parse::<Ipv6Addr>() {
        Ok(address) => Ok(Host::Address(address.into())),
        Err(_) => Host::parse(text),
    };
    host.map_err(|_| SocksError::Authority)
}

/// The bytes after the length at `at`, and where they end.
fn counted(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = at + 1 + usize::from(*bytes.get(at)?);
    Some((bytes.get(at + 1..end)?, end))
}

/// The reply that selects `method`.
pub(super) fn selected(method: u8) -> [u8; 2] {
    [VERSION, method]
}

/// The reply to the right password.
pub(super) const PASSWORD_ACCEPTED: [u8; 2] = [PASSWORD_VERSION, 0];

/// The reply when the tunnel is open. The address is unspecified: no socket here has it.
pub(super) const ESTABLISHED: [u8; 10] = reply(0);

const fn reply(code: u8) -> [u8; 10] {
    [VERSION, code, 0, ADDRESS_V4, 0, 0, 0, 0, 0, 0]
}

/// The reply to a request that was refused in `stage`.
pub(super) fn refused(stage: Stage, code: ReplyCode) -> Vec<u8> {
    match stage {
        Stage::Methods => selected(NO_METHOD).to_vec(),
        Stage::Password => vec![PASSWORD_VERSION, 1],
        Stage::Request => reply(code as u8).to_vec(),
    }
}

/// The reply of SOCKS4 to a refused request.
pub(super) const REFUSED_4: [u8; 8] = [0, 91, 0, 0, 0, 0, 0, 0];

/// The reply code that says most about `rejection`.
pub(super) fn code_of(rejection: &Rejection) -> ReplyCode {
    match (rejection.status, rejection.proxy_status) {
        (403, _) => ReplyCode::NotAllowed,
        (_, Some("connection_refused")) => ReplyCode::ConnectionRefused,
        (504, _) | (_, Some("destination_unavailable" | "dns_error")) => ReplyCode::HostUnreachable,
        _ => ReplyCode::GeneralFailure,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domain(name: &str, port: u16) -> Vec<u8> {
        let head = [
            VERSION,
            CONNECT,
            0,
            DOMAIN_NAME,
            u8::try_from(name.len()).unwrap(),
        ];
        [&head, name.as_bytes(), &port.to_be_bytes()].concat()
    }

    #[test]
    fn requests_name_hosts_and_addresses() {
        let v4 = [VERSION, CONNECT, 0, ADDRESS_V4, 192, 0, 2, 1, 1, 187];
        let v6 = [
            &[VERSION, CONNECT, 0, ADDRESS_V6][..],
            &[0; 15],
            &[1, 0, 80],
        ]
        .concat();
        for (bytes, authority) in [
            (v4.to_vec(), "192.0.2.1:443"),
            (v6, "[::1]:80"),
            (domain("Example.com", 22), "example.com:22"),
            (domain("192.0.2.1", 22), "192.0.2.1:22"),
            (domain("::1", 22), "[::1]:22"),
        ] {
            let more = [bytes.clone(), b"early".to_vec()].concat();
            for end in 0..bytes.len() {
                assert_eq!(target(&more[..end]), Ok(None), "{authority} {end}");
            }
            let (found, len) = target(&more).unwrap().unwrap();
            assert_eq!((found.to_string().as_str(), len), (authority, bytes.len()));
        }
    }

    #[test]
    fn other_requests_have_the_reply_that_the_rfc_names() {
        let with = |at: usize, byte: u8| {
            let mut bytes = domain("a.example", 1);
            bytes[at] = byte;
            target(&bytes).map(drop).map_err(SocksError::reply_code)
        };
        assert_eq!(with(0, 4), Err(ReplyCode::GeneralFailure));
        for bind_or_udp in [0, 2, 3, 255] {
            assert_eq!(with(1, bind_or_udp), Err(ReplyCode::CommandNotSupported));
        }
        for unknown in [0, 2, 5] {
            assert_eq!(with(3, unknown), Err(ReplyCode::AddressTypeNotSupported));
        }
        for (name, port) in [("", 1), ("a b", 1), ("a\r\n", 1), ("a", 0), ("\u{e9}", 1)] {
            assert_eq!(
                target(&domain(name, port)),
                Err(SocksError::Authority),
                "{name:?}"
            );
        }
    }

    #[test]
    fn methods_and_passwords_are_counted() {
        assert_eq!(offers(&[5, 2, 0, 2, 9], PASSWORD), Ok(Some((true, 4))));
        assert_eq!(offers(&[5, 1, 2], NO_AUTHENTICATION), Ok(Some((false, 3))));
        assert_eq!(offers(&[5, 0], NO_AUTHENTICATION), Ok(Some((false, 2))));
        assert_eq!(offers(&[5, 3, 0, 1], NO_AUTHENTICATION), Ok(None));
        let message = b"\x01\x04user\x02pw!";
        for end in 0..message.len() - 1 {
            assert!(user_password(&message[..end]).unwrap().is_none());
        }
        let (found, len) = user_password(message).unwrap().unwrap();
        assert_eq!(
            (found.user, found.password, len),
            (&b"user"[..], &b"pw"[..], 9)
        );
        assert!(user_password(b"\x05").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let request = [&[VERSION, CONNECT, 0][..], &bytes].concat();
            for bytes in [bytes, request] {
                if let Ok(Some((_, len))) = target(&bytes) {
                    prop_assert!(len <= bytes.len());
                }
                if let Ok(Some((_, len))) = user_password(&bytes) {
                    prop_assert!(len <= bytes.len());
                }
            }
        }
    }
}
