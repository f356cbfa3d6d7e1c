//! The arguments as resolved: flags first, then `UPSTREAMPROXY_<NAME>`, then the session's variables, then defaults.
//!
//! [`Config::from_environment`] reads the environment with the flags laid over it. Touches no file.

use std::ffi::OsString;
#[cfg(feature = "bench")]
use std::net::SocketAddr;
#[cfg(feature = "bench")]
use std::str::FromStr;
#[cfg(feature = "bench")]
use std::time::Duration;

#[cfg(feature = "bench")]
use crate::bench::BenchPlan;
use crate::config::{Config, DEFAULT_BASE_URL, Environment, When};
use crate::error::Stage;
use crate::http::authority::Authority;
use log::LevelFilter;

use super::args::{Typed, UsageError};
use super::env::Format;
use super::gateway::{self, EmbeddedOptions, GatewaySettings};
use super::layers::Layers;
use super::options::Subcommand;

/// What is to be done, with every setting in place.
#[derive(Debug)]
pub(crate) enum Task {
    /// Run COMMAND (never empty) with the variables.
    Run {
        /// The lifecycle's settings.
        session: Session,
        /// COMMAND and its arguments.
        command: Vec<OsString>,
    },
    /// Serve until told to stop.
    Serve(Session),
    /// Print the variables of the running `serve`.
    Env(Format),
    /// Walk the stages.
    Doctor {
        /// The lifecycle's settings.
        session: Session,
        /// The far end of the round trip, if one is named.
        target: Option<Authority>,
        /// One JSON document instead of lines.
        json: bool,
    },
    /// Measure.
    #[cfg(feature = "bench")]
    Bench {
        /// The lifecycle's settings.
        session: Session,
        /// The far end of the tunnels, if one is named.
        target: Option<Authority>,
        /// How much is measured.
        plan: BenchPlan,
        /// One JSON document instead of a table.
        json: bool,
    },
    /// Be the far end of a measurement.
    #[cfg(feature = "bench")]
    BenchOrigin(SocketAddr),
    /// The server end.
    Gateway(GatewaySettings),
}

/// What `run`, `serve` and `doctor` need.
#[derive(Debug)]
pub(crate) struct Session {
    /// The library's settings.
    pub(crate) config: Config,
    /// Start a gateway of our own first, with these.
    pub(crate) embedded: Option<EmbeddedOptions>,
    /// Fail closed.
    pub(crate) require: bool,
}

impl Task {
    /// The level to log at: the subcommand's default, moved by `-v` and `-q`.
    pub(crate) fn level(&self, verbosity: i8) -> LevelFilter {
        let default = match self {
            Self::Run { session, .. } | Self::Doctor { session, .. } => {
                if session.embedded.is_some() {
                    LevelFilter::Info
                } else {
                    LevelFilter::Warn
                }
            }
            Self::Serve(_) | Self::Gateway(_) => LevelFilter::Info,
            Self::Env(_) => LevelFilter::Warn,
            // A line for each of thousands of tunnels is nobody's wish.
            #[cfg(feature = "bench")]
            Self::Bench { .. } | Self::BenchOrigin(_) => LevelFilter::Warn,
        };
        let raised = (default as i8).saturating_add(verbosity);
        let levels = [
            LevelFilter::Off,
            LevelFilter::Error,
            LevelFilter::Warn,
            LevelFilter::Info,
            LevelFilter::Debug,
        ];
        usize::try_from(raised)
            .ok()
            .map_or(LevelFilter::Off, |index| {
                levels.get(index).copied().unwrap_or(LevelFilter::Trace)
            })
    }
}

/// Resolves what was typed against the environment.
pub(crate) fn resolve(typed: &Typed, environment: Environment) -> Result<Task, UsageError> {
    let mut layers = Layers::new(typed, &environment);
    match typed.subcommand {
        Subcommand::Run if typed.command.is_empty() => {
            Err(UsageError::new(typed.subcommand, "COMMAND is missing"))
        }
        Subcommand::Run => Ok(Task::Run {
            session: session(layers, environment)?,
            command: typed.command.clone(),
        }),
        Subcommand::Serve => Ok(Task::Serve(session(layers, environment)?)),
        Subcommand::Env => {
            let format = layers.value("format", "one of sh, fish, powershell, json, dotenv");
            layers.refuse_any()?;
            Ok(Task::Env(format.unwrap_or_default()))
        }
        Subcommand::Doctor => {
            let target = layers.value("target", "a host and a port such as example.com:443");
            let json = layers.switch("json");
            Ok(Task::Doctor {
                session: session(layers, environment)?,
                target,
                json,
            })
        }
        #[cfg(feature = "bench")]
        Subcommand::Bench => bench(layers, environment),
        Subcommand::Gateway => gateway::settings(layers).map(Task::Gateway),
    }
}

