//! The log: standard error or a file, one line per record. Logging never panics and never blocks
//! without limit.
//!
//! [`may_be_shown`] drops records of other crates that could contain secrets, whatever `RUST_LOG`
//! says.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};
use serde::Serialize;

use super::log_file::LogFile;
use super::output::{json_line, stderr};
use crate::config::Environment;
use crate::sys::log_filter::{line, may_be_shown, one_line};

/// The beginning of every log target of the library and the binary.
const OWN_TARGET: &str = "upstreamproxy";

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// `upstreamproxy: warn: text`.
    #[default]
    Text,
    /// The same after the time, in UTC ([RFC 3339]).
    ///
    /// [RFC 3339]: https://www.rfc-editor.org/rfc/rfc3339
    Time,
    /// A JSON object.
    Json,
}

impl LogFormat {
    /// The name of each format, in the order of `ALL`.
    pub(crate) const NAMES: &[&str] = &["text", "time", "json"];
    pub(super) const ALL: &[Self] = &[Self::Text, Self::Time, Self::Json];

    fn write(self, output: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
        let time = || humantime::format_rfc3339_millis(SystemTime::now());
        match self {
            Self::Text => {}
            Self::Time => write!(output, "{} ", time())?,
            Self::Json => {
                let record = JsonRecord {
                    time: time().to_string(),
                    level: record.level().as_str().to_ascii_lowercase(),
                    target: record.target(),
                    pid: std::process::id(),
                    message: one_line(record.args()),
                };
                return output.write_all(json_line(&record).as_bytes());
            }
        }
        output.write_all(line(record).as_bytes())
    }
}

/// A record in the format `json`.
#[derive(Serialize)]
struct JsonRecord<'a> {
    time: String,
    level: String,
    target: &'a str,
    pid: u32,
    message: String,
}

/// Where the log goes, and its form.
#[derive(Debug, Default)]
pub(crate) struct LogOptions {
    /// `None`: `time` in a log file and for a server, else `text`.
    pub(crate) format: Option<LogFormat>,
    /// `None`: standard error.
    pub(crate) file: Option<PathBuf>,
}

/// Starts the log at `level`, unless `RUST_LOG` has valid directives.
///
/// The lines of a server have the time, unless the journal adds it.
pub(crate) fn start(options: LogOptions, level: LevelFilter, server: bool, env: &Environment) {
    let directives = env.text("RUST_LOG");
    let mut builder = env_logger::Builder::new();
    let mut invalid = Vec::new();
    let mut has_directives = false;
    for directive in directives.unwrap_or_default().split(',').map(str::trim) {
        match parse(directive) {
            Some((target, level)) => {
                builder.filter(target, level);
                has_directives = true;
            }
            None if directive.is_empty() => {}
            None => invalid.push(directive),
        }
    }
    if !has_directives {
        builder.filter_level(level);
    }
    let (file, problem) = match options.file.as_deref().map(LogFile::open).transpose() {
        Ok(file) => (file, None),
        // The log still goes somewhere, and the session goes on.
        Err(error) => (None, Some(error)),
    };
    let with_time = file.is_some() || (server && !is_journal(env));
    let format = options.format.unwrap_or(if with_time {
        LogFormat::Time
    } else {
        LogFormat::Text
    });
    let output: Box<dyn Write + Send> = match file {
        Some(file) => Box::new(file),
        None => Box::new(stderr()),
    };
    builder
        .format(move |output, record| format.write(output, record))
        .write_style(env_logger::WriteStyle::Never)
        .target(env_logger::Target::Pipe(output));
    let logger = builder.build();
    let highest = logger.filter();
    if log::set_boxed_logger(Box::new(Filtered(logger))).is_ok() {
        log::set_max_level(highest);
    }
    if let (Some(error), Some(path)) = (problem, options.file) {
        log::warn!(
            "the log file {} cannot be opened: {error}; the log goes to standard error: name \
             another file with --log-file",
            path.display()
        );
    }
    for directive in invalid {
        log::warn!("RUST_LOG: {directive} is neither a level nor TARGET=LEVEL; it is ignored");
    }
}

/// Whether standard error leads to the journal of systemd (`JOURNAL_STREAM`, systemd.exec(5)).
fn is_journal(env: &Environment) -> bool {
    let stream = env.text("JOURNAL_STREAM");
    let stream = stream.and_then(|stream| stream.split_once(':'));
    let stderr = rustix::fs::fstat(std::io::stderr());
    stream.zip(stderr.ok()).is_some_and(|((dev, ino), stderr)| {
        (dev.parse(), ino.parse()) == (Ok(stderr.st_dev), Ok(stderr.st_ino))
    })
}

/// Parses one directive of `RUST_LOG`: a level, a target (all its records), or `TARGET=LEVEL`.
fn parse(directive: &str) -> Option<(Option<&str>, LevelFilter)> {
    match directive.split_once('=') {
        Some((target, level)) => Some((Some(target.trim()), level.trim().parse().ok()?)),
        None => match directive.parse() {
            Ok(level) => Some((None, level)),
            Err(_) if directive.starts_with(OWN_TARGET) => {
                Some((Some(directive), LevelFilter::Trace))
            }
            Err(_) => None,
        },
    }
}

/// A logger that drops most records of other crates.
struct Filtered(env_logger::Logger);

impl Log for Filtered {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        may_be_shown(metadata) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if may_be_shown(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_levels_and_targets() {
        assert_eq!(parse("debug"), Some((None, LevelFilter::Debug)));
        assert_eq!(parse("OFF"), Some((None, LevelFilter::Off)));
        assert_eq!(
            parse("upstreamproxy::relay=trace"),
            Some((Some("upstreamproxy::relay"), LevelFilter::Trace))
        );
        assert_eq!(
            parse("upstreamproxy"),
            Some((Some("upstreamproxy"), LevelFilter::Trace))
        );
        assert_eq!(parse("loud"), None);
        assert_eq!(parse("a=loud"), None);
    }
}
