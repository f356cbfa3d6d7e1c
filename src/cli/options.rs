//! The one table of options: it drives parsing, `--help` and the tests (`manual/operations.md`).
//!
//! What an option's value means is `resolve`'s to say; here stand its names, its subcommands and what its reader must know.

use std::fmt::Write as _;

/// Whether this build has the server end.
const HAS_GATEWAY: bool = cfg!(feature = "gateway");

/// A subcommand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subcommand {
    /// Set up, run a command, tear down.
    Run,
    /// Set up and serve until told to stop.
    Serve,
    /// Print the variables of the running `serve`.
    Env,
    /// Walk every stage and say what is wrong.
    Doctor,
    /// Measure the way through the upstream.
    #[cfg(feature = "bench")]
    Bench,
    /// The server end.
    Gateway,
}

impl Subcommand {
    /// Every subcommand, in the order in which help lists them.
    pub(crate) const ALL: [Self; if cfg!(feature = "bench") { 6 } else { 5 }] = [
        Self::Run,
        Self::Serve,
        Self::Env,
        Self::Doctor,
        #[cfg(feature = "bench")]
        Self::Bench,
        Self::Gateway,
    ];

    /// The word that selects it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Serve => "serve",
            Self::Env => "env",
            Self::Doctor => "doctor",
            #[cfg(feature = "bench")]
            Self::Bench => "bench",
            Self::Gateway => "gateway",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Self::Run => "upstreamproxy run [options] [--] COMMAND [ARG...]",
            Self::Serve => "upstreamproxy serve [options]",
            Self::Env => "upstreamproxy env [options]",
            Self::Doctor => "upstreamproxy doctor [options]",
            #[cfg(feature = "bench")]
            Self::Bench => "upstreamproxy bench [options]",
            Self::Gateway => "upstreamproxy gateway --sessions FILE [options]",
        }
    }

    fn purpose(self) -> &'static str {
        match self {
            Self::Run => "set up, run COMMAND with the variables, tear down, exit as it did",
            Self::Serve => "set up, print one JSON line when ready, serve until SIGTERM or SIGINT",
            Self::Env => "print the variables of the running `serve`, for eval",
            Self::Doctor => {
                "walk every stage and a round trip through the tunnel, say what is wrong"
            }
            #[cfg(feature = "bench")]
            Self::Bench => {
                "measure set-up, echo and throughput through the upstream, say what limits them"
            }
            Self::Gateway if HAS_GATEWAY => {
                "the server end: the CA endpoint and the tunnel endpoint on one port"
            }
            Self::Gateway => "not in this build, which is the relay alone",
        }
    }

    fn exit_codes(self) -> &'static str {
        match self {
            Self::Run => {
                "the command's own; 128+n if signal n ended it or came during set-up; 127 not found; \
                 126 not executable; 125 usage; 69 disabled although --require"
            }
            Self::Serve => {
                "0 all tunnels ended, or disabled; 1 some were cut; 2 usage; 69 disabled although --require; \
                 128+n at a second signal"
            }
            Self::Env => "0; 1 no serve is running; 2 usage",
            Self::Doctor => "0 all well; 1 something is not; 2 usage; 128+n if signal n ended it",
            #[cfg(feature = "bench")]
            Self::Bench => {
                "0 measured, or --origin was told to stop; 1 there was no way to measure; 2 usage; \
                 128+n if signal n ended a measurement"
            }
            Self::Gateway => {
                "0 all tunnels ended; 1 some were cut; 2 a setting cannot be used; 128+n at a second signal"
            }
        }
    }
}

/// One option of one or more subcommands.
#[derive(Debug)]
pub(crate) struct Opt {
    /// The long name, without the dashes.
    pub(crate) name: &'static str,
    /// The letter, if it has one.
    pub(crate) short: Option<char>,
    /// The name of its value in help; `None`: a switch.
    pub(crate) value: Option<&'static str>,
    /// May be given more than once, every value counts. In the environment the values are separated by blanks.
    pub(crate) repeatable: bool,
    /// May be given as `UPSTREAMPROXY_<NAME>` too.
    pub(crate) in_environment: bool,
    /// The subcommands that know it.
    pub(crate) of: &'static [Subcommand],
    /// Meaning, unit, default, what 0 means.
    pub(crate) help: &'static str,
}

impl Opt {
    /// The variable that gives it: `UPSTREAMPROXY_<NAME>`.
    pub(crate) fn variable(&self) -> String {
        let name = self.name.to_ascii_uppercase().replace('-', "_");
        format!("UPSTREAMPROXY_{name}")
    }

