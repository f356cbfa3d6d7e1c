//! Gives each option of a subcommand its value: the flag, or else `UPSTREAMPROXY_<NAME>`, or else
//! the variables of the session, or else the default. It reads no file.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;

use log::LevelFilter;

use crate::config::{
    Config, EMBEDDED_SETTINGS, Environment, SettingError, Source, Subcommand, UPSTREAM_SETTINGS,
};

use super::args::{Arguments, UsageError};
use super::options::Opt;
use super::program_options::Options;

impl Options {
    /// The values that flags and environment give to the options of a subcommand.
    ///
    /// # Errors
    /// A flag that cannot be used, or flags that contradict each other. Except for `env` and
    /// `gateway`, a variable that cannot be used is not an error: the gate decides about it.
    pub(crate) fn resolve(
        arguments: &Arguments,
        environment: &Environment,
    ) -> Result<Self, UsageError> {
        let subcommand = arguments.subcommand;
        let mut options = Self {
            config: Config::from_environment(environment.clone()),
            ..Self::default()
        };
        for opt in Opt::of(subcommand).filter(|opt| matches!(opt, Opt::Program(_))) {
            if let Some((source, value)) = opt.lookup(environment) {
                opt.set(&mut options, value, source);
            }
        }
        options
            .set_flags(arguments)
            .and_then(|()| options.check(arguments))
            .map_err(|what| UsageError::new(subcommand, what))?;
        Ok(options)
    }

    fn set_flags(&mut self, arguments: &Arguments) -> Result<(), String> {
        for opt in Opt::of(arguments.subcommand) {
            let values: Vec<&OsStr> = arguments.values(opt.name).collect();
            let value = match values.last() {
                None => continue,
                // The values of a list count together, separated as in the environment.
                Some(_) if opt.repeatable => values.join(OsStr::new(" ")),
                // Otherwise the last one counts, so that a flag in an alias can be overridden.
                Some(last) => OsString::from(last),
            };
            opt.set(self, &value, Source::Flag);
            self.refuse(|problem| problem.setting == opt.name)?;
        }
        Ok(())
    }

    /// An error, if a value cannot be used and `counts`.
    fn refuse(&self, counts: impl Fn(&SettingError) -> bool) -> Result<(), String> {
        match self.config.unusable.iter().find(|problem| counts(problem)) {
            Some(problem) => Err(problem.to_string()),
            None => Ok(()),
        }
    }

    /// What is wrong with the options of the subcommand together.
    fn check(&self, arguments: &Arguments) -> Result<(), String> {
        let subcommand = arguments.subcommand;
        let is_option = |problem: &SettingError| Opt::long(subcommand, problem.setting).is_some();
        match subcommand {
            Subcommand::Run if arguments.words.is_empty() => Err("COMMAND is missing".to_owned()),
            Subcommand::Ca => self.refuse(is_option),
            Subcommand::Env => self.refuse(is_option).and_then(|()| {
                if self.unset && !self.format.can_unset() {
                    let error =
                        "--unset has no effect in this --format; use sh, fish, powershell or json";
                    return Err(error.to_owned());
                }
                Ok(())
            }),
            #[cfg(feature = "bench")]
            Subcommand::Bench if self.origin.is_some() => self.check_origin(),
            // It does not fail open.
            #[cfg(feature = "gateway")]
            Subcommand::Gateway => self.refuse(is_option).and_then(|()| self.gateway.check()),
            _ => self.check_session(),
        }
    }

    fn is_flag(&self, name: &str) -> bool {
        self.config.source(name) == Some(&Source::Flag)
    }

