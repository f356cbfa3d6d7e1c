//! Where the bytes of a tunnel move: read what can be taken, pass it through the layers, write what can be sent, wait.
//!
//! One thread owns both sockets. `raw` is the side without a WebSocket (the client at the relay, the target at the gateway),
//! `ws` the other. Back-pressure is one buffer per direction: while it is full, that direction is not read. How a tunnel
//! ends is `ending`, what time alone brings about is `silence`.

use std::ops::ControlFlow;
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
use crate::tunnel::ws_codec::{PeerClose, Version, WsCodec};

/// How many busy turns may pass before the sockets are looked at all the same: while one side floods without a pause, the
/// other's small messages must not wait for its end. A turn moves half a MiB at most, so this is a few milliseconds.
const BUSY_TURNS: u32 = 4;

/// How much of a client's first bytes is held back at most while they are looked at.
const PEEK_LIMIT: usize = 64 << 10;

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client to the target.
    Up,
    /// From the target to the client.
    Down,
}

/// Whose fault ended the stream.
pub(super) enum SideError {
    Tcp(TunnelError),
    Ws(TunnelError),
}

/// One tunnel between two links.
pub(crate) struct Pump<'a> {
    pub(super) role: Role,
    pub(super) version: Version,
    pub(super) limits: &'a Limits,
    pub(super) stop: &'a Stop,
    pub(super) counters: &'a Counters,
    pub(super) tcp: Conn,
    pub(super) ws: Conn,
    /// From raw to ws.
    pub(super) outbound: Buffer,
    /// From ws to raw.
    pub(super) inbound: Buffer,
    pub(super) keepalive: Keepalive,
    /// The kernel watches over ws.
    pub(super) user_timeout_set: bool,
    pub(super) last_data: Instant,
    pub(super) last_direction: Option<Direction>,
    /// When anything was last read or written, unless the memory for it has been given back since.
    pub(super) last_activity: Option<Instant>,
    /// Data moved since `last_data` was set.
    pub(super) data_moved: bool,
    /// Something passed on was still waiting to be taken at the last wait.
    pub(super) blocked: bool,
    /// What comes from ws is held back until it was looked at.
    pub(super) peeking: bool,
    /// Turns since the sockets were last looked at.
    pub(super) busy_turns: u32,
    /// When it was last asked whether raw's peer answers.
    pub(super) delivery_checked: Instant,
    /// Something went to raw whose arrival is not known.
    pub(super) unacked: bool,
    /// Raw takes nothing any more, and by when ws must have ended too.
    pub(super) tcp_abandoned: bool,
    pub(super) ws_deadline: Option<Instant>,
    /// Raw's end was passed on to ws.
    pub(super) tcp_fin_forwarded: bool,
    /// How it will have ended once the closing handshake is done, and by when that must be.
    pub(super) closing: Option<(EndReason, Instant)>,
    /// The socket is over in both directions, and poll says so at every call.
    pub(super) tcp_over: bool,
    pub(super) ws_over: bool,
    pub(super) up: u64,
    pub(super) down: u64,
}

