//! The tests, their durations, and the command line that selects them.

use std::str::FromStr;

use crate::Outcome;

/// The output of `--help`.
pub(crate) const HELP: &str = "\
Measures tunnels through a relay and a gateway, and for comparison plain TCP forwarders and direct
loopback: throughput, set-up, echo, processor time, the memory of idle tunnels, and set-up with a
distant gateway. Takes about three minutes.

Usage: cargo bench --bench tunnel -- [options] [FILTER...]
       cargo bench --bench tunnel -- soak [options]         show what remains in use after many and long tunnels; see soak --help
       cargo bench --bench tunnel -- gate [options]         count operations and compare with a baseline; see gate --help

  FILTER         only tests whose name, such as down-x8/wss or delay-50ms, contains one of these words;
                 their reference paths are measured too
  --quick        3 rounds, transfers of 0.2 s
  --rounds N     number of rounds (default 5)
  --seconds S    duration of each transfer (default 0.3)
  --json         print one JSON document instead of the table
  --list         print only the names
";

/// A kind of load.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Transfers at full speed.
    Bulk {
        /// From the target to the client.
        down: bool,
        /// From the client to the target.
        up: bool,
        /// The number of tunnels.
        streams: usize,
    },
    /// Opens a connection, sends one byte and back, and closes it.
    SetUp {
        /// The number of connections at the same time.
        at_once: usize,
    },
    /// Sends one byte and back over an open connection.
    Echo,
}

/// A value that a test measures.
pub(crate) struct Metric {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its unit.
    pub(crate) unit: &'static str,
}

const THROUGHPUT: Metric = Metric {
    name: "throughput",
    unit: "MiB/s",
};
const RATE: Metric = Metric {
    name: "rate",
    unit: "1/s",
};
const MEDIAN: Metric = Metric {
    name: "p50",
    unit: "us",
};
const TAIL: Metric = Metric {
    name: "p99",
    unit: "us",
};

impl Work {
    /// The values that it measures.
    pub(crate) fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Bulk { .. } => &[THROUGHPUT],
            Self::SetUp { .. } => &[RATE, MEDIAN, TAIL],
            Self::Echo => &[MEDIAN, TAIL],
        }
    }

    /// The unit of its processor time, and the factor from seconds per amount to this unit.
    pub(crate) fn cpu_per(self) -> (&'static str, f64) {
        match self {
            Self::Bulk { .. } => ("s/GiB", 1.0),
            Self::SetUp { .. } | Self::Echo => ("us each", 1e6),
        }
    }
}

/// One test.
pub(crate) struct Test {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its load.
    pub(crate) work: Work,
}

const fn bulk(name: &'static str, down: bool, up: bool, streams: usize) -> Test {
    Test {
        name,
        work: Work::Bulk { down, up, streams },
    }
}

const fn set_up(name: &'static str, at_once: usize) -> Test {
    Test {
        name,
        work: Work::SetUp { at_once },
    }
}

/// Every test, in the order of the table.
pub(crate) const TESTS: [Test; 10] = [
    bulk("down-x1", true, false, 1),
    bulk("up-x1", false, true, 1),
    bulk("both-x1", true, true, 1),
    bulk("down-x8", true, false, 8),
    bulk("up-x8", false, true, 8),
    bulk("down-x64", true, false, 64),
    bulk("up-x64", false, true, 64),
    set_up("set-up-x1", 1),
    set_up("set-up-x32", 32),
    Test {
        name: "echo-x1",
        work: Work::Echo,
    },
];

/// The size of each test. Connections and echoes have a fixed count, so both ends know when they
/// are done.
pub(crate) struct Effort {
    /// The duration of a transfer.
    pub(crate) seconds: f64,
    /// The number of sequential connections.
    pub(crate) set_ups: usize,
    /// The number of connections in the concurrent test.
    pub(crate) set_ups_at_once: usize,
    /// The number of echo round trips.
    pub(crate) echoes: usize,
    /// The number of idle tunnels.
    pub(crate) idle: usize,
    /// The number of openings in each mode at each round-trip time.
    pub(crate) turns: usize,
}

impl Effort {
    /// The approximate duration of one test over one path in one round, in seconds. The run
    /// corrects it.
    pub(crate) fn cost(&self, work: Work) -> f64 {
        match work {
            Work::Bulk { .. } => self.seconds + 0.1,
            Work::SetUp { at_once: 1 } => self.set_ups as f64 * 0.001,
            Work::SetUp { .. } => self.set_ups_at_once as f64 * 0.0002,
            Work::Echo => self.echoes as f64 * 0.0001,
        }
    }
}

const FULL: Effort = Effort {
    seconds: 0.3,
    set_ups: 300,
    set_ups_at_once: 800,
    echoes: 3000,
    idle: 500,
    turns: 12,
};
const QUICK: Effort = Effort {
    seconds: 0.2,
    set_ups: 50,
    set_ups_at_once: 160,
    echoes: 500,
    idle: 100,
    turns: 6,
};

/// The parsed command line.
pub(crate) struct Plan {
    /// The number of rounds.
    pub(crate) rounds: usize,
    /// The size of the tests.
    pub(crate) effort: Effort,
    /// Print JSON instead of a table.
    pub(crate) json: bool,
    filters: Vec<String>,
}

/// What the command line requests.
pub(crate) enum Invocation {
    /// Measure.
    Measure(Plan),
    /// Print the help.
    Help,
    /// Print the names of the tests.
    List,
}

impl Plan {
    /// Parses the arguments. `cargo bench` passes `--bench`, `cargo test --all-targets` does not; a
    /// test run only checks that the benchmark works.
    pub(crate) fn read(arguments: impl Iterator<Item = String>) -> Outcome<Invocation> {
        let (mut benchmarking, mut quick, mut json) = (false, false, false);
        let (mut rounds, mut seconds) = (None, None);
        let mut filters = Vec::new();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_default();
            match argument.as_str() {
                "--bench" => benchmarking = true,
                "--quick" => quick = true,
                "--json" => json = true,
                "--help" | "-h" => return Ok(Invocation::Help),
                "--list" => return Ok(Invocation::List),
                "--rounds" => rounds = Some(number(&argument, &value())?),
                "--seconds" => seconds = Some(number(&argument, &value())?),
                option if option.starts_with('-') => {
                    return Err(format!("unknown option {option}; see --help").into());
                }
                word => filters.push(word.to_owned()),
            }
        }
        let (default_rounds, mut effort) = match (benchmarking, quick) {
            (true, false) => (5, FULL),
            (true, true) => (3, QUICK),
            (false, _) => (1, QUICK),
        };
        effort.seconds = seconds.unwrap_or(effort.seconds);
        let rounds = rounds.unwrap_or(default_rounds);
        if rounds == 0 || !(0.01..=60.0).contains(&effort.seconds) {
            return Err("--rounds must be at least 1, --seconds from 0.01 to 60".into());
        }
        Ok(Invocation::Measure(Self {
            rounds,
            effort,
            json,
            filters,
        }))
    }

    /// Whether the filters select the test with this [`name`].
    pub(crate) fn selects(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|word| name.contains(word))
    }
}

fn number<T: FromStr>(option: &str, value: &str) -> Outcome<T> {
    let parsed = value.parse();
    Ok(parsed.map_err(|_| format!("{option} needs a number, not \"{value}\""))?)
}

/// The name of a test over a path, which the filters are compared with.
pub(crate) fn name(test: &str, path: &str) -> String {
    format!("{test}/{path}")
}
