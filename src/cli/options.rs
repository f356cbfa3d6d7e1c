//! The options of the command line: the settings of the library and the program's own.

use std::ffi::OsStr;
use std::ops::Deref;

use crate::config::{Config, SETTINGS, Setting, Source, Spec, Subcommand};

use super::program_options::{Options, PROGRAM_OPTIONS};

/// What a shell can offer as the value of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// Names of files.
    Files,
    /// These words.
    Words(&'static [&'static str]),
    /// Nothing.
    Unknown,
}

/// An option of the command line.
#[derive(Clone, Copy)]
pub(crate) enum Opt {
    /// A setting of the library.
    Library(&'static Setting<Config>),
    /// An option of the program.
    Program(&'static Setting<Options>),
}

impl Deref for Opt {
    type Target = Spec;

    fn deref(&self) -> &Spec {
        match self {
            Self::Library(setting) => setting,
            Self::Program(setting) => setting,
        }
    }
}

impl Opt {
    /// Every option, in the order of help.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let program = PROGRAM_OPTIONS.iter().map(Self::Program);
        SETTINGS.iter().map(Self::Library).chain(program)
    }

    /// Every option of `subcommand`, in the order of help.
    pub(crate) fn of(subcommand: Subcommand) -> impl Iterator<Item = Self> {
        Self::all().filter(move |opt| opt.subcommands.contains(&subcommand))
    }

    /// The option of `subcommand` with this long name.
    pub(crate) fn long(subcommand: Subcommand, name: &str) -> Option<Self> {
        Self::of(subcommand).find(|opt| opt.name == name)
    }

    /// The option of `subcommand` with this letter.
    pub(crate) fn short(subcommand: Subcommand, letter: char) -> Option<Self> {
        Self::of(subcommand).find(|opt| opt.short == Some(letter))
    }

    /// How help names it: `-v, --name VALUE`.
    pub(crate) fn usage(self) -> String {
        let short = self.short.map(|c| format!("-{c}, ")).unwrap_or_default();
        let value = self.value.map(|v| format!(" {v}")).unwrap_or_default();
        format!("{short}--{}{value}", self.name)
    }

    /// Its meaning, with the default in parentheses.
    pub(crate) fn meaning(self) -> String {
        match self.default {
            "" => self.help.to_owned(),
            default => format!("{} (default: {default})", self.help),
        }
    }

    /// The first part of its meaning.
    pub(crate) fn summary(self) -> &'static str {
        self.help.split("; ").next().unwrap_or_default()
    }

    /// The variables that set it, if there are any.
    pub(crate) fn variables(self) -> Option<String> {
        if !self.in_environment {
            return None;
        }
        let mut names = self.variable();
        for name in self.session_variables {
            names = format!("{names} or {name}");
        }
        if self.repeatable {
            names.push_str(" (values separated by spaces)");
        }
        Some(names)
    }

    /// What can be typed as its value. `None`: it is a switch.
    pub(crate) fn completion(self) -> Option<Completion> {
        Some(match self.value? {
            "PATH" | "FILE" => Completion::Files,
            _ if !self.values.is_empty() => Completion::Words(self.values),
            _ => Completion::Unknown,
        })
    }

    /// Sets it, and records where the value comes from or why it cannot be used.
    pub(crate) fn set(self, options: &mut Options, value: &OsStr, source: Source) {
        let result = match self {
            Self::Library(setting) => setting.set(&mut options.config, value, &source),
            Self::Program(setting) => setting.set(options, value, &source),
        };
        options.config.record(self.name, source, result);
    }
}
