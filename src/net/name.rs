//! One name and what is known about it: for each address family a lookup that runs, or its answer.
//!
//! Each family is looked up once at a time, whatever the number of callers that wait (single
//! flight). A caller uses what arrives: IPv6 addresses at once, IPv4 addresses after a short wait
//! for the IPv6 addresses ([RFC 8305, section 3]).
//!
//! [RFC 8305, section 3]: https://www.rfc-editor.org/rfc/rfc8305#section-3

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::lookup_error::{LookupError, LookupFailure};

/// How long addresses are used after they were looked up. getaddrinfo(3) does not report the time
/// to live of the record, and few records have a shorter one.
const POSITIVE_LIFETIME: Duration = Duration::from_secs(30);
/// How long a failure is used: long enough for a burst of connections, short enough for a name that
/// has just been created.
const NEGATIVE_LIFETIME: Duration = Duration::from_secs(2);
/// How long IPv4 addresses wait for IPv6 addresses: the Resolution Delay of RFC 8305, section 3.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Family {
    /// IPv6, for which DNS has AAAA records.
    V6,
    /// IPv4, for which DNS has A records.
    V4,
}

/// The addresses of one family, or why there are none.
pub(super) type Found = Result<Vec<SocketAddr>, LookupFailure>;

/// A name that is looked up.
pub(super) struct Name {
    /// The name as getaddrinfo(3) gets it: with a final dot if no search list may apply.
    query: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    v6: Lookup,
    v4: Lookup,
    /// How many callers need the answers. A lookup that none needs is not started.
    waiters: usize,
}

#[derive(Default)]
struct Lookup {
    progress: Progress,
    /// The last answer; `None` before the first one, and while a lookup is on its way.
    answer: Option<Answer>,
    /// A caller has gone on without this lookup. Later callers do not wait for it either.
    overdue: bool,
}

#[derive(Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Idle,
    /// In the queue of each of these owners.
    Queued(Vec<u64>),
    Running,
}

struct Answer {
    at: Instant,
    result: Found,
}

impl Answer {
    fn addresses(&self) -> &[SocketAddr] {
        self.result.as_deref().unwrap_or_default()
    }

    /// Whether the answer still counts. That a name has no address of this family, but addresses of
    /// the other one, counts as long as an address.
    fn is_fresh(&self, other: &Lookup, now: Instant) -> bool {
        let counts_as_positive = match &self.result {
            // This machine's own condition (no descriptors, no threads) may end at any moment.
            Err(LookupFailure::System(_)) => return false,
            Ok(addresses) => !addresses.is_empty() || other.has_addresses(),
            Err(LookupFailure::NoAddress(_)) => other.has_addresses(),
            Err(LookupFailure::Servers(_)) => false,
        };
        let lifetime = if counts_as_positive {
            POSITIVE_LIFETIME
        } else {
            NEGATIVE_LIFETIME
        };
        now.saturating_duration_since(self.at) < lifetime
    }
}

impl Lookup {
    fn has_addresses(&self) -> bool {
        self.answer
            .as_ref()
            .is_some_and(|answer| !answer.addresses().is_empty())
    }

    /// The lookup has not ended.
    fn is_pending(&self) -> bool {
        self.progress != Progress::Idle
    }
}

impl State {
    fn lookup(&mut self, family: Family) -> &mut Lookup {
        match family {
            Family::V6 => &mut self.v6,
            Family::V4 => &mut self.v4,
        }
    }

    fn is_fresh(&self, family: Family, now: Instant) -> bool {
        let (this, other) = match family {
            Family::V6 => (&self.v6, &self.v4),
            Family::V4 => (&self.v4, &self.v6),
        };
        let answer = this.answer.as_ref();
        answer.is_some_and(|answer| answer.is_fresh(other, now))
    }

    fn known(&self) -> Known {
        let addresses = |lookup: &Lookup| match &lookup.answer {
            Some(answer) => answer.addresses().to_vec(),
            None => Vec::new(),
        };
        Known {
            v6: addresses(&self.v6),
            v4: addresses(&self.v4),
            complete: !self.v6.is_pending() && !self.v4.is_pending(),
        }
    }

