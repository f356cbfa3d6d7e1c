//! A parent proxy on the path to the upstream and to targets: the CONNECT of this program's own
//! connections, with a proxy of the test and with Squid and Tinyproxy.
//!
//! The names of these tests have no address outside the proxy, so a connection that does not go
//! through it fails.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::{
    Finished, GatewayProcess, HttpsOrigin, Running, ScriptedServer, TempHome, TestCa, finish,
    need_tool, skip, upstreamproxy,
};

const UPSTREAM: &str = "gateway.test";
const PASSWORD: &str = "canary-password-71c2";
/// `user` and the password, as Basic credentials.
const AUTHORIZATION: &str = "Proxy-Authorization: Basic dXNlcjpjYW5hcnktcGFzc3dvcmQtNzFjMg==";

/// A proxy that connects every name to 127.0.0.1, and records the requests.
struct Proxy {
    server: ScriptedServer,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// `answer` decides about a request: the status line of the response.
    fn start(answer: fn(&str) -> &'static str) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&requests);
        let server = ScriptedServer::start(move |mut client| {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte)?;
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            record.lock().unwrap().push(head.clone());
            let status = answer(&head);
            // In pieces, with an interim response: the head ends anywhere.
            for piece in [
                "HTTP/1.1 103 Early\r\n\r\n",
                "HTTP/1.1 ",
                status,
                "\r\nX: y\r\n\r",
                "\n",
            ] {
                client.write_all(piece.as_bytes())?;
            }
            if !status.starts_with('2') {
                return Ok(());
            }
            let port = head.split([' ', ':']).nth(2).unwrap().parse().unwrap();
            join(client, TcpStream::connect((Ipv4Addr::LOCALHOST, port))?)
        });
        Self { server, requests }
    }

    /// A proxy that requires the password.
    fn with_password() -> Self {
        Self::start(|head| {
            let authorized = head.lines().any(|line| line == AUTHORIZATION);
            if authorized {
                "200 OK"
            } else {
                "407 Proxy Authentication Required"
            }
        })
    }

    fn url(&self, userinfo: &str) -> String {
        format!("http://{userinfo}127.0.0.1:{}", self.server.port())
    }

    /// The first lines of the requests, each once.
    fn requested(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let mut lines: Vec<_> = requests
            .iter()
            .map(|head| head.lines().next().unwrap().to_owned())
            .collect();
        lines.sort();
        lines.dedup();
        lines
    }
}

fn join(client: TcpStream, target: TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_client) = (client.try_clone()?, client);
    let (mut from_target, mut to_target) = (target.try_clone()?, target);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_target);
        let _ = to_target.shutdown(Shutdown::Write);
    });
    io::copy(&mut from_target, &mut to_client)?;
    to_client.shutdown(Shutdown::Write)
}

/// A gateway with TLS that is called `gateway.test`.
struct Upstream {
    home: TempHome,
    gateway: GatewayProcess,
}

impl Upstream {
    fn start(options: &[&str]) -> Self {
        let home = TempHome::new();
        let ca = TestCa::new("upstream of the test");
        let (certificate, key) = ca.issue(UPSTREAM);
        home.write("ca.pem", &ca.pem, 0o644);
        let certificate = home.write("cert.pem", certificate, 0o644);
        let key = home.write("key.pem", key, 0o600);
        let tls = [
            "--tls-cert",
            certificate.to_str().unwrap(),
            "--tls-key",
            key.to_str().unwrap(),
        ];
        let gateway = GatewayProcess::start(&home, &[&tls, options].concat());
        Self { home, gateway }
    }

