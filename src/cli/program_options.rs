//! The table of the options that are not settings of the library, and the values of all options.

use std::ffi::OsStr;
#[cfg(feature = "bench")]
use std::net::SocketAddr;
#[cfg(feature = "bench")]
use std::time::Duration;

use Subcommand::{
    Bench, Ca, Completions, Doctor, Env, Gateway, Help, Man, Run, Serve, Unit, Version,
};

#[cfg(feature = "bench")]
use crate::bench::BenchPlan;
#[cfg(feature = "bench")]
use crate::config::parse::listen;
#[cfg(feature = "gateway")]
use crate::config::parse::listen_of_server;
use crate::config::parse::{Reason, expected, matching, path, put, put_some, switch, text};
use crate::config::{Config, Group, Setting, Subcommand};
use crate::http::authority::Authority;

use super::env::Format;
#[cfg(feature = "gateway")]
use super::gateway_options::GatewayOptions;
use super::logging::{LogFormat, LogOptions};

/// The value of every option.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// The settings of the library.
    pub(crate) config: Config,
    /// Fail closed.
    pub(crate) require: bool,
    /// `run`: print what went through at the end.
    pub(crate) summary: bool,
    /// The output format of `env`.
    pub(crate) format: Format,
    /// `env`: print how to undo the variables.
    pub(crate) unset: bool,
    /// The target of test tunnels.
    pub(crate) target: Option<Authority>,
    /// Where the log goes.
    pub(crate) log: LogOptions,
    /// Print one JSON document instead of lines.
    pub(crate) json: bool,
    /// How much `bench` measures.
    #[cfg(feature = "bench")]
    pub(crate) plan: BenchPlan,
    /// Serve as the target of another `bench`.
    #[cfg(feature = "bench")]
    pub(crate) origin: Option<SocketAddr>,
    /// The options of `gateway`.
    #[cfg(feature = "gateway")]
    pub(crate) gateway: GatewayOptions,
}

/// Every subcommand.
const EVERY: &[Subcommand] = &[
    Run,
    Serve,
    Env,
    Ca,
    Doctor,
    Bench,
    Gateway,
    Unit,
    Completions,
    Man,
    Help,
    Version,
];
/// The subcommands that print a report.
const REPORT: &[Subcommand] = &[Doctor, Bench];

/// The subcommands whose log may go to a file.
const LOGGING: &[Subcommand] = &[Run, Serve, Gateway];

