//! A socket with its layers: the only code that reads and writes the bytes of a tunnel.
//!
//! From the socket up: outer TLS (wss, or an intercepted target), the WebSocket codec, inner TLS
//! (an intercepted client inside the WebSocket). Each layer may be absent. A connection never
//! blocks; `pump` and `drive` decide when to read and write.

use std::io::{self, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::ops::Deref;
use std::sync::Arc;

use tungstenite::protocol::frame::coding::CloseCode;

use crate::tunnel::buffer::{Buffer, Pool, SizeClass};
use crate::tunnel::chunk;
use crate::tunnel::error::{TlsError, TunnelError};
use crate::tunnel::frame;
use crate::tunnel::tls::Tls;
use crate::tunnel::ws_codec::WsCodec;

/// The maximum number of received bytes of an incomplete TLS record or handshake flight.
const INCOMING_LIMIT: usize = 512 << 10;

/// If at least this much data of the current frame is left, a read ends with the frame.
const LONG_FRAME: usize = 64 << 10;
/// The bytes before the data of the next frame: the headers of frame and chunk.
const NEXT_HEADER: usize = frame::MAX_HEADER + chunk::MAX_HEADER;

/// The socket of a connection.
#[derive(Debug)]
pub(crate) enum Socket {
    Own(TcpStream),
    /// Another thread may shut it down.
    Shared(Arc<TcpStream>),
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Self {
        Self::Own(socket)
    }
}

impl From<Arc<TcpStream>> for Socket {
    fn from(socket: Arc<TcpStream>) -> Self {
        Self::Shared(socket)
    }
}

impl Deref for Socket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        match self {
            Self::Own(socket) => socket,
            Self::Shared(socket) => socket,
        }
    }
}

/// A non-blocking socket with its layers.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(super) socket: Socket,
    outer: Option<Tls>,
    websocket: Option<WsCodec>,
    inner: Option<Tls>,
    incoming: Buffer,
    between: Buffer,
    pub(super) outgoing: Buffer,
    class: SizeClass,
    /// The socket may have bytes to read; false after a short read.
    pub(crate) readable: bool,
    /// The socket may accept bytes; false after a short write.
    pub(crate) writable: bool,
    /// Bytes were read since the owner last cleared this.
    pub(crate) received: bool,
    /// Bytes were written since the owner last cleared this.
    pub(crate) sent: bool,
    /// An error to return from the next `fill`.
    deferred_error: Option<Box<TunnelError>>,
    /// The socket accepts no more bytes, ever. What it has received can still be read.
    pub(super) write_failed: bool,
    /// An error to return when everything that the socket has received was read.
    pub(super) end_error: Option<Box<TunnelError>>,
    pub(super) written: u64,
    /// Bytes that were encoded and dropped, because the socket did not accept them.
    pub(super) dropped: u64,
    /// The size of the `close_notify` at the end of the stream.
    pub(super) close_notify: u64,
    pub(super) eof: bool,
    pub(super) fin_due: bool,
    pub(super) fin_sent: bool,
    /// The sending direction of the socket was ended.
    pub(super) shut: bool,
    /// Closing the socket resets the connection.
    pub(super) resets: bool,
    /// The connection is gone, and nothing is missing.
    pub(super) abandoned: bool,
}

impl Conn {
    /// A connection without layers on a non-blocking socket.
    pub(crate) fn new(socket: impl Into<Socket>, pool: &Pool) -> Self {
        Self {
            socket: socket.into(),
            outer: None,
            websocket: None,
            inner: None,
            incoming: Buffer::new(pool),
            between: Buffer::new(pool),
            outgoing: Buffer::new(pool),
            class: SizeClass::default(),
            readable: true,
            writable: true,
            received: false,
            sent: false,
            deferred_error: None,
            write_failed: false,
            end_error: None,
            written: 0,
            dropped: 0,
            close_notify: 0,
            eof: false,
            fin_due: false,
            fin_sent: false,
            shut: false,
            resets: false,
            abandoned: false,
        }
    }

    /// Adds TLS above the socket.
    pub(crate) fn add_tls(&mut self, tls: Tls) {
        self.outer = Some(tls);
        // A TLS client sends first, and `fill` starts the handshake.
        self.readable = true;
    }

