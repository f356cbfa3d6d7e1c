//! Targets for message heads, the opening and the first bytes of TLS: parsers that get a growing
//! prefix of a stream.

use std::collections::BTreeSet;

use rustls::server::Acceptor;
use tungstenite::handshake::derive_accept_key;

use super::stable_result;
use crate::control::peer_text::TEXT_LIMIT;
use crate::crypto::secret::{Credentials, Secret};
use crate::gateway::Sessions;
use crate::gateway::client_hello::{self, FirstBytes};
use crate::gateway::upgrade::{self, UpgradeDecision};
use crate::http::authority::Authority;
use crate::http::base_url::WS_PATH;
use crate::http::head::{self, Fields, HEAD_LIMIT};
use crate::http::response;
use crate::relay::dial;
use crate::tunnel::opening::{self, ConnectRequest, ConnectResponse};

/// The `Sec-WebSocket-Key` of the upgrade that the response answers: the example of RFC 6455,
/// section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A request head: every segmentation gives the same result, the first empty line ends it, and its
/// parts match the bytes.
pub(super) fn request_head(bytes: &[u8]) {
    stable_result(bytes, |prefix| comparable(head::request(prefix)));
    let Ok(Some((head, len))) = head::request(bytes) else {
        return;
    };
    let (start, fields) = lines(bytes, len);
    let version = start
        .strip_prefix(format!("{} {} ", head.method, head.target).as_bytes())
        .expect("the request line is method, target and version");
    assert!(matches!(version, b"HTTP/1.0" | b"HTTP/1.1"));
    assert!(!head.method.contains(' ') && !head.target.contains(' '));
    assert_same(&head.fields, &fields);
}

/// The gateway's decision about an upgrade request: accepted only with the token, and never from a
/// page in a browser.
pub(super) fn upgrade_request(bytes: &[u8]) {
    let sessions = Sessions::parse("session token").expect("a valid session");
    let Ok(Some((head, len))) = head::request(bytes) else {
        return;
    };
    match upgrade::decide(&head, &bytes[..len], &sessions) {
        UpgradeDecision::Open { response, .. } => {
            let value = head
                .fields
                .one("authorization")
                .expect("exactly one authorization");
            let value = String::from_utf8_lossy(value).to_lowercase();
            assert_eq!(
                value.split_whitespace().collect::<Vec<_>>(),
                ["bearer", "token"]
            );
            assert!(!head.fields.has("origin"));
            assert_eq!(
                (head.method.as_str(), head.target.as_str()),
                ("GET", WS_PATH)
            );
            let (head, len) = head::response(&response)
                .expect("a head")
                .expect("complete");
            assert_eq!((head.status, len), (101, response.len()));
        }
        UpgradeDecision::CaCertificates => assert_eq!(head.method, "GET"),
        UpgradeDecision::Reject(rejection) => {
            let response = response::closing(&rejection);
            let (head, _) = head::response(&response)
                .expect("a head")
                .expect("complete");
            assert!(head.status >= 400);
        }
    }
}

/// A response head, with the properties of [`request_head`], and the relay's decision about it as
/// the response to an upgrade.
pub(super) fn upgrade_response(bytes: &[u8]) {
    stable_result(bytes, |prefix| comparable(head::response(prefix)));
    let Ok(Some((head, len))) = head::response(bytes) else {
        return;
    };
    let (start, fields) = lines(bytes, len);
    assert!(start.starts_with(b"HTTP/1."));
    let status = std::str::from_utf8(&start[9..12]).expect("three digits");
    assert_eq!(status.parse(), Ok(head.status));
    assert_same(&head.fields, &fields);
    if dial::upgraded(&head, KEY).is_ok() {
        assert_eq!(head.status, 101);
        let accept = derive_accept_key(KEY.as_bytes());
        let correct =
            |(name, value): &Field| name == "sec-websocket-accept" && value == accept.as_bytes();
        assert_eq!(fields.iter().filter(|field| correct(field)).count(), 1);
    }
}

/// The relay's opening, read by the gateway: what was read can be written and read again.
pub(super) fn opening(bytes: &[u8]) {
    stable_result(bytes, |prefix| comparable(ConnectRequest::read(prefix)));
    let Ok(Some(request)) = ConnectRequest::read(bytes) else {
        return;
    };
    assert!(request.len <= bytes.len().min(HEAD_LIMIT));
    let credentials = Credentials {
        session_id: "session".to_owned(),
        token: Secret::new("token".to_owned()),
    };
    let written = opening::request(&request.authority, &credentials);
    let again = ConnectRequest::read(&written)
        .expect("a head")
        .expect("complete");
    assert_eq!(
        (again.authority, again.len),
        (request.authority.clone(), written.len())
    );
    let value = again.authorization.expect("an authorization");
    assert_eq!(value.as_slice(), credentials.basic().as_bytes());
    let parsed: Authority = request.authority.to_string().parse().expect("an authority");
    assert_eq!(parsed, request.authority);
}

