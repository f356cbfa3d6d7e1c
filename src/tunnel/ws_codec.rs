//! The codec for the stream in a WebSocket: chunks in binary messages, `fin`, ping, pong and close
//! (`manual/protocol.md`, Messages).
//!
//! Without I/O. Below it is TLS ([`super::tls`]) or the socket, above it plain bytes. The data of
//! an unfragmented message that contains nothing else is delivered as it arrives. Any other message
//! is assembled first. A message of more than 4 KiB then needs memory of a budget that all tunnels
//! share.

use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use super::buffer::Buffer;
use super::chunk::{self, MessageStart};
use super::error::{ProtocolError, TunnelError};
use super::frame::{self, FrameReader, FrameWriter, Mask, Piece, Role};
use crate::control::shares::{Share, Shares};

/// The version of the wire protocol; only version 2 has `fin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// No subprotocol was selected.
    V1,
    /// `upstreamproxy.v2` was selected.
    V2,
}

/// The subprotocol that selects version 2.
pub(crate) const SUBPROTOCOL_V2: &str = "upstreamproxy.v2";

/// The size of the budget for each tunnel that may be open, and its smallest and largest size.
const BUDGET_PER_TUNNEL: usize = 128 << 10;
const BUDGET_SIZES: (usize, usize) = (4 << 20, 64 << 20);
/// The beginning of each message needs no budget. It is more than `fin` or an opening needs, so
/// these arrive even if the budget is used up.
const UNCOUNTED: usize = 4 << 10;

/// The memory for messages that are being assembled, over all tunnels of one relay or gateway, and
/// the party whose share of it a tunnel uses.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    shares: Shares,
    party: Option<u64>,
}

impl Budget {
    /// The budget of a relay or gateway with at most `tunnels` tunnels.
    pub(crate) fn new(tunnels: usize) -> Self {
        let (least, most) = BUDGET_SIZES;
        let size = tunnels.saturating_mul(BUDGET_PER_TUNNEL).clamp(least, most);
        Self {
            shares: Shares::new(size),
            party: None,
        }
    }

