//! What relay and gateway share: the wire protocol of `manual/protocol.md` in layers without I/O,
//! and the only code that moves the bytes of a tunnel.
//!
//! `chunk`, `frame`, `ws_codec`, `tls` and `opening` convert bytes without I/O. `conn` is a socket
//! with its layers, `keepalive` decides about pings, `drive` runs one connection until a condition
//! holds, `connect` opens a TCP connection, `parent` one through a parent proxy, `pump` moves the
//! stream between two connections, and `exchange` HTTP messages. `remainder` delivers the last data
//! of a connection. This module does not depend on the relay or the gateway.

pub(crate) mod buffer;
pub(crate) mod chunk;
pub(crate) mod conn;
pub(crate) mod connect;
pub(crate) mod drive;
pub(crate) mod error;
pub(crate) mod exchange;
pub(crate) mod frame;
pub(crate) mod keepalive;
pub(crate) mod opening;
pub(crate) mod parent;
pub(crate) mod pump;
pub(crate) mod remainder;
pub(crate) mod tls;
pub(crate) mod ws_codec;
