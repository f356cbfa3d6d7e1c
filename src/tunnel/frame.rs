//! WebSocket frames ([RFC 6455, section 5]), streamed: payload is delivered as it arrives, no frame
//! is buffered.
//!
//! Without I/O. `tungstenite` parses and formats the header. This module checks the rules about
//! reserved bits, masking, control frames, fragmentation and close payloads. The content of
//! messages belongs to [`super::ws_codec`].
//!
//! [RFC 6455, section 5]: https://www.rfc-editor.org/rfc/rfc6455#section-5

use std::io::{self, Cursor};

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use super::error::{ProtocolError, TunnelError};
use crate::crypto::random;

/// This end of the WebSocket. The client masks its frames, the server does not ([RFC 6455, section
/// 5.1]).
///
/// [RFC 6455, section 5.1]: https://www.rfc-editor.org/rfc/rfc6455#section-5.1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The relay.
    Client,
    /// The gateway.
    Server,
}

/// The maximum length of a header: 2 bytes, 8 bytes of length, 4 bytes of masking key.
pub(crate) const MAX_HEADER: usize = 14;
/// The maximum payload of a control frame ([RFC 6455, section
/// 5.5](https://www.rfc-editor.org/rfc/rfc6455#section-5.5)).
pub(crate) const MAX_CONTROL: usize = 125;

/// A masking key, rotated to the current position in the payload; `None` masks nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask(Option<[u8; 4]>);

impl Mask {
    /// Masks or unmasks `bytes` and advances the position in the key.
    pub(crate) fn apply(&mut self, bytes: &mut [u8]) {
        let Some(key) = &mut self.0 else { return };
        let wide = wide(*key);
        // Arrays instead of slices: no call and no bounds check per word, even in a build for size.
        let (words, tail) = bytes.as_chunks_mut();
        for word in words {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
        for (byte, key) in tail.iter_mut().zip(key.iter().cycle()) {
            *byte ^= key;
        }
        let used = tail.len() % 4;
        key.rotate_left(used);
    }

    /// Copies `from` to `to`, which has the same length, and masks it in the same pass.
    pub(crate) fn copy(&mut self, from: &[u8], to: &mut [u8]) {
        let Some(key) = self.0 else {
            return to.copy_from_slice(from);
        };
        let wide = wide(key);
        let (words, tail) = from.as_chunks();
        let (masked, rest) = to.as_chunks_mut();
        for (from, to) in words.iter().zip(masked) {
            *to = (u64::from_ne_bytes(*from) ^ wide).to_ne_bytes();
        }
        rest.copy_from_slice(tail);
        self.apply(rest);
    }
}

/// The key twice, for eight bytes at a time.
fn wide(key: [u8; 4]) -> u64 {
    let [a, b, c, d] = key;
    u64::from_ne_bytes([a, b, c, d, a, b, c, d])
}

/// One element of the received byte stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// The start of a data frame; its payload follows as `Payload`.
    Frame {
        /// The length of its payload.
        len: usize,
        /// It is the last frame of its message.
        last: bool,
        /// It is the first frame of its message.
        first: bool,
    },
    /// Payload of the current data frame, still masked, and the mask for it.
    Payload(&'a [u8], Mask),
    /// The end of the current data frame.
    FrameEnd,
    /// A ping; the pong must have the same payload.
    Ping(Vec<u8>),
    /// A pong.
    Pong,
    /// A close frame, with its code if it has one.
    Close(Option<u16>),
}

/// Splits the received byte stream into pieces.
#[derive(Debug)]
pub(crate) struct FrameReader {
    role: Role,
    limit: usize,
    header: [u8; MAX_HEADER],
    header_len: usize,
    state: ReadState,
    /// The current message has more frames to come.
    in_message: bool,
    /// The sum of the frame lengths of the current message so far.
    message_len: usize,
}

#[derive(Debug)]
enum ReadState {
    Header,
    Payload {
        left: usize,
        mask: Mask,
    },
    Control {
        control: Control,
        len: usize,
        payload: Vec<u8>,
        mask: Mask,
    },
    Closed,
}

impl FrameReader {
    /// A reader at the end `role`, for messages of at most `limit` bytes.
    pub(crate) fn new(role: Role, limit: usize) -> Self {
        Self {
            role,
            limit,
            header: [0; MAX_HEADER],
            header_len: 0,
            state: ReadState::Header,
            in_message: false,
            message_len: 0,
        }
    }

