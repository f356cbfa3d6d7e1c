//! The integration tests: the real binary, real sockets, real files, real tools, one module for each thing promised.
//!
//! Everything here runs without the network except `clients`, whose registry tests say so.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::doc_markdown
)]

mod bench;
mod capi;
mod clients;
mod doctor;
mod embedding;
mod entry;
mod examples;
mod gateway_service;
mod hostile_clients;
mod hostile_upstream;
mod house;
mod intercept;
mod lifecycle;
mod performance_gate;
mod readme;
mod resources;
mod secrets;
mod serve;
mod setup_faults;
mod silence;
mod standby;
mod static_binaries;
mod stopping;
mod stream;
mod support;
mod wire;
