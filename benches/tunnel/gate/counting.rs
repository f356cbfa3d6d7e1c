//! From a load and a tool to figures: both processes are started under the tool, once for what goes before and once for each load
//! besides, and the difference is the figure.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path as FilePath, PathBuf};

use socket2::SockRef;

use super::baseline::Row;
use super::load::{Ground, Load};
use super::note;
use super::plan::Plan;
use super::tool::Tool;
use crate::path::{GATEWAY, Path, RELAY};
use crate::pattern::Pattern;
use crate::{Outcome, PATIENCE};

/// Where the tools leave what they found, for whoever wants to know where a count comes from.
pub(super) const FOUND: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/gate");

/// The tolerance in spreads: how far apart the rounds of a blessing were.
const SPREADS: f64 = 2.0;

/// One figure, in as many rounds as it was counted.
pub(super) struct Figure {
    /// Such as `instructions/up/wss/relay`.
    pub(super) name: String,
    /// Such as `a MiB`.
    pub(super) unit: &'static str,
    /// What it may differ by at least.
    least: f64,
    rounds: Vec<f64>,
}

impl Figure {
    /// What the program needs: chance adds more often than it takes away.
    pub(super) fn lowest(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// As it goes into the baseline.
    pub(super) fn blessed(&self) -> Row {
        let mut sorted = self.rounds.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let value = sorted[sorted.len() / 2];
        let spread = sorted[sorted.len() - 1] - sorted[0];
        Row {
            name: self.name.clone(),
            value,
            tolerance: (SPREADS * spread).max(self.least),
            unit: self.unit.to_owned(),
        }
    }
}

/// Sorts by measure, load, scheme and role, as the names are made.
pub(super) fn place(name: &str) -> Vec<usize> {
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
/// In the order of a path's processes.
const ROLES: [&str; 2] = [RELAY, GATEWAY];

/// What one start of both processes after another is counted for.
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

    /// The figures' names, one for each role.
    fn names(self, measure: &str, load: Load) -> [String; ROLES.len()] {
        ROLES.map(|role| format!("{measure}/{}/{}/{role}", load.name(), self.scheme()))
    }
}

/// What all counts share.
pub(super) struct Counting {
    programs: Vec<PathBuf>,
    listener: TcpListener,
    target: SocketAddr,
    pattern: Pattern,
}

impl Counting {
    /// Finds the tools.
    pub(super) fn new() -> Outcome<Self> {
        let programs = Tool::ALL
            .into_iter()
            .map(Tool::find)
            .collect::<Outcome<_>>()?;
        fs::create_dir_all(FOUND)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            programs,
            target: listener.local_addr()?,
            listener,
            pattern: Pattern::new(),
        })
    }

    /// All wanted figures, each group again and again as long as `again` says so of the rounds so far.
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
            return Err("no figure has such a name; the baseline lists them".into());
        }
        figures.sort_by_key(|figure| place(&figure.name));
        Ok(figures)
    }

    /// The wanted figures of a group, counted once.
    fn group(&self, group: Group, plan: &Plan) -> Outcome<Vec<Figure>> {
        let Group { tool, .. } = group;
        let wants = |load: &Load| {
            let measures = tool.measures().iter();
            let mut names = measures.flat_map(|(measure, _)| group.names(measure, *load));
            tool.counts(*load) && names.any(|name| plan.wants(&name))
        };
        let loads: Vec<Load> = Load::ALL.into_iter().filter(wants).collect();
        let mut figures = Vec::new();
        if loads.is_empty() {
            return Ok(figures);
        }
        let before = self.count(group, None)?;
        for load in loads {
            let after = self.count(group, Some(load))?;
            let amount = load.amount() as f64;
            for (place, (measure, nothing)) in tool.measures().iter().enumerate() {
                for (role, name) in group.names(measure, load).into_iter().enumerate() {
                    let value = (after[role][place] - before[role][place]).max(0.0) / amount;
                    figures.push(Figure {
                        name,
                        unit: load.unit(),
                        least: (nothing / amount).max(tool.least(load) * value),
                        rounds: vec![value],
                    });
                }
            }
        }
        figures.retain(|figure| plan.wants(&figure.name));
        Ok(figures)
    }

    /// The counts of each role's whole process, from start to end.
    fn count(&self, group: Group, counted: Option<Load>) -> Outcome<[Vec<f64>; ROLES.len()]> {
        let Group { tool, tls } = group;
        let scheme = group.scheme();
        let load = counted.map_or("nothing", Load::name);
        let (program, _) = tool.program();
        let found = |role: &str| {
            let (measure, _) = tool.measures()[0];
            FilePath::new(FOUND).join(format!("{measure}-{load}-{scheme}-{role}"))
        };
        let counts = || {
            let path = Path::tunnel_by(scheme, tls, self.target, |role| {
                tool.command(&self.programs[tool as usize], &found(role))
            })?;
            let ground = Ground {
                path: &path,
                listener: &self.listener,
                pattern: &self.pattern,
            };
            ground.run(counted)?;
            path.stop()?;
            Ok([tool.read(&found(ROLES[0]))?, tool.read(&found(ROLES[1]))?])
        };
        for role in ROLES {
            // An old result is not to be taken for the new one.
            match fs::remove_file(found(role)) {
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
