//! What stands by for the next CONNECT: how many, when, and what becomes of one that is dead when it is wanted.
//!
//! The ends run inside the test, so that their counters can be read; between them is a line that takes its time.

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

/// What the line takes for each direction: far over what makes a gateway a near one, on a loaded machine too.
const ONE_WAY: Duration = Duration::from_millis(20);

/// A line to the gateway, and the connections that go through it, the oldest first.
struct DelayLine {
    address: SocketAddr,
    open: Arc<Mutex<VecDeque<Forwarded>>>,
}

impl DelayLine {
    fn to(far: SocketAddr) -> Self {
        let open = Arc::<Mutex<VecDeque<Forwarded>>>::default();
        let seen = Arc::clone(&open);
        let carried = move |connection| seen.lock().unwrap().push_back(connection);
        let address = start_delay_forwarder(far, ONE_WAY, carried).unwrap();
        Self { address, open }
    }

    /// From now on everything that is open breaks at its next byte towards the gateway.
    fn break_what_is_open(&self) {
        for (_, cut) in self.open.lock().unwrap().iter() {
            cut.store(true, Ordering::SeqCst);
        }
    }
}

/// Both ends, and the line between them where they are far.
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
        let mut settings = GatewayConfig::default();
        settings.listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        settings.sessions = Sessions::parse("standby token-of-the-test").unwrap();
        settings.allow_private = true;
        settings.intercept = Vec::new();
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

    /// Waits until `count` stand by and the gateway has no connections but those and `tunnels`.
    #[track_caller]
    fn waits_for(&self, count: u64, tunnels: u64) {
        let until = Instant::now() + TIMEOUT;
        let now = || (self.relay.stats().standing_by, self.gateway.stats().live);
        while now() != (count, count + tunnels) {
            assert!(Instant::now() < until, "{:?}", now());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(self) {
        let report = self.relay.shutdown(Duration::from_secs(10));
        assert_eq!(report.cut, 0);
        self.gateway.shutdown(Duration::from_secs(10));
    }
}

#[track_caller]
fn echoes(mut tunnel: TcpStream) {
    let sent = pattern(200_000);
    assert_eq!(exchange(&mut tunnel, sent.clone()), (sent, Ending::Eof));
}

#[test]
fn the_second_connect_finds_one_standing_by_and_another_takes_its_place() {
    let ends = Ends::start(8, true);
    echoes(ends.tunnel());
    assert_eq!(ends.relay.stats().standby, 0);
    // One CONNECT came, so one stands by; after the next there are two.
    ends.waits_for(1, 0);
    echoes(ends.tunnel());
    ends.waits_for(2, 0);
    let stats = ends.relay.stats();
    assert_eq!((stats.tunnels, stats.standby, stats.broken), (2, 1, 0));
    ends.stop();
}

#[test]
fn a_burst_gets_what_stands_by_and_there_are_never_more_than_the_limit() {
    let ends = Ends::start(3, true);
    let first: Vec<_> = (0..6).map(|_| ends.tunnel()).collect();
    ends.waits_for(3, 6);
    let before = ends.relay.stats().standby;
    let burst: Vec<_> = (0..3).map(|_| ends.tunnel()).collect();
    assert_eq!(ends.relay.stats().standby, before + 3);
    ends.waits_for(3, 9);
    for tunnel in first.into_iter().chain(burst) {
        echoes(tunnel);
    }
    ends.stop();
}

#[test]
fn what_is_dead_when_it_is_wanted_is_dialled_anew_and_the_client_never_knows() {
    let ends = Ends::start(2, true);
    echoes(ends.tunnel());
    ends.waits_for(1, 0);
    // It looks alive until something is sent on it.
    ends.line.as_ref().unwrap().break_what_is_open();
    echoes(ends.tunnel());
    let stats = ends.relay.stats();
    assert_eq!((stats.tunnels, stats.refused, stats.broken), (2, 0, 0));
    ends.stop();
}

#[test]
fn what_the_gateway_hung_up_on_is_not_taken() {
    let ends = Ends::start(2, true);
    echoes(ends.tunnel());
    ends.waits_for(1, 0);
    let line = ends.line.as_ref().unwrap();
    for (near, _) in line.open.lock().unwrap().drain(..) {
        let _ = near.shutdown(Shutdown::Both);
    }
    let until = Instant::now() + TIMEOUT;
    while ends.gateway.stats().live > 0 {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(5));
    }
    echoes(ends.tunnel());
    let stats = ends.relay.stats();
    assert_eq!((stats.tunnels, stats.standby, stats.broken), (2, 0, 0));
    ends.stop();
}

#[test]
fn nobody_stands_by_for_a_near_gateway_or_where_it_is_switched_off() {
    for (standby, far) in [(8, false), (0, true)] {
        let ends = Ends::start(standby, far);
        for _ in 0..5 {
            echoes(ends.tunnel());
        }
        ends.waits_for(0, 0);
        assert_eq!(ends.relay.stats().standby, 0);
        ends.stop();
    }
}

#[test]
fn when_nobody_asks_any_more_they_leave() {
    let ends = Ends::start(4, true);
    for _ in 0..4 {
        echoes(ends.tunnel());
    }
    ends.waits_for(4, 0);
    ends.waits_for(0, 0);
    ends.stop();
}
