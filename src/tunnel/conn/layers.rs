//! One socket and the layers upon it: the only place where a tunnel's bytes enter and leave the kernel.
//!
//! From the socket up: TLS (wss, or an intercepted target), messages (the WebSocket and its chunks), TLS again (an intercepted
//! client inside the WebSocket). Each may be absent. A link never waits; [`super::pump`] decides when to read and write.

use std::io::{self, Read, Write};
use std::mem;
use std::net::{Shutdown, TcpStream};

use tungstenite::protocol::frame::coding::CloseCode;

use crate::tunnel::buffer::{Buffer, Class, Pool};
use crate::tunnel::chunk;
use crate::tunnel::error::{TlsError, TunnelError};
use crate::tunnel::frame;
use crate::tunnel::tls::Tls;
use crate::tunnel::ws_codec::WsCodec;

/// The most that may lie unread of one TLS record or handshake flight.
const INCOMING_LIMIT: usize = 512 << 10;

/// From so much data on in one frame a read of its own pays.
const LONG: usize = 64 << 10;
/// What the next frame may begin with: its header and the chunk's.
const NEXT_HEADER: usize = frame::MAX_HEADER + chunk::MAX_HEADER;

/// A non-blocking socket with its layers.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(super) socket: TcpStream,
    outer: Option<Tls>,
    websocket: Option<WsCodec>,
    inner: Option<Tls>,
    incoming: Buffer,
    between: Buffer,
    pub(super) outgoing: Buffer,
    class: Class,
    /// The socket may have bytes for us; false after a read came up short.
    pub(crate) readable: bool,
    /// The socket may take bytes; false after a write came up short.
    pub(crate) writable: bool,
    /// Bytes came since this was last reset.
    pub(crate) received: bool,
    /// Bytes went since this was last reset.
    pub(crate) sent: bool,
    /// A failure that was met while what came before it was still to be taken.
    deferred_error: Option<TunnelError>,
    pub(super) eof: bool,
    pub(super) fin_due: bool,
    pub(super) fin_sent: bool,
}

impl Conn {
    /// A link without layers on a non-blocking socket.
    pub(crate) fn new(socket: TcpStream, pool: &Pool) -> Self {
        Self {
            socket,
            outer: None,
            websocket: None,
            inner: None,
            incoming: Buffer::new(pool),
            between: Buffer::new(pool),
            outgoing: Buffer::new(pool),
            class: Class::default(),
            readable: true,
            writable: true,
            received: false,
            sent: false,
            deferred_error: None,
            eof: false,
            fin_due: false,
            fin_sent: false,
        }
    }

    /// Puts TLS on the socket.
    pub(crate) fn add_tls(&mut self, tls: Tls) {
        self.outer = Some(tls);
        // The client speaks first, and it is `fill` that lets it.
        self.readable = true;
    }

