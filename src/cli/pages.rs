//! The subcommands: their names and documentation, from which the parser, help, completions and the
//! manual page are derived.

use crate::config::Subcommand;

/// Every subcommand with its documentation, in the order of help.
pub(crate) const PAGES: &[Page] = &[
    Page {
        subcommand: Subcommand::Run,
        name: "run",
        arguments: "[options] [--] COMMAND [ARG...]",
        words: Words::Command,
        purpose: "set up, run COMMAND with the variables, tear down, exit with its status",
        exit_statuses: "the status of COMMAND; 128+n if signal n ended it or arrived during set-up; 127 not \
                        found; 126 not executable; 125 usage; 69 disabled with --require",
        examples: &[
            (
                "run -- npm install",
                "install packages through the upstream of the session",
            ),
            #[cfg(feature = "gateway")]
            (
                "run --embedded -- curl -sSI https://example.com",
                "try it without an upstream",
            ),
            (
                "run --when always --base-url https://HOST:8443 --session-id session-1 \
                 --token-file token -- sh",
                "a shell behind a gateway of your own",
            ),
        ],
    },
    Page {
        subcommand: Subcommand::Serve,
        name: "serve",
        arguments: "[options]",
        words: Words::None,
        purpose: "set up, print one JSON line when ready, serve until SIGTERM or SIGINT",
        exit_statuses: "0 all tunnels ended, or disabled; 1 some were cut; 2 usage; 69 disabled with --require; \
                        128+n at a second signal",
        examples: &[
            ("serve --require", "fail if the session has no upstream"),
            (
                "serve --listen 3128",
                "the relay on a known port of 127.0.0.1",
            ),
        ],
    },
    Page {
        subcommand: Subcommand::Env,
        name: "env",
        arguments: "[options]",
        words: Words::None,
        purpose: "print the variables of the running `serve`, for eval",
        exit_statuses: "0 success; 1 no serve is running; 2 usage",
        examples: &[
            ("env", "in a shell: eval \"$(upstreamproxy env)\""),
            (
                "env --format fish",
                "in fish: upstreamproxy env --format fish | source",
            ),
            (
                "env --unset",
                "to leave the proxy: eval \"$(upstreamproxy env --unset)\"",
            ),
        ],
    },
    Page {
        subcommand: Subcommand::Ca,
        name: "ca",
        arguments: "[options]",
        words: Words::None,
        purpose: "print the upstream's CA certificates (PEM), for trust stores that need them alone",
        exit_statuses: "0 success; 1 there is no upstream, or the download failed; 2 usage",
        examples: &[
            (
                "ca > ca.pem",
                "of the relay of this shell, or else of the running serve",
            ),
            (
                "ca --base-url https://HOST:8443",
                "of this upstream, by a download",
            ),
        ],
    },
    Page {
        subcommand: Subcommand::Doctor,
        name: "doctor",
        arguments: "[options]",
        words: Words::None,
        purpose: "check every stage and a round trip through the tunnel, report problems",
        exit_statuses: "0 everything is ok; 1 something is wrong; 2 usage; 128+n if signal n ended it",
        examples: &[
            ("doctor", "check the session, or the running serve"),
            ("doctor --json", "the same, for programs"),
        ],
    },
    #[cfg(feature = "bench")]
    Page {
        subcommand: Subcommand::Bench,
        name: "bench",
        arguments: "[options]",
        words: Words::None,
        purpose: "measure set-up, echo and throughput of the upstream, report the bottleneck",
        exit_statuses: "0 measured, or --origin was stopped; 1 the path could not be measured; 2 usage; \
                        128+n if signal n ended a measurement",
        examples: &[
            (
                "bench --embedded",
                "measure this machine, without an upstream",
            ),
            (
                "bench --target HOST:PORT",
                "measure the path to a bench --origin on another machine",
            ),
        ],
    },
    #[cfg(feature = "gateway")]
    Page {
        subcommand: Subcommand::Gateway,
        name: "gateway",
        arguments: "--sessions FILE [options]",
        words: Words::None,
        purpose: "run the server end: the CA endpoint and the tunnel endpoint on one port",
        exit_statuses: "0 all tunnels ended; 1 some were cut; 2 a setting cannot be used; 128+n at a second signal",
        examples: &[
            (
                "gateway --sessions sessions",
                "for relays on this machine, without TLS",
            ),
            (
                "gateway --sessions sessions --listen :8443 --tls-cert gateway.pem --tls-key gateway.key",
                "for relays on other machines",
            ),
        ],
    },
    Page {
        subcommand: Subcommand::Unit,
        name: "unit",
        arguments: SERVICE_ARGUMENTS,
        words: Words::Service(SERVICES),
        purpose: "print a systemd unit for `serve` or `gateway`, with the options after --",
        exit_statuses: "0 success; 1 a path is not UTF-8; 2 usage",
        examples: &[
            (
                "unit serve",
                "a unit for the relay, with comments on what to adapt",
            ),
            (
                "unit serve -- --base-url https://HOST:8443 --session-id session-1",
                "with these options of serve",
            ),
        ],
    },
    Page {
        subcommand: Subcommand::Completions,
        name: "completions",
        arguments: "bash|zsh|fish",
        words: Words::OneOf(&["bash", "zsh", "fish"]),
        purpose: "print the completions of a shell",
        exit_statuses: "0 success; 2 usage",
        examples: &[
            (
                "completions bash",
                "in ~/.bashrc: source <(upstreamproxy completions bash)",
            ),
            (
                "completions zsh",
                "in ~/.zshrc, after compinit: source <(upstreamproxy completions zsh)",
            ),
            (
                "completions fish",
                "in config.fish: upstreamproxy completions fish | source",
            ),
        ],
    },
    Page {
        subcommand: Subcommand::Man,
        name: "man",
        arguments: "",
        words: Words::None,
        purpose: "print the manual page, in roff",
        exit_statuses: "0 success; 2 usage",
        examples: &[("man", "to read it: upstreamproxy man | man -l -")],
    },
    Page {
        subcommand: Subcommand::Help,
        name: "help",
        arguments: "[SUBCOMMAND]",
        words: Words::Subcommand,
        purpose: "print the help of a subcommand, or of the program",
        exit_statuses: "0 success; 2 usage",
        examples: &[("help run", "every option of run")],
    },
    Page {
        subcommand: Subcommand::Version,
        name: "version",
        arguments: "",
        words: Words::None,
        purpose: "print the version",
        exit_statuses: "0 success; 2 usage",
        examples: &[],
    },
];

