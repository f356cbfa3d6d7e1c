//! What the gate is asked to do.

use crate::Outcome;

/// What `gate --help` says.
pub(super) const HELP: &str = "\
Counts what a relay and a gateway do: instructions and allocations under valgrind, system calls under strace. Counts do not
depend on how busy the machine is, so that they are held against benches/tunnel/gate/baseline, and worse ones fail.

Usage: cargo bench --bench tunnel -- gate [options] [FILTER...]

  FILTER         only figures whose name, such as instructions/up/wss/relay, holds one of these words
  --bless        writes what is counted now into the baseline, with a tolerance from how far the rounds lie apart
  --rounds N     so many rounds for --bless; default 5
";

/// How often --bless counts.
const ROUNDS: usize = 5;

/// What is to be done.
pub(super) enum Asked {
    /// Count, and hold against the baseline.
    Check(Plan),
    /// Count, and write the baseline.
    Bless(Plan),
    /// Say how this is used.
    Help,
}

/// What is counted.
pub(super) struct Plan {
    /// How often.
    pub(super) rounds: usize,
    filters: Vec<String>,
}

impl Plan {
    /// Reads the arguments; Cargo adds its own `--bench`.
    pub(super) fn read(mut arguments: impl Iterator<Item = String>) -> Outcome<Asked> {
        let mut bless = false;
        let mut plan = Self {
            rounds: ROUNDS,
            filters: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => {}
                "--bless" => bless = true,
                "--rounds" => {
                    let rounds = arguments.next().and_then(|value| value.parse().ok());
                    let rounds = rounds.filter(|rounds| (1..=100).contains(rounds));
                    plan.rounds = rounds.ok_or("--rounds wants a number from 1 to 100")?;
                }
                "--help" | "-h" => return Ok(Asked::Help),
                option if option.starts_with('-') => {
                    return Err(format!("gate takes no {option}; --help lists its options").into());
                }
                word => plan.filters.push(word.to_owned()),
            }
        }
        Ok(if bless {
            Asked::Bless(plan)
        } else {
            Asked::Check(plan)
        })
    }

    /// Whether some figures are not wanted.
    pub(super) fn is_part(&self) -> bool {
        !self.filters.is_empty()
    }

    /// Whether this figure is wanted.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|word| name.contains(word))
    }
}
