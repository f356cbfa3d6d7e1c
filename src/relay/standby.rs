//! Standby connections: upgraded WebSocket connections to the gateway that wait for the next
//! CONNECT, so that it costs one round trip and not four or more (option `--standby`).
//!
//! Their number follows demand: as many as CONNECTs arrived in the last seconds, up to `--standby`.
//! Without CONNECTs, or if the gateway is near (loopback), there are none. A connection is checked
//! when it is taken. If it proves dead later, the worker dials once more (`manual/architecture.md`,
//! "Standby connections").

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem, ptr};

use rustix::event::{PollFd, PollFlags};
use tungstenite::protocol::frame::coding::CloseCode;

use super::context::RelayContext;
use super::dial::dial_ahead;
use crate::control::log;
use crate::control::metrics::Counters;
use crate::crypto::secret::Credentials;
use crate::net::wait::wait;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::ws_codec::WsCodec;

/// How long a CONNECT counts as demand: about the time between two steps of an installation.
const DEMAND: Duration = Duration::from_secs(10);
/// How long a connection may wait. Gateways ping a silent peer after 25 to 30 s and give up after
/// three such intervals, and middleboxes often forget a connection after a minute. As none waits
/// that long, no thread has to answer pings.
const MAX_AGE: Duration = Duration::from_secs(45);
/// Below this round-trip time a standby connection saves nothing that matters.
const MIN_RTT: Duration = Duration::from_millis(5);
/// How many connections are dialed at once.
const DIALERS: usize = 4;
/// How long nothing is dialed ahead after a failed dial. CONNECTs that arrive meanwhile dial and
/// report the error.
const PAUSE: Duration = Duration::from_secs(5);

/// The standby connections of one relay. Dropping it closes its connections and joins its threads.
pub(super) struct StandbyPool(Arc<Inner>);

/// What the pool shares with its threads.
struct Inner {
    limit: usize,
    counters: Arc<Counters>,
    state: Mutex<StandbyState>,
}

#[derive(Default)]
struct StandbyState {
    /// The connections, the newest last.
    ready: Vec<StandbyConn>,
    /// The number of dials in progress.
    dialing: usize,
    /// When the latest CONNECTs arrived; at most as many as the limit.
    demand_times: VecDeque<Instant>,
    /// The shortest time in which the gateway has answered an upgrade.
    min_rtt: Option<Duration>,
    /// Nothing is dialed ahead before this time.
    not_before: Option<Instant>,
    /// A thread closes connections that get too old.
    has_reaper: bool,
    closed: bool,
    threads: Vec<JoinHandle<()>>,
}

struct StandbyConn {
    conn: Conn,
    since: Instant,
    /// Identifies the credentials of its upgrade.
    credentials: Weak<Credentials>,
}

impl std::fmt::Debug for StandbyPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StandbyPool")
            .field("limit", &self.0.limit)
            .finish_non_exhaustive()
    }
}

impl StandbyPool {
    /// A pool of at most `limit` connections; zero switches it off.
    pub(super) fn new(limit: usize, counters: &Arc<Counters>) -> Self {
        Self(Arc::new(Inner {
            limit,
            counters: Arc::clone(counters),
            state: Mutex::default(),
        }))
    }

    /// A connection for a CONNECT that has arrived, if one is ready, appears alive, and was opened
    /// with `credentials`. Others are dialed to replace it. It does not block.
    pub(super) fn take(
        &self,
        context: &Arc<RelayContext>,
        credentials: &Arc<Credentials>,
    ) -> Option<Conn> {
        if self.0.limit == 0 {
            return None;
        }
        let now = Instant::now();
        let mut state = self.0.lock();
        if state.demand_times.len() == self.0.limit {
            state.demand_times.pop_front();
        }
        state.demand_times.push_back(now);
        let mut taken = None;
        while let Some(mut ready) = state.ready.pop() {
            if ptr::eq(ready.credentials.as_ptr(), Arc::as_ptr(credentials))
                && ready.is_alive(context, now)
            {
                taken = Some(ready.conn);
                break;
            }
        }
        self.0.count(&state);
        self.0.start_dialers(&mut state, context, now);
        taken
    }

    /// Records how long the gateway took to answer an upgrade: one round trip.
    pub(super) fn record_rtt(&self, context: &Arc<RelayContext>, took: Duration) {
        let mut state = self.0.lock();
        state.min_rtt = Some(state.min_rtt.map_or(took, |before| before.min(took)));
        self.0.start_dialers(&mut state, context, Instant::now());
    }
}

