//! The threads that serve connections. One that has served its connection waits a little for the next, for starting and
//! ending a thread costs more than all else that a short tunnel does; with no one waiting, a new thread is started.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::{Event, Service, Slot};
use crate::control::outcome::{EndReason, Outcome};
use crate::sys::memory;

/// How many wait at most: as many as a package manager opens connections at once, and as many that end meanwhile.
const SPARE_LIMIT: usize = 64;
/// How long one waits before it ends: from one step of an installation to the next, and no burden on a host at rest.
const SPARE_TIME: Duration = Duration::from_secs(2);

/// A connection to be served.
pub(super) struct Job {
    pub(super) connection: TcpStream,
    pub(super) peer: SocketAddr,
    /// Given back when the connection has been served.
    pub(super) slot: Slot,
}

/// The acceptor's side. When it is dropped those who wait end at once.
pub(super) struct Workers<S> {
    service: Arc<S>,
    events: Sender<Event>,
    spare: Arc<Spare>,
    hired: u64,
}

impl<S: Service> Workers<S> {
    pub(super) fn new(service: Arc<S>, events: Sender<Event>) -> Self {
        Self {
            service,
            events,
            spare: Arc::default(),
            hired: 0,
        }
    }

    /// Has the connection served by somebody.
    ///
    /// # Errors
    /// Nobody waits and no thread can be started; the connection comes back, its slot is free again.
    pub(super) fn hand_over(&mut self, job: Job) -> Result<(), (io::Error, TcpStream)> {
        let Some(job) = self.spare.take(job) else {
            return Ok(());
        };
        self.hired += 1;
        let id = self.hired;
        // A thread that does not start must not cost the client its answer: the seat is here too, and the job in it.
        let seat = Arc::new(Seat::default());
        seat.call(Call::Serve(job));
        let worker = Worker {
            service: Arc::clone(&self.service),
            events: self.events.clone(),
            spare: Arc::clone(&self.spare),
            seat: Arc::clone(&seat),
        };
        let spawned = thread::Builder::new()
            .name(format!("{}-{id}", S::THREADS[2]))
            .stack_size(memory::STACK)
            .spawn(move || worker.run(id));
        match spawned {
            Ok(thread) => {
                // The supervisor outlives everybody who reports to it.
                let _ = self.events.send(Event::Hired(id, thread));
                Ok(())
            }
            Err(error) => match seat.wait(Duration::ZERO) {
                Some(Call::Serve(job)) => Err((error, job.connection)),
                _ => Ok(()),
            },
        }
    }
}

impl<S> Drop for Workers<S> {
    fn drop(&mut self) {
        self.spare.close();
    }
}

/// What one who waits is told.
enum Call {
    Serve(Job),
    GoHome,
}

/// Where one worker waits.
#[derive(Default)]
struct Seat {
    call: Mutex<Option<Call>>,
    called: Condvar,
}

impl Seat {
    fn call(&self, call: Call) {
        *lock(&self.call) = Some(call);
        self.called.notify_one();
    }

    fn wait(&self, at_most: Duration) -> Option<Call> {
        let call = lock(&self.call);
        let waited = self
            .called
            .wait_timeout_while(call, at_most, |call| call.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

/// Those who wait. The last to come is called first: its stack is still in the processor's cache, and the others get to end.
#[derive(Default)]
struct Spare(Mutex<Row>);

#[derive(Default)]
struct Row {
    seats: Vec<Arc<Seat>>,
    closed: bool,
}

impl Spare {
    /// Gives the job to one who waits; it comes back if there is none.
    fn take(&self, job: Job) -> Option<Job> {
        let Some(seat) = lock(&self.0).seats.pop() else {
            return Some(job);
        };
        seat.call(Call::Serve(job));
        None
    }

    /// Whether there is room for one more, who from now on may be called.
    fn sit_down(&self, seat: &Arc<Seat>) -> bool {
        let mut row = lock(&self.0);
        let room = !row.closed && row.seats.len() < SPARE_LIMIT;
        if room {
            row.seats.push(Arc::clone(seat));
        }
        room
    }

    /// Whether it had not been called yet, and is not from now on.
    fn stand_up(&self, seat: &Arc<Seat>) -> bool {
        let mut row = lock(&self.0);
        let place = row.seats.iter().position(|other| Arc::ptr_eq(other, seat));
        place.map(|place| row.seats.remove(place)).is_some()
    }

    fn close(&self) {
        let mut row = lock(&self.0);
        row.closed = true;
        for seat in row.seats.drain(..) {
            seat.call(Call::GoHome);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread's side.
struct Worker<S> {
    service: Arc<S>,
    events: Sender<Event>,
    spare: Arc<Spare>,
    seat: Arc<Seat>,
}

impl<S: Service> Worker<S> {
    fn run(self, id: u64) {
        memory::find_stack();
        let mut call = self.seat.wait(Duration::MAX);
        while let Some(Call::Serve(job)) = call {
            let outcome = self.serve(job);
            let _ = self.events.send(Event::Ended(outcome));
            call = self.next();
        }
        let _ = self.events.send(Event::Left(id));
    }

    /// Serves one connection: a panic ends it, and nothing else.
    fn serve(&self, job: Job) -> Outcome {
        let since = Instant::now();
        let Job {
            connection,
            peer,
            slot,
        } = job;
        let served = catch_unwind(AssertUnwindSafe(|| self.service.serve(connection, peer)));
        drop(slot);
        served.unwrap_or_else(|_| Outcome::new(since, None, Err(EndReason::Panicked)))
    }

    /// The next connection, if one comes while this thread may wait.
    fn next(&self) -> Option<Call> {
        if !self.spare.sit_down(&self.seat) {
            return None;
        }
        let call = self.seat.wait(SPARE_TIME);
        if call.is_none() && !self.spare.stand_up(&self.seat) {
            // It was called just now, and the call is on its way.
            return self.seat.wait(Duration::MAX);
        }
        call
    }
}
