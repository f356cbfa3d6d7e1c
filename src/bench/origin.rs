//! The far end of a benchmark: it speaks [`super::wire`] to a bounded number of visitors, each for
//! a bounded time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::pattern::{PIECE, TestPattern};
use super::wire::{GREETING, LINE_LIMIT, LONGEST, Work};
use crate::control::log;
use crate::control::stop::Stop;
use crate::listener;
use crate::probe::origin::{Origin, ready};

/// The maximum number of visitors at once; further connections are closed.
const VISITORS: usize = 256;
/// The pause after an error of accept(2) that does not concern one connection, for example a lack
/// of descriptors.
const BACK_OFF: Duration = Duration::from_millis(10);
/// How long a visitor may send nothing, or read nothing.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The upper bound of a visit: the longest transfer plus the time that a slow path needs to deliver
/// it.
const STAY: Duration = Duration::from_secs(2 * LONGEST.as_secs());

/// Starts a benchmark origin on `listen`. Dropping it closes all visits and joins its threads.
///
/// # Errors
/// The address cannot be bound, or a thread cannot be started.
pub(crate) fn start(listen: SocketAddr) -> io::Result<Origin> {
    Origin::start(listener::bind(listen)?, serve)
}

fn serve(listener: &TcpListener, stop: &Stop) {
    let pattern = Arc::new(TestPattern::new());
    let mut visitors: Vec<Visitor> = Vec::new();
    loop {
        let now = Instant::now();
        visitors.retain(|visitor| !visitor.thread.is_finished());
        let (staying, over): (Vec<_>, Vec<_>) = visitors.iter().partition(|v| v.until > now);
        for visitor in over {
            // Its time is over, whatever its thread is doing.
            let _ = visitor.stream.shutdown(Shutdown::Both);
        }
        let next = staying.iter().map(|visitor| visitor.until).min();
        if !ready(listener, stop, next) {
            break;
        }
        match listener.accept() {
            Ok((stream, _)) if visitors.len() < VISITORS => {
                // If no thread or descriptor is available, the connection is closed.
                visitors.extend(received(stream, &pattern));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                log::debug!(
                    "the benchmark origin cannot accept a connection: {error}; it tries again"
                );
                thread::sleep(BACK_OFF);
            }
        }
    }
    for visitor in visitors {
        let _ = visitor.stream.shutdown(Shutdown::Both);
        let _ = visitor.thread.join();
    }
}

/// One visitor.
struct Visitor {
    stream: TcpStream,
    thread: JoinHandle<()>,
    /// When it will be closed.
    until: Instant,
}

fn received(stream: TcpStream, pattern: &Arc<TestPattern>) -> io::Result<Visitor> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let (ours, pattern) = (stream.try_clone()?, Arc::clone(pattern));
    let thread = visit_thread(move || {
        if let Err(error) = conn(&stream, &pattern) {
            // The load reports the same failure with more detail.
            log::debug!("the benchmark origin closed a connection: {error}");
        }
        // The acceptor's duplicate must not keep the connection open.
        let _ = stream.shutdown(Shutdown::Both);
    })?;
    Ok(Visitor {
        stream: ours,
        thread,
        until: Instant::now() + STAY,
    })
}

fn visit_thread(work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("uproxy-visit".into())
        .spawn(work)
}

fn conn(stream: &TcpStream, pattern: &Arc<TestPattern>) -> io::Result<()> {
    let mut to = stream;
    to.write_all(GREETING)?;
    match asked(stream)? {
        None => {}
        Some(Work::Echo) => echo(stream)?,
        Some(Work::Down(time)) => {
            send(stream, pattern, time)?;
            to.shutdown(Shutdown::Write)?;
            take(stream, pattern)?;
        }
        Some(Work::Up) => {
            let count = take(stream, pattern)?;
            to.write_all(format!("{count}\n").as_bytes())?;
        }
        Some(Work::Both(time)) => {
            let (sending, noise) = (stream.try_clone()?, Arc::clone(pattern));
            let sender = visit_thread(move || {
                // The receiving thread or the load reports a failure.
                let _ = send(&sending, &noise, time);
            })?;
            let taken = take(stream, pattern);
            let _ = sender.join();
            taken?;
        }
    }
    to.shutdown(Shutdown::Write)
}

