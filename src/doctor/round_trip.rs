//! Round trips through a relay's port: bytes to a far end and back, and two kinds of `ClientHello`
//! that proxies are known to break.

use std::io;
use std::time::{Duration, Instant};

use super::check::{Check, Step};
use super::far_end::FarEnd;
use super::hello::{HelloKind, ServerResponse, client_hello};
use crate::config::Limits;
use crate::control::deadline::Deadline;
use crate::probe::client::{Port, Tunnel};
use crate::probe::problem::Problem;
use crate::probe::relay::to_open;

/// The bytes sent to the built-in origin: more than a TCP segment, less than a socket buffer.
const PAYLOAD: usize = 16 << 10;
/// The reason for skipping if the gateway's policy forbids the default far end.
pub(super) const FORBIDDEN: &str =
    "the gateway's policy forbids its own host; name a far end with --target HOST:PORT";
/// How long to wait for a response that the far end does not have to send.
const QUIET: Duration = Duration::from_secs(3);
/// The segmentation of a large hello: single bytes first, cuts inside the record and message
/// headers, then larger pieces.
const PIECES: [usize; 9] = [1, 1, 2, 1, 3, 31, 97, 1, 509];

/// Reports every round trip as skipped.
pub(super) fn skip(why: &str, report: &mut dyn FnMut(Check)) {
    for step in [Step::RoundTrip, Step::PostQuantumHello, Step::EchHello] {
        report(Check::skipped(step, why));
    }
}

/// Makes the ordinary round trip to the far end, then one with each large hello.
pub(super) fn check_all(
    port: &Port,
    far_end: &FarEnd,
    limits: &Limits,
    report: &mut dyn FnMut(Check),
) {
    let since = Instant::now();
    let first = trip(port, far_end, HelloKind::Ordinary, limits);
    if !far_end.named && matches!(&first, Err(problem) if problem.policy) {
        return skip(FORBIDDEN, report);
    }
    let answers = far_end.echoes
        || matches!(
            first,
            Ok(RoundTrip {
                received: Received::Tls(_),
                ..
            })
        );
    let failed = first.is_err();
    report(ordinary(port, far_end, first).after(since.elapsed()));
    for (step, kind) in [
        (Step::PostQuantumHello, HelloKind::PostQuantum),
        (Step::EchHello, HelloKind::Ech),
    ] {
        if failed || !answers {
            let why = if failed {
                "the round trip failed".to_owned()
            } else {
                format!(
                    "{} does not speak TLS; name a TLS port with --target",
                    far_end.authority
                )
            };
            report(Check::skipped(step, why));
            continue;
        }
        let since = Instant::now();
        let result = trip(port, far_end, kind, limits);
        report(hello(step, far_end, result).after(since.elapsed()));
    }
}

/// The measurements of one round trip.
struct RoundTrip {
    up: usize,
    down: usize,
    /// The time from the CONNECT request to the open tunnel.
    opened: Duration,
    /// The time from the last byte sent to the first byte received, if there was one.
    first_byte: Option<Duration>,
    received: Received,
}

/// What was received.
enum Received {
    /// The bytes that were sent.
    Same,
    /// A TLS response.
    Tls(ServerResponse),
    /// Something else.
    Other,
    /// The end of the stream, without a byte.
    End,
    /// Nothing before the deadline.
    Silence,
}

