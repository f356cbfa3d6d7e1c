//! The arguments as resolved: flags first, then `UPSTREAMPROXY_<NAME>`, then the session's variables, then defaults.
//!
//! A flag is laid over the environment under its variable's name, and [`Config::from_environment`] reads both: so one
//! parser decides what a value means, and what cannot be used is a usage error exactly if it came from a flag. Touches
//! no file.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
#[cfg(feature = "bench")]
use std::time::Duration;

use log::LevelFilter;
#[cfg(feature = "bench")]
use upstreamproxy::BenchPlan;
use upstreamproxy::{
    Authority, Config, DEFAULT_BASE_URL, EmbeddedOptions, Environment, Limits, Override, Pattern,
    Reach, Stage, UnusableSetting, When,
};

use super::args::{Typed, UsageError};
use super::env::Format;
use super::options::{Opt, Subcommand};

/// Where the gateway listens unless told otherwise.
const GATEWAY_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

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

/// What `gateway` needs; its files are still to be read.
#[derive(Debug)]
pub(crate) struct GatewaySettings {
    pub(crate) listen: SocketAddr,
    pub(crate) allow_plaintext: bool,
    pub(crate) sessions: PathBuf,
    /// Certificate chain and key.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// The interception CA's certificate and key.
    pub(crate) ca: Option<(PathBuf, PathBuf)>,
    /// `None`: the library's default.
    pub(crate) intercept: Option<Vec<Pattern>>,
    pub(crate) target_ca: Option<PathBuf>,
    pub(crate) resolve: Vec<Override>,
    pub(crate) allow_private: bool,
    pub(crate) limits: Limits,
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
        Subcommand::Gateway => gateway(layers),
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
        .then(|| EmbeddedOptions::from_environment(&layers.environment, &mut config));
    config.unusable.append(&mut layers.unusable);
    layers.refuse_flags(&config.unusable)?;
    layers.refuse_contradictions(&config, wants_embedded)?;
    Ok(Session {
        config,
        embedded,
        require,
    })
}

/// The gateway's settings. It is not fail-open: what it cannot use ends it, wherever it came from.
fn gateway(mut layers: Layers<'_>) -> Result<Task, UsageError> {
    let config = Config::from_environment(layers.environment.clone());
    let ours = |setting: &UnusableSetting| {
        Opt::of(Subcommand::Gateway).any(|opt| opt.variable() == setting.name)
    };
    layers
        .unusable
        .extend(config.unusable.iter().filter(|s| ours(s)).cloned());
    let path = |name: &str| layers.lookup(name).map(PathBuf::from);
    let pair = |first: &str, second: &str| match (path(first), path(second)) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (None, None) => Ok(None),
        _ => Err(layers.wrong(format!("--{first} and --{second} are given together"))),
    };
    let tls = pair("tls-cert", "tls-key")?;
    let ca = pair("ca-cert", "ca-key")?;
    let sessions = path("sessions").ok_or_else(|| {
        layers.wrong("--sessions is missing: a file with one `SESSION_ID TOKEN` a line")
    })?;
    let target_ca = path("target-ca");
    let listen = layers
        .lookup("listen")
        .map_or(GATEWAY_LISTEN, |_| config.listen);
    let reach = Reach::from_environment(&layers.environment, &mut layers.unusable);
    let settings = GatewaySettings {
        listen,
        allow_plaintext: layers.switch("allow-plaintext"),
        sessions,
        tls,
        ca,
        intercept: reach.intercept,
        target_ca,
        resolve: reach.resolve,
        allow_private: layers.switch("allow-private"),
        limits: config.limits,
    };
    layers.refuse_any()?;
    let exposed = !listen.ip().is_loopback();
    if exposed && settings.tls.is_none() && !settings.allow_plaintext {
        return Err(layers.wrong(format!(
            "without TLS --listen {listen} would show tokens to the network; give --tls-cert and --tls-key, \
             or --allow-plaintext"
        )));
    }
    Ok(Task::Gateway(settings))
}

/// The environment with the flags laid over it.
struct Layers<'a> {
    typed: &'a Typed,
    environment: Environment,
    /// What we read ourselves and could not use.
    unusable: Vec<UnusableSetting>,
}

impl<'a> Layers<'a> {
    fn new(typed: &'a Typed, environment: &Environment) -> Self {
        let mut layered = environment.clone();
        for opt in Opt::of(typed.subcommand).filter(|opt| opt.in_environment) {
            let values: Vec<&OsStr> = typed.values(opt.name).collect();
            match values.last() {
                // The values of a list count together, separated as in the environment.
                Some(_) if opt.repeatable => {
                    layered.set(opt.variable(), values.join(OsStr::new(" ")));
                }
                // Of the others the last one counts, so that an alias can be overridden.
                Some(last) => layered.set(opt.variable(), last),
                None => {}
            }
        }
        Self {
            typed,
            environment: layered,
            unusable: Vec::new(),
        }
    }

