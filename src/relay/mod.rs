//! The client end: a CONNECT proxy on loopback whose every tunnel is a WebSocket of its own to the gateway.
//!
//! `worker` is the life of one connection, `entry` who may use the port, `dial` the way to the gateway, `standby` what was
//! dialled ahead, `refusal` what is said when there is no way. The gateway's code is never used here.

mod access;
pub(crate) mod dial;
mod peer_uid;
mod refusal;
mod warm_pool;
mod worker;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use rustls::ClientConfig;

pub(crate) use access::AccessControl;
pub(crate) use dial::{DialEvent, trace};
use warm_pool::WarmPool;

use crate::config::Limits;
use crate::control::metrics::{Counters, Stats, StatsReader};
use crate::control::outcome::Outcome;
use crate::control::phase::Phase;
use crate::control::stop::{Abort, Stop};
use crate::crypto::secret::Credentials;
use crate::http::base_url::BaseUrl;
use crate::http::reply::Reply;
use crate::listener::{self, Listening, Service, ShutdownReport};
use crate::net::resolver::Resolver;
use crate::net::sockets::probe_every;
use crate::tunnel::buffer::Pool;
use crate::tunnel::ws_codec::Budget;

/// Where the gateway is, and what to show it.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    /// The base URL of its endpoints.
    pub(crate) base: BaseUrl,
    /// Who we are.
    pub(crate) credentials: Credentials,
    /// Whom to trust; `None` for a plain upstream on loopback.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// How names are looked up.
    pub(crate) resolver: Resolver,
}

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Relay {
    entry: AccessControl,
    own_address: SocketAddr,
    standby: WarmPool,
    shared: Arc<Shared>,
}

/// What is needed for dialling too, whoever does it.
#[derive(Debug)]
struct Shared {
    upstream: Upstream,
    limits: Limits,
    stop: Arc<Stop>,
    counters: Arc<Counters>,
    pool: Pool,
    budget: Budget,
}

/// A relay that listens.
pub(crate) struct Running {
    listening: Listening,
    counters: Arc<Counters>,
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
    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.listening.local_addr()
    }

    /// `user:password` for the proxy URL, where the relay asks for it.
    pub(crate) fn userinfo(&self) -> Option<&str> {
        self.userinfo.as_deref()
    }

    /// What has happened so far.
    pub(crate) fn stats(&self) -> Stats {
        self.counters.stats()
    }

    /// A reader of the counters that stays valid during and after the shutdown.
    pub(crate) fn stats_reader(&self) -> StatsReader {
        StatsReader::new(&self.counters)
    }

    /// The way to end a shutdown that takes its time.
    pub(crate) fn abort(&self) -> Abort {
        self.listening.abort()
    }

    /// Stops accepting, gives open tunnels `drain` to end, and returns when every thread is joined.
    pub(crate) fn shutdown(self, drain: Duration) -> ShutdownReport {
        self.listening.shutdown(drain)
    }
}

/// Starts a relay on `socket` with at most `cap` tunnels.
///
/// # Errors
/// A descriptor or a thread could not be had.
pub(crate) fn start(
    socket: TcpListener,
    entry: AccessControl,
    upstream: Upstream,
    limits: Limits,
    cap: usize,
) -> io::Result<Running> {
    let limits = limits.bounded();
    probe_every(&socket, limits.keepalive);
    let userinfo = entry.userinfo().map(str::to_owned);
    let stop = Arc::new(Stop::new()?);
    let counters = Arc::new(Counters::default());
    let relay = Arc::new(Relay {
        entry,
        own_address: socket.local_addr()?,
        standby: WarmPool::new(limits.standby),
        shared: Arc::new(Shared {
            upstream,
            limits,
            stop: Arc::clone(&stop),
            counters: Arc::clone(&counters),
            pool: Pool::default(),
            budget: Budget::default(),
        }),
    });
    let listening = listener::start(
        socket,
        relay,
        cap,
        limits.drain_timeout,
        &stop,
        Arc::clone(&counters),
    )?;
    Ok(Running {
        listening,
        counters,
        userinfo,
    })
}

impl Service for Relay {
    const LOG_NAME: &'static str = "relay";
    const THREADS: [&'static str; 3] = ["uproxy-super", "uproxy-accept", "tun"];

    fn serve(&self, connection: TcpStream, _: SocketAddr) -> Outcome {
        worker::serve(self, connection)
    }

    fn refusal(&self) -> Vec<u8> {
        Reply::new(
            503,
            "upstreamproxy has no tunnel free; try again in a moment, or raise --max-tunnels",
        )
        .because("connection_limit_reached", Phase::Head)
        .with("Retry-After", "1")
        .to_bytes()
    }
}
