//! Networks as they are: name servers that drop queries, addresses that do not answer, search
//! lists, and a machine whose ports are used up.
//!
//! Each test runs again in its own network and mount namespaces, with a DNS server of the test.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::hostile_upstream::full_listener;
use super::support::{
    DnsQuery, DnsReply, DnsServer, EchoServer, GatewayProcess, RelayProcess, Running, SESSION,
    TOKEN, TempHome, TestCa, connect, finish, need_tool, read_to_end, skip, upstreamproxy,
};

/// Set when a test runs again, inside its namespaces.
const INSIDE: &str = "UPSTREAMPROXY_TEST_INSIDE_NETWORKS";
/// Where the DNS server listens.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
/// The name server alone. If it does not answer, a lookup takes 20 seconds.
const RESOLV_CONF: &str = "nameserver 127.0.0.53\noptions timeout:10 attempts:2\n";
/// A time limit that no operation of these tests reaches if it succeeds.
const CONNECT_TIMEOUT: &str = "15s";

/// Runs `check` in new namespaces: this test binary runs the test `name` again inside them, with
/// `resolv_conf` and with an `/etc/hosts` that has `localhost` and `listed.test`.
#[track_caller]
fn in_namespaces(name: &str, resolv_conf: &str, check: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        check();
        println!("the check has passed");
        return;
    }
    if !need_tool("unshare") || !need_tool("ip") {
        return;
    }
    let home = TempHome::new();
    let mut allowed = home.command("unshare");
    if !finish(allowed.args(["-m", "-n", "true"])).status.success() {
        return skip("this system allows no namespaces");
    }
    home.write("resolv.conf", resolv_conf, 0o644);
    home.write(
        "hosts",
        "127.0.0.1 localhost\n127.0.0.1 listed.test\n",
        0o644,
    );
    let script = "mount --bind $HOME/resolv.conf /etc/resolv.conf && \
        mount --bind $HOME/hosts /etc/hosts && ip link set lo up && exec \"$@\"";
    let mut again = home.command("unshare");
    again
        .args(["-m", "-n", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("networks::{name}"), "--nocapture"])
        .env(INSIDE, "1");
    let finished = finish(&mut again).succeeded();
    assert!(
        finished.text().contains("the check has passed"),
        "{finished:#?}"
    );
}

fn loopback() -> DnsReply {
    DnsReply::Addresses(vec![Ipv4Addr::LOCALHOST.into()])
}

/// A gateway with a relay in front of it.
struct Ends {
    _gateway: GatewayProcess,
    relay: RelayProcess,
    _home: TempHome,
}

fn ends(options: &[&str]) -> Ends {
    let home = TempHome::new();
    home.write_token(TOKEN);
    let options = [&["--connect-timeout", CONNECT_TIMEOUT], options].concat();
    let gateway = GatewayProcess::start(&home, &options);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    Ends {
        _gateway: gateway,
        relay,
        _home: home,
    }
}

#[track_caller]
fn assert_opens(port: u16, authority: &str) {
    let (_, answer) = connect(port, authority);
    assert_eq!(answer.status, 200, "{authority}: {answer:?}");
}

#[test]
fn a_name_server_that_drops_aaaa_queries_fails_no_tunnel() {
    in_namespaces(
        "a_name_server_that_drops_aaaa_queries_fails_no_tunnel",
        RESOLV_CONF,
        || {
            let names = DnsServer::answering(NAME_SERVER, |query| {
                if query.is_ipv6 {
                    DnsReply::Silence
                } else {
                    loopback()
                }
            });
            let (ends, target) = (ends(&[]), EchoServer::start());
            for _ in 0..10 {
                assert_opens(ends.relay.port(), &format!("a.test:{}", target.port()));
            }
            // The address is used for the next tunnels.
            let for_address = names.queries().into_iter().filter(|query| !query.is_ipv6);
            assert_eq!(for_address.count(), 1);
        },
    );
}

#[test]
fn thirty_clients_at_once_ask_a_rate_limited_name_server_once() {
    in_namespaces(
        "thirty_clients_at_once_ask_a_rate_limited_name_server_once",
        RESOLV_CONF,
        || {
            // It answers two queries and drops the rest.
            let mut answered = 0;
            let names = DnsServer::answering(NAME_SERVER, move |_| {
                answered += 1;
                if answered > 2 {
                    return DnsReply::Silence;
                }
                loopback()
            });
            let (ends, target) = (ends(&[]), EchoServer::start());
            let authority = format!("a.test:{}", target.port());
            thread::scope(|scope| {
                for _ in 0..30 {
                    scope.spawn(|| assert_opens(ends.relay.port(), &authority));
                }
            });
            assert_eq!(names.queries().len(), 2);
        },
    );
}

