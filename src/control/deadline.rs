//! The deadline of a wait.

use std::time::{Duration, Instant};

/// The time at which a wait ends, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// The deadline `wait` from now.
    pub(crate) fn after(wait: Duration) -> Self {
        Self(Instant::now().checked_add(wait))
    }

    /// The deadline at `instant`.
    pub(crate) fn at(instant: Instant) -> Self {
        Self(Some(instant))
    }

    /// No deadline.
    pub(crate) fn never() -> Self {
        Self(None)
    }

    /// The time; `None` for never.
    pub(crate) fn instant(self) -> Option<Instant> {
        self.0
    }

    /// The time that is left: `None` for never, zero if the deadline has passed.
    pub(crate) fn remaining(self) -> Option<Duration> {
        self.0
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it has passed.
    pub(crate) fn passed(self) -> bool {
        self.0.is_some_and(|at| at <= Instant::now())
    }

    /// The earlier of the two deadlines.
    #[must_use]
    pub(crate) fn min(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self(Some(a.min(b))),
            (a, b) => Self(a.or(b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minimum_is_the_earlier_deadline_and_never_is_later_than_any() {
        let soon = Deadline::after(Duration::from_secs(1));
        let late = Deadline::after(Duration::from_secs(100));
        assert_eq!(soon.min(late), soon);
        assert_eq!(Deadline::never().min(late), late);
        assert_eq!(Deadline::never().min(Deadline::never()), Deadline::never());
    }

    #[test]
    fn a_wait_of_zero_has_passed_and_never_has_not() {
        assert!(Deadline::after(Duration::ZERO).passed());
        assert!(!Deadline::never().passed());
        assert_eq!(Deadline::never().remaining(), None);
    }

    #[test]
    fn a_wait_that_overflows_is_never() {
        assert_eq!(Deadline::after(Duration::MAX), Deadline::never());
    }
}
