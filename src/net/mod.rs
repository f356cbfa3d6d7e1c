//! Sockets: name resolution, readiness, and the kernel's information about a connection.

pub(crate) mod address_override;
mod lookup_pool;
pub(crate) mod resolver;
pub(crate) mod sockets;
pub(crate) mod wait;
