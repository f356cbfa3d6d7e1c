//! Shared code of the integration tests: home directories, processes with time limits, servers, and
//! independent peers.
//!
//! No test relies on a sleep: each waits for an event (a line, an exit, a byte, an end of stream),
//! with a time limit.

mod connect;
mod delay;
mod dns;
mod home;
mod network;
mod origin;
mod peers;
mod proc;
mod process;
mod relay;
mod servers;
mod tools;
mod websocket;

use std::time::Duration;

pub(crate) use connect::{Ending, connect, exchange, read_response, read_to_end, request};
pub(crate) use delay::{Forwarded, start_delay_forwarder};
pub(crate) use dns::{DnsQuery, DnsReply, DnsServer};
pub(crate) use home::{SESSION, TOKEN, TempHome, temporary_directory};
pub(crate) use network::Network;
pub(crate) use origin::{HttpsOrigin, TestCa};
pub(crate) use peers::{PeerClient, PeerGateway};
pub(crate) use proc::{ResourceCounts, assert_idle};
pub(crate) use process::{
    Finished, Running, binary, finish, finish_within, test_subprocess, upstreamproxy,
};
pub(crate) use relay::{GatewayProcess, RelayProcess};
pub(crate) use servers::{
    CannedServer, EchoServer, HalfCloseServer, ScriptedServer, SpeaksFirstServer, pattern,
};
pub(crate) use tools::{
    NpmPackages, Python, need_tool, node_of_the_registry, skip, skip_unsupported,
};
pub(crate) use websocket::{HandWrittenRelay, message, opening, upgrade_request};

/// The time limit for any local operation. It is far above what a loaded machine needs.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Whether the long variants of the tests run: `UPSTREAMPROXY_TEST_LONG` is set.
pub(crate) fn long_tests_enabled() -> bool {
    std::env::var_os("UPSTREAMPROXY_TEST_LONG").is_some()
}

/// How often a test repeats an operation that must succeed every time: `short`, or `long` in the
/// long variant.
pub(crate) fn repetitions(short: usize, long: usize) -> usize {
    if long_tests_enabled() { long } else { short }
}
