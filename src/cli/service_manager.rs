//! What a service manager such as systemd expects of `serve` and `gateway`: notifications
//! (`sd_notify(3)`), a status, and signs of life for its watchdog.
//!
//! Not the crate `sd-notify`: it knows no abstract socket names, and it waits without a limit for
//! a service manager that does not read.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, tick};
use rustix::time::{ClockId, clock_gettime};

use crate::config::Environment;
use crate::control::metrics::StatsReader;
use crate::listener::Liveness;

/// How long a notification may wait for the service manager.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the status is sent if it has changed, without a watchdog.
const STATUS_INTERVAL: Duration = Duration::from_secs(30);
/// How long a shutdown may take after the drain: closing handshakes, and threads on a busy machine.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// The relay or gateway that runs.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) stats: StatsReader,
    pub(crate) liveness: Liveness,
}

/// The service manager that has started this process, or none.
#[derive(Default)]
pub(crate) struct ServiceManager {
    /// `NOTIFY_SOCKET`.
    socket: Option<Vec<u8>>,
    /// Half of the time within which it expects a sign of life.
    watchdog: Option<Duration>,
    service: Option<Service>,
    is_stopping: bool,
    /// The status that was sent last.
    status: String,
    /// The last notification failed, which was logged.
    has_failed: bool,
}

impl ServiceManager {
    /// The service manager that the variables name.
    pub(crate) fn of(environment: &Environment) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let number = |name| environment.text(name).and_then(|text| text.parse().ok());
        let is_for_us = environment.lookup("WATCHDOG_PID").is_none()
            || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&time| is_for_us && time > 0);
        let socket = environment.lookup("NOTIFY_SOCKET");
        Self {
            socket: socket.map(|name| name.as_bytes().to_vec()),
            watchdog: watchdog.map(|time| Duration::from_micros(time) / 2),
            ..Self::default()
        }
    }

    /// When [`tick`](Self::tick) is due.
    pub(crate) fn ticks(&self) -> Receiver<Instant> {
        match (&self.socket, self.watchdog) {
            (None, _) => never(),
            (Some(_), Some(half)) => tick(half.min(STATUS_INTERVAL)),
            (Some(_), None) => tick(STATUS_INTERVAL),
        }
    }

    /// Set-up is complete, and `service` serves.
    pub(crate) fn ready(&mut self, service: Service) {
        if self.watchdog.is_some() {
            service.liveness.check();
        }
        self.service = Some(service);
        self.send_with_status("READY=1\n");
    }

    /// Set-up is complete, and nothing serves. A service manager that waits for readiness must not
    /// wait forever.
    pub(crate) fn disabled(&mut self, reason: &str) {
        self.send(&format!("READY=1\nSTATUS=Disabled {reason}\n"));
    }

    /// Does `work`, during which the service is reloading.
    pub(crate) fn reload(&mut self, work: impl FnOnce()) {
        let now = clock_gettime(ClockId::Monotonic);
        let now = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now}\n"));
        work();
        self.send_with_status("READY=1\n");
    }

    /// The service drains for up to `drain`.
    pub(crate) fn stopping(&mut self, drain: Duration) {
        self.is_stopping = true;
        let time = drain.saturating_add(STOP_MARGIN).as_micros();
        self.send_with_status(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={time}\n"));
    }

    /// Sends a sign of life if the threads that accept connections have answered, and the status if
    /// it has changed.
    pub(crate) fn tick(&mut self) {
        // A drain ends by itself, and its threads no longer answer.
        let lives = self.is_stopping
            || self
                .service
                .as_ref()
                .is_none_or(|service| service.liveness.check());
        if self.watchdog.is_some() && !lives {
            log::error!(
                "the threads that accept connections do not answer: the service manager is not \
                 notified and may restart this service; report it with the log before"
            );
        }
        let sign = if self.watchdog.is_some() && lives {
            "WATCHDOG=1\n"
        } else {
            ""
        };
        if !sign.is_empty() || self.current_status() != self.status {
            self.send_with_status(sign);
        }
    }

    fn current_status(&self) -> String {
        let Some(service) = &self.service else {
            return String::new();
        };
        let (address, live) = (service.address, service.stats.read().live);
        let s = if live == 1 { "" } else { "s" };
        if self.is_stopping {
            format!("Draining, {live} connection{s} open")
        } else {
            format!("Listening on {address}, {live} connection{s} open")
        }
    }

    fn send_with_status(&mut self, state: &str) {
        let status = self.current_status();
        self.send(&format!("{state}STATUS={status}\n"));
        self.status = status;
    }

    fn send(&mut self, message: &str) {
        let Some(socket) = &self.socket else { return };
        let result = send(socket, message);
        if let Err(error) = &result
            && !self.has_failed
        {
            log::warn!("cannot notify the service manager: {error}; check NOTIFY_SOCKET");
        }
        self.has_failed = result.is_err();
    }
}

/// Sends one datagram to the socket with this name.
fn send(name: &[u8], message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    socket.send_to_addr(message.as_bytes(), &address(name)?)?;
    Ok(())
}

fn address(name: &[u8]) -> io::Result<UnixAddress> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    match name {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            UnixAddress::from_abstract_name(name)
        }
        [b'/', ..] => UnixAddress::from_pathname(OsStr::from_bytes(name)),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "it is neither an absolute path nor an abstract name",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(variables: &[(&str, &str)]) -> ServiceManager {
        ServiceManager::of(&variables.iter().copied().collect())
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_answered() {
        let own = std::process::id().to_string();
        let second = ("WATCHDOG_USEC", "1000000");
        let half = Some(Duration::from_millis(500));
        assert_eq!(manager(&[second]).watchdog, half);
        assert_eq!(manager(&[second, ("WATCHDOG_PID", &own)]).watchdog, half);
        for other in ["1", "x"] {
            assert_eq!(manager(&[second, ("WATCHDOG_PID", other)]).watchdog, None);
        }
        for time in ["0", "-1", "soon", ""] {
            assert_eq!(manager(&[("WATCHDOG_USEC", time)]).watchdog, None);
        }
    }

    #[test]
    fn a_socket_name_is_a_path_or_abstract() {
        let path = address(b"/run/x").unwrap();
        assert_eq!(path.as_pathname(), Some(std::path::Path::new("/run/x")));
        assert!(address(b"@a/b").unwrap().as_pathname().is_none());
        for name in [&b"run/x"[..], b"", b"vsock:2:1234"] {
            assert!(address(name).is_err());
        }
    }
}
