//! Loads of many connections at once: set-up, echo, bulk. Every thread has a name and is joined. A
//! load ends after its time plus the time that the path needs to deliver.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::{LoadConn, Route, TIMEOUT};
use super::pattern::TestPattern;
use super::wire::Work;
use crate::config::Cancel;
use crate::probe::problem::Problem;

/// The minimum and maximum number of samples.
const SAMPLES: (usize, usize) = (5, 5000);

/// A direction of transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bulk {
    Down,
    Up,
    Both,
}

/// The parameters that all loads share.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) route: Route,
    /// The duration of each measurement.
    pub(super) time: Duration,
    /// The far end is a benchmark origin.
    pub(super) speaks: bool,
    /// The path supports half-close.
    pub(super) half_close: bool,
    pub(super) pattern: Arc<TestPattern>,
    pub(super) cancel: Cancel,
}

impl Load {
    /// Opens and closes connections for the load's time, `at_once` at a time. Measures from the
    /// request to the far end's first byte, or to the relay's response if the far end need not send
    /// one. `ready` is called before each.
    pub(super) fn set_ups(
        self: &Arc<Self>,
        at_once: usize,
        ready: impl Fn() + Clone + Send + 'static,
    ) -> Result<Vec<Duration>, Problem> {
        let until = Instant::now() + self.time;
        let latencies = crew(at_once, || {
            let (load, ready) = (Arc::clone(self), ready.clone());
            move || {
                let mut latencies = Vec::new();
                let fewest = SAMPLES.0.div_ceil(at_once);
                while latencies.len() < SAMPLES.1
                    && (latencies.len() < fewest || Instant::now() < until)
                    && !load.cancel.is_requested()
                {
                    ready();
                    let since = Instant::now();
                    let conn = load.conn()?;
                    latencies.push(since.elapsed());
                    load.close(conn);
                }
                Ok(latencies)
            }
        })?;
        Ok(latencies.into_iter().flatten().collect())
    }

    /// Opens connections that carry one byte and then stay idle. Dropping them closes them.
    pub(super) fn idle(self: &Arc<Self>, count: usize) -> Result<Vec<LoadConn>, Problem> {
        crew(count, || {
            let load = Arc::clone(self);
            move || {
                let mut conn = load.conn()?;
                if load.speaks {
                    conn.request(Work::Echo)?;
                    conn.round_trip(1)?;
                }
                Ok(conn)
            }
        })
    }

    /// Single-byte round trips over one connection, one after the other, for the load's time.
    pub(super) fn echoes(&self) -> Result<Vec<Duration>, Problem> {
        let mut conn = self.conn()?;
        conn.request(Work::Echo)?;
        let until = Instant::now() + self.time;
        let mut latencies = Vec::new();
        while latencies.len() < SAMPLES.1
            && (latencies.len() < SAMPLES.0 || Instant::now() < until)
            && !self.cancel.is_requested()
        {
            latencies.push(conn.round_trip(latencies.len() as u8)?);
        }
        self.close(conn);
        Ok(latencies)
    }

    /// The number of bytes that arrived over these connections, and the seconds from the first
    /// request to the last byte.
    pub(super) fn bulk(
        self: &Arc<Self>,
        bulk: Bulk,
        streams: usize,
    ) -> Result<(u64, Duration), Problem> {
        let conns = crew(streams, || {
            let load = Arc::clone(self);
            move || load.conn()
        })?;
        let (time, since) = (self.time, Instant::now());
        let mut halves = Vec::new();
        for mut conn in conns {
            conn.request(match bulk {
                Bulk::Down => Work::Down(time),
                Bulk::Up => Work::Up,
                Bulk::Both => Work::Both(time),
            })?;
            let conn = Arc::new(conn);
            if bulk != Bulk::Down {
                halves.push((Arc::clone(&conn), true));
            }
            if bulk != Bulk::Up {
                halves.push((conn, false));
            }
        }
        let mut halves = halves.into_iter();
        let moved = crew(halves.len(), || {
            let (load, half) = (Arc::clone(self), halves.next());
            move || match half {
                Some((conn, true)) => {
                    let sent = conn.send(&load.pattern, time)?;
                    if bulk == Bulk::Up {
                        conn.confirmed(sent)?;
                    }
                    Ok(sent)
                }
                Some((conn, false)) => {
                    let received = conn.receive(&load.pattern)?;
                    if let (Bulk::Down, Some(conn)) = (bulk, Arc::into_inner(conn)) {
                        load.close(conn);
                    }
                    Ok(received)
                }
                None => Ok(0),
            }
        })?;
        Ok((moved.into_iter().sum(), since.elapsed()))
    }

    /// Without half-close the relay would keep the tunnel open for seconds after our end, so the
    /// connection is reset instead.
    pub(super) fn close(&self, conn: LoadConn) {
        if self.half_close {
            conn.close();
        } else {
            conn.reset();
        }
    }

    fn conn(&self) -> Result<LoadConn, Problem> {
        let mut conn = self.route.open()?;
        if self.speaks {
            conn.greeted(TIMEOUT)?;
        }
        Ok(conn)
    }
}

/// Runs these jobs at the same time, each on its own thread. Returns their results, or the first
/// problem.
fn crew<T: Send + 'static, F>(count: usize, mut work: impl FnMut() -> F) -> Result<Vec<T>, Problem>
where
    F: FnOnce() -> Result<T, Problem> + Send + 'static,
{
    let threads: Vec<_> = (0..count)
        .map(|_| {
            thread::Builder::new()
                .name("uproxy-load".into())
                .spawn(work())
        })
        .collect();
    // All threads are joined before the first problem is returned.
    let done: Vec<Result<T, Problem>> = threads
        .into_iter()
        .map(|thread| match thread.map(JoinHandle::join) {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(Problem::new(
                "a thread of the load panicked",
                "report it with its message",
            )),
            Err(error) => Err(Problem::new(
                format!("cannot start a thread for the load: {error}"),
                "raise the limit on processes, or reduce --streams",
            )),
        })
        .collect();
    done.into_iter().collect()
}
