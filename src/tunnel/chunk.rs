//! The codec of `UpstreamProxyChunk`, the protobuf message of the wire protocol
//! (`manual/protocol.md`, Messages). It follows the rules of proto3.
//!
//! Without I/O: every input gives a chunk or an error. WebSocket framing is in [`super::frame`].

use std::ops::Range;

/// The maximum size of the data that a sender puts into one chunk, in bytes.
pub(crate) const MAX_DATA: usize = 512 << 10;
/// The maximum size of a message that a receiver accepts, in bytes.
pub(crate) const MAX_MESSAGE: usize = 1 << 20;
/// The maximum length of the result of [`header`]: a tag, and a length below 2 MiB.
pub(crate) const MAX_HEADER: usize = 4;
/// The encoding of a chunk with `fin` and no data (version 2).
pub(crate) const FIN: [u8; 2] = [FIN_TAG, 1];

const DATA_TAG: u8 = 1 << 3 | 2;
const FIN_TAG: u8 = 2 << 3;
/// The maximum length of a varint ([protobuf
/// encoding](https://protobuf.dev/programming-guides/encoding/#varints)).
const MAX_VARINT: usize = 10;
/// The maximum nesting depth of groups; protobuf's own decoders have the same limit.
const MAX_GROUPS: usize = 100;

/// The content of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// The position of the data in the message; empty for no data.
    pub(crate) data: Range<usize>,
    /// The sender will send no more data in this direction (version 2).
    pub(crate) fin: bool,
}

/// Writes the header of a chunk with `len` bytes of data to `into`; returns its length.
pub(crate) fn header(len: usize, into: &mut [u8; MAX_HEADER]) -> usize {
    debug_assert!(len <= MAX_DATA);
    into[0] = DATA_TAG;
    let mut rest = len;
    for (i, byte) in into.iter_mut().enumerate().skip(1) {
        *byte = (rest & 0x7f) as u8;
        rest >>= 7;
        if rest == 0 {
            return i + 1;
        }
        *byte |= 0x80;
    }
    MAX_HEADER
}

/// What the first bytes of a message reveal about the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageStart {
    /// More bytes are needed to decide.
    Unknown,
    /// All bytes after this many header bytes are data, so they can be delivered as they arrive.
    AllData(usize),
    /// Anything else: assemble the message, then decode it.
    Other,
}

/// Classifies a message of `len` bytes by its first bytes.
pub(crate) fn start(first: &[u8], len: usize) -> MessageStart {
    match first {
        [] => MessageStart::Unknown,
        [DATA_TAG, length @ ..] => match varint(length) {
            Ok((data, n)) if data.checked_add(1 + n as u64) == Some(len as u64) => {
                MessageStart::AllData(1 + n)
            }
            Err(DecodeError::Truncated) if first.len() < MAX_HEADER.min(len) => {
                MessageStart::Unknown
            }
            _ => MessageStart::Other,
        },
        _ => MessageStart::Other,
    }
}

/// Decodes a complete message: unknown fields are skipped, the last field with a number wins.
pub(crate) fn decode(message: &[u8]) -> Result<Chunk, DecodeError> {
    let mut chunk = Chunk::default();
    let mut groups: Vec<u64> = Vec::new();
    let mut at = 0;
    while at < message.len() {
        let (tag, n) = varint(&message[at..])?;
        at += n;
        // A tag is a 32-bit number: 29 bits of field number, 3 bits of wire type.
        let field = tag >> 3;
        if field == 0 || tag > u64::from(u32::MAX) {
            return Err(DecodeError::FieldNumber);
        }
        let outermost = groups.is_empty();
        match tag & 7 {
            0 => {
                let (value, n) = varint(&message[at..])?;
                at += n;
                if field == 2 && outermost {
                    chunk.fin = value != 0;
                }
            }
            1 => at = skip(message, at, 8)?.end,
            2 => {
                let (len, n) = varint(&message[at..])?;
                let range = skip(message, at + n, len)?;
                at = range.end;
                if field == 1 && outermost {
                    chunk.data = range;
                }
            }
            3 if groups.len() < MAX_GROUPS => groups.push(field),
            4 if groups.pop() == Some(field) => {}
            3 | 4 => return Err(DecodeError::Group),
            5 => at = skip(message, at, 4)?.end,
            _ => return Err(DecodeError::WireType),
        }
    }
    if groups.is_empty() {
        Ok(chunk)
    } else {
        Err(DecodeError::Group)
    }
}

/// The range of `len` bytes from `at`, if the message contains it.
fn skip(message: &[u8], at: usize, len: u64) -> Result<Range<usize>, DecodeError> {
    let len = usize::try_from(len).map_err(|_| DecodeError::Truncated)?;
    let end = at.checked_add(len).filter(|&end| end <= message.len());
    Ok(at..end.ok_or(DecodeError::Truncated)?)
}

