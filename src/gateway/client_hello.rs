//! What a client's first bytes are: the beginning of a TLS handshake, or something that is passed through untouched.
//!
//! Pure and total: any bytes give an answer, without a socket. It reads a `ClientHello` for its server name and its ALPN
//! list and takes part in no handshake; whether the name is the right one is the session's to say (`manual/protocol.md`, Interception).

use rustls::server::Acceptor;

/// The most bytes on the wire that a `ClientHello` may take: what rustls buffers while it joins one handshake message, so a
/// longer one could not be answered anyway. Hellos with post-quantum key shares are about 2 KiB.
pub(crate) const HELLO_LIMIT: usize = 0xffff;
/// The most records that a `ClientHello` may be spread over. Clients use one, some split it on purpose into a few; joining
/// thousands of one-byte records would cost time that grows with their square.
const RECORD_LIMIT: usize = 1024;
/// `TLSPlaintext.length` "MUST NOT exceed 2^14 bytes" ([RFC 8446, section 5.1]).
///
/// [RFC 8446, section 5.1]: https://www.rfc-editor.org/rfc/rfc8446#section-5.1
const FRAGMENT_LIMIT: u16 = 1 << 14;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const CONTENT_ALERT: u8 = 21;
const CONTENT_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// What the bytes that a client has sent so far are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FirstBytes {
    /// The beginning of a `ClientHello`; more is needed to read it.
    NeedMore,
    /// Not TLS, and no more bytes will make it so.
    NotTls,
    /// A `ClientHello`.
    Hello(ClientHello),
    /// TLS, but a `ClientHello` that nobody can answer.
    Broken {
        /// The alert to send before the end, ready for the wire.
        alert: Vec<u8>,
        /// What is wrong with it, for the log.
        reason: String,
    },
}

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientHello {
    /// The server name: lower case, no final dot. `None` also where a client put an address there, which is none.
    pub(crate) sni: Option<String>,
    /// The protocols offered, in the client's order.
    pub(crate) alpn: Vec<Vec<u8>>,
}

/// Reads what has come so far, from its first byte; what comes behind the hello does not matter.
///
/// It may be called for each byte that comes: until the hello is whole it only walks over the record headers.
pub(crate) fn read(bytes: &[u8]) -> FirstBytes {
    if !may_begin_a_hello(bytes) {
        return FirstBytes::NotTls;
    }
    match extent(bytes) {
        Extent::Open => FirstBytes::NeedMore,
        Extent::Whole(hello) => parse(hello),
        Extent::Broken { alert, reason } => broken(alert, reason),
    }
}

/// A fatal alert as a record of its own, for a client that is refused before the handshake has keys ([RFC 8446, section 6]).
///
/// [RFC 8446, section 6]: https://www.rfc-editor.org/rfc/rfc8446#section-6
pub(crate) fn alert(description: u8) -> [u8; 7] {
    const FATAL: u8 = 2;
    // The version is TLS 1.2's for every version since (RFC 8446, section 5.1).
    [CONTENT_ALERT, 3, 3, 0, 2, FATAL, description]
}

/// Alert descriptions of [RFC 8446, section 6], those that the gateway sends.
///
/// [RFC 8446, section 6]: https://www.rfc-editor.org/rfc/rfc8446#section-6
pub(crate) mod description {
    /// A record of this kind has no place here.
    pub(crate) const UNEXPECTED_MESSAGE: u8 = 10;
    /// A record is longer than records may be.
    pub(crate) const RECORD_OVERFLOW: u8 = 22;
    /// The two sides have no common ground.
    pub(crate) const HANDSHAKE_FAILURE: u8 = 40;
    /// The target's certificate is wrong.
    pub(crate) const BAD_CERTIFICATE: u8 = 42;
    /// The target's certificate has expired or is not yet valid.
    pub(crate) const CERTIFICATE_EXPIRED: u8 = 45;
    /// Nobody whom we trust signed the target's certificate.
    pub(crate) const UNKNOWN_CA: u8 = 48;
    /// The message cannot be read.
    pub(crate) const DECODE_ERROR: u8 = 50;
    /// A fault of ours.
    pub(crate) const INTERNAL_ERROR: u8 = 80;
    /// The server name is not the CONNECT host.
    pub(crate) const UNRECOGNIZED_NAME: u8 = 112;
}

