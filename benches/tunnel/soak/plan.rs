//! How long the soak is, and how the command line says so.

use std::str::FromStr;
use std::time::Duration;

use crate::Outcome;

/// What `soak --help` says.
pub(super) const HELP: &str = "\
Sends many tunnels and long ones through a relay and a gateway, and shows what they hold over time.

Usage: cargo bench --bench tunnel -- soak [options]

  --tunnels N    so many tunnels of all kinds of ends, one after the other; default 1000, a long run: 100000
  --at-once N    so many of them at the same time; default 16
  --minutes M    so long the mixed load; default 0.1, a long run: 30
  --idle N       so many silent tunnels beside the mixed load, and then alone; default 100
  --silent M     so many minutes they are alone; default 0.05, a long run: 10
  --mib N        so many MiB each way to a slow reader; default 32, a long run: 1024
  --every S      a line of progress each S seconds; default 10
  --tls          wss instead of ws
  --json         one JSON document instead of the table
";

/// How long, how many.
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

/// What is to be done.
pub(super) enum Asked {
    /// The run.
    Soak(Plan),
    /// Say how this is used.
    Help,
}

impl Plan {
    /// Reads the arguments; Cargo adds its own `--bench`.
    pub(super) fn read(mut arguments: impl Iterator<Item = String>) -> Outcome<Asked> {
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
                "--help" | "-h" => return Ok(Asked::Help),
                other => {
                    return Err(format!("soak takes no {other}; --help lists its options").into());
                }
            }
        }
        Ok(Asked::Soak(plan))
    }
}

fn number<T: FromStr>(option: &str, value: &str) -> Outcome<T> {
    let parsed = value.parse();
    Ok(parsed.map_err(|_| format!("{option} wants a number, not \"{value}\""))?)
}

fn seconds(seconds: f64) -> Outcome<Duration> {
    Ok(Duration::try_from_secs_f64(seconds)?)
}