/// Reads a varint; returns its value and length. It need not be minimal; bits above 64 are dropped,
/// as in protobuf's decoders.
fn varint(bytes: &[u8]) -> Result<(u64, usize), DecodeError> {
    let mut value = 0_u64;
    for (i, &byte) in bytes.iter().take(MAX_VARINT).enumerate() {
        value |= u64::from(byte & 0x7f).wrapping_shl(7 * i as u32);
        if byte & 0x80 == 0 {
            return Ok((value, i + 1));
        }
    }
    if bytes.len() < MAX_VARINT {
        Err(DecodeError::Truncated)
    } else {
        Err(DecodeError::Varint)
    }
}

/// Why a message is not a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("a protobuf field exceeds its message")]
    Truncated,
    #[error("a protobuf varint has more than ten bytes")]
    Varint,
    /// A field number is 0 or has more than 29 bits.
    #[error("a protobuf field number is out of range")]
    FieldNumber,
    /// A group is not balanced, or nested too deeply.
    #[error("a protobuf group is not balanced")]
    Group,
    #[error("a protobuf wire type does not exist")]
    WireType,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(message: &[u8]) -> Result<(&[u8], bool), DecodeError> {
        decode(message).map(|chunk| (&message[chunk.data], chunk.fin))
    }

    #[test]
    fn decodes_by_the_rules_of_proto3() {
        for (message, expected) in [
            (&b""[..], (&b""[..], false)),
            (b"\x0a\x00", (b"", false)),
            (b"\x0a\x03abc", (b"abc", false)),
            (b"\x0a\x83\x00abc", (b"abc", false)),
            (b"\x0a\x01a\x0a\x01b", (b"b", false)),
            (b"\x0a\x01a\x10\x01", (b"a", true)),
            (b"\x10\x01\x10\x00", (b"", false)),
            (b"\x10\x80\x02", (b"", true)),
            (b"\x18\xff\x01\x0a\x01a", (b"a", false)),
            (b"\x0d\x01\x02\x03\x04\x0a\x01a", (b"a", false)),
            (
                b"\x21\x01\x02\x03\x04\x05\x06\x07\x08\x0a\x01a",
                (b"a", false),
            ),
            (b"\x08\x05\x0a\x01a", (b"a", false)),
            (b"\x0a\x01a\x23\x0a\x01b\x10\x01\x24", (b"a", false)),
            (b"\x23\x2b\x2c\x24", (b"", false)),
            (
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
                (b"", false),
            ),
        ] {
            assert_eq!(data(message), Ok(expected), "{message:x?}");
        }
    }

    #[test]
    fn invalid_messages_are_refused() {
        for (message, expected) in [
            (&b"\x0a"[..], DecodeError::Truncated),
            (b"\x0a\x02a", DecodeError::Truncated),
            (
                b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                DecodeError::Truncated,
            ),
            (b"\x80", DecodeError::Truncated),
            (b"\x0d\x01\x02\x03", DecodeError::Truncated),
            (b"\x21\x01", DecodeError::Truncated),
            (
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                DecodeError::Varint,
            ),
            (b"\x00\x00", DecodeError::FieldNumber),
            (b"\x80\x80\x80\x80\x80\x01\x00", DecodeError::FieldNumber),
            (b"\x0e", DecodeError::WireType),
            (b"\x0f", DecodeError::WireType),
            (b"\x23", DecodeError::Group),
            (b"\x24", DecodeError::Group),
            (b"\x23\x2c", DecodeError::Group),
        ] {
            assert_eq!(data(message), Err(expected), "{message:x?}");
        }
        assert_eq!(data(&[0x23; MAX_GROUPS + 1]), Err(DecodeError::Group));
    }

    #[test]
    fn a_header_is_minimal_and_read_back() {
        for len in [0, 1, 127, 128, 16_383, 16_384, MAX_DATA - 1, MAX_DATA] {
            let mut bytes = [0; MAX_HEADER];
            let n = header(len, &mut bytes);
            assert_eq!(
                start(&bytes[..n], n + len),
                MessageStart::AllData(n),
                "{len}"
            );
            assert_eq!(
                start(&bytes[..n], n + len + 1),
                MessageStart::Other,
                "{len}"
            );
            let mut message = bytes[..n].to_vec();
            message.resize(n + len, 7);
            assert_eq!(decode(&message).map(|c| c.data), Ok(n..n + len));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_chunk_or_an_error(message in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(chunk) = decode(&message) {
                prop_assert!(chunk.data.end <= message.len());
            }
        }

        #[test]
        fn a_streamed_message_decodes_to_the_same_data(message in proptest::collection::vec(any::<u8>(), 0..64)) {
            for n in 0..=message.len() {
                if let MessageStart::AllData(header) = start(&message[..n], message.len()) {
                    let chunk = decode(&message);
                    prop_assert_eq!(chunk, Ok(Chunk { data: header..message.len(), fin: false }));
                }
            }
        }
    }
}
