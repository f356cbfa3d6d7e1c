//! Name lookups on a limited number of threads named `uproxy-dns`.
//!
//! getaddrinfo(3) cannot be cancelled. So it runs on its own thread, and the callers stop waiting
//! when they want; the thread serves the next name when the lookup returns. Threads start on demand
//! and end after a short idle time. Dropping the pool joins every thread that is not inside a
//! lookup.
//!
//! Each lookup has an owner: at a gateway the session of the tunnel. One owner has a share of the
//! threads, and a free thread serves the owner with the fewest lookups. So the names of one session
//! that no server answers do not delay the names of the others.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::name::{Family, Found, Name};
use crate::control::log;

/// After this many requests in one owner's queue, those that no caller waits for are removed.
const PURGE_INTERVAL: usize = 256;

/// The stack of a thread. Modules of the name service switch need more than the threads of tunnels.
const STACK_SIZE: usize = 1 << 20;

/// The function that looks a name up. Tests replace it.
pub(super) type Lookup = dyn Fn(&str, Family) -> Found + Send + Sync;

/// How many threads there are, and the share of one owner.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolLimits {
    /// The most threads.
    pub(super) threads: usize,
    /// The most threads that are inside lookups for one owner.
    pub(super) share: usize,
    /// How long a thread waits for the next name before it ends.
    pub(super) idle_time: Duration,
}

/// The threads and their queues.
pub(super) struct LookupPool(Arc<Shared>);

/// What the pool and its threads share.
struct Shared {
    lookup: Arc<Lookup>,
    limits: PoolLimits,
    state: Mutex<PoolState>,
    /// Wakes one idle thread per request, and all of them when the pool is dropped.
    work: Condvar,
}

#[derive(Default)]
struct PoolState {
    /// Owners that have a lookup in the queue or inside a thread.
    owners: HashMap<u64, Owner>,
    /// The number of requests so far, which gives each its place in the order of arrival.
    arrivals: u64,
    /// Threads that have not decided to end.
    running: usize,
    /// Threads that wait for a request and have not been woken for one.
    idle: usize,
    /// Threads that were started or woken for a request and have not taken it yet.
    woken: usize,
    /// The pool was dropped: no lookup may begin.
    closed: bool,
    threads: Vec<LookupThread>,
}

#[derive(Default)]
struct Owner {
    /// Threads inside a lookup for this owner.
    running: usize,
    queue: VecDeque<Request>,
}

/// One name and family to look up.
struct Request {
    name: Arc<Name>,
    family: Family,
    arrival: u64,
}

/// The pool's side of one thread.
struct LookupThread {
    handle: JoinHandle<()>,
    /// The thread is inside a lookup, which cannot be interrupted. Set under the lock of the state.
    in_lookup: Arc<AtomicBool>,
}

impl LookupPool {
    /// A pool without threads.
    pub(super) fn new(lookup: Arc<Lookup>, limits: PoolLimits) -> Self {
        Self(Arc::new(Shared {
            lookup,
            limits,
            state: Mutex::default(),
            work: Condvar::new(),
        }))
    }

    /// Queues a lookup. Its answer goes to `name`; if no thread can be started, at once.
    pub(super) fn submit(&self, owner: u64, name: &Arc<Name>, family: Family) {
        let limits = self.0.limits;
        let mut state = self.0.lock();
        let arrival = state.arrivals;
        state.arrivals += 1;
        let of_owner = state.owners.entry(owner).or_default();
        of_owner.queue.push_back(Request {
            name: Arc::clone(name),
            family,
            arrival,
        });
        if of_owner.queue.len().is_multiple_of(PURGE_INTERVAL) {
            of_owner.purge();
        }
        // Over its share, an owner waits for one of its own lookups to end.
        if of_owner.running + of_owner.queue.len() > limits.share {
            return;
        }
        if state.idle > 0 {
            state.idle -= 1;
            state.woken += 1;
            drop(state);
            self.0.work.notify_one();
        } else if state.running < limits.threads {
            state.threads.retain(|thread| !thread.handle.is_finished());
            match self.start_thread() {
                Ok(thread) => {
                    state.threads.push(thread);
                    state.running += 1;
                    state.woken += 1;
                }
                // The next thread that is free takes it.
                Err(_) if state.running > 0 => {}
                Err(error) => {
                    state.take_back(owner, arrival);
                    drop(state);
                    name.finish(family, Err(error.into()));
                }
            }
        }
    }

    fn start_thread(&self) -> io::Result<LookupThread> {
        let in_lookup = Arc::new(AtomicBool::new(false));
        let (shared, flag) = (Arc::clone(&self.0), Arc::clone(&in_lookup));
        let handle = thread::Builder::new()
            .name("uproxy-dns".into())
            .stack_size(STACK_SIZE)
            .spawn(move || shared.run(&flag))?;
        Ok(LookupThread { handle, in_lookup })
    }