#[test]
fn dead_addresses_of_the_gateway_do_not_disable_a_relay_and_are_avoided_later() {
    in_namespaces(
        "dead_addresses_of_the_gateway_do_not_disable_a_relay_and_are_avoided_later",
        RESOLV_CONF,
        || {
            const DEAD: [&str; 3] = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];
            const LIVE: &str = "127.0.0.5";
            const DIALS: u32 = 10;
            let home = TempHome::new();
            home.write_token(TOKEN);
            let ca = TestCa::new("root of the gateway");
            let (certificate, key) = ca.issue("gateway.test");
            let file = |name: &str, content: &str| -> PathBuf { home.write(name, content, 0o600) };
            let mut command = upstreamproxy(&home);
            command
                .args(["gateway", "--allow-private", "--intercept", "none"])
                .args(["--listen", &format!("{LIVE}:0")])
                .arg("--sessions")
                .arg(file("sessions", &format!("{SESSION} {TOKEN}\n")))
                .arg("--tls-cert")
                .arg(file("gateway.pem", &certificate))
                .arg("--tls-key")
                .arg(file("gateway.key", &key));
            let (_gateway, ready) = Running::ready(&mut command);
            let listening: SocketAddr = ready["listening"].as_str().unwrap().parse().unwrap();
            let port = listening.port();
            let _dead = DEAD.map(|address| full_listener(&format!("{address}:{port}")));
            let addresses = DEAD.iter().chain([&LIVE]).map(|a| a.parse().unwrap());
            let addresses: Vec<IpAddr> = addresses.collect();
            let _names =
                DnsServer::answering(NAME_SERVER, move |_| DnsReply::Addresses(addresses.clone()));

            let trust = file("root.pem", &ca.pem);
            let target = EchoServer::start();
            let relay = RelayProcess::start(
                &home,
                &format!("https://gateway.test:{port}"),
                &[
                    &format!("--upstream-ca={}", trust.display()),
                    "--connect-timeout",
                    CONNECT_TIMEOUT,
                ],
            );
            let start = Instant::now();
            for _ in 0..DIALS {
                assert_opens(relay.port(), &target.authority());
            }
            // With the dead addresses first, each dial would take three delays of 250 ms.
            assert!(start.elapsed() < DIALS * 3 * Duration::from_millis(250));
        },
    );
}

#[test]
fn a_dead_ipv6_address_beside_a_live_ipv4_address_costs_one_short_delay() {
    in_namespaces(
        "a_dead_ipv6_address_beside_a_live_ipv4_address_costs_one_short_delay",
        RESOLV_CONF,
        || {
            let _names = DnsServer::answering(NAME_SERVER, |_| {
                let (v6, v4) = (Ipv6Addr::LOCALHOST, Ipv4Addr::LOCALHOST);
                DnsReply::Addresses(vec![v6.into(), v4.into()])
            });
            let (ends, target) = (ends(&[]), EchoServer::start());
            let _dead = full_listener(&format!("[::1]:{}", target.port()));
            for _ in 0..3 {
                assert_opens(ends.relay.port(), &format!("a.test:{}", target.port()));
            }
        },
    );
}

#[test]
fn no_search_list_applies_to_the_names_of_targets() {
    in_namespaces(
        "no_search_list_applies_to_the_names_of_targets",
        &format!("{RESOLV_CONF}search wild.internal\noptions ndots:5\n"),
        || {
            // Every name below the search domain exists, and so does the one-label name there.
            let names = DnsServer::answering(NAME_SERVER, |query| {
                if query.name.ends_with("wild.internal") {
                    return loopback();
                }
                DnsReply::NoSuchName
            });
            let (ends, target) = (ends(&[]), EchoServer::start());
            for host in ["registry.example", "registry.example.", "vault"] {
                let authority = format!("{host}:{}", target.port());
                let (_, answer) = connect(ends.relay.port(), &authority);
                assert_eq!(answer.status, 502, "{host}: {answer:?}");
            }
            let asked = names.queries();
            let allowed =
                |query: &DnsQuery| ["registry.example", "vault"].contains(&query.name.as_str());
            assert!(asked.iter().all(allowed), "{asked:?}");
            // The hosts file needs no query.
            assert_opens(ends.relay.port(), &format!("listed.test:{}", target.port()));
            assert_eq!(names.queries().len(), asked.len());
        },
    );
}

