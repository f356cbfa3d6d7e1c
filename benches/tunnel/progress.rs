//! Shows the progress of a run and the remaining time on standard error: on a terminal one line
//! that is rewritten, otherwise one line per part.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

/// The progress of one run.
pub(crate) struct Progress {
    begun: Instant,
    part: String,
    /// The estimated duration in seconds. The time that the finished parts took corrects it.
    planned: f64,
    done: f64,
    rewrites: bool,
}

impl Progress {
    /// The progress of a run that takes about this number of seconds.
    pub(crate) fn new(planned: f64) -> Self {
        Self {
            begun: Instant::now(),
            part: String::new(),
            planned,
            done: 0.0,
            rewrites: io::stderr().is_terminal(),
        }
    }

    /// Starts a part of the run.
    pub(crate) fn part(&mut self, name: &str) {
        name.clone_into(&mut self.part);
        self.print();
    }

    /// Records that work with an estimate of `seconds` is done.
    pub(crate) fn spent(&mut self, seconds: f64) {
        self.done += seconds;
        if self.rewrites {
            self.print();
        }
    }

    fn print(&self) {
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
