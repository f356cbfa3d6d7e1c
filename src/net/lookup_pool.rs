//! Name lookups on a limited number of threads named `uproxy-dns`.
//!
//! `getaddrinfo` cannot be cancelled. So it runs on its own thread, and the caller stops waiting at
//! its deadline; the thread serves the next name when the lookup returns. Threads start on demand
//! and end after a short idle time. Dropping the pool joins every thread that is not inside a
//! lookup.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::control::deadline::Deadline;

/// How often a caller that waits checks whether the addresses are still wanted.
const WANTED_INTERVAL: Duration = Duration::from_millis(50);

/// The function that looks a name up. Tests replace it.
pub(super) type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// The threads and their queue.
pub(super) struct LookupPool {
    lookup: Arc<Lookup>,
    idle_time: Duration,
    /// The most threads.
    limit: usize,
    /// `None` only while the pool is dropped, which ends idle threads.
    requests: Option<Sender<Request>>,
    queue: Receiver<Request>,
    state: Arc<Mutex<PoolState>>,
}

/// What the pool and its threads share.
#[derive(Default)]
struct PoolState {
    /// Idle threads minus queued names. A request is counted before it is sent. So no thread ends,
    /// and none is left unstarted, while a name is on its way to it.
    idle: isize,
    /// Threads that have not decided to end.
    running: usize,
    /// The pool was dropped: no lookup may begin.
    closed: bool,
    threads: Vec<LookupThread>,
}

/// The pool's side of one thread.
struct LookupThread {
    handle: JoinHandle<()>,
    /// The thread is inside a lookup, which cannot be interrupted. Set under the lock of the state.
    in_lookup: Arc<AtomicBool>,
}

/// One name to look up.
struct Request {
    name: String,
    port: u16,
    deadline: Deadline,
    result: Sender<io::Result<Vec<SocketAddr>>>,
}

impl LookupPool {
    /// A pool without threads.
    pub(super) fn new(lookup: Arc<Lookup>, idle_time: Duration, limit: usize) -> Self {
        let (requests, queue) = unbounded();
        Self {
            lookup,
            idle_time,
            limit,
            requests: Some(requests),
            queue,
            state: Arc::default(),
        }
    }

