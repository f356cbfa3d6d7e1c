//! The baseline: a text file with a table of blessed values, and the comparison of a value with it.
//!
//! This module does no I/O. The integration tests include it to show that the gate can fail.

use std::fmt::Write as _;

/// The start of the names of values that depend on the compiler. The other values count requests to
/// the system or the allocator.
pub(crate) const INSTRUCTIONS: &str = "instructions";

/// The start of the line that names the compiler.
const COMPILER: &str = "compiler:";

const HEAD: &str = "\
# Operation counts of relay and gateway. `cargo bench --bench tunnel -- gate` compares with this
# file, `cargo bench --bench tunnel -- gate --bless` writes it. A count above value + tolerance
# fails. A count below value - tolerance should be blessed.
";

/// All blessed values.
pub(crate) struct Baseline {
    /// The compiler of the program that they were counted in.
    pub(crate) compiler: String,
    /// One row per value.
    pub(crate) rows: Vec<Row>,
}

/// One blessed value.
pub(crate) struct Row {
    /// Its name, such as `instructions/up/wss/relay`.
    pub(crate) name: String,
    /// The blessed value.
    pub(crate) value: f64,
    /// The allowed difference, in the same unit.
    pub(crate) tolerance: f64,
    /// The unit, such as `per MiB`.
    pub(crate) unit: String,
}

/// The result of the comparison with the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Within the tolerance.
    WithinTolerance,
    /// Above the tolerance.
    Worse,
    /// Below the tolerance.
    Better,
    /// The baseline was counted with another compiler, so the values are not comparable.
    OtherCompiler,
    /// The baseline has no value with this name.
    Unknown,
}

impl Verdict {
    /// Whether the gate fails.
    pub(crate) fn fails(self) -> bool {
        matches!(self, Self::Worse | Self::Unknown)
    }

    /// The text in the table.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::WithinTolerance => "ok",
            Self::Worse => "WORSE",
            Self::Better => "better",
            Self::OtherCompiler => "other compiler",
            Self::Unknown => "NOT BLESSED",
        }
    }
}

impl Baseline {
    /// Parses the file.
    ///
    /// # Errors
    /// The text contains a line that is not a row, or does not name the compiler.
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
                rows.push(row.ok_or_else(|| format!("not a row of a baseline: \"{line}\""))?);
            }
        }
        let compiler = compiler.ok_or("the baseline does not name its compiler")?;
        Ok(Self { compiler, rows })
    }

    /// The text of the file.
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

    /// The blessed value with this name.
    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// Compares a value that was counted in a program built by `compiler`.
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
            Verdict::WithinTolerance
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

/// Formats with a sensible number of decimal places.
pub(crate) fn shown(value: f64) -> String {
    if value.abs() < 1000.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}
