//! One client connection from accept to its outcome: access, request, dial, response, pump
//! (`manual/protocol.md`).

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dial::DialedTunnel;
use super::forward::Forwarder;
use super::request::{ClientRequest, Protocol, RequestReader};
use super::state::Relay;
use crate::control::hosts::OpenTunnel;
use crate::control::outcome::{EndReason, Outcome};
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::control::shares::Share;
use crate::http::forward::AbsoluteTarget;
use crate::http::head::RequestHead;
use crate::sys::memory;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::drive::refuse_and_drain;
use crate::tunnel::frame::Role;
use crate::tunnel::pump::Pump;

/// How long a refused client may take to read its response.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection whose first request was read, with its share of the tunnels.
enum Opened<'a> {
    /// Its tunnel is open.
    Tunnel(Box<Pump<'a>>, Share, OpenTunnel),
    /// It sends requests in absolute-form; this is the first.
    Request(
        Box<Conn>,
        Buffer,
        Box<RequestHead>,
        Box<AbsoluteTarget>,
        Share,
    ),
}

impl Relay {
    /// Serves one connection until it ends. `report` receives the outcome of each tunnel except the
    /// last: a client that sends requests in absolute-form may need several.
    pub(super) fn serve_connection(
        &self,
        connection: TcpStream,
        peer: SocketAddr,
        report: &mut dyn FnMut(Outcome),
    ) -> Outcome {
        let since = Instant::now();
        let mut authority = None;
        // The stack of a handshake is returned while the stream is silent.
        let opened = memory::in_own_frame(|| self.open(connection, peer, &mut authority));
        let result = match opened {
            Ok(Opened::Tunnel(pump, _share, _open)) => Ok(pump.run()),
            Ok(Opened::Request(client, early, head, target, _share)) => {
                return Forwarder::new(self, *client, early, report).run(*head, *target);
            }
            Err(reason) => Err(reason),
        };
        Outcome::new(since, authority, result)
    }

    /// Everything before the stream. Until the tunnel has its share, the connection can be evicted.
    fn open(
        &self,
        connection: TcpStream,
        peer: SocketAddr,
        authority: &mut Option<String>,
    ) -> Result<Opened<'_>, EndReason> {
        let context = &self.context;
        let connection = Arc::new(connection);
        let mut newcomer = self.newcomers.add(&connection);
        let admitted = self.access.admit(&connection, peer);
        let mut client = Conn::new(connection, &context.pool);
        let mut early = Buffer::new(&context.pool);
        let mut protocol = Protocol::Http;
        let granted = admitted.and_then(|party| {
            if let Some(party) = party {
                newcomer.set_party(party);
            }
            let reader = RequestReader {
                context,
                access: &self.access,
                own_address: self.own_address,
                client: &mut client,
                early: &mut early,
                protocol: &mut protocol,
            };
            let request = reader.read()?;
            if let ClientRequest::Tunnel(target) = &request {
                *authority = Some(target.to_string());
            }
            let share = self.tunnels.take(party, 1).ok_or_else(no_tunnel_free)?;
            Ok((request, share))
        });
        let (request, share) = match granted {
            Ok(granted) => granted,
            Err(_) if newcomer.was_evicted() => return Err(EndReason::Abandoned),
            Err(reason) => return Err(self.refuse(client, protocol, reason, authority.as_deref())),
        };
        drop(newcomer);
        let dialed = match request {
            ClientRequest::Forward(head, target) => {
                let client = Box::new(client);
                return Ok(Opened::Request(client, early, head, target, share));
            }
            ClientRequest::Tunnel(target) => self.dial(&target, client.socket()),
        };
        let DialedTunnel { conn, received } = match dialed {
            Ok(dialed) => dialed,
            Err(reason) => return Err(self.refuse(client, protocol, reason, authority.as_deref())),
        };
        let open = context.count_tunnel(authority.as_deref().unwrap_or_default());
        // The response is sent before any data of the gateway is processed, which may be invalid.
        client
            .send(protocol.established())
            .and_then(|()| client.flush())
            .map_err(|_| EndReason::Abandoned)?;
        let shared = self.pump_context();
        let pump = Pump::new(Role::Client, client, conn, early, received, shared);
        Ok(Opened::Tunnel(pump, share, open))
    }

    /// Sends the rejection, if `reason` is one, and gives the client a short time to read it, so
    /// that no reset destroys it. Returns the reason.
    fn refuse(
        &self,
        mut client: Conn,
        protocol: Protocol,
        reason: EndReason,
        target: Option<&str>,
    ) -> EndReason {
        let reason = reason.for_target(target);
        if let EndReason::Rejected(rejection) = &reason
            && client.send(&protocol.refusal(rejection)).is_ok()
        {
            refuse_and_drain(client, &self.context.stop, REJECTION_TIMEOUT);
        }
        reason
    }
}

/// The rejection of a client for which no tunnel is free.
pub(super) fn no_tunnel_free() -> Rejection {
    Rejection::new(503, Phase::Head, "upstreamproxy has no tunnel free")
        .remedy("try again in a moment, or raise max-tunnels (--max-tunnels)")
        .proxy_status("connection_limit_reached")
        .field(&("Retry-After", "1"))
}