    /// When a caller with IPv4 addresses only goes on without the IPv6 addresses. `None`: there is
    /// nothing to go on with.
    fn enough_at(&self, now: Instant) -> Option<Instant> {
        if self.v6.has_addresses() {
            return Some(now);
        }
        let v4 = self.v4.answer.as_ref()?;
        if v4.addresses().is_empty() {
            return None;
        }
        if !self.v6.is_pending() || self.v6.overdue {
            return Some(now);
        }
        Some(v4.at + RESOLUTION_DELAY)
    }

    /// The error for a name that has no address of either family. An error of the operating system
    /// concerns the caller more than what DNS reports.
    fn failure(&self, name: &str) -> LookupError {
        let mut why = None;
        for lookup in [&self.v4, &self.v6] {
            match lookup.answer.as_ref().map(|answer| &answer.result) {
                Some(Err(LookupFailure::System(errno))) => {
                    return LookupError::System(io::Error::from_raw_os_error(*errno));
                }
                Some(Err(LookupFailure::NoAddress(text) | LookupFailure::Servers(text))) => {
                    why.get_or_insert(text);
                }
                Some(Ok(_)) | None => {}
            }
        }
        LookupError::NotFound {
            name: name.to_owned(),
            why: why.map_or("no address", |text| text).to_owned(),
        }
    }
}

/// The addresses of a name that are known now, per family.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) v6: Vec<SocketAddr>,
    pub(super) v4: Vec<SocketAddr>,
    /// Neither family is being looked up.
    pub(super) complete: bool,
}

/// What a caller that waits for a name does next.
pub(super) enum Step {
    /// Use these addresses.
    Use(Known),
    /// The name has no address.
    Fail(LookupError),
    /// Wait again: there are no answers yet.
    Wait,
}

