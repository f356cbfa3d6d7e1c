//! The texts of `-h`, `--help` and `help`, derived from the tables of options and subcommands.

use std::fmt::Write as _;

use rustix::termios::tcgetwinsize;

use crate::config::{Group, Subcommand};

use super::options::Opt;
use super::pages::{PAGES, page};

/// The narrowest and the widest text. Longer lines are hard to read.
const WIDTHS: std::ops::RangeInclusive<usize> = 60..=100;
/// The width if standard output is not a terminal.
const DEFAULT_WIDTH: usize = 80;
/// Where the meaning begins in the list of `-h`.
const MEANING_COLUMN: usize = 30;

/// How much help is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// `-h`: a short list of the options.
    Short,
    /// `--help`: defaults, variables and examples too.
    Long,
}

/// The width of the terminal, within limits.
pub(crate) fn width() -> usize {
    let columns = tcgetwinsize(std::io::stdout()).map_or(0, |size| usize::from(size.ws_col));
    let columns = if columns == 0 { DEFAULT_WIDTH } else { columns };
    columns.clamp(*WIDTHS.start(), *WIDTHS.end())
}

/// The help of the whole program.
pub(crate) fn overview(width: usize) -> String {
    let mut text = String::from(
        "Connects the tools of a sandbox to the outside through one authorised upstream.\n\nUsage:\n",
    );
    for page in PAGES {
        let _ = writeln!(text, "  {}", page.usage());
        paragraph(&mut text, 6, page.purpose, width);
    }
    text.push_str("\n`upstreamproxy help SUBCOMMAND` lists the options.\n");
    text
}

/// The help of one subcommand.
pub(crate) fn help(subcommand: Subcommand, detail: Detail, width: usize) -> String {
    let page = page(subcommand);
    let mut text = format!("Usage: {}\n\n", page.usage());
    paragraph(&mut text, 0, page.purpose, width);
    if detail == Detail::Short {
        text.push_str("\nOptions:\n");
        for opt in Opt::of(subcommand) {
            short_option(&mut text, opt, width);
        }
        let _ = writeln!(text, "\n`{} --help` says more.", command_line(page.name));
        return text;
    }
    for group in Group::ALL {
        let mut options = Opt::of(subcommand).filter(|opt| opt.group == group);
        if let Some(first) = options.next() {
            let _ = writeln!(text, "\n{}:", group.title());
            for opt in std::iter::once(first).chain(options) {
                long_option(&mut text, opt, width);
            }
        }
    }
    if Opt::of(subcommand).any(|opt| opt.value == Some("DURATION")) {
        text.push_str("\nDurations: 500ms, 10s, 2m, or a number of seconds.\n");
    }
    if !page.examples.is_empty() {
        text.push_str("\nExamples:\n");
    }
    for (line, meaning) in page.examples {
        // Not wrapped: a command line is pasted as one line.
        let _ = writeln!(text, "  {}", command_line(line));
        paragraph(&mut text, 6, meaning, width);
    }
    text.push_str("\nExit status:\n");
    for status in page.exit_statuses.split("; ") {
        paragraph(&mut text, 2, status, width);
    }
    text
}

/// A command line of this program.
fn command_line(arguments: &str) -> String {
    format!("upstreamproxy {arguments}")
}

/// One option in the list of `-h`: beside its name, the first part of its meaning.
fn short_option(text: &mut String, opt: Opt, width: usize) {
    let usage = format!("  {}", opt.usage());
    let mut lines = wrapped(opt.summary(), width - MEANING_COLUMN).into_iter();
    // At least two spaces separate the columns.
    if usage.len() + 2 <= MEANING_COLUMN {
        let first = lines.next().unwrap_or_default();
        let _ = writeln!(text, "{usage:MEANING_COLUMN$}{first}");
    } else {
        let _ = writeln!(text, "{usage}");
    }
    for line in lines {
        let _ = writeln!(text, "{:MEANING_COLUMN$}{line}", "");
    }
}

/// One option in the list of `--help`.
fn long_option(text: &mut String, opt: Opt, width: usize) {
    let _ = writeln!(text, "  {}", opt.usage());
    paragraph(text, 6, &opt.meaning(), width);
    if let Some(variables) = opt.variables() {
        paragraph(text, 6, &format!("environment: {variables}"), width);
    }
}

/// `content`, indented, in lines of at most `width` bytes.
fn paragraph(text: &mut String, indentation: usize, content: &str, width: usize) {
    for line in wrapped(content, width - indentation) {
        let _ = writeln!(text, "{:indentation$}{line}", "");
    }
}

/// `text` in lines of at most `width` bytes, if no word is longer.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::pages::{name, subcommands};
    use super::*;

    #[test]
    fn the_help_of_a_subcommand_lists_each_of_its_options_and_no_other() {
        for subcommand in subcommands() {
            let long = help(subcommand, Detail::Long, 80);
            let short = help(subcommand, Detail::Short, 80);
            for opt in Opt::all() {
                let row = format!("  {}", opt.usage());
                let known =
                    Opt::long(subcommand, opt.name).is_some_and(|one| one.usage() == opt.usage());
                let listed = long.lines().any(|line| line == row);
                assert_eq!(listed, known, "{subcommand:?} {row:?}");
                let listed = short
                    .lines()
                    .any(|line| line == row || line.starts_with(&format!("{row} ")));
                assert_eq!(listed, known, "{subcommand:?} {row:?}");
                if opt.subcommands.contains(&subcommand) && opt.in_environment {
                    assert!(long.contains(&format!("environment: {}", opt.variable())));
                }
            }
        }
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in [60, 80, 100] {
            let pages = subcommands().flat_map(|subcommand| {
                [Detail::Short, Detail::Long].map(|detail| help(subcommand, detail, width))
            });
            for text in pages.chain([overview(width)]) {
                for line in text
                    .lines()
                    .filter(|line| !line.starts_with("  upstreamproxy "))
                {
                    assert!(line.len() <= width.max(80), "{width}: {line}");
                }
            }
        }
        let widest = help(Subcommand::Run, Detail::Long, 100);
        assert!(widest.lines().any(|line| line.len() > 80));
    }

    #[test]
    fn the_overview_names_every_subcommand() {
        for opt in Opt::all() {
            for subcommand in subcommands().filter(|one| opt.subcommands.contains(one)) {
                assert_eq!(page(subcommand).subcommand, subcommand);
                assert!(overview(80).contains(&format!("upstreamproxy {}", name(subcommand))));
            }
        }
    }

    #[test]
    fn long_help_has_groups_defaults_variables_and_examples() {
        let text = help(Subcommand::Run, Detail::Long, 80);
        for part in [
            "\nUpstream and session:\n",
            "\nRelay:\n",
            "\nLimits:\n",
            "\nOutput:\n",
            "127.0.0.1:0)\n",
            "environment: UPSTREAMPROXY_BASE_URL or ANTHROPIC_BASE_URL\n",
            "\nExamples:\n  upstreamproxy run -- npm install\n",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        let short = help(Subcommand::Run, Detail::Short, 80);
        assert!(short.lines().count() * 2 < text.lines().count(), "{short}");
    }
}
