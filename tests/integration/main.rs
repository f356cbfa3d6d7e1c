//! The integration tests. They use the real binary, real sockets, real files and real tools. Each
//! module tests one promise of the program.
//!
//! Only the tests of registries in `clients` and `client_matrix`, and the installation of Python
//! and Node packages, need the network.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::doc_markdown
)]

mod architecture;
mod bench;
mod capi;
mod client_matrix;
mod clients;
mod command_line;
mod doctor;
mod embedding;
mod endings;
mod entry;
mod examples;
mod forward;
mod gateway_service;
mod host_loggers;
mod hostile_clients;
mod hostile_upstream;
mod intercept;
mod language;
mod lifecycle;
mod log_options;
mod neighbours;
mod networks;
mod node_hook;
mod parent_proxy;
mod performance_gate;
mod readme;
mod resources;
mod running_serve;
mod secrets;
mod serve;
mod service_manager;
mod setup_faults;
mod silence;
mod standby;
mod static_binaries;
mod stopping;
mod stream;
mod support;
mod target_failures;
mod token_rotation;
mod token_sources;
mod tool_files;
mod wire;