    /// The TLS layer above the socket.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.outer.as_ref()
    }

    /// Adds the WebSocket codec. `rest` contains the bytes after the upgrade; they are replaced by
    /// the data in them.
    pub(crate) fn add_websocket(
        &mut self,
        websocket: WsCodec,
        rest: &mut Buffer,
    ) -> Result<(), TunnelError> {
        let received = rest.filled().to_vec();
        rest.consume(received.len());
        self.websocket.insert(websocket).decode(&received, rest)
    }

    /// The WebSocket codec.
    pub(crate) fn websocket(&self) -> Option<&WsCodec> {
        self.websocket.as_ref()
    }

    /// Adds TLS inside the WebSocket. `rest` contains the bytes received so far; they are replaced
    /// by the data in them.
    pub(crate) fn add_inner_tls(
        &mut self,
        mut tls: Tls,
        rest: &mut Buffer,
    ) -> Result<(), TunnelError> {
        tls.incoming.extend(rest.filled());
        rest.consume(rest.len());
        self.inner = Some(tls);
        self.decode(rest)
    }

    /// Removes TLS inside the WebSocket. What it has queued remains.
    #[cfg(feature = "gateway")]
    pub(crate) fn remove_inner_tls(&mut self) {
        self.inner = None;
    }

    /// Whether a TLS record or a WebSocket message has begun and is not complete.
    #[cfg(feature = "gateway")]
    pub(crate) fn has_partial_input(&self) -> bool {
        self.outer
            .as_ref()
            .is_some_and(|tls| !tls.incoming.is_empty())
            || self
                .websocket
                .as_ref()
                .is_some_and(WsCodec::is_inside_message)
    }

    /// Whether data can be sent: the inner TLS handshake is complete, or there is no inner TLS.
    pub(crate) fn accepts_data(&self) -> bool {
        self.inner.as_ref().is_none_or(Tls::established)
    }

    /// Returns `error` from the next [`Self::fill`]. After an error the layers cannot process more
    /// input.
    pub(crate) fn defer_error(&mut self, error: TunnelError) {
        self.deferred_error = Some(Box::new(error));
        self.readable = true;
    }

    /// Reads once from the socket, and appends the received data to `plain`.
    pub(crate) fn fill(&mut self, plain: &mut Buffer) -> Result<(), TunnelError> {
        if let Some(error) = self.deferred_error.take() {
            return Err(*error);
        }
        let plain_tcp = self.websocket.is_none() && self.inner.is_none();
        let plain_websocket = self.outer.is_none() && self.inner.is_none();
        let target = match &mut self.outer {
            Some(tls) => &mut tls.incoming,
            None if plain_tcp => &mut *plain,
            None => &mut self.incoming,
        };
        if target.room(self.class).is_empty() {
            if target.len() >= INCOMING_LIMIT {
                return Err(TlsError::TooLarge.into());
            }
            target.reserve(target.len());
        }
        let room = target.room(self.class);
        // A long frame is read up to the header of the next one. So its data starts at the front of
        // the buffer, and need not be copied.
        let data_left = match (&self.websocket, plain_websocket) {
            (Some(websocket), true) => websocket.data_left(),
            _ => 0,
        };
        let read_limit = if data_left < LONG_FRAME {
            room.len()
        } else {
            data_left + NEXT_HEADER
        };
        let size = room.len().min(read_limit);
        match (&*self.socket).read(&mut room[..size]) {
            Ok(0) => {
                self.eof = true;
                self.readable = false;
                if let Some(error) = self.end_error.take() {
                    return Err(*error);
                }
            }
            Ok(n) => {
                self.received = true;
                target.advance(n);
                // After a full read there is more, and a larger buffer saves calls. After a short
                // read the socket is empty until poll(2) reports otherwise.
                if n == size {
                    self.class = self.class.larger();
                } else {
                    self.readable = false;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(self
                    .end_error
                    .take()
                    .map_or_else(|| error.into(), |first| *first));
            }
        }
        if plain_tcp && self.outer.is_none() {
            Ok(())
        } else {
            self.decode(plain)
        }
    }

    /// Passes received bytes up through the layers.
    fn decode(&mut self, plain: &mut Buffer) -> Result<(), TunnelError> {
        let Self {
            outer,
            websocket,
            inner,
            incoming,
            between,
            outgoing,
            ..
        } = self;
        if let (None, Some(websocket), None) = (&outer, &mut *websocket, &inner) {
            return open_in_place(websocket, incoming, plain);
        }
        let mut above = |bytes: &[u8]| {
            let target = match inner {
                Some(tls) => &mut tls.incoming,
                None => &mut *plain,
            };
            if let Some(websocket) = websocket {
                websocket.decode(bytes, target)
            } else {
                target.extend(bytes);
                Ok(())
            }
        };
        if let Some(tls) = outer {
            tls.decrypt(outgoing, &mut above)?;
        } else {
            above(incoming.filled())?;
            incoming.consume(incoming.len());
        }
        if let Some(tls) = inner {
            let result = tls.decrypt(between, &mut |bytes| {
                plain.extend(bytes);
                Ok(())
            });
            // After an error, this sends the alert.
            self.send_between_as_data()?;
            result?;
        }
        Ok(())
    }

    /// Passes all of `plain` down through the layers to the bytes to write. Without TLS the buffers
    /// are swapped, not copied.
    pub(crate) fn encode(&mut self, plain: &mut Buffer) -> Result<(), TunnelError> {
        if plain.is_empty() {
            return Ok(());
        }
        if let Some(tls) = &mut self.inner {
            tls.encrypt(plain.filled(), &mut self.between)?;
            plain.consume(plain.len());
            return self.send_between_as_data();
        }
        if let Some(websocket) = &mut self.websocket {
            websocket.encode(plain)?;
        }
        append_outgoing(self.outer.as_mut(), plain, &mut self.outgoing)
    }

    /// Passes a copy of `bytes` down through the layers.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), TunnelError> {
        let mut plain = self.outgoing.sibling();
        plain.extend(bytes);
        self.encode(&mut plain)
    }

    /// Passes the first `len` bytes of `plain` down through the layers; without a copy if these are
    /// all.
    pub(crate) fn encode_front(
        &mut self,
        plain: &mut Buffer,
        len: usize,
    ) -> Result<(), TunnelError> {
        if len == plain.len() {
            return self.encode(plain);
        }
        self.send(&plain.filled()[..len])?;
        plain.consume(len);
        Ok(())
    }

    /// Sends the bytes in `between` as data of the WebSocket.
    fn send_between_as_data(&mut self) -> Result<(), TunnelError> {
        if let Some(websocket) = &mut self.websocket {
            websocket.encode(&mut self.between)?;
        }
        self.send_between()
    }

    /// Sends the bytes in `between` without encoding them for the WebSocket.
    fn send_between(&mut self) -> Result<(), TunnelError> {
        append_outgoing(self.outer.as_mut(), &mut self.between, &mut self.outgoing)
    }

    /// Writes until nothing is left or the socket accepts no more.
    pub(crate) fn flush(&mut self) -> Result<(), TunnelError> {
        self.write()?;
        // A pong waits until all bytes before it are written, so that pings cannot fill memory.
        // Then it is sent at once, so that a busy sender answers pings too.
        if self.outgoing.is_empty()
            && let Some(websocket) = &mut self.websocket
        {
            websocket.pong(&mut self.between)?;
            self.send_between()?;
            self.write()?;
        }
        if self.fin_due && self.flushed() {
            self.fin_due = false;
            self.fin_sent = true;
            if self.websocket.is_none() {
                self.shut_writing();
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), TunnelError> {
        if self.write_failed {
            self.drop_outgoing();
        }
        while self.writable && !self.outgoing.is_empty() {
            match (&*self.socket).write(self.outgoing.filled()) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(n) => {
                    self.sent = true;
                    self.written += n as u64;
                    self.outgoing.consume(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.write_failed = true;
                    self.drop_outgoing();
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    pub(super) fn drop_outgoing(&mut self) {
        self.dropped += self.outgoing.len() as u64;
        self.outgoing.consume(self.outgoing.len());
    }

    /// Whether all encoded bytes were written.
    pub(crate) fn flushed(&self) -> bool {
        self.outgoing.is_empty() && !self.write_failed
    }

    /// Whether bytes wait for the socket to accept them.
    pub(crate) fn wants_write(&self) -> bool {
        !self.outgoing.is_empty() && !self.write_failed
    }

    /// Ends the sending direction, once: `close_notify` if there is TLS and `clean`, then `fin` of
    /// the WebSocket or FIN of the socket. [`Self::flush`] sends it.
    pub(crate) fn send_fin(&mut self, clean: bool) -> Result<(), TunnelError> {
        if self.fin_sent || mem::replace(&mut self.fin_due, true) {
            return Ok(());
        }
        if let Some(tls) = &mut self.inner
            && clean
        {
            tls.send_close_notify(&mut self.between)?;
            self.send_between_as_data()?;
        }
        if let Some(websocket) = &mut self.websocket {
            websocket.fin(&mut self.between)?;
            self.send_between()?;
        } else if let Some(tls) = &mut self.outer
            && clean
        {
            let data = self.outgoing.len();
            tls.send_close_notify(&mut self.outgoing)?;
            self.close_notify = (self.outgoing.len() - data) as u64;
        }
        Ok(())
    }

    /// Whether [`Self::send_fin`] was called and everything up to the end was written.
    pub(crate) fn fin_sent(&self) -> bool {
        self.fin_sent
    }

    /// Whether the peer has ended its sending direction.
    pub(crate) fn peer_finished(&self) -> bool {
        let tls = |tls: &Option<Tls>| tls.as_ref().is_some_and(Tls::close_notify_received);
        match &self.websocket {
            Some(websocket) => websocket.fin_received() || tls(&self.inner),
            None => self.eof || tls(&self.outer),
        }
    }

    /// Whether the peer ended its direction as its protocol requires: with `close_notify` if there
    /// is TLS.
    pub(crate) fn peer_finished_cleanly(&self) -> bool {
        let innermost = if self.websocket.is_some() {
            &self.inner
        } else {
            &self.outer
        };
        innermost.as_ref().is_none_or(Tls::close_notify_received)
    }

    /// Whether the end of the socket's stream was read.
    pub(crate) fn eof(&self) -> bool {
        self.eof
    }

    /// Sends a ping.
    pub(crate) fn ping(&mut self) -> Result<(), TunnelError> {
        if let Some(websocket) = &mut self.websocket {
            websocket.ping(&mut self.between)?;
            self.send_between()?;
        }
        Ok(())
    }

    /// Starts or answers the closing handshake of the WebSocket.
    pub(crate) fn send_close(&mut self, code: CloseCode) -> Result<(), TunnelError> {
        if let Some(websocket) = &mut self.websocket {
            websocket.close(code, &mut self.between)?;
            self.send_between()?;
        }
        Ok(())
    }

    /// Sends a close frame and `close_notify`, as far as the socket accepts bytes without blocking.
    pub(crate) fn try_close(&mut self, code: CloseCode) {
        let _ = self
            .send_close(code)
            .and_then(|()| self.send_close_notify_and_flush());
    }

    /// Appends `close_notify` if there is outer TLS, and writes what the socket accepts.
    pub(crate) fn send_close_notify_and_flush(&mut self) -> Result<(), TunnelError> {
        if let Some(tls) = &mut self.outer {
            tls.send_close_notify(&mut self.outgoing)?;
        }
        self.flush()
    }

    /// Returns the storage of empty buffers to the pool.
    pub(crate) fn release_buffers(&mut self) {
        self.class = SizeClass::default();
        let tls = self
            .outer
            .iter_mut()
            .chain(self.inner.iter_mut())
            .map(|tls| &mut tls.incoming);
        for buffer in tls.chain([&mut self.incoming, &mut self.between, &mut self.outgoing]) {
            buffer.release();
        }
    }
}

/// Decodes `incoming` to the end of `plain`. Data at its front is unmasked in place; an empty
/// `plain` is then swapped with `incoming`, so that the data is not copied.
fn open_in_place(
    websocket: &mut WsCodec,
    incoming: &mut Buffer,
    plain: &mut Buffer,
) -> Result<(), TunnelError> {
    let mut rest = [0; NEXT_HEADER];
    let data = websocket.data_left().min(incoming.len());
    let behind = incoming.len() - data;
    if data == 0 || behind > rest.len() || !plain.is_empty() {
        let result = websocket.decode(incoming.filled(), plain);
        incoming.consume(incoming.len());
        return result;
    }
    let rest = &mut rest[..behind];
    rest.copy_from_slice(&incoming.filled()[data..]);
    incoming.truncate(data);
    websocket.open_in_place(incoming.filled_mut());
    mem::swap(incoming, plain);
    websocket.decode(rest, plain)
}

/// Passes `bytes` through the outer TLS, if any, to the end of `outgoing`.
fn append_outgoing(
    outer: Option<&mut Tls>,
    bytes: &mut Buffer,
    outgoing: &mut Buffer,
) -> Result<(), TunnelError> {
    match outer {
        _ if bytes.is_empty() => return Ok(()),
        Some(tls) => tls.encrypt(bytes.filled(), outgoing)?,
        None if outgoing.is_empty() => {
            mem::swap(bytes, outgoing);
            return Ok(());
        }
        None => outgoing.extend(bytes.filled()),
    }
    bytes.consume(bytes.len());
    Ok(())
}
