//! A row of a settings table: the name of a setting, its documentation, and how a value is set.
//!
//! The settings of the library are the table `settings::SETTINGS`. The command line adds a table
//! of its own options, with the same kind of row.

use std::ffi::OsStr;
use std::ops::Deref;

use super::environment::Environment;
use super::value::Reason;

/// A subcommand of the binary, for which a setting is an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) enum Subcommand {
    /// Set up, run a command, tear down.
    Run,
    /// Set up and serve until a signal requests a stop.
    Serve,
    /// Print the variables of the running `serve`.
    Env,
    /// Print the CA certificates of the upstream.
    Ca,
    /// Check every stage and report problems.
    Doctor,
    /// Measure the path through the upstream, with the feature `bench`.
    Bench,
    /// Run the gateway, with the feature `gateway`.
    Gateway,
    /// Print the completions of a shell.
    Completions,
    /// Print a systemd unit.
    Unit,
    /// Print the manual page.
    Man,
    /// Print help.
    Help,
    /// Print the version.
    Version,
}

/// The part of the help in which a setting is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) enum Group {
    /// The upstream, and what authorises this program there.
    Session,
    /// The port of the relay, and the variables of child processes.
    Relay,
    /// The port of the gateway and its files.
    Gateway,
    /// What the gateway does with targets.
    Interception,
    /// Limits on time and number.
    Limits,
    /// What is measured or tested.
    Measurement,
    /// What is printed. The default.
    Output,
}

#[cfg(feature = "cli")]
impl Group {
    /// Every group, in the order of help.
    pub(crate) const ALL: [Self; 7] = [
        Self::Session,
        Self::Relay,
        Self::Gateway,
        Self::Interception,
        Self::Limits,
        Self::Measurement,
        Self::Output,
    ];

    /// Its heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Session => "Upstream and session",
            Self::Relay => "Relay",
            Self::Gateway => "Gateway",
            Self::Interception => "Targets and interception",
            Self::Limits => "Limits",
            Self::Measurement => "Measurement",
            Self::Output => "Output",
        }
    }
}

/// The name of a setting and its documentation.
#[derive(Debug)]
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) struct Spec {
    /// The long option without the dashes, and the name in the C API.
    pub(crate) name: &'static str,
    /// The short option.
    pub(crate) short: Option<char>,
    /// The placeholder of its value in help; `None`: a switch.
    pub(crate) value: Option<&'static str>,
    /// Whether it can be given more than once. In a variable the values are separated by spaces.
    pub(crate) repeatable: bool,
    /// The subcommands that have it as an option.
    pub(crate) subcommands: &'static [Subcommand],
    /// Whether it is read from `UPSTREAMPROXY_<NAME>`.
    pub(crate) in_environment: bool,
    /// Variables of the session that are read after that one.
    pub(crate) session_variables: &'static [&'static str],
    /// The meaning in one line, for `--help` and the README.
    pub(crate) help: &'static str,
    /// The default, as help shows it; empty: none to show.
    pub(crate) default: &'static str,
    /// Where help lists it.
    pub(crate) group: Group,
    /// Every value that it can have, if they are few; empty: any value of its type.
    pub(crate) values: &'static [&'static str],
}

impl Spec {
    /// The variable that sets it: `UPSTREAMPROXY_<NAME>`.
    pub(crate) fn variable(&self) -> String {
        let name = self.name.to_ascii_uppercase().replace('-', "_");
        format!("UPSTREAMPROXY_{name}")
    }

    /// The first of its variables that is set in `environment`, and the value.
    pub(crate) fn lookup<'a>(&self, environment: &'a Environment) -> Option<(Source, &'a OsStr)> {
        let own = self.in_environment.then(|| self.variable());
        let session = self.session_variables.iter().map(|&name| name.to_owned());
        own.into_iter()
            .chain(session)
            .find_map(|name| environment.lookup(&name).map(|value| (name, value)))
            .map(|(name, value)| (Source::Variable(name), value))
    }
}

/// A setting of `T`: a spec, and how a value is parsed and stored.
pub(crate) struct Setting<T> {
    spec: Spec,
    set: fn(&mut T, &OsStr) -> Result<(), Reason>,
}

