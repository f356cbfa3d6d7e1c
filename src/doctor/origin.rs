//! A far end of our own on loopback, for a round trip with no upstream at hand: it sends back what it gets.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::control::deadline::Deadline;
use crate::control::stop::Stop;
use crate::http::authority::{Authority, Host};
use crate::net::wait::wait;

/// How long one write may wait for room.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// An origin; dropping it ends it.
#[derive(Debug)]
pub(super) struct Origin(Hosted);

impl Origin {
    /// One on a free port.
    pub(super) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        Hosted::start(listener, serve).map(Self)
    }

    /// Where it is.
    pub(super) fn authority(&self) -> Authority {
        let address = self.0.local_addr();
        Authority {
            host: Host::Address(address.ip()),
            port: address.port(),
        }
    }
}

/// A listener with a thread of its own that serves it; dropping it ends and joins the thread.
#[derive(Debug)]
pub(crate) struct Hosted {
    address: SocketAddr,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Hosted {
    /// Has `serve` serve `listener` until it is told to stop.
    ///
    /// # Errors
    /// No descriptor for the stop, or no thread.
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

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.stop.request(Deadline::after(Duration::ZERO));
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

/// One connection after the other, as the round trips come.
fn serve(listener: &TcpListener, stop: &Stop) {
    while ready(listener, stop, None) {
        match listener.accept() {
            // What breaks here is seen at the other end of the tunnel.
            Ok((stream, _)) => drop(echo(stream, stop)),
            Err(error) => {
                log::debug!("the origin of the round trip ends: {error}");
                return;
            }
        }
    }
}

fn echo(mut stream: TcpStream, stop: &Stop) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut bytes = [0; 16 << 10];
    while ready(&stream, stop, None) {
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            break;
        }
        stream.write_all(bytes.get(..count).unwrap_or_default())?;
    }
    Ok(())
}

/// Waits until there is something to take, or `until` then; false when it is time to end.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_back_what_it_gets_and_ends_with_a_connection_open() {
        let origin = Origin::start().unwrap();
        let mut stream = TcpStream::connect(origin.0.local_addr()).unwrap();
        stream.write_all(b"there and back").unwrap();
        let mut came = [0; 14];
        stream.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"there and back");
        drop(origin);
        assert!(matches!(stream.read(&mut came), Ok(0) | Err(_)));
    }
}