/// A measurement, or its far end.
#[cfg(feature = "bench")]
fn bench(mut layers: Layers<'_>, environment: Environment) -> Result<Task, UsageError> {
    let target = layers.value("target", "a host and a port such as example.com:443");
    let json = layers.switch("json");
    let seconds = layers.value("seconds", "a number of seconds from 0.05 to 60");
    let streams = layers.value("streams", "a number of connections from 1 to 256");
    let origin: Option<SocketAddr> =
        layers.value("origin", "an address and a port such as 127.0.0.1:7100");
    if let Some(listen) = origin {
        layers.refuse_any()?;
        if layers.switch("embedded") || target.is_some() {
            return Err(layers.wrong(
                "--origin is the far end by itself: --embedded and --target belong to the bench that uses it",
            ));
        }
        if !listen.ip().is_loopback() && !layers.switch("allow-non-loopback") {
            return Err(layers.wrong(format!(
                "--origin {listen} can be reached from other machines; listen on 127.0.0.1, or add --allow-non-loopback"
            )));
        }
        return Ok(Task::BenchOrigin(listen));
    }
    let plan = BenchPlan {
        time: seconds.map_or(Duration::from_secs(1), |Seconds(time)| time),
        streams: streams.map_or(64, |Streams(count)| count),
    };
    Ok(Task::Bench {
        session: session(layers, environment)?,
        target,
        plan,
        json,
    })
}

/// How long a measure goes on.
#[cfg(feature = "bench")]
struct Seconds(Duration);

#[cfg(feature = "bench")]
impl FromStr for Seconds {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let seconds: f64 = text.parse().map_err(|_| ())?;
        let possible = (0.05..=60.0).contains(&seconds);
        possible
            .then(|| Self(Duration::from_secs_f64(seconds)))
            .ok_or(())
    }
}

/// How many connections at once.
#[cfg(feature = "bench")]
struct Streams(usize);

#[cfg(feature = "bench")]
impl FromStr for Streams {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let count = text.parse().map_err(|_| ())?;
        (1..=256).contains(&count).then_some(Self(count)).ok_or(())
    }
}

/// Settings of the lifecycle. What cannot be used in the environment is left for the gate to say.
fn session(mut layers: Layers<'_>, environment: Environment) -> Result<Session, UsageError> {
    let mut config = Config::from_environment(layers.environment.clone());
    config.inherited = environment;
    let wants_embedded = layers.switch("embedded");
    let require = layers.switch("require");
    // "Never" wins over everything: no gateway is started to be left unused.
    let embedded = (wants_embedded && config.when != When::Never)
        .then(|| gateway::embedded(&mut layers, &mut config))
        .flatten();
    config.unusable.append(&mut layers.unusable);
    layers.refuse_flags(&config.unusable)?;
    refuse_contradictions(&layers, &config, wants_embedded)?;
    Ok(Session {
        config,
        embedded,
        require,
    })
}