    /// The TLS on the socket.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.outer.as_ref()
    }

    /// Puts the message layer upon the transport; `rest` holds what came after the handshake, and then the data in it.
    pub(crate) fn add_websocket(
        &mut self,
        websocket: WsCodec,
        rest: &mut Buffer,
    ) -> Result<(), TunnelError> {
        let came = rest.filled().to_vec();
        rest.consume(came.len());
        self.websocket.insert(websocket).open(&came, rest)
    }

    /// The message layer.
    pub(crate) fn websocket(&self) -> Option<&WsCodec> {
        self.websocket.as_ref()
    }

    /// Puts TLS inside the messages; `rest` holds what came before, and then the data in it.
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

    /// Whether the handshake of the inner TLS is done, where there is one: only then can data go out.
    pub(crate) fn accepts_data(&self) -> bool {
        self.inner.as_ref().is_none_or(Tls::established)
    }

    /// Keeps a failure for the next [`Self::fill`]: after it the layers understand nothing of what comes.
    pub(crate) fn defer_error(&mut self, error: TunnelError) {
        self.deferred_error = Some(error);
        self.readable = true;
    }

    /// Reads once from the socket and adds the data in it to `plain`.
    pub(crate) fn fill(&mut self, plain: &mut Buffer) -> Result<(), TunnelError> {
        if let Some(error) = self.deferred_error.take() {
            return Err(error);
        }
        let bare = self.websocket.is_none() && self.inner.is_none();
        let plain_websocket = self.outer.is_none() && self.inner.is_none();
        let into = match &mut self.outer {
            Some(tls) => &mut tls.incoming,
            None if bare => &mut *plain,
            None => &mut self.incoming,
        };
        if into.room(self.class).is_empty() {
            if into.len() >= INCOMING_LIMIT {
                return Err(TlsError::TooLarge.into());
            }
            into.reserve(into.len());
        }
        let room = into.room(self.class);
        // A long frame is read up to its end and the next header: then its data can stay where it lies.
        let data_left = match (&self.websocket, plain_websocket) {
            (Some(websocket), true) => websocket.data_left(),
            _ => 0,
        };
        let wanted = if data_left < LONG {
            room.len()
        } else {
            data_left + NEXT_HEADER
        };
        let size = room.len().min(wanted);
        match (&self.socket).read(&mut room[..size]) {
            Ok(0) => {
                self.eof = true;
                self.readable = false;
            }
            Ok(n) => {
                self.received = true;
                into.advance(n);
                // A full read: there is more, and a larger buffer pays. A short one: the socket is empty, poll will tell.
                if n == size {
                    self.class = self.class.larger();
                } else {
                    self.readable = false;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        if bare && self.outer.is_none() {
            Ok(())
        } else {
            self.decode(plain)
        }
    }

    /// Takes what lies in the layers as far up as it goes.
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
            let into = match inner {
                Some(tls) => &mut tls.incoming,
                None => &mut *plain,
            };
            if let Some(websocket) = websocket {
                websocket.open(bytes, into)
            } else {
                into.extend(bytes);
                Ok(())
            }
        };
        if let Some(tls) = outer {
            tls.open(outgoing, &mut above)?;
        } else {
            above(incoming.filled())?;
            incoming.consume(incoming.len());
        }
        if let Some(tls) = inner {
            let result = tls.open(between, &mut |bytes| {
                plain.extend(bytes);
                Ok(())
            });
            // What TLS has to say goes out also when it is an alert.
            self.send_between_as_data()?;
            result?;
        }
        Ok(())
    }

    /// Takes all of `plain` through the layers into what is to be written; without TLS the buffers change places.
    pub(crate) fn seal(&mut self, plain: &mut Buffer) -> Result<(), TunnelError> {
        if plain.is_empty() {
            return Ok(());
        }
        if let Some(tls) = &mut self.inner {
            tls.seal(plain.filled(), &mut self.between)?;
            plain.consume(plain.len());
            return self.send_between_as_data();
        }
        if let Some(websocket) = &mut self.websocket {
            websocket.seal(plain)?;
        }
        append_outgoing(self.outer.as_mut(), plain, &mut self.outgoing)
    }

    /// Sends what is in `between` as data of the message layer.
    fn send_between_as_data(&mut self) -> Result<(), TunnelError> {
        if let Some(websocket) = &mut self.websocket {
            websocket.seal(&mut self.between)?;
        }
        self.send_between()
    }

    /// Sends what is in `between` as it is.
    fn send_between(&mut self) -> Result<(), TunnelError> {
        append_outgoing(self.outer.as_mut(), &mut self.between, &mut self.outgoing)
    }

    /// Writes what is to be written, until all is gone or the socket takes no more.
    pub(crate) fn flush(&mut self) -> Result<(), TunnelError> {
        self.write()?;
        // A pong waits for all that is before it, so that pings cannot make a queue grow, and then goes out at once, so that
        // a busy sender answers too.
        if self.outgoing.is_empty()
            && let Some(websocket) = &mut self.websocket
        {
            websocket.pong(&mut self.between)?;
            self.send_between()?;
            self.write()?;
        }
        if self.fin_due && self.outgoing.is_empty() {
            self.fin_due = false;
            self.fin_sent = true;
            if self.websocket.is_none() {
                // The peer may be gone already; then there is nobody left to tell.
                let _ = self.socket.shutdown(Shutdown::Write);
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), TunnelError> {
        while self.writable && !self.outgoing.is_empty() {
            match (&self.socket).write(self.outgoing.filled()) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(n) => {
                    self.sent = true;
                    self.outgoing.consume(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether everything that was sealed has been written.
    pub(crate) fn flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Says that no more data will come from us: `close_notify` where there is TLS and `orderly`, then `fin` or the socket's FIN.
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
            tls.send_close_notify(&mut self.outgoing)?;
        }
        Ok(())
    }

    /// Whether [`Self::end`] was asked for and has gone out.
    pub(crate) fn fin_sent(&self) -> bool {
        self.fin_sent
    }

    /// Whether the peer will send no more data.
    pub(crate) fn peer_finished(&self) -> bool {
        let tls = |tls: &Option<Tls>| tls.as_ref().is_some_and(Tls::close_notify_received);
        match &self.websocket {
            Some(websocket) => websocket.fin_received() || tls(&self.inner),
            None => self.eof || tls(&self.outer),
        }
    }

    /// Whether the peer's end was said as its protocol asks: with `close_notify` where there is TLS.
    pub(crate) fn peer_finished_cleanly(&self) -> bool {
        let innermost = if self.websocket.is_some() {
            &self.inner
        } else {
            &self.outer
        };
        innermost.as_ref().is_none_or(Tls::close_notify_received)
    }

    /// Whether the socket's own stream has ended.
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

    /// Begins or answers the closing handshake.
    pub(crate) fn send_close(&mut self, code: CloseCode) -> Result<(), TunnelError> {
        if let Some(websocket) = &mut self.websocket {
            websocket.close(code, &mut self.between)?;
            self.send_between()?;
        }
        Ok(())
    }

    /// Says goodbye with this code, as far as it goes without waiting: whoever does not take it has had what it was owed.
    pub(crate) fn try_close(&mut self, code: CloseCode) {
        let _ = self
            .send_close(code)
            .and_then(|()| self.send_close_notify_and_flush());
    }

    /// Sends what is still to be sent, as far as the socket takes it, and TLS's own end after it.
    pub(crate) fn send_close_notify_and_flush(&mut self) -> Result<(), TunnelError> {
        if let Some(tls) = &mut self.outer {
            tls.send_close_notify(&mut self.outgoing)?;
        }
        self.flush()
    }

    /// Gives back the memory that is not in use.
    pub(crate) fn release_buffers(&mut self) {
        self.class = Class::default();
        let tls = self
            .outer
            .iter_mut()
            .chain(self.inner.iter_mut())
            .map(|tls| &mut tls.incoming);
        for buffer in tls.chain([&mut self.incoming, &mut self.between, &mut self.outgoing]) {
            buffer.release_buffers();
        }
    }
}

/// Takes what is in `incoming` through the message layer to the end of `plain`. Data that lies at its front changes places with
/// an empty `plain`, and is never copied.
fn open_in_place(
    websocket: &mut WsCodec,
    incoming: &mut Buffer,
    plain: &mut Buffer,
) -> Result<(), TunnelError> {
    let mut rest = [0; NEXT_HEADER];
    let data = websocket.data_left().min(incoming.len());
    let behind = incoming.len() - data;
    if data == 0 || behind > rest.len() || !plain.is_empty() {
        let result = websocket.open(incoming.filled(), plain);
        incoming.consume(incoming.len());
        return result;
    }
    let rest = &mut rest[..behind];
    rest.copy_from_slice(&incoming.filled()[data..]);
    incoming.truncate(data);
    websocket.open_in_place(incoming.filled_mut());
    mem::swap(incoming, plain);
    websocket.open(rest, plain)
}

/// Takes `bytes` through the transport to the end of `outgoing`.
fn append_outgoing(
    outer: Option<&mut Tls>,
    bytes: &mut Buffer,
    outgoing: &mut Buffer,
) -> Result<(), TunnelError> {
    match outer {
        _ if bytes.is_empty() => return Ok(()),
        Some(tls) => tls.seal(bytes.filled(), outgoing)?,
        None if outgoing.is_empty() => {
            mem::swap(bytes, outgoing);
            return Ok(());
        }
        None => outgoing.extend(bytes.filled()),
    }
    bytes.consume(bytes.len());
    Ok(())
}
