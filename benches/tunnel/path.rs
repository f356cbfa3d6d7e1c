//! The ways from the load generator to its target: straight, through forwarders, through the relay and the gateway.

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
use crate::{Outcome, PATIENCE, forwarder};

/// More than any test opens: the cap on tunnels is not what is measured here.
const MAX_TUNNELS: &str = "2048";
/// The binary under measurement.
pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_upstreamproxy");
/// The processes of a tunnel.
pub(crate) const RELAY: &str = "relay";
pub(crate) const GATEWAY: &str = "gateway";
/// Who the relay says it is.
const SESSION: &str = "benchmark";

/// One way to the target and the processes on it.
pub(crate) struct Path {
    /// Its name in the tables.
    pub(crate) name: &'static str,
    /// In the order in which a request meets them.
    pub(crate) processes: Vec<Process>,
    entry: SocketAddr,
    /// What to ask of a proxy at the entry; `None`: the entry leads to the target by itself.
    request: Option<Vec<u8>>,
    /// Homes, keys and logs, as long as they are needed.
    folders: Vec<TempDir>,
}

impl Path {
    /// Nothing between.
    pub(crate) fn direct(name: &'static str, target: SocketAddr) -> Self {
        Self {
            name,
            processes: Vec::new(),
            entry: target,
            request: None,
            folders: Vec::new(),
        }
    }

    /// As many plain forwarders in a row.
    pub(crate) fn forwarders(
        name: &'static str,
        roles: &[&'static str],
        target: SocketAddr,
    ) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let (mut processes, mut port) = (Vec::new(), target.port());
        for role in roles {
            let mut command = Command::new(std::env::current_exe()?);
            command.args([forwarder::ROLE, &port.to_string()]);
            let (process, ready) = Process::start(role, &mut command, folder.path())?;
            processes.insert(0, process);
            port = port_of(&ready)?;
        }
        Ok(Self {
            name,
            processes,
            entry: (Ipv4Addr::LOCALHOST, port).into(),
            request: None,
            folders: vec![folder],
        })
    }

    /// `upstreamproxy serve` and `upstreamproxy gateway`, all settings that cost time at their defaults.
    pub(crate) fn tunnel(name: &'static str, tls: bool, target: SocketAddr) -> Outcome<Self> {
        Self::tunnel_by(name, tls, target, |_| bare(OURS))
    }

    /// The same, each process begun by the command that `begin` gives for its role and that the arguments are added to.
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
            folder,
        } = Gateway::start_by(begin(GATEWAY), tls)?;
        let mut path = Self::relay(begin(RELAY), name, &base_url, &files, &[], target)?;
        path.processes.push(process);
        path.folders.push(folder);
        Ok(path)
    }

    /// `upstreamproxy serve` alone, begun by this command, with these options too, in front of a gateway at `base_url`.
    pub(crate) fn relay(
        mut relay: Command,
        name: &'static str,
        base_url: &str,
        files: &Files,
        options: &[&str],
        target: SocketAddr,
    ) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        relay.env("HOME", folder.path());
        relay.args(["serve", "--when", "always", "--listen", "127.0.0.1:0"]);
        relay.args(["--base-url", base_url, "--session-id", SESSION]);
        relay.args(["--require", "--max-tunnels", MAX_TUNNELS]);
        relay
            .arg("--token-file")
            .arg(files.fresh_token(folder.path())?);
        // The machine's own roots are nobody's business here, and may not be installed.
        relay.arg("--system-ca").arg(&files.ca);
        relay.arg("--upstream-ca").arg(&files.ca);
        relay.args(options);
        let (relay, ready) = Process::start(RELAY, &mut relay, folder.path())?;
        Ok(Self {
            name,
            entry: (Ipv4Addr::LOCALHOST, port_of(&ready)?).into(),
            processes: vec![relay],
            request: Some(request(target)),
            folders: vec![folder],
        })
    }

    /// A connection to the target, as soon as this way lets anything pass.
    pub(crate) fn connect(&self) -> Outcome<TcpStream> {
        let stream = self.ask()?;
        if self.request.is_some() {
            established(&stream).map_err(|error| format!("CONNECT over {}: {error}", self.name))?;
        }
        Ok(stream)
    }

    /// A connection to the entry, on which the target has been asked for and no answer been read.
    pub(crate) fn ask(&self) -> Outcome<TcpStream> {
        let stream = self.enter()?;
        if let Some(request) = &self.request {
            (&stream).write_all(request)?;
        }
        Ok(stream)
    }

    /// A tunnel to a target of its own choice.
    pub(crate) fn connect_to(&self, target: SocketAddr) -> Outcome<TcpStream> {
        let stream = self.enter()?;
        (&stream).write_all(&request(target))?;
        established(&stream).map_err(|error| format!("CONNECT over {}: {error}", self.name))?;
        Ok(stream)
    }

    /// A connection to the entry, with nothing asked yet.
    pub(crate) fn enter(&self) -> Outcome<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.entry, PATIENCE).and_then(prepared);
        Ok(stream.map_err(|error| format!("no connection to {}: {error}", self.name))?)
    }

    /// The two ends of a connection: ours, and that of the target behind `listener`.
    pub(crate) fn pair(&self, listener: &TcpListener) -> Outcome<(TcpStream, TcpStream)> {
        let near = self.connect()?;
        let (far, _) = listener
            .accept()
            .map_err(|error| format!("nothing reached the target over {}: {error}", self.name))?;
        Ok((near, prepared(far)?))
    }

    /// Ends its processes, the one that a request meets first before the others.
    pub(crate) fn stop(self) -> Outcome<()> {
        let has_orderly_end = self.request.is_some();
        for process in self.processes.into_iter().filter(|_| has_orderly_end) {
            process.stop()?;
        }
        // Not before those who have their homes there.
        drop(self.folders);
        Ok(())
    }
}

