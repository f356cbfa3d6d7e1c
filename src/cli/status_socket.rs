//! The socket beside the state file on which a running `serve` answers `status`.
//!
//! Each connection of this user gets one JSON document, and nothing is read from it. A thread
//! answers, so that a client that does not read cannot delay `serve`, and so that the answers
//! continue during the drain. It ends when [`StatusSocket`] is dropped.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::control::hosts::{HostStats, HostTable};
use crate::control::metrics::StatsReader;
use crate::probe::options::RunningUpstream;

use super::output::json_line;
use super::token_watch::TokenState;

/// The most hosts with a row in the answer. Such an answer fits into the buffer of a socket.
const HOSTS_LIMIT: usize = 64;
/// How long one write may wait for a client.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a client waits for the answer. Answers are sent one at a time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that a client reads.
const ANSWER_LIMIT: u64 = 1 << 20;
/// The pause after a failure to accept, for example because no descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the answers are made of.
pub(crate) struct Answers {
    /// When the relay was ready.
    pub(crate) started: Instant,
    /// The address that the relay listens on.
    pub(crate) relay: SocketAddr,
    /// The upstream.
    pub(crate) upstream: RunningUpstream,
    /// When and why the token was last read.
    pub(crate) token: Arc<Mutex<TokenState>>,
    /// The counters.
    pub(crate) stats: StatsReader,
    /// The counters per host.
    pub(crate) hosts: HostTable,
}

/// The answer.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    pub(crate) pid: u32,
    pub(crate) relay: SocketAddr,
    pub(crate) port: u16,
    pub(crate) uptime_seconds: u64,
    pub(crate) upstream: RunningUpstream,
    /// `None`: the embedded gateway needs none.
    pub(crate) token: Option<String>,
    /// The sums over all hosts.
    pub(crate) total: HostStats,
    /// The most active hosts first.
    pub(crate) hosts: Vec<HostRow>,
    /// The sums over the hosts without a row.
    pub(crate) other_hosts: HostStats,
}

/// The counters of one host.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct HostRow {
    pub(crate) host: String,
    #[serde(flatten)]
    pub(crate) stats: HostStats,
}

impl Answers {
    fn report(&self) -> Report {
        let table = self.hosts.rows();
        let mut other = table.other;
        let mut rows = table.rows;
        for (_, stats) in rows.drain(rows.len().min(HOSTS_LIMIT)..) {
            other.add(stats);
        }
        let mut open = other.open;
        open += rows.iter().map(|(_, stats)| stats.open).sum::<u64>();
        let stats = self.stats.read();
        let token = *self.token.lock().unwrap_or_else(PoisonError::into_inner);
        Report {
            pid: std::process::id(),
            relay: self.relay,
            port: self.relay.port(),
            uptime_seconds: self.started.elapsed().as_secs(),
            upstream: self.upstream.clone(),
            token: (!self.upstream.embedded).then(|| token.name().to_owned()),
            total: HostStats {
                open,
                tunnels: stats.tunnels,
                refused: stats.refused,
                broken: stats.broken,
                bytes_up: stats.bytes_up,
                bytes_down: stats.bytes_down,
            },
            hosts: rows
                .into_iter()
                .map(|(host, stats)| HostRow { host, stats })
                .collect(),
            other_hosts: other,
        }
    }
}

/// The socket of this process. Dropping it removes the socket and ends its thread.
pub(crate) struct StatusSocket {
    path: PathBuf,
    listener: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

impl StatusSocket {
    /// Opens the socket beside `state`, a state file that this process owns.
    ///
    /// # Errors
    /// The path is too long for a socket, or there is no descriptor or thread.
    pub(crate) fn open(state: &Path, answers: Answers) -> io::Result<Self> {
        let path = path(state);
        // The name has no other owner: a socket with this name is of a process that crashed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut socket = Self {
            listener: Arc::new(UnixListener::bind(&path)?),
            path,
            thread: None,
        };
        fs::set_permissions(&socket.path, Permissions::from_mode(0o600))?;
        let listener = Arc::clone(&socket.listener);
        let thread = thread::Builder::new().name("uproxy-status".into());
        socket.thread = Some(thread.spawn(move || serve(&listener, &answers))?);
        Ok(socket)
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // It wakes the thread, whose accept(2) fails from now on.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &UnixListener, answers: &Answers) {
    loop {
        match listener.accept() {
            Ok((client, _)) => {
                if let Err(error) = answer(client, answers) {
                    log::debug!("a client of the status socket was not answered: {error}");
                }
            }
            // The socket was shut down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                log::debug!("cannot accept on the status socket: {error}");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn answer(mut client: UnixStream, answers: &Answers) -> io::Result<()> {
    // Another user may have connected before the mode of the socket was set.
    let uid = socket_peercred(&client)?.uid;
    if !uid.is_root() && uid != rustix::process::geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    client.set_write_timeout(Some(WRITE_TIMEOUT))?;
    client.write_all(json_line(&answers.report()).as_bytes())?;
    client.shutdown(Shutdown::Write)
}

/// The process ID of the `serve` with this state file, as this process sees it, and its answer.
///
/// # Errors
/// It does not answer in time, or not with a report.
pub(crate) fn query(state: &Path) -> io::Result<(u32, Report)> {
    let mut socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The timeout for writing also limits connect(2), which waits while the queue is full.
    socket.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.connect(&SockAddr::unix(path(state))?)?;
    let pid = socket_peercred(&socket)?.pid.as_raw_nonzero().get();
    let mut text = Vec::new();
    Read::by_ref(&mut socket)
        .take(ANSWER_LIMIT)
        .read_to_end(&mut text)?;
    Ok((pid.unsigned_abs(), serde_json::from_slice(&text)?))
}

fn path(state: &Path) -> PathBuf {
    state.with_extension("sock")
}
