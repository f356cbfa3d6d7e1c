//! Connects to a target: name lookup, address policy, TCP.
//!
//! The policy checks the addresses that the lookup returned, and exactly these are dialed.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::context::GatewayContext;
use super::policy::{AddressDenied, Policy};
use crate::config::ParentProxy;
use crate::control::deadline::Deadline;
use crate::control::outcome::EndReason;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::http::authority::{Authority, Host};
use crate::net::resolver::Resolution;
use crate::net::sockets::probe_every;
use crate::tunnel::conn::Conn;
use crate::tunnel::connect::{Candidates, connect, resolve};
use crate::tunnel::drive::{WaitContext, WatchedClient};
use crate::tunnel::error::{ParentError, TunnelError, exhausted};
use crate::tunnel::parent;

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
    let parent = gateway.parent.as_ref();
    if let Some(parent) = parent.filter(|parent| parent.is_for(authority)) {
        let stream = through(parent, gateway, authority, session, &wait)?;
        probe_every(&stream, gateway.limits.keepalive);
        return Ok(Conn::new(stream, &gateway.pool));
    }
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

/// Connects through the parent proxy, which looks up the name of the target: many networks with
/// such a proxy have no names of other networks. The policy judges a target that is an address.
fn through<'a>(
    parent: &ParentProxy,
    gateway: &'a GatewayContext,
    target: &Authority,
    session: u64,
    wait: &impl Fn(Phase) -> WaitContext<'a>,
) -> Result<TcpStream, TargetError> {
    if let Host::Address(address) = target.host {
        let address = SocketAddr::new(address, target.port);
        gateway
            .policy
            .choose(vec![address])
            .map_err(TargetError::Denied)?;
    }
    let (resolver, next_hop) = (&gateway.resolver, parent.authority());
    let mut addresses = resolve(resolver, next_hop, session, &wait(Phase::Resolve))
        .map_err(TargetError::Resolve)?;
    let wait = wait(Phase::Connect);
    let connected = connect(resolver, next_hop, &mut addresses, &wait);
    let (stream, _) = connected.map_err(TargetError::Connect)?;
    parent::establish(&stream, parent, target, &wait).map_err(TargetError::Connect)?;
    Ok(stream)
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
        TunnelError::Parent(ParentError::Refused(403)) => (
            403,
            "the parent proxy of the gateway does not allow this target",
            "http_request_denied",
        ),
        TunnelError::Parent(ParentError::Refused(504)) => (
            504,
            "the target did not answer the parent proxy of the gateway in time",
            "connection_timeout",
        ),
        TunnelError::Parent(_) => (
            502,
            "the parent proxy of the gateway did not open a connection to the target",
            "destination_unavailable",
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
            (_, false) if is_refused(error) => (
                502,
                "the target refused the connection",
                "connection_refused",
            ),
            (_, false) => (
                502,
                "the target cannot be reached",
                "destination_ip_unroutable",
            ),
        },
    };
    Rejection::new(status, phase, what)
        .proxy_status(proxy_status)
        .detail(error.to_string())
}

fn is_refused(error: &TunnelError) -> bool {
    matches!(error, TunnelError::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::lookup_error::LookupError;

    #[test]
    fn a_target_is_blamed_only_for_its_own_failures() {
        let lookup = |error: LookupError| TargetError::Resolve(error.into());
        let not_found = LookupError::NotFound {
            name: "a.example".to_owned(),
            why: "no address".to_owned(),
        };
        let connect = |error: TunnelError| TargetError::Connect(error);
        for (error, expected) in [
            (TargetError::Resolve(TunnelError::Stopped), Some(503)),
            (TargetError::Resolve(TunnelError::ClientLeft), None),
            (
                lookup(LookupError::TimedOut("a.example".to_owned())),
                Some(504),
            ),
            (lookup(not_found), Some(502)),
            (
                lookup(LookupError::System(rustix::io::Errno::AGAIN.into())),
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