    fn variable(&self, name: &str) -> String {
        Opt::long(self.typed.subcommand, name)
            .map(Opt::variable)
            .unwrap_or_default()
    }

    fn lookup(&self, name: &str) -> Option<&OsStr> {
        self.environment.lookup(self.variable(name))
    }

    /// One value of the type that is wanted; `None` if there is none, or none that can be used.
    fn value<T: FromStr>(&mut self, name: &str, expected: &'static str) -> Option<T> {
        let text = self.lookup(name)?.to_str().unwrap_or_default().trim();
        let value = text.parse().ok();
        if value.is_none() {
            self.refuse(name, expected);
        }
        value
    }

    fn switch(&mut self, name: &str) -> bool {
        self.value(name, "one of 1, true, yes, on, 0, false, no, off")
            .is_some_and(|Switch(on)| on)
    }

    fn refuse(&mut self, name: &str, expected: &'static str) {
        self.unusable.push(UnusableSetting {
            name: self.variable(name),
            expected,
        });
    }

    fn wrong(&self, what: impl Into<String>) -> UsageError {
        UsageError::new(self.typed.subcommand, what)
    }

    /// A usage error, if one of the unusable settings was given as a flag.
    fn refuse_flags(&self, unusable: &[UnusableSetting]) -> Result<(), UsageError> {
        for setting in unusable {
            let flag = Opt::of(self.typed.subcommand)
                .find(|opt| opt.variable() == setting.name && self.typed.has(opt.name));
            if let Some(opt) = flag {
                return Err(self.wrong(format!("--{} is not {}", opt.name, setting.expected)));
            }
        }
        Ok(())
    }

    /// A usage error, if any setting is unusable.
    fn refuse_any(&self) -> Result<(), UsageError> {
        self.refuse_flags(&self.unusable)?;
        match self.unusable.first() {
            Some(setting) => Err(self.wrong(setting.to_string())),
            None => Ok(()),
        }
    }

    /// A usage error, if flags contradict each other or the gate could not use what they say.
    fn refuse_contradictions(&self, config: &Config, embedded: bool) -> Result<(), UsageError> {
        let given =
            |names: &[&'static str]| names.iter().copied().find(|name| self.typed.has(name));
        if embedded {
            if let Some(name) = given(&["base-url", "session-id", "token-file"]) {
                return Err(self.wrong(format!(
                    "--{name} is of no use with --embedded, which brings its own"
                )));
            }
        } else if let Some(name) = given(&["intercept", "resolve"]) {
            return Err(self.wrong(format!("--{name} is of no use without --embedded")));
        }
        if self.typed.has("listen")
            && !config.listen.ip().is_loopback()
            && !config.allow_non_loopback
        {
            return Err(self.wrong(format!(
                "--listen {} can be reached from other machines; listen on 127.0.0.1, or add --allow-non-loopback",
                config.listen
            )));
        }
        // The gate knows what a base URL and a session id may be; what does not come from a flag is put out of its way.
        if given(&["base-url", "session-id"]).is_some() {
            let mut flags = config.clone();
            flags.when = When::Always;
            flags.unusable.clear();
            if !self.typed.has("listen") {
                flags.listen = Config::default().listen;
            }
            if !self.typed.has("base-url") {
                flags.base_url = Some(DEFAULT_BASE_URL.to_owned());
            }
            if !self.typed.has("session-id") {
                flags.session_id = Some("session".to_owned());
            }
            upstreamproxy::check(&flags, Stage::Gate)
                .map_err(|error| self.wrong(error.to_string()))?;
        }
        Ok(())
    }
}

/// A switch in the environment: the gate's truthy words, or their opposites.
struct Switch(bool);

impl FromStr for Switch {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is = |words: [&str; 4]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
        match (
            is(["1", "true", "yes", "on"]),
            is(["0", "false", "no", "off"]),
        ) {
            (true, _) => Ok(Self(true)),
            (_, true) => Ok(Self(false)),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(not(feature = "bench"))]
    use std::time::Duration;

    use super::super::args::{Asked, parse};
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