/// No operation on the stream waits for ever, none waits for more bytes to send.
pub(crate) fn prepared(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The CONNECT request for a target.
pub(crate) fn request(target: SocketAddr) -> Vec<u8> {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").into_bytes()
}

/// Reads the proxy's answer. The target never speaks first in our tests, so that nothing may come behind it.
fn established(stream: &TcpStream) -> Outcome<()> {
    match answer(stream)? {
        (200, _) => Ok(()),
        (_, head) => Err(format!("refused: {}", head.trim_end()).into()),
    }
}

/// The status and the head of an answer.
pub(crate) fn answer(mut stream: &TcpStream) -> Outcome<(u16, String)> {
    let (mut answer, mut filled) = ([0; 2048], 0);
    while !answer[..filled].windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut answer[filled..])? {
            0 => return Err("no whole answer".into()),
            count => filled += count,
        }
    }
    let head = String::from_utf8_lossy(&answer[..filled]).into_owned();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| format!("no status in {head:?}"))?;
    Ok((status, head))
}

fn port_of(ready: &Value) -> Outcome<u16> {
    let port = ready["port"].as_u64().and_then(|p| u16::try_from(p).ok());
    Ok(port.ok_or_else(|| format!("no port in {ready}"))?)
}

/// A command with nothing of this machine's environment.
pub(crate) fn bare(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command
}

/// A gateway by itself: relays may stand before it at any distance.
pub(crate) struct Gateway {
    /// The process.
    pub(crate) process: Process,
    /// Where it is.
    pub(crate) base_url: String,
    /// What it and its relays know.
    pub(crate) files: Files,
    folder: TempDir,
}

impl Gateway {
    /// One on loopback, with TLS or without.
    pub(crate) fn start(tls: bool) -> Outcome<Self> {
        Self::start_by(bare(OURS), tls)
    }

    fn start_by(mut command: Command, tls: bool) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let files = Files::write(folder.path())?;
        command.env("HOME", folder.path());
        command.args(["gateway", "--listen", "127.0.0.1:0", "--intercept", "none"]);
        command.args(["--allow-private", "--max-tunnels", MAX_TUNNELS]);
        command.arg("--sessions").arg(&files.sessions);
        if tls {
            command.arg("--tls-cert").arg(&files.certificate);
            command.arg("--tls-key").arg(&files.key);
        }
        let (process, ready) = Process::start(GATEWAY, &mut command, folder.path())?;
        let base_url = ready["base_url"]
            .as_str()
            .ok_or_else(|| format!("no base URL in the gateway's {ready}"))?
            .to_owned();
        Ok(Self {
            process,
            base_url,
            files,
            folder,
        })
    }
}

/// The files that a gateway and its relays are given.
pub(crate) struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    sessions: PathBuf,
    token: String,
}

impl Files {
    /// A CA, a certificate for loopback under it, and a token, all made now and for this run only.
    fn write(folder: &FilePath) -> Outcome<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate()?;
        let names = ["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        // A key is random enough for a token that lives as long as this run.
        let token = HEXLOWER.encode(&KeyPair::generate()?.serialize_der()[..]);
        let file = |name: &str, content: &str| private(folder, name, content);
        Ok(Self {
            ca: file("ca.pem", &ca)?,
            certificate: file("certificate.pem", &certificate.pem())?,
            key: file("key.pem", &key.serialize_pem())?,
            sessions: file("sessions", &format!("{SESSION} {token}\n"))?,
            token,
        })
    }

    /// The token in a file of its own: every relay burns the one that it reads.
    fn fresh_token(&self, folder: &FilePath) -> Outcome<PathBuf> {
        Ok(private(folder, "token", &self.token)?)
    }
}

fn private(folder: &FilePath, name: &str, content: &str) -> std::io::Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, content)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path)
}
