//! One socket and the layers upon it: the only place where a tunnel's bytes enter and leave the kernel.
//!
//! From the socket up: TLS (wss, or an intercepted target), messages (the WebSocket and its chunks), TLS again (an intercepted
//! client inside the WebSocket). Each may be absent. A link never waits; [`super::pump`] decides when to read and write.

mod socket;

use std::io::{self, Read, Write};
use std::mem;
use std::net::{Shutdown, TcpStream};

use tungstenite::protocol::frame::coding::CloseCode;

use crate::tunnel::buffer::{Buffer, Class, Pool};
use crate::tunnel::chunk;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame;
use crate::tunnel::message::WsCodec;
use crate::tunnel::transport::Tls;

/// The most that may lie unread of one TLS record or handshake flight.
const INCOMING_LIMIT: usize = 512 << 10;

/// From so much data on in one frame a read of its own pays.
const LONG: usize = 64 << 10;
/// What the next frame may begin with: its header and the chunk's.
const NEXT_HEADER: usize = frame::MAX_HEADER + chunk::MAX_HEADER;

/// A non-blocking socket with its layers.
#[derive(Debug)]
pub(crate) struct Conn {
    socket: TcpStream,
    outer: Option<Tls>,
    messages: Option<WsCodec>,
    inner: Option<Tls>,
    incoming: Buffer,
    between: Buffer,
    outgoing: Buffer,
    class: Class,
    /// The socket may have bytes for us; false after a read came up short.
    pub(crate) readable: bool,
    /// The socket may take bytes; false after a write came up short.
    pub(crate) writable: bool,
    /// Bytes came since this was last reset.
    pub(crate) heard: bool,
    /// Bytes went since this was last reset.
    pub(crate) sent: bool,
    /// A failure that was met while what came before it was still to be taken.
    kept: Option<TunnelError>,
    eof: bool,
    end_due: bool,
    ended: bool,
}

impl Conn {
    /// A link without layers on a non-blocking socket.
    pub(crate) fn new(socket: TcpStream, pool: &Pool) -> Self {
        Self {
            socket,
            outer: None,
            messages: None,
            inner: None,
            incoming: Buffer::new(pool),
            between: Buffer::new(pool),
            outgoing: Buffer::new(pool),
            class: Class::default(),
            readable: true,
            writable: true,
            heard: false,
            sent: false,
            kept: None,
            eof: false,
            end_due: false,
            ended: false,
        }
    }

    /// Puts TLS on the socket.
    pub(crate) fn secure(&mut self, tls: Tls) {
        self.outer = Some(tls);
        // The client speaks first, and it is `fill` that lets it.
        self.readable = true;
    }

