//! The log: standard error, one line a record, never a panic and never a wait without end.
//!
//! What other crates must not be heard of, [`may_be_shown`] keeps back, whatever `RUST_LOG` says.

use std::fs::{File, OpenOptions};
use std::io::{self, Stderr, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use crate::sys::log_filter::{may_be_shown, one_line};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::ExitStatus;

/// What a directive that is no level begins with; library and binary bear the same name.
const OURS: &str = "upstreamproxy";
/// How long one line may wait for a reader of standard error. After a line was given up the next ones do not wait at all.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Starts the log at `level`, unless `RUST_LOG` (here: `directives`) says something else.
pub(crate) fn start(level: LevelFilter, directives: Option<&str>) {
    let mut builder = env_logger::Builder::new();
    let mut refused = Vec::new();
    let mut obeyed = false;
    for directive in directives.unwrap_or_default().split(',').map(str::trim) {
        match parse(directive) {
            Some((target, level)) => {
                builder.filter(target, level);
                obeyed = true;
            }
            None if directive.is_empty() => {}
            None => refused.push(directive),
        }
    }
    if !obeyed {
        builder.filter_level(level);
    }
    builder
        .format(|output, record| output.write_all(line(record).as_bytes()))
        .write_style(env_logger::WriteStyle::Never)
        .target(env_logger::Target::Pipe(Box::new(Unblocked::stderr())));
    let logger = builder.build();
    let highest = logger.filter();
    if log::set_boxed_logger(Box::new(Capped(logger))).is_ok() {
        log::set_max_level(highest);
    }
    for directive in refused {
        log::warn!("RUST_LOG: {directive} is not a level or TARGET=LEVEL, it is left out");
    }
}

/// One directive of `RUST_LOG`: a level for everything, a target for all of it, or a level for a target.
fn parse(directive: &str) -> Option<(Option<&str>, LevelFilter)> {
    match directive.split_once('=') {
        Some((target, level)) => Some((Some(target.trim()), level.trim().parse().ok()?)),
        None => match directive.parse() {
            Ok(level) => Some((None, level)),
            Err(_) if directive.starts_with(OURS) => Some((Some(directive), LevelFilter::Trace)),
            Err(_) => None,
        },
    }
}

/// `upstreamproxy: warn: text`; what is plain information goes without its level. One line, whatever the text holds.
fn line(record: &Record<'_>) -> String {
    let level = match record.level() {
        Level::Error => "error: ",
        Level::Warn => "warn: ",
        Level::Info => "",
        Level::Debug => "debug: ",
        Level::Trace => "trace: ",
    };
    format!("upstreamproxy: {level}{}\n", one_line(record.args()))
}

/// Writes one sentence to standard error, outside the log: for what its reader must see at any level.
pub(crate) fn say(sentence: &str) {
    let _ = Unblocked::stderr().write_all(format!("upstreamproxy: {sentence}\n").as_bytes());
}

/// Writes to standard error as it stands: a line that will be written over.
#[cfg(feature = "bench")]
pub(crate) fn put(text: &str) {
    let _ = Unblocked::stderr().write_all(text.as_bytes());
}

/// Prints to standard output. One that is gone is no reason to fail, as little as it is to panic.
pub(crate) fn print(bytes: &[u8]) {
    let mut output = io::stdout();
    if let Err(error) = output.write_all(bytes).and_then(|()| output.flush()) {
        log::debug!("standard output cannot be written to: {error}");
    }
}

/// Says what is wrong and gives the status to end with.
pub(crate) fn fail(sentence: &str, status: ExitStatus) -> ExitStatus {
    say(&format!("error: {sentence}"));
    status
}

/// A logger that lets little of other crates through.
struct Capped(env_logger::Logger);

impl Log for Capped {
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

/// Standard error without waiting for its reader longer than [`PATIENCE`]: what cannot be written is dropped.
///
/// `O_NONBLOCK` on descriptor 2 itself would reach everyone who shares it, the child first; so a pipe or a terminal is
/// opened once more, which gives flags of our own. Where that is not allowed readiness is asked for before each write,
/// which leaves one gap: another writer may fill a pipe in between.
struct Unblocked {
    own: Option<File>,
    shared: Stderr,
    given_up: bool,
}

impl Unblocked {
    fn stderr() -> Self {
        Self {
            own: reopened().ok(),
            shared: io::stderr(),
            given_up: false,
        }
    }

    /// Whether a write can make progress now.
    fn is_ready(&mut self) -> bool {
        let fd = match &self.own {
            Some(file) => file.as_fd(),
            None => self.shared.as_fd(),
        };
        let patience = if self.given_up {
            Timespec::default()
        } else {
            PATIENCE
        };
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&patience));
        // What cannot be polled, or has an error to tell, is told by the write.
        let ready = !matches!(ready, Ok(0));
        self.given_up = !ready;
        ready
    }
}

impl Write for Unblocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match &mut self.own {
            Some(file) => file.write(bytes),
            None => self.shared.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A second description of standard error, one that never blocks.
fn reopened() -> io::Result<File> {
    let path = "/proc/self/fd/2";
    let kind = std::fs::metadata(path)?.file_type();
    // A regular file never blocks, and a second description of it would write at an offset of its own.
    if !kind.is_fifo() && !kind.is_char_device() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new()
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_with_its_level() {
        let text = |level, message: &str| {
            line(
                &Record::builder()
                    .level(level)
                    .args(format_args!("{message}"))
                    .build(),
            )
        };
        assert_eq!(text(Level::Warn, "a"), "upstreamproxy: warn: a\n");
        assert_eq!(text(Level::Info, "3 tunnels"), "upstreamproxy: 3 tunnels\n");
        assert_eq!(text(Level::Error, "a\nb"), "upstreamproxy: error: a\\nb\n");
    }

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

    #[test]
    fn a_pipe_that_nobody_reads_does_not_block() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let mut stalled = Unblocked {
            own: Some(File::from(writer)),
            shared: io::stderr(),
            given_up: false,
        };
        let line = [b'x'; 1000];
        let written = (0..1000)
            .take_while(|_| stalled.write_all(&line).is_ok())
            .count();
        assert!((1..1000).contains(&written));
        assert!(stalled.given_up);
        drop(reader);
        assert!(
            stalled.write_all(&line).is_err(),
            "a reader that is gone is an error, no signal"
        );
    }
}
