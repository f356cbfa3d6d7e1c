//! Three kinds of TLS `ClientHello`, and the first record of a server's response to one.
//!
//! A hello consists of recorded extensions (`hello/*.bin`), a `server_name` and fresh random bytes.
//! No handshake can be finished with one: the private keys of the recorded key shares are unknown.
//! The format is [RFC 8446, section 4.1.2](https://www.rfc-editor.org/rfc/rfc8446#section-4.1.2).

use std::{fmt, io};

use rustls::AlertDescription;

use crate::crypto::random;
use crate::http::authority::Host;

/// Content and message types ([RFC 8446, appendix
/// B](https://www.rfc-editor.org/rfc/rfc8446#appendix-B)).
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// Extension numbers: `server_name` ([RFC 6066](https://www.rfc-editor.org/rfc/rfc6066#section-3))
/// and `padding` ([RFC 7685](https://www.rfc-editor.org/rfc/rfc7685)).
const SERVER_NAME: u16 = 0;
const PADDING: u16 = 21;

/// The size of the post-quantum hello: that of browsers, which add tickets and decoys.
const LARGE: usize = 1750;
/// The headers of the record and of the message.
const HEADERS: usize = 5 + 4;

/// The cipher suites of TLS 1.3 and the usual ones of TLS 1.2.
const SUITES: [u16; 9] = [
    0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8,
];

/// The random of a `ServerHello` that is a `HelloRetryRequest`
/// ([RFC 8446, section 4.1.3](https://www.rfc-editor.org/rfc/rfc8446#section-4.1.3)).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// A kind of `ClientHello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HelloKind {
    /// A few hundred bytes, with an X25519 key share.
    Ordinary,
    /// With an X25519MLKEM768 key share
    /// ([draft-ietf-tls-ecdhe-mlkem](https://datatracker.ietf.org/doc/draft-ietf-tls-ecdhe-mlkem/)):
    /// more than one TCP segment.
    PostQuantum,
    /// With a GREASE `encrypted_client_hello`
    /// ([RFC 9849, section 6.2](https://www.rfc-editor.org/rfc/rfc9849#section-6.2)).
    Ech,
}

impl HelloKind {
    /// The extensions but `server_name` and padding.
    fn recorded_extensions(self) -> &'static [u8] {
        match self {
            Self::Ordinary => include_bytes!("hello/ordinary.bin"),
            Self::PostQuantum => include_bytes!("hello/post_quantum.bin"),
            Self::Ech => include_bytes!("hello/ech.bin"),
        }
    }
}

/// A hello of this kind to `host`.
///
/// # Errors
/// The kernel gives no random bytes.
pub(super) fn client_hello(kind: HelloKind, host: &Host) -> io::Result<Vec<u8>> {
    let mut random = [0; 64];
    random::fill(&mut random)?;
    let (random, session_id) = random.split_at(32);
    let mut extensions = Vec::new();
    // RFC 6066, section 3, forbids literal addresses here.
    if let Host::Name(name) = host {
        let entry = [&[0][..], &long(name.as_bytes())].concat();
        extensions.extend(extension(SERVER_NAME, &long(&entry)));
    }
    extensions.extend_from_slice(kind.recorded_extensions());
    let body = |extensions: &[u8]| {
        [
            &[3, 3][..],
            random,
            &short(session_id),
            &long(&SUITES.map(u16::to_be_bytes).concat()),
            // No compression.
            &short(&[0]),
            &long(extensions),
        ]
        .concat()
    };
    if kind == HelloKind::PostQuantum {
        let unpadded = HEADERS + body(&extensions).len() + extension(PADDING, &[]).len();
        let padding = vec![0; LARGE.saturating_sub(unpadded)];
        extensions.extend(extension(PADDING, &padding));
    }
    let body = body(&extensions);
    let length = (body.len() as u32).to_be_bytes();
    let message = [&[CLIENT_HELLO][..], &length[1..], &body].concat();
    Ok([&[HANDSHAKE, 3, 1][..], &long(&message)].concat())
}

fn extension(number: u16, data: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes()[..], &long(data)].concat()
}

/// `bytes` with a length prefix of one byte. Everything built here is short enough.
fn short(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8][..], bytes].concat()
}

