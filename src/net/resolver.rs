//! Names to addresses under a deadline.
//!
//! `getaddrinfo` cannot be cancelled, so look-ups run on a bounded number of threads named `uproxy-dns`, and who asked
//! stops waiting at its deadline; the thread goes back to work when the look-up returns. The threads start on demand, end
//! after a short idle time, and end with the last [`Resolver`]: its drop joins all but those that sit in a look-up.
//! No cache: the system has one where it wants one. Which addresses may be dialled is the gateway's `policy`, not ours.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::control::deadline::Deadline;
use crate::http::authority::{AuthorityError, Host, parse_port};

/// How many look-ups run at once, of one session's relay, which looks up its gateway's name over and over, and of a gateway,
/// where one session's dead names must not hold up the names of all the others. Few enough that look-ups which nobody waits
/// for any more never matter among the host's threads.
const FEW: usize = 4;
const MANY: usize = 32;
/// How often one who waits for a name looks whether it is still wanted.
const WANTED_INTERVAL: Duration = Duration::from_millis(50);
/// How long a thread waits for the next name before it ends.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// Looks names up; clones share the threads and the overrides.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<Pool>);

impl Resolver {
    /// A resolver that asks the system. No thread is started before the first name.
    pub(crate) fn new() -> Self {
        Self::with_lookup(Vec::new(), Arc::new(ask_system), IDLE_TIME, FEW)
    }

    /// A gateway's resolver. It knows these names by itself; of two for the same host and port the later one counts.
    pub(crate) fn with_overrides(overrides: Vec<Override>) -> Self {
        Self::with_lookup(overrides, Arc::new(ask_system), IDLE_TIME, MANY)
    }

    fn with_lookup(
        overrides: Vec<Override>,
        lookup: Arc<Lookup>,
        idle_time: Duration,
        limit: usize,
    ) -> Self {
        let (jobs, queue) = unbounded();
        Self(Arc::new(Pool {
            overrides,
            lookup,
            idle_time,
            limit,
            jobs: Some(jobs),
            queue,
            crew: Arc::default(),
        }))
    }

    /// The addresses of `host`, each with `port`, in the order in which they are to be tried.
    ///
    /// An override comes first, whatever the host; a literal and `localhost` need no look-up.
    ///
    /// # Errors
    /// `TimedOut` when `deadline` passes first, `NotFound` when the name has no address.
    pub(crate) fn resolve(
        &self,
        host: &Host,
        port: u16,
        deadline: Deadline,
    ) -> io::Result<Vec<SocketAddr>> {
        self.resolve_while(host, port, deadline, &|| true)
    }

    /// As [`Self::resolve`], given up soon after `wanted` has become false.
    ///
    /// # Errors
    /// Also `Interrupted`, when the addresses are wanted no more.
    pub(crate) fn resolve_while(
        &self,
        host: &Host,
        port: u16,
        deadline: Deadline,
        wanted: &dyn Fn() -> bool,
    ) -> io::Result<Vec<SocketAddr>> {
        let mut overrides = self.0.overrides.iter().rev();
        if let Some(found) = overrides.find(|o| o.host == *host && o.port == port) {
            return Ok(vec![SocketAddr::new(found.address, port)]);
        }
        match host {
            Host::Address(address) => Ok(vec![SocketAddr::new(*address, port)]),
            // "Name resolution APIs and libraries [...] SHOULD always return the IP loopback address" (RFC 6761,
            // section 6.3): no hosts file can then send what is meant for loopback, perhaps in clear, elsewhere.
            // https://www.rfc-editor.org/rfc/rfc6761#section-6.3
            Host::Name(name) if name == "localhost" => Ok(vec![
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
                SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
            ]),
            Host::Name(name) => self.0.ask(name, port, deadline, wanted),
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("overrides", &self.0.overrides)
            .finish_non_exhaustive()
    }
}

/// `--resolve HOST:PORT:ADDR`: this name, on this port, is at this address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The host as a client names it.
    pub host: Host,
    /// The port for which the override holds.
    pub port: u16,
    /// The address to use.
    pub address: IpAddr,
}

