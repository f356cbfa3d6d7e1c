//! The manual: pages that are read here, in the repository, or by `cargo doc --open`; no code.

// The pages are prose: a name of a thing is not always a name in the code.
#![allow(clippy::doc_markdown)]

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("conformance.md")]
pub mod conformance {}

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("performance.md")]
pub mod performance {}

#[doc = include_str!("c-api.md")]
pub mod c_api {}

#[doc = include_str!("endurance.md")]
pub mod endurance {}

#[doc = include_str!("faults.md")]
pub mod faults {}

#[doc = include_str!("static-binaries.md")]
pub mod static_binaries {}

#[doc = include_str!("packages.md")]
pub mod packages {}

#[doc = include_str!("changelog.md")]
pub mod changelog {}

/// The README's Rust, compiled and run with the other examples.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
