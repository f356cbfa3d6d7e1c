//! Classifies a client's first bytes: a TLS `ClientHello` ([RFC 8446, section 4.1.2]), other TLS,
//! or another protocol, which is passed through unchanged.
//!
//! What a TLS server could skip before a `ClientHello` counts as TLS: otherwise one record before
//! it would switch interception off. It is refused, so that no server's tolerance matters.
//!
//! Without I/O, for any bytes. It extracts the server name and the ALPN list and does not take part
//! in the handshake. `intercept` decides whether the name is acceptable (`manual/protocol.md`,
//! Interception, has the table of first bytes).
//!
//! [RFC 8446, section 4.1.2]: https://www.rfc-editor.org/rfc/rfc8446#section-4.1.2

use std::ops::RangeInclusive;

use rustls::AlertDescription;
use rustls::server::Acceptor;

use super::tls_alert;

/// The maximum size of a `ClientHello` with its record headers: the size of rustls' buffer for one
/// handshake message, so a longer one could not be processed anyway. With post-quantum key shares
/// they have about 2 KiB.
pub(crate) const HELLO_LIMIT: usize = 0xffff;
/// The maximum number of records of a `ClientHello`. Clients use one; some split it into a few on
/// purpose. The time to join thousands of one-byte records would grow with their square.
const RECORD_LIMIT: usize = 1024;
/// `TLSPlaintext.length` "MUST NOT exceed 2^14 bytes" ([RFC 8446, section 5.1]).
///
/// [RFC 8446, section 5.1]: https://www.rfc-editor.org/rfc/rfc8446#section-5.1
const FRAGMENT_LIMIT: u16 = 1 << 14;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const CONTENT_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// Any byte.
const ANY: RangeInclusive<u8> = 0..=0xff;
/// What the first bytes of TLS look like: one row per form, one range per byte.
const TLS_FORMS: [&[RangeInclusive<u8>]; 7] = [
    // A record of version 3.x: change_cipher_spec, alert, handshake, application_data, heartbeat.
    &[20..=24, 3..=3],
    // Not every server checks the first byte of the version: Go's crypto/tls accepts 0 to 15 in an
    // alert and in a ClientHello. A whole ChangeCipherSpec or an empty record might be skipped.
    &[20..=20, ANY, ANY, 0..=0, 1..=1, 1..=1],
    &[21..=21, ANY, ANY, 0..=0, 2..=2],
    &[22..=22, ANY, ANY, ANY, ANY, CLIENT_HELLO..=CLIENT_HELLO],
    &[22..=22, ANY, ANY, 0..=0, 0..=0],
    // A ClientHello in an SSL 2 record, of version 3.x or 2 (RFC 5246, appendix E.2).
    &[0x80..=0xff, ANY, 1..=1, 3..=3],
    &[0x80..=0xff, ANY, 1..=1, 0..=0, 2..=2],
];

/// What a client has sent so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FirstBytes {
    /// The beginning of a `ClientHello`; more bytes are needed.
    NeedMore,
    /// Another protocol, whatever bytes follow.
    NotTls,
    /// A `ClientHello`.
    Hello(ClientHello),
    /// TLS, but no valid `ClientHello`.
    Broken {
        /// The alert to send before closing, as a record.
        alert: Vec<u8>,
        /// What is invalid, for the log.
        reason: String,
    },
}

/// What a `ClientHello` requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientHello {
    /// The server name in lower case, without a final dot. `None` if it is missing or an IP
    /// address.
    pub(crate) sni: Option<String>,
    /// The protocols offered, in the client's order.
    pub(crate) alpn: Vec<Vec<u8>>,
}

/// Classifies `bytes`, which begin with the client's first byte. Bytes after the hello are ignored.
///
/// It may be called for every byte that arrives: until the hello is complete, it reads only the
/// record headers.
pub(crate) fn sniff(bytes: &[u8]) -> FirstBytes {
    match is_tls(bytes) {
        Some(true) => {}
        Some(false) => return FirstBytes::NotTls,
        None => return FirstBytes::NeedMore,
    }
    match extent(bytes) {
        Extent::Open => FirstBytes::NeedMore,
        Extent::Whole(hello) => parse(hello),
        Extent::Broken { alert, reason } => broken(alert, reason),
    }
}

/// Classifies `bytes` of a client that sends no more.
pub(crate) fn sniff_all(bytes: &[u8]) -> FirstBytes {
    match sniff(bytes) {
        FirstBytes::NeedMore if is_tls(bytes).is_some() => broken(
            AlertDescription::DecodeError,
            "the client ended in the middle of it",
        ),
        FirstBytes::NeedMore => FirstBytes::NotTls,
        decided => decided,
    }
}

