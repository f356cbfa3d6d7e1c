//! Connections to the gateway that stand, upgraded, before anybody asks for a tunnel, so that a CONNECT costs one round trip
//! and not four or more.
//!
//! How many follows demand: as many as there were CONNECTs a short while ago, up to `--standby`. Nobody asks, nothing is kept;
//! and where dialling takes no time, as on loopback, nothing is kept either. Each is looked at when it is taken, and what
//! proves dead all the same is dialled anew, once (`manual/architecture.md`, The standby).

use std::collections::VecDeque;
use std::mem;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use tungstenite::protocol::frame::coding::CloseCode;

use super::Shared;
use super::dial;
use crate::net::wait::wait;
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::ws_codec::WsCodec;

/// How long a CONNECT counts as demand: from one step of an installation to the next.
const DEMAND: Duration = Duration::from_secs(10);
/// How long one may wait to be taken. Gateways ping a silent peer after 25 to 30 s and give it up after three such intervals,
/// and what stands between often forgets a connection after a minute: none is kept for so long, and so none need be tended.
const AGE: Duration = Duration::from_secs(45);
/// A gateway that answers sooner than this is so near that nothing would be won.
const NEAR: Duration = Duration::from_millis(5);
/// How many are dialled at once.
const DIALLERS: usize = 4;
/// How long nothing is dialled after a dial that failed: those who ask for tunnels find out by themselves.
const PAUSE: Duration = Duration::from_secs(5);

/// The standby of one relay. Dropping it ends its threads and hangs up on all that waited.
pub(super) struct WarmPool(Arc<Store>);

/// What it shares with its threads.
struct Store {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The newest last.
    ready: Vec<Ready>,
    /// Dials under way.
    dialling: usize,
    /// When the latest CONNECTs came, no more of them than may stand by.
    asked: VecDeque<Instant>,
    /// The quickest that the gateway ever answered an upgrade: its distance.
    distance: Option<Duration>,
    not_before: Option<Instant>,
    /// A thread sees to it that none gets too old.
    kept: bool,
    closed: bool,
    threads: Vec<JoinHandle<()>>,
}

struct Ready {
    conn: Conn,
    since: Instant,
}

impl std::fmt::Debug for WarmPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Standby")
            .field("limit", &self.0.limit)
            .finish_non_exhaustive()
    }
}

impl WarmPool {
    /// At most `limit` connections; zero: none, ever.
    pub(super) fn new(limit: usize) -> Self {
        Self(Arc::new(Store {
            limit,
            state: Mutex::default(),
        }))
    }

    /// A connection for a CONNECT that has come, if one is ready and alive as far as can be seen. Others are dialled in its
    /// place.
    pub(super) fn take(&self, shared: &Arc<Shared>) -> Option<Conn> {
        if self.0.limit == 0 {
            return None;
        }
        let now = Instant::now();
        let mut state = self.0.lock();
        if state.asked.len() == self.0.limit {
            state.asked.pop_front();
        }
        state.asked.push_back(now);
        let mut taken = None;
        while let Some(mut ready) = state.ready.pop() {
            if ready.is_alive(shared, now) {
                taken = Some(ready.conn);
                break;
            }
        }
        state.tell(shared);
        self.0.call_diallers(&mut state, shared, now);
        taken
    }

    /// Takes note of how long the gateway took to answer an upgrade: one round trip.
    pub(super) fn note_distance(&self, shared: &Arc<Shared>, took: Duration) {
        let mut state = self.0.lock();
        state.distance = Some(state.distance.map_or(took, |before| before.min(took)));
        self.0.call_diallers(&mut state, shared, Instant::now());
    }
}

