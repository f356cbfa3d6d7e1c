//! Opens a TCP connection to the first of several addresses that answers ([RFC 8305], "Happy
//! Eyeballs").
//!
//! [RFC 8305]: https://www.rfc-editor.org/rfc/rfc8305

use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::drive::WaitContext;
use super::error::TunnelError;
use crate::control::deadline::Deadline;
use crate::control::phase::Phase;
use crate::http::authority::Authority;
use crate::net::lookup_error::LookupError;
use crate::net::resolver::{LookupFor, Resolution, Resolver};
use crate::net::wait::wait;

/// How long an attempt has until the next one starts beside it: the Connection Attempt Delay of RFC
/// 8305, section 5.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The shortest delay, if many addresses have to be tried in the remaining time (RFC 8305, section
/// 8).
const MIN_ATTEMPT_DELAY: Duration = Duration::from_millis(10);
/// How many attempts run at once. Beyond it, the oldest is given up: a name with hundreds of
/// addresses must not use up the descriptors.
const ATTEMPT_LIMIT: usize = 16;
/// How often to check whether more addresses have been found.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(50);

/// The addresses that [`connect`] tries.
pub(crate) trait Candidates {
    /// The addresses that are known now, in the order in which to try them, and whether these are
    /// all. Later calls may return more.
    fn known(&mut self) -> (&[SocketAddr], bool);
}

impl Candidates for Resolution {
    fn known(&mut self) -> (&[SocketAddr], bool) {
        let complete = self.refresh();
        (self.addresses(), complete)
    }
}

/// Resolves the host of `authority`; blocks until the deadline of `context` at most. `owner` is the
/// session that needs it (see [`LookupFor`]).
///
/// # Errors
/// The error of the lookup; `ClientLeft` or `Stopped` soon after the client has disconnected or a
/// stop was requested.
pub(crate) fn resolve(
    resolver: &Resolver,
    authority: &Authority,
    owner: u64,
    context: &WaitContext<'_>,
) -> Result<Resolution, TunnelError> {
    let lookup = LookupFor {
        owner,
        deadline: context.deadline,
        wanted: &|| context.interruption().is_none(),
    };
    let result = resolver.resolve(&authority.host, authority.port, &lookup);
    result.map_err(|error| match (context.interruption(), error) {
        (Some(interruption), LookupError::NotWanted) => interruption,
        (_, error) => error.into(),
    })
}

/// Connects to the first of `candidates` that answers; blocks until the deadline of `context` at
/// most. Returns the socket, non-blocking and with `TCP_NODELAY`, and its address.
///
/// An attempt that has no result after 250 ms gets a competitor, one that fails at once; the first
/// connection is used. `resolver` remembers its address for the next dial of `authority`.
///
/// # Errors
/// The error of an address; `TimedOut`, `ClientLeft` or `Stopped` because of `context`.
pub(crate) fn connect(
    resolver: &Resolver,
    authority: &Authority,
    candidates: &mut dyn Candidates,
    context: &WaitContext<'_>,
) -> Result<(TcpStream, SocketAddr), TunnelError> {
    let result = Race::new().run(candidates, context);
    match &result {
        Ok((_, address)) if candidates.known().0.len() > 1 => {
            resolver.remember(&authority.host, *address);
        }
        Ok(_) | Err(TunnelError::ClientLeft | TunnelError::Stopped) => {}
        Err(_) => resolver.forget(&authority.host, authority.port),
    }
    result
}

/// The attempts to reach one host.
struct Race {
    /// All attempts so far, the oldest first. Those with a socket have no result yet.
    attempts: Vec<Attempt>,
    /// When the next attempt starts beside those.
    next_at: Instant,
    /// The error to report if no attempt succeeds.
    error: Option<io::Error>,
}

struct Attempt {
    address: SocketAddr,
    socket: Option<Socket>,
}

impl Race {
    fn new() -> Self {
        Self {
            attempts: Vec::new(),
            next_at: Instant::now(),
            error: None,
        }
    }

    /// The attempts without a result.
    fn pending(&self) -> impl Iterator<Item = &Socket> {
        let sockets = self.attempts.iter().map(|attempt| attempt.socket.as_ref());
        sockets.flatten()
    }