    /// The option of `subcommand` with this long name.
    pub(crate) fn long(subcommand: Subcommand, name: &str) -> Option<&'static Self> {
        Self::of(subcommand).find(|opt| opt.name == name)
    }

    /// The option of `subcommand` with this letter.
    pub(crate) fn short(subcommand: Subcommand, letter: char) -> Option<&'static Self> {
        Self::of(subcommand).find(|opt| opt.short == Some(letter))
    }

    /// Every option of `subcommand`, in the order of help.
    pub(crate) fn of(subcommand: Subcommand) -> impl Iterator<Item = &'static Self> {
        OPTIONS
            .iter()
            .filter(move |opt| opt.of.contains(&subcommand))
    }
}

#[cfg(feature = "bench")]
use Subcommand::Bench;
use Subcommand::{Doctor, Env, Gateway, Run, Serve};

/// The subcommands that live through the five stages, or look at it.
const SESSION: &[Subcommand] = &[Run, Serve, Doctor];
/// Those that go to the upstream.
const UPSTREAM: &[Subcommand] = &[
    Run,
    Serve,
    Doctor,
    #[cfg(feature = "bench")]
    Bench,
];
/// Those that use what they set up.
const RELAY: &[Subcommand] = &[
    Run,
    Serve,
    #[cfg(feature = "bench")]
    Bench,
];
/// Those that report on the way.
const REPORT: &[Subcommand] = &[
    Doctor,
    #[cfg(feature = "bench")]
    Bench,
];
/// Those that have tunnels.
const TUNNELS: &[Subcommand] = &[Run, Serve, Doctor, Gateway];
/// Those that open them.
const OPENERS: &[Subcommand] = &[
    Run,
    Serve,
    Doctor,
    #[cfg(feature = "bench")]
    Bench,
    Gateway,
];
const EVERY: &[Subcommand] = &Subcommand::ALL;

/// An option with a value, in the environment too: the usual kind.
const fn setting(
    name: &'static str,
    value: &'static str,
    of: &'static [Subcommand],
    help: &'static str,
) -> Opt {
    Opt {
        name,
        short: None,
        value: Some(value),
        repeatable: false,
        in_environment: true,
        of,
        help,
    }
}

/// A setting that may be given more than once.
const fn list(
    name: &'static str,
    value: &'static str,
    of: &'static [Subcommand],
    help: &'static str,
) -> Opt {
    let mut opt = setting(name, value, of, help);
    opt.repeatable = true;
    opt
}

/// An option without a value, in the environment too.
const fn switch(name: &'static str, of: &'static [Subcommand], help: &'static str) -> Opt {
    let mut opt = setting(name, "", of, help);
    opt.value = None;
    opt
}

/// A switch with a letter, on the command line only.
const fn letter(
    name: &'static str,
    short: char,
    of: &'static [Subcommand],
    help: &'static str,
) -> Opt {
    let mut opt = switch(name, of, help);
    opt.short = Some(short);
    opt.in_environment = false;
    opt
}

