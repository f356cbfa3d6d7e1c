//! How far a run has come and how long it still takes, on standard error: one line that is rewritten on a terminal, a line for
//! each part elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

/// The progress of one run.
pub(crate) struct Progress {
    begun: Instant,
    part: String,
    /// Seconds by the plan, which is only as good as a guess: what has passed corrects it.
    planned: f64,
    done: f64,
    rewrites: bool,
}

impl Progress {
    /// One of a run that ought to take so many seconds.
    pub(crate) fn new(planned: f64) -> Self {
        Self {
            begun: Instant::now(),
            part: String::new(),
            planned,
            done: 0.0,
            rewrites: io::stderr().is_terminal(),
        }
    }

    /// A part of the run begins.
    pub(crate) fn part(&mut self, name: &str) {
        name.clone_into(&mut self.part);
        self.tell();
    }

    /// What was planned to take `seconds` is done.
    pub(crate) fn spent(&mut self, seconds: f64) {
        self.done += seconds;
        if self.rewrites {
            self.tell();
        }
    }

    fn tell(&self) {
        let so_far = self.begun.elapsed().as_secs_f64();
        let pace = if self.done > 0.0 {
            so_far / self.done
        } else {
            1.0
        };
        let left = (self.planned - self.done).max(0.0) * pace;
        let share = 100.0 * self.done / self.planned.max(self.done).max(1e-9);
        let line = format!("{}: {share:.0} %, about {left:.0} s left", self.part);
        let _ = if self.rewrites {
            write!(io::stderr(), "\r\x1b[K{line}")
        } else {
            writeln!(io::stderr(), "{line}")
        };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.rewrites {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
