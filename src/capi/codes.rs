//! What a call answers: a code, and the words for it, kept for the thread that was told. `upstreamproxy.h` has the same codes.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Grows when something in the header is changed so that a program compiled against an older one would go wrong.
pub(super) const ABI_VERSION: u32 = 1;

/// Done; of `upstreamproxy_start`: the proxy is up.
pub(super) const OK: c_int = 0;
/// Of `upstreamproxy_start`: the proxy is off, which is no error.
pub(super) const DISABLED: c_int = 1;
/// A pointer is NULL that must not be.
pub(super) const ERROR_NULL: c_int = -1;
/// An argument is outside of what is allowed.
pub(super) const ERROR_ARGUMENT: c_int = -2;
/// There is no setting of this name.
pub(super) const ERROR_SETTING: c_int = -3;
/// The setting cannot have this value.
pub(super) const ERROR_VALUE: c_int = -4;
/// Called from the log callback, which may not.
pub(super) const ERROR_IN_CALLBACK: c_int = -5;
/// Called in a child made by fork, where the threads are missing.
pub(super) const ERROR_FORKED: c_int = -6;
/// The Rust program around us has a logger of its own.
pub(super) const ERROR_LOG_TAKEN: c_int = -7;
/// A fault of the library.
pub(super) const ERROR_INTERNAL: c_int = -8;

/// The proxy is up.
pub(super) const STATE_ENABLED: c_int = 0;
/// The proxy is off, from the start.
pub(super) const STATE_DISABLED: c_int = 1;
/// A shutdown is under way.
pub(super) const STATE_STOPPING: c_int = 2;
/// The shutdown is done.
pub(super) const STATE_STOPPED: c_int = 3;

/// As a drain: the one of the setting drain-timeout.
pub(super) const DRAIN_DEFAULT: i64 = -1;

/// Why a call did not do what it was asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    /// One of the `ERROR_` codes.
    pub(super) code: c_int,
    text: String,
}

impl ApiError {
    /// An error with its sentence.
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

thread_local! {
    /// The words of this thread's last error.
    static LAST: RefCell<CString> = RefCell::default();
}

/// The words of this thread's last error; empty if there was none. Good until the thread's next one.
pub(super) fn last() -> *const c_char {
    // A thread that is at its end has none any more.
    LAST.try_with(|last| last.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// Does `call`: its code, or that of what went wrong, which is kept for [`last`]. No panic passes.
pub(super) fn answer(call: impl FnOnce() -> Result<c_int, ApiError>) -> c_int {
    attempt(call).unwrap_or_else(|code| code)
}

/// The same for what answers with a value, and with `otherwise` when something went wrong.
pub(super) fn value<T>(otherwise: T, call: impl FnOnce() -> Result<T, ApiError>) -> T {
    attempt(call).unwrap_or(otherwise)
}

/// The same for a string that may be missing: then it is NULL, without an error.
pub(super) fn text<'a>(call: impl FnOnce() -> Result<Option<&'a CStr>, ApiError>) -> *const c_char {
    value(None, call).map_or(std::ptr::null(), CStr::as_ptr)
}

/// Text for the other side, which knows no zero bytes within.
pub(super) fn c_string(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes = text.into();
    bytes.retain(|&byte| byte != 0);
    CString::new(bytes).unwrap_or_default()
}

fn attempt<T>(call: impl FnOnce() -> Result<T, ApiError>) -> Result<T, c_int> {
    let wrong = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(wrong)) => wrong,
        Err(_) => ApiError::new(
            ERROR_INTERNAL,
            "the library panicked; report it with the message on standard error",
        ),
    };
    let _ = LAST.try_with(|last| last.replace(c_string(wrong.text)));
    Err(wrong.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said() -> String {
        LAST.with(|last| last.borrow().to_str().unwrap().to_owned())
    }

    #[test]
    fn an_error_is_a_code_and_its_words_for_this_thread_alone() {
        assert_eq!(answer(|| Err(ApiError::null("config"))), ERROR_NULL);
        assert_eq!(said(), "config is NULL");
        std::thread::spawn(|| assert_eq!(said(), ""))
            .join()
            .unwrap();
        assert_eq!(answer(|| Ok(OK)), OK);
        assert_eq!(said(), "config is NULL", "kept until the next error");
    }

    #[test]
    fn a_panic_is_an_error_and_goes_no_further() {
        assert_eq!(answer(|| panic!("on purpose")), ERROR_INTERNAL);
        assert!(said().contains("panicked"));
        assert_eq!(value(7, || panic!("on purpose")), 7);
    }

    #[test]
    fn text_for_the_other_side_has_no_zero_bytes() {
        assert_eq!(c_string("a\0b"), c"ab".to_owned());
    }
}
