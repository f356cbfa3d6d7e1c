//! TLS `ClientHello`s as today's clients send them, built by hand so that their size and their extensions are known, and
//! the first record of an answer to one. Bytes only; nothing here could finish a handshake.
//!
//! The form is [RFC 8446, section 4.1.2](https://www.rfc-editor.org/rfc/rfc8446#section-4.1.2).

use std::{fmt, io};

use rustls::AlertDescription;

use crate::crypto::random;
use crate::http::authority::Host;

/// Records and messages ([RFC 8446, appendix B](https://www.rfc-editor.org/rfc/rfc8446#appendix-B)).
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// Groups: a hybrid of ML-KEM-768 and X25519
/// ([draft-ietf-tls-ecdhe-mlkem](https://datatracker.ietf.org/doc/draft-ietf-tls-ecdhe-mlkem/)), and the classical ones.
const X25519_MLKEM768: u16 = 0x11ec;
const X25519: u16 = 0x001d;
const SECP256R1: u16 = 0x0017;

/// What ML-KEM counts modulo ([FIPS 203, section 2.4](https://doi.org/10.6028/NIST.FIPS.203)).
const MLKEM_Q: u16 = 3329;
/// The numbers in an encapsulation key of ML-KEM-768: three polynomials of 256.
const MLKEM_COEFFICIENTS: usize = 3 * 256;

/// What the padded hello comes to, as browsers' do with their tickets and decoys.
const LARGE: usize = 1750;
/// What the encrypted inner hello of a browser comes to: a multiple of 32, and the tag of its cipher.
const ECH_PAYLOAD: usize = 224 + 16;

/// The random of a `ServerHello` that is a `HelloRetryRequest`
/// ([RFC 8446, section 4.1.3](https://www.rfc-editor.org/rfc/rfc8446#section-4.1.3)).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// A kind of `ClientHello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A few hundred bytes, as for twenty years.
    Ordinary,
    /// With a post-quantum key share: more than one TCP segment.
    PostQuantum,
    /// With an `encrypted_client_hello`, one that says nothing (GREASE).
    Ech,
}

/// A hello of this kind to `host`.
pub(super) fn client_hello(kind: Kind, host: &Host) -> Result<Vec<u8>, io::Error> {
    let suites = [
        0x1301_u16, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8,
    ];
    let mut extensions = extensions(kind, host)?;
    let head = |extensions: &[u8]| -> Result<Vec<u8>, io::Error> {
        Ok([
            &[3, 3][..],
            &random(32)?,
            &short(&random(32)?),
            &long(&suites.map(u16::to_be_bytes).concat()),
            // No compression.
            &short(&[0]),
            &long(extensions),
        ]
        .concat())
    };
    if kind == Kind::PostQuantum {
        // RFC 7685: an extension of zeros. Before it stand the record's header, the message's, and its own.
        let without = 5 + 4 + head(&extensions)?.len() + 4;
        let zeros = vec![0; LARGE.saturating_sub(without)];
        extensions.extend(extension(21, &zeros));
    }
    let body = head(&extensions)?;
    let length = (body.len() as u32).to_be_bytes();
    let message = [&[CLIENT_HELLO][..], &length[1..], &body].concat();
    Ok([&[HANDSHAKE, 3, 1][..], &long(&message)].concat())
}

fn extensions(kind: Kind, host: &Host) -> Result<Vec<u8>, io::Error> {
    let mut all = Vec::new();
    // RFC 6066, section 3: "Literal IPv4 and IPv6 addresses are not permitted" here.
    if let Host::Name(name) = host {
        let entry = [&[0][..], &long(name.as_bytes())].concat();
        all.extend(extension(0, &long(&entry)));
    }
    // extended_master_secret, renegotiation_info, ec_point_formats
    all.extend(extension(23, &[]));
    all.extend(extension(0xff01, &[0]));
    all.extend(extension(11, &short(&[0])));
    let mut groups = vec![X25519, SECP256R1];
    let mut shares = share(X25519, &random(32)?);
    if kind == Kind::PostQuantum {
        groups.insert(0, X25519_MLKEM768);
        // "The client's key_exchange value is the concatenation of the client's ML-KEM-768 encapsulation key and the
        // client's X25519 ephemeral share": 1184 and 32 bytes.
        let hybrid = [encapsulation_key()?, random(32)?].concat();
        shares = [share(X25519_MLKEM768, &hybrid), shares].concat();
    }
    let groups: Vec<u8> = groups.into_iter().flat_map(u16::to_be_bytes).collect();
    all.extend(extension(10, &long(&groups)));
    let signatures = [
        0x0403_u16, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601,
    ];
    all.extend(extension(
        13,
        &long(&signatures.map(u16::to_be_bytes).concat()),
    ));
    all.extend(extension(
        16,
        &long(&[short(b"h2"), short(b"http/1.1")].concat()),
    ));
    // supported_versions: TLS 1.3 and 1.2; psk_key_exchange_modes: with (EC)DHE
    all.extend(extension(43, &short(&[3, 4, 3, 3])));
    all.extend(extension(45, &short(&[1])));
    all.extend(extension(51, &long(&shares)));
    if kind == Kind::Ech {
        all.extend(extension(0xfe0d, &grease_ech()?));
    }
    Ok(all)
}

