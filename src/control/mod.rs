//! What every thread of a relay or gateway shares: stop signal, deadlines, phases, outcomes, counters.

pub(crate) mod deadline;
pub(crate) mod metrics;
pub(crate) mod outcome;
pub(crate) mod phase;
pub(crate) mod stop;
