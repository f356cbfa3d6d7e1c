//! The C API, with the feature `capi`: the functions of `upstreamproxy.h`, in its order. The header
//! is the manual; `tests/integration/capi/header.rs` compares it with this file.
//!
//! The functions check their arguments here. `proxy`, `settings` and `logging` do the work, `codes`
//! has the results, and `ffi` converts pointers.

// Exported names are the only unsafe feature in this file.
#![allow(unsafe_code, reason = "no_mangle")]

mod codes;
mod ffi;
mod log_descriptor;
mod logging;
mod proxy;
mod settings;

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use codes::{
    ABI_VERSION, ApiError, DISABLED, DRAIN_DEFAULT, ERROR_ARGUMENT, OK, STATE_ENABLED, code_of,
    last_error, string_of, value_of,
};
use ffi::{BytesPtr, CStrArray, CStrPtr, Numbers, OutPtr};
use logging::Callback;
use proxy::Proxy;

use crate::config;

/// `upstreamproxy_config` in the header.
struct ConfigHandle(Mutex<config::Config>);

/// `struct upstreamproxy_stats`.
#[derive(Clone, Copy)]
#[repr(C)]
struct StatsOut {
    live: u64,
    tunnels: u64,
    standby_used: u64,
    standby_open: u64,
    refused: u64,
    broken: u64,
    bytes_up: u64,
    bytes_down: u64,
}
impl Numbers for StatsOut {}

/// `struct upstreamproxy_report`.
#[derive(Clone, Copy)]
#[repr(C)]
struct ReportOut {
    ended: u64,
    cut: u64,
}
impl Numbers for ReportOut {}

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

/// The message of this thread's last error.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_last_error() -> *const c_char {
    last_error()
}

/// Sends the log to a function of the host.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_log_to(
    callback: Option<Callback>,
    context: *mut c_void,
    level: c_int,
) -> c_int {
    code_of(|| logging::log_to(callback, context, level))
}

/// Writes the log to a descriptor of the host.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_log_to_fd(fd: c_int, level: c_int) -> c_int {
    code_of(|| logging::log_to_fd(fd, level))
}

/// The settings in an environment.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_config_new(
    environment: CStrArray,
    config: Option<&mut MaybeUninit<Option<Box<ConfigHandle>>>>,
) -> c_int {
    code_of(|| {
        let config = cleared(config, "config")?;
        let environment = match environment.bytes() {
            Some(entries) => settings::environment(&entries),
            None => config::Environment::of_process(),
        };
        let settings = config::Config::from_environment(environment);
        *config = Some(Box::new(ConfigHandle(Mutex::new(settings))));
        Ok(OK)
    })
}

/// Changes one setting.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_config_set(
    config: Option<&ConfigHandle>,
    name: CStrPtr,
    value: CStrPtr,
) -> c_int {
    code_of(|| {
        let config = given(config, "config")?;
        let name = given(name.bytes(), "name")?;
        let value = given(value.bytes(), "value")?;
        config.with(|config| settings::set(config, name, value))
    })
}

/// Gives the session token.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_config_set_token(
    config: Option<&ConfigHandle>,
    token: BytesPtr,
    length: usize,
) -> c_int {
    code_of(|| {
        let config = given(config, "config")?;
        let token = given(token.bytes(length), "token")?;
        config.with(|config| settings::set_token(config, token))
    })
}

/// Cancels every start with these settings.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_config_cancel(config: Option<&ConfigHandle>) -> c_int {
    code_of(|| {
        given(config, "config")?.with(|config| config.cancel.request());
        Ok(OK)
    })
}

/// Frees the settings.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_config_free(config: Option<Box<ConfigHandle>>) {
    drop(config);
}

/// Runs the stages up to a listening proxy.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_start(
    config: Option<&ConfigHandle>,
    proxy: Option<&mut MaybeUninit<Option<Box<Proxy>>>>,
) -> c_int {
    code_of(|| {
        let proxy = cleared(proxy, "proxy")?;
        let config = given(config, "config")?;
        logging::refuse_in_callback()?;
        let started = Proxy::start(config.with(|config| config.clone()));
        let state = started.state();
        *proxy = Some(Box::new(started));
        Ok(if state == STATE_ENABLED { OK } else { DISABLED })
    })
}

/// Its state.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_state(proxy: Option<&Proxy>) -> c_int {
    code_of(|| Ok(given(proxy, "proxy")?.state()))
}

/// The stage at which it was disabled.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_stage(proxy: Option<&Proxy>) -> *const c_char {
    string_of(|| Ok(given(proxy, "proxy")?.stage.as_deref()))
}

/// Why it is disabled.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_reason(proxy: Option<&Proxy>) -> *const c_char {
    string_of(|| Ok(given(proxy, "proxy")?.reason.as_deref()))
}

