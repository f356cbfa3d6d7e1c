//! The environment with the flags laid over it, and the values in it.
//!
//! A flag is laid over the environment under its variable's name, so that one parser decides what a value means, and what
//! cannot be used is a usage error exactly if it came from a flag.

use std::ffi::OsStr;
use std::str::FromStr;

use crate::config::{Environment, UnusableSetting};

use super::args::{Typed, UsageError};
use super::options::Opt;

/// The environment with the flags laid over it.
pub(crate) struct Layers<'a> {
    /// What was typed.
    pub(crate) typed: &'a Typed,
    /// That, laid over the environment.
    pub(crate) environment: Environment,
    /// What we read ourselves and could not use.
    pub(crate) unusable: Vec<UnusableSetting>,
}

impl<'a> Layers<'a> {
    /// Lays `typed` over `environment`.
    pub(crate) fn new(typed: &'a Typed, environment: &Environment) -> Self {
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

    /// The option's value as text.
    pub(crate) fn lookup(&self, name: &str) -> Option<&OsStr> {
        self.environment.lookup(self.variable(name))
    }

    /// One value of the type that is wanted; `None` if there is none, or none that can be used.
    pub(crate) fn value<T: FromStr>(&mut self, name: &str, expected: &'static str) -> Option<T> {
        let text = self.lookup(name)?.to_str().unwrap_or_default().trim();
        let value = text.parse().ok();
        if value.is_none() {
            self.refuse(name, expected);
        }
        value
    }

    /// Whether the switch is on.
    pub(crate) fn switch(&mut self, name: &str) -> bool {
        self.value(name, "one of 1, true, yes, on, 0, false, no, off")
            .is_some_and(|Switch(on)| on)
    }

    /// Keeps that the option's value is not `expected`.
    pub(crate) fn refuse(&mut self, name: &str, expected: &'static str) {
        self.unusable.push(UnusableSetting {
            name: self.variable(name),
            expected,
        });
    }

    /// A usage error of this subcommand.
    pub(crate) fn wrong(&self, what: impl Into<String>) -> UsageError {
        UsageError::new(self.typed.subcommand, what)
    }

    /// A usage error, if one of the unusable settings was given as a flag.
    pub(crate) fn refuse_flags(&self, unusable: &[UnusableSetting]) -> Result<(), UsageError> {
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
    pub(crate) fn refuse_any(&self) -> Result<(), UsageError> {
        self.refuse_flags(&self.unusable)?;
        match self.unusable.first() {
            Some(setting) => Err(self.wrong(setting.to_string())),
            None => Ok(()),
        }
    }
}

/// A switch in the environment: the gate's truthy words, or their opposites.
pub(crate) struct Switch(pub(crate) bool);

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
    use crate::config::Config;

    use super::*;

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
}
