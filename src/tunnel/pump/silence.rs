//! What time alone brings about: pings and the verdict on a silent peer, the memory of a silent tunnel given back, and the
//! silence that ends a tunnel.

use std::mem;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use super::{Break, Pump, Way};
use crate::control::deadline::Deadline;
use crate::control::outcome::EndReason;
use crate::control::phase::Phase;
use crate::net::sockets::Delivery;
use crate::sys::memory;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::keepalive::KeepaliveAction;
use crate::tunnel::message::Version;

/// How long a tunnel must have been silent, without so much as a ping, before the memory that it does not need is given back.
const SHED_AFTER: Duration = Duration::from_millis(300);
/// As many keepalive intervals in which a peer acknowledged nothing of what is on its way end the tunnel. It is looked once an
/// interval, so that three may have passed.
const UNANSWERED: u32 = 2;

impl Pump<'_> {
    pub(super) fn note_activity(&mut self, now: Instant) {
        let raw_stirred = mem::take(&mut self.raw.heard) | mem::take(&mut self.raw.sent);
        if self.ws.sent || self.ws.heard || raw_stirred {
            self.stirred = Some(now);
        }
        if mem::take(&mut self.ws.sent) {
            self.life.sent(now);
        }
        if mem::take(&mut self.ws.heard) {
            self.life.heard(now);
        }
        if raw_stirred {
            self.raw_owes = true;
        }
        // What was passed on has moved only when it is taken: by a slow reader, that may be much later.
        let held_up = !self.raw.flushed() || !self.ws.flushed();
        let taken = mem::replace(&mut self.held_up, held_up) && !held_up;
        if mem::take(&mut self.moved) || taken {
            self.last_data = now;
        }
    }

    /// When something is to be done although no socket stirs.
    pub(super) fn next_event(&self, draining: Option<Deadline>, now: Instant) -> Option<Instant> {
        let mut events = [None; 7];
        events[0] = self.life.due();
        events[1] = self
            .closing
            .as_ref()
            .map(|(_, until)| *until)
            .filter(|until| *until > now);
        events[2] = self.stirred.map(|at| at + SHED_AFTER);
        events[3] = self.silence_ends_it().map(|(at, _)| at);
        events[4] = draining.and_then(Deadline::instant);
        events[5] = self.patience.filter(|at| *at > now);
        events[6] = self.raw_due();
        events.into_iter().flatten().min()
    }

    /// When silence ends the tunnel, and how; `None` while something is still on its way, however slowly it is taken.
    fn silence_ends_it(&self) -> Option<(Instant, EndReason)> {
        if self.closing.is_some() || !self.at_rest() {
            return None;
        }
        let idle = self.limits.idle_timeout;
        let waits_for_an_answer = self.last_way == Some(Way::Up);
        let stopped = self.stop.requested().is_some() && !waits_for_an_answer;
        let ends = [
            stopped.then_some((self.limits.drain_silence, EndReason::Stopped)),
            (!idle.is_zero()).then_some((idle, EndReason::Idle)),
            self.lingering()
                .then_some((self.limits.linger, EndReason::LingerExpired)),
        ];
        let ends = ends.into_iter().flatten();
        ends.filter_map(|(after, how)| Some((self.last_data.checked_add(after)?, how)))
            .min_by_key(|(at, _)| *at)
    }

    /// Whether all that came has been passed on and taken.
    fn at_rest(&self) -> bool {
        let passed_on = self.outbound.is_empty() && self.inbound.is_empty();
        passed_on && self.raw.flushed() && self.ws.flushed()
    }

    /// Version 1 at the relay, after the client's end of stream.
    fn lingering(&self) -> bool {
        self.version == Version::V1
            && self.role == Role::Client
            && self.raw_end_passed
            && self.closing.is_none()
    }

    pub(super) fn time_passed(&mut self) -> Result<(), Break> {
        let now = Instant::now();
        let reading = self.wants_ws();
        match self.life.verdict(now, reading) {
            KeepaliveAction::Ping => {
                self.guard(!reading && self.ws.flushed() && !self.ws.unsent());
                if !reading {
                    self.watch_ws()?;
                }
                if !self.close_sent() {
                    self.ws.ping().map_err(Break::Ws)?;
                }
            }
            KeepaliveAction::Dead => self.ws_failed(TunnelError::TimedOut(Phase::Stream))?,
            KeepaliveAction::Wait => {}
        }
        self.watch_raw(now)?;
        if self.stirred.is_some_and(|at| at + SHED_AFTER <= now) {
            self.stirred = None;
            self.outbound.shed();
            self.inbound.shed();
            self.raw.shed();
            self.ws.shed();
            memory::give_back_stack();
        }
        match self.silence_ends_it() {
            // The reset to come would take it from the client.
            Some((at, EndReason::LingerExpired)) if at <= now && self.raw.unsent() => {
                self.last_data = now;
                Ok(())
            }
            Some((at, how)) if at <= now => {
                let code = if how == EndReason::LingerExpired {
                    CloseCode::Normal
                } else {
                    // The end of a tunnel that has nothing to say. Our own side gets its FIN when the far end has
                    // answered: what it sent before it knew of this is delivered first.
                    CloseCode::Away
                };
                self.close(code, how)
            }
            _ => Ok(()),
        }
    }

    /// When raw's peer is to be asked after.
    fn raw_due(&self) -> Option<Instant> {
        let interval = self.limits.keepalive;
        let asks = self.raw_owes && !interval.is_zero();
        asks.then(|| self.raw_asked.checked_add(interval)).flatten()
    }

    /// There are no pings on raw. The kernel's probes find a peer that vanished while the connection was silent; one that
    /// vanished with bytes on their way shows in the kernel's retransmissions. Neither a slow reader does that, nor one that
    /// does not read at all: it acknowledges every look at its closed window.
    fn watch_raw(&mut self, now: Instant) -> Result<(), Break> {
        if self.raw_due().is_none_or(|due| now < due) {
            return Ok(());
        }
        self.raw_asked = now;
        match self
            .raw
            .delivery(self.limits.keepalive.saturating_mul(UNANSWERED))
        {
            Delivery::Unanswered => self.raw_failed(TunnelError::TimedOut(Phase::Stream)),
            Delivery::UnderWay => Ok(()),
            Delivery::Done => {
                self.raw_owes = false;
                Ok(())
            }
        }
    }

    /// Where the kernel cannot watch over ws, since more waits there than its peer has room for, its retransmissions are
    /// looked at instead: once in each interval in which nothing was to be heard.
    fn watch_ws(&mut self) -> Result<(), Break> {
        match self
            .ws
            .delivery(self.limits.keepalive.saturating_mul(UNANSWERED))
        {
            Delivery::Unanswered => self.ws_failed(TunnelError::TimedOut(Phase::Stream)),
            Delivery::UnderWay | Delivery::Done => Ok(()),
        }
    }

    /// Has the kernel watch over the peer while we do not read: our pings must be acknowledged. But only while it takes them.
    /// Linux counts the time that a peer's window is closed against its user timeout, however alive the peer is, and a window
    /// is closed for as long as a slow reader likes.
    pub(super) fn guard(&mut self, on: bool) {
        if mem::replace(&mut self.guarded, on) != on {
            let timeout = self.limits.keepalive.saturating_mul(3);
            self.ws
                .set_user_timeout(if on { timeout } else { Duration::ZERO });
        }
    }
}
