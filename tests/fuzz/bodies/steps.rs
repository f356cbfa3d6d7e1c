//! Single steps of the tunnel, bare, for `benches/micro`: what is done to every byte or for every message.

use tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::http::head;
use crate::tunnel::chunk::{self, Start};
use crate::tunnel::frame::{FrameReader, FrameWriter, MAX_HEADER, Mask, Piece, Role};

/// The client's end of a WebSocket: it masks.
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
    /// The frame's header before a message of `len` bytes, a fresh key in it; returns the header's length.
    pub fn header(&mut self, len: usize) -> usize {
        let mut into = [0; MAX_HEADER];
        let binary = OpCode::Data(Data::Binary);
        let (length, mask) = self.writer.header(binary, len, &mut into).expect("a key");
        self.mask = mask;
        length
    }

    /// Masks where it lies.
    pub fn mask(&mut self, bytes: &mut [u8]) {
        self.mask.apply(bytes);
    }

    /// Masks on the way to another place of the same length.
    pub fn copy(&mut self, from: &[u8], to: &mut [u8]) {
        self.mask.copy(from, to);
    }
}

/// Takes the frame at the front of `wire` apart, as a client that gets it; returns how much payload is in it.
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

/// Writes a chunk's header for `len` bytes of data; returns the header's length.
pub fn chunk_header(len: usize) -> usize {
    chunk::header(len, &mut [0; chunk::MAX_HEADER])
}

/// What the first bytes of a message tell, as every received one is looked at; returns the length of its header.
pub fn chunk_start(message: &[u8]) -> usize {
    match chunk::start(message, message.len()) {
        Start::AllData(header) => header,
        Start::Unknown | Start::Other => 0,
    }
}

/// Decodes a whole message; returns how much data is in it.
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
