//! The session ID and its syntax.

use std::fmt;
use std::str::FromStr;

use crate::error::ValueError;

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
/// # Ok::<(), upstreamproxy::config::ValueError>(())
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
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let id = text.trim();
        if id.is_empty() {
            Err(ValueError("it is empty"))
        } else if id.len() > LENGTH_LIMIT {
            Err(ValueError("it is longer than 256 bytes"))
        } else if id.contains(':') {
            Err(ValueError("it contains a colon"))
        } else if !id.bytes().all(|b| b.is_ascii_graphic()) {
            Err(ValueError(
                "it contains a character that is not visible ASCII",
            ))
        } else {
            Ok(Self(id.to_owned()))
        }
    }
}

impl TryFrom<&str> for SessionId {
    type Error = ValueError;

    fn try_from(text: &str) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

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
            (" ", "it is empty"),
            (too_long.as_str(), "it is longer than 256 bytes"),
            ("a:x", "it contains a colon"),
            ("a x", "it contains a character that is not visible ASCII"),
            (
                "a\r\nX",
                "it contains a character that is not visible ASCII",
            ),
            (
                "\u{feff}a",
                "it contains a character that is not visible ASCII",
            ),
            (
                "a\u{7f}",
                "it contains a character that is not visible ASCII",
            ),
        ] {
            assert_eq!(
                text.parse::<SessionId>(),
                Err(ValueError(error)),
                "{text:?}"
            );
        }
    }
}
