//! A line that takes its time: a forwarder to one address which delays each direction. The benchmark of `benches/tunnel` has
//! the same one, by path, so that what is tested and what is measured is one line.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

/// What one direction of a connection takes at a time.
const PIECE: usize = 64 << 10;
/// How many pieces are on the way in one direction at most: the line's window, so that nothing queues without a bound.
const WINDOW: usize = 8;

/// A connection's near end, and whether it is to be cut at the next byte from it.
pub(crate) type Carried = (TcpStream, Arc<AtomicBool>);

/// A line to `far` that takes `one_way` for each direction, and tells `seen` of every connection. Returns its near end.
pub(crate) fn delay_line(
    far: SocketAddr,
    one_way: Duration,
    mut seen: impl FnMut(Carried) + Send + 'static,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            // What cannot be carried is dropped, and its near end learns it so.
            let _ = accept(near, far, one_way, &mut seen);
        }
    });
    Ok(address)
}

fn accept(
    near: TcpStream,
    far: SocketAddr,
    one_way: Duration,
    seen: &mut impl FnMut(Carried),
) -> io::Result<()> {
    let far = TcpStream::connect(far)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    let cut = Arc::new(AtomicBool::new(false));
    seen((near.try_clone()?, Arc::clone(&cut)));
    // TCP's own handshake ends here, at the near end, at once. So what comes from there counts as sent one round trip later
    // at the earliest: there and back is what the handshake takes on a line that is long.
    let now = Instant::now();
    let stands = now + 2 * one_way;
    carry(near.try_clone()?, far.try_clone()?, one_way, stands, cut)?;
    carry(far, near, one_way, now, Arc::default())
}

/// One direction: what is read goes out after the delay, its end too; nothing counts as read before `stands`.
fn carry(
    mut from: TcpStream,
    to: TcpStream,
    one_way: Duration,
    stands: Instant,
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
        let mut buffer = vec![0; PIECE];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if cut.load(Ordering::SeqCst) {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
            let due = Instant::now().max(stands) + one_way;
            let _ = queue.send((due, buffer[..read].to_vec()));
        }
    });
    Ok(())
}
