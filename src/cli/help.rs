//! The text of `--help`, derived from the tables of options.

use std::fmt::Write as _;

use crate::config::Subcommand;

use super::options::Opt;

/// The width of help texts; with their indentation they fit a terminal of 80 columns.
const WIDTH: usize = 72;

/// Every subcommand with its documentation, in the order of help.
const SUBCOMMANDS: &[Page] = &[
    Page {
        subcommand: Subcommand::Run,
        name: "run",
        usage: "upstreamproxy run [options] [--] COMMAND [ARG...]",
        purpose: "set up, run COMMAND with the variables, tear down, exit with its status",
        exit_statuses: "the status of COMMAND; 128+n if signal n ended it or arrived during set-up; 127 not \
                        found; 126 not executable; 125 usage; 69 disabled with --require",
    },
    Page {
        subcommand: Subcommand::Serve,
        name: "serve",
        usage: "upstreamproxy serve [options]",
        purpose: "set up, print one JSON line when ready, serve until SIGTERM or SIGINT",
        exit_statuses: "0 all tunnels ended, or disabled; 1 some were cut; 2 usage; 69 disabled with --require; \
                        128+n at a second signal",
    },
    Page {
        subcommand: Subcommand::Env,
        name: "env",
        usage: "upstreamproxy env [options]",
        purpose: "print the variables of the running `serve`, for eval",
        exit_statuses: "0 success; 1 no serve is running; 2 usage",
    },
    Page {
        subcommand: Subcommand::Doctor,
        name: "doctor",
        usage: "upstreamproxy doctor [options]",
        purpose: "check every stage and a round trip through the tunnel, report problems",
        exit_statuses: "0 everything is ok; 1 something is wrong; 2 usage; 128+n if signal n ended it",
    },
    #[cfg(feature = "bench")]
    Page {
        subcommand: Subcommand::Bench,
        name: "bench",
        usage: "upstreamproxy bench [options]",
        purpose: "measure set-up, echo and throughput of the upstream, report the bottleneck",
        exit_statuses: "0 measured, or --origin was stopped; 1 the path could not be measured; 2 usage; \
                        128+n if signal n ended a measurement",
    },
    #[cfg(feature = "gateway")]
    Page {
        subcommand: Subcommand::Gateway,
        name: "gateway",
        usage: "upstreamproxy gateway --sessions FILE [options]",
        purpose: "run the server end: the CA endpoint and the tunnel endpoint on one port",
        exit_statuses: "0 all tunnels ended; 1 some were cut; 2 a setting cannot be used; 128+n at a second signal",
    },
];

/// The documentation of one subcommand.
struct Page {
    subcommand: Subcommand,
    name: &'static str,
    usage: &'static str,
    purpose: &'static str,
    exit_statuses: &'static str,
}

/// Every subcommand, in the order of help.
pub(crate) fn subcommands() -> impl Iterator<Item = Subcommand> {
    SUBCOMMANDS.iter().map(|page| page.subcommand)
}

/// The word that selects `subcommand`.
pub(crate) fn name(subcommand: Subcommand) -> &'static str {
    page(subcommand).name
}

fn page(subcommand: Subcommand) -> &'static Page {
    let found = SUBCOMMANDS
        .iter()
        .find(|page| page.subcommand == subcommand);
    // A test checks that every subcommand has a page.
    found.unwrap_or(&SUBCOMMANDS[0])
}

/// The help of the whole program.
pub(crate) fn overview() -> String {
    let mut text = String::from(
        "Connects the tools of a sandbox to the outside through one authorised upstream.\n\nUsage:\n",
    );
    for page in SUBCOMMANDS {
        let _ = writeln!(text, "  {}\n      {}", page.usage, page.purpose);
    }
    text.push_str("\n`upstreamproxy SUBCOMMAND --help` lists the options.\n");
    text
}

/// The help of one subcommand.
pub(crate) fn help(subcommand: Subcommand) -> String {
    let page = page(subcommand);
    let mut text = format!("Usage: {}\n\n{}\n\nOptions:\n", page.usage, page.purpose);
    for opt in Opt::of(subcommand) {
        let _ = writeln!(text, "  {}", opt.usage());
        for line in wrapped(&opt.meaning()) {
            let _ = writeln!(text, "      {line}");
        }
        if opt.in_environment {
            let separator = if opt.repeatable {
                " (values separated by spaces)"
            } else {
                ""
            };
            let _ = writeln!(text, "      environment: {}{separator}", opt.variable());
        }
    }
    text.push_str("\nDurations: 500ms, 10s, 2m, or a number of seconds.\n\nExit status:\n");
    for line in wrapped(page.exit_statuses) {
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// `text` in lines of at most [`WIDTH`] bytes.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
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
    use super::*;

    #[test]
    fn the_help_of_a_subcommand_lists_each_of_its_options_and_no_other() {
        for subcommand in subcommands() {
            let text = help(subcommand);
            for opt in Opt::all() {
                let row = format!("  {}", opt.usage());
                let known = Opt::long(subcommand, opt.name).is_some();
                let listed = text.lines().any(|line| line == row);
                assert_eq!(listed, known, "{subcommand:?} {row:?}");
                if opt.subcommands.contains(&subcommand) && opt.in_environment {
                    assert!(text.contains(&format!("environment: {}", opt.variable())));
                }
            }
            assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        }
    }

    #[test]
    fn the_overview_names_every_subcommand() {
        for opt in Opt::all() {
            for subcommand in subcommands().filter(|one| opt.subcommands.contains(one)) {
                assert_eq!(page(subcommand).subcommand, subcommand);
                assert!(overview().contains(&format!("upstreamproxy {} ", name(subcommand))));
            }
        }
    }
}