    fn check_session(&self) -> Result<(), String> {
        let config = &self.config;
        let given = |names: &[&'static str]| names.iter().copied().find(|name| self.is_flag(name));
        if config.embedded {
            if let Some(name) = given(UPSTREAM_SETTINGS) {
                return Err(format!(
                    "--{name} has no effect with --embedded, which starts its own upstream"
                ));
            }
        } else if let Some(name) = given(EMBEDDED_SETTINGS) {
            return Err(format!("--{name} has no effect without --embedded"));
        }
        let listen = config.listen;
        if self.is_flag("listen") && !listen.ip().is_loopback() && !config.allow_non_loopback {
            return Err(reachable("listen", listen));
        }
        Ok(())
    }

    #[cfg(feature = "bench")]
    fn check_origin(&self) -> Result<(), String> {
        self.refuse(|problem| {
            let opt = Opt::long(Subcommand::Bench, problem.setting);
            matches!(opt, Some(Opt::Program(_)))
        })?;
        if self.config.embedded || self.target.is_some() {
            return Err(
                "--origin only serves; give --embedded and --target to the bench that connects to it"
                    .to_owned(),
            );
        }
        match self.origin {
            Some(origin) if !origin.ip().is_loopback() && !self.config.allow_non_loopback => {
                Err(reachable("origin", origin))
            }
            _ => Ok(()),
        }
    }

    /// The level to log at: the default of the subcommand, changed by `-v` and `-q`.
    pub(crate) fn log_level(&self, subcommand: Subcommand, verbosity: i8) -> LevelFilter {
        let default = match subcommand {
            Subcommand::Serve | Subcommand::Gateway => LevelFilter::Info,
            Subcommand::Run | Subcommand::Doctor if self.config.uses_embedded_gateway() => {
                LevelFilter::Info
            }
            // `bench` opens thousands of tunnels, and `info` is one line per tunnel.
            _ => LevelFilter::Warn,
        };
        let level = (default as i8).saturating_add(verbosity).max(0);
        LevelFilter::iter()
            .find(|candidate| *candidate as i8 == level)
            .unwrap_or(LevelFilter::Trace)
    }
}

fn reachable(option: &str, address: SocketAddr) -> String {
    format!(
        "other machines can reach --{option} {address}; listen on 127.0.0.1, or add --allow-non-loopback"
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::args::{Invocation, parse};
    use super::super::pages::{name, subcommands};
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn resolve(line: &str, variables: Variables<'_>) -> Result<Options, UsageError> {
        match parse(line.split_whitespace().map(OsString::from))? {
            Invocation::Subcommand(arguments) => {
                Options::resolve(&arguments, &variables.iter().copied().collect())
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    fn options(line: &str, variables: Variables<'_>) -> Options {
        resolve(line, variables).unwrap_or_else(|error| panic!("{line}: {}", error.what))
    }

    /// Option, a value, another value, and how to see it in the settings.
    type Case = (
        &'static str,
        &'static str,
        &'static str,
        fn(&Config) -> String,
    );

    const ROWS: &[Case] = &[
        ("when", "always", "never", |c| format!("{:?}", c.when)),
        ("base-url", "https://a.example", "https://b.example", |c| {
            format!("{:?}", c.base_url)
        }),
        ("session-id", "a", "b", |c| format!("{:?}", c.session_id)),
        ("token-file", "/a", "/b", |c| format!("{:?}", c.token_file)),
        ("token-fd", "3", "4", |c| format!("{:?}", c.token_fd)),
        ("upstream-ca", "/a", "/b", |c| {
            format!("{:?}", c.upstream_ca)
        }),
        ("upstream-uid", "7", "8", |c| {
            format!("{:?}", c.upstream_uid)
        }),
        ("parent-proxy", "http://a:1", "http://b:1", |c| {
            format!("{:?}", c.parent)
        }),
        ("system-ca", "/a", "/b", |c| format!("{:?}", c.system_ca)),
        ("ca-bundle", "/a", "/b", |c| format!("{:?}", c.ca_bundle)),
        ("listen", "127.0.0.1:1", "127.0.0.1:2", |c| {
            format!("{:?}", c.listen)
        }),
        ("omit-variable", "a", "b", |c| {
            format!("{:?}", c.omit_variables)
        }),
        ("max-tunnels", "3", "4", |c| {
            format!("{:?}", c.limits.max_tunnels)
        }),
        ("standby", "3", "4", |c| format!("{:?}", c.limits.standby)),
        ("drain-timeout", "3s", "4s", |c| {
            format!("{:?}", c.limits.drain_timeout)
        }),
        ("connect-timeout", "3s", "4s", |c| {
            format!("{:?}", c.limits.connect_timeout)
        }),
        ("keepalive", "3s", "4s", |c| {
            format!("{:?}", c.limits.keepalive)
        }),
        ("idle-timeout", "3s", "4s", |c| {
            format!("{:?}", c.limits.idle_timeout)
        }),
        // The test below compares the options of the log in every row.
        ("log-format", "json", "text", |_| String::new()),
        ("log-file", "/a", "/b", |_| String::new()),
    ];

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_default() {
        for (name, first, second, seen) in ROWS {
            let seen = |line: &str, variables: Variables<'_>| {
                let options = options(line, variables);
                format!("{} {:?}", seen(&options.config), options.log)
            };
            let variable = Opt::long(Subcommand::Serve, name).unwrap().variable();
            let default = seen("serve", &[]);
            let inherited = seen("serve", &[(&variable, second)]);
            let flag = format!("serve --{name} {first}");
            let given = seen(&flag, &[(&variable, second)]);
            assert_ne!(inherited, default, "{name}");
            assert_ne!(given, inherited, "{name}");
            assert_eq!(given, seen(&flag, &[]), "{name}");
        }
    }

    #[test]
    fn the_rows_above_and_the_switches_are_all_the_settings_that_serve_has() {
        let switches = [
            "embedded",
            "keep-token",
            "allow-non-loopback",
            "allow-any-user",
            "listen-credential",
            "node-hook",
            "require",
            "require-tls",
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
    fn no_subcommand_has_two_options_of_one_name_or_letter() {
        for subcommand in subcommands() {
            for opt in Opt::of(subcommand) {
                let same = |other: &Opt| {
                    other.name == opt.name || (opt.short.is_some() && other.short == opt.short)
                };
                let count = Opt::of(subcommand).filter(same).count();
                assert_eq!(count, 1, "{subcommand:?} --{}", opt.name);
            }
        }
    }

    /// The table of the README has one row per option: its usage, its subcommands, its meaning.
    #[test]
    #[cfg(all(feature = "bench", feature = "gateway"))]
    fn the_readme_has_the_table_of_options() {
        let readme = include_str!("../../README.md");
        let table = readme.split_once("<!-- options -->\n").unwrap().1;
        let rows: Vec<&str> = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        let expected: Vec<String> = Opt::all()
            .filter(|opt| !opt.subcommands.is_empty())
            .map(|opt| {
                let of = if opt.subcommands.len() == subcommands().count() {
                    "all".to_owned()
                } else {
                    let names: Vec<&str> = opt.subcommands.iter().map(|&s| name(s)).collect();
                    names.join(" ")
                };
                let meaning = opt.meaning().replace('*', "\\*");
                format!("| `{}` | {of} | {meaning} |", opt.usage())
            })
            .collect();
        assert_eq!(rows, expected, "expected:\n{}\n", expected.join("\n"));
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
            let options = options(line, variables);
            assert!(options.require);
            assert!(options.config.allow_non_loopback);
        }
        let off = options(
            "serve",
            &[
                ("UPSTREAMPROXY_EMBEDDED", "off"),
                ("UPSTREAMPROXY_REQUIRE", ""),
            ],
        );
        assert!(
            !off.config.uses_embedded_gateway() && !off.require && off.config.unusable.is_empty()
        );
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
            let error = resolve(&format!("run {flag} {value} x"), &[]).unwrap_err();
            assert_eq!(error.subcommand, Some(Subcommand::Run));
            assert!(error.what.starts_with(flag), "{}", error.what);
            let kept = options("run x", &[(variable, value)]).config.unusable;
            assert_eq!(kept.len(), 1, "{variable}");
            assert_eq!(kept[0].name, variable);
        }
        // A listen address that can be parsed and not be used is left to the gate too.
        let flags = "run --base-url https://upstream.test --session-id s x";
        let open = options(flags, &[("UPSTREAMPROXY_LISTEN", "0.0.0.0:0")]).config;
        assert!(!open.listen.ip().is_loopback());
        assert!(resolve("run --listen 0.0.0.0:0 x", &[]).is_err());
        let kept = options("run x", &[("UPSTREAMPROXY_REQUIRE", "perhaps")]);
        assert_eq!(kept.config.unusable[0].name, "UPSTREAMPROXY_REQUIRE");
    }

    #[test]
    fn a_flag_takes_the_place_of_an_unusable_variable() {
        let options = options(
            "run --keepalive 5s x",
            &[("UPSTREAMPROXY_KEEPALIVE", "garbage")],
        );
        assert!(options.config.unusable.is_empty());
        assert_eq!(options.config.limits.keepalive, Duration::from_secs(5));
    }

    #[test]
    fn a_base_url_that_cannot_be_used_is_a_usage_error_in_a_flag() {
        let error = resolve("run --base-url nonsense x", &[]).unwrap_err();
        assert!(
            error.what.starts_with("--base-url cannot be used"),
            "{}",
            error.what
        );
        assert!(resolve("run --session-id a:b x", &[]).is_err());
        assert!(resolve("run --base-url https://a.example x", &[]).is_ok());
        assert!(resolve("run x", &[("UPSTREAMPROXY_BASE_URL", "nonsense")]).is_ok());
    }

    #[test]
    fn children_inherit_none_of_our_flags() {
        let variables = [("PATH", "/bin")];
        let options = options("run --keepalive 5s --require x", &variables);
        assert_eq!(options.config.inherited, variables.into_iter().collect());
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
            assert!(resolve(line, &[]).is_err(), "{line}");
        }
        assert!(resolve("run --listen 0.0.0.0:0 --allow-non-loopback x", &[]).is_ok());
        assert!(resolve("run x", &[("UPSTREAMPROXY_INTERCEPT", "none")]).is_ok());
    }

    #[test]
    fn a_bad_format_is_a_usage_error_wherever_it_comes_from() {
        assert!(resolve("env", &[("UPSTREAMPROXY_FORMAT", "cobol")]).is_err());
        assert!(resolve("env --format cobol", &[]).is_err());
    }

    #[test]
    fn the_level_depends_on_the_subcommand_and_on_v_and_q() {
        let level = |line: &str, verbosity| {
            let subcommand = subcommands().find(|&s| line.starts_with(name(s))).unwrap();
            options(line, &[]).log_level(subcommand, verbosity)
        };
        assert_eq!(level("run x", 0), LevelFilter::Warn);
        assert_eq!(level("serve", 0), LevelFilter::Info);
        assert_eq!(level("serve", 1), LevelFilter::Debug);
        assert_eq!(level("run x", -1), LevelFilter::Error);
        assert_eq!(level("run x", -9), LevelFilter::Off);
        assert_eq!(level("run x", 127), LevelFilter::Trace);
        #[cfg(feature = "gateway")]
        {
            assert_eq!(level("run --embedded x", 0), LevelFilter::Info);
            assert_eq!(level("gateway --sessions /s", 0), LevelFilter::Info);
        }
    }

    #[test]
    #[cfg(not(feature = "gateway"))]
    fn a_request_for_a_gateway_names_the_build_that_has_one() {
        for line in [
            "gateway --sessions /s",
            "gateway",
            "run --embedded x",
            "serve --embedded",
            "doctor --embedded",
        ] {
            let error = resolve(line, &[]).unwrap_err();
            assert!(
                error.what.contains("the feature `gateway`"),
                "{}",
                error.what
            );
        }
        // A variable is left to the gate, which is closed by "never".
        let variables = [("UPSTREAMPROXY_EMBEDDED", "1")];
        let kept = options("run x", &variables).config;
        assert!(!kept.uses_embedded_gateway());
        assert_eq!(kept.unusable[0].name, "UPSTREAMPROXY_EMBEDDED");
        let never = options("run --when never x", &variables).config;
        let gate = crate::setup::gate::check(&never).unwrap();
        assert!(matches!(gate, crate::setup::gate::Gate::Closed { .. }));
    }
}
