//! The macros `error!`, `warn!`, `info!` and `debug!` of the crate `log`, with a guard around the
//! host's logger.
//!
//! A logger is code of the host. If it panics, the record is lost and the caller continues: no
//! thread of this crate may end because a line cannot be written. It may also call this crate's
//! API. A shutdown from inside the logger must not wait for the thread that logs, so the guard
//! records that a call is in progress.

use std::cell::Cell;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::{Log, Metadata, Record};

/// The relay or the gateway at one port, as the source of log lines.
#[derive(Clone, Debug)]
pub(crate) struct LogSource {
    name: &'static str,
    target: String,
}

impl LogSource {
    /// The source with this name, `relay` or `gateway`, that listens at `address`.
    pub(crate) fn new(name: &'static str, address: SocketAddr) -> Self {
        let target = format!("upstreamproxy::{name}::{}", address.port());
        Self { name, target }
    }

    /// The start of its lines about connections: `relay` or `gateway`.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The log target of its lines. It ends with the port, so that the lines of several relays in
    /// one process can be distinguished.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }
}

thread_local! {
    /// Whether this thread is inside the host's logger.
    static IN_LOGGER: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside the host's logger.
pub(crate) fn in_logger() -> bool {
    IN_LOGGER.get()
}

/// The host's logger. Its panics end here.
pub(crate) struct GuardedLogger;

impl GuardedLogger {
    fn guard<T: Default>(call: impl FnOnce(&dyn Log) -> T) -> T {
        let before = IN_LOGGER.replace(true);
        let result = catch_unwind(AssertUnwindSafe(|| call(log::logger())));
        IN_LOGGER.set(before);
        result.unwrap_or_default()
    }
}

impl Log for GuardedLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        Self::guard(|logger| logger.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        Self::guard(|logger| logger.log(record));
    }

    fn flush(&self) {
        Self::guard(|logger| logger.flush());
    }
}

macro_rules! log_error {
    ($($arguments:tt)+) => {
        ::log::error!(logger: $crate::control::log::GuardedLogger, $($arguments)+)
    };
}
macro_rules! log_warn {
    ($($arguments:tt)+) => {
        ::log::warn!(logger: $crate::control::log::GuardedLogger, $($arguments)+)
    };
}
macro_rules! log_info {
    ($($arguments:tt)+) => {
        ::log::info!(logger: $crate::control::log::GuardedLogger, $($arguments)+)
    };
}
macro_rules! log_debug {
    ($($arguments:tt)+) => {
        ::log::debug!(logger: $crate::control::log::GuardedLogger, $($arguments)+)
    };
}
// `warn` alone would be ambiguous with the attribute.
pub(crate) use {log_debug as debug, log_error as error, log_info as info, log_warn as warn};
