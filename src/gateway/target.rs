//! Connects to a target: name lookup, address policy, TCP.
//!
//! The policy checks the addresses that the lookup returned, and exactly these are dialed.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use super::context::GatewayContext;
use super::policy::AddressDenied;
use crate::control::deadline::Deadline;
use crate::control::outcome::EndReason;
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::http::authority::Authority;
use crate::net::sockets::probe_every;
use crate::tunnel::conn::Conn;
use crate::tunnel::connect::connect;
use crate::tunnel::drive::WaitContext;
use crate::tunnel::error::{TunnelError, exhausted};

/// Why the target was not reached.
#[derive(Debug)]
enum TargetError {
    Resolve(io::Error),
    Denied(AddressDenied),
    Connect(TunnelError),
}

/// Opens a TCP connection to `authority` for the relay behind `relay`.
///
/// # Errors
/// `Rejected`, which the caller sends; `Abandoned` if the relay disconnected.
pub(super) fn dial(
    gateway: &GatewayContext,
    authority: &Authority,
    relay: &TcpStream,
) -> Result<Conn, EndReason> {
    connect_permitted(gateway, authority, relay).map_err(TargetError::end_reason)
}

fn connect_permitted(
    gateway: &GatewayContext,
    authority: &Authority,
    relay: &TcpStream,
) -> Result<Conn, TargetError> {
    let timeout = gateway.limits.connect_timeout;
    let addresses = gateway
        .resolver
        .resolve_while(
            &authority.host,
            authority.port,
            Deadline::after(timeout),
            &|| gateway.stop.requested().is_none(),
        )
        .map_err(TargetError::Resolve)?;
    let permitted = gateway
        .policy
        .choose(addresses)
        .map_err(TargetError::Denied)?;
    let wait = WaitContext {
        stop: &gateway.stop,
        client: Some(relay),
        deadline: Deadline::after(timeout),
        phase: Phase::Connect,
        keepalive: Duration::ZERO,
        drains: false,
    };
    let (stream, _) = connect(&permitted, &wait).map_err(TargetError::Connect)?;
    probe_every(&stream, gateway.limits.keepalive);
    Ok(Conn::new(stream, &gateway.pool))
}

impl TargetError {
    fn end_reason(self) -> EndReason {
        let (phase, error) = match self {
            Self::Resolve(error) => (Phase::Resolve, TunnelError::of_lookup(error)),
            Self::Connect(TunnelError::ClientLeft) => return EndReason::Abandoned,
            Self::Connect(error) => (Phase::Connect, error),
            Self::Denied(denied) => {
                let what = format!("the target's address is not allowed: {denied}");
                return Rejection::new(403, Phase::Connect, what)
                    .proxy_status("destination_ip_prohibited")
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
            "the gateway has no descriptors, threads or memory left for this tunnel",
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

    #[test]
    fn a_target_is_blamed_only_for_its_own_failures() {
        let lookup = |kind: io::ErrorKind| TargetError::Resolve(kind.into());
        let connect = |error: TunnelError| TargetError::Connect(error);
        for (error, expected) in [
            (lookup(io::ErrorKind::Interrupted), Some(503)),
            (lookup(io::ErrorKind::TimedOut), Some(504)),
            (lookup(io::ErrorKind::NotFound), Some(502)),
            (
                TargetError::Resolve(rustix::io::Errno::AGAIN.into()),
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
