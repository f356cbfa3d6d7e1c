//! The pump: moves the bytes of one tunnel between two connections until the tunnel ends.
//!
//! One thread owns both sides. `tcp` is the side without a WebSocket: the client at the relay, the
//! target at the gateway. `ws` is the side of the peer. Each direction has one buffer, and a side
//! is read only while its buffer is empty, so nothing queues without a bound.
//!
//! `transfer` moves the bytes, `timers` does what depends on time, `ending` detects the events that
//! end a tunnel, and `rules` decides about them without I/O. `closing` closes both connections,
//! after the remaining data was delivered. The rules are the tables below; a test compares them
//! with the code. In each table the first matching row applies. Conditions in one cell must all
//! hold. Version and role are those of this end.
//!
//! # Events
//!
//! A tunnel is *open* until this end queues a close frame, and then *closing*. (While the first
//! bytes are inspected, see [`Pump::peek`], data from ws is held back; the rules are the same.)
//!
//! | event | version | role | phase | condition | action |
//! |---|---|---|---|---|---|
//! | tcp finishes | any | any | closing | | none |
//! | tcp finishes | 2 | any | open | | forward the end |
//! | tcp finishes | 1 | relay | open | | linger |
//! | tcp finishes | 1 | gateway | open | | forward the end, close 1000: clean |
//! | ws finishes | any | any | any | | end tcp |
//! | ws finishes in the inner handshake | any | any | any | | fail |
//! | both have finished | any | any | open | | close 1000: clean |
//! | both have finished | any | any | closing | | none |
//! | refusal expires | any | any | open | | close 1000: clean |
//! | refusal expires | any | any | closing | | none |
//! | close frame 1000 | 1 | any | any | | close 1000: clean |
//! | close frame 1000 | 2 | any | closing | | close 1000: clean |
//! | close frame 1000 | 2 | any | open | both fins | close 1000: clean |
//! | close frame 1000 | 2 | any | open | not both fins | close 1011, fail |
//! | close frame 1001 | any | any | any | | close 1001: stopped |
//! | close frame, another code | any | any | any | | close 1011, fail |
//! | close frame, no code | any | any | any | | close 1000, fail |
//! | ws ends without a close frame | any | any | open | | fail |
//! | ws ends without a close frame | any | any | closing | flushed | none |
//! | ws ends without a close frame | any | any | closing | fin sent | none |
//! | ws ends without a close frame | any | any | closing | refused | none |
//! | ws ends without a close frame | any | any | closing | | fail |
//! | ws is lost | any | any | open | | fail |
//! | ws is lost | any | any | closing | flushed | abandon ws |
//! | ws is lost | any | any | closing | peer closed | abandon ws |
//! | ws is lost | 2 | any | closing | fin sent | abandon ws |
//! | ws is lost | 2 | any | closing | refused | abandon ws |
//! | ws is lost | any | any | closing | | fail |
//! | ws receives invalid bytes | any | any | any | | fail |
//! | tcp fails | 1 | gateway | any | tcp finished | abandon tcp |
//! | tcp fails | any | any | closing | lingered | abandon tcp |
//! | tcp fails | any | any | any | refused | abandon tcp |
//! | tcp fails | any | any | any | | fail |
//! | tcp fails at the end | any | any | any | | abandon tcp |
//! | idle timeout | any | any | open | | close 1001: idle |
//! | idle timeout | any | any | closing | | none |
//! | silence after a stop request | any | any | open | | close 1001: stopped |
//! | silence after a stop request | any | any | closing | | none |
//! | linger timeout | any | any | open | | close 1000: linger expired |
//! | linger timeout | any | any | closing | | none |
//!
//! - *Close* starts the closing handshake of [RFC 6455, section 7], or answers it. The first reason
//!   remains. The close timeout starts; it starts again while data in front of the close frame
//!   waits for the peer.
//! - *Fail* sends the close code of the error to the peer and resets the TCP side.
//! - *Linger*: version 1 cannot forward the client's end, so the relay continues to deliver until
//!   no data was moved for the linger time. It then resets the client, because the delivered data
//!   may be incomplete.
//! - *At the end*: both streams have ended, and the TCP side has acknowledged all data. A server
//!   that has closed its connection answers a late `close_notify` with a reset.
//! - *Abandon* drops what was queued for a side that is gone and no longer needed.
//! - *Refused*: the gateway could not intercept the tunnel and delivers a TLS alert instead
//!   ([`Pump::finish_with`]).
//!
//! A tunnel is not silent while data waits: in a buffer, or in the kernel because the peer has not
//! acknowledged it. At the drain deadline a tunnel is cut in any phase: this end sends code 1011
//! and resets both sides.
//!
//! # Closing
//!
//! | ws | condition | action |
//! |---|---|---|
//! | close frame received | flushed | finish |
//! | close frame received | overdue | finish |
//! | close frame received | | wait |
//! | open | overdue, unacknowledged, not refused | start the close timeout again |
//! | open | overdue, accepted | finish |
//! | open | | wait |
//! | ended | | finish |
//!
//! - *Overdue*: the close timeout has passed.
//! - *Accepted*: the TCP side has accepted all data, or needs none.
//! - *Unacknowledged*: the peer has not acknowledged everything that was written to ws.
//!
//! # The end of the TCP side
//!
//! A tunnel that finishes has a reason, and its TCP side ends like this:
//!
//! | reason | version | condition | tcp |
//! |---|---|---|---|
//! | linger expired | any | | reset |
//! | any | any | ws finished | FIN |
//! | clean | any | refused | FIN |
//! | clean | 1 | close frame 1000 | FIN |
//! | any | any | | reset |
//!
//! Only the stream itself can say that it is complete: an end by a stop, a timeout or a fault is a
//! reset, so that the peer does not take a part for the whole.
//!
//! Both FIN and reset come after the data. A tunnel has finished or failed, but its data may still
//! be in a buffer or in the kernel: it is delivered first, and the time for the peer's own end
//! starts when the peer has acknowledged everything. If it acknowledges nothing for the stall
//! timeout, or if the drain deadline passes, the end is a reset, and the log line says how many
//! bytes were not delivered. If the TCP side fails, what it had sent is delivered to ws in the same
//! way, before the close frame.
//!
//! [RFC 6455, section 7]: https://www.rfc-editor.org/rfc/rfc6455#section-7

mod closing;
mod ending;
mod rules;
pub(super) mod side;
mod state;
mod timers;
mod traffic;
mod transfer;

#[cfg_attr(not(feature = "gateway"), allow(unused_imports))]
pub(crate) use state::Held;
pub(crate) use state::{Pump, PumpContext};
