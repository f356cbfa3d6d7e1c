//! The paths from the load generator to its target: direct, through forwarders, and through a relay
//! and a gateway.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;

use data_encoding::HEXLOWER;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Process;
use crate::{Outcome, TIMEOUT, forwarder};

/// More tunnels than any test opens, so that the limit has no effect.
const MAX_TUNNELS: &str = "2048";
/// The binary under measurement.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_upstreamproxy");
/// The role of the relay process.
pub(crate) const RELAY: &str = "relay";
/// The role of the gateway process.
pub(crate) const GATEWAY: &str = "gateway";
/// The session ID of the relay.
const SESSION: &str = "benchmark";

/// A path to the target, and the processes on it.
pub(crate) struct Path {
    /// Its name in the tables.
    pub(crate) name: &'static str,
    /// In the order in which a request passes them.
    pub(crate) processes: Vec<Process>,
    entry: SocketAddr,
    /// The request to the proxy at the entry; `None` if the entry leads to the target without a
    /// request.
    request: Option<Vec<u8>>,
    /// Home directories, keys and logs; removed on drop.
    directories: Vec<TempDir>,
}

impl Path {
    /// No process between the load generator and the target.
    pub(crate) fn direct(name: &'static str, target: SocketAddr) -> Self {
        Self {
            name,
            processes: Vec::new(),
            entry: target,
            request: None,
            directories: Vec::new(),
        }
    }

    /// A chain of plain forwarders, one for each role.
    pub(crate) fn forwarders(
        name: &'static str,
        roles: &[&'static str],
        target: SocketAddr,
    ) -> Outcome<Self> {
        let directory = tempfile::tempdir()?;
        let (mut processes, mut port) = (Vec::new(), target.port());
        for role in roles {
            let mut command = Command::new(std::env::current_exe()?);
            command.args([forwarder::ROLE, &port.to_string()]);
            let (process, ready) = Process::start(role, &mut command, directory.path())?;
            processes.insert(0, process);
            port = port_of(&ready)?;
        }
        Ok(Self {
            name,
            processes,
            entry: (Ipv4Addr::LOCALHOST, port).into(),
            request: None,
            directories: vec![directory],
        })
    }

    /// `upstreamproxy serve` and `upstreamproxy gateway`. All settings that affect performance have
    /// their defaults.
    pub(crate) fn tunnel(name: &'static str, tls: bool, target: SocketAddr) -> Outcome<Self> {
        Self::tunnel_by(name, tls, target, |_| clean_command(BINARY))
    }

    /// The same. `begin` returns the command for each role; the arguments are added to it.
    pub(crate) fn tunnel_by(
        name: &'static str,
        tls: bool,
        target: SocketAddr,
        begin: impl Fn(&str) -> Command,
    ) -> Outcome<Self> {
        let Gateway {
            process,
            base_url,
            files,
            directory,
        } = Gateway::start_by(begin(GATEWAY), tls)?;
        let mut path = Self::relay(begin(RELAY), name, &base_url, &files, &[], target)?;
        path.processes.push(process);
        path.directories.push(directory);
        Ok(path)
    }

    /// `upstreamproxy serve` alone, started with this command and further options, with the gateway
    /// at `base_url`.
    pub(crate) fn relay(
        mut relay: Command,
        name: &'static str,
        base_url: &str,
        files: &Files,
        options: &[&str],
        target: SocketAddr,
    ) -> Outcome<Self> {
        let directory = tempfile::tempdir()?;
        relay.env("HOME", directory.path());
        relay.args(["serve", "--when", "always", "--listen", "127.0.0.1:0"]);
        relay.args(["--base-url", base_url, "--session-id", SESSION]);
        relay.args(["--require", "--max-tunnels", MAX_TUNNELS]);
        relay
            .arg("--token-file")
            .arg(files.fresh_token(directory.path())?);
        // The roots of the machine are not needed, and may not be installed.
        relay.arg("--system-ca").arg(&files.ca);
        relay.arg("--upstream-ca").arg(&files.ca);
        relay.args(options);
        let (relay, ready) = Process::start(RELAY, &mut relay, directory.path())?;
        Ok(Self {
            name,
            entry: (Ipv4Addr::LOCALHOST, port_of(&ready)?).into(),
            processes: vec![relay],
            request: Some(request(target)),
            directories: vec![directory],
        })
    }

    /// Opens a connection to the target, and waits for the response of the proxy if there is one.
    pub(crate) fn connect(&self) -> Outcome<TcpStream> {
        let stream = self.send_request()?;
        if self.request.is_some() {
            expect_established(&stream)
                .map_err(|error| format!("CONNECT over {}: {error}", self.name))?;
        }
        Ok(stream)
    }

    /// Connects to the entry and sends the request for the target; does not read the response.
    pub(crate) fn send_request(&self) -> Outcome<TcpStream> {
        let stream = self.connect_to_entry()?;
        if let Some(request) = &self.request {
            (&stream).write_all(request)?;
        }
        Ok(stream)
    }

    /// Opens a tunnel to another target.
    pub(crate) fn connect_to(&self, target: SocketAddr) -> Outcome<TcpStream> {
        let stream = self.connect_to_entry()?;
        (&stream).write_all(&request(target))?;
        expect_established(&stream)
            .map_err(|error| format!("CONNECT over {}: {error}", self.name))?;
        Ok(stream)
    }

    /// Connects to the entry and sends nothing.
    pub(crate) fn connect_to_entry(&self) -> Outcome<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.entry, TIMEOUT).and_then(with_timeouts);
        Ok(stream.map_err(|error| format!("no connection to {}: {error}", self.name))?)
    }

    /// Opens a connection. Returns the client's end and the end of the target, which listens on
    /// `listener`.
    pub(crate) fn pair(&self, listener: &TcpListener) -> Outcome<(TcpStream, TcpStream)> {
        let near = self.connect()?;
        let (far, _) = listener
            .accept()
            .map_err(|error| format!("nothing reached the target over {}: {error}", self.name))?;
        Ok((near, with_timeouts(far)?))
    }

    /// Stops its processes, the first one on the path first.
    pub(crate) fn stop(self) -> Outcome<()> {
        let stops_cleanly = self.request.is_some();
        for process in self.processes.into_iter().filter(|_| stops_cleanly) {
            process.stop()?;
        }
        // After the processes, because their home directories are there.
        drop(self.directories);
        Ok(())
    }
}

