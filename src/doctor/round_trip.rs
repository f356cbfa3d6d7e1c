//! Bytes through a relay's port to a far end and back, and the two kinds of `ClientHello` that have broken proxies before.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::FarEnd;
use super::check::{Check, Problem, Step};
use super::client::{Port, Tunnel};
use super::hello::{Answer, Kind, client_hello};
use super::stages::Seen;
use crate::config::{Config, Limits};
use crate::control::deadline::Deadline;
#[cfg(feature = "bench")]
use crate::control::metrics::Stats;
use crate::error::Error;
use crate::net::resolver::Resolver;
use crate::orchestrator::{start_relay, upstream};
use crate::relay::Running;

/// What goes to an origin of our own and back: more than a segment, less than any socket's buffer.
const PAYLOAD: usize = 16 << 10;
/// Why there is no round trip where the gateway answered that there may be none.
pub(super) const FORBIDDEN: &str =
    "the gateway forbids its own host; name a far end with --target HOST:PORT";
/// How long one waits for an answer that need not come.
const QUIET: Duration = Duration::from_secs(3);
/// How a hello is cut: into single bytes at first, inside the record's header and the message's, then anywhere.
const PIECES: [usize; 9] = [1, 1, 2, 1, 3, 31, 97, 1, 509];

/// A relay of our own for the round trips, which burns no token.
#[derive(Debug)]
pub(crate) struct OwnRelay(Running);

