//! One client connection from accept to its outcome: access, request, dial, response, pump
//! (`manual/protocol.md`).

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::access::AccessControl;
use super::context::RelayContext;
use super::dial::{DialEvent, DialedTunnel, Dialer};
use super::rejection::DialError;
use super::request;
use super::standby::StandbyPool;
use crate::control::log;
use crate::control::metrics::Counters;
use crate::control::outcome::{EndReason, Outcome};
use crate::http::authority::Authority;
use crate::http::response;
use crate::sys::memory;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::drive::refuse_and_drain;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::opening::ESTABLISHED;
use crate::tunnel::pump::{Pump, PumpContext};

/// How long a refused client may take to read its response.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// What the workers of one relay share.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) access: AccessControl,
    pub(super) own_address: SocketAddr,
    pub(super) standby: StandbyPool,
    pub(super) context: Arc<RelayContext>,
}

impl Relay {
    /// Serves one connection until it ends.
    pub(super) fn serve_connection(&self, connection: TcpStream) -> Outcome {
        let since = Instant::now();
        let mut authority = None;
        // The stack of a handshake is returned while the stream is silent.
        let result = memory::in_own_frame(|| self.open(connection, &mut authority)).map(Pump::run);
        Outcome::new(since, authority, result)
    }

    /// Everything before the stream.
    fn open(
        &self,
        connection: TcpStream,
        authority: &mut Option<String>,
    ) -> Result<Box<Pump<'_>>, EndReason> {
        let context = &self.context;
        let admitted = self.access.admit(&connection);
        let mut client = Conn::new(connection, &context.pool);
        let mut early = Buffer::new(&context.pool);
        let dialed = admitted.and_then(|()| self.connect(&mut client, &mut early, authority));
        let DialedTunnel { conn, received } = match dialed {
            Ok(dialed) => dialed,
            Err(reason) => {
                if let EndReason::Rejected(rejection) = &reason {
                    self.send_last(client, &response::closing(rejection));
                }
                return Err(reason);
            }
        };
        Counters::add(&context.counters.tunnels, 1);
        let mut response = Buffer::new(&context.pool);
        response.extend(ESTABLISHED);
        // The response is sent before any data of the gateway is processed, which may be invalid.
        client
            .encode(&mut response)
            .and_then(|()| client.flush())
            .map_err(|_| EndReason::Abandoned)?;
        let shared = PumpContext {
            limits: &context.limits,
            stop: &context.stop,
            counters: &context.counters,
        };
        Ok(Pump::new(
            Role::Client,
            client,
            conn,
            early,
            received,
            shared,
        ))
    }

    /// Reads the request and opens the tunnel to its target.
    fn connect(
        &self,
        client: &mut Conn,
        early: &mut Buffer,
        authority: &mut Option<String>,
    ) -> Result<DialedTunnel, EndReason> {
        let target =
            request::read_target(&self.context, &self.access, self.own_address, client, early)?;
        *authority = Some(target.to_string());
        self.dial(&target, client.socket())
    }

    /// Opens a tunnel to `target` for `client`: on a standby connection, else on a new
    /// one.
    fn dial(&self, target: &Authority, client: &TcpStream) -> Result<DialedTunnel, EndReason> {
        let context = &self.context;
        if let Some(conn) = self.standby.take(context) {
            let mut dialer = Dialer::new(context, Some(client));
            // If its host has vanished, the kernel reports it within the time that a dial may take.
            conn.set_user_timeout(context.limits.connect_timeout);
            match dialer.open_tunnel(conn, Buffer::new(&context.pool), target) {
                // No data of the client was sent, so a second try does no harm.
                Err(DialError::Path(
                    error @ (TunnelError::Io(_)
                    | TunnelError::ConnectionEnded
                    | TunnelError::Closed(_)),
                )) => {
                    log::debug!(
                        "relay: {target}: the standby connection was dead: {error}; dialing"
                    );
                }
                Err(error) => return Err(error.end_reason(dialer.phase())),
                Ok(tunnel) => {
                    Counters::add(&context.counters.standby_used, 1);
                    tunnel.conn.set_user_timeout(Duration::ZERO);
                    return Ok(tunnel);
                }
            }
        }
        let mut since = Instant::now();
        let mut observer = |event: DialEvent<'_>| match event {
            DialEvent::Upgrade(_) => self.standby.record_rtt(context, since.elapsed()),
            _ => since = Instant::now(),
        };
        let mut dialer = Dialer::new(context, Some(client)).observed_by(&mut observer);
        dialer
            .connect_all(target)
            .map_err(|error| error.end_reason(dialer.phase()))
    }

    /// Sends `bytes` and gives the client a short time to read them, so that no reset destroys
    /// them.
    fn send_last(&self, mut client: Conn, bytes: &[u8]) {
        let mut plain = Buffer::new(&self.context.pool);
        plain.extend(bytes);
        if client.encode(&mut plain).is_ok() {
            refuse_and_drain(client, &self.context.stop, REJECTION_TIMEOUT);
        }
    }
}
