//! The pump: moves the bytes of one tunnel between two connections until the tunnel ends.

mod ending;
mod run;
mod timers;

pub(crate) use run::{Pump, PumpContext};
