//! An echo on the frame layer, for the Autobahn suite in `tests/autobahn`: either end of a
//! WebSocket, without I/O.
//!
//! It does not use the chunk layer, because the messages of the suite are not chunks.

use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::{FrameReader, FrameWriter, MAX_HEADER, Piece, Role};

/// The length of the suite's longest message.
const LONGEST: usize = 16 << 20;

/// One end of a WebSocket that sends back every message.
#[derive(Debug)]
pub struct Echo {
    reader: FrameReader,
    writer: FrameWriter,
    message: Vec<u8>,
    is_last: bool,
    closed: bool,
}

impl Echo {
    /// The server's end.
    pub fn server() -> Self {
        Self::new(Role::Server)
    }

    /// The client's end.
    pub fn client() -> Self {
        Self::new(Role::Client)
    }

    fn new(role: Role) -> Self {
        Self {
            reader: FrameReader::new(role, LONGEST),
            writer: FrameWriter::new(role),
            message: Vec::new(),
            is_last: false,
            closed: false,
        }
    }

    /// Whether this end has sent a close, as the answer to one or because of an error. It reads
    /// nothing after that.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Processes received bytes and returns the bytes to send.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        while !self.closed {
            let sent = match self.reader.next(&mut bytes) {
                Ok(None) => break,
                Ok(Some(piece)) => self.piece(piece, &mut out),
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                self.closed = true;
                let code = u16::from(error.close_code()).to_be_bytes();
                let _ = send(
                    &mut self.writer,
                    OpCode::Control(Control::Close),
                    &code,
                    &mut out,
                );
            }
        }
        out
    }

    fn piece(&mut self, piece: Piece<'_>, out: &mut Vec<u8>) -> Result<(), TunnelError> {
        match piece {
            Piece::Frame { last, .. } => self.is_last = last,
            Piece::Payload(bytes, mut mask) => {
                let from = self.message.len();
                self.message.extend_from_slice(bytes);
                mask.apply(&mut self.message[from..]);
            }
            Piece::FrameEnd if self.is_last => {
                let message = std::mem::take(&mut self.message);
                send(&mut self.writer, OpCode::Data(Data::Binary), &message, out)?;
            }
            Piece::Ping(payload) => {
                send(
                    &mut self.writer,
                    OpCode::Control(Control::Pong),
                    &payload,
                    out,
                )?;
            }
            Piece::Close(code) => {
                self.closed = true;
                let code = u16::from(code.map_or(CloseCode::Normal, CloseCode::from)).to_be_bytes();
                send(
                    &mut self.writer,
                    OpCode::Control(Control::Close),
                    &code,
                    out,
                )?;
            }
            Piece::FrameEnd | Piece::Pong => {}
        }
        Ok(())
    }
}

fn send(
    writer: &mut FrameWriter,
    opcode: OpCode,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), TunnelError> {
    let mut header = [0; MAX_HEADER];
    let (n, mut mask) = writer.header(opcode, payload.len(), &mut header)?;
    out.extend_from_slice(&header[..n]);
    let from = out.len();
    out.extend_from_slice(payload);
    mask.apply(&mut out[from..]);
    Ok(())
}
