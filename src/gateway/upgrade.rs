//! What the gateway does with a connection, decided from the request head alone: serve the CA
//! certificates, upgrade to WebSocket ([RFC 6455, section 4.2]), or reject.
//!
//! Without I/O. tungstenite checks the upgrade itself; this file checks who may connect.
//!
//! [RFC 6455, section 4.2]: https://www.rfc-editor.org/rfc/rfc6455#section-4.2

use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::HeaderValue;

use super::auth::{Bearer, Sessions};
use crate::control::phase::Phase;
use crate::control::rejection::Rejection;
use crate::http::base_url::{CA_CERT_PATH, WS_PATH};
use crate::http::head::RequestHead;
use crate::tunnel::ws_codec::{SUBPROTOCOL_V2, Version};

/// What to do with a connection.
pub(crate) enum UpgradeDecision {
    /// Send the CA's certificates, then close.
    CaCertificates,
    /// Send this response; then the connection is a WebSocket.
    Open {
        /// The token of the upgrade. The session of the CONNECT request must have the same one.
        bearer: Bearer,
        /// The negotiated wire version.
        version: Version,
        /// The 101 response.
        response: Vec<u8>,
    },
    /// Send the rejection, then close.
    Reject(Rejection),
}

/// Decides from the request's `head`, whose bytes are `raw`.
pub(crate) fn decide(head: &RequestHead, raw: &[u8], sessions: &Sessions) -> UpgradeDecision {
    if head.lacks_host() {
        let what = "the request has no Host field";
        return UpgradeDecision::Reject(
            Rejection::new(400, Phase::Upgrade, what)
                .remedy("every HTTP/1.1 request must have one")
                .proxy_status("http_request_error"),
        );
    }
    match head.target.as_str() {
        CA_CERT_PATH | WS_PATH if head.method != "GET" => {
            let what = "this endpoint accepts only GET";
            UpgradeDecision::Reject(
                Rejection::new(405, Phase::Upgrade, what).field(&("Allow", "GET")),
            )
        }
        CA_CERT_PATH => UpgradeDecision::CaCertificates,
        WS_PATH => upgrade(head, raw, sessions).unwrap_or_else(UpgradeDecision::Reject),
        _ => UpgradeDecision::Reject(
            Rejection::new(404, Phase::Upgrade, "there is no such endpoint")
                .remedy("use the gateway's base URL without a path"),
        ),
    }
}

fn upgrade(
    head: &RequestHead,
    raw: &[u8],
    sessions: &Sessions,
) -> Result<UpgradeDecision, Rejection> {
    // RFC 6455, section 10.2: a browser sends the page's origin. No page may use the gateway.
    if head.fields.has("origin") {
        let what = "browsers are not served";
        return Err(Rejection::new(403, Phase::Upgrade, what).proxy_status("http_request_denied"));
    }
    let bearer = head
        .fields
        .one("authorization")
        .and_then(|value| sessions.bearer(value));
    let Some(bearer) = bearer else {
        // Without details: a client without a token must not learn which part was wrong.
        let what = "a valid session token is required";
        return Err(Rejection::new(401, Phase::Upgrade, what)
            .proxy_status("http_request_denied")
            .field(&("WWW-Authenticate", "Bearer")));
    };
    let Ok(Some((_, request))) = Request::try_parse(raw) else {
        return Err(not_an_upgrade());
    };
    let mut response = create_response(&request).map_err(|_| not_an_upgrade())?;
    let v2_offered = head
        .fields
        .list("sec-websocket-protocol")
        .any(|name| name == SUBPROTOCOL_V2.as_bytes());
    if v2_offered {
        response.headers_mut().insert(
            "Sec-WebSocket-Protocol",
            HeaderValue::from_static(SUBPROTOCOL_V2),
        );
    }
    let mut bytes = Vec::with_capacity(256);
    write_response(&mut bytes, &response).map_err(|_| not_an_upgrade())?;
    Ok(UpgradeDecision::Open {
        bearer,
        version: if v2_offered { Version::V2 } else { Version::V1 },
        response: bytes,
    })
}

fn not_an_upgrade() -> Rejection {
    let what = "this endpoint accepts only WebSocket upgrades, version 13";
    Rejection::new(426, Phase::Upgrade, what)
        .remedy("send an upgrade request as in RFC 6455")
        .proxy_status("http_upgrade_failed")
        .field(&("Sec-WebSocket-Version", "13"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head;

    const GOOD: &str = "Host: g\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer t\r\n";

    fn decision(request_line: &str, fields: &str) -> UpgradeDecision {
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
        match decision(request_line, fields) {
            UpgradeDecision::CaCertificates => 200,
            UpgradeDecision::Open { .. } => 101,
            UpgradeDecision::Reject(rejection) => rejection.status,
        }
    }

    #[test]
    fn the_ca_needs_no_token_and_the_tunnel_needs_one() {
        let ws = format!("GET {WS_PATH}");
        assert_eq!(status(&format!("GET {CA_CERT_PATH}"), "Host:\r\n"), 200);
        assert_eq!(status(&format!("HEAD {CA_CERT_PATH}"), "Host:\r\n"), 405);
        assert_eq!(status("GET /", "Host:\r\n"), 404);
        assert_eq!(status(&ws, GOOD), 101);
        assert_eq!(status(&ws, &GOOD.replace("Bearer t", "Bearer u")), 401);
        assert_eq!(status(&ws, &GOOD.replace("Bearer t", "Basic t")), 401);
        assert_eq!(
            status(&ws, &format!("{GOOD}Authorization: Bearer t\r\n")),
            401,
            "doubled"
        );
        assert_eq!(status(&ws, &format!("{GOOD}Origin: null\r\n")), 403);
        assert_eq!(status(&ws, "Host: g\r\nAuthorization: Bearer t\r\n"), 426);
        for fields in [
            "",
            "Authorization: Bearer t\r\n",
            &GOOD.replace("Host: g", "A: b"),
        ] {
            assert_eq!(status(&ws, fields), 400, "{fields}");
        }
        assert_eq!(status(&ws, &GOOD.replace("13", "8")), 426);
    }

    #[test]
    fn version_2_is_selected_if_offered_and_no_other_subprotocol_is() {
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
                version, response, ..
            } = decision(&ws, &fields)
            else {
                panic!("{offer}")
            };
            let (head, _) = head::response(&response).expect("no fault").expect("whole");
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
