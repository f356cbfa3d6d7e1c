//! Reference implementations for the targets of the wire: a simple recursive chunk decoder, and
//! tungstenite's `WebSocket`.
//!
//! Written to be easy to verify, not to be fast: everything is copied, nothing is streamed.

use std::io::{self, Cursor, Read, Write};

use tungstenite::protocol::{Role as TungsteniteRole, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

use crate::tunnel::chunk::MAX_MESSAGE;
use crate::tunnel::frame::Role;

/// The maximum depth of nested groups.
const MAX_DEPTH: usize = 100;

/// Decodes a chunk: its data and its `fin`, or `None` if the message is not a chunk.
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

/// The bytes that are not read yet.
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

    /// The next field. A group is one field together with its content.
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
            3 if depth < MAX_DEPTH => loop {
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

/// What a WebSocket received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// Why reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The bytes ended, perhaps inside a message.
    Bytes,
    /// A close frame.
    Close,
    /// An error. A text message is one.
    Error,
}

/// Reads bytes that the peer of `role` sent, with tungstenite.
pub(super) fn read(role: Role, wire: &[u8]) -> (Vec<Event>, End) {
    let limit = Some(MAX_MESSAGE);
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .max_message_size(limit)
        .max_frame_size(limit);
    let role = match role {
        Role::Client => TungsteniteRole::Client,
        Role::Server => TungsteniteRole::Server,
    };
    let mut socket = WebSocket::from_raw_socket(Wire(Cursor::new(wire)), role, Some(config));
    let mut events = Vec::new();
    loop {
        events.push(match socket.read() {
            Ok(Message::Binary(bytes)) => Event::Binary(bytes.to_vec()),
            Ok(Message::Ping(payload)) => Event::Ping(payload.to_vec()),
            Ok(Message::Pong(_)) => Event::Pong,
            Ok(Message::Close(frame)) => {
                events.push(Event::Close(frame.map(|frame| frame.code.into())));
                return (events, End::Close);
            }
            Err(Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => return (events, End::Bytes),
            Ok(_) | Err(_) => return (events, End::Error),
        });
    }
}

/// A stream of bytes to read. Writes are discarded.
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
