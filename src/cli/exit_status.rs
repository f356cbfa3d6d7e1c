//! The exit status of the process.

use std::process::ExitCode;

use super::signals::Signal;

/// The exit status of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitStatus(u8);

impl ExitStatus {
    /// Success.
    pub(crate) const SUCCESS: Self = Self(0);
    /// Failure.
    pub(crate) const FAILED: Self = Self(1);
    /// A command line or a setting that cannot be used, except of `run`.
    pub(crate) const USAGE: Self = Self(2);
    /// Disabled with `--require`: `EX_UNAVAILABLE` of `sysexits.h`.
    pub(crate) const DISABLED: Self = Self(69);
    /// `run` itself failed. Commands rarely use this status; `env` and `timeout` use it too.
    pub(crate) const RUN_USAGE: Self = Self(125);
    /// COMMAND was found and cannot be executed.
    pub(crate) const NOT_EXECUTABLE: Self = Self(126);
    /// COMMAND was not found.
    pub(crate) const NOT_FOUND: Self = Self(127);

    /// The status of another process, such as a child.
    pub(crate) fn new(status: u8) -> Self {
        Self(status)
    }

    /// 128 plus the number of the signal.
    pub(crate) fn of_signal(signal: Signal) -> Self {
        Self(signal.status())
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.0)
    }
}
