//! Gives every tool in a sandbox its way out through an authorised upstream, without an async runtime.
//!
//! A program that starts a session in a sandbox calls [`start`] once. If the environment asks for it, `start` reads the session
//! token, fetches the upstream's CA certificates and merges them with the system's, opens a CONNECT proxy on loopback whose every
//! tunnel is a WebSocket to the upstream's gateway, and only then deletes the token file. Child processes get the variables of
//! [`Handle::env`], and `npm`, `pip`, `git`, `curl` and the rest find their way. Whatever breaks, proxying is off and the session
//! goes on: that is [`Started::Disabled`], with the stage and the reason.
//!
//! # Quick start
//! ```no_run
//! use std::process::Command;
//! use std::time::Duration;
//!
//! use upstreamproxy::{Config, Started, start};
//!
//! let relay = match start(&Config::from_env()) {
//!     Started::Enabled(handle) => Some(handle),
//!     Started::Disabled(_) => None, // the log has said why
//! };
//! let mut command = Command::new("npm");
//! command.arg("install");
//! if let Some(relay) = &relay {
//!     relay.apply_to(&mut command);
//! }
//! let status = command.status();
//! if let Some(relay) = relay {
//!     relay.shutdown(Duration::from_secs(10));
//! }
//! # let _ = status;
//! ```
//!
//! # With no upstream at hand
//! [`Embedded`] is a gateway inside the process; the other end by itself is [`start_gateway`].
//! ```
//! use std::process::Command;
//! use std::time::Duration;
//!
//! use upstreamproxy::{Config, Embedded, EmbeddedOptions, Started, start};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gateway = Embedded::start(EmbeddedOptions::default())?;
//! let mut config = Config::from_env();
//! gateway.configure(&mut config);
//! if let Started::Enabled(relay) = start(&config) {
//!     let mut command = Command::new("sh");
//!     command.args(["-c", "echo $HTTPS_PROXY"]);
//!     relay.apply_to(&mut command);
//!     let said = String::from_utf8(command.output()?.stdout)?;
//!     assert_eq!(said.trim(), format!("http://{}", relay.local_addr()));
//!     relay.shutdown(Duration::from_secs(10));
//! }
//! gateway.shutdown();
//! # Ok(())
//! # }
//! ```
//! The command line of the binary is the same library with arguments and signals; the README tells of it.
//!
//! # Errors
//! [`start`] does not fail, it is Disabled. What the upstream's end cannot use ends it: [`GatewayError`], and [`Error`] for the
//! embedded one. What goes wrong in a tunnel is told to its client, and to the log.
//!
//! # Log levels
//! `error`: a fault of this program. `warn`: what its user should mend, such as the one line that says why proxying is off.
//! `info`: a line a tunnel. `debug`: what helps whoever debugs this program. No secret at any level. Lines go to the `log` crate: with no logger
//! installed nothing is seen, and [`Disabled::reason`] has the same words.
//!
//! # What it does to the process
//! Before the token is read the process is made non-dumpable (Linux: no debugger, no core file), and stays so;
//! [`Config::harden`] declines that. Free heap memory is given back (`malloc_trim(3)`). There is no signal handler, and the
//! environment is only read.
//!
//! # Code map
//! A module uses only those on lower floors; [`manual::architecture`] says why, [`manual::protocol`] what goes over the wire,
//! [`manual::operations`] what the messages mean, [`manual::performance`] how it is measured, [`manual::c_api`] how other languages
//! embed it, [`manual::conformance`] what the readers of foreign bytes were held against, [`manual::endurance`] what is left after
//! long runs, [`manual::faults`] which test holds which fault.
//!
//! | floor | modules |
//! |---|---|
//! | 8 | `cli` (the binary's command line) |
//! | 7 | `bench` (measures a relay's path) |
//! | 6 | `doctor` (checks every stage, changes nothing), `capi` (the C API) |
//! | 5 | `orchestrator` (the lifecycle), `embedded`, `fuzzing` |
//! | 4 | `setup` (one step per file), `relay` (the client end), `gateway` (the server end) |
//! | 3 | `tunnel` (the wire, and the one place where bytes move), `listener` |
//! | 2 | `config`, `crypto`, `net` |
//! | 1 | `http`, `sys` |
//! | 0 | `control`, `error` |
//!
//! # Features
//! On by default: `gateway`, the server end, [`Embedded`] and [`start_gateway`], without which there is the relay alone; `cli`, the
//! binary, which a host that embeds the library leaves out; `bench`, which brings both. Off: `capi`, for hosts that are not Rust
//! (brings `gateway`); `fuzzing`, for this project's own tests and benches.
//! [`manual::static_binaries`] has their sizes.

#![cfg_attr(test, allow(clippy::unwrap_used))]
// What both ends agree on is written once; without one end, what only that one uses of it lies idle.
#![cfg_attr(not(feature = "gateway"), allow(dead_code))]

#[cfg(feature = "bench")]
mod bench;
#[cfg(any(all(test, feature = "gateway"), feature = "capi"))]
mod capi;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod config;
mod control;
mod crypto;
mod doctor;
#[cfg(feature = "gateway")]
mod embedded;
mod error;
#[cfg(any(all(test, feature = "gateway"), feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "gateway")]
mod gateway;
mod http;
mod listener;
pub mod manual;
mod net;
mod orchestrator;
mod relay;
mod setup;
mod sys;
mod tunnel;

#[cfg(feature = "bench")]
pub use bench::{
    BenchOrigin, BenchPlan, BenchProgress, Conclusion, Figure, Found, Limit, Row, benchmark,
};
pub use config::{
    Cancel, Config, DEFAULT_BASE_URL, DEFAULT_TOKEN_FILE, Environment, Limits, UnusableSetting,
    When,
};
pub use control::metrics::Stats;
pub use control::stop::Abort;
pub use crypto::secret::{Credentials, Secret};
pub use doctor::{Check, DoctorOptions, Fact, RunningServe, Step, Verdict, check, diagnose};
#[cfg(feature = "gateway")]
pub use embedded::{Embedded, EmbeddedOptions, TargetOptions, start_gateway};
pub use error::{Error, Stage};
#[cfg(feature = "gateway")]
pub use gateway::{Gateway, GatewayConfig, GatewayError, Sessions, SessionsError, TlsIdentity};
pub use http::authority::{Authority, AuthorityError, Host, Pattern};
pub use listener::ShutdownReport;
pub use net::resolver::{Override, OverrideError};
pub use orchestrator::{Disabled, Handle, Started, child_variables, start};
pub use setup::child_env::documentation;
pub use setup::hardening::protect;
pub use sys::log_filter::{may_be_shown, one_line};
