//! What the wire's readers are compared with: a chunk decoder as plain as can be, and tungstenite's own WebSocket.
//!
//! Written for the eye, not for speed: everything is copied, nothing is streamed.

use std::io::{self, Cursor, Read, Write};

use tungstenite::protocol::{Role as TheirRole, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

use crate::tunnel::chunk::MAX_MESSAGE;
use crate::tunnel::frame::Role;

/// How deep groups may nest.
const DEEPEST: usize = 100;

/// The data and the `fin` of a chunk; `None` for what is no chunk.
pub(super) fn decode(message: &[u8]) -> Option<(Vec<u8>, bool)> {
    let mut input = Input(message);
    let mut data = Vec::new();
    let mut fin = false;
    while !input.0.is_empty() {
        match input.field(0)? {
            (1, Value::Bytes(bytes)) => data = bytes,
            (2, Value::Number(number)) => fin = number != 0,
            (_, Value::GroupEnd) => return None,
            _ => {}
        }
    }
    Some((data, fin))
}

enum Value {
    Number(u64),
    Bytes(Vec<u8>),
    Other,
    GroupEnd,
}

/// What is still to be read.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take(&mut self, n: u64) -> Option<Vec<u8>> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(n).ok()?)?;
        self.0 = rest;
        Some(taken.to_vec())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u128;
        for place in 0..10 {
            let byte = self.take(1)?[0];
            value |= u128::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Some(value as u64);
            }
        }
        None
    }

    /// The next field, a group with all that is in it.
    fn field(&mut self, depth: usize) -> Option<(u64, Value)> {
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number >= 1 << 29 {
            return None;
        }
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            3 if depth < DEEPEST => loop {
                if let (end, Value::GroupEnd) = self.field(depth + 1)? {
                    break (end == number).then_some(Value::Other)?;
                }
            },
            4 => Value::GroupEnd,
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return None,
        };
        Some((number, value))
    }
}

/// What a WebSocket said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// How it came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The bytes ended, perhaps in a message's middle.
    Bytes,
    /// A close.
    Close,
    /// A fault, a text message among them.
    TunnelError,
}

/// What tungstenite makes of the bytes that the peer of `role` sent.
pub(super) fn read(role: Role, wire: &[u8]) -> (Vec<Said>, End) {
    let limit = Some(MAX_MESSAGE);
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .max_message_size(limit)
        .max_frame_size(limit);
    let theirs = match role {
        Role::Client => TheirRole::Client,
        Role::Server => TheirRole::Server,
    };
    let mut socket = WebSocket::from_raw_socket(Wire(Cursor::new(wire)), theirs, Some(config));
    let mut said = Vec::new();
    loop {
        said.push(match socket.read() {
            Ok(Message::Binary(bytes)) => Said::Binary(bytes.to_vec()),
            Ok(Message::Ping(payload)) => Said::Ping(payload.to_vec()),
            Ok(Message::Pong(_)) => Said::Pong,
            Ok(Message::Close(frame)) => {
                said.push(Said::Close(frame.map(|frame| frame.code.into())));
                return (said, End::Close);
            }
            Err(Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => return (said, End::Bytes),
            Ok(_) | Err(_) => return (said, End::TunnelError),
        });
    }
}

/// Bytes to read, and nowhere to write to.
struct Wire<'a>(Cursor<&'a [u8]>);

impl Read for Wire<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
