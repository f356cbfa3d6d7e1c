//! Where the bytes of a tunnel move: read what can be taken, pass it through the layers, write what can be sent, wait.
//!
//! One thread owns both sockets. `raw` is the side without a WebSocket (the client at the relay, the target at the gateway),
//! `ws` the other. Back-pressure is one buffer per direction: while it is full, that direction is not read. How a tunnel
//! ends is `ending`, what time alone brings about is `silence`.

mod ending;
mod silence;

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use tungstenite::protocol::frame::coding::CloseCode;

use crate::config::Limits;
use crate::control::deadline::Deadline;
use crate::control::metrics::Counters;
use crate::control::outcome::{EndReason, TunnelSummary};
use crate::control::stop::Stop;
use crate::net::wait::{OVER, wait};
use crate::tunnel::buffer::Buffer;
use crate::tunnel::conn::Conn;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::keepalive::Keepalive;
use crate::tunnel::message::{PeerClose, Version, WsCodec};

/// How many busy turns may pass before the sockets are looked at all the same: while one side floods without a pause, the
/// other's small messages must not wait for its end. A turn moves half a MiB at most, so this is a few milliseconds.
const BUSY_TURNS: u32 = 4;

/// How much of a client's first bytes is held back at most while they are looked at.
const PEEK_LIMIT: usize = 64 << 10;

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the client to the target.
    Up,
    /// From the target to the client.
    Down,
}

/// Whose fault ended the stream.
enum Break {
    Raw(TunnelError),
    Ws(TunnelError),
}

/// What the loop does next.
enum Turn {
    Go,
    Done(EndReason),
}

/// One tunnel between two links.
pub(crate) struct Pump<'a> {
    role: Role,
    version: Version,
    limits: &'a Limits,
    stop: &'a Stop,
    counters: &'a Counters,
    raw: Conn,
    ws: Conn,
    /// From raw to ws.
    outbound: Buffer,
    /// From ws to raw.
    inbound: Buffer,
    life: Keepalive,
    /// The kernel watches over ws.
    guarded: bool,
    last_data: Instant,
    last_way: Option<Way>,
    /// When anything was last read or written, unless the memory for it has been given back since.
    stirred: Option<Instant>,
    /// Data moved since `last_data` was set.
    moved: bool,
    /// Something passed on was still waiting to be taken at the last wait.
    held_up: bool,
    /// What comes from ws is held back until it was looked at.
    peeking: bool,
    /// Turns since the sockets were last looked at.
    busy: u32,
    /// When it was last asked whether raw's peer answers.
    raw_asked: Instant,
    /// Something went to raw whose arrival is not known.
    raw_owes: bool,
    /// Raw takes nothing any more, and by when ws must have ended too.
    raw_gone: bool,
    patience: Option<Instant>,
    /// Raw's end was passed on to ws.
    raw_end_passed: bool,
    /// How it will have ended once the closing handshake is done, and by when that must be.
    closing: Option<(EndReason, Instant)>,
    /// The socket is over in both directions, and poll says so at every call.
    raw_over: bool,
    ws_over: bool,
    up: u64,
    down: u64,
}

/// What one tunnel shares with the others of its relay or gateway.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    /// Bounds in count and time.
    pub(crate) limits: &'a Limits,
    /// The stop request.
    pub(crate) stop: &'a Stop,
    /// The counters.
    pub(crate) counters: &'a Counters,
}

impl<'a> Pump<'a> {
    /// A pump, which is too large to be moved about, between `raw` and `ws`, whose message layer is in place. `outbound` and `inbound` hold what came early.
    pub(crate) fn new(
        role: Role,
        raw: Conn,
        ws: Conn,
        outbound: Buffer,
        inbound: Buffer,
        shared: Shared<'a>,
    ) -> Box<Self> {
        let now = Instant::now();
        let version = ws.messages().map_or(Version::V1, WsCodec::version);
        Box::new(Self {
            role,
            version,
            limits: shared.limits,
            stop: shared.stop,
            counters: shared.counters,
            raw,
            ws,
            outbound,
            inbound,
            life: Keepalive::new(shared.limits.keepalive, now),
            guarded: false,
            last_data: now,
            last_way: None,
            stirred: Some(now),
            moved: false,
            held_up: false,
            peeking: false,
            busy: 0,
            raw_asked: now,
            raw_owes: false,
            raw_gone: false,
            patience: None,
            raw_end_passed: false,
            closing: None,
            raw_over: false,
            ws_over: false,
            up: 0,
            down: 0,
        })
    }

