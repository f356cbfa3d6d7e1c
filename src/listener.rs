//! Accepting connections, for the relay and for the gateway: a slot first, then accept, then a named thread of its own.
//!
//! The acceptor never ends on an error: it backs off and goes on. The supervisor owns every worker: it takes their outcomes
//! and the request to stop from one channel, and joins them. What a connection means is its [`Service`]'s.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select, unbounded};
use rustix::event::{PollFd, PollFlags};
use socket2::{Domain, Protocol, Socket, Type};

use crate::deadline::Deadline;
use crate::metrics::{Counters, Stats};
use crate::shutdown::{How, Outcome, Stop};
use crate::wait::wait;

/// How many connections may wait in the kernel; std's own 128 is little for a package manager that opens dozens at once.
const BACKLOG: i32 = 1024;
/// A worker's stack. Only touched pages count; an RSA handshake with a long chain needs some.
const STACK: usize = 256 << 10;
/// How long the acceptor waits after an error that only time can mend: at first, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long a connection waits for the slot of one that is turned out: the acceptor waits with it, so not long.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);
/// How many refused connections are read to their end at once, for how long, and how much of each.
const LEAVING: usize = 64;
const LEAVING_FOR: Duration = Duration::from_secs(1);
const LEAVING_BYTES: usize = 64 << 10;
/// A complaint of one kind is logged once in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// What a listener is for.
pub(crate) trait Service: Send + Sync + 'static {
    /// Whose connections they are, for the log.
    const WHO: &'static str;

    /// What its threads are called: supervisor, acceptor, and the start of each worker's name; 15 bytes at most.
    const THREADS: [&'static str; 3];

    /// Serves one connection to its end.
    fn serve(&self, connection: TcpStream, peer: SocketAddr) -> Outcome;

    /// What a connection is told that finds no slot free.
    fn refusal(&self) -> Vec<u8>;

    /// Asked when no slot is free: turns out a connection that holds one and has shown no right to it.
    fn make_room(&self) -> Room {
        Room::None
    }
}

/// What a service can do about a missing slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Nothing: whoever holds a slot has a right to it.
    None,
    /// Nothing before this time.
    NotBefore(Instant),
    /// It has turned a connection out, whose slot will be free in a moment.
    Made,
}

/// What came of the connections that were open when a stop was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Those that ended by themselves, or were ended in order because they were silent.
    pub ended: u64,
    /// Those that were cut at the deadline.
    pub cut: u64,
    /// The counters at the very end.
    pub stats: Stats,
}

/// Binds `address`, ready to accept.
///
/// # Errors
/// What bind(2) and listen(2) say, such as a port that is taken.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the old connections' TIME_WAIT; two live listeners are still impossible.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A running listener. Dropping it asks for a stop with the default deadline and waits for it.
#[derive(Debug)]
pub(crate) struct Listening {
    address: SocketAddr,
    drain: Duration,
    requests: Sender<Duration>,
    supervisor: Option<JoinHandle<Report>>,
}

impl Listening {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, gives open connections `drain` to end, and returns when every thread is joined.
    pub(crate) fn shutdown(mut self, drain: Duration) -> Report {
        self.stop(drain)
    }

    fn stop(&mut self, drain: Duration) -> Report {
        let Some(supervisor) = self.supervisor.take() else {
            return Report::default();
        };
        // A supervisor that is gone has nothing left to stop.
        let _ = self.requests.send(drain);
        supervisor.join().unwrap_or_default()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop(self.drain);
    }
}

/// What the supervisor hears of.
enum Event {
    Started(u64, JoinHandle<()>),
    Ended(u64, Outcome),
}

/// Starts accepting from `socket`: at most `cap` connections at once, each served on a thread of its own.
///
/// # Errors
/// The socket has no address, or a thread could not be started.
pub(crate) fn start<S: Service>(
    socket: TcpListener,
    service: Arc<S>,
    cap: usize,
    drain: Duration,
    stop: &Arc<Stop>,
    counters: Arc<Counters>,
) -> io::Result<Listening> {
    let address = socket.local_addr()?;
    let (events, reports) = unbounded();
    let (requests, requested) = unbounded();
    let acceptor = Acceptor {
        socket,
        service,
        cap: cap as u64,
        stop: Arc::clone(stop),
        counters: Arc::clone(&counters),
        events,
        leaving: VecDeque::new(),
        complained: None,
    };
    let [supervisor_name, acceptor_name, _] = S::THREADS;
    let acceptor = thread::Builder::new()
        .name(acceptor_name.into())
        .stack_size(STACK)
        .spawn(move || acceptor.run())?;
    let supervisor = Supervisor {
        who: S::WHO,
        reports,
        requested,
        acceptor,
        stop: Arc::clone(stop),
        counters,
        drain,
    };
    let spawned = thread::Builder::new()
        .name(supervisor_name.into())
        .stack_size(STACK)
        .spawn(move || supervisor.run());
    if spawned.is_err() {
        stop.ask(Deadline::after(Duration::ZERO));
    }
    Ok(Listening {
        address,
        drain,
        requests,
        supervisor: Some(spawned?),
    })
}

