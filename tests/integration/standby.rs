//! The standby connections for the next CONNECTs: how many there are, when they are opened, and
//! what happens if one is dead when it is needed.
//!
//! Relay and gateway run inside the test, so that it can read their counters. A forwarder between
//! them adds latency.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use upstreamproxy::config::When;
use upstreamproxy::gateway::{Gateway, GatewayConfig, Sessions};
use upstreamproxy::{Config, Handle, start, start_gateway};

use crate::support::{
    EchoServer, Ending, Forwarded, TIMEOUT, TempHome, TestCa, connect, exchange, pattern,
    start_delay_forwarder,
};

/// The latency per direction: far above the limit below which a gateway counts as near, on a loaded
/// machine too.
const ONE_WAY: Duration = Duration::from_millis(20);

/// A forwarder to the gateway that adds latency, and its connections, the oldest first.
struct DelayLine {
    address: SocketAddr,
    open: Arc<Mutex<VecDeque<Forwarded>>>,
}

impl DelayLine {
    fn to(far: SocketAddr) -> Self {
        let open = Arc::<Mutex<VecDeque<Forwarded>>>::default();
        let added = Arc::clone(&open);
        let on_connection = move |connection| added.lock().unwrap().push_back(connection);
        let address = start_delay_forwarder(far, ONE_WAY, on_connection).unwrap();
        Self { address, open }
    }

    /// Makes each open connection break at its next byte towards the gateway.
    fn break_open_connections(&self) {
        for (_, cut) in self.open.lock().unwrap().iter() {
            cut.store(true, Ordering::SeqCst);
        }
    }
}

/// Relay, gateway, and the forwarder between them if the gateway is far.
struct Ends {
    relay: Handle,
    gateway: Gateway,
    line: Option<DelayLine>,
    target: EchoServer,
    _home: TempHome,
}

