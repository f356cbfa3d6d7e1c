//! The figures as they were last blessed: a text file that reads like a table, and what is to be said of a figure beside it.
//!
//! Pure, and part of the integration tests too, which show that the gate can fail.

use std::fmt::Write as _;

/// What figures depend on the compiler: their names begin with it. The others count what the program asks of the system.
pub(crate) const INSTRUCTIONS: &str = "instructions";

/// What the first line says of the compiler.
const COMPILER: &str = "compiler:";

const HEAD: &str = "\
# What relay and gateway cost, in counts: written by `cargo bench --bench tunnel -- gate --bless`, held by `cargo bench --bench tunnel -- gate`.
# A figure over value + tolerance fails; one under value - tolerance is to be blessed.
";

/// All blessed figures.
pub(crate) struct Baseline {
    /// What built the program that they were counted of.
    pub(crate) compiler: String,
    /// One for each figure.
    pub(crate) rows: Vec<Row>,
}

/// One blessed figure.
pub(crate) struct Row {
    /// What it is, such as `instructions/up/wss/relay`.
    pub(crate) name: String,
    /// How much it was.
    pub(crate) value: f64,
    /// How much more or less it may be, in the same unit.
    pub(crate) tolerance: f64,
    /// In what, such as `a MiB`.
    pub(crate) unit: String,
}

/// What is to be said of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Within the tolerance.
    Held,
    /// Over it.
    Worse,
    /// Under it.
    Better,
    /// The baseline was counted of what another compiler made.
    OtherCompiler,
    /// The baseline has no such figure.
    Unknown,
}

impl Verdict {
    /// Whether nobody may go past this.
    pub(crate) fn fails(self) -> bool {
        matches!(self, Self::Worse | Self::Unknown)
    }

    /// As the table says it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Worse => "WORSE",
            Self::Better => "better",
            Self::OtherCompiler => "other compiler",
            Self::Unknown => "NOT BLESSED",
        }
    }
}

impl Baseline {
    /// Reads the file.
    ///
    /// # Errors
    /// The line that is none of a baseline.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut compiler = None;
        let mut rows = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(named) = line.strip_prefix(COMPILER) {
                compiler = Some(named.trim().to_owned());
            } else {
                let row = Row::parse(line);
                rows.push(row.ok_or_else(|| format!("no row of a baseline: \"{line}\""))?);
            }
        }
        let compiler = compiler.ok_or("the baseline does not say which compiler it is of")?;
        Ok(Self { compiler, rows })
    }

    /// The file.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{HEAD}{COMPILER} {}\n", self.compiler);
        let mut before = "";
        for row in &self.rows {
            let group = row.name.split('/').next().unwrap_or_default();
            if group != before {
                let _ = writeln!(
                    text,
                    "\n# {:<32}{:>12}{:>12}  unit",
                    "name", "value", "tolerance"
                );
                before = group;
            }
            let (value, tolerance) = (shown(row.value), shown(row.tolerance));
            let _ = writeln!(
                text,
                "{:<34}{value:>12}{tolerance:>12}  {}",
                row.name, row.unit
            );
        }
        text
    }

    /// The blessed figure of this name.
    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// What is to be said of a figure that was counted of what `compiler` made.
    pub(crate) fn judge(&self, name: &str, value: f64, compiler: &str) -> Verdict {
        let Some(row) = self.row(name) else {
            return Verdict::Unknown;
        };
        if compiler != self.compiler && name.starts_with(INSTRUCTIONS) {
            Verdict::OtherCompiler
        } else if value > row.value + row.tolerance {
            Verdict::Worse
        } else if value < row.value - row.tolerance {
            Verdict::Better
        } else {
            Verdict::Held
        }
    }
}

impl Row {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut word = || words.next();
        let name = word()?.to_owned();
        let mut number = || word()?.parse().ok().filter(|n: &f64| n.is_finite());
        let (value, tolerance) = (number()?, number()?);
        let unit = words.collect::<Vec<_>>().join(" ");
        Some(Self {
            name,
            value,
            tolerance,
            unit,
        })
    }
}

/// With as many places as mean something.
pub(crate) fn shown(value: f64) -> String {
    if value.abs() < 1000.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}
