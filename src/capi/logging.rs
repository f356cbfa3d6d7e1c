//! Sends the log to a function or a descriptor of the host. The library sets the logger of the
//! crate `log`: a host that is not written in Rust has no other one.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::codes::{ApiError, ERROR_ARGUMENT, ERROR_IN_CALLBACK, ERROR_LOG_TAKEN, OK, c_string};
use super::ffi;
use super::log_descriptor::LogDescriptor;
use crate::sys::log_filter::{line, may_be_shown, one_line};

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

enum Sink {
    /// A function with its context, which is never dereferenced. Atomic because every thread passes
    /// it on.
    Function(Callback, AtomicPtr<c_void>),
    Descriptor(Mutex<LogDescriptor>),
}

/// Sends records up to `level` to `callback`, or nowhere. When it returns, the previous callback is
/// not called any more.
pub(super) fn log_to(
    callback: Option<Callback>,
    context: *mut c_void,
    level: c_int,
) -> Result<c_int, ApiError> {
    let sink = callback.map(|callback| Sink::Function(callback, AtomicPtr::new(context)));
    replace(sink, level)
}

/// Writes records up to `level` as lines to a copy of the descriptor `number`.
pub(super) fn log_to_fd(number: c_int, level: c_int) -> Result<c_int, ApiError> {
    let descriptor = ffi::duplicate_for_writing(number).map_err(|error| {
        let what = format!("descriptor {number} cannot be used for the log: {error}");
        ApiError::new(ERROR_ARGUMENT, format!("{what}; open it for writing"))
    })?;
    let sink = Sink::Descriptor(Mutex::new(LogDescriptor::new(descriptor)));
    replace(Some(sink), level)
}

fn replace(sink: Option<Sink>, level: c_int) -> Result<c_int, ApiError> {
    refuse_in_callback()?;
    let level = match (level, &sink) {
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
    // With level 0 the descriptor is closed.
    let sink = sink.filter(|_| level != LevelFilter::Off);
    *SINK.write().unwrap_or_else(PoisonError::into_inner) = sink;
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

/// A level as the header counts them.
fn number(level: Level) -> c_int {
    match level {
        Level::Error => 1,
        Level::Warn => 2,
        Level::Info => 3,
        Level::Debug | Level::Trace => 4,
    }
}

/// Passes records to the sink.
struct Forwarder;

impl Log for Forwarder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        may_be_shown(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if IN_CALLBACK.get() || !self.enabled(record.metadata()) {
            return;
        }
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
        match &*sink {
            Some(Sink::Function(callback, context)) => {
                let text = c_string(one_line(record.args()));
                IN_CALLBACK.set(true);
                callback(
                    context.load(Ordering::Relaxed),
                    number(record.level()),
                    text.as_ptr(),
                );
                IN_CALLBACK.set(false);
            }
            Some(Sink::Descriptor(log)) => {
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                log.write(&line(record));
            }
            None => {}
        }
    }

    fn flush(&self) {}
}
