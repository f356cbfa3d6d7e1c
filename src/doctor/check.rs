//! The result of one check of `doctor`: the step, whether it is well, and if not, what to do.
//! Values only; `cli` prints them.

use std::time::Duration;

use serde_json::Value;

use crate::control::phase::Phase;
use crate::error::Stage;
use crate::probe::problem::Problem;

/// Declares the steps with their names.
macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $name:expr,)*) => {
        /// A step of `doctor`, in the order in which the steps run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Step {
            $($(#[$doc])* $step,)*
        }

        impl Step {
            /// Every step, in order.
            pub const ALL: [Self; 14] = [$(Self::$step,)*];

            /// The name in output lines and JSON.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name,)*
                }
            }
        }
    };
}

// Stages and phases keep their own name.
steps! {
    /// Whether the environment asks for proxying at all.
    Gate = Stage::Gate.name(),
    /// Whether the session token can be read.
    Token = Stage::Token.name(),
    /// Whether the CA certificates can be downloaded, merged and written.
    Ca = Stage::Ca.name(),
    /// Whether the relay can listen, or listens.
    Relay = Stage::Relay.name(),
    /// Whether the token file can be deleted.
    Burn = Stage::Burn.name(),
    /// Resolving the gateway's name.
    Resolve = Phase::Resolve.name(),
    /// Opening a TCP connection to the gateway.
    Connect = Phase::Connect.name(),
    /// The TLS handshake with the gateway.
    Tls = Phase::Tls.name(),
    /// The WebSocket opening handshake with the gateway.
    Upgrade = Phase::Upgrade.name(),
    /// The CONNECT request inside the WebSocket.
    Opening = Phase::Opening.name(),
    /// Sending bytes through a relay to the far end and back.
    RoundTrip = "round trip",
    /// Sending a `ClientHello` with a post-quantum key share through a tunnel.
    PostQuantumHello = "post-quantum hello",
    /// Sending a `ClientHello` with Encrypted Client Hello through a tunnel.
    EchHello = "ech hello",
    /// The proxy variables of this shell.
    Variables = "variables",
}

/// The result of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is well; a short description of what was found.
    Ok(String),
    /// Something is wrong.
    Wrong(Problem),
    /// It did not run; the reason.
    Skipped(String),
}

/// One check. Each step has one; `variables` has one for each problem.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Check {
    /// The step.
    pub step: Step,
    /// Its result.
    pub verdict: Verdict,
    /// How long it took, where that is informative.
    pub took: Option<Duration>,
    /// Observed values, by name: a time in milliseconds if the name ends with `_ms`.
    pub facts: Vec<(&'static str, Value)>,
}

impl Check {
    fn new(step: Step, verdict: Verdict) -> Self {
        Self {
            step,
            verdict,
            took: None,
            facts: Vec::new(),
        }
    }

    pub(super) fn ok(step: Step, detail: impl Into<String>) -> Self {
        Self::new(step, Verdict::Ok(detail.into()))
    }

    pub(super) fn wrong(step: Step, problem: impl Into<Problem>) -> Self {
        Self::new(step, Verdict::Wrong(problem.into()))
    }

    pub(super) fn skipped(step: Step, why: impl Into<String>) -> Self {
        Self::new(step, Verdict::Skipped(why.into()))
    }

    pub(super) fn of(step: Step, found: Result<String, impl Into<Problem>>) -> Self {
        match found {
            Ok(detail) => Self::ok(step, detail),
            Err(error) => Self::wrong(step, error),
        }
    }

    pub(super) fn after(mut self, took: Duration) -> Self {
        self.took = Some(took);
        self
    }

    pub(super) fn fact(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.facts.push((name, value.into()));
        self
    }

    /// Whether something is wrong.
    pub(crate) fn is_wrong(&self) -> bool {
        matches!(self.verdict, Verdict::Wrong(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_in_order_and_have_unique_names() {
        let mut names: Vec<_> = Step::ALL.iter().map(|step| step.name()).collect();
        assert!(Step::ALL.is_sorted());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Step::ALL.len());
    }
}
