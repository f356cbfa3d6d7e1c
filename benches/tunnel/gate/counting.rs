//! Counts operations: starts both processes under a tool, once with only the warm-up and once with
//! each load added. The difference is the count for the load.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path as FilePath, PathBuf};

use socket2::SockRef;

use super::baseline::Row;
use super::load::{Context, Load};
use super::note;
use super::plan::Plan;
use super::tool::Tool;
use crate::path::{GATEWAY, Path, RELAY};
use crate::pattern::TestPattern;
use crate::{Outcome, TIMEOUT};

/// The directory with the output of the tools, which shows where a count comes from.
pub(super) const TOOL_OUTPUT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/gate");

/// The tolerance as a multiple of the spread of the rounds when a value is blessed.
const SPREADS: f64 = 2.0;

/// One count, in one or more rounds.
pub(super) struct Figure {
    /// Its name, such as `instructions/up/wss/relay`.
    pub(super) name: String,
    /// Its unit, such as `per MiB`.
    pub(super) unit: &'static str,
    /// The minimum tolerance.
    min_tolerance: f64,
    rounds: Vec<f64>,
}

impl Figure {
    /// The lowest count. Chance increases a count more often than it decreases it.
    pub(super) fn lowest(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The row for the baseline.
    pub(super) fn blessed(&self) -> Row {
        let mut sorted = self.rounds.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let value = sorted[sorted.len() / 2];
        let spread = sorted[sorted.len() - 1] - sorted[0];
        Row {
            name: self.name.clone(),
            value,
            tolerance: (SPREADS * spread).max(self.min_tolerance),
            unit: self.unit.to_owned(),
        }
    }
}

/// The sort key of a name: measure, load, scheme and role, each in the order of the table.
pub(super) fn sort_key(name: &str) -> Vec<usize> {
    let measures = Tool::ALL.into_iter().flat_map(Tool::measures);
    let measures: Vec<&str> = measures.map(|(measure, _)| *measure).collect();
    let loads = Load::ALL.map(Load::name);
    let order: [&[&str]; 4] = [&measures, &loads, &SCHEMES, &ROLES];
    name.split('/')
        .zip(order)
        .map(|(word, order)| order.iter().position(|o| *o == word).unwrap_or(order.len()))
        .collect()
}

const SCHEMES: [&str; 2] = ["ws", "wss"];
/// In the order of the processes of a path.
const ROLES: [&str; 2] = [RELAY, GATEWAY];

/// The counts that come from the same runs.
#[derive(Clone, Copy)]
struct Group {
    tool: Tool,
    tls: bool,
}

impl Group {
    fn all() -> impl Iterator<Item = Self> {
        let both = |tool| [false, true].map(|tls| Self { tool, tls });
        Tool::ALL.into_iter().flat_map(both)
    }

    fn scheme(self) -> &'static str {
        SCHEMES[usize::from(self.tls)]
    }

    /// The names of the counts, one for each role.
    fn names(self, measure: &str, load: Load) -> [String; ROLES.len()] {
        ROLES.map(|role| format!("{measure}/{}/{}/{role}", load.name(), self.scheme()))
    }
}

/// The tools and the data that all counts share.
pub(super) struct Counting {
    programs: Vec<PathBuf>,
    listener: TcpListener,
    target: SocketAddr,
    pattern: TestPattern,
}

impl Counting {
    /// Finds the tools.
    pub(super) fn new() -> Outcome<Self> {
        let programs = Tool::ALL
            .into_iter()
            .map(Tool::find)
            .collect::<Outcome<_>>()?;
        fs::create_dir_all(TOOL_OUTPUT)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        SockRef::from(&listener).set_read_timeout(Some(TIMEOUT))?;
        Ok(Self {
            programs,
            target: listener.local_addr()?,
            listener,
            pattern: TestPattern::new(),
        })
    }

    /// Counts all selected figures. Repeats each group as long as `again` returns `true` for the
    /// number of rounds and the counts so far.
    pub(super) fn all(
        &self,
        plan: &Plan,
        again: impl Fn(usize, &[Figure]) -> bool,
    ) -> Outcome<Vec<Figure>> {
        let mut figures = Vec::new();
        for group in Group::all() {
            let mut counted = self.group(group, plan)?;
            let mut rounds = 1;
            while !counted.is_empty() && again(rounds, &counted) {
                let more = self.group(group, plan)?;
                for (figure, mut more) in counted.iter_mut().zip(more) {
                    figure.rounds.append(&mut more.rounds);
                }
                rounds += 1;
            }
            figures.append(&mut counted);
        }
        if figures.is_empty() {
            return Err("no name contains one of the filters; the baseline lists all names".into());
        }
        figures.sort_by_key(|figure| sort_key(&figure.name));
        Ok(figures)
    }

    /// Counts the selected figures of a group once.
    fn group(&self, group: Group, plan: &Plan) -> Outcome<Vec<Figure>> {
        let Group { tool, .. } = group;
        let is_selected = |load: &Load| {
            let measures = tool.measures().iter();
            let mut names = measures.flat_map(|(measure, _)| group.names(measure, *load));
            tool.counts(*load) && names.any(|name| plan.selects(&name))
        };
        let loads: Vec<Load> = Load::ALL.into_iter().filter(is_selected).collect();
        let mut figures = Vec::new();
        if loads.is_empty() {
            return Ok(figures);
        }
        let warm_up = self.count(group, None)?;
        for load in loads {
            let after = self.count(group, Some(load))?;
            let amount = load.amount() as f64;
            for (place, (measure, noise)) in tool.measures().iter().enumerate() {
                for (role, name) in group.names(measure, load).into_iter().enumerate() {
                    let value = (after[role][place] - warm_up[role][place]).max(0.0) / amount;
                    figures.push(Figure {
                        name,
                        unit: load.unit(),
                        min_tolerance: (noise / amount).max(tool.min_tolerance(load) * value),
                        rounds: vec![value],
                    });
                }
            }
        }
        figures.retain(|figure| plan.selects(&figure.name));
        Ok(figures)
    }

    /// The counts of each process, from its start to its end.
    fn count(&self, group: Group, counted: Option<Load>) -> Outcome<[Vec<f64>; ROLES.len()]> {
        let Group { tool, tls } = group;
        let scheme = group.scheme();
        let load = counted.map_or("warm-up", Load::name);
        let (program, _) = tool.program();
        let output = |role: &str| {
            let (measure, _) = tool.measures()[0];
            FilePath::new(TOOL_OUTPUT).join(format!("{measure}-{load}-{scheme}-{role}"))
        };
        let counts = || {
            let path = Path::tunnel_by(scheme, tls, self.target, |role| {
                tool.command(&self.programs[tool as usize], &output(role))
            })?;
            let context = Context {
                path: &path,
                listener: &self.listener,
                pattern: &self.pattern,
            };
            context.run(counted)?;
            path.stop()?;
            Ok([tool.read(&output(ROLES[0]))?, tool.read(&output(ROLES[1]))?])
        };
        for role in ROLES {
            // Remove old output, so that it is not taken for the new one.
            match fs::remove_file(output(role)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        note(&format!("{program}: {load} over {scheme}"));
        counts().map_err(|error: crate::Failure| {
            format!("{load} over {scheme} under {program}: {error}").into()
        })
    }
}