    fn run(
        mut self,
        candidates: &mut dyn Candidates,
        context: &WaitContext<'_>,
    ) -> Result<(TcpStream, SocketAddr), TunnelError> {
        loop {
            if context.stop.requested().is_some() {
                return Err(TunnelError::Stopped);
            }
            let (known, complete) = candidates.known();
            if let Some(connected) = self.start(known, context.deadline) {
                return Ok(connected);
            }
            if complete && self.pending().next().is_none() {
                let no_address =
                    || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                return Err(self.error.unwrap_or_else(no_address).into());
            }
            let mut until = context.deadline;
            if self.untried(known).next().is_some() {
                until = until.min(Deadline::at(self.next_at));
            }
            if !complete {
                until = until.min(Deadline::after(LOOKUP_INTERVAL));
            }
            if let Some(connected) = self.wait(context, until)? {
                return Ok(connected);
            }
            if context.deadline.passed() {
                return Err(TunnelError::TimedOut(Phase::Connect));
            }
        }
    }

    fn untried(&self, known: &[SocketAddr]) -> impl Iterator<Item = SocketAddr> {
        let was_tried = |address| self.attempts.iter().any(|a| a.address == address);
        let untried = known.iter().copied();
        untried.filter(move |&address| !was_tried(address))
    }

    /// Starts the attempts that are due.
    fn start(
        &mut self,
        known: &[SocketAddr],
        deadline: Deadline,
    ) -> Option<(TcpStream, SocketAddr)> {
        while self.pending().next().is_none() || self.next_at <= Instant::now() {
            let mut untried = self.untried(known);
            let address = untried.next()?;
            let after_it = untried.count();
            let socket = match begin(address) {
                Ok(Begun::Connected(socket)) => return Some((socket.into(), address)),
                Ok(Begun::Pending(socket)) => {
                    if self.pending().count() == ATTEMPT_LIMIT {
                        let oldest = self.attempts.iter_mut().find(|a| a.socket.is_some());
                        oldest.and_then(|attempt| attempt.socket.take());
                    }
                    self.next_at = Instant::now() + attempt_delay(after_it, deadline);
                    Some(socket)
                }
                Err(error) => {
                    self.failed(error);
                    None
                }
            };
            self.attempts.push(Attempt { address, socket });
        }
        None
    }

    /// Waits for the result of an attempt, until `until` at most.
    fn wait(
        &mut self,
        context: &WaitContext<'_>,
        until: Deadline,
    ) -> Result<Option<(TcpStream, SocketAddr)>, TunnelError> {
        let (client, client_events) = context.client_poll();
        // The descriptors that are not needed are those of the stop, without events.
        let mut fds: [PollFd<'_>; ATTEMPT_LIMIT + 2] = std::array::from_fn(|_| {
            PollFd::from_borrowed_fd(context.stop.as_fd(), PollFlags::empty())
        });
        fds[0] = PollFd::from_borrowed_fd(context.stop.as_fd(), PollFlags::IN);
        fds[1] = PollFd::from_borrowed_fd(client, client_events);
        let mut used = 2;
        for socket in self.pending() {
            fds[used] = PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT);
            used += 1;
        }
        wait(&mut fds[..used], until.instant())?;
        let events = fds.map(|fd| fd.revents());
        let mut ready = events[2..].iter().map(|events| !events.is_empty());
        for at in 0..self.attempts.len() {
            let attempt = &mut self.attempts[at];
            if attempt.socket.is_none() || ready.next() != Some(true) {
                continue;
            }
            let Some(socket) = attempt.socket.take() else {
                continue;
            };
            match socket.take_error()? {
                None => return Ok(Some((socket.into(), attempt.address))),
                Some(error) => self.failed(error),
            }
        }
        if context.client_has_left(events[1]) {
            return Err(TunnelError::ClientLeft);
        }
        Ok(None)
    }

    /// An attempt has failed: the next one starts at once.
    fn failed(&mut self, error: io::Error) {
        self.next_at = Instant::now();
        // A condition of this machine explains more than what the last address reports.
        let own_fault = self.error.as_ref().is_some_and(super::error::exhausted);
        if !own_fault {
            self.error = Some(error);
        }
    }
}