    #[cfg(test)]
    pub(super) fn running_threads(&self) -> usize {
        self.0.lock().running
    }
}

impl Drop for LookupPool {
    fn drop(&mut self) {
        // A lookup begins under this lock, and none begins after `closed` is set: a thread that is
        // not in a lookup now will not enter one.
        let joinable: Vec<_> = {
            let mut state = self.0.lock();
            state.closed = true;
            state.owners.clear();
            let threads = std::mem::take(&mut state.threads).into_iter();
            threads
                .filter(|thread| !thread.in_lookup.load(Ordering::Acquire))
                .collect()
        };
        self.0.work.notify_all();
        for thread in joinable {
            if thread.handle.join().is_err() {
                log::error!("a resolver thread has panicked");
            }
        }
    }
}

impl Shared {
    /// A thread of the pool.
    fn run(&self, in_lookup: &AtomicBool) {
        let mut state = self.lock();
        let mut timed_out = false;
        while !state.closed {
            if let Some((owner, request)) = state.take(self.limits.share) {
                in_lookup.store(true, Ordering::Release);
                drop(state);
                let result = request
                    .name
                    .begin(request.family)
                    .then(|| (self.lookup)(request.name.query(), request.family));
                state = self.lock();
                in_lookup.store(false, Ordering::Release);
                state.finish(owner);
                // Idle before the answer is delivered, so that the caller's next name finds this
                // thread.
                state.idle += 1;
                drop(state);
                if let Some(result) = result {
                    request.name.finish(request.family, result);
                }
                timed_out = false;
                state = self.lock();
                continue;
            }
            // Nothing is left of what the threads were woken for.
            state.idle += std::mem::take(&mut state.woken);
            if timed_out {
                state.idle -= 1;
                state.running -= 1;
                return;
            }
            let waited = self.work.wait_timeout(state, self.limits.idle_time);
            let (next, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            timed_out = timeout.timed_out();
            state = next;
        }
    }

    /// No code panics while it holds the lock, so a poisoned state is still consistent.
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolState {
    /// Takes the next request: of the owner with the fewest lookups, and of several the one that
    /// arrived first. The calling thread is no longer idle.
    fn take(&mut self, share: usize) -> Option<(u64, Request)> {
        let waiting = self.owners.iter_mut().filter_map(|(&id, owner)| {
            let arrival = owner.queue.front()?.arrival;
            (owner.running < share).then_some((owner.running, arrival, id))
        });
        let (_, _, id) = waiting.min()?;
        let owner = self.owners.get_mut(&id)?;
        let request = owner.queue.pop_front()?;
        owner.running += 1;
        if self.woken > 0 {
            self.woken -= 1;
        } else {
            self.idle -= 1;
        }
        Some((id, request))
    }

    /// A thread has returned from a lookup for `id`.
    fn finish(&mut self, id: u64) {
        if let Some(owner) = self.owners.get_mut(&id) {
            owner.running -= 1;
            if owner.running == 0 && owner.queue.is_empty() {
                self.owners.remove(&id);
            }
        }
    }

    /// Removes the request that was queued last for `id`.
    fn take_back(&mut self, id: u64, arrival: u64) {
        if let Some(owner) = self.owners.get_mut(&id) {
            owner.queue.retain(|request| request.arrival != arrival);
            if owner.running == 0 && owner.queue.is_empty() {
                self.owners.remove(&id);
            }
        }
    }
}

impl Owner {
    /// Removes the requests whose callers have left. There is a limit on callers (tunnels), but
    /// none on how often they come and leave while the owner's share is used up.
    fn purge(&mut self) {
        self.queue
            .retain(|request| request.name.keep_queued(request.family));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::name::{Step, Waiter};
    use crossbeam_channel::{Receiver, Sender, unbounded};
    use std::collections::HashSet;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(60);
    const THREADS: usize = 8;
    const SHARE: usize = 2;

    /// A pool whose lookup reports that it has begun, and returns when the test releases it.
    struct Controlled {
        pool: LookupPool,
        begun: Receiver<String>,
        release: Sender<()>,
        threads: Arc<Mutex<HashSet<thread::ThreadId>>>,
    }

    fn controlled(idle_time: Duration, share: usize) -> Controlled {
        let (report, begun) = unbounded();
        let (release, released) = unbounded();
        let threads = Arc::new(Mutex::new(HashSet::new()));
        let seen = Arc::clone(&threads);
        let lookup = move |name: &str, _| {
            assert_eq!(thread::current().name(), Some("uproxy-dns"));
            seen.lock().unwrap().insert(thread::current().id());
            report.send(name.to_owned()).ok();
            released.recv().ok();
            Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)])
        };
        let limits = PoolLimits {
            threads: THREADS,
            share,
            idle_time,
        };
        Controlled {
            pool: LookupPool::new(Arc::new(lookup), limits),
            begun,
            release,
            threads,
        }
    }