impl Name {
    pub(super) fn new(query: String) -> Arc<Self> {
        Arc::new(Self {
            query,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// The name as getaddrinfo(3) gets it.
    pub(super) fn query(&self) -> &str {
        &self.query
    }

    /// Marks the families that have to be looked up as queued for `owner` and returns them. The
    /// caller puts them into the queue.
    pub(super) fn queue(&self, owner: u64, now: Instant) -> Vec<Family> {
        let mut state = self.lock();
        let mut queued = Vec::new();
        for family in [Family::V6, Family::V4] {
            let fresh = state.is_fresh(family, now);
            let lookup = state.lookup(family);
            match &mut lookup.progress {
                Progress::Running => continue,
                Progress::Queued(owners) if owners.contains(&owner) => continue,
                // In the queue of another owner it may have to wait for that owner's lookups.
                Progress::Queued(owners) => owners.push(owner),
                Progress::Idle if fresh => continue,
                Progress::Idle => {
                    lookup.progress = Progress::Queued(vec![owner]);
                    lookup.answer = None;
                    lookup.overdue = false;
                }
            }
            queued.push(family);
        }
        queued
    }

    /// Whether a queued lookup must run. If so, the caller runs it and reports the result with
    /// [`Self::finish`].
    pub(super) fn begin(&self, family: Family) -> bool {
        let mut state = self.lock();
        let wanted = state.waiters > 0;
        let lookup = state.lookup(family);
        if !matches!(lookup.progress, Progress::Queued(_)) {
            return false;
        }
        lookup.progress = if wanted {
            Progress::Running
        } else {
            Progress::Idle
        };
        wanted
    }

    /// Whether a queued lookup must stay in the queue. If no caller needs it, it no longer counts
    /// as queued.
    pub(super) fn keep_queued(&self, family: Family) -> bool {
        let mut state = self.lock();
        let wanted = state.waiters > 0;
        let lookup = state.lookup(family);
        if !wanted && matches!(lookup.progress, Progress::Queued(_)) {
            lookup.progress = Progress::Idle;
        }
        wanted
    }

    /// Records the answer, and wakes the callers that wait.
    pub(super) fn finish(&self, family: Family, result: Found) {
        let mut state = self.lock();
        *state.lookup(family) = Lookup {
            progress: Progress::Idle,
            answer: Some(Answer {
                at: Instant::now(),
                result,
            }),
            overdue: false,
        };
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for answers, at most until `until`. `name` is for the error.
    pub(super) fn wait(&self, name: &str, until: Instant) -> Step {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let enough_at = state.enough_at(now);
            if enough_at.is_some_and(|at| at <= now) {
                if state.v6.is_pending() {
                    state.v6.overdue = true;
                }
                return Step::Use(state.known());
            }
            if enough_at.is_none() && state.known().complete {
                return Step::Fail(state.failure(name));
            }
            let until = enough_at.map_or(until, |at| at.min(until));
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                return Step::Wait;
            }
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What is known now.
    pub(super) fn known(&self) -> Known {
        self.lock().known()
    }

    /// No code panics while it holds the lock, so a poisoned state is still consistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller that needs the answers of a name. Without one, queued lookups of the name do not start.
pub(super) struct Waiter(Arc<Name>);

impl Waiter {
    pub(super) fn new(name: Arc<Name>) -> Self {
        name.lock().waiters += 1;
        Self(name)
    }

    pub(super) fn name(&self) -> &Arc<Name> {
        &self.0
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.lock().waiters -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(at: Instant, result: Found) -> Lookup {
        Lookup {
            answer: Some(Answer { at, result }),
            ..Lookup::default()
        }
    }

    fn address() -> Vec<SocketAddr> {
        vec!["192.0.2.1:0".parse().unwrap()]
    }

    #[test]
    fn addresses_count_for_thirty_seconds_and_failures_for_two() {
        let at = Instant::now();
        let not_found = || Err(LookupFailure::NoAddress(String::new()));
        let failure = || Err(LookupFailure::Servers("SERVFAIL".to_owned()));
        for (v6, v4, lifetimes) in [
            (Ok(address()), Ok(address()), [30, 30]),
            // That there is no IPv6 address is as certain as the IPv4 address.
            (not_found(), Ok(address()), [30, 30]),
            (Ok(Vec::new()), Ok(address()), [30, 30]),
            (failure(), Ok(address()), [2, 30]),
            (not_found(), not_found(), [2, 2]),
            (Err(LookupFailure::System(24)), failure(), [0, 2]),
        ] {
            let state = State {
                v6: answered(at, v6),
                v4: answered(at, v4),
                waiters: 0,
            };
            for (family, lifetime) in [Family::V6, Family::V4].into_iter().zip(lifetimes) {
                let lifetime = Duration::from_secs(lifetime);
                let just_before = at + lifetime.saturating_sub(Duration::from_millis(1));
                assert_eq!(state.is_fresh(family, just_before), !lifetime.is_zero());
                assert!(!state.is_fresh(family, at + lifetime));
            }
        }
    }

    #[test]
    fn ipv4_addresses_wait_for_ipv6_addresses_for_the_resolution_delay() {
        let at = Instant::now();
        let mut state = State {
            v4: answered(at, Ok(address())),
            ..State::default()
        };
        state.v6.progress = Progress::Running;
        assert_eq!(state.enough_at(at), Some(at + RESOLUTION_DELAY));
        state.v6.overdue = true;
        assert_eq!(state.enough_at(at), Some(at));
        state.v6 = answered(at, Ok(Vec::new()));
        assert_eq!(state.enough_at(at), Some(at));
        state.v4 = Lookup::default();
        state.v4.progress = Progress::Running;
        assert_eq!(state.enough_at(at), None);
        state.v6 = answered(at, Ok(address()));
        assert_eq!(state.enough_at(at), Some(at));
    }

    #[test]
    fn a_lookup_in_two_queues_runs_once_and_one_that_is_not_wanted_never() {
        let now = Instant::now();
        let name = Name::new("a".to_owned());
        let waiter = Waiter::new(Arc::clone(&name));
        assert_eq!(name.queue(1, now), [Family::V6, Family::V4]);
        assert_eq!(name.queue(1, now), []);
        assert_eq!(name.queue(2, now), [Family::V6, Family::V4]);
        assert!(name.begin(Family::V6));
        assert!(!name.begin(Family::V6));
        name.finish(Family::V6, Ok(address()));
        assert!(!name.begin(Family::V6));
        drop(waiter);
        assert!(!name.begin(Family::V4));
        assert_eq!(name.queue(1, now), [Family::V4]);
    }
}
