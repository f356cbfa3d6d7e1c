//! The threads that serve connections. A worker that has served its connection waits a short time
//! for the next one, because starting and ending a thread costs more than the rest of a short
//! tunnel. If no worker is idle, a new thread is started.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::service::Service;
use super::slot::Slot;
use super::supervisor::WorkerEvent;
use crate::control::outcome::{EndReason, Outcome};
use crate::sys::memory;

/// The most idle workers: a package manager opens this many connections at once.
const IDLE_LIMIT: usize = 64;
/// How long a worker waits before it ends: long enough for the next step of an installation, short
/// enough to use no memory on an idle host.
const IDLE_TIME: Duration = Duration::from_secs(2);

/// A connection with its slot.
pub(super) struct Accepted {
    pub(super) connection: TcpStream,
    pub(super) peer: SocketAddr,
    /// Freed when the connection has been served.
    pub(super) slot: Slot,
}

/// The acceptor's side of the workers. Dropping it ends idle workers at once.
pub(super) struct WorkerPool<S> {
    service: Arc<S>,
    events: Sender<WorkerEvent>,
    idle: Arc<IdleWorkers>,
    started: u64,
}

impl<S: Service> WorkerPool<S> {
    pub(super) fn new(service: Arc<S>, events: Sender<WorkerEvent>) -> Self {
        Self {
            service,
            events,
            idle: Arc::default(),
            started: 0,
        }
    }

    /// Passes the connection to an idle worker or a new one.
    ///
    /// # Errors
    /// No worker is idle and no thread can be started. Returns the connection; its slot is free
    /// again.
    pub(super) fn serve(&mut self, accepted: Accepted) -> Result<(), (io::Error, TcpStream)> {
        let Some(accepted) = self.idle.pass(accepted) else {
            return Ok(());
        };
        self.started += 1;
        let id = self.started;
        // If the thread does not start, the connection is taken out of the mailbox again.
        let mailbox = Arc::new(Mailbox::default());
        mailbox.put(Message::Serve(accepted));
        let worker = Worker {
            service: Arc::clone(&self.service),
            events: self.events.clone(),
            idle: Arc::clone(&self.idle),
            mailbox: Arc::clone(&mailbox),
        };
        let spawned = thread::Builder::new()
            .name(format!("{}-{id}", S::THREADS[2]))
            .stack_size(memory::STACK)
            .spawn(move || worker.run(id));
        match spawned {
            Ok(thread) => {
                // The supervisor outlives all senders.
                let _ = self.events.send(WorkerEvent::Started(id, thread));
                Ok(())
            }
            Err(error) => match mailbox.wait(Duration::ZERO) {
                Some(Message::Serve(accepted)) => Err((error, accepted.connection)),
                _ => Ok(()),
            },
        }
    }
}

impl<S> Drop for WorkerPool<S> {
    fn drop(&mut self) {
        self.idle.close();
    }
}

/// What an idle worker receives.
enum Message {
    Serve(Accepted),
    Exit,
}

/// Where one worker waits for its next message.
#[derive(Default)]
struct Mailbox {
    message: Mutex<Option<Message>>,
    filled: Condvar,
}

impl Mailbox {
    fn put(&self, message: Message) {
        *lock(&self.message) = Some(message);
        self.filled.notify_one();
    }

    fn wait(&self, at_most: Duration) -> Option<Message> {
        let message = lock(&self.message);
        let waited = self
            .filled
            .wait_timeout_while(message, at_most, |message| message.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

/// The mailboxes of idle workers. The last one to become idle is used first: its stack is still in
/// the processor's cache, and the others reach their idle time and end.
#[derive(Default)]
struct IdleWorkers(Mutex<IdleList>);

#[derive(Default)]
struct IdleList {
    mailboxes: Vec<Arc<Mailbox>>,
    closed: bool,
}

impl IdleWorkers {
    /// Passes the connection to an idle worker. Returns it if there is none.
    fn pass(&self, accepted: Accepted) -> Option<Accepted> {
        let Some(mailbox) = lock(&self.0).mailboxes.pop() else {
            return Some(accepted);
        };
        mailbox.put(Message::Serve(accepted));
        None
    }

    /// Adds an idle worker. `false`: it must end, because there are enough.
    fn add(&self, mailbox: &Arc<Mailbox>) -> bool {
        let mut list = lock(&self.0);
        let accepted = !list.closed && list.mailboxes.len() < IDLE_LIMIT;
        if accepted {
            list.mailboxes.push(Arc::clone(mailbox));
        }
        accepted
    }

    /// Removes an idle worker. `false`: a message is already on its way to it.
    fn remove(&self, mailbox: &Arc<Mailbox>) -> bool {
        let mailboxes = &mut lock(&self.0).mailboxes;
        let index = mailboxes
            .iter()
            .position(|other| Arc::ptr_eq(other, mailbox));
        index.map(|index| mailboxes.remove(index)).is_some()
    }

    fn close(&self) {
        let mut list = lock(&self.0);
        list.closed = true;
        for mailbox in list.mailboxes.drain(..) {
            mailbox.put(Message::Exit);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread's side.
struct Worker<S> {
    service: Arc<S>,
    events: Sender<WorkerEvent>,
    idle: Arc<IdleWorkers>,
    mailbox: Arc<Mailbox>,
}

impl<S: Service> Worker<S> {
    fn run(self, id: u64) {
        memory::find_stack();
        let mut message = self.mailbox.wait(Duration::MAX);
        while let Some(Message::Serve(accepted)) = message {
            let outcome = self.serve(accepted);
            let _ = self.events.send(WorkerEvent::Served(outcome));
            message = self.next();
        }
        let _ = self.events.send(WorkerEvent::Exiting(id));
    }

    /// Serves one connection. A panic ends that connection only.
    fn serve(&self, accepted: Accepted) -> Outcome {
        let since = Instant::now();
        let Accepted {
            connection,
            peer,
            slot,
        } = accepted;
        let served = catch_unwind(AssertUnwindSafe(|| self.service.serve(connection, peer)));
        drop(slot);
        served.unwrap_or_else(|_| Outcome::new(since, None, Err(EndReason::Panicked)))
    }

    /// Waits for the next connection. `None`: the worker has been idle for too long.
    fn next(&self) -> Option<Message> {
        if !self.idle.add(&self.mailbox) {
            return None;
        }
        let message = self.mailbox.wait(IDLE_TIME);
        if message.is_none() && !self.idle.remove(&self.mailbox) {
            return self.mailbox.wait(Duration::MAX);
        }
        message
    }
}
