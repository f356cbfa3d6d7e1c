//! A TCP forwarder to one address that delays each direction. The benchmark in `benches/tunnel`
//! includes this file by path, so that tests and measurements use the same code.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

/// How many bytes are read at a time.
const CHUNK: usize = 64 << 10;
/// How many chunks may be in flight in one direction. It is the window of the simulated link and
/// bounds the memory.
const WINDOW: usize = 8;

/// The client's side of a forwarded connection, and a flag: if set, the connection is closed at the
/// client's next byte.
pub(crate) type Forwarded = (TcpStream, Arc<AtomicBool>);

/// Starts a forwarder to `far` that delays each direction by `one_way`. It calls `on_connection`
/// for each connection. Returns the address it listens on.
pub(crate) fn start_delay_forwarder(
    far: SocketAddr,
    one_way: Duration,
    mut on_connection: impl FnMut(Forwarded) + Send + 'static,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            // On an error both sockets are dropped, which closes the client's connection.
            let _ = accept(near, far, one_way, &mut on_connection);
        }
    });
    Ok(address)
}

fn accept(
    near: TcpStream,
    far: SocketAddr,
    one_way: Duration,
    on_connection: &mut impl FnMut(Forwarded),
) -> io::Result<()> {
    let far = TcpStream::connect(far)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    let cut = Arc::new(AtomicBool::new(false));
    on_connection((near.try_clone()?, Arc::clone(&cut)));
    // The TCP handshake with the client completes here, immediately. On a real link it would take
    // one round trip, so bytes from the client count as received one round trip from now at the
    // earliest.
    let now = Instant::now();
    let established = now + 2 * one_way;
    forward(
        near.try_clone()?,
        far.try_clone()?,
        one_way,
        established,
        cut,
    )?;
    forward(far, near, one_way, now, Arc::default())
}

/// Forwards one direction with the delay, including the end of the stream. No bytes count as
/// received before `established`.
fn forward(
    mut from: TcpStream,
    to: TcpStream,
    one_way: Duration,
    established: Instant,
    cut: Arc<AtomicBool>,
) -> io::Result<()> {
    let (queue, waiting) = sync_channel::<(Instant, Vec<u8>)>(WINDOW);
    let mut out = to.try_clone()?;
    thread::spawn(move || {
        for (due, bytes) in waiting {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if out.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ = out.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if cut.load(Ordering::SeqCst) {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
            let due = Instant::now().max(established) + one_way;
            let _ = queue.send((due, buffer[..read].to_vec()));
        }
    });
    Ok(())
}
