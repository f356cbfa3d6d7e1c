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
//!     assert_eq!(said.trim(), format!("http://{}", relay.address()));
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
//! | 6 | `benchmark` (what the way gives) |
//! | 5 | `diagnosis` (the story looked at, with nothing changed), `capi` (the same library for C) |
//! | 4 | `orchestrator` (the one story), `embedded`, `fuzzing` (what must hold for any bytes; no part of the program) |
//! | 3 | `setup` (a step a file), `relay` (the client end), `gateway` (the server end) |
//! | 2 | `tunnel` (the wire, and the one place where bytes move), `listener` |
//! | 1 | `authority`, `base_url`, `http_head`, `pem`, `tls`, `resolver`, `shutdown`, `sockets`, `memory`, `wait`, `metrics` |
//! | 0 | `config`, `error`, `secret`, `deadline`, `record` |
//!
//! # Features
//! On by default: `gateway`, the server end, [`Embedded`] and [`start_gateway`], without which there is the relay alone; `cli`, the
//! binary, which a host that embeds the library leaves out; `bench`, which brings both. Off: `capi`, for hosts that are not Rust
//! (brings `gateway`); `fuzzing`, for this project's own tests and benches.
//! [`manual::static_binaries`] has their sizes.

#![cfg_attr(test, allow(clippy::unwrap_used))]
// What both ends agree on is written once; without one end, what only that one uses of it lies idle.
#![cfg_attr(not(feature = "gateway"), allow(dead_code))]

mod authority;
mod base_url;
#[cfg(feature = "bench")]
mod benchmark;
#[cfg(any(all(test, feature = "gateway"), feature = "capi"))]
mod capi;
mod config;
mod deadline;
mod diagnosis;
#[cfg(feature = "gateway")]
mod embedded;
mod error;
#[cfg(any(all(test, feature = "gateway"), feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "gateway")]
mod gateway;
mod http_head;
mod listener;
pub mod manual;
mod memory;
mod metrics;
mod orchestrator;
mod pem;
mod record;
mod relay;
mod resolver;
mod secret;
mod setup;
mod shutdown;
mod sockets;
mod tls;
mod tunnel;
mod wait;

pub use authority::{Authority, AuthorityError, Host, Pattern};
#[cfg(feature = "bench")]
pub use benchmark::{
    BenchOrigin, BenchPlan, Conclusion, Figure, Found, Limit, Row, Told, benchmark,
};
pub use config::{
    Cancel, Config, DEFAULT_BASE_URL, DEFAULT_TOKEN_FILE, Environment, Limits, UnusableSetting,
    When,
};
pub use deadline::Stage;
pub use diagnosis::{Fact, Finding, Living, Step, Surroundings, Verdict, check, diagnose};
#[cfg(feature = "gateway")]
pub use embedded::{Embedded, EmbeddedOptions, Reach, start_gateway};
pub use error::Error;
#[cfg(feature = "gateway")]
pub use gateway::{Gateway, GatewayConfig, GatewayError, Sessions, SessionsError, TlsIdentity};
pub use listener::Report;
pub use metrics::Stats;
pub use orchestrator::{Disabled, Handle, Started, child_variables, start};
pub use record::{may_be_shown, one_line};
pub use resolver::{Override, OverrideError};
pub use secret::{Credentials, Secret};
pub use setup::child_env::documentation;
pub use setup::hardening::protect;
pub use shutdown::Abort;