impl Drop for WarmPool {
    fn drop(&mut self) {
        let (ready, threads) = {
            let mut state = self.0.lock();
            state.closed = true;
            (mem::take(&mut state.ready), mem::take(&mut state.threads))
        };
        hang_up(ready);
        for thread in threads {
            // A dialler that panicked has nothing that anybody waits for.
            let _ = thread.join();
        }
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts as many threads as there is something to dial for, a few at most.
    fn call_diallers(self: &Arc<Self>, state: &mut State, shared: &Arc<Shared>, now: Instant) {
        state.threads.retain(|thread| !thread.is_finished());
        let missing = state.missing(now);
        for _ in 0..missing.min(DIALLERS.saturating_sub(state.dialling)) {
            let (store, shared) = (Arc::clone(self), Arc::clone(shared));
            let spawned = thread::Builder::new()
                .name("uproxy-standby".into())
                .spawn(move || store.dial(&shared));
            // Without a thread there is no standby, and the tunnels are dialled when they are asked for.
            let Ok(thread) = spawned else { return };
            state.dialling += 1;
            state.threads.push(thread);
        }
    }

    /// A dialler's life: dial while there is something to dial for; one then stays to watch their age.
    fn dial(&self, shared: &Shared) {
        loop {
            let dialled = dial::stand_by(shared);
            let now = Instant::now();
            let mut state = self.lock();
            state.dialling -= 1;
            match dialled {
                Ok(conn) if !state.closed => state.ready.push(Ready { conn, since: now }),
                Ok(_) => {}
                Err(fault) => {
                    log::debug!("relay: nothing could be dialled ahead: {fault}");
                    state.not_before = Some(now + PAUSE);
                }
            }
            state.tell(shared);
            if state.missing(now) == 0 {
                break;
            }
            state.dialling += 1;
        }
        self.keep(shared);
    }

    /// Hangs up on those that get too old, or that nobody seems to want, until none is left.
    fn keep(&self, shared: &Shared) {
        if mem::replace(&mut self.lock().kept, true) {
            return;
        }
        loop {
            let now = Instant::now();
            let (leaving, next) = {
                let mut state = self.lock();
                let leaving = state.superfluous(now);
                state.tell(shared);
                let next = state.next_check();
                state.kept = next.is_some() && shared.stop.requested().is_none();
                if !state.kept {
                    break hang_up(leaving);
                }
                (leaving, next)
            };
            hang_up(leaving);
            let mut fds = [PollFd::from_borrowed_fd(shared.stop.as_fd(), PollFlags::IN)];
            if wait(&mut fds, next).is_err() {
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

impl State {
    fn tell(&self, shared: &Shared) {
        let standing_by = &shared.counters.standing_by;
        standing_by.store(self.ready.len() as u64, Ordering::Relaxed);
    }

    /// How many are wanted now: as many as CONNECTs came a short while ago, if the gateway is far enough for it.
    fn demand(&mut self, now: Instant) -> usize {
        while self.asked.front().is_some_and(|at| *at + DEMAND <= now) {
            self.asked.pop_front();
        }
        if self.distance.is_none_or(|distance| distance < NEAR) {
            return 0;
        }
        self.asked.len()
    }

    /// How many are to be dialled now.
    fn missing(&mut self, now: Instant) -> usize {
        if self.closed || self.not_before.is_some_and(|at| now < at) {
            return 0;
        }
        let have = self.ready.len() + self.dialling;
        self.demand(now).saturating_sub(have)
    }

    /// Takes out those that are too old, and the oldest of those that nobody seems to want.
    fn superfluous(&mut self, now: Instant) -> Vec<Ready> {
        let demand = self.demand(now);
        let too_many = self.ready.len().saturating_sub(demand);
        let too_old = self.ready.partition_point(|ready| ready.since + AGE <= now);
        self.ready.drain(..too_many.max(too_old)).collect()
    }

    /// When the next of them may be too old or too many.
    fn next_check(&self) -> Option<Instant> {
        let oldest = self.ready.first()?.since + AGE;
        let forgotten = self.asked.front().map(|at| *at + DEMAND);
        Some(forgotten.map_or(oldest, |at| at.min(oldest)))
    }
}

impl Ready {
    /// Whether it is young enough, and its peer has neither hung up nor said anything but pings.
    fn is_alive(&mut self, shared: &Shared, now: Instant) -> bool {
        let conn = &mut self.conn;
        let mut said = Buffer::new(&shared.pool);
        conn.readable = true;
        while conn.readable {
            if conn.fill(&mut said).and_then(|()| conn.flush()).is_err() {
                return false;
            }
        }
        let closed = conn.websocket().and_then(WsCodec::peer_close);
        self.since + AGE > now && said.is_empty() && !conn.eof() && closed.is_none()
    }
}

/// Says goodbye as far as it goes without waiting.
fn hang_up(ready: Vec<Ready>) {
    for Ready { mut conn, .. } in ready {
        conn.try_close(CloseCode::Away);
    }
}