/// A name server that does not answer for names under `dead.test`. Other names have the loopback
/// address.
fn silent_about_dead_names() -> DnsServer {
    DnsServer::answering(NAME_SERVER, |query| {
        if query.name.ends_with("dead.test") {
            return DnsReply::Silence;
        }
        loopback()
    })
}

#[test]
fn the_dead_names_of_one_session_do_not_delay_another_session() {
    in_namespaces(
        "the_dead_names_of_one_session_do_not_delay_another_session",
        RESOLV_CONF,
        || {
            let names = silent_about_dead_names();
            let (home, other_home) = (TempHome::new(), TempHome::new());
            let sessions = format!("{SESSION} {TOKEN}\nother other-token\n");
            let mut command = upstreamproxy(&home);
            command
                .args(["gateway", "--allow-private", "--intercept", "none"])
                .args([
                    "--listen",
                    "127.0.0.1:0",
                    "--connect-timeout",
                    CONNECT_TIMEOUT,
                ])
                .arg("--sessions")
                .arg(home.write("sessions", sessions, 0o600));
            let (_gateway, ready) = Running::ready(&mut command);
            let base_url = ready["base_url"].as_str().unwrap();
            home.write_token(TOKEN);
            let relay = RelayProcess::start(&home, base_url, &[]);
            other_home.write_token("other-token");
            let mut command = upstreamproxy(&other_home);
            let command = other_home.session(command.arg("serve"), base_url);
            let other = RelayProcess::from(command.env("CLAUDE_CODE_REMOTE_SESSION_ID", "other"));

            let target = EchoServer::start();
            let answered = AtomicUsize::new(0);
            let clients: Vec<TcpStream> = (0..80)
                .map(|n| {
                    let mut client =
                        TcpStream::connect((Ipv4Addr::LOCALHOST, other.port())).unwrap();
                    write!(client, "CONNECT x{n}.dead.test:443 HTTP/1.1\r\n\r\n").unwrap();
                    client
                })
                .collect();
            thread::scope(|scope| {
                for mut client in &clients {
                    let answered = &answered;
                    scope.spawn(move || {
                        // A byte of the answer, or the end when the test has what it needs.
                        let _ = client.read(&mut [0]);
                        answered.fetch_add(1, Ordering::SeqCst);
                    });
                }
                // All threads that this session may have are inside lookups.
                while names.queries().len() < 16 {
                    thread::yield_now();
                }
                for n in 0..3 {
                    let authority = format!("live{n}.test:{}", target.port());
                    assert_opens(relay.port(), &authority);
                }
                assert_eq!(answered.load(Ordering::SeqCst), 0, "a lookup has ended");
                for client in &clients {
                    client.shutdown(std::net::Shutdown::Both).unwrap();
                }
            });
        },
    );
}

#[test]
fn a_client_that_leaves_during_a_lookup_frees_its_slot_at_both_ends() {
    in_namespaces(
        "a_client_that_leaves_during_a_lookup_frees_its_slot_at_both_ends",
        RESOLV_CONF,
        || {
            let names = silent_about_dead_names();
            let (ends, target) = (ends(&["--max-tunnels", "2"]), EchoServer::start());
            let clients = [0, 1].map(|n| {
                let address = (Ipv4Addr::LOCALHOST, ends.relay.port());
                let mut client = TcpStream::connect(address).unwrap();
                write!(client, "CONNECT x{n}.dead.test:443 HTTP/1.1\r\n\r\n").unwrap();
                client
            });
            for n in 0..2 {
                while !names.was_queried_for(&format!("x{n}.dead.test")) {
                    thread::yield_now();
                }
            }
            let left = Instant::now();
            for client in clients {
                let client = Socket::from(client);
                client.set_linger(Some(Duration::ZERO)).unwrap();
            }
            // The relay may be quicker than the gateway, which then has no slot for this client.
            let authority = format!("live.test:{}", target.port());
            while connect(ends.relay.port(), &authority).1.status != 200 {
                thread::yield_now();
            }
            // The lookups themselves would have ended after 20 s, the waiting after 15 s.
            assert!(left.elapsed() < Duration::from_secs(10));
        },
    );
}