impl FromStr for Override {
    type Err = OverrideError;

    /// Reads `HOST:PORT:ADDR` as curl does; an IPv6 HOST is in brackets, an IPv6 ADDR may be.
    fn from_str(text: &str) -> Result<Self, OverrideError> {
        // Inside brackets a colon belongs to the address.
        let host_end = if text.starts_with('[') {
            text.find(']').map(|at| at + 1)
        } else {
            text.find(':')
        };
        let (host, rest) = text.split_at(host_end.ok_or(OverrideError::Form)?);
        let (port, address) = rest
            .strip_prefix(':')
            .and_then(|rest| rest.split_once(':'))
            .ok_or(OverrideError::Form)?;
        let bare = address
            .strip_prefix('[')
            .and_then(|inner| inner.strip_suffix(']'));
        Ok(Self {
            host: Host::parse(host).map_err(OverrideError::Host)?,
            port: parse_port(port).ok_or(OverrideError::Host(AuthorityError::Port))?,
            address: match bare {
                Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::V6),
                None => address.parse(),
            }
            .map_err(|_| OverrideError::Address)?,
        })
    }
}

/// Why some text is no [`Override`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideError {
    /// It does not have three parts.
    Form,
    /// The first two are no host and port.
    Host(AuthorityError),
    /// The last is no IP address.
    Address,
}

impl fmt::Display for OverrideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => f.write_str("it is not of the form HOST:PORT:ADDR"),
            Self::Host(error) => error.fmt(f),
            Self::Address => f.write_str("what follows HOST:PORT: is not one IP address"),
        }
    }
}

impl std::error::Error for OverrideError {}

/// What a thread does with a name; tests put their own in its place.
type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// What all clones of a resolver share.
struct Pool {
    overrides: Vec<Override>,
    lookup: Arc<Lookup>,
    idle_time: Duration,
    /// How many threads there may be.
    limit: usize,
    /// `None` only while the pool is dropped, which is what tells the idle threads to end.
    jobs: Option<Sender<Job>>,
    queue: Receiver<Job>,
    crew: Arc<Mutex<Crew>>,
}

/// The threads, as the pool and they themselves see them.
#[derive(Default)]
struct Crew {
    /// Threads that wait for a name, less names that wait for a thread. A claim is counted before the name is sent, so
    /// that a thread never ends, and none is left unstarted, while a name is on its way to it.
    spare: isize,
    /// Threads that have not decided to end.
    running: usize,
    /// The pool is gone: no look-up may begin.
    closed: bool,
    threads: Vec<Member>,
}

/// One thread.
struct Member {
    handle: JoinHandle<()>,
    /// The thread is inside a look-up, from which nothing can call it back. Set under the crew's lock.
    in_lookup: Arc<AtomicBool>,
}

/// One name to look up.
struct Job {
    name: String,
    port: u16,
    deadline: Deadline,
    answer: Sender<io::Result<Vec<SocketAddr>>>,
}

