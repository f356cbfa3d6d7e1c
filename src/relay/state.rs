//! What the workers of one relay share, and how each opens a tunnel.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::access::AccessControl;
use super::context::RelayContext;
use super::dial::{DialEvent, DialedTunnel, Dialer};
use super::origin_tls::OriginTls;
use super::rejection::DialError;
use super::standby::StandbyPool;
use crate::control::log;
use crate::control::metrics::Counters;
use crate::control::outcome::EndReason;
use crate::control::shares::Shares;
use crate::http::authority::Authority;
use crate::listener::EvictableList;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::error::TunnelError;
use crate::tunnel::pump::PumpContext;

/// What the workers of one relay share.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) access: AccessControl,
    pub(super) own_address: SocketAddr,
    /// The connections that have no request. Every other connection holds a share of `tunnels`.
    pub(super) newcomers: EvictableList,
    pub(super) tunnels: Shares,
    pub(super) standby: StandbyPool,
    pub(super) origin_tls: OriginTls,
    pub(super) context: Arc<RelayContext>,
}

impl Relay {
    /// What all tunnels share.
    pub(super) fn pump_context(&self) -> PumpContext<'_> {
        PumpContext {
            limits: &self.context.limits,
            stop: &self.context.stop,
            counters: &self.context.counters,
        }
    }

    /// Opens a tunnel to `target` for `client`: on a standby connection, else on a new
    /// one.
    pub(super) fn dial(
        &self,
        target: &Authority,
        client: &TcpStream,
    ) -> Result<DialedTunnel, EndReason> {
        let context = &self.context;
        let credentials = context.upstream.credentials.get();
        if let Some(conn) = self.standby.take(context, &credentials) {
            let mut dialer = Dialer::new(context, &credentials, Some(client));
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
                        target: context.log_source.target(),
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
        let mut dialer =
            Dialer::new(context, &credentials, Some(client)).observed_by(&mut observer);
        dialer
            .connect_all(target)
            .map_err(|error| error.end_reason(dialer.phase()))
    }
}