    /// The same budget for a tunnel of `party`; `None`: there is no other party.
    #[cfg(any(test, feature = "gateway"))]
    pub(crate) fn of(&self, party: Option<u64>) -> Self {
        Self {
            shares: self.shares.clone(),
            party,
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

/// A message that is being assembled; it counts against the budget until it is dropped.
#[derive(Debug)]
struct Assembly {
    bytes: Vec<u8>,
    share: Share,
}

impl Assembly {
    fn new(budget: &Budget) -> Self {
        Self {
            bytes: Vec::new(),
            share: budget.shares.empty(budget.party),
        }
    }

    /// Appends `bytes`, if the budget permits.
    fn extend(&mut self, bytes: &[u8], mut mask: Mask) -> Result<(), TunnelError> {
        let from = self.bytes.len();
        let over = (from + bytes.len()).saturating_sub(UNCOUNTED) - self.share.amount();
        if !self.share.grow(over) {
            return Err(ProtocolError::NoBudget.into());
        }
        self.bytes.extend_from_slice(bytes);
        mask.apply(&mut self.bytes[from..]);
        Ok(())
    }
}

/// The state of the message that is being received.
#[derive(Debug)]
enum MessageState {
    /// Between messages.
    Idle,
    /// Too few bytes to classify a message of `len` bytes.
    Start {
        first: [u8; chunk::MAX_HEADER],
        have: usize,
        len: usize,
    },
    /// The rest of the message is data.
    Data,
    /// The message is decoded when it is complete. `last`: the current frame is its last one.
    Assembly { assembly: Assembly, last: bool },
}

/// The peer's close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerClose {
    /// Its close code, if it has one.
    pub(crate) code: Option<u16>,
}

/// The codec of one end of a WebSocket.
#[derive(Debug)]
pub(crate) struct WsCodec {
    version: Version,
    reader: FrameReader,
    writer: FrameWriter,
    inbound: MessageState,
    budget: Budget,
    /// The payload of the latest ping that has not been answered.
    pending_pong: Option<Vec<u8>>,
    fin_received: bool,
    fin_queued: bool,
    peer_close: Option<PeerClose>,
    close_queued: bool,
}

impl WsCodec {
    /// A codec for one end of a WebSocket after its opening handshake.
    pub(crate) fn new(role: Role, version: Version, budget: &Budget) -> Self {
        Self {
            version,
            reader: FrameReader::new(role, chunk::MAX_MESSAGE),
            writer: FrameWriter::new(role),
            inbound: MessageState::Idle,
            budget: budget.clone(),
            pending_pong: None,
            fin_received: false,
            fin_queued: false,
            peer_close: None,
            close_queued: false,
        }
    }

    /// The negotiated version.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Whether a frame or a message has begun and is not complete.
    #[cfg(feature = "gateway")]
    pub(crate) fn is_inside_message(&self) -> bool {
        self.reader.is_inside_frame() || !matches!(self.inbound, MessageState::Idle)
    }

    /// Whether a `fin` was received.
    pub(crate) fn fin_received(&self) -> bool {
        self.fin_received
    }

    /// Whether a `fin` was encoded for sending.
    pub(crate) fn fin_queued(&self) -> bool {
        self.fin_queued
    }

    /// The received close frame, if any.
    pub(crate) fn peer_close(&self) -> Option<PeerClose> {
        self.peer_close
    }

    /// Whether a close frame was encoded for sending.
    pub(crate) fn close_queued(&self) -> bool {
        self.close_queued
    }

    /// Decodes `wire` and appends its data to `plain`.
    pub(crate) fn decode(
        &mut self,
        mut wire: &[u8],
        plain: &mut Buffer,
    ) -> Result<(), TunnelError> {
        while let Some(piece) = self.reader.next(&mut wire)? {
            match piece {
                Piece::Frame {
                    len,
                    last,
                    first: true,
                } if last => {
                    self.inbound = MessageState::Start {
                        first: [0; chunk::MAX_HEADER],
                        have: 0,
                        len,
                    };
                }
                Piece::Frame {
                    last, first: true, ..
                } => {
                    self.inbound = MessageState::Assembly {
                        assembly: Assembly::new(&self.budget),
                        last,
                    };
                }
                Piece::Frame { last: ends, .. } => {
                    if let MessageState::Assembly { last, .. } = &mut self.inbound {
                        *last = ends;
                    }
                }
                Piece::Payload(bytes, mask) => self.payload(bytes, mask, plain)?,
                Piece::FrameEnd => self.frame_end(plain)?,
                // RFC 6455, section 5.5.3: "the endpoint MAY elect to send a Pong frame for only
                // the most recently processed Ping frame".
                Piece::Ping(payload) => self.pending_pong = Some(payload),
                Piece::Pong => {}
                // RFC 6455, section 5.5.1: no data follows a close frame, so this message will not
                // be completed.
                Piece::Close(Some(1000 | 1001)) if !matches!(self.inbound, MessageState::Idle) => {
                    return Err(ProtocolError::CloseInMessage.into());
                }
                Piece::Close(code) => self.peer_close = Some(PeerClose { code }),
            }
        }
        Ok(())
    }

    fn payload(
        &mut self,
        mut bytes: &[u8],
        mut mask: Mask,
        plain: &mut Buffer,
    ) -> Result<(), TunnelError> {
        if let MessageState::Start { first, have, len } = &mut self.inbound {
            let mut start = chunk::start(&first[..*have], *len);
            while start == MessageStart::Unknown {
                let Some((byte, rest)) = bytes.split_first() else {
                    return Ok(());
                };
                first[*have] = *byte;
                mask.apply(&mut first[*have..=*have]);
                *have += 1;
                bytes = rest;
                start = chunk::start(&first[..*have], *len);
            }
            self.inbound = if let MessageStart::AllData(_) = start {
                MessageState::Data
            } else {
                let mut assembly = Assembly::new(&self.budget);
                assembly.extend(&first[..*have], Mask::default())?;
                MessageState::Assembly {
                    assembly,
                    last: true,
                }
            };
        }
        match &mut self.inbound {
            MessageState::Assembly { assembly, .. } => assembly.extend(bytes, mask),
            _ => self.deliver(bytes, mask, plain),
        }
    }

    fn frame_end(&mut self, plain: &mut Buffer) -> Result<(), TunnelError> {
        match std::mem::replace(&mut self.inbound, MessageState::Idle) {
            unfinished @ MessageState::Assembly { last: false, .. } => {
                self.inbound = unfinished;
                Ok(())
            }
            MessageState::Assembly { assembly, .. } => self.complete(&assembly.bytes, plain),
            MessageState::Start { first, have, .. } => self.complete(&first[..have], plain),
            MessageState::Idle | MessageState::Data => Ok(()),
        }
    }

    /// Decodes an assembled message.
    fn complete(&mut self, message: &[u8], plain: &mut Buffer) -> Result<(), TunnelError> {
        let chunk = chunk::decode(message)?;
        self.deliver(&message[chunk.data], Mask::default(), plain)?;
        // Version 1 does not have field 2, and proto3 skips unknown fields.
        self.fin_received |= chunk.fin && self.version == Version::V2;
        Ok(())
    }

    fn deliver(
        &mut self,
        bytes: &[u8],
        mut mask: Mask,
        plain: &mut Buffer,
    ) -> Result<(), TunnelError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.fin_received {
            return Err(ProtocolError::DataAfterFin.into());
        }
        mask.copy(bytes, &mut plain.reserve(bytes.len())[..bytes.len()]);
        plain.advance(bytes.len());
        Ok(())
    }

    /// The number of bytes that are certain to be data before the next header.
    pub(crate) fn data_left(&self) -> usize {
        match self.inbound {
            MessageState::Data if !self.fin_received => self.reader.payload_left(),
            _ => 0,
        }
    }

    /// Unmasks data in place, from the front of `wire`; returns its length.
    pub(crate) fn open_in_place(&mut self, wire: &mut [u8]) -> usize {
        if self.data_left() == 0 {
            return 0;
        }
        self.reader.unmask(wire)
    }

    /// Encodes the data in `plain` as messages, which replace it. One chunk is encoded in place.
    pub(crate) fn encode(&mut self, plain: &mut Buffer) -> Result<(), TunnelError> {
        let len = plain.len();
        if len == 0 {
            return Ok(());
        }
        if len <= chunk::MAX_DATA && plain.has_headroom(frame::MAX_HEADER + chunk::MAX_HEADER) {
            let (header, n, mut mask) = self.data_header(len)?;
            mask.apply(plain.filled_mut());
            plain.prepend(&header[..n]);
            return Ok(());
        }
        let bytes = plain.filled().to_vec();
        plain.consume(len);
        for part in bytes.chunks(chunk::MAX_DATA) {
            let (header, n, mut mask) = self.data_header(part.len())?;
            plain.extend(&header[..n]);
            let from = plain.len();
            plain.extend(part);
            mask.apply(&mut plain.filled_mut()[from..]);
        }
        Ok(())
    }

    /// The headers of frame and chunk, their total length, and the mask for the data.
    fn data_header(
        &mut self,
        len: usize,
    ) -> Result<([u8; frame::MAX_HEADER + chunk::MAX_HEADER], usize, Mask), TunnelError> {
        let mut inner = [0; chunk::MAX_HEADER];
        let inner_len = chunk::header(len, &mut inner);
        let mut outer = [0; frame::MAX_HEADER];
        let (outer_len, mut mask) =
            self.writer
                .header(OpCode::Data(Data::Binary), inner_len + len, &mut outer)?;
        mask.apply(&mut inner[..inner_len]);
        let mut header = [0; frame::MAX_HEADER + chunk::MAX_HEADER];
        header[..outer_len].copy_from_slice(&outer[..outer_len]);
        header[outer_len..outer_len + inner_len].copy_from_slice(&inner[..inner_len]);
        Ok((header, outer_len + inner_len, mask))
    }

    /// Appends a `fin` to `wire`, once. Version 1 has none.
    pub(crate) fn fin(&mut self, wire: &mut Buffer) -> Result<(), TunnelError> {
        if self.version == Version::V2 && !self.fin_queued {
            self.fin_queued = true;
            self.small(OpCode::Data(Data::Binary), &chunk::FIN, wire)?;
        }
        Ok(())
    }

    /// Appends a ping to `wire`.
    pub(crate) fn ping(&mut self, wire: &mut Buffer) -> Result<(), TunnelError> {
        self.small(OpCode::Control(Control::Ping), b"", wire)
    }

    /// Appends a pong to `wire` if a ping has not been answered.
    pub(crate) fn pong(&mut self, wire: &mut Buffer) -> Result<(), TunnelError> {
        match self.pending_pong.take() {
            Some(payload) if !self.close_queued => {
                self.small(OpCode::Control(Control::Pong), &payload, wire)
            }
            _ => Ok(()),
        }
    }

    /// Appends a close frame with `code` to `wire`, once.
    pub(crate) fn close(&mut self, code: CloseCode, wire: &mut Buffer) -> Result<(), TunnelError> {
        if std::mem::replace(&mut self.close_queued, true) {
            return Ok(());
        }
        self.small(
            OpCode::Control(Control::Close),
            &u16::from(code).to_be_bytes(),
            wire,
        )
    }

    fn small(
        &mut self,
        opcode: OpCode,
        payload: &[u8],
        wire: &mut Buffer,
    ) -> Result<(), TunnelError> {
        let mut header = [0; frame::MAX_HEADER];
        let (n, mut mask) = self.writer.header(opcode, payload.len(), &mut header)?;
        wire.extend(&header[..n]);
        let from = wire.len();
        wire.extend(payload);
        mask.apply(&mut wire.filled_mut()[from..]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor, Read, Write};

    use proptest::prelude::*;
    use tungstenite::protocol::frame::Frame;
    use tungstenite::protocol::{Role as TungsteniteRole, WebSocket};
    use tungstenite::{Bytes, Message};

    use super::super::buffer::Pool;
    use super::*;

    struct End {
        messages: WsCodec,
        plain: Buffer,
        wire: Buffer,
    }

    fn end(role: Role, version: Version) -> End {
        let pool = Pool::default();
        let messages = WsCodec::new(role, version, &Budget::default());
        End {
            messages,
            plain: Buffer::new(&pool),
            wire: Buffer::new(&pool),
        }
    }

    /// An unmasked frame, as a server sends it.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            n @ 0..=125 => bytes.push(n as u8),
            n => {
                bytes.push(126);
                bytes.extend((n as u16).to_be_bytes());
            }
        }
        bytes.extend(payload);
        bytes
    }

