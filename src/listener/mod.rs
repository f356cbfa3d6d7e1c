//! Accepting connections, for the relay and for the gateway: a slot first, then accept, then a named thread for it alone.
//!
//! The acceptor never ends on an error: it backs off and goes on. `workers` are the threads that it hands connections to,
//! `leaving` those that it had to refuse. The supervisor owns every worker: it takes their outcomes and the request to
//! stop from one channel, and joins them. What a connection means is its [`Service`]'s.

mod leaving;
mod workers;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select, unbounded};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, Socket, Type};

use crate::deadline::Deadline;
use crate::memory;
use crate::metrics::{Counters, Stats};
use crate::shutdown::{Abort, How, Outcome, Stop};
use crate::wait::wait;
use leaving::Leaving;
use workers::{Job, Workers};

/// How many connections may wait in the kernel; std's own 128 is little for a package manager that opens dozens at once.
const BACKLOG: i32 = 1024;
/// How long the supervisor takes no report after the last one: of many connections a second it need not be woken by each.
const BREATH: Duration = Duration::from_millis(1);
/// When so many workers have been there and only this part of them is left, what they had of the heap is given back.
const MANY: usize = 64;
const FEW_OF_MANY: usize = 4;
/// How long the acceptor waits after an error that only time can mend: at first, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long a connection waits for the slot of one that is turned out: the acceptor waits with it, so not long.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);
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
    // Every accepted connection inherits it.
    socket.set_tcp_nodelay(true)?;
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
    stop: Arc<Stop>,
    requests: Sender<Duration>,
    supervisor: Option<JoinHandle<Report>>,
}

impl Listening {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The way to end a shutdown that takes its time.
    pub(crate) fn abort(&self) -> Abort {
        Abort::of(&self.stop)
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
    /// A worker was started.
    Hired(u64, JoinHandle<()>),
    /// A connection has ended.
    Ended(Outcome),
    /// A worker is about to end.
    Left(u64),
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
        service: Arc::clone(&service),
        cap: cap as u64,
        stop: Arc::clone(stop),
        counters: Arc::clone(&counters),
        workers: Workers::new(service, events),
        leaving: Leaving::default(),
        complained: None,
    };
    let [supervisor_name, acceptor_name, _] = S::THREADS;
    let acceptor = thread::Builder::new()
        .name(acceptor_name.into())
        .stack_size(memory::STACK)
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
        .stack_size(memory::STACK)
        .spawn(move || supervisor.run());
    if spawned.is_err() {
        stop.ask(Deadline::after(Duration::ZERO));
    }
    Ok(Listening {
        address,
        drain,
        stop: Arc::clone(stop),
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
    /// Counts every outcome and joins every worker, until a stop was asked for and nobody is left.
    fn run(mut self) -> Report {
        // A worker may be gone before the acceptor has told of it: `None` stands for one that left without a thread.
        let mut workers: HashMap<u64, Option<JoinHandle<()>>> = HashMap::new();
        let mut most = 0;
        let mut report = Report::default();
        loop {
            select! {
                recv(self.reports) -> event => match event {
                    Ok(Event::Hired(id, thread)) => {
                        if workers.remove(&id).is_none() {
                            workers.insert(id, Some(thread));
                            most = most.max(workers.len());
                        } else {
                            join(thread);
                        }
                    }
                    Ok(Event::Ended(outcome)) => {
                        self.note(&outcome);
                        if self.stop.asked().is_some() {
                            count(&outcome, &mut report);
                        }
                    }
                    Ok(Event::Left(id)) => {
                        match workers.remove(&id) {
                            Some(Some(thread)) => join(thread),
                            _ => { workers.insert(id, None); }
                        }
                        if most >= MANY && workers.len() <= most / FEW_OF_MANY {
                            most = workers.len();
                            memory::give_back_heap();
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
            if self.reports.is_empty() && self.stop.asked().is_none() {
                thread::sleep(BREATH);
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
    workers: Workers<S>,
    leaving: Leaving,
    complained: Option<Instant>,
}

impl<S: Service> Acceptor<S> {
    fn run(mut self) {
        let mut back_off = BACK_OFF.0;
        while self.stop.asked().is_none() {
            let slot = self.slot();
            match accept(&self.socket) {
                Ok((connection, peer)) => {
                    back_off = BACK_OFF.0;
                    match slot.or_else(|| self.slot_soon()) {
                        Some(slot) => self.hand_over(Job {
                            connection,
                            peer,
                            slot,
                        }),
                        None => self.refuse(connection),
                    }
                    self.leaving.tend();
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
            // One may have become free by itself: then nobody need be turned out.
            if let Some(slot) = self.slot() {
                return Some(slot);
            }
            if room != Room::Made {
                room = self.service.make_room();
            }
            let wake = match room {
                Room::None => return None,
                Room::NotBefore(time) => until.min(time),
                Room::Made => until,
            };
            thread::park_timeout(wake.saturating_duration_since(Instant::now()));
        }
        self.slot()
    }

    fn hand_over(&mut self, job: Job) {
        if let Err((error, connection)) = self.workers.hand_over(job) {
            self.complain(&format!(
                "cannot start a thread for a connection: {error}; answering 503"
            ));
            self.refuse(connection);
        }
    }

    /// Answers without a thread and without waiting.
    fn refuse(&mut self, connection: TcpStream) {
        Counters::add(&self.counters.refused, 1);
        self.leaving.add(connection, &self.service.refusal());
    }

    /// Waits for a connection, a stop, or something about those who leave; with `for_long`, not for a connection.
    fn pause(&mut self, for_long: Option<Duration>) {
        self.leaving.tend();
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
            let (leaving, until) = self.leaving.wanted();
            fds.extend(leaving);
            let over = for_long.map(|long| Instant::now() + long);
            if wait(&mut fds, over.into_iter().chain(until).min()).is_err() {
                // ENOMEM, the only one left: no memory to wait with. Wait without the kernel's help.
                thread::sleep(BACK_OFF.0);
            }
        }
        self.leaving.tend();
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

/// The next connection, non-blocking from the first.
fn accept(socket: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (connection, peer) = acceptfrom_with(socket, flags)?;
    // One without an address was gone before it was accepted.
    let peer = peer.and_then(|peer| peer.try_into().ok());
    let peer = peer.ok_or(ErrorKind::ConnectionAborted)?;
    Ok((connection.into(), peer))
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