#[test]
fn used_up_ports_are_reported_as_a_condition_of_this_machine() {
    in_namespaces(
        "used_up_ports_are_reported_as_a_condition_of_this_machine",
        RESOLV_CONF,
        || {
            let (ends, target) = (ends(&[]), EchoServer::start());
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40001").unwrap();
            // Each client has its own address, so that its ports are not those of the relay.
            let mut open = Vec::new();
            let refused = (10..20).find_map(|n| {
                let (stream, answer) = connect_from(n, ends.relay.port(), &target.authority());
                open.push(stream);
                (!answer.starts_with("HTTP/1.1 200")).then_some(answer)
            });
            assert!(open.len() > 1, "{refused:?}");
            let refused = refused.expect("a refusal");
            assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
            assert!(refused.contains("proxy_internal_error"), "{refused}");
            assert!(refused.contains("no descriptors, ports"), "{refused}");
        },
    );
}

/// A tunnel for the client address 127.0.0.`n`, and the response to its request.
fn connect_from(n: u8, port: u16, authority: &str) -> (TcpStream, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from: SocketAddr = (Ipv4Addr::new(127, 0, 0, n), 0).into();
    socket.bind(&from.into()).unwrap();
    let to: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    socket.connect(&to.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    write!(stream, "CONNECT {authority} HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).unwrap();
    if answer != b"HTTP/1.1 200" {
        answer.extend(read_to_end(&mut stream).0);
    }
    (stream, String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn no_address_of_the_machine_leads_to_the_port_of_a_gateway_that_listens_on_all() {
    in_namespaces(
        "no_address_of_the_machine_leads_to_the_port_of_a_gateway_that_listens_on_all",
        RESOLV_CONF,
        || {
            let add = |address: &str| {
                let arguments = ["address", "add", address, "dev", "lo", "nodad"];
                let arguments = &arguments[..if address.contains(':') { 6 } else { 5 }];
                let home = TempHome::new();
                finish(home.command("ip").args(arguments)).status.success()
            };
            // The second one is no preferred source address.
            assert!(add("192.0.2.7/24") && add("192.0.2.8/24"));
            let ipv6 = add("2001:db8::7/64");
            let other = std::net::TcpListener::bind("192.0.2.7:0").unwrap();
            for listen in ["0.0.0.0:0", "[::]:0"] {
                if listen == "[::]:0" && !ipv6 {
                    continue;
                }
                let home = TempHome::new();
                home.write_token(TOKEN);
                let gateway =
                    GatewayProcess::start(&home, &["--listen", listen, "--allow-plaintext"]);
                let base = format!("http://127.0.0.1:{}", gateway.port());
                let relay = RelayProcess::start(&home, &base, &[]);
                let mut hosts = vec!["192.0.2.7", "192.0.2.8", "[::ffff:192.0.2.8]"];
                hosts.extend((listen == "[::]:0").then_some("[2001:db8::7]"));
                for host in hosts {
                    let authority = format!("{host}:{}", gateway.port());
                    let (_, answer) = connect(relay.port(), &authority);
                    assert_eq!(answer.status, 403, "{listen}, {host}: {answer:?}");
                }
                assert_opens(relay.port(), &other.local_addr().unwrap().to_string());
            }
        },
    );
}

#[test]
fn a_refusal_reports_the_address_of_a_name_only_to_the_log_of_the_gateway() {
    in_namespaces(
        "a_refusal_reports_the_address_of_a_name_only_to_the_log_of_the_gateway",
        RESOLV_CONF,
        || {
            let _names = DnsServer::answering(NAME_SERVER, |_| {
                DnsReply::Addresses(vec![Ipv4Addr::new(10, 1, 2, 3).into()])
            });
            let home = TempHome::new();
            home.write_token(TOKEN);
            let gateway = GatewayProcess::strict(&home, &["--intercept", "none", "--verbose"]);
            let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
            let (mut stream, answer) = connect(relay.port(), "vault.corp.test:443");
            assert_eq!(answer.status, 403, "{answer:?}");
            let body = [answer.early, read_to_end(&mut stream).0].concat();
            let text = answer.head + &String::from_utf8_lossy(&body);
            assert!(text.contains("a private address"), "{text}");
            assert!(!text.contains("10.1.2.3"), "{text}");
            let log = gateway.running.stop();
            assert!(log.stderr.contains("10.1.2.3"), "{log:#?}");
            assert!(!relay.stop().stderr.contains("10.1.2.3"));
        },
    );
}
