//! What a mistyped word may have meant.

use std::fmt::Write as _;

/// ` (did you mean X?)`, if `typed` resembles a known word; each is shown after `prefix`.
pub(crate) fn suggestion<'a>(
    typed: &str,
    prefix: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> String {
    // One mistake per three letters: more would suggest unrelated words.
    let limit = (typed.len() / 3).max(1);
    let distances = known
        .into_iter()
        .map(|word| (strsim::osa_distance(typed, word), word));
    let mut text = String::new();
    if let Some((_, word)) = distances.filter(|(distance, _)| *distance <= limit).min() {
        let _ = write!(text, " (did you mean {prefix}{word}?)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_a_typing_error_is_recognised() {
        let known = ["serve", "env", "gateway", "keepalive"];
        for (typed, expected) in [
            ("sevre", "serve"),
            ("serv", "serve"),
            ("evn", "env"),
            ("gatway", "gateway"),
            ("keep-alive", "keepalive"),
        ] {
            let text = suggestion(typed, "--", known);
            assert_eq!(text, format!(" (did you mean --{expected}?)"));
        }
    }

    #[test]
    fn an_unrelated_word_is_not() {
        for typed in ["", "walk", "x", "entry", "🦀"] {
            assert_eq!(
                suggestion(typed, "", ["serve", "env", "run"]),
                "",
                "{typed}"
            );
        }
    }
}