    fn port(&self) -> u16 {
        let listening = self.gateway.ready["listening"].as_str().unwrap();
        listening.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// `run` with this upstream: a child that prints its environment and fetches `url`.
    fn run(&self, home: &TempHome, proxy: &str, url: &str) -> Command {
        let mut command = upstreamproxy(home);
        command.args(["run", "-v", "--", "sh", "-c"]);
        command.arg(format!(
            "env; curl -sS --max-time 20 -k -p -x $HTTPS_PROXY {url}"
        ));
        home.session(&mut command, &format!("https://{UPSTREAM}:{}", self.port()));
        command.env("UPSTREAMPROXY_UPSTREAM_CA", self.home.join("ca.pem"));
        command.env("HTTPS_PROXY", proxy);
        command
    }
}

fn assert_no_password(finished: &Finished) {
    assert!(!finished.text().contains(PASSWORD), "{finished:#?}");
    assert!(!finished.stderr.contains(PASSWORD), "{finished:#?}");
}

#[test]
fn the_inherited_proxy_carries_the_download_and_the_tunnels_and_its_password_stays_here() {
    if !need_tool("curl") {
        return;
    }
    let origin = HttpsOrigin::start("origin.test");
    let upstream = Upstream::start(&["--resolve", &origin.resolve()]);
    let proxy = Proxy::with_password();
    let home = TempHome::new();
    let url = proxy.url(&format!("user:{PASSWORD}@"));
    let finished = finish(&mut upstream.run(&home, &url, &origin.url("/hello"))).succeeded();
    assert!(
        finished.text().ends_with(HttpsOrigin::HELLO),
        "{finished:#?}"
    );
    assert_eq!(
        proxy.requested(),
        [format!("CONNECT {UPSTREAM}:{} HTTP/1.1", upstream.port())]
    );
    assert!(
        proxy.requests.lock().unwrap().len() >= 2,
        "the download and a tunnel"
    );
    assert_no_password(&finished);
    let named = format!("through the parent proxy 127.0.0.1:{}", proxy.server.port());
    assert!(finished.stderr.contains(&named), "{finished:#?}");
}

#[test]
fn a_proxy_that_refuses_disables_the_relay_with_the_reason() {
    let upstream = Upstream::start(&[]);
    let wrong = Proxy::with_password();
    let forbids = Proxy::start(|_| "403 Forbidden");
    let ends = Proxy::start(|_| "");
    for (proxy, userinfo, why) in [
        (&wrong, "", "requires other credentials (407)"),
        (&wrong, "user:wrong@", "requires other credentials (407)"),
        (&forbids, "", "refused the connection with status 403"),
        (&ends, "", "HTTP"),
    ] {
        let home = TempHome::new();
        let mut command = upstream.run(&home, &proxy.url(userinfo), "file:///dev/null");
        let finished = finish(&mut command).succeeded();
        assert_eq!(finished.warnings().len(), 1, "{why}: {finished:#?}");
        assert!(
            finished.warnings()[0].contains("disabled at ca"),
            "{finished:#?}"
        );
        assert!(finished.warnings()[0].contains(why), "{why}: {finished:#?}");
        assert!(home.token_file().exists());
    }
}

#[test]
fn hosts_in_no_proxy_and_a_proxy_of_this_program_are_not_used() {
    let upstream = Upstream::start(&[]);
    let proxy = Proxy::with_password();
    let url = proxy.url(&format!("user:{PASSWORD}@"));
    for (variable, value) in [
        ("NO_PROXY", ".test"),
        ("UPSTREAMPROXY_RELAY", url.as_str()),
        ("UPSTREAMPROXY_PARENT_PROXY", "none"),
    ] {
        let home = TempHome::new();
        let mut command = upstream.run(&home, &url, "file:///dev/null");
        let finished = finish(command.env(variable, value));
        // The name has no address here.
        assert!(
            finished.warnings()[0].contains("disabled at ca"),
            "{finished:#?}"
        );
        assert!(!finished.stderr.contains(PASSWORD), "{finished:#?}");
    }
    assert_eq!(proxy.requested(), [""; 0]);
}

#[test]
fn an_inherited_proxy_of_another_kind_is_named_once_and_not_used() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let mut command = upstreamproxy(&home);
    command.args(["run", "--", "sh", "-c", "echo $HTTPS_PROXY"]);
    home.session(&mut command, &gateway.base_url());
    command.env(
        "ALL_PROXY",
        format!("socks5://user:{PASSWORD}@proxy.test:1080"),
    );
    let finished = finish(&mut command).succeeded();
    assert!(
        finished.text().starts_with("http://127.0.0.1:"),
        "{finished:#?}"
    );
    assert_eq!(finished.warnings().len(), 1, "{finished:#?}");
    assert!(finished.warnings()[0].contains("the inherited ALL_PROXY is not used"));
    assert_no_password(&finished);
}

