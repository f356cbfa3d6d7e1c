//! What must hold for the layers of the tunnel: any segmentation gives the same, and the same as the reference makes of it.

use super::reference::{self, End, Said};
use super::segments;
use crate::tunnel::buffer::{Buffer, Pool};
use crate::tunnel::chunk::{self, MAX_DATA, MAX_HEADER, MAX_MESSAGE, Start};
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::{FrameReader, Piece, Role};
use crate::tunnel::message::{Budget, PeerClose, Version, WsCodec};

/// Frames: the first byte chooses the role and the segmentation, the rest is the wire.
pub(super) fn frames(bytes: &[u8]) {
    let Some((&choice, wire)) = bytes.split_first() else {
        return;
    };
    let role = role(choice);
    let (said, end) = read(role, [wire]);
    assert_eq!(read(role, segments(wire, choice)), (said.clone(), end));
    assert_eq!(read(role, wire.chunks(1)), (said.clone(), end));
    let (expected, their_end) = reference::read(role, wire);
    // We judge headers before payload, text and close codes more strictly: a fault of ours may come where they go on.
    let known = said.len().min(expected.len());
    assert_eq!(said[..known], expected[..known]);
    assert!(
        said.len() <= expected.len(),
        "{said:?}, expected {expected:?}"
    );
    if end != End::TunnelError {
        assert_eq!((said.len(), end), (expected.len(), their_end));
    }
}

/// A chunk: decoded as the reference does, whole or streamed, and what the bytes are as data comes back.
pub(super) fn chunk(bytes: &[u8]) {
    let decoded = chunk::decode(bytes).ok();
    let own = decoded.map(|chunk| (bytes[chunk.data].to_vec(), chunk.fin));
    assert_eq!(own, reference::decode(bytes));
    for front in 0..=bytes.len().min(MAX_HEADER) {
        if let Start::AllData(header) = chunk::start(&bytes[..front], bytes.len()) {
            assert_eq!(own, Some((bytes[header..].to_vec(), false)));
        }
    }
    let data = &bytes[..bytes.len().min(MAX_DATA)];
    let mut header = [0; MAX_HEADER];
    let n = chunk::header(data.len(), &mut header);
    let message = [&header[..n], data].concat();
    assert_eq!(reference::decode(&message), Some((data.to_vec(), false)));
}

/// The chunk layer: the first byte chooses role, version and segmentation, the rest is the wire.
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
    // With a close behind it, a wire that ends between two messages can be told from one that was cut.
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
    if opened.fault.is_none() {
        assert_eq!(opened.fin, fin);
    }
    // Data is delivered before its message is whole only where the message is nothing but data.
    let judged = matches!(opened.fault.as_deref(), Some(fault) if fault.starts_with("Chunk"));
    if judged || opened.closed.is_some() {
        assert_eq!(opened.data, data);
    }
    resealed(role, version, &wire, choice);
}

fn role(choice: u8) -> Role {
    if choice & 1 == 0 {
        Role::Client
    } else {
        Role::Server
    }
}

/// What our reader makes of the parts of a wire, in the reference's words.
fn read<'a>(role: Role, parts: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Said>, End) {
    let mut reader = FrameReader::new(role, MAX_MESSAGE);
    let mut said = Vec::new();
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
                        said.push(Said::Binary(std::mem::take(&mut message)));
                    }
                }
                Ok(Some(Piece::Ping(payload))) => said.push(Said::Ping(payload)),
                Ok(Some(Piece::Pong)) => said.push(Said::Pong),
                Ok(Some(Piece::Close(code))) => {
                    said.push(Said::Close(code));
                    return (said, End::Close);
                }
                Err(_) => return (said, End::TunnelError),
            }
        }
        assert!(part.is_empty(), "bytes are left though more were asked for");
    }
    (said, End::Bytes)
}

/// What the chunk layer made of a wire.
#[derive(Debug, PartialEq, Eq)]
struct Opened {
    data: Vec<u8>,
    fault: Option<String>,
    fin: bool,
    closed: Option<PeerClose>,
    /// The length of the pong that is due.
    pong: usize,
}

fn open<'a>(role: Role, version: Version, parts: impl IntoIterator<Item = &'a [u8]>) -> Opened {
    let pool = Pool::default();
    let mut plain = Buffer::new(&pool);
    let mut messages = WsCodec::new(role, version, &Budget::default());
    let mut parts = parts.into_iter();
    let fault: Option<TunnelError> = parts.find_map(|part| messages.open(part, &mut plain).err());
    let mut pong = Buffer::new(&pool);
    messages.pong(&mut pong).expect("a pong can be written");
    Opened {
        data: plain.filled().to_vec(),
        fault: fault.map(|fault| format!("{fault:?}")),
        fin: messages.fin_received(),
        closed: messages.closed_by_peer(),
        pong: pong.len(),
    }
}

/// The data and the `fin` of the whole messages on a wire, up to the first fault.
fn expected(role: Role, version: Version, wire: &[u8]) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let mut fin = false;
    for said in reference::read(role, wire).0 {
        let Said::Binary(message) = said else {
            continue;
        };
        match reference::decode(&message) {
            Some((data, _)) if fin && !data.is_empty() => break,
            Some((data, ends)) => {
                all.extend(data);
                fin |= ends && version == Version::V2;
            }
            None => break,
        }
    }
    (all, fin)
}

/// The bytes as data: what the peer of `role` seals, `role` opens, and the reference reads.
fn resealed(role: Role, version: Version, data: &[u8], choice: u8) {
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
        sender.seal(&mut plain).expect("data can be sealed");
        wire.extend(plain.filled());
    }
    sender.fin(&mut wire).expect("a fin can be written");
    let opened = open(
        role,
        version,
        segments(wire.filled(), choice.wrapping_add(1)),
    );
    assert_eq!((opened.data.as_slice(), opened.fault), (data, None));
    let (their_data, fin) = expected(role, version, wire.filled());
    assert_eq!((their_data.as_slice(), fin), (data, version == Version::V2));
    assert_eq!(opened.fin, fin);
}
