//! The rules for how a tunnel ends, as pure functions: event and facts in, action out.
//!
//! They are the tables of the module page; a test compares every combination with them.

use tungstenite::protocol::frame::coding::CloseCode;

use crate::control::outcome::EndReason;
use crate::tunnel::frame::Role;
use crate::tunnel::remainder::TcpEnd;
use crate::tunnel::ws_codec::Version;

/// Something that may end the tunnel or one of its directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The client or target has ended its direction, and all its data was forwarded.
    TcpFinished,
    /// The peer has ended its direction of the stream, and all its data was forwarded.
    WsFinished,
    /// The peer has ended its direction, but the inner TLS handshake is incomplete. So data from
    /// TCP could never be sent.
    WsFinishedInHandshake,
    /// Both `fin`s were exchanged, and the end of the TCP direction was written.
    BothFinished,
    /// The time for delivering a refusal is over.
    RefusalExpired,
    /// A close frame with code 1000.
    CloseNormal,
    /// A close frame with code 1001.
    CloseAway,
    /// A close frame with another code.
    CloseOther,
    /// A close frame without a code.
    CloseNoCode,
    /// The WebSocket's socket ended without a close frame.
    WsEnded,
    /// The WebSocket's socket failed, or the peer does not answer.
    WsLost,
    /// The peer sent invalid TLS records, frames or messages.
    WsInvalid,
    /// The TCP side failed.
    TcpFailed,
    /// The TCP side failed after both streams had ended, and had received all data.
    TcpFailedAtEnd,
    /// No data was moved for `--idle-timeout`.
    IdleTimeout,
    /// A stop was requested, and no data was moved for a moment.
    DrainSilence,
    /// Version 1 at the relay: no data was moved for the linger time after the client's end.
    LingerTimeout,
}

/// What the rules need to know about a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) version: Version,
    pub(super) role: Role,
    /// A close frame was queued, or sent.
    pub(super) closing: bool,
    /// It was queued because of [`Event::LingerTimeout`].
    pub(super) lingered: bool,
    /// [`Event::TcpFinished`] has happened.
    pub(super) tcp_finished: bool,
    /// The TCP side was replaced by a refusal ([`super::Pump::finish_with`]).
    pub(super) refused: bool,
    /// Everything queued for the WebSocket was written.
    pub(super) flushed: bool,
    /// The end of the WebSocket's direction was written.
    pub(super) fin_sent: bool,
    /// A close frame was received.
    pub(super) peer_closed: bool,
    /// A `fin` was received, and one was queued.
    pub(super) both_fins: bool,
}

/// What to do about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// Send `fin` to the peer.
    ForwardEnd,
    /// End the WebSocket's direction, then start the closing handshake.
    ForwardEndAndClose,
    /// Version 1 has no `fin`: continue to deliver, until [`Event::LingerTimeout`].
    Linger,
    /// End the sending direction of the TCP side.
    EndTcp,
    /// Start or answer the closing handshake. An earlier reason remains.
    Close(CloseCode, EndReason),
    /// Answer the close frame with this code; the tunnel fails.
    Reject(CloseCode),
    /// The tunnel fails.
    Fail,
    /// Treat the TCP side as closed in both directions.
    AbandonTcp,
    /// Treat the WebSocket as closed in both directions.
    AbandonWs,
}

/// The action for an event.
#[expect(clippy::match_same_arms, reason = "in the order of the table")]
pub(super) fn next(event: Event, facts: &Facts) -> Action {
    let clean = || Action::Close(CloseCode::Normal, EndReason::Clean);
    match event {
        Event::TcpFinished if facts.closing => Action::None,
        Event::TcpFinished => match (facts.version, facts.role) {
            (Version::V2, _) => Action::ForwardEnd,
            (Version::V1, Role::Client) => Action::Linger,
            (Version::V1, Role::Server) => Action::ForwardEndAndClose,
        },
        Event::WsFinished => Action::EndTcp,
        Event::WsFinishedInHandshake => Action::Fail,
        Event::BothFinished | Event::RefusalExpired if facts.closing => Action::None,
        Event::BothFinished | Event::RefusalExpired => clean(),
        Event::CloseNormal if facts.version == Version::V1 || facts.both_fins || facts.closing => {
            clean()
        }
        Event::CloseNormal | Event::CloseOther => Action::Reject(CloseCode::Error),
        Event::CloseNoCode => Action::Reject(CloseCode::Normal),
        Event::CloseAway => Action::Close(CloseCode::Away, EndReason::Stopped),
        Event::WsEnded if !facts.closing || ws_needs_data(facts) => Action::Fail,
        Event::WsEnded => Action::None,
        Event::WsLost if facts.closing && !ws_needs_data(facts) && all_data_exchanged(facts) => {
            Action::AbandonWs
        }
        Event::WsLost | Event::WsInvalid => Action::Fail,
        Event::TcpFailed if tcp_needs_data(facts) && !facts.lingered => Action::Fail,
        Event::TcpFailed | Event::TcpFailedAtEnd => Action::AbandonTcp,
        Event::IdleTimeout | Event::DrainSilence | Event::LingerTimeout if facts.closing => {
            Action::None
        }
        // The peer receives 1001. The TCP side gets its FIN after the peer's answer, so data that
        // the peer sent before it received the close frame is delivered.
        Event::IdleTimeout => Action::Close(CloseCode::Away, EndReason::Idle),
        Event::DrainSilence => Action::Close(CloseCode::Away, EndReason::Stopped),
        Event::LingerTimeout => Action::Close(CloseCode::Normal, EndReason::LingerExpired),
    }
}