    fn gateway(line: &str, variables: Variables<'_>) -> GatewaySettings {
        match task(line, variables) {
            Ok(Task::Gateway(settings)) => settings,
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
            ("serve --embedded --require --allow-non-loopback", &[][..]),
            (
                "serve",
                &[
                    ("UPSTREAMPROXY_EMBEDDED", "yes"),
                    ("UPSTREAMPROXY_REQUIRE", "1"),
                    ("UPSTREAMPROXY_ALLOW_NON_LOOPBACK", " On "),
                ],
            ),
        ] {
            let session = session(line, variables);
            assert!(session.embedded.is_some() && session.require);
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
    fn the_librarys_switches_and_ours_know_the_same_words() {
        for word in [
            "1", "TRUE", " yes", "on", "0", "False", "no", "off", "2", "y", "maybe",
        ] {
            let config = Config::from_environment(Environment::from_iter([(
                "UPSTREAMPROXY_ALLOW_NON_LOOPBACK",
                word,
            )]));
            let library = config
                .unusable
                .is_empty()
                .then_some(config.allow_non_loopback);
            let ours = word.trim().parse::<Switch>().ok().map(|Switch(on)| on);
            assert_eq!(ours, library, "{word:?}");
        }
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
        let session = session("run --keepalive 5s --embedded x", &variables);
        assert_eq!(session.config.inherited, variables.into_iter().collect());
    }

    #[test]
    fn never_wins_over_embedded() {
        assert!(
            session("run --when never --embedded x", &[])
                .embedded
                .is_none()
        );
        assert!(
            session("run --embedded x", &[("UPSTREAMPROXY_WHEN", "never")])
                .embedded
                .is_none()
        );
    }

    #[test]
    fn embedded_takes_the_gateways_options_and_the_upstream_ca() {
        let session = session(
            "doctor --embedded --intercept none --resolve a.example:443:192.0.2.1 \
             --resolve b.example:443:192.0.2.1 --upstream-ca /ca --idle-timeout 9",
            &[],
        );
        let options = session.embedded.unwrap();
        assert_eq!(options.intercept, Some(Vec::new()));
        assert_eq!(options.resolve.len(), 2);
        assert_eq!(options.target_ca, Some(PathBuf::from("/ca")));
        assert_eq!(options.limits.idle_timeout, Duration::from_secs(9));
        assert_eq!(session.config.upstream_ca, None);
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
    fn the_gateway_reads_flags_and_environment_alike() {
        let flags = gateway(
            "gateway --sessions /s --listen [::1]:0 --tls-cert /c --tls-key /k --ca-cert /cc --ca-key /ck \
             --intercept *.example.com --intercept a.example:8443 --target-ca /t --allow-private --keepalive 7s \
             --resolve a.example:443:192.0.2.1 --allow-plaintext",
            &[],
        );
        let inherited = gateway(
            "gateway",
            &[
                ("UPSTREAMPROXY_SESSIONS", "/s"),
                ("UPSTREAMPROXY_LISTEN", "[::1]:0"),
                ("UPSTREAMPROXY_TLS_CERT", "/c"),
                ("UPSTREAMPROXY_TLS_KEY", "/k"),
                ("UPSTREAMPROXY_CA_CERT", "/cc"),
                ("UPSTREAMPROXY_CA_KEY", "/ck"),
                ("UPSTREAMPROXY_INTERCEPT", "*.example.com a.example:8443"),
                ("UPSTREAMPROXY_TARGET_CA", "/t"),
                ("UPSTREAMPROXY_ALLOW_PRIVATE", "true"),
                ("UPSTREAMPROXY_KEEPALIVE", "7s"),
                ("UPSTREAMPROXY_RESOLVE", "a.example:443:192.0.2.1"),
                ("UPSTREAMPROXY_ALLOW_PLAINTEXT", "1"),
                // Of no concern to a gateway.
                ("UPSTREAMPROXY_WHEN", "garbage"),
            ],
        );
        assert_eq!(format!("{flags:?}"), format!("{inherited:?}"));
        assert_eq!(flags.intercept.map(|patterns| patterns.len()), Some(2));
        assert_eq!(gateway("gateway --sessions /s", &[]).listen, GATEWAY_LISTEN);
    }

    #[test]
    fn a_gateway_is_not_fail_open() {
        for (line, variables) in [
            ("gateway", &[][..]),
            ("gateway --sessions /s --tls-cert /c", &[]),
            ("gateway --sessions /s --listen 0.0.0.0:1", &[]),
            ("gateway --sessions /s --intercept ..", &[]),
            ("gateway --sessions /s", &[("UPSTREAMPROXY_LISTEN", "x")]),
            ("gateway --sessions /s", &[("UPSTREAMPROXY_KEEPALIVE", "x")]),
            ("gateway --sessions /s", &[("UPSTREAMPROXY_RESOLVE", "x")]),
            ("env", &[("UPSTREAMPROXY_FORMAT", "cobol")]),
            ("env --format cobol", &[]),
        ] {
            assert!(task(line, variables).is_err(), "{line} {variables:?}");
        }
    }

    #[test]
    fn the_level_depends_on_the_subcommand_and_on_v_and_q() {
        let level = |line: &str, verbosity| task(line, &[]).unwrap().level(verbosity);
        assert_eq!(level("run x", 0), LevelFilter::Warn);
        assert_eq!(level("run --embedded x", 0), LevelFilter::Info);
        assert_eq!(level("serve", 0), LevelFilter::Info);
        assert_eq!(level("gateway --sessions /s", 1), LevelFilter::Debug);
        assert_eq!(level("run x", -1), LevelFilter::Error);
        assert_eq!(level("run x", -9), LevelFilter::Off);
        assert_eq!(level("run x", 127), LevelFilter::Trace);
    }
}