/// Whether the bytes have one of the [`TLS_FORMS`]; `None` if that needs more bytes.
fn is_tls(bytes: &[u8]) -> Option<bool> {
    let mut undecided = false;
    for form in TLS_FORMS {
        let mut pairs = form.iter().zip(bytes);
        let fits = pairs.all(|(range, byte)| range.contains(byte));
        if fits && form.len() <= bytes.len() {
            return Some(true);
        }
        undecided |= fits;
    }
    (!undecided).then_some(false)
}

/// Where the `ClientHello` at the beginning of the bytes ends.
enum Extent<'a> {
    /// After the last byte.
    Open,
    /// It consists of these records.
    Whole(&'a [u8]),
    /// It is invalid, whatever bytes follow.
    Broken {
        alert: AlertDescription,
        reason: &'static str,
    },
}

/// Finds the end of the `ClientHello` that must begin in the first record. The bytes are TLS.
fn extent(bytes: &[u8]) -> Extent<'_> {
    let broken = |alert, reason| Extent::Broken { alert, reason };
    match bytes {
        // The third byte of a record "MUST be ignored for all purposes" (RFC 8446, section 5.1).
        [CONTENT_HANDSHAKE, 3, ..] => {}
        [0x80..=0xff, ..] => {
            return broken(AlertDescription::ProtocolVersion, "an SSL 2 ClientHello");
        }
        [_, 3, ..] => {
            return broken(
                AlertDescription::UnexpectedMessage,
                "another TLS record before it",
            );
        }
        _ => {
            return broken(
                AlertDescription::ProtocolVersion,
                "a record of an unknown version",
            );
        }
    }
    let too_large = broken(AlertDescription::DecodeError, "a ClientHello over 64 KiB");
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
            // "Handshake messages MUST NOT be interleaved with other record types" (RFC 8446,
            // section 5.1).
            return broken(
                AlertDescription::UnexpectedMessage,
                "another record inside a ClientHello",
            );
        }
        if length > FRAGMENT_LIMIT {
            return broken(AlertDescription::RecordOverflow, "a record over 16 KiB");
        }
        if length == 0 {
            // "Implementations MUST NOT send zero-length fragments of Handshake types" (the same
            // section).
            return broken(AlertDescription::DecodeError, "an empty handshake record");
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
        if present > 0 && message[0] != CLIENT_HELLO {
            return broken(
                AlertDescription::UnexpectedMessage,
                "another handshake message before it",
            );
        }
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
        AlertDescription::DecodeError,
        "a ClientHello in over a thousand records",
    )
}

/// The bytes as a big-endian number.
fn big_endian(bytes: &[u8]) -> Option<usize> {
    bytes.iter().try_fold(0_usize, |n, &byte| {
        Some(n.checked_mul(256)? + usize::from(byte))
    })
}

/// Parses the records of a complete `ClientHello` with rustls.
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
                    _ => broken(AlertDescription::DecodeError, &error.to_string()),
                };
            }
        }
    }
    broken(AlertDescription::DecodeError, "an incomplete ClientHello")
}

