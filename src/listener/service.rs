//! What a listener does with its connections.

use std::net::{SocketAddr, TcpStream};

use super::evictable::Eviction;
use crate::control::log::LogSource;
use crate::control::outcome::Outcome;

/// The purpose of a listener: the relay's or the gateway's connections.
pub(crate) trait Service: Send + Sync + 'static {
    /// The names of the supervisor and the acceptor thread, and the start of each worker's name. A
    /// name has at most 15 bytes.
    const THREADS: [&'static str; 3];

    /// The source of the listener's log lines.
    fn log_source(&self) -> &LogSource;

    /// Serves one connection to its end. If it needs several tunnels, `report` receives the outcome
    /// of each except the last.
    fn serve(
        &self,
        connection: TcpStream,
        peer: SocketAddr,
        report: &mut dyn FnMut(Outcome),
    ) -> Outcome;

    /// The response to a connection for which no slot is free.
    fn busy_response(&self) -> Vec<u8>;

    /// Called when no slot is free: evicts a connection that has a slot and no tunnel.
    fn make_room(&self) -> Eviction;
}
