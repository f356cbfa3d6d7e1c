//! `man`: the manual page in roff (man(7)), derived from the tables of options and subcommands.

use std::fmt::Write as _;

use crate::config::{Group, Subcommand};

use super::help::wrapped;
use super::options::Opt;
use super::pages::{PAGES, name, subcommands};

/// The width of the lines of the source.
const WIDTH: usize = 76;

const DESCRIPTION: &str = "upstreamproxy gives the tools in a sandbox or container access to the \
    outside through one authorised upstream. Its relay listens on 127.0.0.1 and carries each \
    HTTP CONNECT request to a gateway over a WebSocket. Tools find it through variables such as \
    HTTPS_PROXY.";

/// The manual page upstreamproxy(1).
pub(crate) fn page() -> String {
    let mut text = format!(
        ".TH UPSTREAMPROXY 1 \"\" \"upstreamproxy {}\" \"User Commands\"\n",
        env!("CARGO_PKG_VERSION")
    );
    section(&mut text, "Name");
    text.push_str("upstreamproxy \\- CONNECT proxy over WebSocket for sandboxes\n");
    section(&mut text, "Synopsis");
    text.push_str(".nf\n");
    for page in PAGES {
        let _ = writeln!(text, ".B {}", escaped(&page.usage()));
    }
    text.push_str(".fi\n");
    section(&mut text, "Description");
    line(&mut text, DESCRIPTION);
    section(&mut text, "Subcommands");
    for page in PAGES {
        item(&mut text, page.name);
        line(&mut text, page.purpose);
        line(&mut text, &format!("(exit status: {})", page.exit_statuses));
    }
    section(&mut text, "Options");
    line(
        &mut text,
        "A flag overrides the variable of an option, which overrides the default. Durations are \
         500ms, 10s, 2m, or a number of seconds.",
    );
    for group in Group::ALL {
        let mut options = Opt::all()
            .filter(|opt| opt.group == group && !opt.subcommands.is_empty())
            .peekable();
        if options.peek().is_some() {
            let _ = writeln!(text, ".SS {}", group.title());
        }
        options.for_each(|opt| option(&mut text, opt));
    }
    section(&mut text, "Examples");
    for page in PAGES {
        for (arguments, meaning) in page.examples {
            item(&mut text, &format!("upstreamproxy {arguments}"));
            line(&mut text, meaning);
        }
    }
    section(&mut text, "Files");
    item(&mut text, "~/.ccr/ca-bundle.crt");
    line(
        &mut text,
        "the merged CA bundle, and beside it the files for tools",
    );
    item(&mut text, "~/.ccr/upstreamproxy.json");
    line(&mut text, "the state of a running serve");
    text
}

fn option(text: &mut String, opt: Opt) {
    item(text, &opt.usage());
    line(text, &opt.meaning());
    if opt.subcommands.len() < subcommands().count() {
        let owners: Vec<&str> = opt
            .subcommands
            .iter()
            .map(|&one: &Subcommand| name(one))
            .collect();
        line(text, &format!("(of {})", owners.join(", ")));
    }
    if let Some(variables) = opt.variables() {
        line(text, &format!("Environment: {variables}."));
    }
}

fn section(text: &mut String, title: &str) {
    let _ = writeln!(text, ".SH {}", title.to_uppercase());
}

/// The first line of an item of a list, in bold.
fn item(text: &mut String, title: &str) {
    let _ = writeln!(text, ".TP\n.B {}", escaped(title));
}

/// A line of text. Roff fills paragraphs itself.
fn line(text: &mut String, content: &str) {
    for line in wrapped(&escaped(content), WIDTH) {
        // A full stop at the start of a line would be a request; this prefix has no width.
        let prefix = if line.starts_with('.') { "\\&" } else { "" };
        let _ = writeln!(text, "{prefix}{line}");
    }
}

/// Text without special characters of roff.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
        .replace('"', "\\(dq")
        .replace('`', "\\(ga")
        .replace('~', "\\(ti")
        .replace('^', "\\(ha")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_option_and_every_subcommand() {
        let text = page();
        for opt in Opt::all().filter(|opt| !opt.subcommands.is_empty()) {
            let row = format!("\n.B {}\n", escaped(&opt.usage()));
            assert!(text.contains(&row), "{row}");
        }
        for page in PAGES {
            assert!(text.contains(&format!(".TP\n.B {}\n", page.name)));
        }
    }

    #[test]
    fn special_characters_are_escaped() {
        let mut text = String::new();
        line(&mut text, r".a-b\c'd");
        assert_eq!(text, "\\&.a\\-b\\ec\\(aqd\n");
    }
}