/// Sets timeouts for all operations, and disables Nagle's algorithm.
pub(crate) fn with_timeouts(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The CONNECT request for a target.
pub(crate) fn request(target: SocketAddr) -> Vec<u8> {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").into_bytes()
}

/// Reads the response of the proxy, which must be 200. No data follows it, because the target never
/// sends first in these tests.
fn expect_established(stream: &TcpStream) -> Outcome<()> {
    match read_response(stream)? {
        (200, _) => Ok(()),
        (_, head) => Err(format!("refused: {}", head.trim_end()).into()),
    }
}

/// Reads the head of a response. Returns its status and its text.
pub(crate) fn read_response(mut stream: &TcpStream) -> Outcome<(u16, String)> {
    let (mut response, mut filled) = ([0; 2048], 0);
    while !response[..filled].windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut response[filled..])? {
            0 => return Err("the response is incomplete".into()),
            count => filled += count,
        }
    }
    let head = String::from_utf8_lossy(&response[..filled]).into_owned();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| format!("no status in {head:?}"))?;
    Ok((status, head))
}

fn port_of(ready: &Value) -> Outcome<u16> {
    let port = ready["port"].as_u64().and_then(|p| u16::try_from(p).ok());
    Ok(port.ok_or_else(|| format!("no port in {ready}"))?)
}

/// A command with an empty environment.
pub(crate) fn clean_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command
}

/// A gateway without a relay: relays connect to it directly or through other connections.
pub(crate) struct Gateway {
    /// The process.
    pub(crate) process: Process,
    /// Its base URL.
    pub(crate) base_url: String,
    /// The keys and tokens for it and its relays.
    pub(crate) files: Files,
    directory: TempDir,
}

impl Gateway {
    /// Starts a gateway on loopback, with or without TLS.
    pub(crate) fn start(tls: bool) -> Outcome<Self> {
        Self::start_by(clean_command(BINARY), tls)
    }

    fn start_by(mut command: Command, tls: bool) -> Outcome<Self> {
        let directory = tempfile::tempdir()?;
        let files = Files::write(directory.path())?;
        command.env("HOME", directory.path());
        command.args(["gateway", "--listen", "127.0.0.1:0", "--intercept", "none"]);
        command.args(["--allow-private", "--max-tunnels", MAX_TUNNELS]);
        command.arg("--sessions").arg(&files.sessions);
        if tls {
            command.arg("--tls-cert").arg(&files.certificate);
            command.arg("--tls-key").arg(&files.key);
        }
        let (process, ready) = Process::start(GATEWAY, &mut command, directory.path())?;
        let base_url = ready["base_url"]
            .as_str()
            .ok_or_else(|| format!("no base URL in the gateway's {ready}"))?
            .to_owned();
        Ok(Self {
            process,
            base_url,
            files,
            directory,
        })
    }
}

/// The files for a gateway and its relays.
pub(crate) struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    sessions: PathBuf,
    token: String,
}

impl Files {
    /// Creates a CA, a certificate for loopback, and a token, for this run only.
    fn write(directory: &FilePath) -> Outcome<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate()?;
        let names = ["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        // A new key is random enough for a token that is valid during this run only.
        let token = HEXLOWER.encode(&KeyPair::generate()?.serialize_der()[..]);
        let file = |name: &str, content: &str| write_private(directory, name, content);
        Ok(Self {
            ca: file("ca.pem", &ca)?,
            certificate: file("certificate.pem", &certificate.pem())?,
            key: file("key.pem", &key.serialize_pem())?,
            sessions: file("sessions", &format!("{SESSION} {token}\n"))?,
            token,
        })
    }

    /// Writes the token to a new file, because every relay burns its token file.
    fn fresh_token(&self, directory: &FilePath) -> Outcome<PathBuf> {
        Ok(write_private(directory, "token", &self.token)?)
    }
}

fn write_private(directory: &FilePath, name: &str, content: &str) -> std::io::Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, content)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path)
}
