//! Authentication of relays: the bearer token of the upgrade ([RFC 6750, section 2.1]) and the
//! credentials of the CONNECT request ([RFC 7617, section 2]), checked against the sessions.
//!
//! A check takes the same time for any number of sessions. Tokens are found by a hash with a random
//! key and then compared in constant time, so the duration reveals neither which sessions exist nor
//! how much of a token was correct. `sessions_file` reads the sessions.
//!
//! [RFC 6750, section 2.1]: https://www.rfc-editor.org/rfc/rfc6750#section-2.1
//! [RFC 7617, section 2]: https://www.rfc-editor.org/rfc/rfc7617#section-2

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use data_encoding::BASE64;
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
pub struct Sessions {
    /// Its random key makes the hash of a token unpredictable.
    hasher: RandomState,
    /// The tokens by their hash. Several sessions may share a token.
    tokens: HashMap<u64, Vec<Secret>>,
    /// The tokens by session ID.
    by_id: HashMap<String, Secret>,
}

/// Proof that an upgrade had the token of a session. The CONNECT request must have the same token.
///
/// It contains the token, not an index: several sessions may share a token, and the sessions may be
/// replaced before the CONNECT request arrives.
#[derive(Debug)]
pub(crate) struct Bearer(Secret);

impl Bearer {
    /// A number that identifies the holder of the token among those that `hasher` was used for.
    pub(super) fn party(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one(self.0.expose().as_bytes())
    }
}

impl Sessions {
    pub(super) fn new(sessions: impl IntoIterator<Item = Credentials>) -> Self {
        let mut all = Self::default();
        for Credentials { session_id, token } in sessions {
            let hash = all.hasher.hash_one(token.expose().as_bytes());
            let same_hash = all.tokens.entry(hash).or_default();
            if !same_hash
                .iter()
                .any(|known| known.matches(token.expose().as_bytes()))
            {
                same_hash.push(token.clone());
            }
            all.by_id.insert(session_id, token);
        }
        all
    }

    /// The single session of an embedded gateway.
    pub(crate) fn single(credentials: Credentials) -> Self {
        Self::new([credentials])
    }

    /// The number of sessions.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is more than one token, so that their holders compete for the gateway.
    pub(super) fn several_parties(&self) -> bool {
        self.tokens.len() > 1
    }

    /// Checks the `Authorization` of the upgrade: `Bearer TOKEN` with the token of any session.
    pub(crate) fn bearer(&self, header_value: &[u8]) -> Option<Bearer> {
        let token = after_scheme(header_value, "Bearer")?;
        let same_hash = self.tokens.get(&self.hasher.hash_one(token))?;
        let known = same_hash.iter().find(|known| known.matches(token))?;
        Some(Bearer(known.clone()))
    }

    /// Checks the `Proxy-Authorization` of the CONNECT request, `Basic BASE64(ID:TOKEN)`: whether
    /// the token is that of the session and that of the upgrade.
    pub(crate) fn basic(&self, header_value: &[u8], upgrade: &Bearer) -> bool {
        let Some(encoded) = after_scheme(header_value, "Basic") else {
            return false;
        };
        let Ok(pair) = BASE64.decode(encoded).map(Zeroizing::new) else {
            return false;
        };
        let mut parts = pair.splitn(2, |&byte| byte == b':');
        let (Some(id), Some(token)) = (parts.next(), parts.next()) else {
            return false;
        };
        let session = std::str::from_utf8(id)
            .ok()
            .and_then(|id| self.by_id.get(id));
        // An unknown session has a comparison too, so that it takes as long as a known one.
        let of_session = session.unwrap_or(&upgrade.0).matches(token);
        session.is_some() & of_session & upgrade.0.matches(token)
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
        assert!(sessions.basic(credentials.basic().as_bytes(), &bearer));
    }

    #[test]
    fn the_opening_must_have_the_token_of_the_upgrade() {
        let sessions = sessions();
        let one = sessions.bearer(b"Bearer canary-one").unwrap();
        let two = sessions.bearer(b"Bearer canary-two").unwrap();
        let check = |id, token, upgrade| sessions.basic(basic(id, token).as_bytes(), upgrade);
        assert!(check("s-1", "canary-one", &one));
        assert!(check("s-2", "canary-two", &two));
        // Two sessions share this token.
        assert!(check("s-3", "canary-one", &one));
        // Correct, but not the token of the upgrade.
        assert!(!check("s-2", "canary-two", &one));
        assert!(!check("s-1", "canary-one", &two));
        // Incorrect.
        assert!(!check("s-1", "canary-two", &two));
        assert!(!check("s-2", "canary-one", &one));
        assert!(!check("s-4", "canary-one", &one));
        assert!(!check("S-1", "canary-one", &one));
        assert!(!check("", "canary-one", &one));
        assert!(!check("s-1", "", &one));
    }

    #[test]
    fn invalid_basic_credentials_are_refused() {
        let sessions = sessions();
        let one = sessions.bearer(b"Bearer canary-one").unwrap();
        let good = basic("s-1", "canary-one");
        let encoded = good.strip_prefix("Basic ").unwrap();
        assert!(sessions.basic(good.as_bytes(), &one));
        let lower = format!("basic {encoded}");
        assert!(sessions.basic(lower.as_bytes(), &one));
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
            assert!(!sessions.basic(value.as_bytes(), &one), "{value}");
        }
    }

    #[test]
    fn sessions_that_share_a_token_are_one_party_whatever_their_number() {
        let text = |n: usize, token: &dyn Fn(usize) -> String| {
            let lines: Vec<_> = (0..n).map(|i| format!("s-{i} {}", token(i))).collect();
            lines.join("\n")
        };
        let same = Sessions::parse(&text(1000, &|_| "canary".into())).unwrap();
        assert!(!same.several_parties());
        assert_eq!(same.tokens.values().map(Vec::len).sum::<usize>(), 1);
        let many = Sessions::parse(&text(1000, &|i| format!("canary-{i}"))).unwrap();
        assert!(many.several_parties());
        // A check compares with the tokens of one hash, not with all.
        assert!(many.tokens.values().all(|same_hash| same_hash.len() == 1));
        let hasher = RandomState::new();
        let party = |token: &str| {
            let bearer = many.bearer(format!("Bearer {token}").as_bytes()).unwrap();
            bearer.party(&hasher)
        };
        assert_eq!(party("canary-7"), party("canary-7"));
        assert_ne!(party("canary-7"), party("canary-8"));
    }

    #[test]
    fn a_removed_session_opens_no_tunnel() {
        let one = sessions().bearer(b"Bearer canary-one").unwrap();
        let later = Sessions::parse("s-1 canary-new").unwrap();
        let opening = basic("s-1", "canary-one");
        assert!(!later.basic(opening.as_bytes(), &one));
    }

    #[test]
    fn no_debug_output_shows_a_token() {
        let sessions = sessions();
        let bearer = sessions.bearer(b"Bearer canary-one");
        assert!(!format!("{sessions:?} {bearer:?}").contains("canary"));
    }
}