    /// Takes the next piece from the front of `bytes`; `None` if more bytes are needed. All bytes
    /// after a close are dropped.
    pub(crate) fn next<'a>(
        &mut self,
        bytes: &mut &'a [u8],
    ) -> Result<Option<Piece<'a>>, TunnelError> {
        loop {
            match &mut self.state {
                ReadState::Header => match self.read_header(bytes)? {
                    Some((header, len)) => {
                        if let Some(piece) = self.begin_frame(&header, len)? {
                            return Ok(Some(piece));
                        }
                    }
                    None => return Ok(None),
                },
                ReadState::Payload { left: 0, .. } => {
                    self.state = ReadState::Header;
                    return Ok(Some(Piece::FrameEnd));
                }
                ReadState::Payload { left, mask } => {
                    let taken = take(bytes, *left);
                    if taken.is_empty() {
                        return Ok(None);
                    }
                    *left -= taken.len();
                    let now = *mask;
                    if let Some(key) = &mut mask.0 {
                        key.rotate_left(taken.len() % 4);
                    }
                    return Ok(Some(Piece::Payload(taken, now)));
                }
                ReadState::Control {
                    control,
                    len,
                    payload,
                    mask,
                } => {
                    let from = payload.len();
                    payload.extend_from_slice(take(bytes, *len - from));
                    mask.apply(&mut payload[from..]);
                    if payload.len() < *len {
                        return Ok(None);
                    }
                    let (control, payload) = (*control, std::mem::take(payload));
                    self.state = if control == Control::Close {
                        ReadState::Closed
                    } else {
                        ReadState::Header
                    };
                    return Ok(Some(match control {
                        Control::Ping => Piece::Ping(payload),
                        Control::Close => Piece::Close(close_code(&payload)?),
                        _ => Piece::Pong,
                    }));
                }
                ReadState::Closed => {
                    *bytes = &[];
                    return Ok(None);
                }
            }
        }
    }

    /// Reads a header, over several calls if it arrives in parts.
    fn read_header(
        &mut self,
        bytes: &mut &[u8],
    ) -> Result<Option<(FrameHeader, u64)>, TunnelError> {
        let have = self.header_len;
        let added = take(&mut { *bytes }, MAX_HEADER - have);
        self.header[have..have + added.len()].copy_from_slice(added);
        let mut cursor = Cursor::new(&self.header[..have + added.len()]);
        match FrameHeader::parse(&mut cursor) {
            Ok(Some(parsed)) => {
                take(bytes, cursor.position() as usize - have);
                self.header_len = 0;
                Ok(Some(parsed))
            }
            Ok(None) => {
                take(bytes, added.len());
                self.header_len = have + added.len();
                Ok(None)
            }
            Err(_) => Err(ProtocolError::Opcode.into()),
        }
    }

    /// Whether a frame has begun and is not complete.
    #[cfg(feature = "gateway")]
    pub(crate) fn is_inside_frame(&self) -> bool {
        self.header_len > 0
            || matches!(
                self.state,
                ReadState::Payload { .. } | ReadState::Control { .. }
            )
    }

    /// The number of bytes of the current frame's payload that have not been received.
    pub(crate) fn payload_left(&self) -> usize {
        match self.state {
            ReadState::Payload { left, .. } => left,
            _ => 0,
        }
    }

    /// Unmasks payload of the current frame in place, from the front of `bytes`; returns its
    /// length.
    pub(crate) fn unmask(&mut self, bytes: &mut [u8]) -> usize {
        let ReadState::Payload { left, mask } = &mut self.state else {
            return 0;
        };
        let taken = bytes.len().min(*left);
        *left -= taken;
        mask.apply(&mut bytes[..taken]);
        taken
    }

    fn begin_frame(
        &mut self,
        header: &FrameHeader,
        len: u64,
    ) -> Result<Option<Piece<'static>>, TunnelError> {
        // RFC 6455, section 5.2: reserved bits "MUST be 0 unless an extension is negotiated".
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(ProtocolError::ReservedBit.into());
        }
        // RFC 6455, section 5.1: the server closes the connection "upon receiving a frame that is
        // not masked", the client if it receives a masked one.
        if header.mask.is_some() != (self.role == Role::Server) {
            return Err(ProtocolError::Masking.into());
        }
        // RFC 6455, section 5.2: the most significant bit of a 64-bit length "MUST be 0".
        if len >> 63 != 0 {
            return Err(ProtocolError::Length.into());
        }
        let mask = Mask(header.mask);
        match header.opcode {
            OpCode::Control(control) => {
                // RFC 6455, section 5.5: "MUST have a payload length of 125 bytes or less and MUST
                // NOT be fragmented".
                if len > MAX_CONTROL as u64 || !header.is_final {
                    return Err(ProtocolError::ControlFrame.into());
                }
                self.state = ReadState::Control {
                    control,
                    len: len as usize,
                    payload: Vec::new(),
                    mask,
                };
                Ok(None)
            }
            OpCode::Data(data) => {
                match (data, self.in_message) {
                    (Data::Binary, false) | (Data::Continue, true) => {}
                    (Data::Text, false) => return Err(ProtocolError::Text.into()),
                    (Data::Continue, false) => {
                        return Err(ProtocolError::Continuation.into());
                    }
                    _ => return Err(ProtocolError::Interleaved.into()),
                }
                let first = !self.in_message;
                let before = if first { 0 } else { self.message_len };
                let len = usize::try_from(len).map_err(|_| ProtocolError::TooLarge)?;
                if len > self.limit.saturating_sub(before) {
                    return Err(ProtocolError::TooLarge.into());
                }
                self.message_len = before + len;
                self.in_message = !header.is_final;
                self.state = ReadState::Payload { left: len, mask };
                Ok(Some(Piece::Frame {
                    len,
                    last: header.is_final,
                    first,
                }))
            }
        }
    }
}

