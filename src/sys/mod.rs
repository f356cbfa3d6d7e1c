//! What the process shares with its host: files, descriptors, memory and log records.

#[cfg(target_os = "linux")]
pub(crate) mod descendants;
pub(crate) mod files;
pub(crate) mod inherited;
#[cfg(any(test, feature = "cli", feature = "capi"))]
pub(crate) mod log_filter;
pub(crate) mod memory;
#[cfg(any(test, feature = "cli", feature = "capi"))]
pub(crate) mod non_blocking;
pub(crate) mod owned_name;
#[cfg(any(test, feature = "cli", feature = "capi"))]
pub(crate) mod signal_mask;