/// The methods that make a row of a settings table.
impl<T> Setting<T> {
    /// A switch, which is also read from the environment.
    pub(crate) const fn switch(name: &'static str, subcommands: &'static [Subcommand]) -> Self {
        Self {
            spec: Spec {
                name,
                short: None,
                value: None,
                repeatable: false,
                subcommands,
                in_environment: true,
                session_variables: &[],
                help: "",
                default: "",
                group: Group::Output,
                values: &[],
            },
            set: |_, _| Ok(()),
        }
    }

    /// A setting with a value, which is also read from the environment.
    pub(crate) const fn value(
        name: &'static str,
        placeholder: &'static str,
        subcommands: &'static [Subcommand],
    ) -> Self {
        let mut setting = Self::switch(name, subcommands);
        setting.spec.value = Some(placeholder);
        setting
    }

    /// See [`Spec::short`].
    #[cfg(feature = "cli")]
    pub(crate) const fn letter(mut self, letter: char) -> Self {
        self.spec.short = Some(letter);
        self
    }

    /// See [`Spec::repeatable`].
    pub(crate) const fn repeatable(mut self) -> Self {
        self.spec.repeatable = true;
        self
    }

    /// Not read from the environment.
    pub(crate) const fn flag_only(mut self) -> Self {
        self.spec.in_environment = false;
        self
    }

    /// See [`Spec::session_variables`].
    pub(crate) const fn session_variables(mut self, names: &'static [&'static str]) -> Self {
        self.spec.session_variables = names;
        self
    }

    /// See [`Spec::help`].
    pub(crate) const fn help(mut self, help: &'static str) -> Self {
        self.spec.help = help;
        self
    }

    /// See [`Spec::default`].
    pub(crate) const fn default(mut self, default: &'static str) -> Self {
        self.spec.default = default;
        self
    }

    /// See [`Spec::group`].
    pub(crate) const fn group(mut self, group: Group) -> Self {
        self.spec.group = group;
        self
    }

    /// See [`Spec::values`].
    pub(crate) const fn values(mut self, values: &'static [&'static str]) -> Self {
        self.spec.values = values;
        self
    }

    /// How a value is parsed and stored.
    pub(crate) const fn setter(mut self, set: fn(&mut T, &OsStr) -> Result<(), Reason>) -> Self {
        self.set = set;
        self
    }
}

impl<T> Setting<T> {
    /// Parses `value` and stores it in `target`.
    ///
    /// # Errors
    /// The value cannot be used; `target` is unchanged.
    pub(crate) fn set(
        &self,
        target: &mut T,
        value: &OsStr,
        source: &Source,
    ) -> Result<(), SettingError> {
        let set = if value.is_empty() {
            // In the environment an empty value counts as unset; elsewhere it is a mistake.
            Err("has an empty value".to_owned())
        } else {
            (self.set)(target, value)
        };
        set.map_err(|problem| SettingError {
            setting: self.spec.name,
            name: source.name_of(self.spec.name),
            problem,
        })
    }
}

impl<T> Deref for Setting<T> {
    type Target = Spec;

    fn deref(&self) -> &Spec {
        &self.spec
    }
}

/// Where the value of a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A variable of this name.
    Variable(String),
    /// A command-line flag.
    #[cfg_attr(not(feature = "cli"), allow(dead_code))]
    Flag,
    /// The embedding program.
    Host,
}

impl Source {
    /// How an error message names `setting`.
    pub(crate) fn name_of(&self, setting: &str) -> String {
        match self {
            Self::Variable(name) => name.clone(),
            Self::Flag => format!("--{setting}"),
            Self::Host => setting.to_owned(),
        }
    }
}

/// A value that a setting cannot have, or a setting that does not exist. It does not contain the
/// value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} {problem}")]
#[non_exhaustive]
pub struct SettingError {
    /// The setting, whatever the source of its value; empty: there is no such setting.
    pub(crate) setting: &'static str,
    /// The name of the flag, variable or setting that had the value.
    pub name: String,
    /// What is wrong: the rest of a sentence that begins with the name.
    pub problem: String,
}

impl SettingError {
    /// Whether [`Config::set`](crate::Config::set) knows no setting of this name.
    pub fn is_unknown(&self) -> bool {
        self.setting.is_empty()
    }
}
