//! The C API, of the feature `capi`: what `upstreamproxy.h` promises, one function after the other in its order. The header is
//! the manual; `header` holds it against this page.
//!
//! Everything is checked here, done in `proxy`, `settings` and `logging`, and answered by `answers`; `border` has the pointers.

// Their names are no secret to the linker, which is all that is unsafe on this page.
#![allow(unsafe_code, reason = "no_mangle")]

mod codes;
mod ffi;
mod logging;
mod proxy;
mod settings;

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use codes::{
    ABI_VERSION, ApiError, DISABLED, DRAIN_DEFAULT, ERROR_ARGUMENT, OK, STATE_ENABLED, answer,
    last, text, value,
};
use ffi::{Numbers, Room, Text, Texts};
use logging::Callback;
use proxy::Proxy;
use settings::Settings;

use crate::config::Environment;

/// What the header calls `upstreamproxy_config`.
struct Config(Mutex<Settings>);

/// `struct upstreamproxy_stats`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Stats {
    live: u64,
    tunnels: u64,
    standby: u64,
    standing_by: u64,
    refused: u64,
    broken: u64,
    bytes_up: u64,
    bytes_down: u64,
}
impl Numbers for Stats {}

/// `struct upstreamproxy_report`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Report {
    ended: u64,
    cut: u64,
}
impl Numbers for Report {}

/// The version of this interface.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_abi_version() -> u32 {
    ABI_VERSION
}

/// The version of the library.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The words of this thread's last error.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_last_error() -> *const c_char {
    last()
}

/// Sends the log to a function of the host's.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_log_to(
    callback: Option<Callback>,
    context: *mut c_void,
    level: c_int,
) -> c_int {
    answer(|| logging::log_to(callback, context, level))
}

/// The settings that an environment asks for.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_config_new(
    environment: Texts,
    config: Option<&mut MaybeUninit<Option<Box<Config>>>>,
) -> c_int {
    answer(|| {
        let config = emptied(config, "config")?;
        let environment = match environment.bytes() {
            Some(entries) => settings::environment(&entries),
            None => Environment::of_process(),
        };
        *config = Some(Box::new(Config(Mutex::new(Settings::of(environment)))));
        Ok(OK)
    })
}

/// Changes one setting.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_config_set(config: Option<&Config>, name: Text, value: Text) -> c_int {
    answer(|| {
        let config = given(config, "config")?;
        let name = given(name.bytes(), "name")?;
        let value = given(value.bytes(), "value")?;
        config.with(|settings| settings.set(name, value))
    })
}

/// Calls off every start with these settings.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_config_cancel(config: Option<&Config>) -> c_int {
    answer(|| {
        given(config, "config")?.with(|settings| settings.cancel());
        Ok(OK)
    })
}

/// Frees the settings.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_config_free(config: Option<Box<Config>>) {
    drop(config);
}

/// Goes through the stages up to a proxy that listens.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_start(
    config: Option<&Config>,
    proxy: Option<&mut MaybeUninit<Option<Box<Proxy>>>>,
) -> c_int {
    answer(|| {
        let proxy = emptied(proxy, "proxy")?;
        let config = given(config, "config")?;
        logging::outside()?;
        let settings = config.with(|settings| settings.clone());
        let started = Proxy::start(&settings);
        let state = started.state();
        *proxy = Some(Box::new(started));
        Ok(if state == STATE_ENABLED { OK } else { DISABLED })
    })
}

/// Where it stands.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_state(proxy: Option<&Proxy>) -> c_int {
    answer(|| Ok(given(proxy, "proxy")?.state()))
}

/// The stage at which it is off.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_stage(proxy: Option<&Proxy>) -> *const c_char {
    text(|| Ok(given(proxy, "proxy")?.stage()))
}

/// Why it is off.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_reason(proxy: Option<&Proxy>) -> *const c_char {
    text(|| Ok(given(proxy, "proxy")?.reason()))
}

/// Its port.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_port(proxy: Option<&Proxy>) -> u16 {
    value(0, || Ok(given(proxy, "proxy")?.port()))
}