/// An outer `encrypted_client_hello` that nobody can decrypt
/// ([RFC 9849, section 6.2](https://www.rfc-editor.org/rfc/rfc9849#section-6.2)).
fn grease_ech() -> Result<Vec<u8>, io::Error> {
    Ok([
        // outer; HKDF-SHA256 and AES-128-GCM
        &[0, 0, 1, 0, 1][..],
        // The number of the server's configuration, and the encapsulated key of X25519.
        &random(1)?,
        &long(&random(32)?),
        &long(&random(ECH_PAYLOAD)?),
    ]
    .concat())
}

/// A key that passes the check of FIPS 203, section 7.2, every number in it being below q; whose secret nobody knows.
fn encapsulation_key() -> Result<Vec<u8>, io::Error> {
    let mut key = Vec::with_capacity(MLKEM_COEFFICIENTS * 3 / 2 + 32);
    // Two numbers of 12 bits in three bytes, the lower bits first.
    for four in random(MLKEM_COEFFICIENTS * 2)?.chunks_exact(4) {
        let number = |at: usize| {
            let bytes = [at, at + 1].map(|at| four.get(at).copied().unwrap_or_default());
            u32::from(u16::from_be_bytes(bytes) % MLKEM_Q)
        };
        let pair = number(0) | number(2) << 12;
        key.extend_from_slice(&pair.to_le_bytes()[..3]);
    }
    key.extend(random(32)?);
    Ok(key)
}

fn random(length: usize) -> Result<Vec<u8>, io::Error> {
    let mut bytes = vec![0; length];
    random::fill(&mut bytes)?;
    Ok(bytes)
}

fn share(group: u16, key: &[u8]) -> Vec<u8> {
    [&group.to_be_bytes()[..], &long(key)].concat()
}

fn extension(number: u16, data: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes()[..], &long(data)].concat()
}

/// `bytes` behind their length in one byte. What is built here is shorter than that can say.
fn short(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8][..], bytes].concat()
}

/// `bytes` behind their length in two bytes.
fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// What a server says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It goes on with the handshake.
    ServerHello,
    /// It goes on, and wants another key share first.
    HelloRetryRequest,
    /// It does not.
    Alert(AlertDescription),
    /// It speaks no TLS.
    NoTls,
}

impl Answer {
    /// Reads the beginning of an answer; `None` when more bytes are needed.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let known = |at: usize, expected: u8| bytes.get(at).is_none_or(|&byte| byte == expected);
        match *bytes.first()? {
            _ if !known(1, 3) => Some(Self::NoTls),
            // Behind the record's header of 5 bytes: level and description.
            ALERT => Some(Self::Alert((*bytes.get(6)?).into())),
            // Behind it and the message's header of 4: the version and the random.
            HANDSHAKE if known(5, SERVER_HELLO) => Some(match bytes.get(11..43)? {
                random if random == RETRY => Self::HelloRetryRequest,
                _ => Self::ServerHello,
            }),
            _ => Some(Self::NoTls),
        }
    }
}

impl fmt::Display for Answer {
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

    fn hello(kind: Kind) -> Vec<u8> {
        client_hello(kind, &Host::parse("origin.test").unwrap()).unwrap()
    }

    #[test]
    fn rustls_reads_every_kind_and_its_name() {
        for kind in [Kind::Ordinary, Kind::PostQuantum, Kind::Ech] {
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
            assert_eq!(groups.contains(&X25519_MLKEM768), kind == Kind::PostQuantum);
        }
    }

    #[test]
    fn the_sizes_are_those_of_todays_clients() {
        assert!((200..400).contains(&hello(Kind::Ordinary).len()));
        assert_eq!(hello(Kind::PostQuantum).len(), LARGE);
        assert!((500..800).contains(&hello(Kind::Ech).len()));
        let address = Host::parse("192.0.2.1").unwrap();
        assert_eq!(
            client_hello(Kind::PostQuantum, &address).unwrap().len(),
            LARGE
        );
    }

    #[test]
    fn the_encapsulation_key_has_its_length_and_no_number_from_q_on() {
        let key = encapsulation_key().unwrap();
        assert_eq!(key.len(), 1184);
        for three in key[..1152].chunks_exact(3) {
            let low = u16::from(three[0]) | u16::from(three[1] & 0xf) << 8;
            let high = u16::from(three[1] >> 4) | u16::from(three[2]) << 4;
            assert!(low < MLKEM_Q && high < MLKEM_Q);
        }
    }

    #[test]
    fn answers_are_told_apart_and_short_ones_wait_for_more() {
        let alert = [21, 3, 3, 0, 2, 2, 40];
        let refused = Answer::Alert(AlertDescription::HandshakeFailure);
        assert_eq!(Answer::read(&alert), Some(refused));
        assert_eq!(refused.to_string(), "alert HandshakeFailure");
        let hello = [&[22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3][..], &[7; 32]].concat();
        assert_eq!(Answer::read(&hello), Some(Answer::ServerHello));
        let retry = [&hello[..11], &RETRY].concat();
        assert_eq!(Answer::read(&retry), Some(Answer::HelloRetryRequest));
        for short in [&hello[..42], &hello[..1], &alert[..6], &[]] {
            assert_eq!(Answer::read(short), None, "{short:?}");
        }
        for other in [
            &b"HTTP/1.1 400"[..],
            b"SSH",
            &[22, 9],
            &[22, 3, 3, 0, 9, 11],
        ] {
            assert_eq!(Answer::read(other), Some(Answer::NoTls), "{other:?}");
        }
    }
}
