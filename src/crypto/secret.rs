//! A secret that cannot be shown by accident: redacted in `Debug`, compared in constant time, wiped
//! when dropped.
//!
//! The bytes are in ordinary heap memory. `setup::hardening` prevents other processes from reading
//! it.

use std::fmt;
use std::str::Utf8Error;

use data_encoding::BASE64;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A session token, in memory only. `Debug` shows a placeholder, and dropping it wipes the memory.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the buffer of `text` over, and wipes it when the secret is dropped. Copies that the
    /// caller has made before are not wiped.
    pub(crate) fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The same for text that is already wiped when dropped.
    pub(crate) fn from_zeroizing(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The secret text. Only for sending it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `candidate` equals this secret. The time depends on the lengths only.
    pub(crate) fn matches(&self, candidate: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(candidate).into()
    }
}

impl TryFrom<Vec<u8>> for Secret {
    type Error = Utf8Error;

    /// Takes the buffer over, as [`Secret::new`] does. If the bytes are not UTF-8, it is wiped too.
    fn try_from(bytes: Vec<u8>) -> Result<Self, Utf8Error> {
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(text)),
            Err(error) => {
                let utf8_error = error.utf8_error();
                drop(Zeroizing::new(error.into_bytes()));
                Err(utf8_error)
            }
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// The session and its token, with which a relay authenticates to the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    /// The session ID. It is not a secret.
    pub session_id: String,
    /// The session token.
    pub token: Secret,
}

impl Credentials {
    /// The value of `Proxy-Authorization` in the opening.
    pub(crate) fn basic(&self) -> Zeroizing<String> {
        basic(&self.session_id, self.token.expose())
    }

    /// The value of `Authorization` in the upgrade: `Bearer <token>` ([RFC 6750, section 2.1]).
    ///
    /// [RFC 6750, section 2.1]: https://www.rfc-editor.org/rfc/rfc6750#section-2.1
    pub(crate) fn bearer(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("Bearer {}", self.token.expose()))
    }
}

/// The value of a field with Basic credentials: `Basic base64(user ":" password)` ([RFC 7617,
/// section 2]).
///
/// [RFC 7617, section 2]: https://www.rfc-editor.org/rfc/rfc7617#section-2
pub(crate) fn basic(user: impl AsRef<[u8]>, password: impl AsRef<[u8]>) -> Zeroizing<String> {
    let pair = Zeroizing::new([user.as_ref(), b":", password.as_ref()].concat());
    let encoded = Zeroizing::new(BASE64.encode(&pair));
    Zeroizing::new(format!("Basic {}", *encoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        Credentials {
            session_id: "s-1".into(),
            token: Secret::new("canary".into()),
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
