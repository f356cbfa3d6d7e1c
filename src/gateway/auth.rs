//! Authentication of relays: the bearer token of the upgrade ([RFC 6750, section 2.1]) and the
//! credentials of the CONNECT request ([RFC 7617, section 2]), checked against the sessions.
//!
//! Every check compares with every session and does not return early, so that its duration reveals
//! neither which sessions exist nor how much of a token was correct. `sessions_file` reads the
//! sessions.
//!
//! [RFC 6750, section 2.1]: https://www.rfc-editor.org/rfc/rfc6750#section-2.1
//! [RFC 7617, section 2]: https://www.rfc-editor.org/rfc/rfc7617#section-2

use data_encoding::BASE64;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::crypto::secret::{Credentials, Secret};

/// The sessions that a gateway serves: IDs and tokens. The default has none, so no one can connect.
///
/// `Debug` does not show the tokens, and they are wiped when the value is dropped.
///
/// # Example
/// ```
/// use upstreamproxy::gateway::Sessions;
///
/// let sessions = Sessions::parse("# ID and token\nsession-1 a-long-random-token\n")?;
/// # let _ = sessions;
/// # Ok::<(), upstreamproxy::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Sessions(Vec<Credentials>);

/// Proof that an upgrade had the token of a session. The CONNECT request must have the same token.
///
/// It contains the token, not an index: several sessions may share a token, and the sessions may be
/// replaced before the CONNECT request arrives.
#[derive(Debug)]
pub(crate) struct Bearer(Secret);

impl Sessions {
    pub(super) fn new(sessions: Vec<Credentials>) -> Self {
        Self(sessions)
    }

    /// The single session of an embedded gateway.
    pub(crate) fn single(credentials: Credentials) -> Self {
        Self(vec![credentials])
    }

    /// The number of sessions.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Checks the `Authorization` of the upgrade: `Bearer TOKEN` with the token of any session.
    pub(crate) fn bearer(&self, header_value: &[u8]) -> Option<Bearer> {
        let token = after_scheme(header_value, "Bearer")?;
        let mut proof = None;
        for session in &self.0 {
            if session.token.matches(token) {
                proof = Some(Bearer(session.token.clone()));
            }
        }
        proof
    }

    /// Checks the `Proxy-Authorization` of the CONNECT request, `Basic BASE64(ID:TOKEN)`. Returns
    /// the session ID if the token is that of the session and that of the upgrade.
    pub(crate) fn basic(&self, header_value: &[u8], upgrade: &Bearer) -> Option<&str> {
        let encoded = after_scheme(header_value, "Basic")?;
        let pair = Zeroizing::new(BASE64.decode(encoded).ok()?);
        let mut parts = pair.splitn(2, |&byte| byte == b':');
        let (id, token) = (parts.next()?, parts.next()?);
        let same_as_upgrade = upgrade.0.matches(token);
        let mut found = None;
        for session in &self.0 {
            // The token is compared for every session, so that an unknown ID takes as long as a
            // known one.
            let right_token = session.token.matches(token);
            let right_id = bool::from(session.session_id.as_bytes().ct_eq(id));
            if right_token & right_id & same_as_upgrade {
                found = Some(session.session_id.as_str());
            }
        }
        found
    }
}