impl Ends {
    fn start(standby: usize, far: bool) -> Self {
        let home = TempHome::new();
        let sessions = Sessions::parse("standby token-of-the-test").unwrap();
        let settings = GatewayConfig::new(sessions)
            .listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))
            .allow_private(true)
            .intercept([]);
        let gateway = start_gateway(settings).unwrap();
        let line = far.then(|| DelayLine::to(gateway.local_addr()));
        let base = line
            .as_ref()
            .map_or(gateway.local_addr(), |line| line.address);
        home.write_token("token-of-the-test");
        let config = Config::default()
            .when(When::Always)
            .base_url(format!("http://{base}").parse().unwrap())
            .session_id("standby".parse().unwrap())
            .token_file(home.token_file())
            .system_ca(home.write("roots.pem", TestCa::new("a root").pem, 0o644))
            .ca_bundle(home.join("bundle.pem"))
            .harden(false)
            .limits(|limits| limits.standby = standby);
        let relay = start(&config).into_result().unwrap();
        Self {
            relay,
            gateway,
            line,
            target: EchoServer::start(),
            _home: home,
        }
    }

    #[track_caller]
    fn tunnel(&self) -> TcpStream {
        let (tunnel, answer) = connect(self.relay.port(), &self.target.authority());
        assert_eq!(answer.status, 200, "{answer:?}");
        tunnel
    }

    /// Waits until `count` connections are on standby and the gateway has exactly those and
    /// `tunnels`.
    #[track_caller]
    fn wait_for_standby(&self, count: u64, tunnels: u64) {
        let until = Instant::now() + TIMEOUT;
        let now = || (self.relay.stats().standby_open, self.gateway.stats().live);
        while now() != (count, count + tunnels) {
            assert!(Instant::now() < until, "{:?}", now());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(self) {
        let report = self.relay.shutdown(Duration::from_secs(10));
        assert_eq!(report.cut, 0);
        assert_eq!(report.stats.standby_open, 0, "none outlives the relay");
        self.gateway.shutdown(Duration::from_secs(10));
    }
}

#[track_caller]
fn assert_echo(mut tunnel: TcpStream) {
    let sent = pattern(200_000);
    assert_eq!(exchange(&mut tunnel, sent.clone()), (sent, Ending::Eof));
}

#[test]
fn the_second_connect_uses_a_standby_connection_and_it_is_replaced() {
    let ends = Ends::start(8, true);
    assert_echo(ends.tunnel());
    assert_eq!(ends.relay.stats().standby_used, 0);
    // After one CONNECT there is one standby connection; after the next one there are two.
    ends.wait_for_standby(1, 0);
    assert_echo(ends.tunnel());
    ends.wait_for_standby(2, 0);
    let stats = ends.relay.stats();
    assert_eq!((stats.tunnels, stats.standby_used, stats.broken), (2, 1, 0));
    ends.stop();
}

#[test]
fn a_burst_uses_the_standby_connections_and_never_exceeds_the_limit() {
    let ends = Ends::start(3, true);
    let first: Vec<_> = (0..6).map(|_| ends.tunnel()).collect();
    ends.wait_for_standby(3, 6);
    let before = ends.relay.stats().standby_used;
    let burst: Vec<_> = (0..3).map(|_| ends.tunnel()).collect();
    assert_eq!(ends.relay.stats().standby_used, before + 3);
    ends.wait_for_standby(3, 9);
    for tunnel in first.into_iter().chain(burst) {
        assert_echo(tunnel);
    }
    ends.stop();
}

#[test]
fn a_dead_standby_connection_is_replaced_without_an_error_for_the_client() {
    let ends = Ends::start(2, true);
    assert_echo(ends.tunnel());
    ends.wait_for_standby(1, 0);
    // The connection looks open until something is sent on it.
    ends.line.as_ref().unwrap().break_open_connections();
    assert_echo(ends.tunnel());
    let stats = ends.relay.stats();
    assert_eq!((stats.tunnels, stats.refused, stats.broken), (2, 0, 0));
    ends.stop();
}

#[test]
fn a_standby_connection_that_the_gateway_closed_is_not_used() {
    let ends = Ends::start(2, true);
    assert_echo(ends.tunnel());
    ends.wait_for_standby(1, 0);
    let line = ends.line.as_ref().unwrap();
    for (near, _) in line.open.lock().unwrap().drain(..) {
        let _ = near.shutdown(Shutdown::Both);
    }
    let until = Instant::now() + TIMEOUT;
    while ends.gateway.stats().live > 0 {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(5));
    }
    assert_echo(ends.tunnel());
    let stats = ends.relay.stats();
    assert_eq!((stats.tunnels, stats.standby_used, stats.broken), (2, 0, 0));
    ends.stop();
}

#[test]
fn there_is_no_standby_for_a_near_gateway_or_if_disabled() {
    for (standby, far) in [(8, false), (0, true)] {
        let ends = Ends::start(standby, far);
        for _ in 0..5 {
            assert_echo(ends.tunnel());
        }
        ends.wait_for_standby(0, 0);
        assert_eq!(ends.relay.stats().standby_used, 0);
        ends.stop();
    }
}

#[test]
fn unused_standby_connections_are_closed() {
    let ends = Ends::start(4, true);
    for _ in 0..4 {
        assert_echo(ends.tunnel());
    }
    ends.wait_for_standby(4, 0);
    ends.wait_for_standby(0, 0);
    ends.stop();
}

#[test]
fn after_a_change_of_the_token_no_standby_connection_of_the_old_one_is_used() {
    let ends = Ends::start(4, true);
    let open = ends.tunnel();
    ends.wait_for_standby(1, 1);
    let sessions = Sessions::parse("standby another-token-of-the-test").unwrap();
    ends.gateway.replace_sessions(sessions);
    let invalid = ends.relay.replace_token("two words".to_owned());
    assert!(invalid.unwrap_err().to_string().contains("visible ASCII"));
    let token = "another-token-of-the-test".to_owned();
    ends.relay.replace_token(token).unwrap();
    assert_echo(ends.tunnel());
    let stats = ends.relay.stats();
    assert_eq!((stats.standby_used, stats.refused), (0, 0));
    // Those that replace it have the new token, and are used.
    ends.wait_for_standby(2, 1);
    assert_echo(ends.tunnel());
    assert_eq!(ends.relay.stats().standby_used, 1);
    assert_echo(open);
    ends.stop();
}