/// Reads the request line; `None` if the visitor closes without one. Reads single bytes, because
/// the bytes after the line belong to the load.
fn asked(stream: &TcpStream) -> io::Result<Option<Work>> {
    let mut line = String::new();
    BufReader::with_capacity(1, stream)
        .take(LINE_LIMIT as u64)
        .read_line(&mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let work = line.strip_suffix('\n').and_then(|line| line.parse().ok());
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "unknown request");
    work.map(Some).ok_or_else(unknown)
}

fn echo(mut stream: &TcpStream) -> io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            count => stream.write_all(bytes.get(..count).unwrap_or_default())?,
        }
    }
}

/// Sends the pattern for this time. Returns the number of bytes.
pub(super) fn send(mut to: &TcpStream, pattern: &TestPattern, time: Duration) -> io::Result<u64> {
    let until = Instant::now() + time;
    let mut sent = 0;
    while Instant::now() < until {
        to.write_all(pattern.piece(sent))?;
        sent += PIECE as u64;
    }
    Ok(sent)
}

/// Reads and verifies the pattern to its end. Returns the number of bytes.
///
/// # Errors
/// The bytes differ from the pattern.
pub(super) fn take(mut from: &TcpStream, pattern: &TestPattern) -> io::Result<u64> {
    let until = Instant::now() + STAY;
    let mut buffer = vec![0; PIECE];
    let mut taken = 0;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(taken);
        }
        if !pattern.matches(taken, buffer.get(..count).unwrap_or_default()) {
            let what = format!("wrong bytes after {taken} right ones");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        taken += count as u64;
        if Instant::now() >= until {
            let what = "the deadline has passed";
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn visitor(origin: &Origin, line: &str) -> TcpStream {
        let mut stream = TcpStream::connect(origin.local_addr()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut greeting = vec![0; GREETING.len()];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, GREETING);
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }

    fn rest(mut stream: &TcpStream) -> Vec<u8> {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        rest
    }

    fn origin() -> Origin {
        start((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
    }

    #[test]
    fn greets_and_does_what_is_asked() {
        let (origin, pattern) = (origin(), TestPattern::new());
        let mut echo = visitor(&origin, "echo\nthere and back");
        echo.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&echo), b"there and back");
        echo = visitor(&origin, "up\n");
        echo.write_all(&pattern.piece(0)[..1000]).unwrap();
        echo.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&echo), b"1000\n");
        let down = visitor(&origin, "down 20\n");
        assert!(take(&down, &pattern).unwrap() > 0);
        let both = visitor(&origin, "both 20\n");
        let sent = send(&both, &pattern, Duration::from_millis(1)).unwrap();
        both.shutdown(Shutdown::Write).unwrap();
        assert!(take(&both, &pattern).unwrap() > 0 && sent > 0);
    }

    #[test]
    fn closes_a_visit_with_an_unknown_request_or_wrong_bytes() {
        let origin = origin();
        for line in ["GET / HTTP/1.1\r\n\r\n", "down 99999999\n", "up\nnoise"] {
            let stream = visitor(&origin, line);
            let _ = stream.shutdown(Shutdown::Write);
            let mut received = Vec::new();
            let _ = (&stream).read_to_end(&mut received);
            assert!(received.is_empty(), "{line:?}: {received:?}");
        }
    }

    #[test]
    fn ends_with_visitors_in_the_house() {
        let origin = origin();
        let visitors: Vec<_> = (0..3).map(|_| visitor(&origin, "echo\n")).collect();
        drop(origin);
        for mut visitor in visitors {
            assert!(matches!(visitor.read(&mut [0]), Ok(0) | Err(_)));
        }
    }
}