impl OwnRelay {
    /// One on a free port; `None` without a token.
    pub(crate) fn start(config: &Config, seen: &Seen) -> Result<Option<Self>, Error> {
        let (Some(session), Some(token)) = (&seen.session, &seen.token) else {
            return Ok(None);
        };
        let (id, base) = (session.id.clone(), session.base.clone());
        let roots = seen.roots.as_deref().unwrap_or_default();
        let upstream = upstream(id, base, token.clone(), roots, Resolver::new())?;
        let mut config = config.clone();
        // The port that is configured may well be in use by the very relay that this is about.
        config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.listen_credential = false;
        // Its tunnels have ended when it goes; this is for their last words.
        config.limits.drain_timeout = config.limits.close_timeout;
        start_relay(&config, upstream).map(|running| Some(Self(running)))
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> Port {
        Port::open(self.0.local_addr())
    }

    /// What has gone through it so far.
    #[cfg(feature = "bench")]
    pub(crate) fn stats(&self) -> Stats {
        self.0.stats()
    }
}

/// Says of every round trip why there is none.
pub(super) fn skip(why: &str, tell: &mut dyn FnMut(Check)) {
    for step in [Step::RoundTrip, Step::PostQuantumHello, Step::EchHello] {
        tell(Check::skipped(step, why));
    }
}

/// Goes through `port` to the far end: once as a round trip, then once with each large hello.
pub(super) fn walk(port: &Port, far_end: &FarEnd, limits: &Limits, tell: &mut dyn FnMut(Check)) {
    let since = Instant::now();
    let first = trip(port, far_end, Kind::Ordinary, limits);
    if !far_end.named && matches!(&first, Err(trouble) if trouble.policy) {
        return skip(FORBIDDEN, tell);
    }
    let answers = far_end.echoes
        || matches!(
            first,
            Ok(Trip {
                came: Came::Tls(_),
                ..
            })
        );
    let failed = first.is_err();
    tell(ordinary(port, far_end, first).after(since.elapsed()));
    for (step, kind) in [
        (Step::PostQuantumHello, Kind::PostQuantum),
        (Step::EchHello, Kind::Ech),
    ] {
        if failed || !answers {
            let why = if failed {
                "the round trip failed".to_owned()
            } else {
                format!(
                    "{} answers no TLS; name a TLS port with --target",
                    far_end.authority
                )
            };
            tell(Check::skipped(step, why));
            continue;
        }
        let since = Instant::now();
        let met = trip(port, far_end, kind, limits);
        tell(hello(step, far_end, met).after(since.elapsed()));
    }
}

/// What one trip measured.
struct Trip {
    up: usize,
    down: usize,
    /// From asking for the tunnel to having it.
    opened: Duration,
    /// From the last byte up to the first byte down, if one came.
    first_byte: Option<Duration>,
    came: Came,
}

/// What came back.
enum Came {
    /// What was sent.
    Same,
    /// An answer in TLS.
    Tls(Answer),
    /// Something else.
    Other,
    /// The end, without a byte.
    End,
    /// Nothing in time.
    Silence,
}

/// What the relay's own phases may take, before it answers.
pub(crate) fn to_open(limits: &Limits) -> Duration {
    let phases = limits.connect_timeout.saturating_mul(5);
    phases.saturating_add(limits.opening_timeout)
}

/// One tunnel, bytes up, and what comes down.
fn trip(port: &Port, far_end: &FarEnd, kind: Kind, limits: &Limits) -> Result<Trip, Problem> {
    let target = &far_end.authority;
    let broke = |error: &io::Error, sent: usize| {
        Problem::new(
            format!("the tunnel to {target} broke with {sent} bytes sent up it: {error}"),
            "look at the lines about it in the logs of the relay (-v) and of the gateway",
        )
    };
    let random = |_| {
        Problem::new(
            "this machine has no randomness to give",
            "see that /dev/urandom is there",
        )
    };
    let bytes = if far_end.echoes && kind == Kind::Ordinary {
        (0..PAYLOAD).map(|n| (n % 251) as u8).collect()
    } else {
        client_hello(kind, &target.host).map_err(random)?
    };
    let pieces = if kind == Kind::Ordinary {
        &[usize::MAX][..]
    } else {
        &PIECES
    };
    let to_open = to_open(limits);
    // The far end's own handshake, behind a gateway that may first make one with it.
    let mut to_answer = limits.connect_timeout.saturating_mul(2);
    if !far_end.echoes && !far_end.speaks_tls && kind == Kind::Ordinary {
        to_answer = to_answer.min(QUIET);
    }

    let since = Instant::now();
    let mut tunnel = Tunnel::open(port, target, to_open)?;
    let opened = since.elapsed();
    tunnel
        .send(&bytes, pieces, to_answer)
        .map_err(|error| broke(&error, 0))?;
    let since = Instant::now();
    let deadline = Deadline::after(to_answer);
    let mut first_byte = None;
    let enough = |came: &[u8]| {
        if far_end.echoes && came.first() == bytes.first() {
            return came.len() >= bytes.len();
        }
        Answer::read(came).is_some()
    };
    let met = tunnel.receive(deadline, |came| {
        if !came.is_empty() {
            first_byte.get_or_insert_with(|| since.elapsed());
        }
        enough(came)
    });
    let timed_out = matches!(&met, Err(error) if error.kind() == io::ErrorKind::TimedOut);
    if let Err(error) = &met
        && !timed_out
    {
        return Err(broke(error, bytes.len()));
    }
    let down = tunnel.came();
    let came = match Answer::read(down) {
        _ if far_end.echoes && down == bytes => Came::Same,
        Some(Answer::NoTls) => Came::Other,
        Some(answer) => Came::Tls(answer),
        None if timed_out => Came::Silence,
        None if down.is_empty() => Came::End,
        _ => Came::Other,
    };
    let trip = Trip {
        up: bytes.len(),
        down: down.len(),
        opened,
        first_byte,
        came,
    };
    tunnel.end();
    Ok(trip)
}

/// The finding of the round trip itself.
fn ordinary(port: &Port, far_end: &FarEnd, met: Result<Trip, Problem>) -> Check {
    let step = Step::RoundTrip;
    let trip = match met {
        Ok(trip) => trip,
        Err(trouble) => return Check::wrong(step, trouble),
    };
    let (target, relay) = (&far_end.authority, port.address);
    let through = format!("a tunnel to {target} through {relay}");
    let finding = match trip.came {
        Came::Same => Check::ok(step, format!("{through}, {}, the same", trip.counts())),
        Came::Tls(answer) if !far_end.echoes => {
            Check::ok(step, format!("{through}, {}, {answer}", trip.counts()))
        }
        Came::Other if !far_end.echoes && !far_end.speaks_tls => {
            Check::ok(step, format!("{through}, {}, no TLS", trip.counts()))
        }
        Came::End | Came::Silence if !far_end.echoes && !far_end.speaks_tls => {
            Check::ok(step, format!("{through}, though nothing there answers TLS"))
        }
        Came::Tls(_) | Came::Other => {
            let what = format!("{through} stands, and what came back is not what belongs there");
            let remedy = "see what else answers for that host, and whether something on the way changes bytes";
            Check::wrong(step, Problem::new(what, remedy))
        }
        Came::End => {
            let what = format!("{through} stands, and the far end closed it without a byte");
            Check::wrong(
                step,
                Problem::new(what, "look at the gateway's log, and at the far end"),
            )
        }
        Came::Silence => {
            let what = format!("{through} stands, and nothing comes back");
            Check::wrong(
                step,
                Problem::new(what, "look at the gateway's log, and at the far end"),
            )
        }
    };
    trip.facts(finding)
}

/// The finding of a large hello, where an ordinary one was answered.
fn hello(step: Step, far_end: &FarEnd, met: Result<Trip, Problem>) -> Check {
    const REMEDY: &str = "something between here and the far end does not take a ClientHello that is large and comes in pieces: \
                          look at the gateway's log and for a middlebox; until then switch the feature off in the client";
    let trip = match met {
        Ok(trip) => trip,
        Err(trouble) => return Check::wrong(step, Problem::new(trouble.what, REMEDY)),
    };
    let up = trip.up;
    let finding = match trip.came {
        Came::Same => Check::ok(step, format!("{up} bytes in pieces, back as they were")),
        Came::Tls(answer) => Check::ok(step, format!("{up} bytes in pieces, {answer}")),
        Came::Other | Came::End | Came::Silence => {
            let how = match trip.came {
                Came::End => "closed without an answer",
                Came::Silence => "not answered",
                _ => "answered with what is no TLS",
            };
            let target = &far_end.authority;
            let what = format!(
                "a ClientHello of {up} bytes to {target} was {how}, and an ordinary one was answered"
            );
            Check::wrong(step, Problem::new(what, REMEDY))
        }
    };
    trip.facts(finding)
}

impl Trip {
    fn counts(&self) -> String {
        let (up, down) = (self.up, self.down);
        let first = self.first_byte.unwrap_or_default().as_millis();
        format!("{up} bytes up, {down} down, the first after {first} ms")
    }

    fn facts(&self, finding: Check) -> Check {
        let finding = finding
            .number("bytes_up", self.up)
            .number("bytes_down", self.down)
            .millis("opened_ms", self.opened);
        match self.first_byte {
            Some(after) => finding.millis("first_byte_ms", after),
            None => finding,
        }
    }
}