#[test]
fn an_embedded_gateway_reaches_targets_through_the_proxy() {
    if !need_tool("curl") {
        return;
    }
    let origin = HttpsOrigin::start("origin.test");
    let proxy = Proxy::start(|head| match head.split([' ', ':']).nth(1) {
        Some("origin.test") => "200 OK",
        Some("late.test") => "504 Gateway Timeout",
        _ => "403 Forbidden",
    });
    let home = TempHome::new();
    let mut command = origin.embedded(
        &home,
        &["--upstream-ca", origin.ca_file().to_str().unwrap()],
    );
    command
        .args(["--parent-proxy", &proxy.url(""), "--", "sh", "-c"])
        .arg(format!(
            "curl -sS --max-time 20 {}; for host in late.test other.test; do \
         curl -s --max-time 20 -o /dev/null -w '%{{http_connect}}\n' https://$host; done",
            origin.url("/hello")
        ));
    let finished = finish(&mut command);
    let expected = format!("{}504\n403\n", HttpsOrigin::HELLO);
    assert_eq!(finished.text(), expected, "{finished:#?}");
    assert!(
        proxy
            .requested()
            .contains(&format!("CONNECT {} HTTP/1.1", origin.authority()))
    );
}

/// A proxy of Debian with user and password, in a mount namespace where the test's names are
/// loopback.
fn real_proxy(home: &TempHome, script: &str) -> Option<Running> {
    let allowed = Command::new("unshare").args(["-m", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        skip("this system allows no namespaces");
        return None;
    }
    let hosts = home.write(
        "hosts",
        format!("127.0.0.1 localhost {UPSTREAM} origin.test\n"),
        0o644,
    );
    let mut command = home.command("unshare");
    command.args(["-m", "sh", "-c"]);
    command.arg(format!(
        "mount --bind {} /etc/hosts && {script}",
        hosts.display()
    ));
    Some(Running::spawn(&mut command))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Waits until the proxy accepts connections: 20 s at most.
#[track_caller]
fn wait_for(port: u16, proxy: &Running) {
    for _ in 0..200 {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return;
        }
        thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("the proxy does not listen: {}", proxy.stderr());
}

#[track_caller]
fn assert_works_through(port: u16) {
    let origin = HttpsOrigin::start("origin.test");
    let upstream = Upstream::start(&["--resolve", &origin.resolve()]);
    let home = TempHome::new();
    let proxy = format!("http://user:{PASSWORD}@127.0.0.1:{port}");
    let finished = finish(&mut upstream.run(&home, &proxy, &origin.url("/hello"))).succeeded();
    assert!(
        finished.text().ends_with(HttpsOrigin::HELLO),
        "{finished:#?}"
    );
    assert_no_password(&finished);

    let wrong = format!("http://user:wrong@127.0.0.1:{port}");
    let finished = finish(&mut upstream.run(&TempHome::new(), &wrong, "file:///dev/null"));
    assert!(
        finished.stderr.contains("the parent proxy"),
        "{finished:#?}"
    );
}

#[test]
fn squid_with_basic_authentication_works_as_the_parent() {
    if !need_tool("curl") || !need_tool("squid") || !need_tool("openssl") {
        return;
    }
    let home = TempHome::new();
    let hash = finish(home.command("openssl").args(["passwd", "-apr1", PASSWORD])).succeeded();
    let users = home.write("users", format!("user:{}", hash.text()), 0o644);
    let port = free_port();
    // Squid changes to its own user, which must be able to read the files.
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let place = home.path().display().to_string();
    let configuration = format!(
        "http_port 127.0.0.1:{port}\nhosts_file {place}/hosts\npid_filename none\n\
         cache_log /dev/null\naccess_log none\nlogfile_rotate 0\ncache deny all\n\
         auth_param basic program /usr/lib/squid/basic_ncsa_auth {}\n\
         acl users proxy_auth REQUIRED\nhttp_access allow users\nhttp_access deny all\n\
         visible_hostname localhost\nshutdown_lifetime 0 seconds\n",
        users.display()
    );
    let configuration = home.write("squid.conf", configuration, 0o644);
    // Its shared memory has a fixed name.
    let script = format!(
        "mount -t tmpfs none /dev/shm && exec squid -N -f {}",
        configuration.display()
    );
    let Some(squid) = real_proxy(&home, &script) else {
        return;
    };
    wait_for(port, &squid);
    assert_works_through(port);
}

#[test]
fn tinyproxy_with_basic_authentication_works_as_the_parent() {
    if !need_tool("curl") || !need_tool("tinyproxy") {
        return;
    }
    let home = TempHome::new();
    let port = free_port();
    let configuration = format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 60\nBasicAuth user {PASSWORD}\nLogLevel Error\n"
    );
    let configuration = home.write("tinyproxy.conf", configuration, 0o644);
    let script = format!("exec tinyproxy -d -c {}", configuration.display());
    let Some(tinyproxy) = real_proxy(&home, &script) else {
        return;
    };
    wait_for(port, &tinyproxy);
    assert_works_through(port);
}