    fn opened(
        version: Version,
        wire: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, WsCodec), TunnelError> {
        let mut client = end(Role::Client, version);
        for part in wire.chunks(step) {
            client.messages.decode(part, &mut client.plain)?;
        }
        Ok((client.plain.filled().to_vec(), client.messages))
    }

    #[test]
    fn one_end_opens_what_the_other_seals_in_any_segmentation() {
        for (from, to) in [(Role::Client, Role::Server), (Role::Server, Role::Client)] {
            for len in [
                1,
                127,
                128,
                5_000,
                70_000,
                chunk::MAX_DATA,
                chunk::MAX_DATA + 1,
                3 * chunk::MAX_DATA,
            ] {
                let data: Vec<u8> = (0..len).map(|i| (i * 7 + i / 256) as u8).collect();
                let mut sender = end(from, Version::V2);
                sender.plain.extend(&data);
                sender.messages.encode(&mut sender.plain).expect("encodes");
                for step in [1, 3, 1000, 1 << 20] {
                    if step < 1000 && len > 5_000 {
                        continue;
                    }
                    let mut receiver = end(to, Version::V2);
                    for part in sender.plain.filled().chunks(step) {
                        receiver
                            .messages
                            .decode(part, &mut receiver.plain)
                            .expect("decodes");
                    }
                    assert!(
                        receiver.plain.filled() == data,
                        "{len} bytes in steps of {step}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_close_in_the_middle_of_a_message_is_an_error() {
        let mut wire = frame(0x02, b"\x0a\x03a");
        wire.extend(frame(0x88, &1000_u16.to_be_bytes()));
        assert!(matches!(
            opened(Version::V1, &wire, 1),
            Err(TunnelError::WebSocket(ProtocolError::CloseInMessage))
        ));
        wire.extend(frame(0x80, b"bc"));
        wire[5..].rotate_left(4);
        let (data, messages) = opened(Version::V1, &wire, 1).expect("decodes");
        assert_eq!(data, b"abc");
        assert!(messages.peer_close().is_some());
    }

    #[test]
    fn fin_ends_a_direction_in_version_2_and_is_ignored_in_version_1() {
        let mut gateway = end(Role::Server, Version::V2);
        gateway.messages.fin(&mut gateway.wire).expect("encodes");
        gateway.messages.fin(&mut gateway.wire).expect("encodes");
        let wire = gateway.wire.filled();
        assert_eq!(wire.len(), 4, "sent once");
        assert!(
            opened(Version::V2, wire, 1)
                .expect("decodes")
                .1
                .fin_received()
        );
        assert!(
            !opened(Version::V1, wire, 1)
                .expect("decodes")
                .1
                .fin_received()
        );
        let mut old = end(Role::Server, Version::V1);
        old.messages.fin(&mut old.wire).expect("encodes");
        assert!(old.wire.is_empty());
    }

    #[test]
    fn data_after_fin_is_an_error_and_a_keepalive_after_it_is_not() {
        let mut wire = frame(0x82, b"\x0a\x01a\x10\x01");
        wire.extend(frame(0x82, b""));
        wire.extend(frame(0x82, b"\x0a\x00"));
        let (data, messages) = opened(Version::V2, &wire, 1).expect("decodes");
        assert_eq!(
            (data.as_slice(), messages.fin_received()),
            (&b"a"[..], true)
        );
        wire.extend(frame(0x82, b"\x0a\x01b"));
        assert!(matches!(
            opened(Version::V2, &wire, 1),
            Err(TunnelError::WebSocket(ProtocolError::DataAfterFin))
        ));
    }

    #[test]
    fn unusual_messages_are_assembled_and_invalid_ones_deliver_nothing() {
        let mut wire = frame(0x02, b"\x0a");
        wire.extend(frame(0x89, b"ping between"));
        wire.extend(frame(0x00, b""));
        wire.extend(frame(0x80, b"\x03abc"));
        wire.extend(frame(0x82, b"\x18\x07\x0a\x01d"));
        wire.extend(frame(0x82, b"\x0a\x01x\x0a\x01e"));
        wire.extend(frame(0x82, b"\x0a\x81\x80\x80\x80\x00f"));
        for step in [1, 2, 100] {
            let (data, messages) = opened(Version::V1, &wire, step).expect("decodes");
            assert_eq!(data, b"abcdef");
            assert_eq!(messages.pending_pong.as_deref(), Some(&b"ping between"[..]));
        }
        for invalid in [&b"\x0a\x05ab"[..], b"\x0a\x01a\x00", b"\x0a"] {
            let mut client = end(Role::Client, Version::V1);
            let result = client
                .messages
                .decode(&frame(0x82, invalid), &mut client.plain);
            assert!(
                matches!(result, Err(TunnelError::WebSocket(ProtocolError::Chunk(_)))),
                "{invalid:x?}"
            );
            assert!(client.plain.is_empty());
        }
    }

    /// Opens unfinished messages of 60,000 bytes until one is refused.
    fn fill(budget: &Budget) -> Vec<WsCodec> {
        let pool = Pool::default();
        let piece = frame(0x02, &vec![0x18; 60_000]);
        let mut tunnels = Vec::new();
        loop {
            let mut messages = WsCodec::new(Role::Client, Version::V2, budget);
            if messages.decode(&piece, &mut Buffer::new(&pool)).is_err() {
                return tunnels;
            }
            tunnels.push(messages);
        }
    }

    #[test]
    fn assembling_is_bounded_by_the_shared_budget_and_releases_its_share() {
        for (tunnels, limit) in [(usize::MAX, 64 << 20), (64, 8 << 20), (1, 4 << 20)] {
            let budget = Budget::new(tunnels);
            for _ in 0..2 {
                let most = limit / (60_000 - UNCOUNTED);
                assert_eq!(fill(&budget).len(), most, "{tunnels}");
            }
        }
    }

    #[test]
    fn unfinished_messages_of_one_party_leave_room_for_those_of_another() {
        let budget = Budget::default();
        let _held = fill(&budget.of(Some(1)));
        let other = fill(&budget.of(Some(2))).len();
        assert!(other > 100, "{other}");
    }

    #[test]
    fn small_messages_arrive_even_if_no_budget_is_left() {
        let budget = Budget::new(1);
        let pool = Pool::default();
        let _held = fill(&budget);
        let mut messages = WsCodec::new(Role::Client, Version::V2, &budget);
        let mut plain = Buffer::new(&pool);
        // In two fragments, so that it must be assembled.
        for (first, payload) in [(0x02, &[0x0a, 2, b'h'][..]), (0x80, b"i")] {
            messages.decode(&frame(first, payload), &mut plain).unwrap();
        }
        assert_eq!(plain.filled(), b"hi");
        messages
            .decode(&frame(0x82, &chunk::FIN), &mut plain)
            .unwrap();
        assert!(messages.fin_received());
    }

    #[test]
    #[cfg(feature = "gateway")]
    fn a_message_has_begun_from_the_first_byte_of_its_first_header_to_its_last_byte() {
        let mut client = end(Role::Client, Version::V2);
        let bytes = [
            frame(0x02, &[0x0a, 2]),
            frame(0x89, b"ping"),
            frame(0x80, b"hi"),
        ]
        .concat();
        for (at, byte) in bytes.iter().enumerate() {
            client.messages.decode(&[*byte], &mut client.plain).unwrap();
            let complete = at + 1 == bytes.len();
            assert_ne!(client.messages.is_inside_message(), complete, "{at}");
        }
    }

    #[test]
    fn a_pong_has_the_payload_of_the_latest_ping() {
        let mut client = end(Role::Client, Version::V1);
        for payload in [&b"one"[..], b"two"] {
            client
                .messages
                .decode(&frame(0x89, payload), &mut client.plain)
                .expect("decodes");
        }
        client.messages.pong(&mut client.wire).expect("encodes");
        client.messages.pong(&mut client.wire).expect("encodes");
        let mut server = FrameReader::new(Role::Server, 0);
        assert_eq!(
            server.next(&mut client.wire.filled()).expect("reads"),
            Some(Piece::Pong)
        );
        assert_eq!(client.wire.len(), 2 + 4 + 3, "one pong of three bytes");
    }

    /// One action of a sender, in every form of a chunk that is allowed.
    #[derive(Clone, Debug)]
    enum Act {
        /// A chunk in one frame.
        Data(Vec<u8>),
        /// A chunk in frames that end at these positions.
        Fragments(Vec<u8>, Vec<prop::sample::Index>),
        /// A chunk with unknown fields before and after its data.
        UnknownFields(Vec<u8>),
        /// A message without data, in one of three forms.
        Keepalive(u8),
        Ping(Vec<u8>),
        Pong,
    }

    fn act() -> impl Strategy<Value = Act> {
        let data = || prop::collection::vec(any::<u8>(), 1..400);
        prop_oneof![
            4 => data().prop_map(Act::Data),
            3 => (data(), prop::collection::vec(any::<prop::sample::Index>(), 0..5))
                .prop_map(|(data, cuts)| Act::Fragments(data, cuts)),
            1 => data().prop_map(Act::UnknownFields),
            1 => (0_u8..3).prop_map(Act::Keepalive),
            1 => prop::collection::vec(any::<u8>(), 0..=frame::MAX_CONTROL).prop_map(Act::Ping),
            1 => Just(Act::Pong),
        ]
    }

    /// A stream for tungstenite's WebSocket: it reads from `incoming` and writes to `outgoing`.
    #[derive(Default)]
    struct Wire {
        incoming: Cursor<Vec<u8>>,
        outgoing: Vec<u8>,
    }

    impl Read for Wire {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.incoming.read(into)
        }
    }

    impl Write for Wire {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.outgoing.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn tungstenite_end(role: Role, incoming: &[u8]) -> WebSocket<Wire> {
        let role = match role {
            Role::Client => TungsteniteRole::Client,
            Role::Server => TungsteniteRole::Server,
        };
        let wire = Wire {
            incoming: Cursor::new(incoming.to_vec()),
            outgoing: Vec::new(),
        };
        WebSocket::from_raw_socket(wire, role, None)
    }

    fn chunk_of(data: &[u8]) -> Vec<u8> {
        let mut header = [0; chunk::MAX_HEADER];
        let n = chunk::header(data.len(), &mut header);
        [&header[..n], data].concat()
    }

    /// The bytes that tungstenite sends as `role` for `acts`.
    fn sent_by_tungstenite(role: Role, acts: &[Act]) -> Vec<u8> {
        let mut socket = tungstenite_end(role, &[]);
        let mut send = |message: Message| socket.send(message).expect("is sent");
        for act in acts {
            match act {
                Act::Data(data) => send(Message::Binary(chunk_of(data).into())),
                Act::Fragments(data, cuts) => {
                    let message = Bytes::from(chunk_of(data));
                    let mut ends: Vec<_> =
                        cuts.iter().map(|cut| cut.index(message.len())).collect();
                    ends.push(message.len());
                    ends.sort_unstable();
                    let mut from = 0;
                    for (i, &end) in ends.iter().enumerate() {
                        let kind = if i == 0 { Data::Binary } else { Data::Continue };
                        let last = i + 1 == ends.len();
                        let part = message.slice(from..end);
                        send(Message::Frame(Frame::message(
                            part,
                            OpCode::Data(kind),
                            last,
                        )));
                        if !last {
                            send(Message::Ping(Bytes::from_static(b"between")));
                        }
                        from = end;
                    }
                }
                Act::UnknownFields(data) => {
                    let message = [b"\x18\x07\x08\x01", &*chunk_of(data), b"\x3a\x01x"].concat();
                    send(Message::Binary(message.into()));
                }
                Act::Keepalive(form) => {
                    let forms: [&[u8]; 3] = [b"", b"\x0a\x00", b"\x18\x01"];
                    send(Message::Binary(Bytes::from_static(
                        forms[usize::from(*form)],
                    )));
                }
                Act::Ping(payload) => send(Message::Ping(payload.clone().into())),
                Act::Pong => send(Message::Pong(Bytes::new())),
            }
        }
        socket.into_inner().outgoing
    }

    fn data_of(acts: &[Act]) -> Vec<u8> {
        let data = acts.iter().filter_map(|act| match act {
            Act::Data(data) | Act::Fragments(data, _) | Act::UnknownFields(data) => {
                Some(data.as_slice())
            }
            _ => None,
        });
        data.flatten().copied().collect()
    }

    /// `bytes` cut at `cuts`.
    fn cut<'a>(mut bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut parts = Vec::new();
        for place in cuts.iter().filter(|_| bytes.len() > 1) {
            let (part, rest) = bytes.split_at(place.index(bytes.len().min(700)));
            parts.push(part);
            bytes = rest;
        }
        parts.push(bytes);
        parts
    }

    fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
        prop::collection::vec(any::<prop::sample::Index>(), 0..40)
    }

    fn roles() -> impl Strategy<Value = (Role, Role)> {
        prop_oneof![
            Just((Role::Client, Role::Server)),
            Just((Role::Server, Role::Client))
        ]
    }

    proptest! {
        #[test]
        fn everything_that_tungstenite_sends_arrives_in_any_segmentation(
            (peer, own) in roles(), acts in prop::collection::vec(act(), 0..12), cuts in cuts(),
        ) {
            let wire = sent_by_tungstenite(peer, &acts);
            let mut end = end(own, Version::V2);
            for part in cut(&wire, &cuts) {
                end.messages.decode(part, &mut end.plain).expect("decodes");
            }
            prop_assert_eq!(end.plain.filled(), data_of(&acts));
            prop_assert!(!end.messages.fin_received());
        }

        #[test]
        fn a_truncated_stream_delivers_a_prefix(
            (peer, own) in roles(), acts in prop::collection::vec(act(), 1..8), cuts in cuts(), end_at in any::<prop::sample::Index>(),
        ) {
            let wire = sent_by_tungstenite(peer, &acts);
            let wire = &wire[..end_at.index(wire.len())];
            let mut at_once = end(own, Version::V1);
            at_once.messages.decode(wire, &mut at_once.plain).expect("decodes");
            prop_assert!(data_of(&acts).starts_with(at_once.plain.filled()));
            let mut in_parts = end(own, Version::V1);
            for part in cut(wire, &cuts) {
                in_parts.messages.decode(part, &mut in_parts.plain).expect("decodes");
            }
            prop_assert_eq!(in_parts.plain.filled(), at_once.plain.filled());
        }

        #[test]
        fn tungstenite_reads_the_sent_chunks(
            (own, peer) in roles(),
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..8),
            pings in any::<u8>(),
        ) {
            let mut sender = end(own, Version::V2);
            for (i, part) in parts.iter().enumerate() {
                sender.plain.extend(part);
                sender.messages.encode(&mut sender.plain).expect("encodes");
                sender.wire.extend(sender.plain.filled());
                sender.plain.consume(sender.plain.len());
                if pings >> i & 1 == 1 {
                    sender.messages.ping(&mut sender.wire).expect("encodes");
                }
            }
            sender.messages.fin(&mut sender.wire).expect("encodes");
            sender.messages.close(CloseCode::Normal, &mut sender.wire).expect("encodes");
            let mut socket = tungstenite_end(peer, sender.wire.filled());
            let (mut data, mut fins, mut pinged) = (Vec::new(), 0, 0);
            loop {
                match socket.read().expect("reads") {
                    Message::Binary(message) => {
                        let chunk = chunk::decode(&message).expect("a chunk");
                        prop_assert!(chunk.fin == chunk.data.is_empty(), "data or fin, not both and not none");
                        fins += usize::from(chunk.fin);
                        data.extend_from_slice(&message[chunk.data]);
                    }
                    Message::Ping(_) => pinged += 1,
                    Message::Close(frame) => {
                        prop_assert_eq!(frame.map(|frame| frame.code), Some(CloseCode::Normal));
                        break;
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            prop_assert_eq!(data, parts.concat());
            let expected = (0..parts.len()).filter(|i| pings >> i & 1 == 1).count();
            prop_assert_eq!((fins, pinged), (1, expected));
        }
    }
}
