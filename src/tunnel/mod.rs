//! What both ends agree on: the wire of `manual/protocol.md`, in layers without I/O, and the one place where bytes move.
//!
//! `chunk`, `frame`, `message`, `transport` and `opening` turn bytes into bytes; `link` is a socket with the layers upon it, `life`
//! its signs of life, `converse` a talk with one peer, `pump` the stream between two links. Neither relay nor gateway is known here.

pub(crate) mod buffer;
pub(crate) mod chunk;
pub(crate) mod conn;
pub(crate) mod connect;
pub(crate) mod drive;
pub(crate) mod error;
pub(crate) mod frame;
pub(crate) mod keepalive;
pub(crate) mod message;
pub(crate) mod opening;
pub(crate) mod pump;
pub(crate) mod transport;