impl Pool {
    fn ask(
        &self,
        name: &str,
        port: u16,
        deadline: Deadline,
        wanted: &dyn Fn() -> bool,
    ) -> io::Result<Vec<SocketAddr>> {
        let late = || {
            let what = format!("looking up {name} took too long");
            io::Error::new(io::ErrorKind::TimedOut, what)
        };
        if deadline.passed() {
            return Err(late());
        }
        self.claim_thread()?;
        let (answer, wait) = bounded(1);
        let job = Job {
            name: name.to_owned(),
            port,
            deadline,
            answer,
        };
        let gone = || io::Error::other("the resolver's threads are gone");
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;
        let answer = loop {
            let left = deadline.remaining().unwrap_or(WANTED_INTERVAL);
            match wait.recv_timeout(left.min(WANTED_INTERVAL)) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Timeout) if !wanted() => {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                Err(RecvTimeoutError::Timeout) if !deadline.passed() => {}
                // A thread that came too late drops the job unanswered.
                Err(_) => return Err(late()),
            }
        };
        match answer {
            Ok(addresses) if addresses.is_empty() => Err(not_found(name, "no address")),
            Ok(addresses) => Ok(addresses),
            // std gives the resolver library's own errors no kind; those of the operating system have a number.
            Err(error) if error.raw_os_error().is_none() => Err(not_found(name, &error)),
            Err(error) => Err(error),
        }
    }

    /// Claims a thread that waits, else starts one, else leaves the name to whoever is free first.
    fn claim_thread(&self) -> io::Result<()> {
        let mut crew = lock(&self.crew);
        if crew.spare > 0 || crew.running >= self.limit {
            crew.spare -= 1;
            return Ok(());
        }
        crew.threads.retain(|member| !member.handle.is_finished());
        match self.start_thread() {
            Ok(member) => {
                crew.threads.push(member);
                crew.running += 1;
                Ok(())
            }
            Err(_) if crew.running > 0 => {
                crew.spare -= 1;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn start_thread(&self) -> io::Result<Member> {
        let in_lookup = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            queue: self.queue.clone(),
            crew: Arc::clone(&self.crew),
            lookup: Arc::clone(&self.lookup),
            in_lookup: Arc::clone(&in_lookup),
            idle_time: self.idle_time,
        };
        let handle = thread::Builder::new()
            .name("uproxy-dns".into())
            .spawn(move || worker.run())?;
        Ok(Member { handle, in_lookup })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        // A look-up begins under this lock and none once the crew is closed: a thread found outside one stays outside.
        let joinable: Vec<_> = {
            let mut crew = lock(&self.crew);
            crew.closed = true;
            let threads = std::mem::take(&mut crew.threads).into_iter();
            threads
                .filter(|member| !member.in_lookup.load(Ordering::Acquire))
                .collect()
        };
        for member in joinable {
            if member.handle.join().is_err() {
                log::error!("a resolver thread has panicked");
            }
        }
    }
}

/// The thread's side of the pool.
struct Worker {
    queue: Receiver<Job>,
    crew: Arc<Mutex<Crew>>,
    lookup: Arc<Lookup>,
    in_lookup: Arc<AtomicBool>,
    idle_time: Duration,
}

impl Worker {
    fn run(&self) {
        loop {
            match self.queue.recv_timeout(self.idle_time) {
                Ok(job) => self.answer(&job),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let mut crew = lock(&self.crew);
                    if crew.spare > 0 {
                        crew.spare -= 1;
                        crew.running -= 1;
                        return;
                    }
                }
            }
        }
    }

    fn answer(&self, job: &Job) {
        // Nobody waits for a job whose deadline has passed; when the pool is gone, nobody waits for any.
        let wanted = {
            let crew = lock(&self.crew);
            let wanted = !crew.closed && !job.deadline.passed();
            self.in_lookup.store(wanted, Ordering::Release);
            wanted
        };
        let found = wanted.then(|| (self.lookup)(&job.name, job.port));
        self.in_lookup.store(false, Ordering::Release);
        // Free again before the answer is out: who asks for the next name finds this thread.
        lock(&self.crew).spare += 1;
        if let Some(found) = found {
            // Refused only when the one who asked has stopped waiting.
            let _ = job.answer.send(found);
        }
    }
}

fn ask_system(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (name, port).to_socket_addrs().map(Iterator::collect)
}

fn not_found(name: &str, why: impl fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{name} cannot be looked up: {why}"),
    )
}