impl Drop for StandbyPool {
    fn drop(&mut self) {
        let (ready, threads) = {
            let mut state = self.0.lock();
            state.closed = true;
            let ready = mem::take(&mut state.ready);
            self.0.count(&state);
            (ready, mem::take(&mut state.threads))
        };
        close_all(ready);
        for thread in threads {
            // No one waits for the result of a thread that panicked.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, StandbyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the counter of connections in the pool.
    fn count(&self, state: &StandbyState) {
        let open = state.ready.len() as u64;
        self.counters.standby_open.store(open, Ordering::Relaxed);
    }

    /// Starts a thread per missing connection, up to [`DIALERS`].
    fn start_dialers(
        self: &Arc<Self>,
        state: &mut StandbyState,
        context: &Arc<RelayContext>,
        now: Instant,
    ) {
        state.threads.retain(|thread| !thread.is_finished());
        let missing = state.missing(now);
        for _ in 0..missing.min(DIALERS.saturating_sub(state.dialing)) {
            let (inner, context) = (Arc::clone(self), Arc::clone(context));
            let spawned = thread::Builder::new()
                .name("uproxy-standby".into())
                .spawn(move || inner.dial(&context));
            // Without a thread nothing is dialed ahead; each CONNECT dials for itself.
            let Ok(thread) = spawned else { return };
            state.dialing += 1;
            state.threads.push(thread);
        }
    }

    /// A thread: dials while connections are missing. One of the threads then remains as the
    /// reaper.
    fn dial(&self, context: &RelayContext) {
        loop {
            // Other crates log too, and the host's logger may panic.
            let dialed = catch_unwind(AssertUnwindSafe(|| dial_ahead(context)))
                .unwrap_or_else(|_| Err(io::Error::other("the dialer panicked").into()));
            if let Err(error) = &dialed {
                // Before the lock: the logger may take long.
                log::debug!(target: context.log_source.target(), "relay: dialing ahead failed: {error}");
            }
            let now = Instant::now();
            let mut state = self.lock();
            state.dialing -= 1;
            match dialed {
                Ok((conn, credentials)) if !state.closed => state.ready.push(StandbyConn {
                    conn,
                    since: now,
                    credentials,
                }),
                Ok(_) => {}
                Err(_) => state.not_before = Some(now + PAUSE),
            }
            self.count(&state);
            if state.missing(now) == 0 {
                break;
            }
            state.dialing += 1;
        }
        self.reap(context);
    }

    /// Closes connections that are too old or more than the demand, until none is left.
    fn reap(&self, context: &RelayContext) {
        if mem::replace(&mut self.lock().has_reaper, true) {
            return;
        }
        loop {
            let now = Instant::now();
            let (surplus, next) = {
                let mut state = self.lock();
                let surplus = state.take_surplus(now);
                self.count(&state);
                let next = state.next_check();
                state.has_reaper = next.is_some() && context.stop.requested().is_none();
                if !state.has_reaper {
                    break close_all(surplus);
                }
                (surplus, next)
            };
            close_all(surplus);
            let mut fds = [PollFd::from_borrowed_fd(
                context.stop.as_fd(),
                PollFlags::IN,
            )];
            if wait(&mut fds, next).is_err() {
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

impl StandbyState {
    /// How many connections should be ready: one per recent CONNECT, if the gateway is far enough.
    fn demand(&mut self, now: Instant) -> usize {
        while self
            .demand_times
            .front()
            .is_some_and(|at| *at + DEMAND <= now)
        {
            self.demand_times.pop_front();
        }
        if self.min_rtt.is_none_or(|rtt| rtt < MIN_RTT) {
            return 0;
        }
        self.demand_times.len()
    }

    /// How many connections to dial now.
    fn missing(&mut self, now: Instant) -> usize {
        if self.closed || self.not_before.is_some_and(|at| now < at) {
            return 0;
        }
        let have = self.ready.len() + self.dialing;
        self.demand(now).saturating_sub(have)
    }

    /// Removes the connections that are too old, and the oldest ones above the demand.
    fn take_surplus(&mut self, now: Instant) -> Vec<StandbyConn> {
        let demand = self.demand(now);
        let too_many = self.ready.len().saturating_sub(demand);
        let too_old = self
            .ready
            .partition_point(|ready| ready.since + MAX_AGE <= now);
        self.ready.drain(..too_many.max(too_old)).collect()
    }

    /// When a connection next becomes too old, or demand next drops.
    fn next_check(&self) -> Option<Instant> {
        let oldest = self.ready.first()?.since + MAX_AGE;
        let demand_drops = self.demand_times.front().map(|at| *at + DEMAND);
        Some(demand_drops.map_or(oldest, |at| at.min(oldest)))
    }
}

impl StandbyConn {
    /// Whether it is young enough, and its peer has neither closed it nor sent anything but pings.
    fn is_alive(&mut self, context: &RelayContext, now: Instant) -> bool {
        let conn = &mut self.conn;
        let mut received = Buffer::new(&context.pool);
        conn.readable = true;
        while conn.readable {
            if conn
                .fill(&mut received)
                .and_then(|()| conn.flush())
                .is_err()
            {
                return false;
            }
        }
        let closed = conn.websocket().and_then(WsCodec::peer_close);
        self.since + MAX_AGE > now && received.is_empty() && !conn.eof() && closed.is_none()
    }
}

/// Closes the connections without waiting for their peers.
fn close_all(ready: Vec<StandbyConn>) {
    for StandbyConn { mut conn, .. } in ready {
        conn.try_close(CloseCode::Away);
    }
}
