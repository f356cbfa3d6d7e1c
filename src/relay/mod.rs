//! The client end: a proxy on loopback. Each tunnel has its own WebSocket to the gateway.
//!
//! `access` decides who may use the port, `worker` serves one connection, `request` reads its first
//! request, `socks` parses SOCKS5, `dial` opens the tunnel, `standby` keeps connections that were
//! dialed ahead, `rejection` says why there is no tunnel, and `forward` serves requests in
//! absolute-form. It never uses the gateway's code.

mod access;
mod context;
mod credentials;
pub(crate) mod dial;
mod forward;
mod origin_tls;
mod rejection;
mod request;
mod socks;
mod standby;
mod state;
mod worker;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::{fmt, io};

#[cfg(feature = "cli")]
use crossbeam_channel::Receiver;

pub(crate) use context::Upstream;
pub(crate) use credentials::CurrentCredentials;
#[cfg(feature = "cli")]
pub(crate) use dial::{DialEvent, trace};

use crate::config::Config;
use crate::control::hosts::HostTable;
use crate::control::log::LogSource;
use crate::control::metrics::{Counters, Stats, StatsReader};
use crate::control::outcome::Outcome;
use crate::control::shares::Shares;
use crate::control::stop::{Abort, Stop};
use crate::crypto::secret::Secret;
use crate::http::response;
#[cfg(feature = "cli")]
use crate::listener::Liveness;
use crate::listener::{self, EvictableList, Eviction, Listening, Service, ShutdownReport};
use crate::net::sockets::probe_every;
use crate::tunnel::buffer::Pool;
use crate::tunnel::ws_codec::Budget;
use access::AccessControl;
use context::RelayContext;
use origin_tls::OriginTls;
use standby::StandbyPool;
use state::Relay;

/// How long a client that has sent no request cannot be evicted at most. Clients on this machine
/// send it when they are connected.
const GRACE: Duration = Duration::from_millis(100);

/// A relay that listens. Dropping it stops it.
#[must_use = "dropping it stops the relay"]
pub(crate) struct Running {
    listening: Listening,
    log_source: LogSource,
    stats: StatsReader,
    context: Arc<RelayContext>,
    userinfo: Option<String>,
}

impl fmt::Debug for Running {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("listening", &self.listening)
            .finish_non_exhaustive()
    }
}

impl Running {
    /// The address that it listens on.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.listening.local_addr()
    }

    /// The source of its log lines.
    pub(crate) fn log_source(&self) -> &LogSource {
        &self.log_source
    }

    /// `user:password` for the proxy URL, if the relay requires a password.
    pub(crate) fn userinfo(&self) -> Option<&str> {
        self.userinfo.as_deref()
    }

    /// The counters now.
    pub(crate) fn stats(&self) -> Stats {
        self.stats.read()
    }

    /// A reader of the counters that stays valid during and after the shutdown.
    pub(crate) fn stats_reader(&self) -> StatsReader {
        self.stats.clone()
    }

    /// New dials use `token`. Standby connections of the old one are not used any more. Returns
    /// whether it is another one.
    pub(crate) fn replace_token(&self, token: Secret) -> bool {
        self.context.upstream.credentials.replace_token(token)
    }

    /// The base URL of the upstream, and the session ID.
    #[cfg(feature = "cli")]
    pub(crate) fn upstream(&self) -> (String, String) {
        let upstream = &self.context.upstream;
        let session_id = upstream.credentials.get().session_id.clone();
        (upstream.base.to_string(), session_id)
    }

    /// Receives a message after the gateway has refused the current credentials.
    #[cfg(feature = "cli")]
    pub(crate) fn refusals(&self) -> Receiver<()> {
        self.context.upstream.credentials.refusals()
    }

    /// The counters per target host. Clones of the table stay valid after the shutdown.
    #[cfg(feature = "cli")]
    pub(crate) fn hosts(&self) -> &HostTable {
        &self.context.hosts
    }

    /// Ends a shutdown early, from another thread.
    pub(crate) fn abort(&self) -> Abort {
        self.listening.abort()
    }

    /// Finds out whether its threads work.
    #[cfg(feature = "cli")]
    pub(crate) fn liveness(&self) -> Liveness {
        self.listening.liveness()
    }

    /// Stops accepting, gives open tunnels `drain` to end, resets the others, and joins every
    /// thread.
    pub(crate) fn shutdown(self, drain: Duration) -> ShutdownReport {
        self.listening.shutdown(drain)
    }
}

/// Starts a relay on `socket` with at most `cap` tunnels. Origins of `https` requests in
/// absolute-form are verified with the roots in the PEM file `bundle`; without it such requests are
/// refused.
///
/// # Errors
/// The socket has no address, or there is no descriptor or thread left.
pub(crate) fn start(
    socket: TcpListener,
    config: &Config,
    upstream: Upstream,
    bundle: Option<PathBuf>,
    cap: usize,
) -> io::Result<Running> {
    let own_address = socket.local_addr()?;
    let log_source = LogSource::new("relay", own_address);
    let access = AccessControl::new(config, &log_source)?;
    let limits = config.limits.bounded();
    probe_every(&socket, limits.keepalive);
    let userinfo = access.userinfo().map(str::to_owned);
    let stop = Arc::new(Stop::new()?);
    let counters = Arc::new(Counters::default());
    let context = Arc::new(RelayContext {
        upstream,
        log_source: log_source.clone(),
        limits,
        stop: Arc::clone(&stop),
        counters: Arc::clone(&counters),
        hosts: HostTable::default(),
        pool: Pool::default(),
        budget: Budget::new(cap),
        ca_change_reported: AtomicBool::new(false),
    });
    let relay = Arc::new(Relay {
        access,
        own_address,
        newcomers: EvictableList::new(GRACE),
        tunnels: Shares::new(cap),
        standby: StandbyPool::new(limits.standby, &counters),
        origin_tls: OriginTls::new(bundle),
        context: Arc::clone(&context),
    });
    let stats = StatsReader::new(&counters);
    let listening = listener::start(socket, relay, cap, limits.drain_timeout, &stop, counters)?;
    Ok(Running {
        listening,
        log_source,
        stats,
        context,
        userinfo,
    })
}

impl Service for Relay {
    const THREADS: [&'static str; 3] = ["uproxy-super", "uproxy-accept", "tun"];

    fn log_source(&self) -> &LogSource {
        &self.context.log_source
    }

    fn serve(
        &self,
        connection: TcpStream,
        peer: SocketAddr,
        report: &mut dyn FnMut(Outcome),
    ) -> Outcome {
        let hosts = &self.context.hosts;
        let outcome = self.serve_connection(connection, peer, &mut |outcome| {
            hosts.record(&outcome);
            report(outcome);
        });
        hosts.record(&outcome);
        outcome
    }

    fn busy_response(&self) -> Vec<u8> {
        response::closing(&worker::no_tunnel_free())
    }

    fn make_room(&self) -> Eviction {
        self.newcomers.evict(&self.tunnels)
    }
}