/// The documentation of one subcommand.
pub(crate) struct Page {
    /// The subcommand.
    pub(crate) subcommand: Subcommand,
    /// The word that selects it.
    pub(crate) name: &'static str,
    /// What follows the name, in a line of usage.
    pub(crate) arguments: &'static str,
    /// The arguments that are not options.
    pub(crate) words: Words,
    /// What it does, in one line.
    pub(crate) purpose: &'static str,
    /// Its exit statuses, separated by semicolons.
    pub(crate) exit_statuses: &'static str,
    /// Command lines, without the name of the program, each with its meaning.
    pub(crate) examples: &'static [(&'static str, &'static str)],
}

/// The arguments of a subcommand that are not options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// There are none.
    None,
    /// A command and its arguments.
    Command,
    /// Exactly one of these words.
    OneOf(&'static [&'static str]),
    /// Exactly one of these subcommands, then its options.
    Service(&'static [&'static str]),
    /// The name of a subcommand, or nothing.
    Subcommand,
}

/// The subcommands that run as a service.
#[cfg(feature = "gateway")]
const SERVICES: &[&str] = &["serve", "gateway"];
#[cfg(not(feature = "gateway"))]
const SERVICES: &[&str] = &["serve"];
#[cfg(feature = "gateway")]
const SERVICE_ARGUMENTS: &str = "serve|gateway [-- OPTION...]";
#[cfg(not(feature = "gateway"))]
const SERVICE_ARGUMENTS: &str = "serve [-- OPTION...]";

impl Page {
    /// How it is used, in one line.
    pub(crate) fn usage(&self) -> String {
        let line = format!("upstreamproxy {} {}", self.name, self.arguments);
        line.trim_end().to_owned()
    }
}

/// Every subcommand, in the order of help.
pub(crate) fn subcommands() -> impl Iterator<Item = Subcommand> {
    PAGES.iter().map(|page| page.subcommand)
}

/// The word that selects `subcommand`.
pub(crate) fn name(subcommand: Subcommand) -> &'static str {
    page(subcommand).name
}

/// The documentation of `subcommand`.
pub(crate) fn page(subcommand: Subcommand) -> &'static Page {
    let found = PAGES.iter().find(|page| page.subcommand == subcommand);
    // A test checks that every subcommand has a page.
    found.unwrap_or(&PAGES[0])
}
