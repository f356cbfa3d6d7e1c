//! What a diagnosis finds: one step, whether it is well, and what to do if it is not. Values only; `cli` prints them.

use std::fmt;
use std::time::Duration;

use crate::control::phase::Phase;
use crate::error::Error;
use crate::error::Stage;

/// A step of a diagnosis, in the order in which they are walked.
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
    /// Looking the gateway's name up.
    Resolve,
    /// Opening a TCP connection to it.
    Connect,
    /// The TLS handshake with it.
    Tls,
    /// The WebSocket opening handshake.
    Upgrade,
    /// The CONNECT inside the WebSocket.
    Opening,
    /// Bytes through a relay's port to the far end and back.
    RoundTrip,
    /// A `ClientHello` as large as post-quantum key shares make it, through a tunnel.
    PostQuantumHello,
    /// A `ClientHello` with Encrypted Client Hello in it, through a tunnel.
    EchHello,
    /// The variables of this shell.
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

    /// The step's name as users see it: that of the stage or the phase where it is one.
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

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is well; what was found, in a few words.
    Ok(String),
    /// It is not.
    Wrong {
        /// What is wrong and where, without a full stop.
        what: String,
        /// What to do about it, as an imperative without a full stop.
        remedy: String,
    },
    /// It was not walked; why.
    Skipped(String),
}

/// Something that was measured or learnt on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// A count, or a time in milliseconds where the name ends with `_ms`.
    Number(u64),
    /// Anything else.
    Text(String),
}

/// How far the steps that build on one another have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// A tunnel to the far end was opened.
    Yes,
    /// The gateway would have none to it, which is a far end that nobody asked for.
    Forbidden,
    /// None was, and the findings say why.
    No,
}

/// One finding. A step has one, `variables` one for each thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct Check {
    /// What was looked at.
    pub step: Step,
    /// What it came to.
    pub verdict: Verdict,
    /// How long it took, where that tells anything.
    pub took: Option<Duration>,
    /// What was learnt, by name.
    pub facts: Vec<(&'static str, Fact)>,
}

/// What is wrong, and what to do about it: a [`Verdict::Wrong`] on its way.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) remedy: String,
    /// It is the gateway's policy, and so nothing between here and there.
    pub(crate) policy: bool,
}

impl Problem {
    pub(crate) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            remedy: remedy.into(),
            policy: false,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::new(error.what(), error.remedy())
    }
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

    pub(super) fn wrong(step: Step, trouble: Problem) -> Self {
        let Problem { what, remedy, .. } = trouble;
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
    fn every_step_has_a_name_of_its_own_and_stands_in_its_order() {
        let mut names: Vec<_> = Step::ALL.iter().map(|step| step.name()).collect();
        assert!(Step::ALL.is_sorted());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Step::ALL.len());
    }
}
