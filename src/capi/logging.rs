//! The log, to a function of the host's instead of a stream. The `log` crate's logger is the library's own: a host that is
//! not Rust has none that it could meet.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::codes::{ApiError, ERROR_ARGUMENT, ERROR_IN_CALLBACK, ERROR_LOG_TAKEN, OK, c_string};
use crate::sys::log_filter::{may_be_shown, one_line};

/// A function of the host's: its own context, the level (1 error to 4 debug), the text.
pub(super) type Callback = extern "C" fn(*mut c_void, c_int, *const c_char);

/// Where records go now. Whoever calls back holds it, so that who changes it waits until no call is under way.
static SINK: RwLock<Option<Sink>> = RwLock::new(None);
/// Whether the logger of this process is ours.
static OURS: OnceLock<bool> = OnceLock::new();

thread_local! {
    /// Whether this thread is in the callback: it may then neither log, nor wait for what may have to log.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Sink {
    callback: Callback,
    /// Never looked into; an atomic one because every thread passes it on.
    context: AtomicPtr<c_void>,
}

/// Sends what is logged up to `level` to `callback`, or nowhere. When it returns, the one before is not called any more.
pub(super) fn log_to(
    callback: Option<Callback>,
    context: *mut c_void,
    level: c_int,
) -> Result<c_int, ApiError> {
    outside()?;
    let level = match (level, callback) {
        (_, None) | (0, _) => LevelFilter::Off,
        (1, _) => LevelFilter::Error,
        (2, _) => LevelFilter::Warn,
        (3, _) => LevelFilter::Info,
        (4, _) => LevelFilter::Debug,
        _ => {
            return Err(ApiError::new(
                ERROR_ARGUMENT,
                format!("level {level} is none from 0, nothing, to 4, debug"),
            ));
        }
    };
    if !OURS.get_or_init(|| log::set_logger(&Forwarder).is_ok()) {
        return Err(ApiError::new(
            ERROR_LOG_TAKEN,
            "this program has a logger for the crate log already; read it there",
        ));
    }
    let mut sink = SINK.write().unwrap_or_else(PoisonError::into_inner);
    *sink = callback.map(|callback| Sink {
        callback,
        context: AtomicPtr::new(context),
    });
    log::set_max_level(level);
    Ok(OK)
}

/// An error in the callback, from which nothing may be called that waits for other threads.
pub(super) fn outside() -> Result<(), ApiError> {
    if INSIDE.get() {
        return Err(ApiError::new(
            ERROR_IN_CALLBACK,
            "the log callback may not call this; leave it to another thread",
        ));
    }
    Ok(())
}

/// Hands records on.
struct Forwarder;

impl Log for Forwarder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        may_be_shown(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if INSIDE.get() || !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => 1,
            Level::Warn => 2,
            Level::Info => 3,
            Level::Debug | Level::Trace => 4,
        };
        let text = c_string(one_line(record.args()));
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = &*sink {
            INSIDE.set(true);
            (sink.callback)(sink.context.load(Ordering::Relaxed), level, text.as_ptr());
            INSIDE.set(false);
        }
    }

    fn flush(&self) {}
}
