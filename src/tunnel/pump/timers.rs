//! What depends on time: pings, checks for peers that are gone, timeouts for silence, and memory
//! that a silent tunnel does not need.

use std::mem;
use std::time::{Duration, Instant};

use super::rules::Event;
use super::state::{Pump, PumpPhase, SideError};
use super::traffic::Direction;
use crate::control::deadline::Deadline;
use crate::net::sockets::Delivery;
use crate::sys::memory;
use crate::tunnel::error::TunnelError;
use crate::tunnel::frame::Role;
use crate::tunnel::keepalive::KeepaliveAction;
use crate::tunnel::remainder::{FAULT_SHARE, Progress};
use crate::tunnel::ws_codec::Version;

/// The time without any byte, pings included, after which unused memory is released.
const RELEASE_AFTER: Duration = Duration::from_millis(300);
/// The age from which a killed process ends a tunnel with a reset. Most tunnels of a package
/// manager are younger at their end; they save two system calls.
const RESETS_FROM: Duration = Duration::from_millis(300);
/// The number of keepalive intervals without an acknowledgement that end the tunnel. The check runs
/// once per interval, so three may have passed.
const UNACKED_INTERVALS: u32 = 2;

impl Pump<'_> {
    /// Updates the times of the last activity, before a wait.
    pub(super) fn record_activity(&mut self, now: Instant) {
        let (tcp, ws) = (&mut self.tcp.conn, &mut self.ws.conn);
        let tcp_active = mem::take(&mut tcp.received) | mem::take(&mut tcp.sent);
        if ws.sent || ws.received || tcp_active {
            self.activity.last_activity = Some(now);
        }
        if mem::take(&mut ws.sent) {
            self.keepalive.on_sent(now);
        }
        if mem::take(&mut ws.received) {
            self.keepalive.on_received(now);
        }
        if tcp_active {
            self.delivery.unacked = true;
        }
        // Data that a slow reader did not accept at once counts as moved when it is accepted.
        let blocked = !self.tcp.conn.flushed() || !self.ws.conn.flushed();
        let unblocked = mem::replace(&mut self.activity.blocked, blocked) && !blocked;
        if mem::take(&mut self.activity.data_moved) || unblocked {
            self.activity.last_data = now;
        }
    }

    /// When the next timer is due.
    pub(super) fn next_timer(&self, draining: Option<Deadline>, now: Instant) -> Option<Instant> {
        let close_timeout = match self.phase {
            PumpPhase::Closing { until, .. } => Some(until),
            PumpPhase::Open => None,
        };
        let last_activity = self.activity.last_activity;
        let timers = [
            self.keepalive.next_check(),
            close_timeout.filter(|at| *at > now),
            last_activity.map(|at| at + RELEASE_AFTER),
            self.silence_timer().map(|(at, _)| at),
            draining.and_then(Deadline::instant),
            self.ws_deadline.filter(|at| *at > now),
            self.peek.as_ref().and_then(|peek| peek.until),
            self.delivery_check_due(),
            self.stall_check_due(),
        ];
        timers.into_iter().flatten().min()
    }

    /// When silence ends the tunnel, and the event.
    fn silence_timer(&self) -> Option<(Instant, Event)> {
        if self.is_closing() {
            return None;
        }
        let limits = self.context.limits;
        let idle = limits.idle_timeout;
        let awaits_answer = self.activity.last_direction == Some(Direction::Up);
        let stopping = self.context.stop.requested().is_some() && !awaits_answer;
        let lingers = self.version == Version::V1 && self.role == Role::Client && self.tcp_finished;
        let timers = [
            stopping.then_some((limits.drain_silence, Event::DrainSilence)),
            (!idle.is_zero()).then_some((idle, Event::IdleTimeout)),
            lingers.then_some((limits.linger, Event::LingerTimeout)),
        ];
        timers
            .into_iter()
            .flatten()
            .filter_map(|(after, event)| Some((self.activity.last_data.checked_add(after)?, event)))
            .min_by_key(|(at, _)| *at)
    }

    /// Runs the timers that are due.
    pub(super) fn on_timer(&mut self) -> Result<(), SideError> {
        let now = Instant::now();
        if now >= self.started + RESETS_FROM {
            self.tcp.conn.reset_if_incomplete();
        }
        // Before a ping is queued, which is not data that waits.
        self.check_silence(now)?;
        self.check_stall(now)?;
        let reading = self.reads_ws();
        match self.keepalive.check(now, reading) {
            KeepaliveAction::Ping => {
                let ws = &self.ws.conn;
                self.set_user_timeout(!reading && ws.flushed() && !ws.has_unsent());
                if !reading {
                    self.check_ws_delivery()?;
                }
                if !self.close_queued() {
                    self.ws.conn.ping().map_err(SideError::Ws)?;
                }
            }
            KeepaliveAction::Dead => self.ws_failed(silent())?,
            KeepaliveAction::Wait => {}
        }
        self.check_tcp_delivery(now)?;
        let last_activity = self.activity.last_activity;
        if last_activity.is_some_and(|at| at + RELEASE_AFTER <= now) {
            self.activity.last_activity = None;
            self.tcp.release_buffers();
            self.ws.release_buffers();
            memory::give_back_stack();
        }
        Ok(())
    }

    /// Ends a tunnel that was silent for long enough. It is not silent while data waits to be
    /// accepted: the time starts again when nothing waits.
    fn check_silence(&mut self, now: Instant) -> Result<(), SideError> {
        let Some((_, event)) = self.silence_timer().filter(|(at, _)| *at <= now) else {
            return Ok(());
        };
        let queued = !self.tcp.is_idle() || !self.ws.is_idle();
        if queued || self.tcp.conn.unacknowledged() > 0 || self.ws.conn.has_unsent() {
            self.late = true;
            self.activity.last_data = now;
            return Ok(());
        }
        self.late = false;
        self.handle(event)
    }

    /// When to check whether the last data of the tunnel is still accepted. `None` if no end of the
    /// tunnel depends on that.
    fn stall_check_due(&self) -> Option<Instant> {
        let ends = self.is_closing() || self.both_fins() || self.a_write_failed() || self.late;
        ends.then(|| self.progress.checked + self.stall_limit() / 4)
    }

    fn a_write_failed(&self) -> bool {
        self.tcp.conn.write_failed() || self.ws.conn.write_failed()
    }

    fn stall_limit(&self) -> Duration {
        let limit = self.context.limits.stall_timeout;
        if self.a_write_failed() {
            limit / FAULT_SHARE
        } else {
            limit
        }
    }

    /// Fails a side that accepts none of the last data.
    fn check_stall(&mut self, now: Instant) -> Result<(), SideError> {
        if self.stall_check_due().is_none_or(|due| now < due) {
            return Ok(());
        }
        let limit = self.stall_limit();
        let (tcp, ws) = (&mut self.tcp, &mut self.ws);
        let tcp_waits = !ws.pending.is_empty() || tcp.conn.undelivered() > 0;
        let ws_waits = !tcp.pending.is_empty() || ws.conn.undelivered() > 0;
        if !tcp_waits && !ws_waits {
            self.late = false;
            self.progress = Progress::new(now);
            return Ok(());
        }
        let slow = if tcp_waits { &tcp.conn } else { &ws.conn };
        let accepted = slow.acknowledged() + self.traffic.total();
        if !self.progress.stalled(accepted, now, limit) {
            return Ok(());
        }
        // The first failure is the reason.
        if let Some(error) = tcp.conn.take_write_error() {
            self.tcp_failed(error)
        } else if let Some(error) = ws.conn.take_write_error() {
            self.ws_failed(error)
        } else if tcp_waits {
            self.tcp_failed(TunnelError::Stalled)
        } else {
            self.ws_failed(TunnelError::Stalled)
        }
    }

    /// When to check whether the peer of the TCP side acknowledges what it receives.
    fn delivery_check_due(&self) -> Option<Instant> {
        let interval = self.context.limits.keepalive;
        let due = self.delivery.unacked && !interval.is_zero();
        due.then(|| self.delivery.checked.checked_add(interval))
            .flatten()
    }

    /// Fails the TCP side if its peer is gone. TCP has no pings. The kernel's probes find a peer
    /// that vanished while the connection was silent; retransmissions without an acknowledgement
    /// find one that vanished while bytes were sent. A slow reader is not affected: it acknowledges
    /// every probe of its closed window.
    fn check_tcp_delivery(&mut self, now: Instant) -> Result<(), SideError> {
        if self.delivery_check_due().is_none_or(|due| now < due) {
            return Ok(());
        }
        self.delivery.checked = now;
        match self.tcp.conn.delivery(self.unacked_limit()) {
            Delivery::PeerSilent => self.tcp_failed(silent()),
            Delivery::InFlight => Ok(()),
            Delivery::Acknowledged => {
                self.delivery.unacked = false;
                Ok(())
            }
        }
    }

    /// Fails the WebSocket if its peer acknowledges nothing. This replaces the user timeout while
    /// the peer's window is closed; it runs once per silent interval.
    fn check_ws_delivery(&mut self) -> Result<(), SideError> {
        match self.ws.conn.delivery(self.unacked_limit()) {
            Delivery::PeerSilent => self.ws_failed(silent()),
            Delivery::InFlight | Delivery::Acknowledged => Ok(()),
        }
    }

    fn unacked_limit(&self) -> Duration {
        self.context
            .limits
            .keepalive
            .saturating_mul(UNACKED_INTERVALS)
    }

    /// Lets the kernel fail ws if pings are not acknowledged, while ws is not read. Only while the
    /// peer's window is open: Linux counts the time of a closed window against the user timeout,
    /// and a slow reader may keep its window closed for any time.
    pub(super) fn set_user_timeout(&mut self, on: bool) {
        if mem::replace(&mut self.user_timeout_set, on) != on {
            let timeout = self.context.limits.keepalive.saturating_mul(3);
            let timeout = if on { timeout } else { Duration::ZERO };
            self.ws.conn.set_user_timeout(timeout);
        }
    }
}

/// The error of a peer that is gone.
fn silent() -> TunnelError {
    TunnelError::PeerSilent
}
