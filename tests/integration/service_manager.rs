//! `serve`, `gateway` and `run` as a service manager such as systemd starts them: notifications,
//! the watchdog, reload, and sockets that are passed on.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    EchoServer, Ending, Finished, GatewayProcess, RelayProcess, Running, SESSION, TIMEOUT, TOKEN,
    TempHome, binary, connect, exchange, finish, need_tool, read_response, upstreamproxy,
};

/// The service manager's end of `NOTIFY_SOCKET`.
struct Manager(UnixDatagram);

impl Manager {
    fn at_path(home: &TempHome) -> (Self, String) {
        let path = home.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        (Self::with(socket), path.to_str().unwrap().to_owned())
    }

    fn with_abstract_name() -> (Self, String) {
        let name = format!("upstreamproxy-test-{}", std::process::id());
        let address = UnixAddress::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        (Self::with(socket), format!("@{name}"))
    }

    fn with(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(socket)
    }

    /// The lines of the next notification.
    #[track_caller]
    fn next(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let read = self.0.recv(&mut buffer).expect("a notification");
        let text = String::from_utf8(buffer[..read].to_vec()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The next notification that contains `line`.
    #[track_caller]
    fn wait_for(&self, line: &str) -> Vec<String> {
        loop {
            let lines = self.next();
            if lines.iter().any(|one| one == line) {
                return lines;
            }
        }
    }
}

/// The binary as a service manager starts it: the descriptor that is the standard input of this
/// command becomes descriptor 3, and the variables name its process.
fn activated(home: &TempHome, arguments: &[&str]) -> Command {
    let mut command = home.command("sh");
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ WATCHDOG_PID=$$; exec \"$@\"";
    command
        .args(["-c", script, "sh", binary()])
        .args(arguments)
        .env("LISTEN_FDS", "1");
    command
}

fn gateway_arguments(home: &TempHome) -> Vec<String> {
    let sessions = home.write("sessions", format!("{SESSION} {TOKEN}\n"), 0o600);
    let sessions = sessions.to_str().unwrap().to_owned();
    [
        "gateway",
        "--allow-private",
        "--intercept",
        "none",
        "--sessions",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([sessions])
    .collect()
}

fn activated_gateway(home: &TempHome) -> Command {
    let arguments = gateway_arguments(home);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    activated(home, &arguments)
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn copy(socket: &TcpListener) -> OwnedFd {
    socket.try_clone().unwrap().into()
}

#[track_caller]
fn assert_served(port: u16, target: &EchoServer) {
    let (mut tunnel, answer) = connect(port, &target.authority());
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        exchange(&mut tunnel, b"echo".to_vec()),
        (b"echo".to_vec(), Ending::Eof)
    );
}

#[test]
fn serve_reports_ready_its_status_and_the_drain() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let (manager, name) = Manager::with_abstract_name();
    let mut command = upstreamproxy(&home);
    command.arg("serve").env("NOTIFY_SOCKET", name);
    let (relay, ready) = Running::ready(home.session(&mut command, &gateway.base_url()));
    let port = ready["port"].as_u64().unwrap();
    let status = format!("STATUS=Listening on 127.0.0.1:{port}, 0 connections open");
    assert_eq!(manager.next(), ["READY=1".to_owned(), status]);
    let (mut tunnel, answer) = connect(u16::try_from(port).unwrap(), &target.authority());
    assert_eq!(answer.status, 200);
    // The last bytes go up, so the tunnel waits for an answer.
    tunnel.write_all(b"ec").unwrap();
    relay.signal(Signal::TERM);
    // The default drain of 10 s, and 15 s.
    assert_eq!(
        manager.next(),
        [
            "STOPPING=1",
            "EXTEND_TIMEOUT_USEC=25000000",
            "STATUS=Draining, 1 connection open"
        ]
    );
    let (echoed, _) = exchange(&mut tunnel, b"ho".to_vec());
    assert_eq!(echoed, b"echo");
    relay.wait().succeeded();
}

#[test]
fn the_gateway_reports_a_reload_before_and_after_it() {
    let home = TempHome::new();
    let (manager, name) = Manager::at_path(&home);
    let mut command = upstreamproxy(&home);
    command
        .args(gateway_arguments(&home))
        .args(["--listen", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", name);
    let (gateway, _) = Running::ready(&mut command);
    manager.wait_for("READY=1");
    for round in 1..=2 {
        gateway.signal(Signal::HUP);
        let reloading = manager.next();
        assert_eq!(reloading[0], "RELOADING=1");
        let time = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap();
        assert!(time.parse::<u64>().unwrap() > 0);
        let ready = manager.next();
        assert_eq!(ready[0], "READY=1");
        assert!(ready[1].starts_with("STATUS=Listening on 127.0.0.1:"));
        gateway.wait_for_log("the sessions were read again", round);
    }
    gateway.signal(Signal::TERM);
    assert_eq!(manager.next()[0], "STOPPING=1");
    gateway.wait().succeeded();
}

#[test]
fn the_watchdog_gets_signs_of_life_while_connections_are_served() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let (socket, address) = listener();
    let (manager, name) = Manager::at_path(&home);
    let mut command = activated_gateway(&home);
    command
        .env("NOTIFY_SOCKET", &name)
        .env("WATCHDOG_USEC", "100000");
    let gateway = Running::spawn_with_input(&mut command, copy(&socket));
    gateway.json();
    manager.wait_for("READY=1");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    let mut command = upstreamproxy(&home);
    command.args(["serve", "--keep-token"]);
    let base_url = format!("http://{address}");
    let (relay, ready) = Running::ready(home.session(&mut command, &base_url));
    let port = u16::try_from(ready["port"].as_u64().unwrap()).unwrap();
    assert_served(port, &target);
    let (_tunnel, _) = connect(port, &target.authority());
    // The status changes with the connections, and a drain gives signs of life too.
    manager.wait_for(&format!("STATUS=Listening on {address}, 1 connection open"));
    manager.wait_for("WATCHDOG=1");
    gateway.signal(Signal::TERM);
    manager.wait_for("STOPPING=1");
    drop(relay);
    gateway.wait();
}

/// Connects to the proxy at `port` and requests a tunnel. The response is not read.
fn requested(port: u16, target: &EchoServer) -> TcpStream {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let authority = target.authority();
    let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

#[test]
fn a_gateway_uses_the_socket_that_it_is_given_and_leaves_it_open() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let (socket, address) = listener();
    let start = || {
        let mut command = activated_gateway(&home);
        let gateway = Running::spawn_with_input(&mut command, copy(&socket));
        assert_eq!(gateway.json()["listening"], address.to_string());
        gateway
    };
    let first = start();
    let options = ["--connect-timeout", "60s"];
    let relay = RelayProcess::start(&home, &format!("http://{address}"), &options);
    assert_served(relay.port(), &target);
    assert!(first.stop().succeeded().warnings().is_empty());

    // Without a gateway the relay's connection waits in the backlog.
    let mut waiting = requested(relay.port(), &target);
    let mut backlog = [PollFd::new(&socket, PollFlags::IN)];
    let timeout = Timespec::try_from(TIMEOUT).unwrap();
    assert_eq!(poll(&mut backlog, Some(&timeout)), Ok(1));
    let second = start();
    assert_eq!(read_response(&mut waiting).status, 200);
    relay.stop();
    second.stop().succeeded();
}

#[test]
fn a_relay_serves_connections_that_waited_for_it() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let (socket, address) = listener();
    let port = address.port();
    for _ in 0..2 {
        // The second time no relay runs any more: the socket of the service manager still listens.
        let mut early = requested(port, &target);
        let mut command = activated(&home, &["serve", "--keep-token"]);
        let command = home.session(&mut command, &gateway.base_url());
        let relay = Running::spawn_with_input(command, copy(&socket));
        let ready = relay.json();
        assert_eq!(ready["port"], port);
        assert_eq!(ready["env"]["HTTPS_PROXY"], format!("http://{address}"));
        assert_eq!(read_response(&mut early).status, 200);
        assert_served(port, &target);
        drop(early);
        relay.stop().succeeded();
    }
}

/// Runs `serve` with these sockets, which it cannot use, and returns its ready line.
#[track_caller]
fn refused(socket: OwnedFd, number: &str, options: &[&str]) -> Value {
    let home = TempHome::new();
    let mut command = activated(&home, &[&["serve"], options].concat());
    command
        .env("LISTEN_FDS", number)
        .env("LISTEN_FDNAMES", "first:second");
    let command = home.session(&mut command, "http://127.0.0.1:9");
    let relay = Running::spawn_with_input(command, socket);
    let line = relay.json();
    relay.wait().succeeded();
    assert!(home.token_file().exists(), "nothing was read or deleted");
    assert_eq!(
        (&line["enabled"], &line["stage"]),
        (&false.into(), &"gate".into())
    );
    line["reason"].clone()
}

#[test]
fn a_relay_that_is_given_unusable_sockets_is_disabled_and_says_why() {
    let anywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let datagram = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for (socket, number, expected) in [
        (
            OwnedFd::from(anywhere),
            "1",
            "other machines can reach the listen address 0.0.0.0:",
        ),
        (
            datagram.into(),
            "1",
            "LISTEN_FDS passes a socket that is not TCP (first:second): ",
        ),
        (
            listener().0.into(),
            "2",
            "LISTEN_FDS passes 2 sockets (first:second): ",
        ),
    ] {
        let reason = refused(socket, number, &["--listen", "127.0.0.1:0"]);
        assert!(reason.as_str().unwrap().contains(expected), "{reason}");
    }
}

#[test]
fn a_gateway_that_is_given_an_unusable_socket_ends_with_a_reason() {
    let home = TempHome::new();
    let finish = |socket: OwnedFd| -> Finished {
        let mut command = activated_gateway(&home);
        let finished = Running::spawn_with_input(&mut command, socket).wait();
        assert_eq!(finished.status.code(), Some(2), "{finished:#?}");
        finished
    };
    let datagram = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let finished = finish(datagram.into());
    assert!(
        finished
            .stderr
            .contains("LISTEN_FDS passes a socket that is not TCP")
    );
    // Beyond loopback it needs TLS, as with --listen.
    let anywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let finished = finish(anywhere.into());
    assert!(finished.stderr.contains("tls-cert"), "{finished:#?}");
}

#[test]
fn the_command_of_run_is_the_service_and_gets_the_units_variables_and_sockets() {
    let home = TempHome::new();
    let (socket, address) = listener();
    let script = "env; LISTEN_PID=$$ exec \"$0\" serve";
    let mut command = activated(&home, &["run", "--", "sh", "-c", script, binary()]);
    command
        .env("NOTIFY_SOCKET", home.join("notify"))
        .env("WATCHDOG_USEC", "60000000")
        .env("LISTEN_PIDFDID", "7")
        .env("UPSTREAMPROXY_EMBEDDED", "true");
    let running = Running::spawn_with_input(&mut command, copy(&socket));
    let mut seen = Vec::new();
    let ready = loop {
        let line = running.line();
        if line.starts_with('{') {
            break serde_json::from_str::<Value>(&line).unwrap();
        }
        seen.push(line);
    };
    let has = |name: &str| {
        seen.iter()
            .any(|line| line.starts_with(&format!("{name}=")))
    };
    for kept in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"] {
        assert!(has(kept), "{kept}: {seen:#?}");
    }
    for removed in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_PIDFDID"] {
        assert!(!has(removed), "{removed}: {seen:#?}");
    }
    // The relay inside is the service.
    assert_eq!(ready["port"], address.port());
    running.stop();
}