/// The table. One name may stand in two rows when it means different things to different subcommands.
pub(crate) const OPTIONS: &[Opt] = &[
    setting(
        "when",
        "auto|always|never",
        UPSTREAM,
        "whether to run at all: auto, the default, looks at CLAUDE_CODE_REMOTE and CCR_UPSTREAM_PROXY_ENABLED; \
         always skips these switches and wants a base URL; never wins over everything",
    ),
    switch(
        "embedded",
        UPSTREAM,
        if HAS_GATEWAY {
            "start a gateway inside this process and use that as the upstream; implies --when always"
        } else {
            "not in this build, which is the relay alone"
        },
    ),
    setting(
        "base-url",
        "URL",
        UPSTREAM,
        "the upstream, https (http for loopback only); default ANTHROPIC_BASE_URL, else the public API where the \
         switches opened the gate",
    ),
    setting(
        "session-id",
        "ID",
        UPSTREAM,
        "who we are to the upstream; default CLAUDE_CODE_REMOTE_SESSION_ID",
    ),
    setting(
        "token-file",
        "PATH",
        UPSTREAM,
        "the file with the session token, deleted once the relay listens; default /run/ccr/session_token",
    ),
    setting(
        "upstream-ca",
        "FILE",
        UPSTREAM,
        "PEM file of further roots for our own connections to the upstream; with --embedded, for verifying targets; \
         default none",
    ),
    setting(
        "system-ca",
        "FILE",
        UPSTREAM,
        "PEM file of base roots; default the inherited SSL_CERT_FILE, else the distribution's",
    ),
    setting(
        "ca-bundle",
        "PATH",
        SESSION,
        "where the merged bundle is written; default ~/.ccr/ca-bundle.crt",
    ),
    setting(
        "listen",
        "ADDR:PORT",
        SESSION,
        "where the relay listens; default 127.0.0.1:0; port 0: the kernel chooses a free one",
    ),
    switch(
        "allow-non-loopback",
        UPSTREAM,
        "let --listen be an address that other machines can reach: they then spend this session's authority; of bench, \
         let --origin be one",
    ),
    switch(
        "allow-any-user",
        SESSION,
        "let every user of this machine use the port; without it only this user and root may, where the kernel tells",
    ),
    switch(
        "listen-credential",
        SESSION,
        "put a random password into the proxy URL and refuse clients that do not send it; the JVM, Yarn and others cannot use one",
    ),
    setting(
        "listen",
        "ADDR:PORT",
        &[Gateway],
        "where the gateway listens; default 127.0.0.1:8443; port 0: the kernel chooses a free one; beyond loopback \
         only with TLS or --allow-plaintext",
    ),
    switch(
        "allow-plaintext",
        &[Gateway],
        "let --listen be beyond loopback without TLS, say behind a proxy that speaks it",
    ),
    setting(
        "sessions",
        "FILE",
        &[Gateway],
        "who may use the gateway: one `SESSION_ID TOKEN` a line, # comments; required; read again on SIGHUP",
    ),
    setting(
        "tls-cert",
        "FILE",
        &[Gateway],
        "PEM certificate chain to serve https and wss with; wants --tls-key; default http and ws",
    ),
    setting(
        "tls-key",
        "FILE",
        &[Gateway],
        "PEM private key of --tls-cert",
    ),
    setting(
        "ca-cert",
        "FILE",
        &[Gateway],
        "PEM certificate of the interception CA; wants --ca-key; default one made at start, its key in memory only",
    ),
    setting("ca-key", "FILE", &[Gateway], "PEM private key of --ca-cert"),
    list(
        "intercept",
        "PATTERN",
        TUNNELS,
        "intercept TLS for these targets (with --embedded, or at the gateway): *, example.com, *.example.com, each with \
         :PORT or for any port, or none; default *:443; may be repeated",
    ),
    setting(
        "target-ca",
        "FILE",
        &[Gateway],
        "PEM file of further roots for verifying targets; default none",
    ),
    list(
        "resolve",
        "HOST:PORT:ADDR",
        TUNNELS,
        "take this address for this name (with --embedded, or at the gateway); lifts no address policy; may be repeated",
    ),
    switch(
        "allow-private",
        &[Gateway],
        "let tunnels reach loopback, private and link-local addresses, for tests and home use",
    ),
    setting(
        "max-tunnels",
        "N",
        OPENERS,
        "tunnels at once, at least 1; the next one is answered 503; default what the process limits allow, at most 1024",
    ),
    setting(
        "standby",
        "N",
        RELAY,
        "WebSockets opened ahead of need where the upstream is far, at most; their number follows demand; default 8, at most 64; 0: none",
    ),
    setting(
        "drain-timeout",
        "DURATION",
        TUNNELS,
        "how long open tunnels may go on after a stop was asked for; default 10s; 0: they are cut at once",
    ),
    setting(
        "connect-timeout",
        "DURATION",
        OPENERS,
        "the bound on each of look-up, TCP connect, TLS handshake and upgrade; default 10s; 0: no wait at all, every dial fails",
    ),
    setting(
        "keepalive",
        "DURATION",
        TUNNELS,
        "a ping goes out after each such silent interval, three in a row without an answer end the tunnel; default 25s; \
         0: no pings",
    ),
    setting(
        "idle-timeout",
        "DURATION",
        TUNNELS,
        "how long a tunnel may move no data; default 0: for ever, while pings are answered",
    ),
    switch(
        "require",
        &[Run, Serve],
        "fail closed: whatever leaves the proxy disabled, the gate too, exits 69 and runs nothing",
    ),
    setting(
        "format",
        "sh|fish|powershell|json|dotenv",
        &[Env],
        "the language of the output; default sh",
    ),
    setting(
        "target",
        "HOST:PORT",
        REPORT,
        "the far end of the tunnels; default the base URL's host, with --embedded an origin of its own",
    ),
    switch(
        "json",
        REPORT,
        "print one JSON document at the end instead of lines",
    ),
    #[cfg(feature = "bench")]
    setting(
        "seconds",
        "S",
        &[Bench],
        "how long each measure goes on, from 0.05 to 60; default 1",
    ),
    #[cfg(feature = "bench")]
    setting(
        "streams",
        "N",
        &[Bench],
        "connections at once, at most, 1 to 256: throughput is measured at 1, 8 and 64, set-up at 1 and 32, as far as this allows; default 64",
    ),
    #[cfg(feature = "bench")]
    setting(
        "origin",
        "ADDR:PORT",
        &[Bench],
        "measure nothing, be the far end that a bench elsewhere names with --target, until SIGTERM or SIGINT; beyond \
         loopback only with --allow-non-loopback",
    ),
    letter(
        "verbose",
        'v',
        EVERY,
        "log more: -v info or debug, -vv one more; RUST_LOG wins; default warn for run, env, doctor and bench, info for serve, \
         gateway, and for run and doctor with --embedded",
    ),
    letter("quiet", 'q', EVERY, "log less: -q, -qq; RUST_LOG wins"),
    letter("help", 'h', EVERY, "print this and exit"),
    letter("version", 'V', EVERY, "print the version and exit"),
];