    /// The addresses of `name`, each with `port`.
    ///
    /// # Errors
    /// `TimedOut` at `deadline`, `Interrupted` soon after `wanted` has become false, `NotFound` if
    /// the name has no address.
    pub(super) fn look_up(
        &self,
        name: &str,
        port: u16,
        deadline: Deadline,
        wanted: &dyn Fn() -> bool,
    ) -> io::Result<Vec<SocketAddr>> {
        let timed_out = || {
            let what = format!("looking up {name} took too long");
            io::Error::new(io::ErrorKind::TimedOut, what)
        };
        if deadline.passed() {
            return Err(timed_out());
        }
        self.reserve_thread()?;
        let (result, results) = bounded(1);
        let request = Request {
            name: name.to_owned(),
            port,
            deadline,
            result,
        };
        let closed = || io::Error::other("the resolver's threads have ended");
        let requests = self.requests.as_ref().ok_or_else(closed)?;
        requests.send(request).map_err(|_| closed())?;
        let result = loop {
            let left = deadline.remaining().unwrap_or(WANTED_INTERVAL);
            match results.recv_timeout(left.min(WANTED_INTERVAL)) {
                Ok(result) => break result,
                Err(RecvTimeoutError::Timeout) if !wanted() => {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                Err(RecvTimeoutError::Timeout) if !deadline.passed() => {}
                // A thread that receives a late request drops it without a result.
                Err(_) => return Err(timed_out()),
            }
        };
        match result {
            Ok(addresses) if addresses.is_empty() => Err(not_found(name, "no address")),
            Ok(addresses) => Ok(addresses),
            // std gives errors of getaddrinfo no kind. Errors of the operating system have a
            // number.
            Err(error) if error.raw_os_error().is_none() => Err(not_found(name, &error)),
            Err(error) => Err(error),
        }
    }

    /// Reserves an idle thread, or starts one, or else leaves the name to the next thread that is
    /// free.
    fn reserve_thread(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.idle > 0 || state.running >= self.limit {
            state.idle -= 1;
            return Ok(());
        }
        state.threads.retain(|thread| !thread.handle.is_finished());
        match self.start_thread() {
            Ok(thread) => {
                state.threads.push(thread);
                state.running += 1;
                Ok(())
            }
            Err(_) if state.running > 0 => {
                state.idle -= 1;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn start_thread(&self) -> io::Result<LookupThread> {
        let in_lookup = Arc::new(AtomicBool::new(false));
        let looker = Looker {
            queue: self.queue.clone(),
            state: Arc::clone(&self.state),
            lookup: Arc::clone(&self.lookup),
            in_lookup: Arc::clone(&in_lookup),
            idle_time: self.idle_time,
        };
        let handle = thread::Builder::new()
            .name("uproxy-dns".into())
            .spawn(move || looker.run())?;
        Ok(LookupThread { handle, in_lookup })
    }

    #[cfg(test)]
    pub(super) fn running_threads(&self) -> usize {
        lock(&self.state).running
    }
}

impl Drop for LookupPool {
    fn drop(&mut self) {
        self.requests = None;
        // A lookup begins under this lock, and none begins after `closed` is set: a thread that is
        // not in a lookup now will not enter one.
        let joinable: Vec<_> = {
            let mut state = lock(&self.state);
            state.closed = true;
            let threads = std::mem::take(&mut state.threads).into_iter();
            threads
                .filter(|thread| !thread.in_lookup.load(Ordering::Acquire))
                .collect()
        };
        for thread in joinable {
            if thread.handle.join().is_err() {
                log::error!("a resolver thread has panicked");
            }
        }
    }
}

/// The thread's side.
struct Looker {
    queue: Receiver<Request>,
    state: Arc<Mutex<PoolState>>,
    lookup: Arc<Lookup>,
    in_lookup: Arc<AtomicBool>,
    idle_time: Duration,
}

impl Looker {
    fn run(&self) {
        loop {
            match self.queue.recv_timeout(self.idle_time) {
                Ok(request) => self.serve(&request),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let mut state = lock(&self.state);
                    if state.idle > 0 {
                        state.idle -= 1;
                        state.running -= 1;
                        return;
                    }
                }
            }
        }
    }

    fn serve(&self, request: &Request) {
        // After its deadline no caller waits for the result. After the pool was dropped, there is
        // no caller.
        let wanted = {
            let state = lock(&self.state);
            let wanted = !state.closed && !request.deadline.passed();
            self.in_lookup.store(wanted, Ordering::Release);
            wanted
        };
        let found = wanted.then(|| (self.lookup)(&request.name, request.port));
        self.in_lookup.store(false, Ordering::Release);
        // Idle before the result is sent, so that the caller's next name finds this thread.
        lock(&self.state).idle += 1;
        if let Some(found) = found {
            // Fails only if the caller has stopped waiting.
            let _ = request.result.send(found);
        }
    }
}

fn not_found(name: &str, why: impl fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{name} cannot be looked up: {why}"),
    )
}

/// No code panics while it holds these locks, so a poisoned state is still consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    const LONG: Duration = Duration::from_secs(60);
    const LIMIT: usize = 4;

    /// A pool whose lookup reports that it has begun, and returns when the test releases it.
    struct Controlled {
        pool: Arc<LookupPool>,
        begun: Receiver<String>,
        release: Sender<()>,
        threads: Arc<Mutex<HashSet<thread::ThreadId>>>,
    }

    fn controlled(idle_time: Duration) -> Controlled {
        let (report, begun) = unbounded();
        let (release, released) = unbounded();
        let threads = Arc::new(Mutex::new(HashSet::new()));
        let seen = Arc::clone(&threads);
        let lookup = move |name: &str, port| {
            assert_eq!(thread::current().name(), Some("uproxy-dns"));
            lock(&seen).insert(thread::current().id());
            report.send(name.to_owned()).ok();
            released.recv().ok();
            Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)])
        };
        Controlled {
            pool: Arc::new(LookupPool::new(Arc::new(lookup), idle_time, LIMIT)),
            begun,
            release,
            threads,
        }
    }

    impl Controlled {
        fn look_up(&self, name: &str, at_most: Duration) -> io::Result<Vec<SocketAddr>> {
            self.pool
                .look_up(name, 1, Deadline::after(at_most), &|| true)
        }

        fn start(&self, name: &'static str) -> JoinHandle<io::Result<Vec<SocketAddr>>> {
            let pool = Arc::clone(&self.pool);
            thread::spawn(move || pool.look_up(name, 1, Deadline::after(LONG), &|| true))
        }
    }

    #[test]
    fn a_deadline_ends_the_waiting_and_the_thread_serves_the_next_name() {
        let controlled = controlled(LONG);
        let late = controlled.look_up("a", Duration::from_millis(20));
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        controlled.release.send(()).unwrap();
        controlled.release.send(()).unwrap();
        // Either the abandoned thread or a second one serves it, depending on timing.
        assert!(controlled.start("b").join().unwrap().is_ok());
        assert!(lock(&controlled.threads).len() <= 2);
    }

    #[test]
    fn names_looked_up_one_after_the_other_share_one_thread() {
        let controlled = controlled(LONG);
        for _ in 0..50 {
            controlled.release.send(()).unwrap();
            assert!(controlled.look_up("a", LONG).is_ok());
        }
        assert_eq!(lock(&controlled.threads).len(), 1);
    }

    #[test]
    fn the_limit_on_threads_holds_and_every_name_is_served() {
        let controlled = controlled(LONG);
        let lookups: Vec<_> = (0..12).map(|_| controlled.start("a")).collect();
        for _ in 0..LIMIT {
            controlled.begun.recv().unwrap();
        }
        assert!(controlled.begun.is_empty());
        for _ in 0..12 {
            controlled.release.send(()).unwrap();
        }
        assert!(lookups.into_iter().all(|l| l.join().unwrap().is_ok()));
        assert_eq!(lock(&controlled.threads).len(), LIMIT);
    }

    #[test]
    fn an_idle_thread_ends_and_the_next_name_starts_another() {
        let controlled = controlled(Duration::from_millis(1));
        for _ in 0..3 {
            controlled.release.send(()).unwrap();
            assert!(controlled.look_up("a", LONG).is_ok());
            while controlled.pool.running_threads() > 0 {
                thread::yield_now();
            }
        }
        assert_eq!(lock(&controlled.threads).len(), 3);
    }

    #[test]
    fn dropping_the_pool_joins_idle_threads_and_leaves_those_inside_a_lookup() {
        let controlled = controlled(LONG);
        let lookups: Vec<_> = (0..3).map(|_| controlled.start("a")).collect();
        for _ in &lookups {
            controlled.begun.recv().unwrap();
        }
        for _ in &lookups {
            controlled.release.send(()).unwrap();
        }
        for lookup in lookups {
            assert!(lookup.join().unwrap().is_ok());
        }
        while controlled.begun.is_empty() {
            let stuck = controlled.look_up("b", Duration::from_millis(5));
            assert_eq!(stuck.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }

        // The state has a reference from the pool, from this test, and from every running thread.
        let state = Arc::clone(&controlled.pool.state);
        assert_eq!(Arc::strong_count(&state), 2 + lock(&state).running);
        let in_lookup = |thread: &&LookupThread| thread.in_lookup.load(Ordering::Acquire);
        let stuck = lock(&state).threads.iter().filter(in_lookup).count();
        assert!((1..=LIMIT).contains(&stuck), "{stuck}");
        drop(controlled.pool);
        assert_eq!(Arc::strong_count(&state), 1 + stuck);
        drop(controlled.release);
        while Arc::strong_count(&state) > 1 {
            thread::yield_now();
        }
    }
}
