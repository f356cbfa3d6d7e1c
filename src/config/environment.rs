//! A snapshot of environment variables.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;

/// A snapshot of environment variables: what the settings are read from, and what the child variables build on.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl fmt::Debug for Environment {
    /// The names alone: among the values are other people's keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// The environment of this process, now.
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    /// The variable's value; an empty one counts as unset.
    pub fn lookup(&self, name: impl AsRef<OsStr>) -> Option<&OsStr> {
        self.0
            .get(name.as_ref())
            .map(OsString::as_os_str)
            .filter(|value| !value.is_empty())
    }

    /// The variable's value as text; one that is not UTF-8 counts as unset.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.lookup(name).and_then(OsStr::to_str)
    }

    /// Sets a variable in the snapshot.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.0.insert(name.into(), value.into());
    }

    /// Every variable, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(n, v)| (n.into(), v.into()))
                .collect(),
        )
    }
}
