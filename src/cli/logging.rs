//! The log: standard error, one line per record. Logging never panics and never blocks without
//! limit.
//!
//! [`may_be_shown`] drops records of other crates that could contain secrets, whatever `RUST_LOG`
//! says.

use std::io::Write as _;

use crate::sys::log_filter::{line, may_be_shown};
use log::{LevelFilter, Log, Metadata, Record};

use super::output::stderr;

/// The beginning of every log target of the library and the binary.
const OWN_TARGET: &str = "upstreamproxy";

/// Starts the log at `level`, unless `RUST_LOG` (here: `directives`) has valid directives.
pub(crate) fn start(level: LevelFilter, directives: Option<&str>) {
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
    builder
        .format(|output, record| output.write_all(line(record).as_bytes()))
        .write_style(env_logger::WriteStyle::Never)
        .target(env_logger::Target::Pipe(Box::new(stderr())));
    let logger = builder.build();
    let highest = logger.filter();
    if log::set_boxed_logger(Box::new(Filtered(logger))).is_ok() {
        log::set_max_level(highest);
    }
    for directive in invalid {
        log::warn!("RUST_LOG: {directive} is neither a level nor TARGET=LEVEL; it is ignored");
    }
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
