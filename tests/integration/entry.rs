//! Who may use the relay's port: this user and root, and with `--listen-credential` only clients
//! with the password.

use std::fs;
use std::io::Write;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{
    EchoServer, GatewayProcess, HttpsOrigin, RelayProcess, Running, TOKEN, TempHome, connect,
    finish, need_tool, read_to_end, request, skip, upstreamproxy,
};

/// Runs `curl` as another user through the proxy of the environment. Prints the status of its
/// CONNECT request.
const OTHER_USER: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups \
    curl --silent --insecure --output /dev/null --write-out '%{http_connect}' --cacert /dev/null https://127.0.0.1:9/ --noproxy ''; true";

fn can_change_user() -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("only root can become another user");
        return false;
    }
    need_tool("setpriv") && need_tool("curl")
}

#[test]
fn another_user_of_this_machine_is_refused_unless_every_user_is_allowed() {
    if !can_change_user() {
        return;
    }
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    // The target port is closed, so the gateway answers that it cannot connect.
    for (options, expected) in [(&[][..], "403"), (&["--allow-any-user"], "502")] {
        home.write_token(TOKEN);
        let relay = RelayProcess::start(&home, &gateway.base_url(), options);
        let mut stranger = home.command("sh");
        let proxy = format!("http://127.0.0.1:{}", relay.port());
        let finished = finish(stranger.args(["-c", OTHER_USER]).env("https_proxy", proxy));
        assert_eq!(finished.succeeded().text(), expected, "{options:?}");
        relay.stop();
    }
}

