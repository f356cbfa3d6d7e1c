//! The border itself, and the only unsafe code of the C API: what comes over it as a pointer, and what goes out as one.
//!
//! Opaque objects cross as `Option<&T>`, `Option<Box<T>>` and `Option<&mut MaybeUninit<..>>`, whose layout is that of a
//! pointer that may be NULL: there the compiler stands guard. What is left stands here. That pointers are good, strings end
//! with a zero byte, and nothing is freed while it is used, is the caller's promise; the header asks for it.

#![allow(unsafe_code, reason = "pointers from C, and the signal mask")]

use std::ffi::{CStr, CString, c_char};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;

/// A string from the other side; may be NULL.
#[repr(transparent)]
pub(super) struct Text(*const c_char);

impl Text {
    /// Its bytes, without the zero at its end.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        // SAFETY: not NULL, and by the caller's promise a string that ends with a zero and lasts for the call, which is as
        // long as this argument of it does.
        (!self.0.is_null()).then(|| unsafe { CStr::from_ptr(self.0) }.to_bytes())
    }
}

/// An array of strings from the other side, with a NULL at its end; may be NULL itself.
#[repr(transparent)]
pub(super) struct Texts(*const *const c_char);

impl Texts {
    /// The bytes of each.
    pub(super) fn bytes(&self) -> Option<Vec<&[u8]>> {
        if self.0.is_null() {
            return None;
        }
        let mut all = Vec::new();
        let mut at = self.0;
        loop {
            // SAFETY: by the caller's promise every element up to the NULL can be read, and each is a string that lasts for
            // the call, as above. Nothing behind the NULL is looked at.
            let text = unsafe {
                if (*at).is_null() {
                    return Some(all);
                }
                CStr::from_ptr(*at).to_bytes()
            };
            all.push(text);
            // SAFETY: the element was not the last one, so that there is a next.
            at = unsafe { at.add(1) };
        }
    }
}

/// Where the other side wants a struct of numbers; may be NULL.
#[repr(transparent)]
pub(super) struct Room<T: Numbers>(*mut u8, PhantomData<T>);

/// A `repr(C)` struct of nothing but `u64`: no byte of it is padding, and any prefix of it can be copied.
pub(super) trait Numbers: Copy {}

impl<T: Numbers> Room<T> {
    /// Whether there is any.
    pub(super) fn is_there(&self) -> bool {
        !self.0.is_null()
    }

    /// Writes as much of `value` as fits into `size` bytes. What a newer caller has behind that becomes zero.
    pub(super) fn fill(&self, value: &T, size: usize) {
        if self.0.is_null() {
            return;
        }
        let fits = size.min(size_of::<T>());
        // SAFETY: by the caller's promise there are `size` bytes to write to. `value` has at least `fits` bytes, all of
        // them initialised, and it is ours, so that the two do not overlap.
        unsafe {
            ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>(), self.0, fits);
            ptr::write_bytes(self.0.add(fits), 0, size - fits);
        }
    }
}

/// Strings for the other side as an array with a NULL at its end, the shape of `environ`.
pub(super) struct Array {
    /// What the pointers lead to; never changed, so that they stay good for as long as this lasts.
    _texts: Vec<CString>,
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers lead to memory that belongs to the same value, and nobody changes either.
unsafe impl Send for Array {}
// SAFETY: as above; it is only ever read.
unsafe impl Sync for Array {}

impl Array {
    /// An array of these.
    pub(super) fn new(texts: Vec<CString>) -> Self {
        let ends = std::iter::once(ptr::null());
        let pointers = texts.iter().map(|text| text.as_ptr()).chain(ends).collect();
        Self {
            _texts: texts,
            pointers,
        }
    }

    /// Its first element.
    pub(super) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// Does `work` with every signal blocked in this thread, for the threads that it starts to inherit: the handlers of the
/// host then run on the host's own threads. Not blocked are those that tell of a fault in the thread itself.
pub(super) fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    const FAULTS: [libc::c_int; 6] = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGSYS,
    ];
    let (mut blocked, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: each set is written by the first call that is given it, and read only afterwards; the numbers are signals.
    let changed = unsafe {
        libc::sigfillset(blocked.as_mut_ptr());
        for fault in FAULTS {
            libc::sigdelset(blocked.as_mut_ptr(), fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, blocked.as_ptr(), before.as_mut_ptr()) == 0
    };
    // SAFETY: the call that changed the mask has written the one before.
    let _back = changed.then(|| Mask(unsafe { before.assume_init() }));
    work()
}

/// A mask that this thread has again when this is dropped, be it by a panic.
struct Mask(libc::sigset_t);

impl Drop for Mask {
    fn drop(&mut self) {
        // SAFETY: it is a whole mask, and the old one is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
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
    fn a_struct_is_cut_for_an_older_caller_and_zeroed_behind_for_a_newer_one() {
        let filled = |size: usize| {
            let mut bytes = [0xff_u8; 32];
            Room::<Two>(bytes.as_mut_ptr(), PhantomData).fill(&Two(1, 2), size);
            bytes
        };
        let expected = |numbers: [u64; 4]| numbers.map(u64::to_ne_bytes).concat();
        assert_eq!(filled(0)[..], [0xff; 32]);
        assert_eq!(filled(8)[..], expected([1, u64::MAX, u64::MAX, u64::MAX]));
        assert_eq!(filled(16)[..], expected([1, 2, u64::MAX, u64::MAX]));
        assert_eq!(filled(24)[..], expected([1, 2, 0, u64::MAX]));
        Room::<Two>(ptr::null_mut(), PhantomData).fill(&Two(1, 2), 16);
    }

    #[test]
    fn strings_and_arrays_of_them_may_be_null() {
        assert_eq!(Text(ptr::null()).bytes(), None);
        assert_eq!(Text(c"a".as_ptr()).bytes(), Some(&b"a"[..]));
        assert_eq!(Texts(ptr::null()).bytes(), None);
        let array = Array::new(vec![c"a".into(), c"".into()]);
        let read = Texts(array.as_ptr());
        assert_eq!(read.bytes(), Some(vec![&b"a"[..], b""]));
        assert_eq!(
            Texts(Array::new(Vec::new()).as_ptr()).bytes(),
            Some(Vec::new())
        );
    }

    #[test]
    fn threads_started_with_signals_blocked_have_them_blocked_and_we_have_not() {
        let is_blocked = |signal| {
            let mut mask = MaybeUninit::uninit();
            // SAFETY: no new mask is given, the old one is written.
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), mask.as_mut_ptr());
                libc::sigismember(mask.as_ptr(), signal) == 1
            }
        };
        let thread = with_signals_blocked(|| {
            std::thread::spawn(move || (is_blocked(libc::SIGTERM), is_blocked(libc::SIGSEGV)))
        });
        assert_eq!(thread.join().unwrap(), (true, false));
        assert!(!is_blocked(libc::SIGTERM));
    }
}