#[test]
fn systemd_accepts_the_units_that_are_printed() {
    if !need_tool("systemd-analyze") {
        return;
    }
    let home = TempHome::new();
    for kind in ["serve", "gateway"] {
        let unit = finish(upstreamproxy(&home).args(["unit", kind]))
            .succeeded()
            .text();
        assert!(unit.contains("\nWatchdogSec="), "{unit}");
        let file = home.write(&format!("upstreamproxy-{kind}.service"), &unit, 0o644);
        let verified = finish(home.command("systemd-analyze").arg("verify").arg(file));
        assert!(
            verified.status.success() && verified.stderr.is_empty(),
            "{verified:#?}"
        );
    }
    let options = [
        "unit",
        "gateway",
        "--",
        "--listen",
        "127.0.0.1:1",
        "--max-tunnels",
        "7",
    ];
    let unit = finish(upstreamproxy(&home).args(options))
        .succeeded()
        .text();
    assert!(
        unit.contains(" --listen 127.0.0.1:1 --max-tunnels 7\n"),
        "{unit}"
    );
    let options = ["unit", "gateway", "--", "--max-tunnels", "none"];
    let wrong = finish(upstreamproxy(&home).args(options));
    assert_eq!(wrong.status.code(), Some(2), "{wrong:#?}");
}
