//! TLS as a layer without I/O, over rustls' unbuffered API: records in, plain bytes out, and the other way round.
//!
//! A plain transport is the absence of this layer. Bytes that came from the socket lie in [`Tls::incoming`] until whole
//! records are there; they are decrypted where they lie. Whatever TLS itself has to say goes into the caller's buffer,
//! in the order in which it must be sent.

use rustls::ProtocolVersion;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use rustls_pki_types::CertificateDer;

use super::buffer::{Buffer, Pool};
use super::error::TunnelError;

/// What a record costs beyond its plain bytes, at most: header 5, explicit nonce 8, tag 16, content type 1.
const RECORD_OVERHEAD: usize = 30;
/// The most plain bytes in one record ([RFC 8446, section 5.1](https://www.rfc-editor.org/rfc/rfc8446#section-5.1)).
const RECORD_LIMIT: usize = 16 << 10;

/// Either end of a TLS connection.
enum Connection {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// One TLS connection.
pub(crate) struct Tls {
    connection: Connection,
    /// Bytes from the peer that are not yet whole records.
    pub(crate) incoming: Buffer,
    established: bool,
    ended_by_peer: bool,
    end_sent: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("established", &self.established)
            .finish_non_exhaustive()
    }
}

/// What one step of the connection asked for.
enum Step {
    /// There may be more to do with the bytes at hand.
    Again,
    /// More bytes are needed.
    Wait,
    /// Application data may be written, and nothing else is to be done.
    Ready,
}

impl Tls {
    /// The client's end.
    pub(crate) fn client(connection: UnbufferedClientConnection, pool: &Pool) -> Self {
        Self::new(Connection::Client(Box::new(connection)), pool)
    }

    /// The server's end.
    pub(crate) fn server(connection: UnbufferedServerConnection, pool: &Pool) -> Self {
        Self::new(Connection::Server(Box::new(connection)), pool)
    }

    fn new(connection: Connection, pool: &Pool) -> Self {
        Self {
            connection,
            incoming: Buffer::new(pool),
            established: false,
            ended_by_peer: false,
            end_sent: false,
        }
    }

    /// Whether the handshake is done and application data may be sealed.
    pub(crate) fn established(&self) -> bool {
        self.established
    }

    /// Whether the peer has ended its direction with `close_notify`.
    pub(crate) fn ended_by_peer(&self) -> bool {
        self.ended_by_peer
    }

    /// The protocol that was agreed on by ALPN, once the handshake is done.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match &self.connection {
            Connection::Client(connection) => connection.alpn_protocol(),
            Connection::Server(connection) => connection.alpn_protocol(),
        }
    }

    /// The version that was agreed on, once the peer has chosen.
    pub(crate) fn version(&self) -> Option<ProtocolVersion> {
        match &self.connection {
            Connection::Client(connection) => connection.protocol_version(),
            Connection::Server(connection) => connection.protocol_version(),
        }
    }

    /// The certificate that the peer showed, once it was verified.
    pub(crate) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        let chain = match &self.connection {
            Connection::Client(connection) => connection.peer_certificates(),
            Connection::Server(connection) => connection.peer_certificates(),
        };
        chain?.first()
    }

    /// Takes the records in [`Self::incoming`]: their data goes to `above`, what must be answered into `wire`.
    /// On a fault the alert that tells the peer is in `wire`.
    pub(crate) fn open(
        &mut self,
        wire: &mut Buffer,
        above: &mut dyn FnMut(&[u8]) -> Result<(), TunnelError>,
    ) -> Result<(), TunnelError> {
        loop {
            match self.step(wire, above, None) {
                Ok(Step::Again) => {}
                Ok(Step::Wait) => return Ok(()),
                Ok(Step::Ready) => {
                    self.established = true;
                    return Ok(());
                }
                Err(fault) => {
                    self.alert(wire);
                    return Err(fault);
                }
            }
        }
    }

    /// Seals `plain` into records at the end of `wire`. The handshake must be done.
    pub(crate) fn seal(&mut self, plain: &[u8], wire: &mut Buffer) -> Result<(), TunnelError> {
        self.write(Write::Data(plain), wire)
    }

    /// Adds `close_notify` to `wire`, once: no more will be written.
    pub(crate) fn end(&mut self, wire: &mut Buffer) -> Result<(), TunnelError> {
        if self.established && !std::mem::replace(&mut self.end_sent, true) {
            self.write(Write::End, wire)?;
        }
        Ok(())
    }

    fn write(&mut self, what: Write<'_>, wire: &mut Buffer) -> Result<(), TunnelError> {
        // `open` leaves no whole record behind, so nothing can come up here.
        let above = &mut |_: &[u8]| Err(TunnelError::Frame("TLS data out of turn"));
        loop {
            match self.step(wire, above, Some(what))? {
                Step::Again => {}
                Step::Ready => return Ok(()),
                Step::Wait => return Err(TunnelError::Ended),
            }
        }
    }

    fn step(
        &mut self,
        wire: &mut Buffer,
        above: &mut dyn FnMut(&[u8]) -> Result<(), TunnelError>,
        what: Option<Write<'_>>,
    ) -> Result<Step, TunnelError> {
        let incoming = self.incoming.filled_mut();
        // The two ends differ in type only; a macro or a second copy of `settle` would say no more.
        let (discard, step) = match &mut self.connection {
            Connection::Client(c) => settle::<ClientConnectionData>(
                c.process_tls_records(incoming),
                wire,
                above,
                what,
                &mut self.ended_by_peer,
            ),
            Connection::Server(c) => settle::<ServerConnectionData>(
                c.process_tls_records(incoming),
                wire,
                above,
                what,
                &mut self.ended_by_peer,
            ),
        };
        self.incoming.consume(discard);
        step
    }

    /// After a failure rustls has the alert ready; it is all that is still said.
    fn alert(&mut self, wire: &mut Buffer) {
        // One step, which encodes it: a second would read on where the failure was, and fail a second time.
        let _ = self.step(wire, &mut |_: &[u8]| Ok(()), None);
    }
}

