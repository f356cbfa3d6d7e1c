//! The one type that bounds waiting.

use std::time::{Duration, Instant};

/// A point in time after which waiting ends; `Deadline::never()` does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// The deadline that is `wait` from now.
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

    /// The point in time; `None` for never.
    pub(crate) fn instant(self) -> Option<Instant> {
        self.0
    }

    /// What is left: `None` for ever, zero when it has passed.
    pub(crate) fn remaining(self) -> Option<Duration> {
        self.0
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it has passed.
    pub(crate) fn passed(self) -> bool {
        self.0.is_some_and(|at| at <= Instant::now())
    }

    /// The earlier of two.
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
    fn the_earlier_deadline_wins_and_never_loses_to_any() {
        let soon = Deadline::after(Duration::from_secs(1));
        let late = Deadline::after(Duration::from_secs(100));
        assert_eq!(soon.min(late), soon);
        assert_eq!(Deadline::never().min(late), late);
        assert_eq!(Deadline::never().min(Deadline::never()), Deadline::never());
    }

    #[test]
    fn no_wait_has_passed_at_once_and_never_does_not_pass() {
        assert!(Deadline::after(Duration::ZERO).passed());
        assert!(!Deadline::never().passed());
        assert_eq!(Deadline::never().remaining(), None);
    }

    #[test]
    fn a_wait_too_long_to_count_is_never() {
        assert_eq!(Deadline::after(Duration::MAX), Deadline::never());
    }
}
