//! What `doctor` and `bench` share: a client of a relay's port, a relay in this process, built-in
//! origins.

pub(crate) mod client;
pub(crate) mod options;
pub(crate) mod origin;
pub(crate) mod prepared;
pub(crate) mod problem;