struct Supervisor {
    who: &'static str,
    reports: Receiver<Event>,
    requested: Receiver<Duration>,
    acceptor: JoinHandle<()>,
    stop: Arc<Stop>,
    counters: Arc<Counters>,
    drain: Duration,
}

impl Supervisor {
    /// Joins every worker that has reported, until a stop was asked for and nobody is left.
    fn run(mut self) -> Report {
        // A worker may report before the acceptor has told of it: `None` stands for a report without a thread.
        let mut workers: HashMap<u64, Option<JoinHandle<()>>> = HashMap::new();
        let mut report = Report::default();
        loop {
            select! {
                recv(self.reports) -> event => match event {
                    Ok(Event::Started(id, thread)) => {
                        if workers.remove(&id).is_none() {
                            workers.insert(id, Some(thread));
                        } else {
                            join(thread);
                        }
                    }
                    Ok(Event::Ended(id, outcome)) => {
                        self.note(&outcome);
                        if self.stop.asked().is_some() {
                            count(&outcome, &mut report);
                        }
                        match workers.remove(&id) {
                            Some(Some(thread)) => join(thread),
                            _ => { workers.insert(id, None); }
                        }
                    }
                    // The acceptor and every worker are gone.
                    Err(_) => break,
                },
                recv(self.requested) -> drain => {
                    self.requested = never();
                    self.stop.ask(Deadline::after(drain.unwrap_or(self.drain)));
                }
            }
        }
        join(self.acceptor);
        report.stats = self.counters.stats();
        report
    }

    fn note(&self, outcome: &Outcome) {
        let counters = &self.counters;
        match &outcome.how {
            How::Refused { .. } => Counters::add(&counters.refused, 1),
            How::Broken { .. } | How::Cut | How::Panicked => Counters::add(&counters.broken, 1),
            _ => {}
        }
        outcome.log(self.who);
    }
}

fn count(outcome: &Outcome, report: &mut Report) {
    match outcome.how {
        How::Cut => report.cut += 1,
        How::Answered | How::Abandoned | How::Refused { .. } => {}
        _ => report.ended += 1,
    }
}

fn join(thread: JoinHandle<()>) {
    // Workers catch their own panics, and have reported them.
    let _ = thread.join();
}

/// Gives the slot back on whatever way the worker ends, and tells the acceptor, which may be waiting for one.
struct Slot {
    counters: Arc<Counters>,
    acceptor: Thread,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counters.live.fetch_sub(1, Ordering::AcqRel);
        self.acceptor.unpark();
    }
}

struct Acceptor<S> {
    socket: TcpListener,
    service: Arc<S>,
    cap: u64,
    stop: Arc<Stop>,
    counters: Arc<Counters>,
    events: Sender<Event>,
    leaving: VecDeque<Leaving>,
    complained: Option<Instant>,
}

impl<S: Service> Acceptor<S> {
    fn run(mut self) {
        let mut next_id = 1;
        let mut back_off = BACK_OFF.0;
        while self.stop.asked().is_none() {
            let slot = self.slot();
            match self.socket.accept() {
                Ok((connection, peer)) => {
                    back_off = BACK_OFF.0;
                    match slot.or_else(|| self.slot_soon()) {
                        Some(slot) => self.hand_over(next_id, slot, connection, peer),
                        None => self.refuse(connection),
                    }
                    next_id += 1;
                    self.tend();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    drop(slot);
                    self.pause(None);
                }
                Err(error) if only_time_mends(&error) => {
                    drop(slot);
                    self.complain(&format!(
                        "cannot accept connections: {error}; going on when it passes"
                    ));
                    self.pause(Some(back_off));
                    back_off = (back_off * 2).min(BACK_OFF.1);
                }
                // The connection was gone before it was accepted, or we were interrupted.
                Err(_) => {}
            }
        }
    }

    /// A slot, if one is free.
    fn slot(&self) -> Option<Slot> {
        let live = &self.counters.live;
        // Only this thread takes slots, so what was free a moment ago still is.
        (live.load(Ordering::Acquire) < self.cap).then(|| {
            live.fetch_add(1, Ordering::AcqRel);
            Slot {
                counters: Arc::clone(&self.counters),
                acceptor: thread::current(),
            }
        })
    }

