//! The thread that accepts connections. It survives every error: it waits and retries.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use super::evictable::Eviction;
use super::lingering_close::LingeringClose;
use super::liveness::Liveness;
use super::service::Service;
use super::slot::Slot;
use super::supervisor::{LogLine, ThreadEvent};
use super::workers::{Accepted, WorkerPool};
use crate::control::metrics::Counters;
use crate::control::stop::Stop;
use crate::net::wait::wait;

/// The first and the longest pause after an error such as a lack of descriptors.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long a connection waits for the slot of an evicted one. The acceptor waits with it, so the
/// time is short.
const SLOT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an evicted connection may keep its slot before another one is evicted. On a busy
/// machine its worker may be late.
const EVICTION_TIMEOUT: Duration = Duration::from_millis(100);
/// The longest time from the moment when a worker frees its slot to the moment when it waits for
/// the next connection. Starting another thread may be impossible.
const START_OF_IDLE: Duration = Duration::from_millis(10);
/// The shortest time between two warnings.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// The state of the acceptor thread.
pub(super) struct Acceptor<S> {
    pub(super) socket: TcpListener,
    pub(super) service: Arc<S>,
    pub(super) cap: u64,
    pub(super) stop: Arc<Stop>,
    pub(super) liveness: Liveness,
    /// The last question that was passed on to the supervisor.
    pub(super) last_question: u64,
    pub(super) counters: Arc<Counters>,
    pub(super) workers: WorkerPool<S>,
    pub(super) refused: LingeringClose,
    pub(super) last_warning: Option<Instant>,
    /// When the number of connections without a slot was logged, and the number since then.
    pub(super) last_count: Option<Instant>,
    pub(super) unlogged: u64,
}

impl<S: Service> Acceptor<S> {
    /// Accepts until a stop is requested.
    pub(super) fn run(mut self) {
        // A panic is a fault of this crate. It must not close the port of a relay that is up.
        while catch_unwind(AssertUnwindSafe(|| self.accept_until_stopped())).is_err() {
            thread::sleep(BACK_OFF.1);
        }
    }

    fn accept_until_stopped(&mut self) {
        let mut back_off = BACK_OFF.0;
        while self.stop.requested().is_none() {
            self.pass_question_on();
            let slot = self.slot();
            match accept(&self.socket) {
                Ok((connection, peer)) => {
                    back_off = BACK_OFF.0;
                    let wait = if slot.is_some() {
                        Duration::ZERO
                    } else {
                        START_OF_IDLE
                    };
                    match slot.or_else(|| self.wait_for_slot()) {
                        Some(slot) => self.serve(
                            Accepted {
                                connection,
                                peer,
                                slot,
                            },
                            wait,
                        ),
                        None => self.refuse_for_lack_of_slots(connection),
                    }
                    self.refused.drain();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    drop(slot);
                    self.wait(None);
                }
                Err(error) if persists(&error) => {
                    drop(slot);
                    self.warn(&format!("cannot accept connections: {error}; retrying"));
                    self.wait(Some(back_off));
                    back_off = (back_off * 2).min(BACK_OFF.1);
                }
                // The connection was closed before it was accepted, or the call was interrupted.
                Err(_) => {}
            }
        }
    }

    /// Passes a question whether the threads work on to the supervisor.
    fn pass_question_on(&mut self) {
        if let Some(question) = self.liveness.question(self.last_question) {
            self.last_question = question;
            // The supervisor outlives all senders.
            let _ = self
                .workers
                .events
                .threads
                .send(ThreadEvent::Question(question));
        }
    }

    /// A slot, if one is free.
    fn slot(&self) -> Option<Slot> {
        Slot::acquire(&self.counters, self.cap)
    }

    /// A slot that becomes free soon, because the service evicts a connection.
    fn wait_for_slot(&self) -> Option<Slot> {
        let mut now = Instant::now();
        let (until, mut next_eviction) = (now + SLOT_TIMEOUT, now);
        while self.stop.requested().is_none() && now < until {
            // If a connection has ended by itself, none needs to be evicted.
            if let Some(slot) = self.slot() {
                return Some(slot);
            }
            if next_eviction <= now {
                next_eviction = match self.service.make_room() {
                    Eviction::None => return None,
                    Eviction::NotBefore(time) => time,
                    Eviction::Made => now + EVICTION_TIMEOUT,
                };
            }
            thread::park_timeout(until.min(next_eviction).saturating_duration_since(now));
            now = Instant::now();
        }
        self.slot()
    }

    fn serve(&mut self, accepted: Accepted, wait: Duration) {
        if let Err((error, connection)) = self.workers.serve(accepted, wait) {
            self.warn(&format!(
                "cannot start a thread for a connection: {error}; responding with status 503"
            ));
            self.refuse(connection);
        }
    }

    /// Responds with 503, and logs how often at times.
    fn refuse_for_lack_of_slots(&mut self, connection: TcpStream) {
        self.refuse(connection);
        self.unlogged += 1;
        if is_due(&mut self.last_count) {
            let (number, cap) = (std::mem::take(&mut self.unlogged), self.cap);
            let line = format!(
                "all {cap} slots are in use: {number} connections were refused with status 503; \
                 raise max-tunnels (--max-tunnels)"
            );
            self.workers.events.log(LogLine::Warning(line));
        }
    }

    /// Responds without a thread and without waiting.
    fn refuse(&mut self, connection: TcpStream) {
        Counters::add(&self.counters.refused, 1);
        self.refused.add(connection, &self.service.busy_response());
    }

    /// Waits for a stop, input on refused connections, or a connection. With `pause`, for that time
    /// at most, and not for a connection.
    fn wait(&mut self, pause: Option<Duration>) {
        self.refused.drain();
        {
            let accept = if pause.is_some() {
                PollFlags::empty()
            } else {
                PollFlags::IN
            };
            let mut fds = vec![
                PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.liveness.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.socket.as_fd(), accept),
            ];
            let (refused, until) = self.refused.poll_fds();
            fds.extend(refused);
            let pause_ends = pause.map(|pause| Instant::now() + pause);
            if wait(&mut fds, pause_ends.into_iter().chain(until).min()).is_err() {
                // ENOMEM, the only error that remains: wait without the kernel's help.
                thread::sleep(BACK_OFF.0);
            }
        }
        self.refused.drain();
    }

    fn warn(&mut self, what: &str) {
        if is_due(&mut self.last_warning) {
            self.workers.events.log(LogLine::Warning(what.to_owned()));
        }
    }
}

/// Whether the next line may be logged.
fn is_due(last: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let due = last.is_none_or(|last| now.duration_since(last) >= WARNING_INTERVAL);
    if due {
        *last = Some(now);
    }
    due
}

/// The next connection. It is non-blocking.
fn accept(socket: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (connection, peer) = acceptfrom_with(socket, flags)?;
    // Without an address, the connection was closed before it was accepted.
    let peer = peer.and_then(|peer| peer.try_into().ok());
    let peer = peer.ok_or(Errno::CONNABORTED)?;
    Ok((connection.into(), peer))
}

/// Whether accept(2) would fail again at once. The other errors concern one connection only.
fn persists(error: &io::Error) -> bool {
    let transient = [
        Errno::INTR,
        Errno::CONNABORTED,
        Errno::PROTO,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTUNREACH,
    ];
    let errno = error.raw_os_error();
    !transient.iter().any(|e| Some(e.raw_os_error()) == errno)
}