/// The gateway's answer, read by the relay, and the text of a refusal, which is safe to print for
/// any bytes.
pub(super) fn answer(bytes: &[u8]) {
    stable_result(bytes, |prefix| comparable(ConnectResponse::read(prefix)));
    if let Ok(Some(answer)) = ConnectResponse::read(bytes) {
        assert!(answer.status >= 200 && answer.len <= bytes.len());
    }
    let text = opening::plain_text(bytes);
    assert!(text.len() <= TEXT_LIMIT);
    assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
}

/// A client's first bytes: every segmentation and every division into records gives the same
/// result, and nothing that a TLS server could accept counts as another protocol.
pub(super) fn client_hello(bytes: &[u8]) {
    let is_tls = match bytes {
        [20..=24, 3, ..] | [0x80..=0xff, _, 1, 3, ..] | [0x80..=0xff, _, 1, 0, 2, ..] => true,
        _ => reads_as_hello(bytes),
    };
    if is_tls {
        assert_ne!(client_hello::sniff(bytes), FirstBytes::NotTls);
        assert_ne!(client_hello::sniff_all(bytes), FirstBytes::NotTls);
    }
    let end = client_hello::sniff_all(bytes);
    assert_ne!(end, FirstBytes::NeedMore);
    let answer = stable_result(bytes, |prefix| {
        let answer = client_hello::sniff(prefix);
        (answer != FirstBytes::NeedMore).then_some(answer)
    });
    match answer {
        Some(FirstBytes::Hello(found)) => {
            if let Some(name) = &found.sni {
                assert!(!name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase()));
            }
            for fragment in [100, 1_000] {
                let again = client_hello::sniff(&divide_into_records(bytes, fragment));
                assert_eq!(
                    again,
                    FirstBytes::Hello(found.clone()),
                    "in records of {fragment}"
                );
            }
        }
        Some(FirstBytes::Broken { alert, .. }) => {
            assert!(alert.starts_with(&[21, 3]), "no alert record: {alert:?}");
        }
        Some(FirstBytes::NotTls | FirstBytes::NeedMore) | None => {}
    }
}

/// Whether rustls accepts the bytes as a `ClientHello`.
fn reads_as_hello(mut bytes: &[u8]) -> bool {
    let mut acceptor = Acceptor::default();
    while matches!(acceptor.read_tls(&mut bytes), Ok(1..)) {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(_)) => return true,
            Err(_) => return false,
        }
    }
    false
}

/// A result that can be compared: the types of the parsers' results do not implement `PartialEq`.
fn comparable<T: std::fmt::Debug, E: std::fmt::Debug>(
    read: Result<Option<T>, E>,
) -> Option<String> {
    let read = read.transpose()?;
    Some(format!("{read:?}"))
}

type Field = (String, Vec<u8>);

/// The start line and the fields of a head of `len` bytes, parsed only with `split`.
fn lines(bytes: &[u8], len: usize) -> (&[u8], Vec<Field>) {
    let (text, end) = bytes[..len].split_at(len - 2);
    assert_eq!(end, b"\r\n", "no empty line at the end");
    let mut lines = text.split_inclusive(|&byte| byte == b'\n').map(|line| {
        line.strip_suffix(b"\r\n")
            .expect("every line ends with CRLF")
    });
    let start = lines.next().expect("a start line");
    let fields = lines.map(|line| {
        let colon = line.iter().position(|&byte| byte == b':').expect("a colon");
        let name = String::from_utf8(line[..colon].to_ascii_lowercase()).expect("a token");
        (name, line[colon + 1..].trim_ascii().to_vec())
    });
    (start, fields.collect())
}

/// Asserts that the fields that were read are the expected ones, in the same order.
fn assert_same(read: &Fields, expected: &[Field]) {
    let names: BTreeSet<_> = expected.iter().map(|(name, _)| name).collect();
    for name in names {
        let values = expected.iter().filter(|(field, _)| field == name);
        let values: Vec<_> = values.map(|(_, value)| value.as_slice()).collect();
        assert_eq!(
            read.all(name).map(<[u8]>::trim_ascii).collect::<Vec<_>>(),
            values,
            "{name}"
        );
        assert_eq!(read.one(name).is_some(), values.len() == 1, "{name}");
    }
}

/// The handshake message at the start of `bytes`, divided into records of `fragment` bytes.
fn divide_into_records(bytes: &[u8], fragment: usize) -> Vec<u8> {
    let mut message = Vec::new();
    let mut rest = bytes;
    while let Some(([22, 3, _, high, low], after)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let (part, after) = after.split_at(len.min(after.len()));
        message.extend_from_slice(part);
        rest = after;
        let known = message
            .get(1..4)
            .map(|size| u32::from_be_bytes([0, size[0], size[1], size[2]]));
        if known.is_some_and(|size| message.len() >= size as usize + 4) {
            break;
        }
    }
    let mut records = Vec::new();
    for part in message.chunks(fragment) {
        records.extend([22, 3, 1]);
        records.extend((part.len() as u16).to_be_bytes());
        records.extend(part);
    }
    records
}