/// The credentials after `scheme`, which is case-insensitive, and at least one space ([RFC 9110,
/// section 11.4]).
///
/// [RFC 9110, section 11.4]: https://www.rfc-editor.org/rfc/rfc9110#section-11.4
fn after_scheme<'a>(header_value: &'a [u8], scheme: &str) -> Option<&'a [u8]> {
    let mut words = header_value.trim_ascii().splitn(2, |&byte| byte == b' ');
    let named = words.next()?.eq_ignore_ascii_case(scheme.as_bytes());
    let rest = words.next()?.trim_ascii_start();
    (named && !rest.is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# sessions\n\ns-1 canary-one\r\n\ts-2   canary-two  \ns-3 canary-one\n";

    fn sessions() -> Sessions {
        Sessions::parse(TEXT).unwrap()
    }

    fn basic(id: &str, token: &str) -> String {
        let credentials = Credentials {
            session_id: id.to_owned(),
            token: Secret::new(token.to_owned()),
        };
        credentials.basic().to_string()
    }

    #[test]
    fn a_bearer_token_of_any_session_is_accepted() {
        for value in [
            "Bearer canary-one",
            "bearer canary-two",
            "BEARER   canary-one",
            " Bearer canary-one ",
        ] {
            assert!(sessions().bearer(value.as_bytes()).is_some(), "{value}");
        }
    }

    #[test]
    fn no_other_authorization_is_accepted() {
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer canary",
            "Bearer canary-one2",
            "Bearer canary-One",
            "Bearercanary-one",
            "Bearer\tcanary-one",
            "canary-one",
            "Basic canary-one",
            "Bearer canary-one canary-two",
            "Bearer canary-one, Bearer canary-one",
            "Bearer s-1",
            &basic("s-1", "canary-one"),
        ] {
            assert!(sessions().bearer(value.as_bytes()).is_none(), "{value:?}");
        }
        let long = [b"Bearer ".as_slice(), &vec![b'a'; 64 * 1024]].concat();
        assert!(sessions().bearer(&long).is_none());
        assert!(sessions().bearer(b"Bearer \xff\xfe").is_none());
    }

    #[test]
    fn the_gateway_accepts_the_credentials_that_a_relay_sends() {
        let credentials = Credentials {
            session_id: "s-9".to_owned(),
            token: Secret::new("with:colons:in:it".to_owned()),
        };
        let sessions = Sessions::single(credentials.clone());
        let bearer = sessions.bearer(credentials.bearer().as_bytes()).unwrap();
        let id = sessions.basic(credentials.basic().as_bytes(), &bearer);
        assert_eq!(id, Some("s-9"));
    }

    #[test]
    fn the_opening_must_have_the_token_of_the_upgrade() {
        let sessions = sessions();
        let one = sessions.bearer(b"Bearer canary-one").unwrap();
        let two = sessions.bearer(b"Bearer canary-two").unwrap();
        let check = |id, token, upgrade| sessions.basic(basic(id, token).as_bytes(), upgrade);
        assert_eq!(check("s-1", "canary-one", &one), Some("s-1"));
        assert_eq!(check("s-2", "canary-two", &two), Some("s-2"));
        // Two sessions share this token.
        assert_eq!(check("s-3", "canary-one", &one), Some("s-3"));
        // Correct, but not the token of the upgrade.
        assert_eq!(check("s-2", "canary-two", &one), None);
        assert_eq!(check("s-1", "canary-one", &two), None);
        // Incorrect.
        assert_eq!(check("s-1", "canary-two", &two), None);
        assert_eq!(check("s-2", "canary-one", &one), None);
        assert_eq!(check("s-4", "canary-one", &one), None);
        assert_eq!(check("S-1", "canary-one", &one), None);
        assert_eq!(check("", "canary-one", &one), None);
        assert_eq!(check("s-1", "", &one), None);
    }

    #[test]
    fn invalid_basic_credentials_are_refused() {
        let sessions = sessions();
        let one = sessions.bearer(b"Bearer canary-one").unwrap();
        let good = basic("s-1", "canary-one");
        let encoded = good.strip_prefix("Basic ").unwrap();
        assert!(sessions.basic(good.as_bytes(), &one).is_some());
        let lower = format!("basic {encoded}");
        assert!(sessions.basic(lower.as_bytes(), &one).is_some());
        for value in [
            "",
            "Basic",
            "Basic ",
            "Basic !!!!",
            "Basic s-1:canary-one",
            "Bearer canary-one",
            &format!("Bearer {encoded}"),
            &format!("Basic {encoded} {encoded}"),
            &format!("Basic {}", encoded.trim_end_matches('=')),
            &format!("Basic {}", BASE64.encode(b"s-1")),
        ] {
            assert!(sessions.basic(value.as_bytes(), &one).is_none(), "{value}");
        }
    }

    #[test]
    fn a_removed_session_opens_no_tunnel() {
        let one = sessions().bearer(b"Bearer canary-one").unwrap();
        let later = Sessions::parse("s-1 canary-new").unwrap();
        let opening = basic("s-1", "canary-one");
        assert!(later.basic(opening.as_bytes(), &one).is_none());
    }

    #[test]
    fn no_debug_output_shows_a_token() {
        let sessions = sessions();
        let bearer = sessions.bearer(b"Bearer canary-one");
        assert!(!format!("{sessions:?} {bearer:?}").contains("canary"));
    }
}
