//! What the integration tests stand on: homes, processes with bounded waits, servers, outside peers.
//!
//! Nothing here sleeps to be lucky: every wait is for an event (a line, an exit, a byte, an end) and has a bound.

mod connect;
mod delay;
mod home;
mod names;
mod network;
mod origin;
mod peers;
mod proc;
mod process;
mod relay;
mod servers;
mod tools;

use std::time::Duration;

pub(crate) use connect::{Ending, connect, exchange, read_to_end, request};
pub(crate) use delay::{Carried, delay_line};
pub(crate) use home::{SESSION, TOKEN, TempHome, temporary_folder};
pub(crate) use names::NameServer;
pub(crate) use network::Network;
pub(crate) use origin::{HttpsOrigin, TestCa};
pub(crate) use peers::{OutsideClient, OutsideGateway};
pub(crate) use proc::{Counts, is_idle};
pub(crate) use process::{
    Finished, Running, binary, finish, finish_within, once_more, upstreamproxy,
};
pub(crate) use relay::{OurGateway, Serving};
pub(crate) use servers::{CannedServer, EchoServer, HalfCloseServer, SpeaksFirstServer, pattern};
pub(crate) use tools::{Python, need_tool, not_here, skip};

/// How long anything local may take before a test fails: far over what it needs on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the long forms are wanted: `UPSTREAMPROXY_TEST_LONG` is set.
pub(crate) fn long_forms() -> bool {
    std::env::var_os("UPSTREAMPROXY_TEST_LONG").is_some()
}

/// How often something is tried that must hold every time: `few`, or `enough` in the long form.
pub(crate) fn many(few: usize, enough: usize) -> usize {
    if long_forms() { enough } else { few }
}
