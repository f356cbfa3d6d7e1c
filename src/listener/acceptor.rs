//! The thread that accepts: it never ends on an error, it backs off and goes on.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use super::lingering_close::LingeringClose;
use super::workers::{Job, Workers};
use super::{Eviction, Service, Slot};
use crate::control::metrics::Counters;
use crate::control::stop::Stop;
use crate::net::wait::wait;

/// How long the acceptor waits after an error that only time can mend: at first, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long a connection waits for the slot of one that is turned out: the acceptor waits with it, so not long.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);
/// A complaint of one kind is logged once in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// What it accepts for, and with.
pub(super) struct Acceptor<S> {
    pub(super) socket: TcpListener,
    pub(super) service: Arc<S>,
    pub(super) cap: u64,
    pub(super) stop: Arc<Stop>,
    pub(super) counters: Arc<Counters>,
    pub(super) workers: Workers<S>,
    pub(super) leaving: LingeringClose,
    pub(super) complained: Option<Instant>,
}

impl<S: Service> Acceptor<S> {
    pub(super) fn run(mut self) {
        let mut back_off = BACK_OFF.0;
        while self.stop.requested().is_none() {
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
        let mut room = Eviction::None;
        while self.stop.requested().is_none() && Instant::now() < until {
            // One may have become free by itself: then nobody need be turned out.
            if let Some(slot) = self.slot() {
                return Some(slot);
            }
            if room != Eviction::Made {
                room = self.service.make_room();
            }
            let wake = match room {
                Eviction::None => return None,
                Eviction::NotBefore(time) => until.min(time),
                Eviction::Made => until,
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
    let peer = peer.ok_or(Errno::CONNABORTED)?;
    Ok((connection.into(), peer))
}

/// Errors of accept(2) after which the next call would fail as well.
fn only_time_mends(error: &io::Error) -> bool {
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
