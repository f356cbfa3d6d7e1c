//! Round trips through a relay's port: bytes to a far end and back, and two kinds of `ClientHello`
//! that proxies are known to break.

use std::io;
use std::time::{Duration, Instant};

use super::check::{Check, Step};
use super::far_end::FarEnd;
use super::hello::{HelloKind, ServerResponse, client_hello};
use super::path::FORBIDDEN;
use crate::config::Limits;
use crate::control::deadline::Deadline;
use crate::probe::client::{Port, Tunnel};
use crate::probe::prepared::to_open;
use crate::probe::problem::Problem;

/// The bytes sent to the built-in origin: more than a TCP segment, less than a socket buffer.
const PAYLOAD: usize = 16 << 10;
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
    let why_not = match &first {
        Err(_) => Some("the round trip failed".to_owned()),
        Ok(trip) if far_end.echoes || matches!(trip.received, Received::Tls(_)) => None,
        Ok(_) => Some(format!(
            "{} does not speak TLS; name a TLS port with --target",
            far_end.authority
        )),
    };
    let check = match first {
        Ok(trip) => trip.facts(ordinary(port, far_end, &trip)),
        Err(problem) => Check::wrong(Step::RoundTrip, problem),
    };
    report(check.after(since.elapsed()));
    for (step, kind) in [
        (Step::PostQuantumHello, HelloKind::PostQuantum),
        (Step::EchHello, HelloKind::Ech),
    ] {
        if let Some(why) = &why_not {
            report(Check::skipped(step, why));
            continue;
        }
        let since = Instant::now();
        let check = match trip(port, far_end, kind, limits) {
            Ok(trip) => trip.facts(hello(step, far_end, &trip)),
            Err(problem) => Check::wrong(step, Problem::new(problem.what, HELLO_REMEDY)),
        };
        report(check.after(since.elapsed()));
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
    let pieces = match kind {
        HelloKind::Ordinary => &[usize::MAX][..],
        _ => &PIECES,
    };
    // Twice: an intercepting gateway may first make a handshake with the far end.
    let mut to_answer = limits.connect_timeout.saturating_mul(2);
    if far_end.may_be_silent() && kind == HelloKind::Ordinary {
        to_answer = to_answer.min(QUIET);
    }

    let since = Instant::now();
    let mut tunnel = Tunnel::open(port, target, to_open(limits))?;
    let opened = since.elapsed();
    tunnel
        .send(&bytes, pieces, to_answer)
        .map_err(|error| broke(&error, 0))?;
    let since = Instant::now();
    let mut first_byte = None;
    let result = tunnel.receive(Deadline::after(to_answer), |received| {
        if !received.is_empty() {
            first_byte.get_or_insert_with(|| since.elapsed());
        }
        if far_end.echoes && received.first() == bytes.first() {
            return received.len() >= bytes.len();
        }
        ServerResponse::read(received).is_some()
    });
    let timed_out = match result {
        Ok(()) => false,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => true,
        Err(error) => return Err(broke(&error, bytes.len())),
    };
    let down = tunnel.received();
    let received = match ServerResponse::read(down) {
        _ if far_end.echoes && down == bytes => Received::Same,
        Some(ServerResponse::NoTls) => Received::Other,
        Some(answer) => Received::Tls(answer),
        None if timed_out => Received::Silence,
        None if down.is_empty() => Received::End,
        None => Received::Other,
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
fn ordinary(port: &Port, far_end: &FarEnd, trip: &RoundTrip) -> Check {
    const CHECK_LOG: &str = "check the gateway's log and the far end";
    let through = format!("a tunnel to {} through {}", far_end.authority, port.address);
    let found = match &trip.received {
        Received::Same => Ok(format!("{}, unchanged", trip.counts())),
        Received::Tls(answer) if !far_end.echoes => Ok(format!("{}, {answer}", trip.counts())),
        Received::Other if far_end.may_be_silent() => Ok(format!("{}, no TLS", trip.counts())),
        Received::End | Received::Silence if far_end.may_be_silent() => {
            Ok("; the far end does not answer TLS".to_owned())
        }
        Received::Tls(_) | Received::Other => Err((
            "the response is not the expected one",
            "check what answers for that host, and whether something on the path changes bytes",
        )),
        Received::End => Err(("the far end closed it without a response", CHECK_LOG)),
        Received::Silence => Err(("there is no response", CHECK_LOG)),
    };
    match found {
        Ok(detail) => Check::ok(Step::RoundTrip, through + &detail),
        Err((what, remedy)) => {
            let what = format!("{through} was opened, but {what}");
            Check::wrong(Step::RoundTrip, Problem::new(what, remedy))
        }
    }
}

const HELLO_REMEDY: &str = "something between this machine and the far end breaks a large ClientHello in segments: \
                            check the gateway's log and look for a middlebox; until it is fixed, disable the feature in the client";

/// The check for a large hello, made only if an ordinary one was answered.
fn hello(step: Step, far_end: &FarEnd, trip: &RoundTrip) -> Check {
    let (up, target) = (trip.up, &far_end.authority);
    let how = match &trip.received {
        Received::Same => {
            return Check::ok(step, format!("{up} bytes in segments, returned unchanged"));
        }
        Received::Tls(answer) => {
            return Check::ok(step, format!("{up} bytes in segments, {answer}"));
        }
        Received::End => "closed without an answer",
        Received::Silence => "not answered",
        Received::Other => "answered with something that is not TLS",
    };
    let what = format!(
        "a ClientHello of {up} bytes to {target} was {how}, although an ordinary one was answered"
    );
    Check::wrong(step, Problem::new(what, HELLO_REMEDY))
}

impl RoundTrip {
    fn counts(&self) -> String {
        let (up, down) = (self.up, self.down);
        let first = self.first_byte.unwrap_or_default().as_millis();
        format!(", {up} bytes up, {down} bytes down, first byte after {first} ms")
    }

    fn facts(&self, check: Check) -> Check {
        let check = check
            .fact("bytes_up", self.up)
            .fact("bytes_down", self.down)
            .fact("opened_ms", self.opened.as_millis() as u64);
        match self.first_byte {
            Some(after) => check.fact("first_byte_ms", after.as_millis() as u64),
            None => check,
        }
    }
}