/// Nothing panics while it holds one of these locks, and no state behind them can be half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const LONG: Duration = Duration::from_secs(60);

    fn name(text: &str) -> Host {
        Host::parse(text).expect(text)
    }

    /// A look-up that counts itself, says that it has begun, and returns when it is told to.
    struct Held {
        resolver: Resolver,
        begun: Receiver<String>,
        release: Sender<()>,
        threads: Arc<Mutex<HashSet<thread::ThreadId>>>,
    }

    fn held(idle_time: Duration) -> Held {
        let (tell, begun) = unbounded();
        let (release, go) = unbounded();
        let threads = Arc::new(Mutex::new(HashSet::new()));
        let seen = Arc::clone(&threads);
        let lookup = move |name: &str, port| {
            assert_eq!(thread::current().name(), Some("uproxy-dns"));
            lock(&seen).insert(thread::current().id());
            tell.send(name.to_owned()).ok();
            go.recv().ok();
            Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)])
        };
        Held {
            resolver: Resolver::with_lookup(Vec::new(), Arc::new(lookup), idle_time, FEW),
            begun,
            release,
            threads,
        }
    }

    fn ask(resolver: &Resolver, text: &str) -> JoinHandle<io::Result<Vec<SocketAddr>>> {
        let (resolver, host) = (resolver.clone(), name(text));
        thread::spawn(move || resolver.resolve(&host, 1, Deadline::after(LONG)))
    }

    #[test]
    fn literals_and_localhost_need_no_thread_and_no_time() {
        let resolver = Resolver::new();
        let passed = Deadline::after(Duration::ZERO);
        let resolve = |host: &str| resolver.resolve(&name(host), 7, passed).unwrap();
        assert_eq!(resolve("192.0.2.1"), ["192.0.2.1:7".parse().unwrap()]);
        assert_eq!(resolve("[::1]"), ["[::1]:7".parse().unwrap()]);
        assert!(resolve("localhost").iter().all(|a| a.ip().is_loopback()));
        assert_eq!(lock(&resolver.0.crew).running, 0);
    }

    #[test]
    fn asks_the_system_and_says_not_found_for_a_name_without_addresses() {
        // "localhost." is the system's: the final dot is gone after parsing, so the look-up itself is called here.
        assert!(
            ask_system("localhost", 7)
                .unwrap()
                .iter()
                .all(|a| a.ip().is_loopback())
        );
        let empty = Resolver::with_lookup(Vec::new(), Arc::new(|_, _| Ok(Vec::new())), LONG, FEW);
        let unknown = Resolver::with_lookup(
            Vec::new(),
            Arc::new(|_, _| Err(io::Error::other("unknown"))),
            LONG,
            FEW,
        );
        for resolver in [empty, unknown] {
            let error = resolver
                .resolve(&name("a.example"), 7, Deadline::never())
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            assert!(error.to_string().contains("a.example"), "{error}");
        }
    }

    #[test]
    fn overrides_hold_for_their_port_and_the_later_one_counts() {
        let overrides = ["a.example:443:192.0.2.1", "A.example.:443:[2001:db8::1]"];
        let overrides = overrides.iter().map(|o| o.parse().unwrap()).collect();
        let resolver = Resolver::with_lookup(
            overrides,
            Arc::new(|_, port| Ok(vec![([9; 4], port).into()])),
            LONG,
            FEW,
        );
        let resolve = |port| {
            resolver
                .resolve(&name("a.example"), port, Deadline::after(LONG))
                .unwrap()
        };
        assert_eq!(resolve(443), ["[2001:db8::1]:443".parse().unwrap()]);
        assert_eq!(resolve(80), ["9.9.9.9:80".parse().unwrap()]);
    }

    #[test]
    fn overrides_are_read_as_curl_reads_them() {
        for (text, address) in [
            ("a.example:1:127.0.0.1", "127.0.0.1"),
            ("a.example:1:::1", "::1"),
            ("a.example:1:[::1]", "::1"),
            ("[2001:db8::1]:1:10.0.0.1", "10.0.0.1"),
        ] {
            let parsed: Override = text.parse().expect(text);
            assert_eq!(parsed.address.to_string(), address);
            assert_eq!(parsed.port, 1);
        }
        for text in [
            "",
            "a",
            "a:1",
            "a:1:",
            "a:0:1.2.3.4",
            "a:x:1.2.3.4",
            ":1:1.2.3.4",
            "a:1:b.example",
            "a:1:[1.2.3.4]",
            "a:1:[::1",
            "[::1:1:1.2.3.4",
            "*:1:1.2.3.4",
            "a:1:1.2.3.4,1.2.3.5",
        ] {
            assert!(text.parse::<Override>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_deadline_ends_the_waiting_and_the_thread_goes_back_to_work() {
        let held = held(LONG);
        let late = held
            .resolver
            .resolve(&name("a"), 1, Deadline::after(Duration::from_millis(20)));
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        held.release.send(()).unwrap();
        held.release.send(()).unwrap();
        // Whether it is the abandoned thread or a second one depends on who is faster; an answer comes in any case.
        assert!(ask(&held.resolver, "b").join().unwrap().is_ok());
        assert!(lock(&held.threads).len() <= 2);
    }

    #[test]
    fn names_asked_one_after_the_other_share_one_thread() {
        let held = held(LONG);
        for _ in 0..50 {
            held.release.send(()).unwrap();
            let found = held.resolver.resolve(&name("a"), 1, Deadline::after(LONG));
            assert!(found.is_ok());
        }
        assert_eq!(lock(&held.threads).len(), 1);
    }

    #[test]
    fn no_more_threads_than_the_limit_and_every_name_gets_its_turn() {
        let held = held(LONG);
        let asked: Vec<_> = (0..12).map(|_| ask(&held.resolver, "a")).collect();
        for _ in 0..FEW {
            held.begun.recv().unwrap();
        }
        assert!(held.begun.is_empty());
        for _ in 0..12 {
            held.release.send(()).unwrap();
        }
        assert!(asked.into_iter().all(|a| a.join().unwrap().is_ok()));
        assert_eq!(lock(&held.threads).len(), FEW);
    }

    #[test]
    fn an_idle_thread_ends_by_itself_and_the_next_name_starts_another() {
        let held = held(Duration::from_millis(1));
        for _ in 0..3 {
            held.release.send(()).unwrap();
            let found = held.resolver.resolve(&name("a"), 1, Deadline::after(LONG));
            assert!(found.is_ok());
            while lock(&held.resolver.0.crew).running > 0 {
                thread::yield_now();
            }
        }
        assert_eq!(lock(&held.threads).len(), 3);
    }

    #[test]
    fn dropping_the_last_resolver_joins_the_idle_threads_and_leaves_the_stuck_ones() {
        let held = held(LONG);
        let asked: Vec<_> = (0..3).map(|_| ask(&held.resolver, "a")).collect();
        for _ in &asked {
            held.begun.recv().unwrap();
        }
        for _ in &asked {
            held.release.send(()).unwrap();
        }
        for asked in asked {
            assert!(asked.join().unwrap().is_ok());
        }
        while held.begun.is_empty() {
            let deadline = Deadline::after(Duration::from_millis(5));
            let stuck = held.resolver.resolve(&name("b"), 1, deadline);
            assert_eq!(stuck.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }

        // The crew is held by the pool, by this test, and by every thread that has not ended.
        let crew = Arc::clone(&held.resolver.0.crew);
        assert_eq!(Arc::strong_count(&crew), 2 + lock(&crew).running);
        let in_lookup = |member: &&Member| member.in_lookup.load(Ordering::Acquire);
        let stuck = lock(&crew).threads.iter().filter(in_lookup).count();
        assert!((1..=FEW).contains(&stuck), "{stuck}");
        drop(held.resolver);
        assert_eq!(Arc::strong_count(&crew), 1 + stuck);
        drop(held.release);
        while Arc::strong_count(&crew) > 1 {
            thread::yield_now();
        }
    }
}
