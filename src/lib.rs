//! Gives every tool in a sandbox its way out through an authorised upstream, without an async runtime.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod authority;
mod base_url;
mod config;
mod deadline;
mod diagnosis;
mod embedded;
mod error;
mod gateway;
mod http_head;
mod listener;
pub mod manual;
mod metrics;
mod orchestrator;
mod pem;
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
pub use config::{
    Cancel, Config, DEFAULT_BASE_URL, DEFAULT_TOKEN_FILE, Environment, Limits, UnusableSetting,
    When,
};
pub use deadline::Stage;
pub use diagnosis::{Fact, Finding, Living, Step, Surroundings, Verdict, check, diagnose};
pub use embedded::{Embedded, EmbeddedOptions, start_gateway};
pub use error::Error;
pub use gateway::{Gateway, GatewayConfig, GatewayError, Sessions, SessionsError, TlsIdentity};
pub use listener::Report;
pub use metrics::Stats;
pub use orchestrator::{Disabled, Handle, Started, child_variables, start};
pub use resolver::{Override, OverrideError};
pub use secret::{Credentials, Secret};
pub use setup::child_env::documentation;