/// Its port.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_port(proxy: Option<&Proxy>) -> u16 {
    value_of(0, || Ok(given(proxy, "proxy")?.port))
}

/// Its URL.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_url(proxy: Option<&Proxy>) -> *const c_char {
    string_of(|| Ok(given(proxy, "proxy")?.url.as_deref()))
}

/// Its CA bundle.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_ca_bundle(proxy: Option<&Proxy>) -> *const c_char {
    string_of(|| Ok(given(proxy, "proxy")?.ca_bundle.as_deref()))
}

/// How many variables a child needs.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_env_count(proxy: Option<&Proxy>) -> usize {
    value_of(0, || Ok(given(proxy, "proxy")?.variables.len()))
}

/// The name of a variable.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_env_name(proxy: Option<&Proxy>, index: usize) -> *const c_char {
    string_of(|| {
        let variables = &given(proxy, "proxy")?.variables;
        Ok(variables.get(index).map(|(name, _)| name.as_c_str()))
    })
}

/// The value of a variable.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_env_value(proxy: Option<&Proxy>, index: usize) -> *const c_char {
    string_of(|| {
        let variables = &given(proxy, "proxy")?.variables;
        Ok(variables.get(index).map(|(_, value)| value.as_c_str()))
    })
}

/// The complete environment for a child process.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_environment(proxy: Option<&Proxy>) -> *const *mut c_char {
    value_of(std::ptr::null(), || {
        let environment = &given(proxy, "proxy")?.environment;
        // The type of the argument of execve. The header forbids writing to it.
        Ok(environment.as_ptr().cast())
    })
}

/// Replaces the session token.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_replace_token(
    proxy: Option<&Proxy>,
    token: BytesPtr,
    length: usize,
) -> c_int {
    code_of(|| {
        let proxy = given(proxy, "proxy")?;
        let token = given(token.bytes(length), "token")?;
        proxy.replace_token(settings::secret(token)?)
    })
}

/// The counters.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_read_stats(
    proxy: Option<&Proxy>,
    stats: OutPtr<StatsOut>,
    size: usize,
) -> c_int {
    code_of(|| {
        let now = given(proxy, "proxy")?.stats();
        given((!stats.is_null()).then_some(()), "stats")?;
        let now = StatsOut {
            live: now.live,
            tunnels: now.tunnels,
            standby_used: now.standby_used,
            standby_open: now.standby_open,
            refused: now.refused,
            broken: now.broken,
            bytes_up: now.bytes_up,
            bytes_down: now.bytes_down,
        };
        stats.write(&now, size);
        Ok(OK)
    })
}

/// Cuts every open tunnel at once.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_abort(proxy: Option<&Proxy>) -> c_int {
    code_of(|| {
        given(proxy, "proxy")?.abort()?;
        Ok(OK)
    })
}

/// Stops it, and returns when it is stopped.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_shutdown(
    proxy: Option<&Proxy>,
    drain_ms: i64,
    report: OutPtr<ReportOut>,
    size: usize,
) -> c_int {
    code_of(|| {
        let drain = match u64::try_from(drain_ms) {
            Ok(ms) => Some(Duration::from_millis(ms)),
            Err(_) if drain_ms == DRAIN_DEFAULT => None,
            Err(_) => {
                return Err(ApiError::new(
                    ERROR_ARGUMENT,
                    format!(
                        "a drain of {drain_ms} ms is not possible; use 0 or more, or {DRAIN_DEFAULT} for the default"
                    ),
                ));
            }
        };
        let done = given(proxy, "proxy")?.shutdown(drain)?;
        let done = ReportOut {
            ended: done.ended,
            cut: done.cut,
        };
        report.write(&done, size);
        Ok(OK)
    })
}

/// Stops it if it is enabled, and frees it.
#[unsafe(no_mangle)]
extern "C" fn upstreamproxy_free(proxy: Option<Box<Proxy>>) {
    let freed = code_of(|| {
        if let Some(proxy) = &proxy {
            proxy.shutdown(None)?;
        }
        Ok(OK)
    });
    // A proxy that cannot be stopped here stays alive.
    if freed != OK {
        std::mem::forget(proxy);
    }
}

impl ConfigHandle {
    fn with<T>(&self, work: impl FnOnce(&mut config::Config) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The argument called `what`, which must not be NULL.
fn given<T>(argument: Option<T>, what: &str) -> Result<T, ApiError> {
    argument.ok_or_else(|| ApiError::null(what))
}

/// The output argument called `what`, set to NULL for now.
fn cleared<'a, T>(
    output: Option<&'a mut MaybeUninit<Option<T>>>,
    what: &str,
) -> Result<&'a mut Option<T>, ApiError> {
    Ok(given(output, what)?.write(None))
}
