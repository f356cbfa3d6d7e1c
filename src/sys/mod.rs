//! What the process shares with its host: memory and log records.

pub(crate) mod log_filter;
pub(crate) mod memory;
