//! The manual: pages that are read here, in the repository, or by `cargo doc --open`; no code.

// The pages are prose: a name of a thing is not always a name in the code.
#![allow(clippy::doc_markdown)]

#[doc = include_str!("manual/architecture.md")]
pub mod architecture {}

#[doc = include_str!("manual/protocol.md")]
pub mod protocol {}

#[doc = include_str!("manual/conformance.md")]
pub mod conformance {}

#[doc = include_str!("manual/operations.md")]
pub mod operations {}

#[doc = include_str!("manual/performance.md")]
pub mod performance {}

#[doc = include_str!("manual/c-api.md")]
pub mod c_api {}

#[doc = include_str!("manual/endurance.md")]
pub mod endurance {}

#[doc = include_str!("manual/faults.md")]
pub mod faults {}

#[doc = include_str!("manual/static-binaries.md")]
pub mod static_binaries {}

#[doc = include_str!("manual/changelog.md")]
pub mod changelog {}

/// The README's Rust, compiled and run with the other examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
