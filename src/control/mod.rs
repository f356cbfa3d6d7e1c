//! What the threads of one relay or gateway share: stop signal, deadlines, phases, rejections,
//! outcomes, counters.

pub(crate) mod deadline;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod outcome;
pub(crate) mod peer_text;
pub(crate) mod phase;
pub(crate) mod rejection;
pub(crate) mod stop;
