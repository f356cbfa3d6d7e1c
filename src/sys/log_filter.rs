//! Which log records may be shown, and their text as one line: for every logger, including the
//! command line's.
//!
//! Other crates log secrets below `warn`: tungstenite logs the upgrade request with its token at
//! `trace`. The warnings of rustls do not name the peer; this crate reports each error of rustls in
//! a line that does.

use std::fmt;

use log::{Level, LevelFilter, Metadata, Record};

/// The crate whose records may be shown at every level. The library and the binary have the same
/// name.
const THIS_CRATE: &str = "upstreamproxy";
/// The most detailed level of other crates that may be shown.
const OTHER_CRATES: LevelFilter = LevelFilter::Warn;

/// The crate whose records are never shown.
const SILENCED_CRATE: &str = "rustls";

/// Whether a logger may show the record: one of this crate, or of most other crates at `warn` or
/// above.
pub(crate) fn may_be_shown(metadata: &Metadata<'_>) -> bool {
    let is_of = |name: &str| {
        let rest = metadata.target().strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    is_of(THIS_CRATE) || (metadata.level() <= OTHER_CRATES && !is_of(SILENCED_CRATE))
}

/// The maximum number of bytes of a line. Texts of peers in this crate's own records are much
/// shorter; other crates log names from a handshake without a limit.
const LINE_LIMIT: usize = 16 << 10;

/// The text of a record on one line: control characters are escaped, and a text that is too long is
/// cut.
pub(crate) fn one_line(text: &fmt::Arguments<'_>) -> String {
    let mut line = String::new();
    for c in text.to_string().chars() {
        if line.len() >= LINE_LIMIT {
            line.push_str(" ... (cut)");
            break;
        }
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// `upstreamproxy: warn: text`, without the level for `info`. Always one line, whatever the text
/// contains.
pub(crate) fn line(record: &Record<'_>) -> String {
    let level = match record.level() {
        Level::Error => "error: ",
        Level::Warn => "warn: ",
        Level::Info => "",
        Level::Debug => "debug: ",
        Level::Trace => "trace: ",
    };
    format!("upstreamproxy: {level}{}\n", one_line(record.args()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(target: &str, level: Level) -> Metadata<'_> {
        Metadata::builder().target(target).level(level).build()
    }

    #[test]
    fn records_of_other_crates_are_shown_from_warn_only() {
        for target in [
            "tungstenite::handshake",
            "ureq",
            "rustls_x",
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
    fn the_records_of_rustls_are_never_shown() {
        for target in ["rustls", "rustls::msgs::handshake"] {
            assert!(!may_be_shown(&metadata(target, Level::Error)), "{target}");
        }
    }

    #[test]
    fn a_text_is_one_line_without_control_characters() {
        assert_eq!(one_line(&format_args!("3 tunnels")), "3 tunnels");
        assert_eq!(
            one_line(&format_args!("a\n\u{1b}[31mb\u{9b}\0")),
            "a\\n\\u{1b}[31mb\\u{9b}\\u{0}"
        );
        let long = one_line(&format_args!("{}", "x".repeat(100_000)));
        assert!(long.len() < LINE_LIMIT + 20 && long.ends_with("(cut)"));
    }

    #[test]
    fn a_record_is_one_line_with_its_level() {
        let text = |level, message: &str| {
            line(
                &Record::builder()
                    .level(level)
                    .args(format_args!("{message}"))
                    .build(),
            )
        };
        assert_eq!(text(Level::Warn, "a"), "upstreamproxy: warn: a\n");
        assert_eq!(text(Level::Info, "3 tunnels"), "upstreamproxy: 3 tunnels\n");
        assert_eq!(text(Level::Error, "a\nb"), "upstreamproxy: error: a\\nb\n");
    }
}
