//! Sends the log to a function of the host. The library sets the logger of the `log` crate: a host
//! that is not written in Rust has no other one.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::codes::{ApiError, ERROR_ARGUMENT, ERROR_IN_CALLBACK, ERROR_LOG_TAKEN, OK, c_string};
use crate::sys::log_filter::{may_be_shown, one_line};

/// A function of the host: its context, the level (1 error to 4 debug), the message.
pub(super) type Callback = extern "C" fn(*mut c_void, c_int, *const c_char);

/// Where records go. A thread holds the lock while it calls back, so a change waits until no call
/// is in progress.
static SINK: RwLock<Option<Sink>> = RwLock::new(None);
/// Whether the logger of this process is [`Forwarder`].
static IS_SET: OnceLock<bool> = OnceLock::new();

thread_local! {
    /// Whether this thread is in the callback. It must then not log, and not wait for a thread that
    /// may log.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

struct Sink {
    callback: Callback,
    /// Never dereferenced. Atomic because every thread passes it on.
    context: AtomicPtr<c_void>,
}

/// Sends records up to `level` to `callback`, or nowhere. When it returns, the previous callback is
/// not called any more.
pub(super) fn log_to(
    callback: Option<Callback>,
    context: *mut c_void,
    level: c_int,
) -> Result<c_int, ApiError> {
    refuse_in_callback()?;
    let level = match (level, callback) {
        (_, None) | (0, _) => LevelFilter::Off,
        (1, _) => LevelFilter::Error,
        (2, _) => LevelFilter::Warn,
        (3, _) => LevelFilter::Info,
        (4, _) => LevelFilter::Debug,
        _ => {
            return Err(ApiError::new(
                ERROR_ARGUMENT,
                format!("there is no level {level}; use 0 (nothing) to 4 (debug)"),
            ));
        }
    };
    if !IS_SET.get_or_init(|| log::set_logger(&Forwarder).is_ok()) {
        return Err(ApiError::new(
            ERROR_LOG_TAKEN,
            "the program has set another logger for the crate log; use that one",
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

/// An error in the callback, which must not call functions that wait for other threads.
pub(super) fn refuse_in_callback() -> Result<(), ApiError> {
    if IN_CALLBACK.get() {
        return Err(ApiError::new(
            ERROR_IN_CALLBACK,
            "the log callback must not call this function; call it from another thread",
        ));
    }
    Ok(())
}

/// Passes records to the callback.
struct Forwarder;

impl Log for Forwarder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        may_be_shown(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if IN_CALLBACK.get() || !self.enabled(record.metadata()) {
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
            IN_CALLBACK.set(true);
            (sink.callback)(sink.context.load(Ordering::Relaxed), level, text.as_ptr());
            IN_CALLBACK.set(false);
        }
    }

    fn flush(&self) {}
}