    /// The TLS on the socket.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.outer.as_ref()
    }

    /// Puts the message layer upon the transport; `rest` holds what came after the handshake, and then the data in it.
    pub(crate) fn frame(
        &mut self,
        messages: WsCodec,
        rest: &mut Buffer,
    ) -> Result<(), TunnelError> {
        let came = rest.filled().to_vec();
        rest.consume(came.len());
        self.messages.insert(messages).open(&came, rest)
    }

    /// The message layer.
    pub(crate) fn messages(&self) -> Option<&WsCodec> {
        self.messages.as_ref()
    }

    /// Puts TLS inside the messages; `rest` holds what came before, and then the data in it.
    pub(crate) fn intercept(&mut self, mut tls: Tls, rest: &mut Buffer) -> Result<(), TunnelError> {
        tls.incoming.extend(rest.filled());
        rest.consume(rest.len());
        self.inner = Some(tls);
        self.decode(rest)
    }

    /// Whether the handshake of the inner TLS is done, where there is one: only then can data go out.
    pub(crate) fn ready(&self) -> bool {
        self.inner.as_ref().is_none_or(Tls::established)
    }

    /// Keeps a failure for the next [`Self::fill`]: after it the layers understand nothing of what comes.
    pub(crate) fn keep(&mut self, fault: TunnelError) {
        self.kept = Some(fault);
        self.readable = true;
    }

    /// Reads once from the socket and adds the data in it to `plain`.
    pub(crate) fn fill(&mut self, plain: &mut Buffer) -> Result<(), TunnelError> {
        if let Some(fault) = self.kept.take() {
            return Err(fault);
        }
        let bare = self.messages.is_none() && self.inner.is_none();
        let raw_frames = self.outer.is_none() && self.inner.is_none();
        let into = match &mut self.outer {
            Some(tls) => &mut tls.incoming,
            None if bare => &mut *plain,
            None => &mut self.incoming,
        };
        if into.room(self.class).is_empty() {
            if into.len() >= INCOMING_LIMIT {
                return Err(TunnelError::TlsTooBig);
            }
            into.reserve(into.len());
        }
        let room = into.room(self.class);
        // A long frame is read up to its end and the next header: then its data can stay where it lies.
        let left = match (&self.messages, raw_frames) {
            (Some(messages), true) => messages.data_left(),
            _ => 0,
        };
        let wanted = if left < LONG {
            room.len()
        } else {
            left + NEXT_HEADER
        };
        let size = room.len().min(wanted);
        match (&self.socket).read(&mut room[..size]) {
            Ok(0) => {
                self.eof = true;
                self.readable = false;
            }
            Ok(n) => {
                self.heard = true;
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
            messages,
            inner,
            incoming,
            between,
            outgoing,
            ..
        } = self;
        if let (None, Some(messages), None) = (&outer, &mut *messages, &inner) {
            return open_in_place(messages, incoming, plain);
        }
        let mut above = |bytes: &[u8]| {
            let into = match inner {
                Some(tls) => &mut tls.incoming,
                None => &mut *plain,
            };
            if let Some(messages) = messages {
                messages.open(bytes, into)
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
            self.lower_data()?;
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
            return self.lower_data();
        }
        if let Some(messages) = &mut self.messages {
            messages.seal(plain)?;
        }
        lower(self.outer.as_mut(), plain, &mut self.outgoing)
    }

    /// Sends what is in `between` as data of the message layer.
    fn lower_data(&mut self) -> Result<(), TunnelError> {
        if let Some(messages) = &mut self.messages {
            messages.seal(&mut self.between)?;
        }
        self.lower()
    }

    /// Sends what is in `between` as it is.
    fn lower(&mut self) -> Result<(), TunnelError> {
        lower(self.outer.as_mut(), &mut self.between, &mut self.outgoing)
    }

    /// Writes what is to be written, until all is gone or the socket takes no more.
    pub(crate) fn flush(&mut self) -> Result<(), TunnelError> {
        self.write()?;
        // A pong waits for all that is before it, so that pings cannot make a queue grow, and then goes out at once, so that
        // a busy sender answers too.
        if self.outgoing.is_empty()
            && let Some(messages) = &mut self.messages
        {
            messages.pong(&mut self.between)?;
            self.lower()?;
            self.write()?;
        }
        if self.end_due && self.outgoing.is_empty() {
            self.end_due = false;
            self.ended = true;
            if self.messages.is_none() {
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
    pub(crate) fn end(&mut self, orderly: bool) -> Result<(), TunnelError> {
        if self.ended || mem::replace(&mut self.end_due, true) {
            return Ok(());
        }
        if let Some(tls) = &mut self.inner
            && orderly
        {
            tls.end(&mut self.between)?;
            self.lower_data()?;
        }
        if let Some(messages) = &mut self.messages {
            messages.fin(&mut self.between)?;
            self.lower()?;
        } else if let Some(tls) = &mut self.outer
            && orderly
        {
            tls.end(&mut self.outgoing)?;
        }
        Ok(())
    }

    /// Whether [`Self::end`] was asked for and has gone out.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether the peer will send no more data.
    pub(crate) fn ended_by_peer(&self) -> bool {
        let tls = |tls: &Option<Tls>| tls.as_ref().is_some_and(Tls::ended_by_peer);
        match &self.messages {
            Some(messages) => messages.fin_received() || tls(&self.inner),
            None => self.eof || tls(&self.outer),
        }
    }

    /// Whether the peer's end was said as its protocol asks: with `close_notify` where there is TLS.
    pub(crate) fn ended_orderly(&self) -> bool {
        let innermost = if self.messages.is_some() {
            &self.inner
        } else {
            &self.outer
        };
        innermost.as_ref().is_none_or(Tls::ended_by_peer)
    }

    /// Whether the socket's own stream has ended.
    pub(crate) fn eof(&self) -> bool {
        self.eof
    }

    /// Sends a ping.
    pub(crate) fn ping(&mut self) -> Result<(), TunnelError> {
        if let Some(messages) = &mut self.messages {
            messages.ping(&mut self.between)?;
            self.lower()?;
        }
        Ok(())
    }

    /// Begins or answers the closing handshake.
    pub(crate) fn close(&mut self, code: CloseCode) -> Result<(), TunnelError> {
        if let Some(messages) = &mut self.messages {
            messages.close(code, &mut self.between)?;
            self.lower()?;
        }
        Ok(())
    }

    /// Says goodbye with this code, as far as it goes without waiting: whoever does not take it has had what it was owed.
    pub(crate) fn part_with(&mut self, code: CloseCode) {
        let _ = self.close(code).and_then(|()| self.hang_up_politely());
    }

    /// Sends what is still to be sent, as far as the socket takes it, and TLS's own end after it.
    pub(crate) fn hang_up_politely(&mut self) -> Result<(), TunnelError> {
        if let Some(tls) = &mut self.outer {
            tls.end(&mut self.outgoing)?;
        }
        self.flush()
    }

    /// Gives back the memory that is not in use.
    pub(crate) fn shed(&mut self) {
        self.class = Class::default();
        let tls = self
            .outer
            .iter_mut()
            .chain(self.inner.iter_mut())
            .map(|tls| &mut tls.incoming);
        for buffer in tls.chain([&mut self.incoming, &mut self.between, &mut self.outgoing]) {
            buffer.shed();
        }
    }
}

/// Takes what is in `incoming` through the message layer to the end of `plain`. Data that lies at its front changes places with
/// an empty `plain`, and is never copied.
fn open_in_place(
    messages: &mut WsCodec,
    incoming: &mut Buffer,
    plain: &mut Buffer,
) -> Result<(), TunnelError> {
    let mut rest = [0; NEXT_HEADER];
    let data = messages.data_left().min(incoming.len());
    let behind = incoming.len() - data;
    if data == 0 || behind > rest.len() || !plain.is_empty() {
        let result = messages.open(incoming.filled(), plain);
        incoming.consume(incoming.len());
        return result;
    }
    let rest = &mut rest[..behind];
    rest.copy_from_slice(&incoming.filled()[data..]);
    incoming.truncate(data);
    messages.open_in_place(incoming.filled_mut());
    mem::swap(incoming, plain);
    messages.open(rest, plain)
}

/// Takes `bytes` through the transport to the end of `outgoing`.
fn lower(
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