/// `bytes` with a length prefix of two bytes.
fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// The first record of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerResponse {
    /// The handshake continues.
    ServerHello,
    /// The handshake continues with another key share.
    HelloRetryRequest,
    /// The server refuses.
    Alert(AlertDescription),
    /// The server does not speak TLS.
    NoTls,
}

impl ServerResponse {
    /// Reads the beginning of a response; `None` if more bytes are needed.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let known = |at: usize, expected: u8| bytes.get(at).is_none_or(|&byte| byte == expected);
        match *bytes.first()? {
            _ if !known(1, 3) => Some(Self::NoTls),
            // After the record header (5 bytes): level and description.
            ALERT => Some(Self::Alert((*bytes.get(6)?).into())),
            // After the record and message headers (9 bytes): version and random.
            HANDSHAKE if known(5, SERVER_HELLO) => Some(match bytes.get(11..43)? {
                random if random == RETRY => Self::HelloRetryRequest,
                _ => Self::ServerHello,
            }),
            _ => Some(Self::NoTls),
        }
    }
}

impl fmt::Display for ServerResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServerHello => f.write_str("ServerHello"),
            Self::HelloRetryRequest => f.write_str("HelloRetryRequest"),
            Self::Alert(description) => write!(f, "alert {description:?}"),
            Self::NoTls => f.write_str("no TLS"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::server::Acceptor;

    const X25519_MLKEM768: u16 = 0x11ec;

    fn hello(kind: HelloKind) -> Vec<u8> {
        client_hello(kind, &Host::parse("origin.test").unwrap()).unwrap()
    }

    #[test]
    fn rustls_reads_every_kind_and_its_name() {
        for kind in [HelloKind::Ordinary, HelloKind::PostQuantum, HelloKind::Ech] {
            let bytes = hello(kind);
            let mut acceptor = Acceptor::default();
            acceptor.read_tls(&mut bytes.as_slice()).unwrap();
            let accepted = acceptor.accept().unwrap().expect("a whole hello");
            let seen = accepted.client_hello();
            assert_eq!(seen.server_name(), Some("origin.test"), "{kind:?}");
            let groups: Vec<u16> = seen
                .named_groups()
                .unwrap()
                .iter()
                .map(|&g| g.into())
                .collect();
            assert_eq!(
                groups.contains(&X25519_MLKEM768),
                kind == HelloKind::PostQuantum
            );
        }
    }

    #[test]
    fn the_sizes_are_those_of_todays_clients() {
        assert!((200..400).contains(&hello(HelloKind::Ordinary).len()));
        assert_eq!(hello(HelloKind::PostQuantum).len(), LARGE);
        assert!((500..800).contains(&hello(HelloKind::Ech).len()));
        let address = Host::parse("192.0.2.1").unwrap();
        assert_eq!(
            client_hello(HelloKind::PostQuantum, &address)
                .unwrap()
                .len(),
            LARGE
        );
    }

    #[test]
    fn responses_are_distinguished_and_incomplete_ones_need_more() {
        let alert = [21, 3, 3, 0, 2, 2, 40];
        let refused = ServerResponse::Alert(AlertDescription::HandshakeFailure);
        assert_eq!(ServerResponse::read(&alert), Some(refused));
        assert_eq!(refused.to_string(), "alert HandshakeFailure");
        let hello = [&[22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3][..], &[7; 32]].concat();
        assert_eq!(
            ServerResponse::read(&hello),
            Some(ServerResponse::ServerHello)
        );
        let retry = [&hello[..11], &RETRY].concat();
        assert_eq!(
            ServerResponse::read(&retry),
            Some(ServerResponse::HelloRetryRequest)
        );
        for short in [&hello[..42], &hello[..1], &alert[..6], &[]] {
            assert_eq!(ServerResponse::read(short), None, "{short:?}");
        }
        for other in [
            &b"HTTP/1.1 400"[..],
            b"SSH",
            &[22, 9],
            &[22, 3, 3, 0, 9, 11],
        ] {
            assert_eq!(
                ServerResponse::read(other),
                Some(ServerResponse::NoTls),
                "{other:?}"
            );
        }
    }
}