    impl Controlled {
        /// Queues both families of `name` for `owner`.
        fn start(&self, owner: u64, name: &str) -> Waiter {
            let waiter = Waiter::new(Name::new(name.to_owned()));
            for family in waiter.name().queue(owner, Instant::now()) {
                self.pool.submit(owner, waiter.name(), family);
            }
            waiter
        }

        fn release(&self, lookups: usize) {
            for _ in 0..lookups {
                self.release.send(()).unwrap();
            }
        }

        /// Waits until `lookups` have begun, and returns their names.
        fn begun(&self, lookups: usize) -> Vec<String> {
            let begun = (0..lookups).map(|_| self.begun.recv_timeout(LONG).unwrap());
            begun.collect()
        }

        fn threads(&self) -> usize {
            self.threads.lock().unwrap().len()
        }
    }

    fn finished(waiter: &Waiter) {
        while !waiter.name().known().complete {
            let step = waiter.name().wait("a", Instant::now() + LONG);
            assert!(matches!(step, Step::Use(_)));
            thread::yield_now();
        }
    }

    #[test]
    fn names_looked_up_one_after_the_other_share_the_threads_of_the_first() {
        let controlled = controlled(LONG, THREADS);
        for _ in 0..50 {
            controlled.release(2);
            finished(&controlled.start(1, "a"));
        }
        assert!(controlled.threads() <= 2, "{}", controlled.threads());
    }

    #[test]
    fn the_limit_on_threads_holds_and_every_name_is_served() {
        let controlled = controlled(LONG, THREADS);
        let waiters: Vec<_> = (0..12).map(|owner| controlled.start(owner, "a")).collect();
        controlled.begun(THREADS);
        assert!(controlled.begun.is_empty());
        controlled.release(24);
        waiters.iter().for_each(finished);
        assert_eq!(controlled.threads(), THREADS);
    }

    #[test]
    fn one_owner_has_its_share_of_the_threads_and_the_names_of_others_go_first() {
        let controlled = controlled(LONG, SHARE);
        let dead: Vec<_> = (0..40).map(|_| controlled.start(1, "dead")).collect();
        assert_eq!(controlled.begun(SHARE), ["dead"; SHARE]);
        assert!(controlled.begun.is_empty());
        // Another owner finds a thread at once.
        let live = controlled.start(2, "live");
        assert_eq!(controlled.begun(2), ["live"; 2]);
        assert_eq!(controlled.pool.running_threads(), SHARE + 2);
        controlled.release(82);
        finished(&live);
        dead.iter().for_each(finished);
    }

    #[test]
    fn the_owner_with_the_fewest_lookups_is_served_first() {
        let controlled = controlled(LONG, 6);
        let mut waiters: Vec<_> = (0..4).map(|_| controlled.start(1, "many")).collect();
        waiters.push(controlled.start(2, "few"));
        // Six threads for the first owner, two for the second: all are taken.
        controlled.begun(THREADS);
        waiters.push(controlled.start(3, "none"));
        controlled.release(1);
        assert_eq!(controlled.begun(1), ["none"]);
        controlled.release(11);
        waiters.iter().for_each(finished);
    }

    #[test]
    fn a_name_that_no_caller_waits_for_is_not_looked_up() {
        let controlled = controlled(LONG, SHARE);
        let running = controlled.start(1, "running");
        controlled.begun(SHARE);
        for _ in 0..PURGE_INTERVAL {
            drop(controlled.start(1, "left"));
        }
        let queued = controlled.pool.0.lock().owners[&1].queue.len();
        assert!(queued < PURGE_INTERVAL, "{queued}");
        let wanted = controlled.start(1, "wanted");
        controlled.release(4);
        finished(&running);
        finished(&wanted);
        assert_eq!(controlled.begun(2), ["wanted"; 2]);
    }

    #[test]
    fn an_idle_thread_ends_and_the_next_name_starts_another() {
        let controlled = controlled(Duration::from_millis(1), THREADS);
        for _ in 0..3 {
            controlled.release(2);
            finished(&controlled.start(1, "a"));
            while controlled.pool.running_threads() > 0 {
                thread::yield_now();
            }
        }
        assert!(controlled.threads() >= 3);
    }

    #[test]
    fn dropping_the_pool_joins_idle_threads_and_leaves_those_inside_a_lookup() {
        let controlled = controlled(LONG, THREADS);
        let idle: Vec<_> = (0..2).map(|_| controlled.start(1, "a")).collect();
        controlled.begun(4);
        controlled.release(4);
        idle.iter().for_each(finished);
        let _stuck = controlled.start(1, "b");
        controlled.begun(2);

        // The state has a reference from the pool, from this test, and from every running thread.
        let shared = Arc::clone(&controlled.pool.0);
        assert_eq!(Arc::strong_count(&shared), 2 + shared.lock().running);
        drop(controlled.pool);
        assert_eq!(Arc::strong_count(&shared), 1 + 2);
        drop(controlled.release);
        while Arc::strong_count(&shared) > 1 {
            thread::yield_now();
        }
    }
}
