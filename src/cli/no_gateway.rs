//! What stands in the place of `gateway` in a build without it: settings of which there are none, and the sentence that says
//! so. A flag that asks for a gateway is a usage error, a variable that does leaves us Disabled at the gate.

// Everything is taken as `gateway` takes it.
#![allow(clippy::needless_pass_by_value)]

use crate::config::Config;
use crate::error::Error;
use crate::orchestrator::Started;

use super::ExitStatus;
use super::args::UsageError;
use super::layers::Layers;

/// What `--embedded` and its variable are not.
const EXPECTED: &str =
    "possible in this build, which is the relay alone; use one with the feature `gateway`";

/// Settings that nobody can have.
#[derive(Debug)]
pub(crate) enum GatewaySettings {}

/// Options that nobody can have.
#[derive(Debug)]
pub(crate) enum EmbeddedOptions {}

/// A gateway that nobody can start.
#[derive(Debug)]
pub(crate) enum Embedded {}

impl Embedded {
    pub(crate) fn start_for(_: &mut Config, options: EmbeddedOptions) -> Result<Self, Error> {
        match options {}
    }

    pub(crate) fn stop(self) {
        match self {}
    }
}

pub(crate) fn start_embedded(_: &Config, options: EmbeddedOptions) -> Started {
    match options {}
}

/// Says that `--embedded` is of no use here.
pub(crate) fn embedded(layers: &mut Layers<'_>, _: &mut Config) -> Option<EmbeddedOptions> {
    layers.refuse("embedded", EXPECTED);
    None
}

/// Says that there is no `gateway` here.
pub(crate) fn settings(layers: Layers<'_>) -> Result<GatewaySettings, UsageError> {
    Err(layers.wrong(
        "this build is the relay alone and has no gateway; use one with the feature `gateway`",
    ))
}

/// Never comes to pass.
pub(crate) fn run(settings: GatewaySettings) -> ExitStatus {
    match settings {}
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::args::{Asked, parse};
    use super::super::resolve::{Task, resolve};
    use super::*;

    fn task(line: &str, variables: &[(&str, &str)]) -> Result<Task, UsageError> {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(Asked::Work(typed)) => resolve(&typed, variables.iter().copied().collect()),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn who_asks_for_a_gateway_is_told_which_build_has_one() {
        for line in [
            "gateway --sessions /s",
            "gateway",
            "run --embedded x",
            "serve --embedded",
            "doctor --embedded",
        ] {
            let error = task(line, &[]).unwrap_err();
            assert!(
                error.what.contains("the feature `gateway`"),
                "{}",
                error.what
            );
        }
    }

    #[test]
    fn a_variable_that_asks_for_one_is_left_to_the_gate() {
        let asks = [("UPSTREAMPROXY_EMBEDDED", "1")];
        let Ok(Task::Run { session, .. }) = task("run x", &asks) else {
            panic!("not to be refused");
        };
        assert!(session.embedded.is_none());
        assert_eq!(session.config.unusable[0].name, "UPSTREAMPROXY_EMBEDDED");
        let Ok(Task::Run { session, .. }) = task("run --when never x", &asks) else {
            panic!("not to be refused");
        };
        assert!(
            session.config.unusable.is_empty(),
            "never wins over everything"
        );
    }
}
