//! Settings with their units and defaults, and how they are read from an environment.
//!
//! Nothing here reads a file or opens a socket. A value in the environment that cannot be used is
//! kept; the gate decides whether it matters (`manual/operations.md`, the five stages).

mod builder;
mod environment;
mod limits;
mod parent;
mod parent_proxy;
mod session_id;
mod setting;
mod settings;
mod value;
mod when;

pub use crate::error::ValueError;
pub use crate::http::base_url::BaseUrl;
pub use builder::Config;
pub use environment::Environment;
pub use limits::Limits;
pub use parent_proxy::ParentProxy;
pub use session_id::SessionId;
pub use setting::SettingError;
pub use when::{Cancel, When};

pub(crate) use builder::{DEFAULT_BASE_URL, DEFAULT_TOKEN_FILE};
#[cfg(feature = "cli")]
pub(crate) use builder::{EMBEDDED_SETTINGS, UPSTREAM_SETTINGS};
pub(crate) use parent::MARKER;
pub(crate) use setting::Source;
#[cfg(feature = "cli")]
pub(crate) use setting::{Group, Setting, Spec, Subcommand};
#[cfg(feature = "cli")]
pub(crate) use settings::SETTINGS;
#[cfg(feature = "cli")]
pub(crate) mod parse {
    //! The parsers of values, for the tables of other modules.
    pub(crate) use super::value::*;
}
