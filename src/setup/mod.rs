//! The steps of set-up, one blocking step per file. No step depends on the next one: `orchestrator`
//! runs them in order.
//!
//! `gate`, `token`, `ca` and `burn` are stages (`manual/operations.md`). `token` uses `token_file`
//! and `token_stream`; `ca` uses `roots`, `download`, `bundle`, `tool_settings` and `tool_files`,
//! which uses `trust_store`. `child_env` has the variables for children and uses `no_proxy`,
//! `java_options` and `node_options`. `hardening` changes the process, `capacity` reads the limits
//! of the system.

pub(crate) mod bundle;
mod burn;
pub(crate) mod ca;
pub(crate) mod capacity;
mod cgroup;
pub(crate) mod child_env;
pub(crate) mod download;
pub(crate) mod gate;
pub(crate) mod hardening;
mod java_options;
mod no_proxy;
mod node_options;
pub(crate) mod roots;
pub(crate) mod token;
pub(crate) mod token_file;
mod token_stream;
pub(crate) mod tool_files;
pub(crate) mod tool_settings;
mod trust_store;
