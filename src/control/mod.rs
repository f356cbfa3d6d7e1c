//! What the threads of one relay or gateway share: stop signal, deadlines, phases, rejections,
//! outcomes, counters, shares.

pub(crate) mod deadline;
#[allow(dead_code)] // Read by `status`.
pub(crate) mod hosts;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod outcome;
pub(crate) mod peer_text;
pub(crate) mod phase;
pub(crate) mod refusals;
pub(crate) mod rejection;
#[cfg_attr(not(feature = "gateway"), allow(dead_code))]
pub(crate) mod shares;
pub(crate) mod stop;
