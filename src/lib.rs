//! Connects the tools of a sandbox to the outside through one authorised upstream, without an async
//! runtime.
//!
//! A program that starts sessions in a sandbox calls [`start`] once. If the environment asks for
//! it, `start` reads the session token, downloads the upstream's CA certificates and merges them
//! with the system's, opens a CONNECT proxy on loopback that carries each tunnel in a WebSocket of
//! its own to the upstream's gateway, and then deletes the token file. Child processes get the
//! variables of [`Handle::env`]; `npm`, `pip`, `git`, `curl` and other tools use them.
//!
//! It fails open: if a stage fails, proxying is off, [`Disabled`] says at which stage and why, and
//! the session goes on.
//!
//! # Quick start
//! ```no_run
//! use std::process::Command;
//! use std::time::Duration;
//!
//! use upstreamproxy::{Config, Started, start};
//!
//! let mut command = Command::new("npm");
//! command.arg("install");
//! let relay = match start(&Config::from_env()) {
//!     Started::Enabled(relay) => {
//!         relay.apply_to(&mut command);
//!         Some(relay)
//!     }
//!     Started::Disabled(disabled) => {
//!         eprintln!("no proxy: {disabled}");
//!         None
//!     }
//! };
//! let status = command.status()?;
//! if let Some(relay) = relay {
//!     relay.shutdown(Duration::from_secs(10));
//! }
//! # let _ = status;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Without an upstream, [`start_embedded`] runs the same in front of a gateway inside this process.
//! [`start_gateway`] starts the server end for other machines.
//!
//! # Blocking, threads and async hosts
//! [`start`] and [`start_embedded`] block for the time of set-up (seconds at most). Shutting down
//! or dropping a [`Handle`] or a [`Gateway`](gateway::Gateway) blocks for the time of a drain.
//! [`start_gateway`] and [`Sessions::load`](gateway::Sessions::load) block for file access.
//! Everything else returns at once. All work runs on threads of this library, whose names begin
//! with `uproxy-`, `tun-` or `gw-`. There is no signal handler and no mutable global state (the C
//! API has one log callback per process).
//!
//! A host with an async runtime calls the blocking functions in a blocking task, for example with
//! Tokio:
//!
//! ```ignore
//! let started = tokio::task::spawn_blocking(|| start(&Config::from_env())).await?;
//! let relay = started.ok();
//! // ... run child processes with relay.env() ...
//! if let Some(relay) = relay {
//!     tokio::task::spawn_blocking(move || relay.shutdown(Duration::from_secs(10))).await?;
//! }
//! ```
//!
//! A [`Handle`] must not be dropped on a runtime thread for the same reason. [`Config::cancel`]
//! ends set-up early, and [`Handle::abort`] ends a shutdown early, from any thread.
//!
//! # Errors
//! [`start`] does not fail: it returns [`Started::Disabled`] with an [`Error`] that names the
//! stage, an [`ErrorKind`] to match on, what failed and what to do. [`start_gateway`] does not fail
//! open: it returns an [`Error`] of [`Stage::Gateway`]. Errors of one tunnel go to its client and
//! to the log.
//!
//! # Log levels
//! The library writes to the [`log`](https://docs.rs/log) crate; without a logger nothing is
//! printed, and [`Disabled::reason`] has the same text as the log. `error`: a fault of this
//! program. `warn`: what a user should fix, for example why proxying is off. `info`: one line per
//! tunnel. `debug`: details for debugging this program. No record of this crate contains a secret.
//! Records of other crates may: tungstenite logs the upgrade request with its token at `trace`, so
//! a logger should drop records of other crates below `warn`.
//!
//! A logger may panic, take long, or call this crate. A record whose logging panics is lost. A
//! logger that takes long delays no tunnel: lines about connections are dropped and counted. A
//! shutdown that is called from the logger requests the stop and returns at once. A shutdown waits
//! for a thread that is stuck in the logger for 10 s after its deadline at most, and leaves it
//! behind.
//!
//! # Effects on the process
//! Before the token is read, the process becomes non-dumpable (Linux: no debugger, no core file),
//! and stays so; set [`Config::harden`] to false to prevent that. Free heap memory is returned to
//! the kernel (`malloc_trim(3)`). The environment is read, never changed. In a fork of the process,
//! a handle does nothing: the threads are in the parent.
//!
//! # Code map
//! A module uses modules of lower floors; a single file may also use the files named before it on
//! its floor. [`manual::architecture`] explains why.
//!
//! | floor | modules |
//! |---|---|
//! | 9 | `cli` (the binary's command line) |
//! | 8 | `doctor` (checks every stage, changes nothing), `bench` (measures a relay's path), `capi` (the C API) |
//! | 7 | `probe` (what `doctor` and `bench` share) |
//! | 6 | `orchestrator` (the lifecycle), `embedded`, `fuzzing` |
//! | 5 | `setup` (one step per file), `relay` (the client end), `gateway` (the server end) |
//! | 4 | `tunnel` (the wire, and the only place where bytes move), `listener` |
//! | 3 | `config` (every setting of the library) |
//! | 2 | `crypto`, `net` |
//! | 1 | `http`, `sys` |
//! | 0 | `control`, `error` |
//!
//! # Features
//! On by default: `gateway` (the server end, [`start_embedded`] and [`start_gateway`]), `cli` (the
//! binary) and `bench` (its `bench` subcommand; needs both). A host needs none of them:
//! `default-features = false` is the relay alone. Off by default: `capi`, for hosts that are not
//! Rust ([`manual::c_api`]; needs `gateway`); `fuzzing`, for this project's own tests.
//! [`manual::static_binaries`] has the sizes.

// docs.rs shows which feature each item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "bench")]
mod bench;
#[cfg(any(all(test, feature = "gateway"), feature = "capi"))]
mod capi;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod config;
mod control;
mod crypto;
#[cfg(feature = "cli")]
mod doctor;
#[cfg(feature = "gateway")]
mod embedded;
mod error;
#[cfg(any(all(test, feature = "gateway"), feature = "fuzzing"))]
#[path = "../tests/fuzz/bodies/mod.rs"]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "gateway")]
pub mod gateway;
mod http;
mod listener;
pub mod manual;
mod net;
mod orchestrator;
#[cfg(feature = "cli")]
mod probe;
mod relay;
mod setup;
mod sys;
mod tunnel;

pub use config::Config;
pub use control::metrics::{Stats, StatsReader};
pub use control::stop::Abort;
#[cfg(feature = "gateway")]
pub use embedded::start_gateway;
pub use error::{Error, ErrorKind, Stage};
pub use listener::ShutdownReport;
#[cfg(feature = "gateway")]
pub use orchestrator::start_embedded;
pub use orchestrator::{Disabled, Handle, Started, start};