/// What one tunnel shares with the others of its relay or gateway.
#[derive(Clone, Copy)]
pub(crate) struct PumpContext<'a> {
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
        tcp: Conn,
        ws: Conn,
        outbound: Buffer,
        inbound: Buffer,
        shared: PumpContext<'a>,
    ) -> Box<Self> {
        let now = Instant::now();
        let version = ws.websocket().map_or(Version::V1, WsCodec::version);
        Box::new(Self {
            role,
            version,
            limits: shared.limits,
            stop: shared.stop,
            counters: shared.counters,
            tcp,
            ws,
            outbound,
            inbound,
            keepalive: Keepalive::new(shared.limits.keepalive, now),
            user_timeout_set: false,
            last_data: now,
            last_direction: None,
            last_activity: Some(now),
            data_moved: false,
            blocked: false,
            peeking: false,
            busy_turns: 0,
            delivery_checked: now,
            unacked: false,
            tcp_abandoned: false,
            ws_deadline: None,
            tcp_fin_forwarded: false,
            closing: None,
            tcp_over: false,
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
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(how)) => break how,
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
            if self.peeking_is_over() || decided(self.inbound.filled()) {
                self.peeking = false;
                break;
            }
            match self.turn() {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(how)) => return Err(self.finish(how)),
                Err(fault) => {
                    let how = self.broken(fault);
                    return Err(self.finish(how));
                }
            }
        }
        Ok(self)
    }

    /// Whether whoever peeks need not go on: raw spoke first, or a direction ended.
    fn peeking_is_over(&self) -> bool {
        let ended =
            self.tcp.peer_finished() || self.ws.peer_finished() || self.peer_close().is_some();
        // What raw said may have been passed on already.
        let tcp_spoke = !self.outbound.is_empty() || self.last_direction.is_some();
        ended || tcp_spoke
    }

    /// Raw and ws, and what came from each and was not passed on yet: for putting TLS on both.
    pub(crate) fn parts(&mut self) -> (&mut Conn, &mut Conn, &mut Buffer, &mut Buffer) {
        (
            &mut self.tcp,
            &mut self.ws,
            &mut self.outbound,
            &mut self.inbound,
        )
    }

    /// One turn: each direction gets at most one read and what writing it allows, so neither can starve the other.
    fn turn(&mut self) -> Result<ControlFlow<EndReason>, SideError> {
        if self.stop.requested().is_some_and(Deadline::passed) {
            // As far as it goes without waiting: the far end must learn that this was a cut.
            let _ = self
                .ws
                .send_close(CloseCode::Error)
                .and_then(|()| self.ws.flush());
            return Ok(ControlFlow::Break(EndReason::Cut));
        }
        let inbound_before = self.inbound.len();
        if self.reads_tcp() && self.tcp.readable {
            self.tcp.fill(&mut self.outbound).map_err(SideError::Tcp)?;
        }
        if self.reads_ws() && self.ws.readable {
            self.read_ws()?;
        }
        self.forward()?;
        self.flush()?;
        let before = (self.tcp.fin_sent(), self.ws.fin_sent());
        if let Some(turn) = self.handle_ends()? {
            return Ok(turn);
        }
        self.flush()?;
        if self.peeking && (self.inbound.len() > inbound_before || self.peeking_is_over()) {
            // There is more to look at, and whoever looks is not in here.
            return Ok(ControlFlow::Continue(()));
        }
        let ended = before != (self.tcp.fin_sent(), self.ws.fin_sent());
        let readable =
            (self.reads_tcp() && self.tcp.readable) || (self.reads_ws() && self.ws.readable);
        if ended || readable || self.can_forward_outbound() || self.can_forward_inbound() {
            self.busy_turns += 1;
            if self.busy_turns < BUSY_TURNS {
                return Ok(ControlFlow::Continue(()));
            }
            return self.pause(Some(Instant::now()));
        }
        self.pause(None)
    }

    pub(super) fn flush(&mut self) -> Result<(), SideError> {
        self.tcp.flush().or_else(|fault| self.tcp_failed(fault))?;
        self.ws.flush().or_else(|fault| self.ws_failed(fault))
    }

    fn read_ws(&mut self) -> Result<(), SideError> {
        self.ws
            .fill(&mut self.inbound)
            .or_else(|fault| self.ws_failed(fault))?;
        if !self.tcp_needs_data() {
            self.inbound.consume(self.inbound.len());
        }
        Ok(())
    }

    pub(super) fn codec(&self) -> Option<&WsCodec> {
        self.ws.websocket()
    }

    pub(super) fn peer_close(&self) -> Option<PeerClose> {
        self.codec().and_then(WsCodec::peer_close)
    }

    pub(super) fn close_queued(&self) -> bool {
        self.codec().is_some_and(WsCodec::close_queued)
    }

    /// Whether raw is to be read: its stream goes on, and what it said before has been passed on.
    pub(super) fn reads_tcp(&self) -> bool {
        !self.tcp.peer_finished() && self.closing.is_none() && self.outbound.is_empty()
    }

    /// Whether ws is to be read: also for its control frames until the end, but only while raw takes its data.
    pub(super) fn reads_ws(&self) -> bool {
        let room = self.inbound.is_empty() || (self.peeking && self.inbound.len() < PEEK_LIMIT);
        !self.ws.eof() && self.peer_close().is_none() && room
    }

    pub(super) fn can_forward_outbound(&self) -> bool {
        // Whoever peeks must see that raw spoke first.
        let may = !self.outbound.is_empty() && !self.peeking;
        may && self.ws.flushed() && self.ws.accepts_data() && !self.close_queued()
    }

    pub(super) fn can_forward_inbound(&self) -> bool {
        !self.inbound.is_empty() && self.tcp.flushed() && !self.peeking
    }

    /// Hands each direction's bytes to the link that sends them.
    pub(super) fn forward(&mut self) -> Result<(), SideError> {
        let (out, back) = match self.role {
            Role::Client => (Direction::Up, Direction::Down),
            Role::Server => (Direction::Down, Direction::Up),
        };
        if self.can_forward_outbound() {
            self.count(self.outbound.len(), out);
            self.ws.seal(&mut self.outbound).map_err(SideError::Ws)?;
        }
        if self.can_forward_inbound() {
            self.count(self.inbound.len(), back);
            self.tcp.seal(&mut self.inbound).map_err(SideError::Tcp)?;
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize, direction: Direction) {
        let (own, shared) = match direction {
            Direction::Up => (&mut self.up, &self.counters.bytes_up),
            Direction::Down => (&mut self.down, &self.counters.bytes_down),
        };
        *own += bytes as u64;
        Counters::add(shared, bytes as u64);
        self.last_direction = Some(direction);
        self.data_moved = true;
    }

    /// Waits until something can be done, `at_most` so long, and does what time alone asks for.
    fn pause(&mut self, at_most: Option<Instant>) -> Result<ControlFlow<EndReason>, SideError> {
        self.busy_turns = 0;
        let now = Instant::now();
        self.record_activity(now);
        let draining = self.stop.requested();
        let until = at_most.or_else(|| self.next_timer(draining, now));
        let interest = |conn: &Conn, read| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read);
            flags.set(PollFlags::OUT, !conn.flushed());
            flags
        };
        if self.reads_ws() {
            self.set_user_timeout(false);
        }
        let tcp_interest = interest(&self.tcp, self.reads_tcp());
        let ws_interest = interest(&self.ws, self.reads_ws());
        // A socket that is over says so at every poll: it is left out unless something is wanted of it.
        let tcp_fd = if self.tcp_over && tcp_interest.is_empty() {
            self.stop.as_fd()
        } else {
            self.tcp.fd()
        };
        let ws_fd = if self.ws_over && ws_interest.is_empty() {
            self.stop.as_fd()
        } else {
            self.ws.fd()
        };
        let mut fds = [
            PollFd::from_borrowed_fd(tcp_fd, tcp_interest),
            PollFd::from_borrowed_fd(ws_fd, ws_interest),
            PollFd::from_borrowed_fd(self.stop.wake_fd(draining), PollFlags::IN),
        ];
        wait(&mut fds, until).map_err(|error| SideError::Ws(error.into()))?;
        let [tcp, ws, _] = fds.map(|fd| fd.revents());
        self.tcp.set_readiness(tcp);
        self.ws.set_readiness(ws);
        if tcp.intersects(OVER) && tcp_interest.is_empty() {
            self.tcp_over = true;
            // Nothing is read or written there now, so an error would go unseen for as long as the other side is slow.
            if let Some(error) = self.tcp.error() {
                self.tcp_failed(error.into())?;
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
            self.on_timer()?;
        }
        Ok(ControlFlow::Continue(()))
    }
}
