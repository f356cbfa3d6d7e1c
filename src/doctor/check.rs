//! The result of one check of `doctor`: the step, whether it is well, and if not, what to do.
//! Values only; `cli` prints them.

use std::fmt;
use std::time::Duration;

use crate::control::phase::Phase;
use crate::error::Stage;
use crate::probe::problem::Problem;

/// A step of `doctor`, in the order in which the steps run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Whether the environment asks for proxying at all.
    Gate,
    /// Whether the session token can be read.
    Token,
    /// Whether the CA certificates can be downloaded, merged and written.
    Ca,
    /// Whether the relay can listen, or listens.
    Relay,
    /// Whether the token file can be deleted.
    Burn,
    /// Resolving the gateway's name.
    Resolve,
    /// Opening a TCP connection to the gateway.
    Connect,
    /// The TLS handshake with the gateway.
    Tls,
    /// The WebSocket opening handshake with the gateway.
    Upgrade,
    /// The CONNECT request inside the WebSocket.
    Opening,
    /// Sending bytes through a relay to the far end and back.
    RoundTrip,
    /// Sending a `ClientHello` with a post-quantum key share through a tunnel.
    PostQuantumHello,
    /// Sending a `ClientHello` with Encrypted Client Hello through a tunnel.
    EchHello,
    /// The proxy variables of this shell.
    Variables,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 14] = [
        Self::Gate,
        Self::Token,
        Self::Ca,
        Self::Relay,
        Self::Burn,
        Self::Resolve,
        Self::Connect,
        Self::Tls,
        Self::Upgrade,
        Self::Opening,
        Self::RoundTrip,
        Self::PostQuantumHello,
        Self::EchHello,
        Self::Variables,
    ];

    /// The name in output lines and JSON. Stages and phases keep their own name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gate => Stage::Gate.name(),
            Self::Token => Stage::Token.name(),
            Self::Ca => Stage::Ca.name(),
            Self::Relay => Stage::Relay.name(),
            Self::Burn => Stage::Burn.name(),
            Self::Resolve => Phase::Resolve.name(),
            Self::Connect => Phase::Connect.name(),
            Self::Tls => Phase::Tls.name(),
            Self::Upgrade => Phase::Upgrade.name(),
            Self::Opening => Phase::Opening.name(),
            Self::RoundTrip => "round trip",
            Self::PostQuantumHello => "post-quantum hello",
            Self::EchHello => "ech hello",
            Self::Variables => "variables",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The result of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is well; a short description of what was found.
    Ok(String),
    /// Something is wrong.
    Wrong {
        /// What is wrong and where, without a full stop.
        what: String,
        /// What to do about it, as an imperative without a full stop.
        remedy: String,
    },
    /// It did not run; the reason.
    Skipped(String),
}

/// A measured or observed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// A count, or a time in milliseconds if the name ends with `_ms`.
    Number(u64),
    /// Anything else.
    Text(String),
}

/// How far the steps from `resolve` to `opening` came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathResult {
    /// A tunnel to the far end was opened.
    Opened,
    /// The gateway's policy forbids the far end, which was chosen by default and not by the user.
    Forbidden,
    /// No tunnel was opened; the checks say why.
    Failed,
}

/// One check. Each step has one; `variables` has one for each problem.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct Check {
    /// The step.
    pub step: Step,
    /// Its result.
    pub verdict: Verdict,
    /// How long it took, where that is informative.
    pub took: Option<Duration>,
    /// Observed values, by name.
    pub facts: Vec<(&'static str, Fact)>,
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

    pub(super) fn wrong(step: Step, problem: Problem) -> Self {
        let Problem { what, remedy, .. } = problem;
        Self::new(step, Verdict::Wrong { what, remedy })
    }

    pub(super) fn skipped(step: Step, why: impl Into<String>) -> Self {
        Self::new(step, Verdict::Skipped(why.into()))
    }

    pub(super) fn of<E: Into<Problem>>(step: Step, found: Result<String, E>) -> Self {
        match found {
            Ok(detail) => Self::ok(step, detail),
            Err(error) => Self::wrong(step, error.into()),
        }
    }

    pub(super) fn after(mut self, took: Duration) -> Self {
        self.took = Some(took);
        self
    }

    pub(super) fn text(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.facts.push((name, Fact::Text(value.into())));
        self
    }

    pub(super) fn number(mut self, name: &'static str, value: usize) -> Self {
        self.facts.push((name, Fact::Number(value as u64)));
        self
    }

    pub(super) fn millis(self, name: &'static str, value: Duration) -> Self {
        self.number(
            name,
            usize::try_from(value.as_millis()).unwrap_or(usize::MAX),
        )
    }

    /// Whether something is wrong.
    pub(crate) fn is_wrong(&self) -> bool {
        matches!(self.verdict, Verdict::Wrong { .. })
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