/// The options that are not settings of the library, in the order of help.
pub(crate) const PROGRAM_OPTIONS: &[Setting<Options>] = &[
    Setting::switch("require", &[Run, Serve])
        .group(Group::Relay)
        .help(
            "fail closed: if the proxy is disabled, whatever the reason, exit with 69 and run \
             nothing",
        )
        .setter(|options, value| put(&mut options.require, switch(value))),
    Setting::value("format", "FORMAT", &[Env])
        .values(Format::NAMES)
        .help(
            "output format: sh, fish, powershell, json, dotenv, github (for $GITHUB_ENV), docker \
             (for --env-file) or systemd (for a drop-in)",
        )
        .default("sh")
        .setter(|options, value| {
            put(
                &mut options.format,
                named(value, Format::NAMES, Format::ALL),
            )
        }),
    Setting::switch("unset", &[Env])
        .flag_only()
        .help(
            "print commands that remove what `env` or `run` has set in this shell (sh, fish, \
             powershell, json); replaced values are not restored",
        )
        .setter(|options, value| put(&mut options.unset, switch(value))),
    Setting::value("target", "HOST:PORT", REPORT)
        .group(Group::Measurement)
        .help("target of the test tunnels")
        .default("the host of the base URL; with --embedded, a server inside this process")
        .setter(|options, value| put_some(&mut options.target, target(value))),
    Setting::switch("json", REPORT)
        .help("print one JSON document at the end instead of lines")
        .setter(|options, value| put(&mut options.json, switch(value))),
    #[cfg(feature = "bench")]
    Setting::value("seconds", "S", &[Bench])
        .group(Group::Measurement)
        .help("duration of each measurement, 0.05 to 60")
        .default("1")
        .setter(|options, value| put(&mut options.plan.time, seconds(value))),
    #[cfg(feature = "bench")]
    Setting::value("streams", "N", &[Bench])
        .group(Group::Measurement)
        .help(
            "maximum number of parallel connections, 1 to 256; throughput is measured at 1, 8 \
             and 64, set-up at 1 and 32",
        )
        .default("64")
        .setter(|options, value| put(&mut options.plan.streams, streams(value))),
    #[cfg(feature = "bench")]
    Setting::value("origin", "[ADDR:]PORT", &[Bench])
        .group(Group::Measurement)
        .help(
            "measure nothing; serve as the --target of a bench on another machine until SIGTERM \
             or SIGINT",
        )
        .setter(|options, value| put_some(&mut options.origin, listen(value))),
    #[cfg(feature = "gateway")]
    Setting::value("listen", "[ADDR:]PORT", &[Gateway])
        .group(Group::Gateway)
        .help(
            "address that the gateway listens on, 127.0.0.1 for PORT, 0.0.0.0 for :PORT; port 0 \
             selects a free port; beyond loopback it needs TLS or --allow-plaintext",
        )
        .default("127.0.0.1:8443")
        .setter(|options, value| put_some(&mut options.gateway.listen, listen_of_server(value))),
    #[cfg(feature = "gateway")]
    Setting::switch("allow-plaintext", &[Gateway])
        .group(Group::Gateway)
        .help(
            "allow a --listen address beyond loopback without TLS, for example behind a TLS proxy",
        )
        .setter(|options, value| put(&mut options.gateway.allow_plaintext, switch(value))),
    #[cfg(feature = "gateway")]
    Setting::value("sessions", "FILE", &[Gateway])
        .group(Group::Gateway)
        .help(
            "sessions that may use the gateway: one `SESSION_ID TOKEN` per line, # begins a \
             comment; required; read again on SIGHUP",
        )
        .setter(|options, value| put_some(&mut options.gateway.sessions, path(value))),
    #[cfg(feature = "gateway")]
    Setting::value("tls-cert", "FILE", &[Gateway])
        .group(Group::Gateway)
        .help("PEM certificate chain for https and wss; requires --tls-key")
        .default("http and ws")
        .setter(|options, value| put_some(&mut options.gateway.tls_cert, path(value))),
    #[cfg(feature = "gateway")]
    Setting::value("tls-key", "FILE", &[Gateway])
        .group(Group::Gateway)
        .help("PEM private key of --tls-cert")
        .setter(|options, value| put_some(&mut options.gateway.tls_key, path(value))),
    #[cfg(feature = "gateway")]
    Setting::value("ca-cert", "FILE", &[Gateway])
        .group(Group::Interception)
        .help("PEM certificate of the interception CA; requires --ca-key")
        .default("a CA made at start, with its key in memory only")
        .setter(|options, value| put_some(&mut options.gateway.ca_cert, path(value))),
    #[cfg(feature = "gateway")]
    Setting::value("ca-key", "FILE", &[Gateway])
        .group(Group::Interception)
        .help("PEM private key of --ca-cert")
        .setter(|options, value| put_some(&mut options.gateway.ca_key, path(value))),
    #[cfg(feature = "gateway")]
    Setting::value("target-ca", "FILE", &[Gateway])
        .group(Group::Interception)
        .help("PEM file with additional roots for verifying targets")
        .default("none")
        .setter(|options, value| put_some(&mut options.gateway.target_ca, path(value))),
    #[cfg(feature = "gateway")]
    Setting::switch("allow-private", &[Gateway])
        .group(Group::Interception)
        .help("allow tunnels to loopback, private and link-local addresses, for tests and home use")
        .setter(|options, value| put(&mut options.gateway.allow_private, switch(value))),
    Setting::switch("summary", &[Run])
        .help("print at the end how many tunnels and bytes went to each host")
        .default("only with --embedded, if there was more than one host or a refusal")
        .setter(|options, value| put(&mut options.summary, switch(value))),
    Setting::value("log-format", "FORMAT", LOGGING)
        .values(LogFormat::NAMES)
        .help("form of the log lines: text, time (text after the time in UTC), json")
        .default("text; time in a log file, and for serve and gateway outside the journal")
        .setter(|options, value| {
            put_some(
                &mut options.log.format,
                named(value, LogFormat::NAMES, LogFormat::ALL),
            )
        }),
    Setting::value("log-file", "PATH", LOGGING)
        .help("append the log to this file; one that was moved away is created again")
        .default("standard error")
        .setter(|options, value| put_some(&mut options.log.file, path(value))),
    letter(
        "verbose",
        'v',
        "log more: -v, -vv; RUST_LOG takes precedence",
    )
    .default("warn; info for serve and gateway, and for run and doctor with --embedded"),
    letter("quiet", 'q', "log less: -q, -qq; RUST_LOG takes precedence"),
    letter("help", 'h', "print this help and exit"),
    letter("version", 'V', "print the version and exit"),
];

/// A switch with a letter. The parser of the arguments handles it, and no variable sets it.
const fn letter(name: &'static str, letter: char, help: &'static str) -> Setting<Options> {
    Setting::switch(name, EVERY)
        .letter(letter)
        .flag_only()
        .help(help)
}

/// The one of `values` whose name is the text.
fn named<T: Copy>(value: &OsStr, names: &[&str], values: &[T]) -> Result<T, Reason> {
    let text = text(value)?;
    let mut known = names.iter().zip(values);
    let found = known.find(|(name, _)| **name == text);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| expected(&format!("one of {}", names.join(", "))))
}

fn target(value: &OsStr) -> Result<Authority, Reason> {
    matching(value, |_| true, "a host and a port such as example.com:443")
}

#[cfg(feature = "bench")]
fn seconds(value: &OsStr) -> Result<Duration, Reason> {
    let range = 0.05..=60.0;
    let seconds = matching(
        value,
        |seconds| range.contains(seconds),
        "a number of seconds from 0.05 to 60",
    );
    seconds.map(Duration::from_secs_f64)
}

#[cfg(feature = "bench")]
fn streams(value: &OsStr) -> Result<usize, Reason> {
    matching(
        value,
        |streams| (1..=256).contains(streams),
        "a number of connections from 1 to 256",
    )
}
