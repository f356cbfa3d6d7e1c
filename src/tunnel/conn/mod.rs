//! One end of a connection: a socket and the layers above it.
//!
//! `layers` moves bytes between the socket and the caller's buffers. `socket` has the options and
//! the state that belong to the socket alone.

mod layers;
mod socket;

pub(crate) use layers::Conn;