/// Whether a record with the beginning of a `ClientHello` can begin like this, however few the bytes are.
fn may_begin_a_hello(bytes: &[u8]) -> bool {
    let length = bytes.get(3..RECORD_HEADER).and_then(big_endian);
    let fits = |(at, &byte): (usize, &u8)| match at {
        0 => byte == CONTENT_HANDSHAKE,
        1 => byte == 3,
        // The third byte "MUST be ignored for all purposes" (RFC 8446, section 5.1), and there are servers that do so.
        3 => u16::from(byte) <= FRAGMENT_LIMIT >> 8,
        // An empty record is no way round: some servers skip it and take the hello behind it.
        5 => byte == CLIENT_HELLO || length == Some(0),
        _ => true,
    };
    let begins = bytes.iter().take(RECORD_HEADER + 1).enumerate().all(fits);
    begins && length.is_none_or(|length| length <= usize::from(FRAGMENT_LIMIT))
}

/// How far the `ClientHello` at the beginning of some bytes reaches.
enum Extent<'a> {
    /// Beyond them.
    Open,
    /// These are the records that it lies in.
    Whole(&'a [u8]),
    /// It will never be one.
    Broken { alert: u8, reason: &'static str },
}

/// Walks over the records until the handshake message that the first one begins is complete.
fn extent(bytes: &[u8]) -> Extent<'_> {
    let broken = |alert, reason| Extent::Broken { alert, reason };
    let too_large = broken(description::DECODE_ERROR, "a ClientHello over 64 KiB");
    let mut message = [0; HANDSHAKE_HEADER];
    let mut joined = 0;
    let mut end = 0;
    for _ in 0..RECORD_LIMIT {
        let rest = bytes.get(end..).unwrap_or_default();
        if end + RECORD_HEADER > HELLO_LIMIT {
            return too_large;
        }
        let Some((header, rest)) = rest.split_first_chunk::<RECORD_HEADER>() else {
            return Extent::Open;
        };
        let [content, major, _, high, low] = *header;
        let length = u16::from_be_bytes([high, low]);
        if content != CONTENT_HANDSHAKE || major != 3 {
            // "Handshake messages MUST NOT be interleaved with other record types" (RFC 8446, section 5.1).
            return broken(
                description::UNEXPECTED_MESSAGE,
                "another record inside a ClientHello",
            );
        }
        if length > FRAGMENT_LIMIT {
            return broken(description::RECORD_OVERFLOW, "a record over 16 KiB");
        }
        if length == 0 {
            // "Implementations MUST NOT send zero-length fragments of Handshake types" (the same section).
            return broken(description::DECODE_ERROR, "an empty handshake record");
        }
        let length = usize::from(length);
        end += RECORD_HEADER + length;
        if end > HELLO_LIMIT {
            return too_large;
        }
        let fragment = rest.get(..length).unwrap_or(rest);
        for (to, from) in message.iter_mut().skip(joined).zip(fragment) {
            *to = *from;
        }
        let present = joined + fragment.len();
        joined += length;
        if present < HANDSHAKE_HEADER {
            continue;
        }
        let [_, size @ ..] = message;
        let whole = HANDSHAKE_HEADER + big_endian(&size).unwrap_or(usize::MAX - HANDSHAKE_HEADER);
        if whole + RECORD_HEADER > HELLO_LIMIT {
            return too_large;
        }
        if joined >= whole {
            return bytes.get(..end).map_or(Extent::Open, Extent::Whole);
        }
    }
    broken(
        description::DECODE_ERROR,
        "a ClientHello in over a thousand records",
    )
}

/// The number that some bytes are, the most significant first.
fn big_endian(bytes: &[u8]) -> Option<usize> {
    bytes.iter().try_fold(0_usize, |n, &byte| {
        Some(n.checked_mul(256)? + usize::from(byte))
    })
}

