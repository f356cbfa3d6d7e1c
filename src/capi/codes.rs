//! The results of calls: a code, and an error message that is stored per thread. `upstreamproxy.h`
//! has the same codes.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Increases when programs compiled against an older header would no longer work.
pub(super) const ABI_VERSION: u32 = 1;

/// Success; from `upstreamproxy_start`: the proxy is enabled.
pub(super) const OK: c_int = 0;
/// From `upstreamproxy_start`: the proxy is disabled, which is not an error.
pub(super) const DISABLED: c_int = 1;
/// A pointer that must not be NULL is NULL.
pub(super) const ERROR_NULL: c_int = -1;
/// An argument is out of range.
pub(super) const ERROR_ARGUMENT: c_int = -2;
/// There is no setting of this name.
pub(super) const ERROR_SETTING: c_int = -3;
/// The setting cannot have this value.
pub(super) const ERROR_VALUE: c_int = -4;
/// The log callback must not call this function.
pub(super) const ERROR_IN_CALLBACK: c_int = -5;
/// Called in a child made by fork, which does not have the threads.
pub(super) const ERROR_FORKED: c_int = -6;
/// The program has set another logger for the crate `log`.
pub(super) const ERROR_LOG_TAKEN: c_int = -7;
/// A bug in the library.
pub(super) const ERROR_INTERNAL: c_int = -8;

/// The proxy is enabled.
pub(super) const STATE_ENABLED: c_int = 0;
/// The proxy is disabled, and never was enabled.
pub(super) const STATE_DISABLED: c_int = 1;
/// A shutdown is in progress.
pub(super) const STATE_STOPPING: c_int = 2;
/// The shutdown is complete.
pub(super) const STATE_STOPPED: c_int = 3;

/// As `drain_ms`: use the setting drain-timeout.
pub(super) const DRAIN_DEFAULT: i64 = -1;

/// Why a call failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    /// One of the `ERROR_` codes.
    pub(super) code: c_int,
    text: String,
}

impl ApiError {
    /// An error with its message.
    pub(super) fn new(code: c_int, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// The argument called `what` is NULL.
    pub(super) fn null(what: &str) -> Self {
        Self::new(ERROR_NULL, format!("{what} is NULL"))
    }
}

/// The space for a message and its final zero byte. A longer one is cut: messages name at most one
/// path, and the longest path has 4096 bytes.
const LAST_SIZE: usize = 8192;

thread_local! {
    /// The message of this thread's last error. It has one address for the life of the thread: in
    /// `printf("%d %s", set(...), last_error())` a C compiler may call `last_error` first.
    static LAST: [Cell<u8>; LAST_SIZE] = const { [const { Cell::new(0) }; LAST_SIZE] };
}

/// The message of this thread's last error; empty if there was none. The address stays valid, and
/// the thread's next error replaces the text.
pub(super) fn last_error() -> *const c_char {
    // It is not available while the thread's locals are being destroyed.
    LAST.try_with(|last| last.as_ptr().cast())
        .unwrap_or(c"".as_ptr())
}

/// Replaces the message. A zero byte would end it early, so zero bytes are left out.
fn set_last_error(text: &str) {
    let mut end = text.len().min(LAST_SIZE - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let bytes = text[..end].bytes().filter(|&byte| byte != 0).chain([0]);
    let _ = LAST.try_with(|last| {
        for (cell, byte) in last.iter().zip(bytes) {
            cell.set(byte);
        }
    });
}

/// The code that `call` returns, or the code of its error, whose message is stored for
/// [`last_error`]. A panic becomes an error.
pub(super) fn code_of(call: impl FnOnce() -> Result<c_int, ApiError>) -> c_int {
    attempt(call).unwrap_or_else(|code| code)
}

/// The same for functions that return a value; after an error they return `otherwise`.
pub(super) fn value_of<T>(otherwise: T, call: impl FnOnce() -> Result<T, ApiError>) -> T {
    attempt(call).unwrap_or(otherwise)
}

/// The same for functions that return a string; `None` is NULL, without an error.
pub(super) fn string_of<'a>(
    call: impl FnOnce() -> Result<Option<&'a CStr>, ApiError>,
) -> *const c_char {
    value_of(None, call).map_or(std::ptr::null(), CStr::as_ptr)
}

/// A C string. Zero bytes in the text are removed.
pub(super) fn c_string(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes = text.into();
    bytes.retain(|&byte| byte != 0);
    CString::new(bytes).unwrap_or_default()
}

fn attempt<T>(call: impl FnOnce() -> Result<T, ApiError>) -> Result<T, c_int> {
    let error = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error,
        Err(_) => ApiError::new(
            ERROR_INTERNAL,
            "the library panicked; report it with the message on standard error",
        ),
    };
    set_last_error(&error.text);
    Err(error.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        let bytes = LAST.with(|last| last.iter().map(Cell::get).collect::<Vec<u8>>());
        CStr::from_bytes_until_nul(&bytes)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn an_error_is_a_code_and_a_message_for_this_thread() {
        assert_eq!(code_of(|| Err(ApiError::null("config"))), ERROR_NULL);
        assert_eq!(message(), "config is NULL");
        std::thread::spawn(|| assert_eq!(message(), ""))
            .join()
            .unwrap();
        assert_eq!(code_of(|| Ok(OK)), OK);
        assert_eq!(message(), "config is NULL", "kept until the next error");
    }

    #[test]
    fn the_message_keeps_its_address_and_a_long_one_is_cut_at_a_character() {
        let address = last_error();
        let long = format!("a{}", "\u{e9}".repeat(LAST_SIZE));
        assert_eq!(
            code_of(|| Err(ApiError::new(ERROR_VALUE, long.clone()))),
            ERROR_VALUE
        );
        assert_eq!(last_error(), address);
        assert_eq!(message().len(), LAST_SIZE - 1);
        assert!(long.starts_with(&message()));
        assert_eq!(
            code_of(|| Err(ApiError::new(ERROR_VALUE, "sh\0ort"))),
            ERROR_VALUE
        );
        assert_eq!((last_error(), message().as_str()), (address, "short"));
    }

    #[test]
    fn a_panic_is_an_error_and_goes_no_further() {
        assert_eq!(code_of(|| panic!("on purpose")), ERROR_INTERNAL);
        assert!(message().contains("panicked"));
        assert_eq!(value_of(7, || panic!("on purpose")), 7);
    }

    #[test]
    fn a_c_string_has_no_zero_bytes() {
        assert_eq!(c_string("a\0b"), c"ab".to_owned());
    }
}
