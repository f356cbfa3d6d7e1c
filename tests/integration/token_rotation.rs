//! The session token is replaced while a relay runs: by SIGHUP, by a mounted secret that changes,
//! after the gateway has refused it, and by the host.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{
    EchoServer, GatewayProcess, RelayProcess, Running, SESSION, TOKEN, TempHome, connect,
    upstreamproxy,
};

const NEW_TOKEN: &str = "the-second-token-of-the-test";

/// A relay that keeps the token of `volume`.
#[track_caller]
fn relay_of(home: &TempHome, gateway: &GatewayProcess, volume: &SecretVolume) -> RelayProcess {
    let token = volume.token();
    let options = ["--keep-token", "--token-file", token.to_str().unwrap()];
    RelayProcess::start(home, &gateway.base_url(), &options)
}

/// The gateway accepts only `token` from now on.
#[track_caller]
fn change_session(home: &TempHome, gateway: &GatewayProcess, token: &str) {
    let times = gateway.running.stderr().matches("were read again").count();
    home.write("sessions", format!("{SESSION} {token}\n"), 0o600);
    gateway.running.signal(Signal::HUP);
    gateway.running.wait_for_log("were read again", times + 1);
}

#[track_caller]
fn assert_echoes(tunnel: &mut TcpStream) {
    tunnel.write_all(b"still there").unwrap();
    let mut received = [0; 11];
    tunnel.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"still there");
}

#[track_caller]
fn assert_no_token(log: &str) {
    assert!(!log.contains(TOKEN) && !log.contains(NEW_TOKEN), "{log}");
}

/// A Kubernetes secret volume: `token -> ..data/token`, `..data -> ..2026_11_26_1`.
struct SecretVolume(PathBuf);

impl SecretVolume {
    fn new(home: &TempHome) -> Self {
        let volume = home.join("volume");
        fs::create_dir_all(volume.join("..2026_11_26_1")).unwrap();
        fs::write(volume.join("..2026_11_26_1/token"), TOKEN).unwrap();
        symlink("..2026_11_26_1", volume.join("..data")).unwrap();
        symlink("..data/token", volume.join("token")).unwrap();
        Self(volume)
    }

    fn token(&self) -> PathBuf {
        self.0.join("token")
    }

    /// Replaces the content as the kubelet does.
    fn replace(&self, content: &str) {
        let volume: &Path = &self.0;
        fs::create_dir(volume.join("..2026_11_26_2")).unwrap();
        fs::write(volume.join("..2026_11_26_2/token"), content).unwrap();
        symlink("..2026_11_26_2", volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        fs::remove_dir_all(volume.join("..2026_11_26_1")).unwrap();
    }
}

#[test]
fn after_sighup_serve_uses_a_new_token_file_and_deletes_it() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let (mut tunnel, _) = connect(relay.port(), &target.authority());

    relay.running.signal(Signal::HUP);
    relay.running.wait_for_log("the old token is kept", 1);
    assert!(relay.running.stderr().contains("does not exist"));
    assert_eq!(connect(relay.port(), &target.authority()).1.status, 200);

    change_session(&home, &gateway, NEW_TOKEN);
    assert_eq!(connect(relay.port(), &target.authority()).1.status, 502);
    home.write_token("two words");
    relay.running.signal(Signal::HUP);
    relay.running.wait_for_log("not visible ASCII", 1);

    home.write_token(NEW_TOKEN);
    relay.running.signal(Signal::HUP);
    relay.running.wait_for_log("the token was read again", 1);
    assert_eq!(connect(relay.port(), &target.authority()).1.status, 200);
    assert!(!home.token_file().exists(), "the new file is deleted too");
    assert_echoes(&mut tunnel);
    drop(tunnel);
    assert_no_token(&relay.stop().succeeded().stderr);
}

