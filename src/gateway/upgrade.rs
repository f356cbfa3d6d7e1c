//! What the gateway decides by the request head alone, before a connection may cost anything: the CA endpoint, the upgrade
//! with its token, or a refusal.
//!
//! Pure: a head to a decision. The rules of the upgrade are tungstenite's, the rules of who may come in are ours.

use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::HeaderValue;

use super::auth::{Bearer, Sessions};
use crate::control::phase::Phase;
use crate::http::base_url::{CA_CERT_PATH, WS_PATH};
use crate::http::head::RequestHead;
use crate::http::reply::Reply;
use crate::tunnel::ws_codec::{SUBPROTOCOL_V2, Version};

/// What is done with a connection.
pub(crate) enum UpgradeDecision {
    /// The CA's certificates are sent, and that is all.
    CaCertificates,
    /// It becomes a WebSocket after this answer.
    Open {
        /// The token that opened it; the opening must be of a session with the same.
        bearer: Bearer,
        /// The version of the wire that was agreed on.
        version: Version,
        /// The 101 response.
        answer: Vec<u8>,
    },
    /// It is refused.
    Shut(Reply),
}

/// Decides by the request's `head`, whose own bytes are `raw`.
pub(crate) fn decide(head: &RequestHead, raw: &[u8], sessions: &Sessions) -> UpgradeDecision {
    let refuse = |status, sentence: &str| UpgradeDecision::Shut(Reply::new(status, sentence));
    match head.target.as_str() {
        CA_CERT_PATH | WS_PATH if head.method != "GET" => UpgradeDecision::Shut(
            Reply::new(405, "this endpoint takes GET only").with("Allow", "GET"),
        ),
        CA_CERT_PATH => UpgradeDecision::CaCertificates,
        WS_PATH => upgrade(head, raw, sessions),
        _ => refuse(
            404,
            "there is nothing here; the base URL of a gateway has no path of its own",
        ),
    }
}

fn upgrade(head: &RequestHead, raw: &[u8], sessions: &Sessions) -> UpgradeDecision {
    // RFC 6455, section 10.2: a browser names the page's origin. No page has any business here.
    if head.fields.has("origin") {
        return UpgradeDecision::Shut(
            Reply::new(403, "browsers are not served here")
                .because("http_request_denied", Phase::Upgrade),
        );
    }
    let Some(bearer) = head
        .fields
        .one("authorization")
        .and_then(|value| sessions.bearer(value))
    else {
        // No detail: which part was wrong is nobody's business who does not hold a token.
        return UpgradeDecision::Shut(
            Reply::new(401, "a valid session token is needed")
                .because("http_request_denied", Phase::Upgrade)
                .with("WWW-Authenticate", "Bearer"),
        );
    };
    let response = match Request::try_parse(raw) {
        Ok(Some((_, request))) => create_response(&request),
        _ => return UpgradeDecision::Shut(not_an_upgrade()),
    };
    let Ok(mut response) = response else {
        return UpgradeDecision::Shut(not_an_upgrade());
    };
    let offered = head
        .fields
        .list("sec-websocket-protocol")
        .any(|name| name == SUBPROTOCOL_V2.as_bytes());
    if offered {
        response.headers_mut().insert(
            "Sec-WebSocket-Protocol",
            HeaderValue::from_static(SUBPROTOCOL_V2),
        );
    }
    let mut answer = Vec::with_capacity(256);
    if write_response(&mut answer, &response).is_err() {
        return UpgradeDecision::Shut(not_an_upgrade());
    }
    UpgradeDecision::Open {
        bearer,
        version: if offered { Version::V2 } else { Version::V1 },
        answer,
    }
}

fn not_an_upgrade() -> Reply {
    Reply::new(
        426,
        "this endpoint speaks WebSocket version 13; send an upgrade as RFC 6455 asks",
    )
    .because("http_upgrade_failed", Phase::Upgrade)
    .with("Sec-WebSocket-Version", "13")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head;

    const GOOD: &str = "Host: g\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer t\r\n";

    fn door(request_line: &str, fields: &str) -> UpgradeDecision {
        let raw = format!("{request_line} HTTP/1.1\r\n{fields}\r\n");
        let (head, _) = head::request(raw.as_bytes())
            .expect("no fault")
            .expect("whole");
        decide(
            &head,
            raw.as_bytes(),
            &Sessions::parse("s t\n").expect("sessions"),
        )
    }

    fn status(request_line: &str, fields: &str) -> u16 {
        match door(request_line, fields) {
            UpgradeDecision::CaCertificates => 200,
            UpgradeDecision::Open { .. } => 101,
            UpgradeDecision::Shut(reply) => reply.status,
        }
    }

    #[test]
    fn the_ca_is_for_anybody_and_the_tunnel_for_those_with_a_token() {
        let ws = format!("GET {WS_PATH}");
        assert_eq!(status(&format!("GET {CA_CERT_PATH}"), ""), 200);
        assert_eq!(status(&format!("HEAD {CA_CERT_PATH}"), ""), 405);
        assert_eq!(status("GET /", ""), 404);
        assert_eq!(status(&ws, GOOD), 101);
        assert_eq!(status(&ws, &GOOD.replace("Bearer t", "Bearer u")), 401);
        assert_eq!(status(&ws, &GOOD.replace("Bearer t", "Basic t")), 401);
        assert_eq!(
            status(&ws, &format!("{GOOD}Authorization: Bearer t\r\n")),
            401,
            "doubled"
        );
        assert_eq!(status(&ws, &format!("{GOOD}Origin: null\r\n")), 403);
        assert_eq!(status(&ws, "Authorization: Bearer t\r\n"), 426);
        assert_eq!(status(&ws, &GOOD.replace("13", "8")), 426);
    }

    #[test]
    fn version_2_is_selected_where_it_is_offered_and_nothing_else_is() {
        let ws = format!("GET {WS_PATH}");
        for (offer, chosen) in [
            ("", false),
            ("upstreamproxy.v2", true),
            ("chat, upstreamproxy.v2", true),
            ("chat", false),
        ] {
            let fields = if offer.is_empty() {
                GOOD.to_owned()
            } else {
                format!("{GOOD}Sec-WebSocket-Protocol: {offer}\r\n")
            };
            let UpgradeDecision::Open {
                version, answer, ..
            } = door(&ws, &fields)
            else {
                panic!("{offer}")
            };
            let (head, _) = head::response(&answer).expect("no fault").expect("whole");
            assert_eq!(
                head.fields.one("sec-websocket-accept"),
                Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..])
            );
            assert_eq!(
                head.fields.one("sec-websocket-protocol").is_some(),
                chosen,
                "{offer}"
            );
            assert_eq!(version == Version::V2, chosen);
        }
    }
}