    /// Runs until both directions have ended, one way or another.
    pub(crate) fn run(mut self: Box<Self>) -> TunnelSummary {
        // Silence begins here: before, there may have been a long handshake.
        self.last_data = Instant::now();
        let how = loop {
            match self.turn() {
                Ok(Turn::Go) => {}
                Ok(Turn::Done(how)) => break how,
                Err(fault) => break self.broken(fault),
            }
        };
        self.finish(how)
    }

    /// Runs until `decided` says that it has seen enough of what comes from ws, which is held back meanwhile, or until
    /// it will see no more: raw spoke first, or a direction ended.
    ///
    /// # Errors
    /// The tunnel ended meanwhile.
    pub(crate) fn peek(
        mut self: Box<Self>,
        mut decided: impl FnMut(&[u8]) -> bool,
    ) -> Result<Box<Self>, TunnelSummary> {
        self.peeking = true;
        while self.peeking {
            if self.nothing_to_peek_at() || decided(self.inbound.filled()) {
                self.peeking = false;
                break;
            }
            match self.turn() {
                Ok(Turn::Go) => {}
                Ok(Turn::Done(how)) => return Err(self.finish(how)),
                Err(fault) => {
                    let how = self.broken(fault);
                    return Err(self.finish(how));
                }
            }
        }
        Ok(self)
    }

    /// Whether whoever peeks need not go on: raw spoke first, or a direction ended.
    fn nothing_to_peek_at(&self) -> bool {
        let ended =
            self.raw.ended_by_peer() || self.ws.ended_by_peer() || self.closed_by_peer().is_some();
        // What raw said may have been passed on already.
        let raw_spoke = !self.outbound.is_empty() || self.last_way.is_some();
        ended || raw_spoke
    }

    /// Raw and ws, and what came from each and was not passed on yet: for putting TLS on both.
    pub(crate) fn parts(&mut self) -> (&mut Conn, &mut Conn, &mut Buffer, &mut Buffer) {
        (
            &mut self.raw,
            &mut self.ws,
            &mut self.outbound,
            &mut self.inbound,
        )
    }

    /// One turn: each direction gets at most one read and what writing it allows, so neither can starve the other.
    fn turn(&mut self) -> Result<Turn, Break> {
        if self.stop.requested().is_some_and(Deadline::passed) {
            // As far as it goes without waiting: the far end must learn that this was a cut.
            let _ = self
                .ws
                .close(CloseCode::Error)
                .and_then(|()| self.ws.flush());
            return Ok(Turn::Done(EndReason::Cut));
        }
        let held_back = self.inbound.len();
        if self.wants_raw() && self.raw.readable {
            self.raw.fill(&mut self.outbound).map_err(Break::Raw)?;
        }
        if self.wants_ws() && self.ws.readable {
            self.read_ws()?;
        }
        self.pass_on()?;
        self.flush()?;
        let before = (self.raw.ended(), self.ws.ended());
        if let Some(turn) = self.ends()? {
            return Ok(turn);
        }
        self.flush()?;
        if self.peeking && (self.inbound.len() > held_back || self.nothing_to_peek_at()) {
            // There is more to look at, and whoever looks is not in here.
            return Ok(Turn::Go);
        }
        let ended = before != (self.raw.ended(), self.ws.ended());
        let readable =
            (self.wants_raw() && self.raw.readable) || (self.wants_ws() && self.ws.readable);
        if ended || readable || self.can_pass_outbound() || self.can_pass_inbound() {
            self.busy += 1;
            if self.busy < BUSY_TURNS {
                return Ok(Turn::Go);
            }
            return self.pause(Some(Instant::now()));
        }
        self.pause(None)
    }

    fn flush(&mut self) -> Result<(), Break> {
        self.raw.flush().or_else(|fault| self.raw_failed(fault))?;
        self.ws.flush().or_else(|fault| self.ws_failed(fault))
    }

    fn read_ws(&mut self) -> Result<(), Break> {
        self.ws
            .fill(&mut self.inbound)
            .or_else(|fault| self.ws_failed(fault))?;
        if !self.raw_is_owed() {
            self.inbound.consume(self.inbound.len());
        }
        Ok(())
    }

