//! The connections that have shown no token yet, so that at the cap the oldest of them makes room for the next: a crowd of
//! silent strangers must not keep those with a token out for as long as a head may take.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::listener::Eviction;

/// How long a newcomer is left in peace: TLS and the upgrade take three round trips, and one who is on the way to show a
/// token must not be turned out for the sake of one who has not even begun.
const GRACE: Duration = Duration::from_millis(300);

/// Who has shown no token yet, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Unauthenticated(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<u64, (Instant, TcpStream)>,
}

/// One newcomer's place in the list, given up when dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    newcomers: &'a Unauthenticated,
    id: u64,
}

impl Unauthenticated {
    /// Puts a connection that has just come on the list. It holds a second descriptor while it is there, which is no more
    /// than a tunnel has; one for which there is none cannot be turned out before its time.
    pub(crate) fn add(&self, connection: &TcpStream) -> Place<'_> {
        let second = connection.try_clone();
        let mut waiting = self.lock();
        let id = waiting.next;
        waiting.next += 1;
        if let Ok(second) = second {
            waiting.connections.insert(id, (Instant::now(), second));
        }
        Place {
            newcomers: self,
            id,
        }
    }

    /// Turns out the one that came first, if it has had its grace.
    pub(crate) fn turn_out(&self) -> Eviction {
        let mut waiting = self.lock();
        let Some(first) = waiting.connections.first_entry() else {
            return Eviction::None;
        };
        let grace_ends = first.get().0 + GRACE;
        if Instant::now() < grace_ends {
            return Eviction::NotBefore(grace_ends);
        }
        let (_, connection) = first.remove();
        // Its worker reads the end. Where that fails there is no connection any more.
        let _ = connection.shutdown(Shutdown::Both);
        Eviction::Made
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.newcomers.lock().connections.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_first_that_came_is_turned_out_first_and_not_before_its_grace() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let newcomers = Unauthenticated::default();
        assert_eq!(newcomers.turn_out(), Eviction::None);
        let come = || {
            let client = TcpStream::connect(address).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (mut first, second, admitted) = (come(), come(), come());
        let admitted_place = newcomers.add(&admitted.1);
        let _places = [newcomers.add(&first.1), newcomers.add(&second.1)];
        drop(admitted_place);
        loop {
            match newcomers.turn_out() {
                Eviction::NotBefore(time) => {
                    std::thread::sleep(time.saturating_duration_since(Instant::now()));
                }
                room => break assert_eq!(room, Eviction::Made),
            }
        }
        assert_eq!(first.0.read(&mut [0]).unwrap(), 0);
        assert_eq!(newcomers.lock().connections.len(), 1);
        second.0.set_nonblocking(true).unwrap();
        assert!((&second.0).read(&mut [0]).is_err(), "still connected");
    }
}
