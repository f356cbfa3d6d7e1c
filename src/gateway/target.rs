//! Connects to a target: name lookup, address policy, TCP.
//!
//! The policy checks the addresses that the lookup returned, and exactly these are dialed.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::context::GatewayContext;
use super::policy::{AddressDenied, Policy};
use crate::control::deadline::Deadline;
use crate::control::outcome::EndReason;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::http::authority::Authority;
use crate::net::resolver::Resolution;
use crate::net::sockets::probe_every;
use crate::tunnel::conn::Conn;
use crate::tunnel::connect::{Candidates, connect, resolve};
use crate::tunnel::drive::{WaitContext, WatchedClient};
use crate::tunnel::error::{TunnelError, exhausted};

/// Why the target was not reached.
#[derive(Debug)]
enum TargetError {
    Resolve(TunnelError),
    Denied(AddressDenied),
    Connect(TunnelError),
}

/// Opens a TCP connection to `authority` for the relay behind `relay`. `session` identifies the
/// session: its lookups have a share of the resolver's threads.
///
/// # Errors
/// `Rejected`, which the caller sends; `Abandoned` if the relay disconnected.
pub(super) fn dial(
    gateway: &GatewayContext,
    authority: &Authority,
    session: u64,
    relay: &TcpStream,
) -> Result<Conn, EndReason> {
    connect_permitted(gateway, authority, session, relay).map_err(TargetError::end_reason)
}

fn connect_permitted(
    gateway: &GatewayContext,
    authority: &Authority,
    session: u64,
    relay: &TcpStream,
) -> Result<Conn, TargetError> {
    let timeout = gateway.limits.connect_timeout;
    let resolver = &gateway.resolver;
    let wait = |phase| WaitContext {
        stop: &gateway.stop,
        client: Some(WatchedClient::that_closes_at_once(relay)),
        deadline: Deadline::after(timeout),
        phase,
        keepalive: Duration::ZERO,
        drains: false,
    };
    let resolution = resolve(resolver, authority, session, &wait(Phase::Resolve))
        .map_err(TargetError::Resolve)?;
    let mut candidates = Permitted::new(resolution, &gateway.policy);
    let connected = connect(resolver, authority, &mut candidates, &wait(Phase::Connect));
    let (stream, _) = connected.map_err(|error| match (candidates.denied, error) {
        (Some(denied), TunnelError::Io(_)) => TargetError::Denied(denied),
        (_, error) => TargetError::Connect(error),
    })?;
    probe_every(&stream, gateway.limits.keepalive);
    Ok(Conn::new(stream, &gateway.pool))
}

/// The addresses of a host that the policy permits. The policy checks them for each dial, also
/// those that the resolver remembers.
struct Permitted<'a> {
    resolution: Resolution,
    policy: &'a Policy,
    /// The number of addresses that were checked; `None`: all.
    checked: Option<usize>,
    addresses: Vec<SocketAddr>,
    /// Why no address is permitted.
    denied: Option<AddressDenied>,
}

impl<'a> Permitted<'a> {
    fn new(resolution: Resolution, policy: &'a Policy) -> Self {
        Self {
            resolution,
            policy,
            checked: Some(0),
            addresses: Vec::new(),
            denied: None,
        }
    }
}

impl Candidates for Permitted<'_> {
    fn known(&mut self) -> (&[SocketAddr], bool) {
        let Some(checked) = self.checked else {
            return (&self.addresses, true);
        };
        let complete = self.resolution.refresh();
        let known = self.resolution.addresses().len();
        if complete || known != checked {
            let addresses = if complete {
                self.resolution.take()
            } else {
                self.resolution.addresses().to_vec()
            };
            self.checked = (!complete).then_some(known);
            match self.policy.choose(addresses) {
                Ok(permitted) => (self.addresses, self.denied) = (permitted, None),
                Err(denied) => self.denied = Some(denied),
            }
        }
        (&self.addresses, complete)
    }
}

impl TargetError {
    fn end_reason(self) -> EndReason {
        let (phase, error) = match self {
            Self::Resolve(TunnelError::ClientLeft) | Self::Connect(TunnelError::ClientLeft) => {
                return EndReason::Abandoned;
            }
            Self::Resolve(error) => (Phase::Resolve, error),
            Self::Connect(error) => (Phase::Connect, error),
            // The client must not learn the address: it would get a map of the internal names.
            Self::Denied(denied) => {
                let what = format!("the target's address is not allowed: {}", denied.reason());
                return Rejection::new(403, Phase::Connect, what)
                    .proxy_status("destination_ip_prohibited")
                    .detail(denied.to_string())
                    .into();
            }
        };
        not_reached(phase, &error).into()
    }
}

/// The rejection for a target that was not reached. It does not blame the target for a condition of
/// the gateway.
fn not_reached(phase: Phase, error: &TunnelError) -> Rejection {
    let (status, what, proxy_status) = match error {
        TunnelError::Stopped => (503, "the gateway is stopping", "proxy_internal_response"),
        TunnelError::Io(error) if exhausted(error) => (
            503,
            "the gateway has no descriptors, ports, threads or memory left for this tunnel",
            "proxy_internal_error",
        ),
        _ => match (phase, error.is_timeout()) {
            (Phase::Resolve, true) => (
                504,
                "the lookup of the target's name took too long",
                "dns_timeout",
            ),
            (Phase::Resolve, false) => (502, "the target's name was not found", "dns_error"),
            (_, true) => (
                504,
                "the target did not answer in time",
                "connection_timeout",
            ),
            (_, false) => (
                502,
                "the target refused the connection or cannot be reached",
                "connection_refused",
            ),
        },
    };
    Rejection::new(status, phase, what)
        .proxy_status(proxy_status)
        .detail(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_target_is_blamed_only_for_its_own_failures() {
        let lookup = |kind: io::ErrorKind| TargetError::Resolve(TunnelError::Io(kind.into()));
        let connect = |error: TunnelError| TargetError::Connect(error);
        for (error, expected) in [
            (TargetError::Resolve(TunnelError::Stopped), Some(503)),
            (TargetError::Resolve(TunnelError::ClientLeft), None),
            (lookup(io::ErrorKind::TimedOut), Some(504)),
            (lookup(io::ErrorKind::NotFound), Some(502)),
            (
                TargetError::Resolve(TunnelError::Io(rustix::io::Errno::AGAIN.into())),
                Some(503),
            ),
            (connect(TunnelError::Stopped), Some(503)),
            (connect(TunnelError::ClientLeft), None),
            (connect(TunnelError::TimedOut(Phase::Connect)), Some(504)),
            (
                connect(TunnelError::Io(io::ErrorKind::ConnectionRefused.into())),
                Some(502),
            ),
            (
                connect(TunnelError::Io(rustix::io::Errno::MFILE.into())),
                Some(503),
            ),
            (
                connect(TunnelError::Io(rustix::io::Errno::ADDRNOTAVAIL.into())),
                Some(503),
            ),
        ] {
            let case = format!("{error:?}");
            let rejection = match error.end_reason() {
                EndReason::Rejected(rejection) => Some(rejection),
                EndReason::Abandoned => None,
                other => panic!("{case}: {other:?}"),
            };
            let status = rejection.as_ref().map(|rejection| rejection.status);
            assert_eq!(status, expected, "{case}");
            let blamed = rejection.is_some_and(|rejection| rejection.what.contains("the target"));
            assert_eq!(blamed, matches!(status, Some(502 | 504)), "{case}");
        }
    }
}
