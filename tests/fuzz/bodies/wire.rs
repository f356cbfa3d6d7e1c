//! Targets for the layers of the tunnel: every segmentation gives the same result, which is the
//! reference's result.

use super::reference::{self, End, Event};
use super::segments;
use crate::tunnel::buffer::{Buffer, Pool};
use crate::tunnel::chunk::{self, MAX_DATA, MAX_HEADER, MAX_MESSAGE, MessageStart};
use crate::tunnel::error::{ProtocolError, TunnelError};
use crate::tunnel::frame::{FrameReader, Piece, Role};
use crate::tunnel::ws_codec::{Budget, PeerClose, Version, WsCodec};

/// Frames: the first byte selects the role and the segmentation, the rest is the received stream.
pub(super) fn frames(bytes: &[u8]) {
    let Some((&choice, wire)) = bytes.split_first() else {
        return;
    };
    let role = role(choice);
    let (events, end) = read(role, [wire]);
    assert_eq!(read(role, segments(wire, choice)), (events.clone(), end));
    assert_eq!(read(role, wire.chunks(1)), (events.clone(), end));
    let (expected, expected_end) = reference::read(role, wire);
    // This reader checks headers before the payload arrives, and is stricter about text and close
    // codes: it may report an error where the reference continues.
    let common = events.len().min(expected.len());
    assert_eq!(events[..common], expected[..common]);
    assert!(
        events.len() <= expected.len(),
        "{events:?}, expected {expected:?}"
    );
    if end != End::Error {
        assert_eq!((events.len(), end), (expected.len(), expected_end));
    }
}

/// A chunk: whole or streamed, it decodes as in the reference. The same bytes as data, with a
/// header, decode to themselves.
pub(super) fn chunk(bytes: &[u8]) {
    let decoded = chunk::decode(bytes).ok();
    let own = decoded.map(|chunk| (bytes[chunk.data].to_vec(), chunk.fin));
    assert_eq!(own, reference::decode(bytes));
    for prefix in 0..=bytes.len().min(MAX_HEADER) {
        if let MessageStart::AllData(header) = chunk::start(&bytes[..prefix], bytes.len()) {
            assert_eq!(own, Some((bytes[header..].to_vec(), false)));
        }
    }
    let data = &bytes[..bytes.len().min(MAX_DATA)];
    let mut header = [0; MAX_HEADER];
    let n = chunk::header(data.len(), &mut header);
    let message = [&header[..n], data].concat();
    assert_eq!(reference::decode(&message), Some((data.to_vec(), false)));
}

/// The chunk layer: the first byte selects role, version and segmentation, the rest is the received
/// stream.
pub(super) fn messages(bytes: &[u8]) {
    let Some((&choice, wire)) = bytes.split_first() else {
        return;
    };
    let role = role(choice);
    let version = if choice & 2 == 0 {
        Version::V1
    } else {
        Version::V2
    };
    // The close frame shows whether the stream ended between two messages or inside one.
    let close: &[u8] = match role {
        Role::Client => &[0x88, 0],
        Role::Server => &[0x88, 0x80, 0, 0, 0, 0],
    };
    let wire = [wire, close].concat();
    let opened = open(role, version, [wire.as_slice()]);
    assert_eq!(open(role, version, segments(&wire, choice)), opened);
    assert_eq!(open(role, version, wire.chunks(1)), opened);

    let (data, fin) = expected(role, version, &wire);
    assert!(
        opened.data.starts_with(&data),
        "{opened:?}, expected {data:?}"
    );
    if opened.error.is_none() {
        assert_eq!(opened.fin, fin);
    }
    // Data is delivered before its message is complete only if the message contains nothing but
    // data. So a chunk with an error delivers none.
    let chunk_error = matches!(opened.error, Some(ProtocolError::Chunk(_)));
    if chunk_error || opened.closed.is_some() {
        assert_eq!(opened.data, data);
    }
    check_encoded(role, version, &wire, choice);
}

fn role(choice: u8) -> Role {
    if choice & 1 == 0 {
        Role::Client
    } else {
        Role::Server
    }
}

