//! Pointers from and to C, and the only unsafe code of the C API.
//!
//! Opaque objects are passed as `Option<&T>`, `Option<Box<T>>` and `Option<&mut MaybeUninit<..>>`,
//! which have the layout of a pointer that may be NULL; they need no unsafe code. The other
//! pointers are in this file. The header requires of the caller that pointers are valid, that
//! strings end with a zero byte, and that no object is freed while it is used.

#![allow(unsafe_code, reason = "pointers from C")]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

/// A string from C; may be NULL.
#[repr(transparent)]
pub(super) struct CStrPtr(*const c_char);

impl CStrPtr {
    /// Its bytes, without the zero byte at the end.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        // SAFETY: not NULL; the caller guarantees a string that ends with a zero byte and is valid
        // during the call, which this argument does not outlive.
        (!self.0.is_null()).then(|| unsafe { CStr::from_ptr(self.0) }.to_bytes())
    }
}

/// The start of some bytes from C; may be NULL.
#[repr(transparent)]
pub(super) struct BytesPtr(*const u8);

impl BytesPtr {
    /// The first `length` bytes.
    pub(super) fn bytes(&self, length: usize) -> Option<&[u8]> {
        // SAFETY: not NULL; the caller guarantees `length` readable bytes during the call, which
        // this argument does not outlive. No object is larger than isize::MAX.
        (!self.0.is_null() && length <= isize::MAX.unsigned_abs())
            .then(|| unsafe { std::slice::from_raw_parts(self.0, length) })
    }
}

/// An array of strings from C that ends with NULL; may be NULL itself.
#[repr(transparent)]
pub(super) struct CStrArray(*const *const c_char);

impl CStrArray {
    /// The bytes of each.
    pub(super) fn bytes(&self) -> Option<Vec<&[u8]>> {
        if self.0.is_null() {
            return None;
        }
        let mut all = Vec::new();
        let mut at = self.0;
        loop {
            // SAFETY: the caller guarantees that every element up to the NULL can be read, and that
            // each is a string as above. Nothing after the NULL is read.
            let text = unsafe {
                if (*at).is_null() {
                    return Some(all);
                }
                CStr::from_ptr(*at).to_bytes()
            };
            all.push(text);
            // SAFETY: the element was not NULL, so the array has a next one.
            at = unsafe { at.add(1) };
        }
    }
}

/// Where C expects a struct of numbers to be written; may be NULL.
#[repr(transparent)]
pub(super) struct OutPtr<T: Numbers>(*mut u8, PhantomData<T>);

/// A `repr(C)` struct whose fields are all `u64`: it has no padding, and any prefix of it can be
/// copied.
pub(super) trait Numbers: Copy {}

impl<T: Numbers> OutPtr<T> {
    /// Whether it is NULL.
    pub(super) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Writes the part of `value` that fits into `size` bytes. The additional fields of a newer
    /// header become zero.
    pub(super) fn write(&self, value: &T, size: usize) {
        if self.0.is_null() {
            return;
        }
        let fits = size.min(size_of::<T>());
        // SAFETY: the caller guarantees `size` writable bytes. `value` has at least `fits` bytes,
        // all initialised, and it belongs to Rust, so the two do not overlap.
        unsafe {
            ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>(), self.0, fits);
            ptr::write_bytes(self.0.add(fits), 0, size - fits);
        }
    }
}

/// A copy of the descriptor `number` of the host.
///
/// # Errors
/// It is not open, or not for writing.
pub(super) fn duplicate_for_writing(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the descriptor is borrowed during this call, in which the caller keeps it open. If it
    // is not open, the system calls fail.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    if fcntl_getfl(descriptor)? & OFlags::RWMODE == OFlags::RDONLY {
        return Err(Errno::BADF.into());
    }
    Ok(fcntl_dupfd_cloexec(descriptor, 3)?)
}

/// Strings for C as an array that ends with NULL, like `environ`.
pub(super) struct Array {
    /// The strings that the pointers point to. They are never changed, so the pointers stay valid.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers point to memory that belongs to the same value, and neither is ever changed.
unsafe impl Send for Array {}
// SAFETY: as above; it is only ever read.
unsafe impl Sync for Array {}

impl Array {
    /// An array of these strings.
    pub(super) fn new(strings: Vec<CString>) -> Self {
        let end = std::iter::once(ptr::null());
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain(end)
            .collect();
        Self {
            _strings: strings,
            pointers,
        }
    }

    /// Its first element.
    pub(super) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Two(u64, u64);
    impl Numbers for Two {}

    #[test]
    fn a_struct_is_cut_for_an_older_caller_and_zero_filled_for_a_newer_one() {
        let filled = |size: usize| {
            let mut bytes = [0xff_u8; 32];
            OutPtr::<Two>(bytes.as_mut_ptr(), PhantomData).write(&Two(1, 2), size);
            bytes
        };
        let expected = |numbers: [u64; 4]| numbers.map(u64::to_ne_bytes).concat();
        assert_eq!(filled(0)[..], [0xff; 32]);
        assert_eq!(filled(8)[..], expected([1, u64::MAX, u64::MAX, u64::MAX]));
        assert_eq!(filled(16)[..], expected([1, 2, u64::MAX, u64::MAX]));
        assert_eq!(filled(24)[..], expected([1, 2, 0, u64::MAX]));
        OutPtr::<Two>(ptr::null_mut(), PhantomData).write(&Two(1, 2), 16);
    }

    #[test]
    fn strings_and_arrays_of_them_may_be_null() {
        assert_eq!(CStrPtr(ptr::null()).bytes(), None);
        assert_eq!(CStrPtr(c"a".as_ptr()).bytes(), Some(&b"a"[..]));
        assert_eq!(CStrArray(ptr::null()).bytes(), None);
        let array = Array::new(vec![c"a".into(), c"".into()]);
        let read = CStrArray(array.as_ptr());
        assert_eq!(read.bytes(), Some(vec![&b"a"[..], b""]));
        assert_eq!(
            CStrArray(Array::new(Vec::new()).as_ptr()).bytes(),
            Some(Vec::new())
        );
    }
}