/// The delay before the next attempt, if `others` more addresses have to be tried.
fn attempt_delay(others: usize, deadline: Deadline) -> Duration {
    let share = deadline.remaining().map(|left| {
        let shares = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
        left / shares
    });
    share
        .unwrap_or(ATTEMPT_DELAY)
        .clamp(MIN_ATTEMPT_DELAY, ATTEMPT_DELAY)
}

/// A connection that has begun.
enum Begun {
    Connected(Socket),
    Pending(Socket),
}

fn begin(address: SocketAddr) -> io::Result<Begun> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => Ok(Begun::Connected(socket)),
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {
            Ok(Begun::Pending(socket))
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Begun::Pending(socket)),
        // Linux reports used-up ephemeral ports and a missing IPv6 source address with the same
        // number. Only the first is a condition of this machine that passes.
        Err(error)
            if error.raw_os_error() == Some(Errno::ADDRNOTAVAIL.raw_os_error())
                && !has_source_address(address) =>
        {
            Err(Errno::NETUNREACH.into())
        }
        Err(error) => Err(error),
    }
}

/// Whether this machine has an address from which it can send to `address`. Nothing is sent.
fn has_source_address(address: SocketAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    UdpSocket::bind(any).is_ok_and(|socket| socket.connect(address).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::stop::Stop;
    #[cfg(feature = "gateway")]
    use crate::tunnel::drive::WatchedClient;
    use std::net::TcpListener;

    const LONG: Duration = Duration::from_secs(60);

    /// Addresses that become known one call after the other.
    struct Arriving {
        addresses: Vec<SocketAddr>,
        known: usize,
    }

    impl Candidates for Arriving {
        fn known(&mut self) -> (&[SocketAddr], bool) {
            let known = self.known.min(self.addresses.len());
            self.known += 1;
            (&self.addresses[..known], known == self.addresses.len())
        }
    }

    /// Addresses that are known from the start.
    fn all(addresses: &[SocketAddr]) -> Arriving {
        Arriving {
            addresses: addresses.to_vec(),
            known: addresses.len(),
        }
    }

    fn race(
        candidates: &mut dyn Candidates,
        limit: Duration,
    ) -> Result<(TcpStream, SocketAddr), TunnelError> {
        let stop = Stop::new().unwrap();
        let wait = WaitContext {
            stop: &stop,
            client: None,
            deadline: Deadline::after(limit),
            phase: Phase::Connect,
            keepalive: Duration::ZERO,
            drains: false,
        };
        Race::new().run(candidates, &wait)
    }

    fn live() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// An address on which nothing listens.
    fn refusing() -> SocketAddr {
        live().1
    }

    /// An address that drops the packets of new connections: its queue of connections is full. It
    /// drops them as long as the value lives.
    struct Dropping {
        address: SocketAddr,
        _sockets: (Socket, Vec<Socket>),
    }

    fn dropping() -> Dropping {
        let tcp = || Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let listener = tcp();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        loop {
            let client = tcp();
            let _ = client.connect(&address.into());
            let mut fds = [PollFd::new(&client, PollFlags::OUT)];
            wait(&mut fds, Some(Instant::now() + Duration::from_millis(50))).unwrap();
            let answered = !fds[0].revents().is_empty();
            queued.push(client);
            if !answered {
                return Dropping {
                    address,
                    _sockets: (listener, queued),
                };
            }
        }
    }

    #[test]
    fn after_an_address_that_does_not_answer_the_next_one_is_tried_soon() {
        let (dead, (_listener, address)) = ([dropping(), dropping(), dropping()], live());
        let dead = dead.each_ref().map(|dead| dead.address);
        let candidates = [&dead[..], &[address]].concat();
        let start = Instant::now();
        // A quarter of this limit would be longer than three delays.
        let connected = race(&mut all(&candidates), LONG).unwrap();
        assert_eq!(connected.1, address);
        assert!(start.elapsed() >= 3 * ATTEMPT_DELAY);
        assert!(start.elapsed() < LONG / 4);
    }

    #[test]
    fn after_an_address_that_fails_the_next_one_is_tried_at_once() {
        let (_listener, address) = live();
        let candidates: Vec<_> = (0..40).map(|_| refusing()).chain([address]).collect();
        let start = Instant::now();
        assert_eq!(race(&mut all(&candidates), LONG).unwrap().1, address);
        assert!(start.elapsed() < 40 * ATTEMPT_DELAY);
    }

    #[test]
    fn an_address_that_is_found_during_the_race_takes_part_in_it() {
        let (dead, (_listener, address)) = (dropping(), live());
        let mut candidates = Arriving {
            addresses: vec![refusing(), dead.address, address],
            known: 0,
        };
        assert_eq!(race(&mut candidates, LONG).unwrap().1, address);
    }

    #[test]
    fn if_no_address_answers_the_deadline_or_the_last_error_ends_the_race() {
        let dead = dropping();
        let late = race(&mut all(&[dead.address]), Duration::from_millis(20));
        assert!(matches!(late, Err(TunnelError::TimedOut(Phase::Connect))));
        let refused = race(&mut all(&[refusing(), refusing()]), LONG);
        assert!(matches!(
            refused,
            Err(TunnelError::Io(error)) if error.kind() == io::ErrorKind::ConnectionRefused
        ));
        let none = race(&mut all(&[]), LONG);
        assert!(
            matches!(none, Err(TunnelError::Io(error)) if error.kind() == io::ErrorKind::NotFound)
        );
    }

    #[test]
    fn many_addresses_share_the_time() {
        assert_eq!(attempt_delay(3, Deadline::never()), ATTEMPT_DELAY);
        assert_eq!(attempt_delay(3, Deadline::after(LONG)), ATTEMPT_DELAY);
        let share = attempt_delay(99, Deadline::after(Duration::from_secs(10)));
        assert!(share <= Duration::from_millis(100) && share > MIN_ATTEMPT_DELAY);
        assert_eq!(
            attempt_delay(99, Deadline::after(Duration::ZERO)),
            MIN_ATTEMPT_DELAY
        );
    }

    #[test]
    fn the_winner_is_remembered_and_a_failure_forgets_it() {
        let resolver = Resolver::new();
        let stop = Stop::new().unwrap();
        let wait = WaitContext {
            stop: &stop,
            client: None,
            deadline: Deadline::after(LONG),
            phase: Phase::Connect,
            keepalive: Duration::ZERO,
            drains: false,
        };
        // "localhost" has an IPv4 and an IPv6 address, in this order.
        let listener = TcpListener::bind("[::1]:0");
        let Ok(listener) = listener else {
            return; // No IPv6 here.
        };
        let address = listener.local_addr().unwrap();
        let authority: Authority = format!("localhost:{}", address.port()).parse().unwrap();
        let first = || {
            let found = resolve(&resolver, &authority, 0, &wait).unwrap();
            found.addresses()[0]
        };
        let dial = || {
            let mut found = resolve(&resolver, &authority, 0, &wait).unwrap();
            connect(&resolver, &authority, &mut found, &wait)
        };
        assert!(first().is_ipv4());
        assert_eq!(dial().unwrap().1, address);
        assert_eq!(first(), address);
        drop(listener);
        assert!(dial().is_err());
        assert!(first().is_ipv4());
    }

    #[cfg(feature = "gateway")]
    #[test]
    fn a_client_that_disconnects_ends_a_dial_and_a_lookup() {
        let (listener, address) = live();
        let dead = dropping();
        let stop = Stop::new().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let wait = |client| WaitContext {
            stop: &stop,
            client: Some(client),
            deadline: Deadline::after(LONG),
            phase: Phase::Connect,
            keepalive: Duration::ZERO,
            drains: false,
        };
        client.shutdown(std::net::Shutdown::Write).unwrap();
        // The end of its sending direction ends the dial of a gateway, not that of a relay.
        let closing = wait(WatchedClient::that_closes_at_once(&socket));
        while closing.interruption().is_none() {
            std::thread::yield_now();
        }
        let left = Race::new().run(&mut all(&[dead.address]), &closing);
        assert!(matches!(left, Err(TunnelError::ClientLeft)));
        let open = wait(WatchedClient::that_may_half_close(&socket));
        assert!(open.interruption().is_none());
        stop.request(Deadline::never());
        assert!(matches!(open.interruption(), Some(TunnelError::Stopped)));
    }
}