/// Whether the tunnel fails if TCP does not accept its data. In version 1 a target that has ended
/// needs none, since the tunnel closes with its end.
pub(super) fn tcp_needs_data(facts: &Facts) -> bool {
    let target_finished =
        facts.version == Version::V1 && facts.role == Role::Server && facts.tcp_finished;
    !target_finished && !facts.refused
}

/// Whether data is queued in front of the close frame that the peer still needs.
pub(super) fn ws_needs_data(facts: &Facts) -> bool {
    !facts.flushed && !facts.fin_sent && !facts.peer_closed && !facts.refused
}

/// Whether the loss of the WebSocket loses no data.
fn all_data_exchanged(facts: &Facts) -> bool {
    facts.version == Version::V2 || facts.peer_closed || facts.flushed
}

/// What decides how the TCP side of a tunnel ends on which both ends have agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndFacts {
    pub(super) version: Version,
    /// The peer has ended its direction of the stream.
    pub(super) ws_finished: bool,
    /// See [`Facts::refused`].
    pub(super) refused: bool,
    /// The peer's close frame has code 1000.
    pub(super) closed_normally: bool,
}

/// How the TCP side ends. Only the stream itself can say that it is complete.
pub(super) fn tcp_end(facts: EndFacts, reason: &EndReason) -> TcpEnd {
    let complete = match reason {
        EndReason::LingerExpired => false,
        _ if facts.ws_finished => true,
        EndReason::Clean => {
            facts.refused || (facts.version == Version::V1 && facts.closed_normally)
        }
        _ => false,
    };
    if complete { TcpEnd::Fin } else { TcpEnd::Reset }
}

/// The WebSocket after this end has queued its close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WsState {
    /// The peer has not answered.
    Open,
    /// The peer's close frame was received.
    Closed,
    /// The socket ended without a close frame.
    Ended,
}

/// What decides when a closing tunnel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClosingFacts {
    pub(super) ws: WsState,
    /// See [`Facts::refused`].
    pub(super) refused: bool,
    /// Nothing that was queued for the WebSocket waits to be written.
    pub(super) flushed: bool,
    /// The TCP side has accepted all data, or needs none.
    pub(super) accepted: bool,
    /// The close timeout has passed.
    pub(super) overdue: bool,
    /// The peer has not acknowledged everything that was written to the WebSocket.
    pub(super) unacknowledged: bool,
}

/// What a closing tunnel does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClosingAction {
    /// It continues.
    Wait,
    /// It continues, and the close timeout starts again.
    ExtendTimeout,
    /// It ends.
    Finish,
}