/// Opens one tunnel, sends bytes and reads the response.
fn trip(
    port: &Port,
    far_end: &FarEnd,
    kind: HelloKind,
    limits: &Limits,
) -> Result<RoundTrip, Problem> {
    let target = &far_end.authority;
    let broke = |error: &io::Error, sent: usize| {
        Problem::new(
            format!("the tunnel to {target} broke after {sent} bytes were sent: {error}"),
            "read the log lines of this tunnel at the relay (-v) and at the gateway",
        )
    };
    let random = |_| {
        Problem::new(
            "the kernel gives no random bytes",
            "check that getrandom(2) is permitted",
        )
    };
    let bytes = if far_end.echoes && kind == HelloKind::Ordinary {
        (0..PAYLOAD).map(|n| (n % 251) as u8).collect()
    } else {
        client_hello(kind, &target.host).map_err(random)?
    };
    let pieces = if kind == HelloKind::Ordinary {
        &[usize::MAX][..]
    } else {
        &PIECES
    };
    let to_open = to_open(limits);
    // Twice: an intercepting gateway may first make a handshake with the far end.
    let mut to_answer = limits.connect_timeout.saturating_mul(2);
    if !far_end.echoes && !far_end.speaks_tls && kind == HelloKind::Ordinary {
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
    let enough = |received: &[u8]| {
        if far_end.echoes && received.first() == bytes.first() {
            return received.len() >= bytes.len();
        }
        ServerResponse::read(received).is_some()
    };
    let result = tunnel.receive(deadline, |received| {
        if !received.is_empty() {
            first_byte.get_or_insert_with(|| since.elapsed());
        }
        enough(received)
    });
    let timed_out = matches!(&result, Err(error) if error.kind() == io::ErrorKind::TimedOut);
    if let Err(error) = &result
        && !timed_out
    {
        return Err(broke(error, bytes.len()));
    }
    let down = tunnel.received();
    let received = match ServerResponse::read(down) {
        _ if far_end.echoes && down == bytes => Received::Same,
        Some(ServerResponse::NoTls) => Received::Other,
        Some(answer) => Received::Tls(answer),
        None if timed_out => Received::Silence,
        None if down.is_empty() => Received::End,
        _ => Received::Other,
    };
    let trip = RoundTrip {
        up: bytes.len(),
        down: down.len(),
        opened,
        first_byte,
        received,
    };
    tunnel.end();
    Ok(trip)
}

/// The check for the ordinary round trip.
fn ordinary(port: &Port, far_end: &FarEnd, result: Result<RoundTrip, Problem>) -> Check {
    let step = Step::RoundTrip;
    let trip = match result {
        Ok(trip) => trip,
        Err(problem) => return Check::wrong(step, problem),
    };
    let (target, relay) = (&far_end.authority, port.address);
    let through = format!("a tunnel to {target} through {relay}");
    let check = match trip.received {
        Received::Same => Check::ok(step, format!("{through}, {}, unchanged", trip.counts())),
        Received::Tls(answer) if !far_end.echoes => {
            Check::ok(step, format!("{through}, {}, {answer}", trip.counts()))
        }
        Received::Other if !far_end.echoes && !far_end.speaks_tls => {
            Check::ok(step, format!("{through}, {}, no TLS", trip.counts()))
        }
        Received::End | Received::Silence if !far_end.echoes && !far_end.speaks_tls => {
            Check::ok(step, format!("{through}; the far end does not answer TLS"))
        }
        Received::Tls(_) | Received::Other => {
            let what = format!("{through} was opened, but the response is not the expected one");
            let remedy =
                "check what answers for that host, and whether something on the path changes bytes";
            Check::wrong(step, Problem::new(what, remedy))
        }
        Received::End => {
            let what =
                format!("{through} was opened, but the far end closed it without a response");
            Check::wrong(
                step,
                Problem::new(what, "check the gateway's log and the far end"),
            )
        }
        Received::Silence => {
            let what = format!("{through} was opened, but there is no response");
            Check::wrong(
                step,
                Problem::new(what, "check the gateway's log and the far end"),
            )
        }
    };
    trip.facts(check)
}

/// The check for a large hello, made only if an ordinary one was answered.
fn hello(step: Step, far_end: &FarEnd, result: Result<RoundTrip, Problem>) -> Check {
    const REMEDY: &str = "something between this machine and the far end breaks a large ClientHello in segments: \
                          check the gateway's log and look for a middlebox; until it is fixed, disable the feature in the client";
    let trip = match result {
        Ok(trip) => trip,
        Err(problem) => return Check::wrong(step, Problem::new(problem.what, REMEDY)),
    };
    let up = trip.up;
    let check = match trip.received {
        Received::Same => Check::ok(step, format!("{up} bytes in segments, returned unchanged")),
        Received::Tls(answer) => Check::ok(step, format!("{up} bytes in segments, {answer}")),
        Received::Other | Received::End | Received::Silence => {
            let how = match trip.received {
                Received::End => "closed without an answer",
                Received::Silence => "not answered",
                _ => "answered with something that is not TLS",
            };
            let target = &far_end.authority;
            let what = format!(
                "a ClientHello of {up} bytes to {target} was {how}, although an ordinary one was answered"
            );
            Check::wrong(step, Problem::new(what, REMEDY))
        }
    };
    trip.facts(check)
}

impl RoundTrip {
    fn counts(&self) -> String {
        let (up, down) = (self.up, self.down);
        let first = self.first_byte.unwrap_or_default().as_millis();
        format!("{up} bytes up, {down} bytes down, first byte after {first} ms")
    }

    fn facts(&self, check: Check) -> Check {
        let check = check
            .number("bytes_up", self.up)
            .number("bytes_down", self.down)
            .millis("opened_ms", self.opened);
        match self.first_byte {
            Some(after) => check.millis("first_byte_ms", after),
            None => check,
        }
    }
}
