//! What of the log may be seen, and how a record becomes one line: for whoever sets up a logger, the command line among them.
//!
//! Other crates log what must not be seen (tungstenite the upgrade request with its token, at trace), so that nothing of
//! theirs below `warn` passes.

use std::fmt;

use log::{LevelFilter, Metadata};

/// The crate whose records may be seen at every level; library and binary bear the same name.
const OURS: &str = "upstreamproxy";
/// What of other crates may be seen.
const OTHERS: LevelFilter = LevelFilter::Warn;

/// Whether a logger may show such a record: one of ours, or of another crate at `warn` or above. Others tell tokens below that.
pub(crate) fn may_be_shown(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let ours = target
        .strip_prefix(OURS)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    ours || metadata.level() <= OTHERS
}

/// A record's text without control characters, so that it is one line whatever it holds.
pub(crate) fn one_line(text: &fmt::Arguments<'_>) -> String {
    let mut line = String::new();
    for c in text.to_string().chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    fn metadata(target: &str, level: Level) -> Metadata<'_> {
        Metadata::builder().target(target).level(level).build()
    }

    #[test]
    fn other_crates_are_heard_from_warn_upwards_only() {
        for target in [
            "tungstenite::handshake",
            "ureq",
            "rustls::client",
            "upstreamproxy_x",
            "",
        ] {
            assert!(may_be_shown(&metadata(target, Level::Warn)), "{target}");
            for level in [Level::Info, Level::Debug, Level::Trace] {
                assert!(!may_be_shown(&metadata(target, level)), "{target} {level}");
            }
        }
        for target in ["upstreamproxy", "upstreamproxy::relay"] {
            assert!(may_be_shown(&metadata(target, Level::Trace)), "{target}");
        }
    }

    #[test]
    fn a_text_is_one_line_without_control_characters() {
        assert_eq!(one_line(&format_args!("3 tunnels")), "3 tunnels");
        assert_eq!(
            one_line(&format_args!("a\n\u{1b}[31mb\u{9b}\0")),
            "a\\n\\u{1b}[31mb\\u{9b}\\u{0}"
        );
    }
}
