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
use super::error::{TlsError, TunnelError};

/// What a record costs beyond its plain bytes, at most: header 5, explicit nonce 8, tag 16, content type 1.
const RECORD_OVERHEAD: usize = 30;
/// The most plain bytes in one record ([RFC 8446, section 5.1](https://www.rfc-editor.org/rfc/rfc8446#section-5.1)).
const RECORD_LIMIT: usize = 16 << 10;

/// Either end of a TLS connection.
enum Endpoint {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// One TLS connection.
pub(crate) struct Tls {
    endpoint: Endpoint,
    /// Bytes from the peer that are not yet whole records.
    pub(crate) incoming: Buffer,
    established: bool,
    close_notify_received: bool,
    close_notify_sent: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("established", &self.established)
            .finish_non_exhaustive()
    }
}

/// What one step of the connection asked for.
enum TlsStep {
    /// There may be more to do with the bytes at hand.
    Again,
    /// More bytes are needed.
    Wait,
    /// Application data may be written, and nothing else is to be done.
    Ready,
}

impl Tls {
    /// The client's end.
    pub(crate) fn client(endpoint: UnbufferedClientConnection, pool: &Pool) -> Self {
        Self::new(Endpoint::Client(Box::new(endpoint)), pool)
    }

    /// The server's end.
    pub(crate) fn server(endpoint: UnbufferedServerConnection, pool: &Pool) -> Self {
        Self::new(Endpoint::Server(Box::new(endpoint)), pool)
    }

    fn new(endpoint: Endpoint, pool: &Pool) -> Self {
        Self {
            endpoint,
            incoming: Buffer::new(pool),
            established: false,
            close_notify_received: false,
            close_notify_sent: false,
        }
    }

    /// Whether the handshake is done and application data may be sealed.
    pub(crate) fn established(&self) -> bool {
        self.established
    }

    /// Whether the peer has ended its direction with `close_notify`.
    pub(crate) fn close_notify_received(&self) -> bool {
        self.close_notify_received
    }

    /// The protocol that was agreed on by ALPN, once the handshake is done.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match &self.endpoint {
            Endpoint::Client(endpoint) => endpoint.alpn_protocol(),
            Endpoint::Server(endpoint) => endpoint.alpn_protocol(),
        }
    }

    /// The version that was agreed on, once the peer has chosen.
    pub(crate) fn version(&self) -> Option<ProtocolVersion> {
        match &self.endpoint {
            Endpoint::Client(endpoint) => endpoint.protocol_version(),
            Endpoint::Server(endpoint) => endpoint.protocol_version(),
        }
    }

    /// The certificate that the peer showed, once it was verified.
    pub(crate) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        let chain = match &self.endpoint {
            Endpoint::Client(endpoint) => endpoint.peer_certificates(),
            Endpoint::Server(endpoint) => endpoint.peer_certificates(),
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
                Ok(TlsStep::Again) => {}
                Ok(TlsStep::Wait) => return Ok(()),
                Ok(TlsStep::Ready) => {
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
        self.write(Outgoing::Data(plain), wire)
    }

    /// Adds `close_notify` to `wire`, once: no more will be written.
    pub(crate) fn send_close_notify(&mut self, wire: &mut Buffer) -> Result<(), TunnelError> {
        if self.established && !std::mem::replace(&mut self.close_notify_sent, true) {
            self.write(Outgoing::CloseNotify, wire)?;
        }
        Ok(())
    }

    fn write(&mut self, what: Outgoing<'_>, wire: &mut Buffer) -> Result<(), TunnelError> {
        // `open` leaves no whole record behind, so nothing can come up here.
        let above = &mut |_: &[u8]| Err(TlsError::UnexpectedData.into());
        loop {
            match self.step(wire, above, Some(what))? {
                TlsStep::Again => {}
                TlsStep::Ready => return Ok(()),
                TlsStep::Wait => return Err(TunnelError::ConnectionEnded),
            }
        }
    }

    fn step(
        &mut self,
        wire: &mut Buffer,
        above: &mut dyn FnMut(&[u8]) -> Result<(), TunnelError>,
        what: Option<Outgoing<'_>>,
    ) -> Result<TlsStep, TunnelError> {
        let incoming = self.incoming.filled_mut();
        // The two ends differ in type only; a macro or a second copy of `process` would say no more.
        let (discard, step) = match &mut self.endpoint {
            Endpoint::Client(c) => process::<ClientConnectionData>(
                c.process_tls_records(incoming),
                wire,
                above,
                what,
                &mut self.close_notify_received,
            ),
            Endpoint::Server(c) => process::<ServerConnectionData>(
                c.process_tls_records(incoming),
                wire,
                above,
                what,
                &mut self.close_notify_received,
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
enum Outgoing<'a> {
    Data(&'a [u8]),
    CloseNotify,
}

/// Does what the connection's state asks for. Returns how many incoming bytes are done with.
fn process<Side>(
    status: UnbufferedStatus<'_, '_, Side>,
    wire: &mut Buffer,
    above: &mut dyn FnMut(&[u8]) -> Result<(), TunnelError>,
    what: Option<Outgoing<'_>>,
    close_notify_received: &mut bool,
) -> (usize, Result<TlsStep, TunnelError>) {
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
                None => break Ok(TlsStep::Again),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            encode(&mut data, wire).map(|()| TlsStep::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            // The bytes are in `wire`, in order, and that is as good as sent.
            transmit.done();
            Ok(TlsStep::Again)
        }
        Ok(ConnectionState::PeerClosed) => {
            *close_notify_received = true;
            Ok(TlsStep::Again)
        }
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match what {
            None => Ok(TlsStep::Ready),
            Some(Outgoing::Data(plain)) => grow_until(wire, sealed_size(plain.len()), |room| {
                traffic.encrypt(plain, room)
            }),
            Some(Outgoing::CloseNotify) => grow_until(wire, sealed_size(2), |room| {
                traffic.queue_close_notify(room)
            }),
        },
        Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Ok(TlsStep::Wait),
        // No configuration of ours offers early data.
        Ok(_) => Err(TlsError::EarlyData.into()),
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
) -> Result<TlsStep, TunnelError> {
    let mut room = guess;
    loop {
        match write(wire.reserve(room)) {
            Ok(n) => {
                wire.advance(n);
                return Ok(TlsStep::Ready);
            }
            Err(EncryptError::InsufficientSize(size)) if size.required_size > room => {
                room = size.required_size;
            }
            Err(_) => return Err(rustls::Error::EncryptError.into()),
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
            Err(_) => return Err(rustls::Error::EncryptError.into()),
        }
    }
}