/// A process that `run` has started may use the relay, whichever user it is now: also one whose
/// parent has ended. A stranger of the same user may not.
#[test]
fn what_the_command_starts_may_use_the_relay_as_any_user() {
    if !can_change_user() {
        return;
    }
    let origin = HttpsOrigin::start("origin.test");
    let home = TempHome::new();
    let fetch = "setpriv --reuid 65534 --regid 65534 --clear-groups curl --silent --show-error --max-time 20";
    let stranger = "setpriv --reuid 65534 --regid 65534 --clear-groups curl --silent --output /dev/null \
        --write-out %{http_connect} --proxy";
    // The shell in the background has no parent but `run` when it fetches.
    let script = format!(
        "{fetch} $1; ( (sleep 0.3; {fetch} $1 > $2; echo done > $3) & ); \
         until test -e $3; do sleep 0.1; done; cat $2; \
         echo $HTTPS_PROXY > $4.new; mv $4.new $4; until test -e $5; do sleep 0.1; done"
    );
    let path = |name: &str| home.join(name).display().to_string();
    let mut command = origin.embedded(
        &home,
        &["--upstream-ca", origin.ca_file().to_str().unwrap()],
    );
    command
        .args(["--", "setpriv", "--inh-caps=-all", "sh", "-c"])
        .arg(script)
        .arg("sh");
    command.args([
        origin.url("/hello"),
        path("orphan"),
        path("done"),
        path("port"),
        path("stop"),
    ]);
    let running = Running::spawn(&mut command);
    let mut proxy = String::new();
    for _ in 0..200 {
        if let Ok(text) = fs::read_to_string(path("port")) {
            proxy = text;
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!(!proxy.is_empty(), "{}", running.stderr());
    // A stranger with the same user ID.
    let refused = finish(home.command("sh").arg("-c").arg(format!(
        "{stranger} {} https://127.0.0.1:9/ --noproxy ''; true",
        proxy.trim()
    )));
    fs::write(path("stop"), "").unwrap();
    let finished = running.wait().succeeded();
    let expected = HttpsOrigin::HELLO.repeat(2);
    assert_eq!(finished.text(), expected.trim_end(), "{finished:#?}");
    assert_eq!(refused.text(), "403", "{refused:#?}");
}

/// A gateway of another user on `port`.
fn gateway_of_another_user(home: &TempHome, port: &str) -> Running {
    let mut command = home.as_unprivileged_user();
    let sessions = home.write("sessions", "other token-of-another-session", 0o644);
    command
        .args(["gateway", "--intercept", "none", "--listen"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("--sessions")
        .arg(sessions);
    Running::ready(&mut command).0
}

#[test]
fn a_plain_upstream_whose_port_another_user_has_gets_no_request() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can become another user");
    }
    let (home, other_home) = (TempHome::new(), TempHome::new());
    let gateway = GatewayProcess::start(&home, &[]);
    let base_url = gateway.base_url();
    let relay = RelayProcess::start(&home, &base_url, &[]);
    let target = EchoServer::start();
    let (_, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200, "{answer:?}");
    gateway.running.signal(Signal::KILL);
    gateway.running.wait();
    let (_, port) = base_url.rsplit_once(':').unwrap();
    let other = gateway_of_another_user(&other_home, port);

    // The tunnel endpoint.
    let (_, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 502, "{answer:?}");
    let log = relay.stop().stderr;
    // The CA endpoint, without and with the permission.
    let mut doctor = upstreamproxy(&other_home);
    doctor.args(["doctor", "--when", "always", "--session-id", "other"]);
    doctor.args(["--base-url", &base_url, "--token-file"]);
    doctor.arg(other_home.write("token", "token-of-another-session", 0o600));
    let refused = finish(&mut doctor).text();
    let permitted = finish(doctor.args(["--upstream-uid", "65534"])).text();
    let other = other.stop();

    let why = "user 65534 has the upstream's port";
    assert!(
        log.contains(&format!("refused 502 in connect: {why}")),
        "{log}"
    );
    for step in ["ca: wrong", "connect: wrong"] {
        let line = refused.lines().find(|line| line.starts_with(step)).unwrap();
        assert!(
            line.contains(why) && line.contains("--upstream-uid"),
            "{line}"
        );
    }
    assert!(permitted.contains("upgrade: ok"), "{permitted}");
    assert!(!other.stderr.contains("refused 401"), "{other:#?}");
}

#[test]
fn without_the_password_a_client_gets_a_407_and_with_it_the_same_connection_continues() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let mut command = upstreamproxy(&home);
    let (serve, line) =
        Running::ready(command.args(["serve", "--embedded", "--listen-credential"]));
    let port = u16::try_from(line["port"].as_u64().unwrap()).unwrap();
    let url = line["env"]["HTTPS_PROXY"].as_str().unwrap();
    let userinfo = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('@')
        .unwrap()
        .0;
    assert!(userinfo.starts_with("upstreamproxy:"), "{url}");

    let (_, refused) = connect(port, &target.authority());
    assert_eq!(refused.status, 407, "{refused:?}");
    assert!(refused.has_field("Proxy-Authenticate"), "{refused:?}");

    let head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n", target.authority());
    let basic = data_encoding::BASE64.encode(userinfo.as_bytes());
    let wrong = data_encoding::BASE64.encode(b"upstreamproxy:wrong");
    let all = format!(
        "{head}\r\n{head}Proxy-Authorization: Basic {wrong}\r\n\r\n{head}Proxy-Authorization: Basic {basic}\r\n\r\n"
    );
    let (mut stream, first) = request(port, all.as_bytes());
    assert_eq!(first.status, 407);
    stream.write_all(b"through").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let (rest, _) = read_to_end(&mut stream);
    let rest = String::from_utf8_lossy(&rest);
    let rest = String::from_utf8_lossy(&first.early).into_owned() + &rest;
    assert_eq!(rest.matches("HTTP/1.1 407").count(), 1, "{rest}");
    assert_eq!(rest.matches("HTTP/1.1 200").count(), 1, "{rest}");
    assert!(rest.ends_with("through"), "{rest}");
    assert!(!serve.stderr().contains(userinfo.split_once(':').unwrap().1));
}

#[test]
fn a_tunnel_to_the_relays_own_port_is_refused_for_every_bind_address() {
    for bound in [
        &["--listen", "127.0.0.1:0"][..],
        &["--listen", "0.0.0.0:0", "--allow-non-loopback"],
    ] {
        let home = TempHome::new();
        let mut command = upstreamproxy(&home);
        let (_serve, line) = Running::ready(command.args(["serve", "--embedded"]).args(bound));
        let port = u16::try_from(line["port"].as_u64().unwrap()).unwrap();
        for host in ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"] {
            let (_, refused) = connect(port, &format!("{host}:{port}"));
            assert_eq!(refused.status, 403, "{bound:?} {host}: {refused:?}");
        }
    }
}
