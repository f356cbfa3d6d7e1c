//! The session ID and its syntax.

use std::fmt;
use std::str::FromStr;

/// The longest session ID. It is sent in a header next to the token; real IDs have about forty
/// characters.
const LENGTH_LIMIT: usize = 256;

/// The session ID sent to the upstream: 1 to 256 visible ASCII characters except the colon.
///
/// It is the user-id of Basic credentials, which cannot contain a colon ([RFC 7617, section 2]).
/// Parsing trims white space at both ends.
///
/// [RFC 7617, section 2]: https://www.rfc-editor.org/rfc/rfc7617#section-2
///
/// ```
/// let id: upstreamproxy::config::SessionId = " session-1\n".parse()?;
/// assert_eq!(id.as_str(), "session-1");
/// # Ok::<(), upstreamproxy::config::SessionIdError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(String);

impl SessionId {
    /// The session ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = SessionIdError;

    fn from_str(text: &str) -> Result<Self, SessionIdError> {
        let id = text.trim();
        if id.is_empty() {
            Err(SessionIdError::Empty)
        } else if id.len() > LENGTH_LIMIT {
            Err(SessionIdError::TooLong)
        } else if id.contains(':') {
            Err(SessionIdError::Colon)
        } else if !id.bytes().all(|b| b.is_ascii_graphic()) {
            Err(SessionIdError::Character)
        } else {
            Ok(Self(id.to_owned()))
        }
    }
}

impl TryFrom<&str> for SessionId {
    type Error = SessionIdError;

    fn try_from(text: &str) -> Result<Self, SessionIdError> {
        text.parse()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a [`SessionId`]. It does not contain the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionIdError {
    /// Nothing but white space.
    Empty,
    /// Longer than 256 bytes.
    TooLong,
    /// A colon.
    Colon,
    /// A character that is not visible ASCII.
    Character,
}

impl fmt::Display for SessionIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::TooLong => write!(f, "it is longer than {LENGTH_LIMIT} bytes"),
            Self::Colon => f.write_str("it contains a colon"),
            Self::Character => f.write_str("it contains a character that is not visible ASCII"),
        }
    }
}

impl std::error::Error for SessionIdError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_is_visible_ascii_without_a_colon() {
        let longest = "i".repeat(LENGTH_LIMIT);
        for id in [&longest, "!\"#$%&'()*+,-./;<=>?@[\\]^_`{|}~", "7"] {
            assert_eq!(id.parse::<SessionId>().unwrap().as_str(), id);
        }
        let too_long = "i".repeat(LENGTH_LIMIT + 1);
        for (text, error) in [
            (" ", SessionIdError::Empty),
            (too_long.as_str(), SessionIdError::TooLong),
            ("a:x", SessionIdError::Colon),
            ("a x", SessionIdError::Character),
            ("a\r\nX", SessionIdError::Character),
            ("\u{feff}a", SessionIdError::Character),
            ("a\u{7f}", SessionIdError::Character),
        ] {
            assert_eq!(text.parse::<SessionId>(), Err(error), "{text:?}");
        }
    }
}
