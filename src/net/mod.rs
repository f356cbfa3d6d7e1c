//! Sockets: name resolution, readiness, and what the kernel knows of a connection.

pub(crate) mod resolver;
pub(crate) mod sockets;
pub(crate) mod wait;