/// Takes up to `n` bytes from the front of `bytes`.
fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(n.min(bytes.len()));
    *bytes = rest;
    taken
}

/// The code in a close payload, which is empty or consists of a code and UTF-8 text ([RFC 6455,
/// section 5.5.1]).
///
/// [RFC 6455, section 5.5.1]: https://www.rfc-editor.org/rfc/rfc6455#section-5.5.1
fn close_code(payload: &[u8]) -> Result<Option<u16>, TunnelError> {
    match payload {
        [] => Ok(None),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !CloseCode::from(code).is_allowed() || std::str::from_utf8(reason).is_err() {
                return Err(ProtocolError::ClosePayload.into());
            }
            Ok(Some(code))
        }
        [_] => Err(ProtocolError::ClosePayload.into()),
    }
}

/// Writes frame headers, with a fresh masking key per frame if this end is the client.
pub(crate) struct FrameWriter {
    role: Role,
    keys: [u8; KEYS],
    used: usize,
}

/// The number of bytes of key material per system call.
const KEYS: usize = 256;

impl std::fmt::Debug for FrameWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameWriter")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl FrameWriter {
    /// A writer for frames sent by `role`.
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role,
            keys: [0; KEYS],
            used: KEYS,
        }
    }

    /// Writes the header of an unfragmented message of `len` bytes; returns its length and the mask
    /// for the payload.
    pub(crate) fn header(
        &mut self,
        opcode: OpCode,
        len: usize,
        into: &mut [u8; MAX_HEADER],
    ) -> Result<(usize, Mask), TunnelError> {
        let mask = match self.role {
            Role::Client => Some(self.key()?),
            Role::Server => None,
        };
        let header = FrameHeader {
            is_final: true,
            opcode,
            mask,
            ..FrameHeader::default()
        };
        let mut cursor = Cursor::new(&mut into[..]);
        header
            .format(len as u64, &mut cursor)
            .map_err(|_| io::Error::from(io::ErrorKind::WriteZero))?;
        Ok((cursor.position() as usize, Mask(mask)))
    }

    /// A key that cannot be predicted ([RFC 6455, section
    /// 5.3](https://www.rfc-editor.org/rfc/rfc6455#section-5.3)).
    fn key(&mut self) -> Result<[u8; 4], TunnelError> {
        if self.used + 4 > KEYS {
            random::fill(&mut self.keys)?;
            self.used = 0;
        }
        let mut key = [0; 4];
        key.copy_from_slice(&self.keys[self.used..self.used + 4]);
        self.used += 4;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tungstenite::protocol::frame::Frame;

    use super::*;

    /// The data and control frames in `bytes`, received in parts of `step` bytes.
    fn read(role: Role, bytes: &[u8], step: usize) -> Result<Vec<String>, TunnelError> {
        let mut reader = FrameReader::new(role, 1 << 20);
        let mut events = Vec::new();
        let mut payload = Vec::new();
        for part in bytes.chunks(step.max(1)) {
            let mut part = part;
            while let Some(piece) = reader.next(&mut part)? {
                match piece {
                    Piece::Payload(bytes, mut mask) => {
                        let from = payload.len();
                        payload.extend_from_slice(bytes);
                        mask.apply(&mut payload[from..]);
                    }
                    Piece::FrameEnd => events.push(format!(
                        "{:?}",
                        String::from_utf8_lossy(&std::mem::take(&mut payload))
                    )),
                    other => events.push(format!("{other:?}")),
                }
            }
            assert!(part.is_empty());
        }
        Ok(events)
    }

    /// A frame as written by tungstenite.
    fn frame(opcode: OpCode, last: bool, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
        let header = FrameHeader {
            is_final: last,
            opcode,
            mask,
            ..FrameHeader::default()
        };
        let mut bytes = Vec::new();
        Frame::from_payload(header, payload.to_vec().into())
            .format(&mut bytes)
            .expect("formats");
        bytes
    }

    #[test]
    fn any_segmentation_gives_the_same_pieces() {
        let key = Some([1, 2, 3, 4]);
        let mut bytes = frame(OpCode::Data(Data::Binary), false, key, b"hel");
        bytes.extend(frame(
            OpCode::Control(Control::Ping),
            true,
            key,
            b"are you alive",
        ));
        bytes.extend(frame(OpCode::Data(Data::Continue), true, key, b"lo, world"));
        bytes.extend(frame(
            OpCode::Data(Data::Binary),
            true,
            key,
            &vec![b'x'; 70_000],
        ));
        bytes.extend(frame(
            OpCode::Control(Control::Close),
            true,
            key,
            b"\x03\xe8bye",
        ));
        let whole = read(Role::Server, &bytes, bytes.len()).expect("reads");
        assert_eq!(whole.len(), 8);
        assert_eq!(whole[1], "\"hel\"");
        assert_eq!(whole[4], "\"lo, world\"");
        assert_eq!(whole[7], "Close(Some(1000))");
        for step in [1, 2, 3, 5, 7, 13, 1000] {
            assert_eq!(
                read(Role::Server, &bytes, step).expect("reads"),
                whole,
                "{step}"
            );
        }
    }

    #[test]
    fn violations_of_the_rfc_are_refused() {
        use ProtocolError::{
            ClosePayload, Continuation, ControlFrame, Interleaved, Length, Masking, Opcode,
            ReservedBit,
        };

        let binary = OpCode::Data(Data::Binary);
        let unmasked = frame(binary, true, None, b"x");
        let masked = frame(binary, true, Some([9; 4]), b"x");
        let huge = vec![0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
        let cases: [(ProtocolError, Role, Vec<u8>); 13] = [
            (Masking, Role::Client, masked),
            (Masking, Role::Server, unmasked),
            (ReservedBit, Role::Client, vec![0xc2, 0]),
            (Opcode, Role::Client, vec![0x83, 0]),
            (Opcode, Role::Client, vec![0x8b, 0]),
            (ControlFrame, Role::Client, vec![0x09, 0]),
            (ControlFrame, Role::Client, vec![0x89, 126, 0, 126]),
            (Continuation, Role::Client, vec![0x80, 0]),
            (Interleaved, Role::Client, vec![0x02, 0, 0x82, 0]),
            (Length, Role::Client, huge),
            // One byte, a code that must not be sent, a reason that is not UTF-8.
            (ClosePayload, Role::Client, vec![0x88, 1, 3]),
            (ClosePayload, Role::Client, vec![0x88, 2, 0x03, 0xed]),
            (ClosePayload, Role::Client, vec![0x88, 3, 0x03, 0xe8, 0xff]),
        ];
        for (expected, role, bytes) in cases {
            assert!(
                matches!(read(role, &bytes, 1), Err(TunnelError::WebSocket(error)) if error == expected),
                "{expected:?}"
            );
        }
        assert!(matches!(
            read(Role::Client, &[0x81, 0], 1),
            Err(TunnelError::WebSocket(ProtocolError::Text))
        ));
        assert!(matches!(
            read(Role::Client, &[0x82, 127, 0, 0, 0, 0, 0, 16, 0, 1], 1),
            Err(TunnelError::WebSocket(ProtocolError::TooLarge))
        ));
        let mut fragments = frame(binary, false, None, &vec![0; 1 << 19]);
        fragments.extend(frame(
            OpCode::Data(Data::Continue),
            false,
            None,
            &vec![0; 1 << 19],
        ));
        assert!(read(Role::Client, &fragments, 4096).is_ok());
        fragments.extend([0x80, 1]);
        assert!(matches!(
            read(Role::Client, &fragments, 4096),
            Err(TunnelError::WebSocket(ProtocolError::TooLarge))
        ));
    }

    #[test]
    fn bytes_after_a_close_are_dropped() {
        let events = read(Role::Client, &[0x88, 0, 0x82, 1, b'x'], 1).expect("reads");
        assert_eq!(events, ["Close(None)"]);
    }

    #[test]
    fn tungstenite_reads_what_the_writer_writes() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            for role in [Role::Client, Role::Server] {
                let mut into = [0; MAX_HEADER];
                let mut writer = FrameWriter::new(role);
                let (n, mask) = writer
                    .header(OpCode::Data(Data::Binary), len, &mut into)
                    .expect("writes");
                let (header, read_len) = FrameHeader::parse(&mut Cursor::new(&into[..n]))
                    .expect("parses")
                    .expect("is whole");
                assert_eq!((read_len, Mask(header.mask)), (len as u64, mask));
                assert_eq!(header.mask.is_some(), role == Role::Client);
            }
        }
    }

    #[test]
    fn mask_keys_do_not_repeat() {
        let mut writer = FrameWriter::new(Role::Client);
        let keys: std::collections::HashSet<_> =
            (0..200).map(|_| writer.key().expect("a key")).collect();
        assert!(
            keys.len() > 195,
            "32 random bits collide almost never in 200 draws"
        );
    }

    proptest! {
        #[test]
        fn a_mask_applied_in_parts_is_the_mask_applied_at_once(bytes in proptest::collection::vec(any::<u8>(), 0..100), cut in 0_usize..100) {
            let mut whole = bytes.clone();
            Mask(Some([1, 2, 3, 4])).apply(&mut whole);
            let mut parts = bytes.clone();
            let mut mask = Mask(Some([1, 2, 3, 4]));
            let (a, b) = parts.split_at_mut(cut.min(bytes.len()));
            mask.apply(a);
            mask.apply(b);
            prop_assert_eq!(&parts, &whole);
            for (i, byte) in bytes.iter().enumerate() {
                prop_assert_eq!(whole[i], byte ^ [1, 2, 3, 4][i % 4]);
            }
        }

        #[test]
        fn any_bytes_give_pieces_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1_usize..20) {
            let _ = read(Role::Client, &bytes, step);
            let _ = read(Role::Server, &bytes, step);
        }
    }
}
