//! Sockets: name resolution, readiness, and the kernel's information about a connection.

// Without the gateway, no public item names an override.
#[cfg_attr(not(feature = "gateway"), allow(unreachable_pub))]
pub(crate) mod address_override;
mod hosts_file;
pub(crate) mod lookup_error;
mod lookup_pool;
mod name;
mod proc_table;
pub(crate) mod resolver;
pub(crate) mod socket_owner;
pub(crate) mod sockets;
pub(crate) mod wait;