/// Lets rustls read the records that hold a whole `ClientHello`.
fn parse(mut records: &[u8]) -> FirstBytes {
    let mut acceptor = Acceptor::default();
    while !records.is_empty() {
        if !matches!(acceptor.read_tls(&mut records), Ok(1..)) {
            break;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let protocols = hello.alpn().into_iter().flatten();
                return FirstBytes::Hello(ClientHello {
                    sni: hello.server_name().map(normal_name),
                    alpn: protocols.map(<[u8]>::to_vec).collect(),
                });
            }
            Err((error, mut to_send)) => {
                let mut alert = Vec::new();
                return match to_send.write_all(&mut alert) {
                    Ok(()) if !alert.is_empty() => FirstBytes::Broken {
                        alert,
                        reason: error.to_string(),
                    },
                    _ => broken(description::DECODE_ERROR, &error.to_string()),
                };
            }
        }
    }
    broken(
        description::DECODE_ERROR,
        "a ClientHello that ends in its middle",
    )
}

/// Names are compared without regard to case; the final dot is not part of them on the wire, and some clients send it.
fn normal_name(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn broken(description: u8, reason: &str) -> FirstBytes {
    FirstBytes::Broken {
        alert: alert(description).to_vec(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use rustls_pki_types::ServerName;

    use super::*;

    /// The first flight of a rustls client: `fragment` is the most bytes of a record, header and all.
    fn hello_of(server: &'static str, alpn: &[&[u8]], fragment: Option<usize>) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(crate::crypto::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config.max_fragment_size = fragment;
        let name = ServerName::try_from(server).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// Handshake records of `fragment` bytes each that hold `message`.
    fn records(message: &[u8], fragment: usize) -> Vec<u8> {
        let record = |part: &[u8]| {
            let [high, low] = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[CONTENT_HANDSHAKE, 3, 1, high, low], part].concat()
        };
        message.chunks(fragment).flat_map(record).collect()
    }

    /// A `ClientHello` with `count` ALPN names of 250 bytes, without record headers.
    fn large_message(count: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
        let name = |n: usize| format!("{n:0250}").into_bytes();
        let names: Vec<_> = (0..count).map(name).collect();
        let alpn: Vec<_> = names.iter().map(Vec::as_slice).collect();
        let wire = hello_of("large.example", &alpn, None);
        let mut message = Vec::new();
        let mut rest = wire.as_slice();
        while let Some((header, tail)) = rest.split_first_chunk::<RECORD_HEADER>() {
            let (part, tail) = tail.split_at(big_endian(&header[3..]).unwrap());
            message.extend_from_slice(part);
            rest = tail;
        }
        (message, names)
    }

    fn alert_in(first: &FirstBytes) -> u8 {
        let FirstBytes::Broken { alert, .. } = first else {
            panic!("{first:?}");
        };
        assert_eq!(alert[..6], [21, 3, 3, 0, 2, 2], "{alert:?}");
        alert[6]
    }

    #[test]
    fn reads_the_name_and_the_protocols_of_a_hello() {
        let bytes = hello_of("Registry.Example", &[b"h2", b"http/1.1"], None);
        let expected = ClientHello {
            sni: Some("registry.example".to_owned()),
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        assert_eq!(read(&bytes), FirstBytes::Hello(expected));
    }

    #[test]
    fn a_client_of_an_address_sends_no_name_and_without_protocols_there_are_none() {
        let hello = FirstBytes::Hello(ClientHello::default());
        assert_eq!(read(&hello_of("192.0.2.1", &[], None)), hello);
        assert_eq!(read(&hello_of("::1", &[], None)), hello);
    }

    #[test]
    fn every_prefix_of_a_hello_needs_more_in_whatever_records_it_comes() {
        for fragment in [None, Some(32), Some(33), Some(100)] {
            let bytes = hello_of("registry.example", &[b"h2"], fragment);
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), FirstBytes::NeedMore, "{end}");
            }
            assert!(matches!(read(&bytes), FirstBytes::Hello(_)));
        }
    }

    #[test]
    fn every_way_to_cut_a_hello_into_records_reads_the_same() {
        let (message, names) = large_message(2);
        for fragment in 1..=message.len() {
            let bytes = records(&message, fragment);
            let FirstBytes::Hello(hello) = read(&bytes) else {
                panic!("{fragment}: {:?}", read(&bytes));
            };
            assert_eq!(hello.sni.as_deref(), Some("large.example"));
            assert_eq!(hello.alpn, names);
            assert_eq!(read(&bytes[..bytes.len() - 1]), FirstBytes::NeedMore);
        }
    }

    #[test]
    fn reads_hellos_of_post_quantum_size_and_up_to_the_limit() {
        for count in [8, 65, 66, 130, 259] {
            let (message, names) = large_message(count);
            let bytes = records(&message, usize::from(FRAGMENT_LIMIT));
            assert!(message.len() > count * 250 && bytes.len() <= HELLO_LIMIT);
            let FirstBytes::Hello(hello) = read(&bytes) else {
                panic!("{count}: {:?}", read(&bytes));
            };
            assert_eq!(hello.alpn, names);
            for end in (0..bytes.len()).step_by(997) {
                assert_eq!(read(&bytes[..end]), FirstBytes::NeedMore, "{end}");
            }
        }
    }

    #[test]
    fn what_rustls_would_not_buffer_is_refused_as_soon_as_it_is_announced() {
        let claims = |size: u32| {
            let [_, size @ ..] = size.to_be_bytes();
            records(&[&[CLIENT_HELLO], size.as_slice()].concat(), 4)
        };
        assert_eq!(read(&claims(60_000)), FirstBytes::NeedMore);
        let refused = read(&claims(0xffff));
        assert_eq!(alert_in(&refused), description::DECODE_ERROR);
        let (message, _) = large_message(259);
        let refused = read(&records(&message, 64));
        assert_eq!(alert_in(&refused), description::DECODE_ERROR);
    }

    #[test]
    fn thousands_of_tiny_records_are_refused() {
        let (message, _) = large_message(8);
        let refused = read(&records(&message, 1));
        assert_eq!(alert_in(&refused), description::DECODE_ERROR);
    }

    #[test]
    fn other_protocols_are_told_from_tls_by_their_first_bytes() {
        for (bytes, needed) in [
            (b"SSH-2.0-OpenSSH_9.7\r\n".as_slice(), 1),
            (b"GET / HTTP/1.1\r\n\r\n", 1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1),
            (b"\x05\x01\x00", 1),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", 1), // PostgreSQL asks for TLS in its own words
            (b"\x80\x2e\x01\x03\x01", 1),             // SSL 2
            (b"\x16\xfe\xfd\x00", 2),                 // DTLS
            (b"\x16\x03\x01\x41", 4),                 // over 16 KiB
            (b"\x16\x03\x01\x40\x01", 5),             // over 16 KiB
            (b"\x16\x03\x03\x00\x50\x02", 6),         // a ServerHello
            (b"\x15\x03\x03\x00\x02\x02\x28", 1),     // an alert
        ] {
            for end in 0..=bytes.len() {
                let expected = if end < needed {
                    FirstBytes::NeedMore
                } else {
                    FirstBytes::NotTls
                };
                assert_eq!(read(&bytes[..end]), expected, "{bytes:?} {end}");
            }
        }
    }

    #[test]
    fn a_hello_in_a_disguise_that_some_server_looks_through_is_no_other_protocol() {
        let hello = hello_of("registry.example", &[b"h2"], None);
        for version in [0, 5, 9, 0xff] {
            let mut disguised = hello.clone();
            disguised[2] = version;
            for end in 0..disguised.len() {
                assert_eq!(
                    read(&disguised[..end]),
                    FirstBytes::NeedMore,
                    "{version} {end}"
                );
            }
            assert!(
                matches!(
                    read(&disguised),
                    FirstBytes::Hello(_) | FirstBytes::Broken { .. }
                ),
                "{version}"
            );
        }
        let behind_nothing = [b"\x16\x03\x01\x00\x00", hello.as_slice()].concat();
        let FirstBytes::Broken { reason, .. } = read(&behind_nothing) else {
            panic!("passed through");
        };
        assert_eq!(reason, "an empty handshake record");
    }

    #[test]
    fn no_more_is_asked_for_than_a_reader_may_hold() {
        // Records that end just before the limit, without room for the next one's header.
        let mut bytes = Vec::new();
        while HELLO_LIMIT - bytes.len() > RECORD_HEADER {
            let length = (HELLO_LIMIT - bytes.len() - RECORD_HEADER).min(FRAGMENT_LIMIT.into());
            let [high, low] = (length as u16).to_be_bytes();
            bytes.extend([CONTENT_HANDSHAKE, 3, 1, high, low]);
            bytes.extend(vec![0; length]);
        }
        bytes[RECORD_HEADER..][..HANDSHAKE_HEADER].copy_from_slice(&[CLIENT_HELLO, 0, 0xff, 0xf0]);
        assert!(bytes.len() <= HELLO_LIMIT);
        assert!(matches!(read(&bytes), FirstBytes::Broken { .. }));
    }

    #[test]
    fn what_comes_behind_the_hello_does_not_matter() {
        let mut bytes = hello_of("registry.example", &[b"h2"], None);
        let hello = read(&bytes);
        bytes.extend_from_slice(b"\x14\x03\x03\x00\x01\x01 and anything else");
        assert_eq!(read(&bytes), hello);
    }

    #[test]
    fn a_hello_that_cannot_be_read_is_answered_by_an_alert() {
        let good = hello_of("registry.example", &[b"h2"], None);
        // A ClientHello of one byte.
        let short = records(&[CLIENT_HELLO, 0, 0, 1, 3], 100);
        assert_eq!(alert_in(&read(&short)), description::DECODE_ERROR);
        // Its session id longer than session ids are.
        let mut bad = good.clone();
        bad[RECORD_HEADER + HANDSHAKE_HEADER + 34] = 0xff;
        assert_eq!(alert_in(&read(&bad)), description::DECODE_ERROR);
        // More of the handshake behind it in its record.
        let message = [&good[RECORD_HEADER..], &[0]].concat();
        let followed = read(&records(&message, message.len()));
        assert_eq!(alert_in(&followed), description::UNEXPECTED_MESSAGE);
    }

    #[test]
    fn other_records_inside_a_hello_break_it() {
        let good = hello_of("registry.example", &[b"h2"], Some(64));
        let second = |change: &[u8]| {
            let mut bytes = good.clone();
            bytes[64..64 + change.len()].copy_from_slice(change);
            alert_in(&read(&bytes))
        };
        assert_eq!(second(&[23]), description::UNEXPECTED_MESSAGE);
        assert_eq!(second(&[22, 2]), description::UNEXPECTED_MESSAGE);
        assert_eq!(second(&[22, 3, 3, 0, 0]), description::DECODE_ERROR);
        assert_eq!(second(&[22, 3, 3, 0x40, 1]), description::RECORD_OVERFLOW);
    }

    #[test]
    fn an_alert_is_understood_by_a_client_that_waits_for_a_server_hello() {
        let mut config = ClientConfig::builder_with_provider(crate::crypto::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("registry.example").unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        client.write_tls(&mut Vec::new()).unwrap();
        let record = alert(description::UNKNOWN_CA);
        client.read_tls(&mut record.as_slice()).unwrap();
        let error = client.process_new_packets().unwrap_err();
        let expected = rustls::AlertDescription::UnknownCA;
        assert_eq!(error, rustls::Error::AlertReceived(expected));
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            read(&bytes);
            read(&records(&[&[CLIENT_HELLO], bytes.as_slice()].concat(), 100));
        }

        #[test]
        fn any_damage_to_a_hello_has_an_answer(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
            fragment in 32_usize..300,
        ) {
            let mut bytes = hello_of("registry.example", &[b"h2", b"http/1.1"], Some(fragment));
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            read(&bytes);
            read(&bytes[..cut.index(bytes.len())]);
        }

        #[test]
        fn an_answer_once_given_stays_as_more_bytes_come(
            fragment in 1_usize..400,
            cut in any::<prop::sample::Index>(),
            tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let (message, _) = large_message(1);
            let mut bytes = records(&message, fragment);
            let whole = read(&bytes);
            prop_assert!(matches!(whole, FirstBytes::Hello(_)));
            prop_assert_eq!(read(&bytes[..cut.index(bytes.len())]), FirstBytes::NeedMore);
            bytes.extend(tail);
            prop_assert_eq!(read(&bytes), whole);
        }
    }
}
