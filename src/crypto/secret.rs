//! A secret that cannot be shown by accident: redacted in `Debug`, compared in constant time, zeroised on drop.
//!
//! It is not a vault: the bytes lie in ordinary heap memory, which `setup::hardening` keeps other processes from reading.

use std::fmt;

use data_encoding::BASE64;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A session token, in memory only.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over; the caller's copies are the caller's to wipe.
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The secret itself, for the wire and for nothing else.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `candidate` is this secret, in a time that depends on the lengths only.
    pub(crate) fn matches(&self, candidate: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(candidate).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// Who we are towards the gateway: the session, and the token that proves it.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The session id; not a secret.
    pub session_id: String,
    /// The session token.
    pub token: Secret,
}

impl Credentials {
    /// The value of `Proxy-Authorization` in the opening: `Basic base64(session_id ":" token)` ([RFC 7617, section 2]).
    ///
    /// [RFC 7617, section 2]: https://www.rfc-editor.org/rfc/rfc7617#section-2
    pub(crate) fn basic(&self) -> Zeroizing<String> {
        let pair = Zeroizing::new(format!("{}:{}", self.session_id, self.token.expose()));
        let encoded = Zeroizing::new(BASE64.encode(pair.as_bytes()));
        Zeroizing::new(format!("Basic {}", *encoded))
    }

    /// The value of `Authorization` in the upgrade: `Bearer <token>` ([RFC 6750, section 2.1]).
    ///
    /// [RFC 6750, section 2.1]: https://www.rfc-editor.org/rfc/rfc6750#section-2.1
    pub(crate) fn bearer(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("Bearer {}", self.token.expose()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        Credentials {
            session_id: "s-1".into(),
            token: Secret::new(Zeroizing::new("canary".into())),
        }
    }

    #[test]
    fn debug_output_does_not_show_the_token() {
        assert!(!format!("{:?}", credentials()).contains("canary"));
    }

    #[test]
    fn a_secret_matches_itself_and_no_prefix_of_itself() {
        let token = credentials().token;
        assert!(token.matches(b"canary"));
        assert!(!token.matches(b"canar"));
        assert!(!token.matches(b"canarY"));
        assert!(!token.matches(b""));
    }

    #[test]
    fn credentials_take_the_forms_of_the_wire() {
        assert_eq!(*credentials().bearer(), "Bearer canary");
        assert_eq!(*credentials().basic(), "Basic cy0xOmNhbmFyeQ==");
    }
}
