//! Single steps of the tunnel for `benches/micro`: the work for every byte and for every message.

use tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::http::head;
use crate::tunnel::chunk::{self, MessageStart};
use crate::tunnel::frame::{FrameReader, FrameWriter, MAX_HEADER, Mask, Piece, Role};

/// The client end of a WebSocket, which masks its frames.
#[derive(Debug)]
pub struct Sender {
    writer: FrameWriter,
    mask: Mask,
}

impl Default for Sender {
    fn default() -> Self {
        let mut sender = Self {
            writer: FrameWriter::new(Role::Client),
            mask: Mask::default(),
        };
        sender.header(1);
        sender
    }
}

impl Sender {
    /// Writes the frame header of a message of `len` bytes with a fresh masking key; returns the
    /// header's length.
    pub fn header(&mut self, len: usize) -> usize {
        let mut into = [0; MAX_HEADER];
        let binary = OpCode::Data(Data::Binary);
        let (length, mask) = self.writer.header(binary, len, &mut into).expect("a key");
        self.mask = mask;
        length
    }

    /// Masks `bytes` in place.
    pub fn mask(&mut self, bytes: &mut [u8]) {
        self.mask.apply(bytes);
    }

    /// Masks `from` while it copies it to `to`, which has the same length.
    pub fn copy(&mut self, from: &[u8], to: &mut [u8]) {
        self.mask.copy(from, to);
    }
}

/// Reads the frame at the start of `wire` as a client; returns the length of its payload.
pub fn frame(wire: &[u8]) -> usize {
    let mut reader = FrameReader::new(Role::Client, chunk::MAX_MESSAGE);
    let (mut rest, mut found) = (wire, 0);
    while let Ok(Some(piece)) = reader.next(&mut rest) {
        if let Piece::Payload(bytes, _) = piece {
            found += bytes.len();
        }
        if rest.is_empty() {
            break;
        }
    }
    found
}

/// Writes the header of a chunk with `len` bytes of data; returns the header's length.
pub fn chunk_header(len: usize) -> usize {
    chunk::header(len, &mut [0; chunk::MAX_HEADER])
}

/// Inspects the first bytes of a message, as for every received message; returns the length of its
/// header, or 0.
pub fn chunk_start(message: &[u8]) -> usize {
    match chunk::start(message, message.len()) {
        MessageStart::AllData(header) => header,
        MessageStart::Unknown | MessageStart::Other => 0,
    }
}

/// Decodes a whole message; returns the length of its data.
pub fn chunk_decode(message: &[u8]) -> usize {
    chunk::decode(message).map_or(0, |chunk| chunk.data.len())
}

/// Reads a request head; returns its length.
pub fn request_head(bytes: &[u8]) -> usize {
    match head::request(bytes) {
        Ok(Some((_, len))) => len,
        _ => 0,
    }
}

/// Reads a response head; returns its length.
pub fn response_head(bytes: &[u8]) -> usize {
    match head::response(bytes) {
        Ok(Some((_, len))) => len,
        _ => 0,
    }
}
