//! What is measured, for how long, and how the command line chooses among it.

use std::str::FromStr;

use crate::Outcome;

/// What `--help` says.
pub(crate) const HELP: &str = "\
Measures tunnels through a relay and a gateway of our own beside plain TCP forwarders and direct loopback: throughput, set-up,
echo, processor time, the memory of idle tunnels, and set-up where the gateway is far. Takes about three minutes.

Usage: cargo bench --bench tunnel -- [options] [FILTER...]
       cargo bench --bench tunnel -- soak [options]         what is left after many tunnels and long ones; soak --help
       cargo bench --bench tunnel -- gate [options]         what is done, counted and held against a baseline; gate --help

  FILTER         only tests over paths whose name, such as down-x8/wss or delay-50ms, holds one of these words;
                 what they are compared with is measured along with them
  --quick        a short look: 3 rounds of 0.2 s
  --rounds N     so many rounds; default 5
  --seconds S    so long for each transfer; default 0.3
  --json         one JSON document instead of the table
  --list         only the names
";

/// A kind of load.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Bytes as fast as they go.
    Bulk {
        /// From the target to the client.
        down: bool,
        /// From the client to the target.
        up: bool,
        /// Over so many tunnels.
        streams: usize,
    },
    /// A connection, one byte there and back, and its end.
    SetUp {
        /// So many at the same time.
        at_once: usize,
    },
    /// One byte there and back over a standing connection.
    Echo,
}

/// A figure that a test gives.
pub(crate) struct Metric {
    /// What it is.
    pub(crate) name: &'static str,
    /// In what.
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
    /// The figures it gives.
    pub(crate) fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Bulk { .. } => &[THROUGHPUT],
            Self::SetUp { .. } => &[RATE, MEDIAN, TAIL],
            Self::Echo => &[MEDIAN, TAIL],
        }
    }

    /// What its processor time is counted in: the unit, and how many of it make a second for one of the amount.
    pub(crate) fn cpu_per(self) -> (&'static str, f64) {
        match self {
            Self::Bulk { .. } => ("s/GiB", 1.0),
            Self::SetUp { .. } | Self::Echo => ("us each", 1e6),
        }
    }
}

/// One row of the plan.
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

/// How long each test goes on. Connections and echoes are counted, so that both ends know when they are done.
pub(crate) struct Effort {
    /// Of a transfer.
    pub(crate) seconds: f64,
    /// Connections one after the other.
    pub(crate) set_ups: usize,
    /// Connections many at a time.
    pub(crate) set_ups_at_once: usize,
    /// Round trips.
    pub(crate) echoes: usize,
    /// Tunnels that stand idle.
    pub(crate) idle: usize,
    /// Openings of each kind at each distance.
    pub(crate) turns: usize,
}

impl Effort {
    /// About how many seconds one test over one path takes in one round; a guess that the run itself corrects.
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

/// What the command line asks for.
pub(crate) struct Plan {
    /// How often everything is measured.
    pub(crate) rounds: usize,
    /// How long each time.
    pub(crate) effort: Effort,
    /// JSON rather than a table.
    pub(crate) json: bool,
    filters: Vec<String>,
}

/// What is to be done.
pub(crate) enum Asked {
    /// Measure.
    Measure(Plan),
    /// Say how this program is used.
    Help,
    /// Say what there is.
    List,
}

impl Plan {
    /// Reads the arguments. Cargo says `--bench` when it benchmarks and nothing when it tests all targets: then the bench is
    /// only to show that it works.
    pub(crate) fn read(arguments: impl Iterator<Item = String>) -> Outcome<Asked> {
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
                "--help" | "-h" => return Ok(Asked::Help),
                "--list" => return Ok(Asked::List),
                "--rounds" => rounds = Some(number(&argument, &value())?),
                "--seconds" => seconds = Some(number(&argument, &value())?),
                option if option.starts_with('-') => {
                    return Err(format!("there is no option {option}; --help lists them").into());
                }
                word => filters.push(word.to_owned()),
            }
        }
        let (usual, mut effort) = match (benchmarking, quick) {
            (true, false) => (5, FULL),
            (true, true) => (3, QUICK),
            (false, _) => (1, QUICK),
        };
        effort.seconds = seconds.unwrap_or(effort.seconds);
        let rounds = rounds.unwrap_or(usual);
        if rounds == 0 || !(0.01..=60.0).contains(&effort.seconds) {
            return Err("at least one round, transfers of 0.01 to 60 seconds".into());
        }
        Ok(Asked::Measure(Self {
            rounds,
            effort,
            json,
            filters,
        }))
    }

    /// Whether this is wanted, by its [`name`].
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|word| name.contains(word))
    }
}

fn number<T: FromStr>(option: &str, value: &str) -> Outcome<T> {
    let parsed = value.parse();
    Ok(parsed.map_err(|_| format!("{option} wants a number, not \"{value}\""))?)
}

/// What filters look at.
pub(crate) fn name(test: &str, path: &str) -> String {
    format!("{test}/{path}")
}