/// A usage error, if flags contradict each other or the gate could not use what they say.
fn refuse_contradictions(
    layers: &Layers<'_>,
    config: &Config,
    embedded: bool,
) -> Result<(), UsageError> {
    let typed = layers.typed;
    let given = |names: &[&'static str]| names.iter().copied().find(|name| typed.has(name));
    if embedded {
        if let Some(name) = given(&["base-url", "session-id", "token-file"]) {
            return Err(layers.wrong(format!(
                "--{name} is of no use with --embedded, which brings its own"
            )));
        }
    } else if let Some(name) = given(&["intercept", "resolve"]) {
        return Err(layers.wrong(format!("--{name} is of no use without --embedded")));
    }
    if typed.has("listen") && !config.listen.ip().is_loopback() && !config.allow_non_loopback {
        return Err(layers.wrong(format!(
            "--listen {} can be reached from other machines; listen on 127.0.0.1, or add --allow-non-loopback",
            config.listen
        )));
    }
    // The gate knows what a base URL and a session id may be; what does not come from a flag is put out of its way.
    if given(&["base-url", "session-id"]).is_some() {
        let mut flags = config.clone();
        flags.when = When::Always;
        flags.unusable.clear();
        if !typed.has("listen") {
            flags.listen = Config::default().listen;
        }
        if !typed.has("base-url") {
            flags.base_url = Some(DEFAULT_BASE_URL.to_owned());
        }
        if !typed.has("session-id") {
            flags.session_id = Some("session".to_owned());
        }
        crate::doctor::check(&flags, Stage::Gate)
            .map_err(|error| layers.wrong(error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[cfg(not(feature = "bench"))]
    use std::time::Duration;

    use super::super::args::{Asked, parse};
    use super::super::options::Opt;
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn task(line: &str, variables: Variables<'_>) -> Result<Task, UsageError> {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(Asked::Work(typed)) => resolve(&typed, variables.iter().copied().collect()),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn session(line: &str, variables: Variables<'_>) -> Session {
        match task(line, variables) {
            Ok(Task::Run { session, .. } | Task::Serve(session) | Task::Doctor { session, .. }) => {
                session
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    /// Option, a value, another value, and how to see it in the settings.
    type Row = (
        &'static str,
        &'static str,
        &'static str,
        fn(&Session) -> String,
    );

    const ROWS: &[Row] = &[
        ("when", "always", "never", |s| {
            format!("{:?}", s.config.when)
        }),
        ("base-url", "https://a.example", "https://b.example", |s| {
            format!("{:?}", s.config.base_url)
        }),
        ("session-id", "a", "b", |s| {
            format!("{:?}", s.config.session_id)
        }),
        ("token-file", "/a", "/b", |s| {
            format!("{:?}", s.config.token_file)
        }),
        ("upstream-ca", "/a", "/b", |s| {
            format!("{:?}", s.config.upstream_ca)
        }),
        ("system-ca", "/a", "/b", |s| {
            format!("{:?}", s.config.system_ca)
        }),
        ("ca-bundle", "/a", "/b", |s| {
            format!("{:?}", s.config.ca_bundle)
        }),
        ("listen", "127.0.0.1:1", "127.0.0.1:2", |s| {
            format!("{:?}", s.config.listen)
        }),
        ("max-tunnels", "3", "4", |s| {
            format!("{:?}", s.config.limits.max_tunnels)
        }),
        ("standby", "3", "4", |s| {
            format!("{:?}", s.config.limits.standby)
        }),
        ("drain-timeout", "3s", "4s", |s| {
            format!("{:?}", s.config.limits.drain_timeout)
        }),
        ("connect-timeout", "3s", "4s", |s| {
            format!("{:?}", s.config.limits.connect_timeout)
        }),
        ("keepalive", "3s", "4s", |s| {
            format!("{:?}", s.config.limits.keepalive)
        }),
        ("idle-timeout", "3s", "4s", |s| {
            format!("{:?}", s.config.limits.idle_timeout)
        }),
    ];

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_default() {
        for (name, first, second, seen) in ROWS {
            let variable = Opt::long(Subcommand::Serve, name).unwrap().variable();
            let default = seen(&session("serve", &[]));
            let inherited = seen(&session("serve", &[(&variable, second)]));
            let flag = format!("serve --{name} {first}");
            let given = seen(&session(&flag, &[(&variable, second)]));
            assert_ne!(inherited, default, "{name}");
            assert_ne!(given, inherited, "{name}");
            assert_eq!(given, seen(&session(&flag, &[])), "{name}");
        }
    }

    #[test]
    fn the_rows_above_and_the_switches_are_all_the_settings_that_serve_has() {
        let switches = [
            "embedded",
            "allow-non-loopback",
            "allow-any-user",
            "listen-credential",
            "require",
        ];
        let lists = ["intercept", "resolve"];
        for opt in Opt::of(Subcommand::Serve).filter(|opt| opt.in_environment) {
            assert!(
                ROWS.iter().any(|row| row.0 == opt.name)
                    || switches.contains(&opt.name)
                    || lists.contains(&opt.name),
                "--{} is not tested",
                opt.name
            );
        }
    }

    #[test]
    fn switches_come_from_flags_and_from_the_environment() {
        for (line, variables) in [
            ("serve --require --allow-non-loopback", &[][..]),
            (
                "serve",
                &[
                    ("UPSTREAMPROXY_REQUIRE", "1"),
                    ("UPSTREAMPROXY_ALLOW_NON_LOOPBACK", " On "),
                ],
            ),
        ] {
            let session = session(line, variables);
            assert!(session.require);
            assert!(session.config.allow_non_loopback);
        }
        let off = session(
            "serve",
            &[
                ("UPSTREAMPROXY_EMBEDDED", "off"),
                ("UPSTREAMPROXY_REQUIRE", ""),
            ],
        );
        assert!(off.embedded.is_none() && !off.require && off.config.unusable.is_empty());
    }

    #[test]
    fn a_bad_value_is_a_usage_error_in_a_flag_and_left_to_the_gate_in_the_environment() {
        for (flag, variable, value) in [
            ("--when", "UPSTREAMPROXY_WHEN", "sometimes"),
            ("--listen", "UPSTREAMPROXY_LISTEN", "here"),
            ("--max-tunnels", "UPSTREAMPROXY_MAX_TUNNELS", "0"),
            ("--drain-timeout", "UPSTREAMPROXY_DRAIN_TIMEOUT", "1h"),
            ("--keepalive", "UPSTREAMPROXY_KEEPALIVE", "-1"),
        ] {
            let error = task(&format!("run {flag} {value} x"), &[]).unwrap_err();
            assert_eq!(error.subcommand, Some(Subcommand::Run));
            assert!(error.what.starts_with(flag), "{}", error.what);
            let kept = session("run x", &[(variable, value)]).config.unusable;
            assert_eq!(kept.len(), 1, "{variable}");
            assert_eq!(kept[0].name, variable);
        }
        // One that can be read and not be used is the gate's too, whatever flags stand beside it.
        let flags = "run --base-url https://upstream.test --session-id s x";
        let open = session(flags, &[("UPSTREAMPROXY_LISTEN", "0.0.0.0:0")]).config;
        assert!(!open.listen.ip().is_loopback());
        assert!(task("run --listen 0.0.0.0:0 x", &[]).is_err());
        let kept = session("run x", &[("UPSTREAMPROXY_REQUIRE", "perhaps")]);
        assert_eq!(kept.config.unusable[0].name, "UPSTREAMPROXY_REQUIRE");
    }

    #[test]
    fn a_flag_takes_the_place_of_an_unusable_variable() {
        let session = session(
            "run --keepalive 5s x",
            &[("UPSTREAMPROXY_KEEPALIVE", "garbage")],
        );
        assert!(session.config.unusable.is_empty());
        assert_eq!(session.config.limits.keepalive, Duration::from_secs(5));
    }

    #[test]
    fn a_base_url_that_the_gate_refuses_is_a_usage_error_in_a_flag() {
        let error = task("run --base-url nonsense x", &[]).unwrap_err();
        assert!(error.what.contains("base URL"), "{}", error.what);
        assert!(task("run --base-url https://a.example x", &[]).is_ok());
        assert!(task("run x", &[("UPSTREAMPROXY_BASE_URL", "nonsense")]).is_ok());
    }

    #[test]
    fn what_children_inherit_has_none_of_our_flags() {
        let variables = [("PATH", "/bin")];
        let session = session("run --keepalive 5s --require x", &variables);
        assert_eq!(session.config.inherited, variables.into_iter().collect());
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for line in [
            "run --embedded --base-url https://a.example x",
            "run --embedded --token-file /t x",
            "run --intercept none x",
            "run --embedded --intercept none --intercept a.example x",
            "run --embedded --resolve a.example x",
            "run --listen 0.0.0.0:0 x",
            "run --keepalive 5s",
        ] {
            assert!(task(line, &[]).is_err(), "{line}");
        }
        assert!(task("run --listen 0.0.0.0:0 --allow-non-loopback x", &[]).is_ok());
        assert!(task("run x", &[("UPSTREAMPROXY_INTERCEPT", "none")]).is_ok());
    }

    #[test]
    fn the_level_depends_on_the_subcommand_and_on_v_and_q() {
        let level = |line: &str, verbosity| task(line, &[]).unwrap().level(verbosity);
        assert_eq!(level("run x", 0), LevelFilter::Warn);
        assert_eq!(level("serve", 0), LevelFilter::Info);
        assert_eq!(level("serve", 1), LevelFilter::Debug);
        assert_eq!(level("run x", -1), LevelFilter::Error);
        assert_eq!(level("run x", -9), LevelFilter::Off);
        assert_eq!(level("run x", 127), LevelFilter::Trace);
    }
}
