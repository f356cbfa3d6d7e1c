//! What `bench` does: it measures set-up, echo and throughput through the upstream, and says what
//! limits them (`manual/performance.md`).
//!
//! The loads are ordinary clients of a relay's port. Nothing is written, deleted or changed, but
//! there is traffic. Results are values; nothing is printed here.

#![allow(
    clippy::cast_precision_loss,
    reason = "figures for display, from counts far below 2^52"
)]

mod client;
mod load;
mod machine;
mod measures;
mod origin;
pub(crate) mod pattern;
mod reports;
mod run;
pub(crate) mod usage;
mod verdict;
mod wire;

pub(crate) use origin::start as start_origin;
pub(crate) use reports::{BenchPlan, BenchProgress, Row};
pub(crate) use run::benchmark;
pub(crate) use verdict::Conclusion;
