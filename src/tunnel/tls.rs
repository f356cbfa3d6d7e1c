//! TLS as a layer without I/O, over rustls' unbuffered API: converts records to plain bytes and
//! back.
//!
//! A connection without TLS does not have this layer. Received bytes wait in [`Tls::incoming`]
//! until they are whole records, which are decrypted in place. Handshake messages and alerts are
//! appended to the caller's buffer in the order in which they must be sent.

#[cfg(any(feature = "cli", feature = "gateway"))]
use rustls::ProtocolVersion;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
#[cfg(feature = "cli")]
use rustls_pki_types::CertificateDer;

use super::buffer::{Buffer, Pool};
use super::error::{TlsError, TunnelError};

/// The maximum overhead of a record: header 5, explicit nonce 8, tag 16, content type 1.
const RECORD_OVERHEAD: usize = 30;
/// The maximum number of plain bytes in a record ([RFC 8446, section
/// 5.1](https://www.rfc-editor.org/rfc/rfc8446#section-5.1)).
const RECORD_LIMIT: usize = 16 << 10;

/// The rustls connection of either end.
enum Endpoint {
    Client(Box<UnbufferedClientConnection>),
    #[cfg_attr(not(feature = "gateway"), allow(dead_code))]
    Server(Box<UnbufferedServerConnection>),
}

/// One TLS connection.
pub(crate) struct Tls {
    endpoint: Endpoint,
    /// Received bytes that do not form a whole record yet.
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

/// The result of processing one rustls state.
enum TlsStep {
    /// Process the next state.
    Again,
    /// More received bytes are needed.
    Wait,
    /// Nothing is left to process, and application data may be encrypted.
    Ready,
}

impl Tls {
    /// The client end of a connection.
    pub(crate) fn client(endpoint: UnbufferedClientConnection, pool: &Pool) -> Self {
        Self::new(Endpoint::Client(Box::new(endpoint)), pool)
    }

    /// The server end of a connection.
    #[cfg(feature = "gateway")]
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

    /// Whether the handshake is complete and application data may be encrypted.
    pub(crate) fn established(&self) -> bool {
        self.established
    }

    /// Whether the peer has ended its direction with `close_notify`.
    pub(crate) fn close_notify_received(&self) -> bool {
        self.close_notify_received
    }

    /// The protocol negotiated by ALPN; `None` before the handshake is complete or without one.
    #[cfg(feature = "gateway")]
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match &self.endpoint {
            Endpoint::Client(endpoint) => endpoint.alpn_protocol(),
            Endpoint::Server(endpoint) => endpoint.alpn_protocol(),
        }
    }

    /// The negotiated version of TLS; `None` before it is known.
    #[cfg(any(feature = "cli", feature = "gateway"))]
    pub(crate) fn version(&self) -> Option<ProtocolVersion> {
        match &self.endpoint {
            Endpoint::Client(endpoint) => endpoint.protocol_version(),
            Endpoint::Server(endpoint) => endpoint.protocol_version(),
        }
    }

    /// The peer's verified certificate; `None` before it is verified or without one.
    #[cfg(feature = "cli")]
    pub(crate) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        let chain = match &self.endpoint {
            Endpoint::Client(endpoint) => endpoint.peer_certificates(),
            Endpoint::Server(endpoint) => endpoint.peer_certificates(),
        };
        chain?.first()
    }

    /// Processes the records in [`Self::incoming`]: passes their data to `above` and appends
    /// responses to `wire`.
    ///
    /// # Errors
    /// After an error, `wire` contains the alert for the peer, if there is one.
    pub(crate) fn decrypt(
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
                Err(error) => {
                    self.alert(wire);
                    return Err(error);
                }
            }
        }
    }

    /// Encrypts `plain` and appends the records to `wire`. The handshake must be complete.
    pub(crate) fn encrypt(&mut self, plain: &[u8], wire: &mut Buffer) -> Result<(), TunnelError> {
        self.write(Outgoing::Data(plain), wire)
    }

    /// Appends `close_notify` to `wire`, once. No data may be encrypted afterwards.
    pub(crate) fn send_close_notify(&mut self, wire: &mut Buffer) -> Result<(), TunnelError> {
        if self.established && !std::mem::replace(&mut self.close_notify_sent, true) {
            self.write(Outgoing::CloseNotify, wire)?;
        }
        Ok(())
    }

    fn write(&mut self, what: Outgoing<'_>, wire: &mut Buffer) -> Result<(), TunnelError> {
        // `decrypt` leaves no whole record behind, so no data can arrive here.
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
        // The two arms differ in their types only.
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

    /// Appends the alert that rustls has prepared after an error.
    fn alert(&mut self, wire: &mut Buffer) {
        // One state encodes the alert. The next one would process the same invalid input again.
        let _ = self.step(wire, &mut |_: &[u8]| Ok(()), None);
    }
}

/// What to encrypt.
#[derive(Clone, Copy)]
enum Outgoing<'a> {
    Data(&'a [u8]),
    CloseNotify,
}

/// Processes one state of the connection. Returns how many incoming bytes to discard.
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
                    if let Err(error) = above(record.payload) {
                        break Err(error);
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
            // The bytes are in `wire` in the right order, which counts as sent.
            transmit.done();
            Ok(TlsStep::Again)
        }
        Ok(ConnectionState::PeerClosed) => {
            *close_notify_received = true;
            Ok(TlsStep::Again)
        }
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match what {
            None => Ok(TlsStep::Ready),
            Some(Outgoing::Data(plain)) => grow_until(wire, encrypted_size(plain.len()), |room| {
                traffic.encrypt(plain, room)
            }),
            Some(Outgoing::CloseNotify) => grow_until(wire, encrypted_size(2), |room| {
                traffic.queue_close_notify(room)
            }),
        },
        Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Ok(TlsStep::Wait),
        // No configuration of this crate accepts early data.
        Ok(_) => Err(TlsError::EarlyData.into()),
    };
    (discard, step)
}

fn encrypted_size(plain: usize) -> usize {
    plain + plain.div_ceil(RECORD_LIMIT) * RECORD_OVERHEAD
}

/// Calls `write` with room for `guess` bytes in `wire`, and again if it requires more.
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