    fn messages(&self) -> Option<&WsCodec> {
        self.ws.messages()
    }

    fn closed_by_peer(&self) -> Option<PeerClose> {
        self.messages().and_then(WsCodec::closed_by_peer)
    }

    fn close_sent(&self) -> bool {
        self.messages().is_some_and(WsCodec::close_sent)
    }

    /// Whether raw is to be read: its stream goes on, and what it said before has been passed on.
    fn wants_raw(&self) -> bool {
        !self.raw.ended_by_peer() && self.closing.is_none() && self.outbound.is_empty()
    }

    /// Whether ws is to be read: also for its control frames until the end, but only while raw takes its data.
    fn wants_ws(&self) -> bool {
        let room = self.inbound.is_empty() || (self.peeking && self.inbound.len() < PEEK_LIMIT);
        !self.ws.eof() && self.closed_by_peer().is_none() && room
    }

    fn can_pass_outbound(&self) -> bool {
        // Whoever peeks must see that raw spoke first.
        let may = !self.outbound.is_empty() && !self.peeking;
        may && self.ws.flushed() && self.ws.ready() && !self.close_sent()
    }

    fn can_pass_inbound(&self) -> bool {
        !self.inbound.is_empty() && self.raw.flushed() && !self.peeking
    }

    /// Hands each direction's bytes to the link that sends them.
    fn pass_on(&mut self) -> Result<(), Break> {
        let (out, back) = match self.role {
            Role::Client => (Way::Up, Way::Down),
            Role::Server => (Way::Down, Way::Up),
        };
        if self.can_pass_outbound() {
            self.count(self.outbound.len(), out);
            self.ws.seal(&mut self.outbound).map_err(Break::Ws)?;
        }
        if self.can_pass_inbound() {
            self.count(self.inbound.len(), back);
            self.raw.seal(&mut self.inbound).map_err(Break::Raw)?;
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize, way: Way) {
        let (own, shared) = match way {
            Way::Up => (&mut self.up, &self.counters.bytes_up),
            Way::Down => (&mut self.down, &self.counters.bytes_down),
        };
        *own += bytes as u64;
        Counters::add(shared, bytes as u64);
        self.last_way = Some(way);
        self.moved = true;
    }

    /// Waits until something can be done, `at_most` so long, and does what time alone asks for.
    fn pause(&mut self, at_most: Option<Instant>) -> Result<Turn, Break> {
        self.busy = 0;
        let now = Instant::now();
        self.note_activity(now);
        let draining = self.stop.requested();
        let until = at_most.or_else(|| self.next_event(draining, now));
        let interest = |link: &Conn, read| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read);
            flags.set(PollFlags::OUT, !link.flushed());
            flags
        };
        if self.wants_ws() {
            self.guard(false);
        }
        let raw_interest = interest(&self.raw, self.wants_raw());
        let ws_interest = interest(&self.ws, self.wants_ws());
        // A socket that is over says so at every poll: it is left out unless something is wanted of it.
        let raw_fd = if self.raw_over && raw_interest.is_empty() {
            self.stop.as_fd()
        } else {
            self.raw.fd()
        };
        let ws_fd = if self.ws_over && ws_interest.is_empty() {
            self.stop.as_fd()
        } else {
            self.ws.fd()
        };
        let mut fds = [
            PollFd::from_borrowed_fd(raw_fd, raw_interest),
            PollFd::from_borrowed_fd(ws_fd, ws_interest),
            PollFd::from_borrowed_fd(self.stop.wake_fd(draining), PollFlags::IN),
        ];
        wait(&mut fds, until).map_err(|error| Break::Ws(error.into()))?;
        let [raw, ws, _] = fds.map(|fd| fd.revents());
        self.raw.woken(raw);
        self.ws.woken(ws);
        if raw.intersects(OVER) && raw_interest.is_empty() {
            self.raw_over = true;
            // Nothing is read or written there now, so an error would go unseen for as long as the other side is slow.
            if let Some(error) = self.raw.error() {
                self.raw_failed(error.into())?;
            }
        }
        if ws.intersects(OVER) && ws_interest.is_empty() {
            self.ws_over = true;
            if let Some(error) = self.ws.error() {
                self.ws_failed(error.into())?;
            }
        }
        // What lies in the socket is heard before silence is judged.
        if ws.is_empty() {
            self.time_passed()?;
        }
        Ok(Turn::Go)
    }
}