/// Whether a closing tunnel ends now.
pub(super) fn closing(facts: ClosingFacts) -> ClosingAction {
    let finish = match facts.ws {
        // A peer that has closed but does not read gets no more time than one that does not answer.
        WsState::Closed => facts.flushed || facts.overdue,
        // Closing the socket now would lose these bytes as soon as the peer sends anything.
        WsState::Open if facts.overdue && facts.unacknowledged && !facts.refused => {
            return ClosingAction::ExtendTimeout;
        }
        // The peer's close may wait behind data that the TCP side has no room for.
        WsState::Open => facts.overdue && facts.accepted,
        WsState::Ended => true,
    };
    if finish {
        ClosingAction::Finish
    } else {
        ClosingAction::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The module page with the tables.
    const PAGE: &str = include_str!("mod.rs");

    const EVENTS: [(Event, &str); 17] = [
        (Event::TcpFinished, "tcp finishes"),
        (Event::WsFinished, "ws finishes"),
        (
            Event::WsFinishedInHandshake,
            "ws finishes in the inner handshake",
        ),
        (Event::BothFinished, "both have finished"),
        (Event::RefusalExpired, "refusal expires"),
        (Event::CloseNormal, "close frame 1000"),
        (Event::CloseAway, "close frame 1001"),
        (Event::CloseOther, "close frame, another code"),
        (Event::CloseNoCode, "close frame, no code"),
        (Event::WsEnded, "ws ends without a close frame"),
        (Event::WsLost, "ws is lost"),
        (Event::WsInvalid, "ws receives invalid bytes"),
        (Event::TcpFailed, "tcp fails"),
        (Event::TcpFailedAtEnd, "tcp fails at the end"),
        (Event::IdleTimeout, "idle timeout"),
        (Event::DrainSilence, "silence after a stop request"),
        (Event::LingerTimeout, "linger timeout"),
    ];

    fn name(action: &Action) -> &'static str {
        match action {
            Action::None => "none",
            Action::ForwardEnd => "forward the end",
            Action::ForwardEndAndClose => "forward the end, close 1000: clean",
            Action::Linger => "linger",
            Action::EndTcp => "end tcp",
            Action::Close(CloseCode::Normal, EndReason::Clean) => "close 1000: clean",
            Action::Close(CloseCode::Normal, EndReason::LingerExpired) => {
                "close 1000: linger expired"
            }
            Action::Close(CloseCode::Away, EndReason::Stopped) => "close 1001: stopped",
            Action::Close(CloseCode::Away, EndReason::Idle) => "close 1001: idle",
            Action::Reject(CloseCode::Error) => "close 1011, fail",
            Action::Reject(CloseCode::Normal) => "close 1000, fail",
            Action::Fail => "fail",
            Action::AbandonTcp => "abandon tcp",
            Action::AbandonWs => "abandon ws",
            Action::Close(..) | Action::Reject(_) => "not in the table",
        }
    }

    /// The rows of the table whose header begins with `first`.
    fn rows(first: &str) -> Vec<Vec<&'static str>> {
        let lines = PAGE
            .lines()
            .map(|line| line.trim_start_matches("//!").trim());
        let table = lines
            .skip_while(|line| !line.starts_with(&format!("| {first} |")))
            .take_while(|line| line.starts_with('|'));
        let cells = |line: &'static str| {
            let line = line.trim_matches('|');
            line.split('|').map(str::trim).collect::<Vec<_>>()
        };
        let rows: Vec<_> = table.skip(2).map(cells).collect();
        assert!(rows.len() > 4, "the table {first} is missing");
        rows
    }

    /// Whether a cell such as `flushed, not refused` holds; an empty cell always does.
    fn holds(cell: &str, fact: impl Fn(&str) -> Option<bool>) -> bool {
        cell.split(", ")
            .filter(|word| !word.is_empty())
            .all(|word| {
                let (word, expected) = match word.strip_prefix("not ") {
                    Some(word) => (word, false),
                    None => (word, true),
                };
                fact(word).unwrap_or_else(|| panic!("unknown fact: {word}")) == expected
            })
    }

    fn bools<const N: usize>() -> impl Iterator<Item = [bool; N]> {
        (0..1_u32 << N).map(|bits| std::array::from_fn(|i| bits >> i & 1 == 1))
    }

    fn all_facts() -> Vec<Facts> {
        let mut all = Vec::new();
        for version in [Version::V1, Version::V2] {
            for role in [Role::Client, Role::Server] {
                for [
                    closing,
                    lingered,
                    tcp_finished,
                    refused,
                    flushed,
                    fin_sent,
                    peer_closed,
                    both_fins,
                ] in bools()
                {
                    all.push(Facts {
                        version,
                        role,
                        closing,
                        lingered: closing && lingered,
                        tcp_finished,
                        refused,
                        flushed,
                        fin_sent,
                        peer_closed,
                        both_fins,
                    });
                }
            }
        }
        all
    }

    #[test]
    fn the_first_matching_row_of_the_event_table_is_the_action() {
        let rows = rows("event");
        let mut used = vec![false; rows.len()];
        for (event, event_name) in EVENTS {
            for facts in all_facts() {
                if event == Event::WsEnded && facts.peer_closed {
                    continue;
                }
                let version = if facts.version == Version::V1 {
                    "1"
                } else {
                    "2"
                };
                let role = match facts.role {
                    Role::Client => "relay",
                    Role::Server => "gateway",
                };
                let phase = if facts.closing { "closing" } else { "open" };
                let is = |cell: &str, value: &str| cell == "any" || cell == value;
                let found = rows.iter().position(|row| {
                    let [on, in_version, at, during, condition, _] = row[..] else {
                        panic!("not six cells: {row:?}");
                    };
                    on == event_name
                        && is(in_version, version)
                        && is(at, role)
                        && is(during, phase)
                        && holds(condition, |word| {
                            Some(match word {
                                "lingered" => facts.lingered,
                                "tcp finished" => facts.tcp_finished,
                                "refused" => facts.refused,
                                "flushed" => facts.flushed,
                                "fin sent" => facts.fin_sent,
                                "peer closed" => facts.peer_closed,
                                "both fins" => facts.both_fins,
                                _ => return None,
                            })
                        })
                });
                let found = found.unwrap_or_else(|| panic!("no row: {event:?} {facts:?}"));
                used[found] = true;
                let action = next(event, &facts);
                assert_eq!(name(&action), rows[found][5], "{event:?} {facts:?}");
            }
        }
        for (row, used) in rows.iter().zip(used) {
            assert!(used, "no event needs this row: {row:?}");
        }
    }

    #[test]
    fn the_first_matching_row_of_the_closing_table_is_the_action() {
        let rows = rows("ws");
        let mut used = vec![false; rows.len()];
        for ws in [WsState::Open, WsState::Closed, WsState::Ended] {
            for [refused, flushed, accepted, overdue, unacknowledged] in bools() {
                let facts = ClosingFacts {
                    ws,
                    refused,
                    flushed,
                    accepted,
                    overdue,
                    unacknowledged,
                };
                let state = match ws {
                    WsState::Open => "open",
                    WsState::Closed => "close frame received",
                    WsState::Ended => "ended",
                };
                let found = rows.iter().position(|row| {
                    row[0] == state
                        && holds(row[1], |word| {
                            Some(match word {
                                "refused" => refused,
                                "flushed" => flushed,
                                "accepted" => accepted,
                                "overdue" => overdue,
                                "unacknowledged" => unacknowledged,
                                _ => return None,
                            })
                        })
                });
                let found = found.unwrap_or_else(|| panic!("no row: {facts:?}"));
                used[found] = true;
                let action = match closing(facts) {
                    ClosingAction::Wait => "wait",
                    ClosingAction::ExtendTimeout => "start the close timeout again",
                    ClosingAction::Finish => "finish",
                };
                assert_eq!(action, rows[found][2], "{facts:?}");
            }
        }
        for (row, used) in rows.iter().zip(used) {
            assert!(used, "no state needs this row: {row:?}");
        }
    }

    #[test]
    fn the_first_matching_row_of_the_end_table_is_the_end_of_the_tcp_side() {
        let rows = rows("reason");
        let mut used = vec![false; rows.len()];
        for (reason, name) in [
            (EndReason::Clean, "clean"),
            (EndReason::Stopped, "stopped"),
            (EndReason::Idle, "idle"),
            (EndReason::LingerExpired, "linger expired"),
        ] {
            for [second, ws_finished, refused, closed_normally] in bools() {
                let version = if second { Version::V2 } else { Version::V1 };
                let facts = EndFacts {
                    version,
                    ws_finished,
                    refused,
                    closed_normally,
                };
                let found = rows.iter().position(|row| {
                    let is = |cell: &str, value: &str| cell == "any" || cell == value;
                    is(row[0], name)
                        && is(row[1], if second { "2" } else { "1" })
                        && holds(row[2], |word| {
                            Some(match word {
                                "ws finished" => ws_finished,
                                "refused" => refused,
                                "close frame 1000" => closed_normally,
                                _ => return None,
                            })
                        })
                });
                let found = found.unwrap_or_else(|| panic!("no row: {name} {facts:?}"));
                used[found] = true;
                let end = match tcp_end(facts, &reason) {
                    TcpEnd::Fin => "FIN",
                    TcpEnd::Reset => "reset",
                };
                assert_eq!(end, rows[found][3], "{name} {facts:?}");
            }
        }
        for (row, used) in rows.iter().zip(used) {
            assert!(used, "no end needs this row: {row:?}");
        }
    }
}