/// The help of the whole program.
pub(crate) fn overview() -> String {
    let mut text = String::from(
        "Gives every tool in a sandbox its way out through an authorised upstream.\n\nUsage:\n",
    );
    for subcommand in Subcommand::ALL {
        let _ = writeln!(
            text,
            "  {}\n      {}",
            subcommand.usage(),
            subcommand.purpose()
        );
    }
    text.push_str("\n`upstreamproxy SUBCOMMAND --help` lists the options.\n");
    text
}

/// The help of one subcommand.
pub(crate) fn help(subcommand: Subcommand) -> String {
    let mut text = format!(
        "Usage: {}\n\n{}\n\nOptions:\n",
        subcommand.usage(),
        subcommand.purpose()
    );
    for opt in Opt::of(subcommand) {
        let short = opt.short.map(|c| format!("-{c}, ")).unwrap_or_default();
        let value = opt.value.map(|v| format!(" {v}")).unwrap_or_default();
        let _ = writeln!(text, "  {short}--{}{value}", opt.name);
        for line in wrapped(opt.help) {
            let _ = writeln!(text, "      {line}");
        }
        if opt.in_environment {
            let several = if opt.repeatable {
                " (several with blanks between)"
            } else {
                ""
            };
            let _ = writeln!(text, "      environment: {}{several}", opt.variable());
        }
    }
    let _ = writeln!(
        text,
        "\nDurations: 500ms, 10s, 2m, or a bare number of seconds.\n\nExit status:"
    );
    for line in wrapped(subcommand.exit_codes()) {
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// `text` in lines that fit beside their indent on a terminal of 80 columns.
fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 72;
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
        for subcommand in Subcommand::ALL {
            let text = help(subcommand);
            for opt in OPTIONS {
                let short = opt.short.map(|c| format!("-{c}, ")).unwrap_or_default();
                let value = opt.value.map(|v| format!(" {v}")).unwrap_or_default();
                let row = format!("  {short}--{}{value}", opt.name);
                let known = Opt::long(subcommand, opt.name).is_some();
                let listed = text.lines().any(|line| line == row);
                assert_eq!(listed, known, "{subcommand:?} {row:?}");
                if opt.of.contains(&subcommand) && opt.in_environment {
                    assert!(text.contains(&format!("environment: {}", opt.variable())));
                }
            }
            assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        }
    }

    #[test]
    fn no_subcommand_has_two_options_of_one_name_or_letter() {
        for subcommand in Subcommand::ALL {
            for opt in Opt::of(subcommand) {
                let same = |other: &&Opt| {
                    other.name == opt.name || (opt.short.is_some() && other.short == opt.short)
                };
                assert_eq!(
                    Opt::of(subcommand).filter(same).count(),
                    1,
                    "{subcommand:?} --{}",
                    opt.name
                );
            }
        }
    }

    #[test]
    fn the_overview_names_every_subcommand() {
        for subcommand in Subcommand::ALL {
            assert!(overview().contains(&format!("upstreamproxy {} ", subcommand.name())));
        }
    }
}
