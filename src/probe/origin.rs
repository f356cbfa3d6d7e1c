//! A listener with a thread of its own, and a wait that a stop interrupts: for built-in origins.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::control::deadline::Deadline;
use crate::control::stop::Stop;
use crate::http::authority::{Authority, Host};
use crate::net::wait::wait;

/// A listener that one thread serves. Dropping it stops and joins the thread.
#[derive(Debug)]
pub(crate) struct Origin {
    address: SocketAddr,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    /// Starts a thread that runs `serve` on `listener` until a stop is requested.
    ///
    /// # Errors
    /// No descriptor for the stop signal, or no thread.
    pub(crate) fn start(
        listener: TcpListener,
        serve: impl FnOnce(&TcpListener, &Stop) + Send + 'static,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let stop = Arc::new(Stop::new()?);
        let until = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("uproxy-origin".into())
            .spawn(move || serve(&listener, &until))?;
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// The address that it listens on.
    #[cfg(any(feature = "bench", test))]
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its address, as the target of a CONNECT request.
    pub(crate) fn authority(&self) -> Authority {
        Authority {
            host: Host::Address(self.address.ip()),
            port: self.address.port(),
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.request(Deadline::after(Duration::ZERO));
        if let Some(thread) = self.thread.take() {
            // A panic was already printed on standard error.
            let _ = thread.join();
        }
    }
}

/// Waits until `socket` is readable or `until` has come. Returns false if a stop was requested.
pub(crate) fn ready(socket: &impl AsFd, stop: &Stop, until: Option<Instant>) -> bool {
    loop {
        let mut fds = [
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        if wait(&mut fds, until).is_err() || stop.requested().is_some() {
            return false;
        }
        let [ours, _] = fds.map(|fd| fd.revents());
        if !ours.is_empty() || until.is_some_and(|until| until <= Instant::now()) {
            return true;
        }
    }
}