#[test]
fn a_mounted_secret_that_changes_is_read_again() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let volume = SecretVolume::new(&home);
    let token = volume.token();
    let relay = relay_of(&home, &gateway, &volume);
    let (mut tunnel, answer) = connect(relay.port(), &target.authority());
    assert_eq!(answer.status, 200);
    change_session(&home, &gateway, NEW_TOKEN);
    volume.replace(NEW_TOKEN);
    // No tunnel fails: the change alone is noticed.
    relay.running.wait_for_log("the token file has changed", 1);
    assert_eq!(connect(relay.port(), &target.authority()).1.status, 200);
    assert_eq!(fs::read_to_string(&token).unwrap(), NEW_TOKEN, "it is kept");
    assert_echoes(&mut tunnel);
    drop(tunnel);
    let finished = relay.stop().succeeded();
    assert!(finished.warnings().is_empty(), "{finished:#?}");
    assert_no_token(&finished.stderr);
}

#[test]
fn a_mounted_secret_that_is_broken_keeps_the_old_token_and_warns_once() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let volume = SecretVolume::new(&home);
    let token = volume.token();
    let relay = relay_of(&home, &gateway, &volume);
    volume.replace("");
    relay.running.wait_for_log("the old token is kept", 1);
    assert_eq!(connect(relay.port(), &target.authority()).1.status, 200);
    fs::write(&token, NEW_TOKEN).unwrap();
    relay.running.wait_for_log("the token file has changed", 1);
    let finished = relay.stop().succeeded();
    assert_eq!(finished.warnings().len(), 1, "{finished:#?}");
    assert!(finished.warnings()[0].contains("is empty"), "{finished:#?}");
}

#[test]
fn a_token_that_the_gateway_refuses_is_read_again() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    change_session(&home, &gateway, NEW_TOKEN);
    home.write_token(NEW_TOKEN);
    assert_eq!(connect(relay.port(), &target.authority()).1.status, 502);
    relay.running.wait_for_log("another one was read", 1);
    assert_eq!(connect(relay.port(), &target.authority()).1.status, 200);
    assert!(!home.token_file().exists());
    assert_no_token(&relay.stop().succeeded().stderr);
}

#[test]
fn run_renews_the_token_for_its_child() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let volume = SecretVolume::new(&home);
    let mut command = upstreamproxy(&home);
    command
        .args(["run", "-v", "--keep-token", "--token-file"])
        .arg(volume.token())
        .args(["--", "sh", "-c"])
        // It ends at a signal, which `run` forwards.
        .arg("trap 'exit 7' TERM; echo \"{\\\"port\\\":${HTTPS_PROXY##*:}}\"; while :; do sleep 0.05; done");
    home.session(&mut command, &gateway.base_url());
    let (running, line) = Running::ready(&mut command);
    let port = u16::try_from(line["port"].as_u64().unwrap()).unwrap();
    assert_eq!(connect(port, &target.authority()).1.status, 200);
    change_session(&home, &gateway, NEW_TOKEN);
    volume.replace(NEW_TOKEN);
    running.wait_for_log("the token", 1);
    assert_eq!(connect(port, &target.authority()).1.status, 200);
    running.signal(Signal::TERM);
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(7), "{finished:#?}");
    assert_no_token(&finished.stderr);
}

#[test]
fn a_source_that_can_be_read_only_once_is_reported() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let source = home.write("source", TOKEN, 0o600);
    let mut command = home.command("sh");
    let script = "exec \"$0\" serve --token-fd 7 7< \"$1\"";
    command
        .args(["-c", script, crate::support::binary()])
        .arg(source)
        .stdin(Stdio::null());
    let relay = RelayProcess::from(home.session(&mut command, &gateway.base_url()));
    relay.running.signal(Signal::HUP);
    relay.running.wait_for_log("can be read only once", 1);
    assert_eq!(connect(relay.port(), &target.authority()).1.status, 200);
    let finished = relay.stop().succeeded();
    assert!(
        finished
            .stderr
            .contains("the old token is kept: the descriptor 7"),
        "{finished:#?}"
    );
}

#[test]
fn an_embedded_gateway_ignores_sighup() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let mut command = upstreamproxy(&home);
    let relay = RelayProcess::from(command.args(["serve", "--embedded"]));
    relay.running.signal(Signal::HUP);
    relay.running.wait_for_log("SIGHUP has no effect", 1);
    assert_eq!(connect(relay.port(), &target.authority()).1.status, 200);
    relay.stop().succeeded();
}
