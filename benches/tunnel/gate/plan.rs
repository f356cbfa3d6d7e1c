//! The command line of the gate.

use crate::Outcome;

/// The output of `gate --help`.
pub(super) const HELP: &str = "\
Counts the operations of a relay and a gateway: instructions and allocations with valgrind, system
calls with strace. Counts do not depend on the load of the machine. They are compared with
benches/tunnel/gate/baseline, and the gate fails if one is worse.

Usage: cargo bench --bench tunnel -- gate [options] [FILTER...]

  FILTER         only counts whose name, such as instructions/up/wss/relay, contains one of these words
  --bless        write the current counts to the baseline, with a tolerance from the spread of the rounds
  --rounds N     number of rounds for --bless (default 5)
";

/// The default number of rounds for `--bless`.
const ROUNDS: usize = 5;

/// What the command line requests.
pub(super) enum Invocation {
    /// Count, and compare with the baseline.
    Check(Plan),
    /// Count, and write the baseline.
    Bless(Plan),
    /// Print the help.
    Help,
}

/// The parsed command line.
pub(super) struct Plan {
    /// The number of rounds for `--bless`.
    pub(super) rounds: usize,
    filters: Vec<String>,
}

impl Plan {
    /// Parses the arguments. Cargo adds `--bench`.
    pub(super) fn read(mut arguments: impl Iterator<Item = String>) -> Outcome<Invocation> {
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
                    plan.rounds = rounds.ok_or("--rounds needs a number from 1 to 100")?;
                }
                "--help" | "-h" => return Ok(Invocation::Help),
                option if option.starts_with('-') => {
                    return Err(format!("unknown option {option}; see gate --help").into());
                }
                word => plan.filters.push(word.to_owned()),
            }
        }
        Ok(if bless {
            Invocation::Bless(plan)
        } else {
            Invocation::Check(plan)
        })
    }

    /// Whether filters exclude some counts.
    pub(super) fn is_part(&self) -> bool {
        !self.filters.is_empty()
    }

    /// Whether the filters select the count with this name.
    pub(super) fn selects(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|word| name.contains(word))
    }
}
