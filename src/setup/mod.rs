//! The steps of set-up, one blocking step a file: no step knows the next, `orchestrator` puts them in their order.
//!
//! `gate`, `token` and `ca` are stages (`manual/operations.md`), with `download` and `bundle` under `ca`; `child_env` is what children are
//! told, `hardening` and `capacity` what the process does to and asks of the system.

pub(crate) mod bundle;
pub(crate) mod ca;
pub(crate) mod capacity;
pub(crate) mod child_env;
pub(crate) mod download;
pub(crate) mod gate;
pub(crate) mod hardening;
pub(crate) mod token;