/// Its URL.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_url(proxy: Option<&Proxy>) -> *const c_char {
    text(|| Ok(given(proxy, "proxy")?.url()))
}

/// Its CA bundle.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_ca_bundle(proxy: Option<&Proxy>) -> *const c_char {
    text(|| Ok(given(proxy, "proxy")?.ca_bundle()))
}

/// How many variables a child needs.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_env_count(proxy: Option<&Proxy>) -> usize {
    value(0, || Ok(given(proxy, "proxy")?.variables().len()))
}

/// The name of one.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_env_name(proxy: Option<&Proxy>, index: usize) -> *const c_char {
    text(|| {
        let variables = given(proxy, "proxy")?.variables();
        Ok(variables.get(index).map(|(name, _)| name.as_c_str()))
    })
}

/// The value of one.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_env_value(proxy: Option<&Proxy>, index: usize) -> *const c_char {
    text(|| {
        let variables = given(proxy, "proxy")?.variables();
        Ok(variables.get(index).map(|(_, value)| value.as_c_str()))
    })
}

/// A child's whole environment.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_environment(proxy: Option<&Proxy>) -> *const *mut c_char {
    value(std::ptr::null(), || {
        let environment = given(proxy, "proxy")?.environment();
        // In the type that execve wants; the header says that nobody may write there.
        Ok(environment.as_ptr().cast())
    })
}

/// What has happened so far.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_read_stats(
    proxy: Option<&Proxy>,
    stats: Room<Stats>,
    size: usize,
) -> c_int {
    answer(|| {
        let now = given(proxy, "proxy")?.stats();
        given(stats.is_there().then_some(()), "stats")?;
        let now = Stats {
            live: now.live,
            tunnels: now.tunnels,
            standby: now.standby,
            standing_by: now.standing_by,
            refused: now.refused,
            broken: now.broken,
            bytes_up: now.bytes_up,
            bytes_down: now.bytes_down,
        };
        stats.fill(&now, size);
        Ok(OK)
    })
}

/// Ends at once what a shutdown gives time to.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_abort(proxy: Option<&Proxy>) -> c_int {
    answer(|| {
        given(proxy, "proxy")?.abort()?;
        Ok(OK)
    })
}

/// Stops it, and returns when that is done.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_shutdown(
    proxy: Option<&Proxy>,
    drain_ms: i64,
    report: Room<Report>,
    size: usize,
) -> c_int {
    answer(|| {
        let drain = match u64::try_from(drain_ms) {
            Ok(ms) => Some(Duration::from_millis(ms)),
            Err(_) if drain_ms == DRAIN_DEFAULT => None,
            Err(_) => {
                return Err(ApiError::new(
                    ERROR_ARGUMENT,
                    format!(
                        "a drain of {drain_ms} ms; {DRAIN_DEFAULT} stands for the configured one"
                    ),
                ));
            }
        };
        let done = given(proxy, "proxy")?.shutdown(drain)?;
        let done = Report {
            ended: done.ended,
            cut: done.cut,
        };
        report.fill(&done, size);
        Ok(OK)
    })
}

/// Stops it if it is up, and frees it.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_free(proxy: Option<Box<Proxy>>) {
    let freed = answer(|| {
        if let Some(proxy) = &proxy {
            proxy.shutdown(None)?;
        }
        Ok(OK)
    });
    // What cannot be stopped here lives on.
    if freed != OK {
        std::mem::forget(proxy);
    }
}

impl Config {
    fn with<T>(&self, work: impl FnOnce(&mut Settings) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The argument called `what`, which must be there.
fn given<T>(argument: Option<T>, what: &str) -> Result<T, ApiError> {
    argument.ok_or_else(|| ApiError::null(what))
}

/// Where the argument called `what` wants a pointer to be written, with NULL in it for now.
fn emptied<'a, T>(
    room: Option<&'a mut MaybeUninit<Option<T>>>,
    what: &str,
) -> Result<&'a mut Option<T>, ApiError> {
    Ok(given(room, what)?.write(None))
}

#[cfg(test)]
mod header;