/// Lower case, because names are case-insensitive, and without the final dot. The dot is not part
/// of the name on the wire (RFC 6066, section 3), but some clients send it.
fn normal_name(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn broken(alert: AlertDescription, reason: &str) -> FirstBytes {
    FirstBytes::Broken {
        alert: tls_alert::fatal(alert),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use rustls_pki_types::ServerName;

    use super::*;

    /// The first flight of a rustls client; `fragment` is the maximum record size with its header.
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

    /// A `ClientHello` with exactly these bytes as its server name.
    pub(in crate::gateway) fn hello_with_name(name: Option<&str>) -> Vec<u8> {
        let Some(name) = name else {
            return hello_of("192.0.2.1", &[], None);
        };
        let placeholder = String::leak("x".repeat(name.len()));
        let mut hello = hello_of(placeholder, &[], None);
        let mut windows = hello.windows(name.len());
        let at = windows.rposition(|window| window == placeholder.as_bytes());
        hello[at.unwrap()..][..name.len()].copy_from_slice(name.as_bytes());
        hello
    }

    /// `message` in handshake records of `fragment` bytes each.
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

    fn alert_in(first: &FirstBytes) -> AlertDescription {
        let FirstBytes::Broken { alert, .. } = first else {
            panic!("{first:?}");
        };
        assert_eq!(alert[..6], [21, 3, 3, 0, 2, 2], "{alert:?}");
        AlertDescription::from(alert[6])
    }

    #[test]
    fn reads_the_name_and_the_protocols_of_a_hello() {
        let bytes = hello_of("Registry.Example", &[b"h2", b"http/1.1"], None);
        let expected = ClientHello {
            sni: Some("registry.example".to_owned()),
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        assert_eq!(sniff(&bytes), FirstBytes::Hello(expected));
    }

    #[test]
    fn a_client_of_an_address_sends_no_name_and_alpn_is_optional() {
        let hello = FirstBytes::Hello(ClientHello::default());
        assert_eq!(sniff(&hello_of("192.0.2.1", &[], None)), hello);
        assert_eq!(sniff(&hello_of("::1", &[], None)), hello);
    }

    #[test]
    fn every_prefix_of_a_hello_needs_more_for_any_record_size() {
        for fragment in [None, Some(32), Some(33), Some(100)] {
            let bytes = hello_of("registry.example", &[b"h2"], fragment);
            for end in 0..bytes.len() {
                assert_eq!(sniff(&bytes[..end]), FirstBytes::NeedMore, "{end}");
            }
            assert!(matches!(sniff(&bytes), FirstBytes::Hello(_)));
        }
    }

    #[test]
    fn every_split_of_a_hello_into_records_gives_the_same_result() {
        let (message, names) = large_message(2);
        for fragment in 1..=message.len() {
            let bytes = records(&message, fragment);
            let FirstBytes::Hello(hello) = sniff(&bytes) else {
                panic!("{fragment}: {:?}", sniff(&bytes));
            };
            assert_eq!(hello.sni.as_deref(), Some("large.example"));
            assert_eq!(hello.alpn, names);
            assert_eq!(sniff(&bytes[..bytes.len() - 1]), FirstBytes::NeedMore);
        }
    }

    #[test]
    fn reads_hellos_of_post_quantum_size_and_up_to_the_limit() {
        for count in [8, 65, 66, 130, 259] {
            let (message, names) = large_message(count);
            let bytes = records(&message, usize::from(FRAGMENT_LIMIT));
            assert!(message.len() > count * 250 && bytes.len() <= HELLO_LIMIT);
            let FirstBytes::Hello(hello) = sniff(&bytes) else {
                panic!("{count}: {:?}", sniff(&bytes));
            };
            assert_eq!(hello.alpn, names);
            for end in (0..bytes.len()).step_by(997) {
                assert_eq!(sniff(&bytes[..end]), FirstBytes::NeedMore, "{end}");
            }
        }
    }

    #[test]
    fn a_hello_over_the_size_limit_is_refused_from_its_length_field() {
        let claims = |size: u32| {
            let [_, size @ ..] = size.to_be_bytes();
            records(&[&[CLIENT_HELLO], size.as_slice()].concat(), 4)
        };
        assert_eq!(sniff(&claims(60_000)), FirstBytes::NeedMore);
        let refused = sniff(&claims(0xffff));
        assert_eq!(alert_in(&refused), AlertDescription::DecodeError);
        let (message, _) = large_message(259);
        let refused = sniff(&records(&message, 64));
        assert_eq!(alert_in(&refused), AlertDescription::DecodeError);
    }

    #[test]
    fn thousands_of_tiny_records_are_refused() {
        let (message, _) = large_message(8);
        let refused = sniff(&records(&message, 1));
        assert_eq!(alert_in(&refused), AlertDescription::DecodeError);
    }

    /// The bytes of an example on the protocol page.
    fn example(text: &str) -> Vec<u8> {
        let hello = hello_of("registry.example", &[b"h2"], None);
        let (header, message) = hello.split_at(RECORD_HEADER);
        if let Some(text) = text.strip_prefix('"') {
            return text.trim_end_matches('"').as_bytes().to_vec();
        }
        let bytes = text.split_whitespace().map(|word| match word {
            "LEN" => header[3..].to_vec(),
            "MSG" => message.to_vec(),
            "PARTS" => records(message, 40),
            byte => vec![u8::from_str_radix(byte, 16).unwrap()],
        });
        bytes.collect::<Vec<_>>().concat()
    }

    /// The cells of the table behind `marker` on the protocol page, without their backticks.
    pub(in crate::gateway) fn table(marker: &str) -> Vec<Vec<&'static str>> {
        let page = include_str!("../manual/protocol.md");
        let (_, table) = page.split_once(marker).unwrap();
        let lines = table.trim_start().lines();
        let rows = lines.map_while(|line| line.strip_prefix('|')?.strip_suffix('|'));
        let cells = |row: &'static str| row.split('|').map(|cell| cell.trim().trim_matches('`'));
        rows.skip(2).map(|row| cells(row).collect()).collect()
    }

    #[test]
    fn the_first_bytes_on_the_protocol_page_have_their_results_in_every_segmentation() {
        let rows = table("<!-- first-bytes -->");
        assert!(rows.len() > 20);
        for row in rows {
            let [what, bytes, expected] = row[..] else {
                panic!("{row:?}");
            };
            let bytes = example(bytes);
            let result = |first: &FirstBytes| match first {
                FirstBytes::NeedMore => "undecided".to_owned(),
                FirstBytes::NotTls => "passed through".to_owned(),
                FirstBytes::Hello(_) => "intercepted".to_owned(),
                FirstBytes::Broken { .. } => match alert_in(first) {
                    AlertDescription::UnexpectedMessage => "unexpected_message".to_owned(),
                    AlertDescription::DecodeError => "decode_error".to_owned(),
                    AlertDescription::RecordOverflow => "record_overflow".to_owned(),
                    AlertDescription::ProtocolVersion => "protocol_version".to_owned(),
                    other => format!("{other:?}"),
                },
            };
            assert_eq!(result(&sniff_all(&bytes)), expected, "{what}");
            let mut decided = false;
            for end in 0..=bytes.len() {
                let first = sniff(&bytes[..end]);
                decided |= first != FirstBytes::NeedMore;
                let expected = if decided { expected } else { "undecided" };
                assert_eq!(result(&first), expected, "{what}, {end} bytes");
                // If the client ends here, no server can receive a ClientHello.
                let last = sniff_all(&bytes[..end]);
                let is_hello = matches!(last, FirstBytes::Hello(_));
                assert!(
                    !is_hello || expected == "intercepted",
                    "{what}, {end} bytes"
                );
            }
            assert!(decided || bytes.is_empty(), "{what}");
        }
    }

    #[test]
    fn other_protocols_need_few_bytes_to_be_recognised() {
        for (bytes, needed) in [
            (b"SSH-2.0-OpenSSH_9.7\r\n".as_slice(), 1),
            (b"\x05\x01\x00", 1),
            (b"\xff\xfd\x03", 3),             // telnet
            (b"\x16\x01\x00\x01\x85\xa6", 6), // MySQL without TLS
            (b"\x15\x01\x00\x00\x07", 5),     // MongoDB
        ] {
            for end in 0..=bytes.len() {
                let expected = if end < needed {
                    FirstBytes::NeedMore
                } else {
                    FirstBytes::NotTls
                };
                assert_eq!(sniff(&bytes[..end]), expected, "{bytes:?} {end}");
                assert_eq!(sniff_all(&bytes[..end]), FirstBytes::NotTls);
            }
        }
    }

    #[test]
    fn a_client_that_ends_inside_a_hello_gets_an_alert() {
        let hello = hello_of("registry.example", &[b"h2"], None);
        for end in 2..hello.len() {
            let refused = sniff_all(&hello[..end]);
            assert_eq!(alert_in(&refused), AlertDescription::DecodeError, "{end}");
        }
        assert_eq!(sniff_all(&hello), sniff(&hello));
    }

    #[test]
    fn no_more_bytes_are_requested_than_the_size_limit() {
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
        assert!(matches!(sniff(&bytes), FirstBytes::Broken { .. }));
    }

    #[test]
    fn bytes_after_the_hello_are_ignored() {
        let mut bytes = hello_of("registry.example", &[b"h2"], None);
        let hello = sniff(&bytes);
        bytes.extend_from_slice(b"\x14\x03\x03\x00\x01\x01 and anything else");
        assert_eq!(sniff(&bytes), hello);
    }

    #[test]
    fn an_invalid_hello_is_answered_by_an_alert() {
        let good = hello_of("registry.example", &[b"h2"], None);
        // A ClientHello of one byte.
        let short = records(&[CLIENT_HELLO, 0, 0, 1, 3], 100);
        assert_eq!(alert_in(&sniff(&short)), AlertDescription::DecodeError);
        // Its session id longer than session ids are.
        let mut bad = good.clone();
        bad[RECORD_HEADER + HANDSHAKE_HEADER + 34] = 0xff;
        assert_eq!(alert_in(&sniff(&bad)), AlertDescription::DecodeError);
        // More of the handshake behind it in its record.
        let message = [&good[RECORD_HEADER..], &[0]].concat();
        let followed = sniff(&records(&message, message.len()));
        assert_eq!(alert_in(&followed), AlertDescription::UnexpectedMessage);
    }

    #[test]
    fn other_records_inside_a_hello_break_it() {
        let good = hello_of("registry.example", &[b"h2"], Some(64));
        let second = |change: &[u8]| {
            let mut bytes = good.clone();
            bytes[64..64 + change.len()].copy_from_slice(change);
            alert_in(&sniff(&bytes))
        };
        assert_eq!(second(&[23]), AlertDescription::UnexpectedMessage);
        assert_eq!(second(&[22, 2]), AlertDescription::UnexpectedMessage);
        assert_eq!(second(&[22, 3, 3, 0, 0]), AlertDescription::DecodeError);
        assert_eq!(
            second(&[22, 3, 3, 0x40, 1]),
            AlertDescription::RecordOverflow
        );
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
        let record = tls_alert::fatal(AlertDescription::UnknownCA);
        client.read_tls(&mut record.as_slice()).unwrap();
        let error = client.process_new_packets().unwrap_err();
        let expected = rustls::AlertDescription::UnknownCA;
        assert_eq!(error, rustls::Error::AlertReceived(expected));
    }

    /// A record of TLS, or something that a careless server may take for one.
    fn record_like() -> impl Strategy<Value = Vec<u8>> {
        let body = proptest::collection::vec(any::<u8>(), 0..40);
        let record = |version: BoxedStrategy<u8>| (20..=24_u8, version, any::<u8>(), body.clone());
        let whole = |(content, major, minor, body): (u8, u8, u8, Vec<u8>)| {
            let [high, low] = u16::try_from(body.len()).unwrap().to_be_bytes();
            [&[content, major, minor, high, low], body.as_slice()].concat()
        };
        prop_oneof![
            record(Just(3).boxed()).prop_map(whole),
            // Any length, also one over the limit.
            (20..=24_u8, any::<[u8; 3]>())
                .prop_map(|(content, [minor, high, low])| vec![content, 3, minor, high, low]),
            (any::<u8>(), any::<u8>())
                .prop_map(|(major, minor)| { vec![21, major, minor, 0, 2, 1, 90] }),
            (any::<u8>(), any::<u8>())
                .prop_map(|(major, minor)| { vec![20, major, minor, 0, 1, 1] }),
            (0x80..=0xff_u8, any::<u8>(), any::<u8>())
                .prop_map(|(high, low, minor)| vec![high, low, 1, 3, minor, 0, 3, 0, 0, 0, 16]),
        ]
    }

    proptest! {
        #[test]
        fn no_records_in_front_of_a_hello_make_it_another_protocol(
            records in proptest::collection::vec(record_like(), 1..4),
            major in any::<u8>(),
        ) {
            let mut hello = hello_of("registry.example", &[b"h2"], None);
            let bytes = [records.concat(), hello.clone()].concat();
            let steps = (0..bytes.len()).step_by(bytes.len() / 40 + 1);
            for end in steps.chain([bytes.len()]) {
                prop_assert_ne!(sniff(&bytes[..end]), FirstBytes::NotTls, "{} bytes", end);
            }
            prop_assert_ne!(sniff_all(&bytes), FirstBytes::NotTls);
            hello[1] = major;
            prop_assert_ne!(sniff_all(&hello), FirstBytes::NotTls);
        }

        #[test]
        fn any_bytes_give_a_result(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            sniff(&bytes);
            sniff(&records(&[&[CLIENT_HELLO], bytes.as_slice()].concat(), 100));
        }

        #[test]
        fn any_damaged_hello_gives_a_result(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
            fragment in 32_usize..300,
        ) {
            let mut bytes = hello_of("registry.example", &[b"h2", b"http/1.1"], Some(fragment));
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            sniff(&bytes);
            sniff(&bytes[..cut.index(bytes.len())]);
        }

        #[test]
        fn a_result_does_not_change_when_more_bytes_arrive(
            fragment in 1_usize..400,
            cut in any::<prop::sample::Index>(),
            tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let (message, _) = large_message(1);
            let mut bytes = records(&message, fragment);
            let whole = sniff(&bytes);
            prop_assert!(matches!(whole, FirstBytes::Hello(_)));
            prop_assert_eq!(sniff(&bytes[..cut.index(bytes.len())]), FirstBytes::NeedMore);
            bytes.extend(tail);
            prop_assert_eq!(sniff(&bytes), whole);
        }
    }
}
