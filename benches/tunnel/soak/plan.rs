//! The durations and counts of the soak, and its command line.

use std::str::FromStr;
use std::time::Duration;

use crate::Outcome;

/// The output of `soak --help`.
pub(super) const HELP: &str = "\
Opens many tunnels and long ones through a relay and a gateway, and shows their resources over time.

Usage: cargo bench --bench tunnel -- soak [options]

  --tunnels N    number of short tunnels, with all kinds of ends (default 1000, long run: 100000)
  --at-once N    number of concurrent short tunnels (default 16)
  --minutes M    duration of the mixed load (default 0.1, long run: 30)
  --idle N       number of idle tunnels, during the mixed load and then alone (default 100)
  --silent M     minutes with only idle tunnels (default 0.05, long run: 10)
  --mib N        MiB in each direction to a slow reader (default 32, long run: 1024)
  --every S      seconds between progress lines (default 10)
  --tls          use wss instead of ws
  --json         print one JSON document instead of the table
";

/// The parsed command line.
pub(super) struct Plan {
    pub(super) tunnels: u64,
    pub(super) at_once: u64,
    pub(super) mixed: Duration,
    pub(super) idle: usize,
    pub(super) silent: Duration,
    pub(super) mebibytes: u64,
    pub(super) every: Duration,
    pub(super) tls: bool,
    pub(super) json: bool,
}

/// What the command line requests.
pub(super) enum Invocation {
    /// Run.
    Soak(Plan),
    /// Print the help.
    Help,
}

impl Plan {
    /// Parses the arguments. Cargo adds `--bench`.
    pub(super) fn read(mut arguments: impl Iterator<Item = String>) -> Outcome<Invocation> {
        let mut plan = Self {
            tunnels: 1000,
            at_once: 16,
            mixed: Duration::from_secs(6),
            idle: 100,
            silent: Duration::from_secs(3),
            mebibytes: 32,
            every: Duration::from_secs(10),
            tls: false,
            json: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_default();
            match argument.as_str() {
                "--bench" => {}
                "--tunnels" => plan.tunnels = number(&argument, &value())?,
                "--at-once" => plan.at_once = number::<u64>(&argument, &value())?.clamp(1, 256),
                "--minutes" => plan.mixed = seconds(60.0 * number::<f64>(&argument, &value())?)?,
                "--idle" => plan.idle = number::<usize>(&argument, &value())?.min(1000),
                "--silent" => plan.silent = seconds(60.0 * number::<f64>(&argument, &value())?)?,
                "--mib" => plan.mebibytes = number(&argument, &value())?,
                "--every" => plan.every = seconds(number(&argument, &value())?)?,
                "--tls" => plan.tls = true,
                "--json" => plan.json = true,
                "--help" | "-h" => return Ok(Invocation::Help),
                other => {
                    return Err(format!("unknown option {other}; see soak --help").into());
                }
            }
        }
        Ok(Invocation::Soak(plan))
    }
}

fn number<T: FromStr>(option: &str, value: &str) -> Outcome<T> {
    let parsed = value.parse();
    Ok(parsed.map_err(|_| format!("{option} needs a number, not \"{value}\""))?)
}

fn seconds(seconds: f64) -> Outcome<Duration> {
    Ok(Duration::try_from_secs_f64(seconds)?)
}