    /// A slot that the service makes free for a connection which has come already.
    fn slot_soon(&self) -> Option<Slot> {
        let until = Instant::now() + ROOM_PATIENCE;
        let mut room = Room::None;
        while self.stop.asked().is_none() && Instant::now() < until {
            if room != Room::Made {
                room = self.service.make_room();
            }
            let wake = match room {
                Room::None => return None,
                Room::NotBefore(time) => until.min(time),
                Room::Made => until,
            };
            if let Some(slot) = self.slot() {
                return Some(slot);
            }
            thread::park_timeout(wake.saturating_duration_since(Instant::now()));
        }
        self.slot()
    }

    fn hand_over(&mut self, id: u64, slot: Slot, connection: TcpStream, peer: SocketAddr) {
        let since = Instant::now();
        // Kept where we can take it back: a thread that does not start must not cost the client its answer.
        let held = Arc::new(Mutex::new(Some(connection)));
        let (theirs, service, events) = (
            Arc::clone(&held),
            Arc::clone(&self.service),
            self.events.clone(),
        );
        let name = format!("{}-{id}", S::THREADS[2]);
        let spawned = thread::Builder::new()
            .name(name)
            .stack_size(STACK)
            .spawn(move || {
                let connection = theirs.lock().unwrap_or_else(PoisonError::into_inner).take();
                let outcome = connection.map(|connection| {
                    catch_unwind(AssertUnwindSafe(|| service.serve(connection, peer)))
                });
                drop(slot);
                let how = if outcome.is_some() {
                    How::Panicked
                } else {
                    How::Abandoned
                };
                let outcome = outcome
                    .and_then(Result::ok)
                    .unwrap_or_else(|| Outcome::new(since, None, Err(how)));
                // The supervisor outlives every worker; were it gone, there would be nobody to tell.
                let _ = events.send(Event::Ended(id, outcome));
            });
        match spawned {
            Ok(thread) => {
                let _ = self.events.send(Event::Started(id, thread));
            }
            Err(error) => {
                self.complain(&format!(
                    "cannot start a thread for a connection: {error}; answering 503"
                ));
                if let Some(connection) = held.lock().unwrap_or_else(PoisonError::into_inner).take()
                {
                    self.refuse(connection);
                }
            }
        }
    }

    /// Answers without a thread and without waiting; the socket is read to its end later, so that no reset overtakes the answer.
    fn refuse(&mut self, connection: TcpStream) {
        Counters::add(&self.counters.refused, 1);
        let answer = self.service.refusal();
        if connection.set_nonblocking(true).is_ok() && (&connection).write_all(&answer).is_ok() {
            let _ = connection.shutdown(Shutdown::Write);
            if self.leaving.len() >= LEAVING {
                self.leaving.pop_front();
            }
            self.leaving.push_back(Leaving {
                connection,
                until: Instant::now() + LEAVING_FOR,
                left: LEAVING_BYTES,
            });
        }
    }

    fn tend(&mut self) {
        self.leaving.retain_mut(Leaving::goes_on);
    }

    /// Waits for a connection, a stop, or something about those who leave; with `for_long`, not for a connection.
    fn pause(&mut self, for_long: Option<Duration>) {
        self.tend();
        {
            let accept = if for_long.is_some() {
                PollFlags::empty()
            } else {
                PollFlags::IN
            };
            let mut fds = vec![
                PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.socket.as_fd(), accept),
            ];
            fds.extend(
                self.leaving
                    .iter()
                    .map(|l| PollFd::from_borrowed_fd(l.connection.as_fd(), PollFlags::IN)),
            );
            let leaves = self.leaving.front().map(|l| l.until);
            let over = for_long.map(|long| Instant::now() + long);
            if wait(&mut fds, over.into_iter().chain(leaves).min()).is_err() {
                // ENOMEM, the only one left: no memory to wait with. Wait without the kernel's help.
                thread::sleep(BACK_OFF.0);
            }
        }
        self.tend();
    }

    fn complain(&mut self, what: &str) {
        let now = Instant::now();
        if self
            .complained
            .is_none_or(|last| now.duration_since(last) >= COMPLAINT_INTERVAL)
        {
            self.complained = Some(now);
            log::warn!("{what}");
        }
    }
}

/// Errors of accept(2) after which the next call would fail as well.
fn only_time_mends(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let gone = [
        Errno::INTR,
        Errno::CONNABORTED,
        Errno::PROTO,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTUNREACH,
    ];
    let errno = error.raw_os_error();
    !gone.iter().any(|e| Some(e.raw_os_error()) == errno)
}

/// A refused connection whose last bytes are still to be read.
struct Leaving {
    connection: TcpStream,
    until: Instant,
    left: usize,
}

impl Leaving {
    fn goes_on(&mut self) -> bool {
        let mut into = [0; 4096];
        while self.left > 0 && Instant::now() < self.until {
            match (&self.connection).read(&mut into) {
                Ok(0) => return false,
                Ok(n) => self.left = self.left.saturating_sub(n),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        false
    }
}
