//! Text from a peer, such as the names in its certificate, as it may be part of a message.
//!
//! A peer chooses how long its texts are. Without a limit one handshake could write 70 KB to the
//! log, or send it to a client.

use std::fmt::{self, Display, Write};

/// The maximum number of bytes of a peer's text in a message.
pub(crate) const TEXT_LIMIT: usize = 1 << 10;
/// The end of a text that was cut.
const CUT: &str = " ... (cut)";

/// `text` with at most [`TEXT_LIMIT`] bytes, and with a space for each control character.
pub(crate) fn bounded(text: impl Display) -> String {
    let mut bounded = Bounded(String::new());
    // The only error is that the text was cut.
    if write!(bounded, "{text}").is_err() {
        bounded.0.push_str(CUT);
    }
    bounded.0
}

/// Takes characters up to the limit. Then it fails, so that the rest of the text is not made.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.len() + c.len_utf8() + CUT.len() > TEXT_LIMIT {
                return Err(fmt::Error);
            }
            self.0.push(if c.is_control() { ' ' } else { c });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_and_control_characters_become_spaces() {
        assert_eq!(bounded("a name\r\n\u{1b}[31m"), "a name   [31m");
        for long in ["x".repeat(100_000), "\u{20ac}".repeat(100_000)] {
            let cut = bounded(&long);
            assert!(
                cut.len() <= TEXT_LIMIT && cut.len() > TEXT_LIMIT - 4,
                "{cut}"
            );
            assert!(cut.ends_with(CUT), "{cut}");
        }
    }

    #[test]
    fn a_text_is_not_made_beyond_the_limit() {
        struct Endless;
        impl Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("name, ")?;
                }
            }
        }
        assert!(bounded(Endless).len() <= TEXT_LIMIT);
    }
}
