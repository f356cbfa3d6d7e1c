//! What `doctor` and `bench` share: a client of a relay's port, a relay in this process, built-in
//! origins.

pub(crate) mod client;
pub(crate) mod options;
pub(crate) mod origin_thread;
pub(crate) mod prepared;
pub(crate) mod problem;
pub(crate) mod relay;