/// What is to be written once the connection is ready for it.
#[derive(Clone, Copy)]
enum Write<'a> {
    Data(&'a [u8]),
    End,
}

/// Does what the connection's state asks for. Returns how many incoming bytes are done with.
fn settle<Side>(
    status: UnbufferedStatus<'_, '_, Side>,
    wire: &mut Buffer,
    above: &mut dyn FnMut(&[u8]) -> Result<(), TunnelError>,
    what: Option<Write<'_>>,
    ended_by_peer: &mut bool,
) -> (usize, Result<Step, TunnelError>) {
    let mut discard = status.discard;
    let step = match status.state {
        Err(error) => Err(error.into()),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    if let Err(fault) = above(record.payload) {
                        break Err(fault);
                    }
                }
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(Step::Again),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            encode(&mut data, wire).map(|()| Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            // The bytes are in `wire`, in order, and that is as good as sent.
            transmit.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::PeerClosed) => {
            *ended_by_peer = true;
            Ok(Step::Again)
        }
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match what {
            None => Ok(Step::Ready),
            Some(Write::Data(plain)) => grow_until(wire, sealed_size(plain.len()), |room| {
                traffic.encrypt(plain, room)
            }),
            Some(Write::End) => grow_until(wire, sealed_size(2), |room| {
                traffic.queue_close_notify(room)
            }),
        },
        Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Ok(Step::Wait),
        // No configuration of ours offers early data.
        Ok(_) => Err(TunnelError::Frame("TLS early data")),
    };
    (discard, step)
}

fn sealed_size(plain: usize) -> usize {
    plain + plain.div_ceil(RECORD_LIMIT) * RECORD_OVERHEAD
}

/// Calls `write` with room in `wire`, and once more with the room that it asks for.
fn grow_until(
    wire: &mut Buffer,
    guess: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<Step, TunnelError> {
    let mut room = guess;
    loop {
        match write(wire.reserve(room)) {
            Ok(n) => {
                wire.advance(n);
                return Ok(Step::Ready);
            }
            Err(EncryptError::InsufficientSize(size)) if size.required_size > room => {
                room = size.required_size;
            }
            Err(_) => return Err(TunnelError::Tls(rustls::Error::EncryptError)),
        }
    }
}

fn encode<Side>(data: &mut EncodeTlsData<'_, Side>, wire: &mut Buffer) -> Result<(), TunnelError> {
    let mut room = 0;
    loop {
        match data.encode(wire.reserve(room)) {
            Ok(n) => {
                wire.advance(n);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) if size.required_size > room => {
                room = size.required_size;
            }
            Err(_) => return Err(TunnelError::Tls(rustls::Error::EncryptError)),
        }
    }
}
