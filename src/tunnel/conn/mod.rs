//! One end of a connection: a socket and the layers above it.
//!
//! `layers` moves bytes between the socket and the caller's buffers. `socket` contains what
//! concerns the socket alone: its options and its state in the kernel.

mod layers;
mod socket;

pub(crate) use layers::Conn;
