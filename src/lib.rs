//! Gives every tool in a sandbox its way out through an authorised upstream, without an async runtime.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod deadline;
mod error;
mod secret;

pub use config::{
    Cancel, Config, DEFAULT_BASE_URL, DEFAULT_TOKEN_FILE, Environment, Limits, UnusableSetting,
    When,
};
pub use deadline::Stage;
pub use error::Error;
pub use secret::{Credentials, Secret};
