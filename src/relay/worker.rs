//! One client connection from accept to its outcome: access, request, dial, response, pump
//! (`manual/protocol.md`).

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::dial::DialedTunnel;
use super::forward::Forwarder;
use super::request::{ClientRequest, Protocol, RequestReader};
use super::state::Relay;
use crate::control::metrics::Counters;
use crate::control::outcome::{EndReason, Outcome};
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

/// A connection whose first request was read.
enum Opened<'a> {
    /// Its tunnel is open.
    Tunnel(Box<Pump<'a>>),
    /// It sends requests in absolute-form; this is the first.
    Request(Box<Conn>, Buffer, Box<RequestHead>, Box<AbsoluteTarget>),
}

impl Relay {
    /// Serves one connection until it ends. `report` receives the outcome of each tunnel except the
    /// last: a client that sends requests in absolute-form may need several.
    pub(super) fn serve_connection(
        &self,
        connection: TcpStream,
        report: &mut dyn FnMut(Outcome),
    ) -> Outcome {
        let since = Instant::now();
        let mut authority = None;
        // The stack of a handshake is returned while the stream is silent.
        let opened = memory::in_own_frame(|| self.open(connection, &mut authority));
        let result = match opened {
            Ok(Opened::Tunnel(pump)) => Ok(pump.run()),
            Ok(Opened::Request(client, early, head, target)) => {
                return Forwarder::new(self, *client, early, report).run(*head, *target);
            }
            Err(reason) => Err(reason),
        };
        Outcome::new(since, authority, result)
    }

    /// Everything before the stream.
    fn open(
        &self,
        connection: TcpStream,
        authority: &mut Option<String>,
    ) -> Result<Opened<'_>, EndReason> {
        let context = &self.context;
        let admitted = self.access.admit(&connection);
        let mut client = Conn::new(connection, &context.pool);
        let mut early = Buffer::new(&context.pool);
        let mut protocol = Protocol::Http;
        let requested = admitted.and_then(|()| {
            let reader = RequestReader {
                context,
                access: &self.access,
                own_address: self.own_address,
                client: &mut client,
                early: &mut early,
                protocol: &mut protocol,
            };
            reader.read()
        });
        let dialed = match requested {
            Ok(ClientRequest::Forward(head, target)) => {
                return Ok(Opened::Request(Box::new(client), early, head, target));
            }
            Ok(ClientRequest::Tunnel(target)) => {
                *authority = Some(target.to_string());
                self.dial(&target, client.socket())
            }
            Err(reason) => Err(reason),
        };
        let DialedTunnel { conn, received } = match dialed {
            Ok(dialed) => dialed,
            Err(reason) => {
                if let EndReason::Rejected(rejection) = &reason {
                    self.send_last(client, &protocol.refusal(rejection));
                }
                return Err(reason);
            }
        };
        Counters::add(&context.counters.tunnels, 1);
        // The response is sent before any data of the gateway is processed, which may be invalid.
        client
            .send(protocol.established())
            .and_then(|()| client.flush())
            .map_err(|_| EndReason::Abandoned)?;
        let shared = self.pump_context();
        let pump = Pump::new(Role::Client, client, conn, early, received, shared);
        Ok(Opened::Tunnel(pump))
    }

    /// Sends `bytes` and gives the client a short time to read them, so that no reset destroys
    /// them.
    fn send_last(&self, mut client: Conn, bytes: &[u8]) {
        if client.send(bytes).is_ok() {
            refuse_and_drain(client, &self.context.stop, REJECTION_TIMEOUT);
        }
    }
}
