//! What time alone brings about: pings and the verdict on a silent peer, the memory of a silent tunnel given back, and the
//! silence that ends a tunnel.

use std::mem;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use super::run::{Direction, Pump, SideError};
use crate::control::deadline::Deadline;
use crate::control::outcome::EndReason;
use crate::control::phase::Phase;
use crate::net::sockets::Delivery;
use crate::sys::memory;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::keepalive::KeepaliveAction;
use crate::tunnel::ws_codec::Version;

/// How long a tunnel must have been silent, without so much as a ping, before the memory that it does not need is given back.
const SHED_AFTER: Duration = Duration::from_millis(300);
/// As many keepalive intervals in which a peer acknowledged nothing of what is on its way end the tunnel. It is looked once an
/// interval, so that three may have passed.
const UNANSWERED: u32 = 2;

impl Pump<'_> {
    pub(super) fn record_activity(&mut self, now: Instant) {
        let tcp_active = mem::take(&mut self.tcp.received) | mem::take(&mut self.tcp.sent);
        if self.ws.sent || self.ws.received || tcp_active {
            self.last_activity = Some(now);
        }
        if mem::take(&mut self.ws.sent) {
            self.keepalive.on_sent(now);
        }
        if mem::take(&mut self.ws.received) {
            self.keepalive.on_received(now);
        }
        if tcp_active {
            self.unacked = true;
        }
        // What was passed on has moved only when it is taken: by a slow reader, that may be much later.
        let blocked = !self.tcp.flushed() || !self.ws.flushed();
        let delivered = mem::replace(&mut self.blocked, blocked) && !blocked;
        if mem::take(&mut self.data_moved) || delivered {
            self.last_data = now;
        }
    }

    /// When something is to be done although no socket stirs.
    pub(super) fn next_timer(&self, draining: Option<Deadline>, now: Instant) -> Option<Instant> {
        let mut events = [None; 7];
        events[0] = self.keepalive.next_check();
        events[1] = self
            .closing
            .as_ref()
            .map(|(_, until)| *until)
            .filter(|until| *until > now);
        events[2] = self.last_activity.map(|at| at + SHED_AFTER);
        events[3] = self.silence_deadline().map(|(at, _)| at);
        events[4] = draining.and_then(Deadline::instant);
        events[5] = self.ws_deadline.filter(|at| *at > now);
        events[6] = self.delivery_check_due();
        events.into_iter().flatten().min()
    }

    /// When silence ends the tunnel, and how; `None` while something is still on its way, however slowly it is taken.
    fn silence_deadline(&self) -> Option<(Instant, EndReason)> {
        if self.closing.is_some() || !self.all_delivered() {
            return None;
        }
        let idle = self.limits.idle_timeout;
        let waits_for_an_answer = self.last_direction == Some(Direction::Up);
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
    fn all_delivered(&self) -> bool {
        let passed_on = self.outbound.is_empty() && self.inbound.is_empty();
        passed_on && self.tcp.flushed() && self.ws.flushed()
    }

    /// Version 1 at the relay, after the client's end of stream.
    fn lingering(&self) -> bool {
        self.version == Version::V1
            && self.role == Role::Client
            && self.tcp_fin_forwarded
            && self.closing.is_none()
    }

    pub(super) fn on_timer(&mut self) -> Result<(), SideError> {
        let now = Instant::now();
        let reading = self.reads_ws();
        match self.keepalive.check(now, reading) {
            KeepaliveAction::Ping => {
                self.set_user_timeout(!reading && self.ws.flushed() && !self.ws.has_unsent());
                if !reading {
                    self.check_ws_delivery()?;
                }
                if !self.close_queued() {
                    self.ws.ping().map_err(SideError::Ws)?;
                }
            }
            KeepaliveAction::Dead => self.ws_failed(TunnelError::TimedOut(Phase::Stream))?,
            KeepaliveAction::Wait => {}
        }
        self.check_tcp_delivery(now)?;
        if self.last_activity.is_some_and(|at| at + SHED_AFTER <= now) {
            self.last_activity = None;
            self.outbound.release();
            self.inbound.release();
            self.tcp.release_buffers();
            self.ws.release_buffers();
            memory::give_back_stack();
        }
        match self.silence_deadline() {
            // The reset to come would take it from the client.
            Some((at, EndReason::LingerExpired)) if at <= now && self.tcp.has_unsent() => {
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
    fn delivery_check_due(&self) -> Option<Instant> {
        let interval = self.limits.keepalive;
        let asks = self.unacked && !interval.is_zero();
        asks.then(|| self.delivery_checked.checked_add(interval))
            .flatten()
    }

    /// There are no pings on raw. The kernel's probes find a peer that vanished while the connection was silent; one that
    /// vanished with bytes on their way shows in the kernel's retransmissions. Neither a slow reader does that, nor one that
    /// does not read at all: it acknowledges every look at its closed window.
    fn check_tcp_delivery(&mut self, now: Instant) -> Result<(), SideError> {
        if self.delivery_check_due().is_none_or(|due| now < due) {
            return Ok(());
        }
        self.delivery_checked = now;
        match self
            .tcp
            .delivery(self.limits.keepalive.saturating_mul(UNANSWERED))
        {
            Delivery::Unanswered => self.tcp_failed(TunnelError::TimedOut(Phase::Stream)),
            Delivery::UnderWay => Ok(()),
            Delivery::Done => {
                self.unacked = false;
                Ok(())
            }
        }
    }

    /// Where the kernel cannot watch over ws, since more waits there than its peer has room for, its retransmissions are
    /// looked at instead: once in each interval in which nothing was to be heard.
    fn check_ws_delivery(&mut self) -> Result<(), SideError> {
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
    pub(super) fn set_user_timeout(&mut self, on: bool) {
        if mem::replace(&mut self.user_timeout_set, on) != on {
            let timeout = self.limits.keepalive.saturating_mul(3);
            self.ws
                .set_user_timeout(if on { timeout } else { Duration::ZERO });
        }
    }
}