/// Reads the parts of a stream with the frame reader; returns the result in the reference's types.
fn read<'a>(role: Role, parts: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, End) {
    let mut reader = FrameReader::new(role, MAX_MESSAGE);
    let mut events = Vec::new();
    let mut message = Vec::new();
    let mut is_last = false;
    for mut part in parts {
        loop {
            match reader.next(&mut part) {
                Ok(None) => break,
                Ok(Some(Piece::Frame { last, .. })) => is_last = last,
                Ok(Some(Piece::Payload(bytes, mut mask))) => {
                    let from = message.len();
                    message.extend_from_slice(bytes);
                    mask.apply(&mut message[from..]);
                }
                Ok(Some(Piece::FrameEnd)) => {
                    if is_last {
                        events.push(Event::Binary(std::mem::take(&mut message)));
                    }
                }
                Ok(Some(Piece::Ping(payload))) => events.push(Event::Ping(payload)),
                Ok(Some(Piece::Pong)) => events.push(Event::Pong),
                Ok(Some(Piece::Close(code))) => {
                    events.push(Event::Close(code));
                    return (events, End::Close);
                }
                Err(_) => return (events, End::Error),
            }
        }
        assert!(
            part.is_empty(),
            "the reader needs more bytes but left some unread"
        );
    }
    (events, End::Bytes)
}

/// What the chunk layer read from a stream.
#[derive(Debug, PartialEq, Eq)]
struct Opened {
    data: Vec<u8>,
    error: Option<ProtocolError>,
    fin: bool,
    closed: Option<PeerClose>,
    /// The length of the pong to send.
    pong: usize,
}

fn open<'a>(role: Role, version: Version, parts: impl IntoIterator<Item = &'a [u8]>) -> Opened {
    let pool = Pool::default();
    let mut plain = Buffer::new(&pool);
    let mut messages = WsCodec::new(role, version, &Budget::default());
    let mut parts = parts.into_iter();
    let error: Option<TunnelError> = parts.find_map(|part| messages.decode(part, &mut plain).err());
    let mut pong = Buffer::new(&pool);
    messages.pong(&mut pong).expect("a pong can be written");
    Opened {
        data: plain.filled().to_vec(),
        error: error.map(|error| match error {
            TunnelError::WebSocket(error) => error,
            other => panic!("not a protocol error: {other:?}"),
        }),
        fin: messages.fin_received(),
        closed: messages.peer_close(),
        pong: pong.len(),
    }
}

/// The data and the `fin` of the complete messages in a stream, up to the first error, from the
/// reference.
fn expected(role: Role, version: Version, wire: &[u8]) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let mut fin = false;
    for event in reference::read(role, wire).0 {
        let Event::Binary(message) = event else {
            continue;
        };
        match reference::decode(&message) {
            Some((data, _)) if fin && !data.is_empty() => break,
            Some((data, is_last)) => {
                all.extend(data);
                fin |= is_last && version == Version::V2;
            }
            None => break,
        }
    }
    (all, fin)
}

/// Asserts that `role` and the reference read from the peer of `role` the data that the peer
/// encoded.
fn check_encoded(role: Role, version: Version, data: &[u8], choice: u8) {
    let peer = match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    };
    let pool = Pool::default();
    let mut sender = WsCodec::new(peer, version, &Budget::default());
    let mut wire = Buffer::new(&pool);
    for part in segments(data, choice) {
        let mut plain = Buffer::new(&pool);
        plain.extend(part);
        sender.encode(&mut plain).expect("data can be encoded");
        wire.extend(plain.filled());
    }
    sender.fin(&mut wire).expect("a fin can be written");
    let opened = open(
        role,
        version,
        segments(wire.filled(), choice.wrapping_add(1)),
    );
    assert_eq!((opened.data.as_slice(), opened.error), (data, None));
    let (expected_data, fin) = expected(role, version, wire.filled());
    assert_eq!(
        (expected_data.as_slice(), fin),
        (data, version == Version::V2)
    );
    assert_eq!(opened.fin, fin);
}
