//! Memory that is in use no more, given back to the kernel (`manual/architecture.md`, Memory). The pages of a worker's stack: a
//! handshake goes deep, and the tunnel after it sits for hours in a call that does not. And the C library's free memory, once
//! most of many tunnels have ended: between what is still in use it keeps all of it.
//!
//! One of the two places with `unsafe` code of ours (the other is the border of the C API), for the two calls that need it.

#![allow(unsafe_code)]

use std::cell::Cell;
#[cfg(target_os = "linux")]
use std::mem::MaybeUninit;

/// What a worker's stack is made with; the C library takes what it keeps for the thread out of it.
pub(crate) const STACK: usize = 256 << 10;
/// What is left alone below the present frame, for the calls from here down to the kernel. Far over the red zone.
const MARGIN: usize = 2 << 10;

thread_local! {
    /// Where the stack of a worker ends, below; on every other thread above all addresses, so that nothing lies between.
    static LOWEST: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Finds out where this thread's stack ends, for [`give_back_stack`].
pub(crate) fn find_stack() {
    LOWEST.set(lowest().unwrap_or(usize::MAX));
}

/// Gives the kernel back what lies below the present frame. On a thread that never called [`find_stack`] it does nothing.
pub(crate) fn give_back_stack() {
    let Some(page) = page_size() else { return };
    let Some(from) = LOWEST.get().checked_next_multiple_of(page) else {
        return;
    };
    let to = here().saturating_sub(MARGIN) / page * page;
    if from < to {
        forget(from, to);
    }
}

/// The lower end of this thread's stack, by the C library's word.
#[cfg(target_os = "linux")]
fn lowest() -> Option<usize> {
    let mut attributes = MaybeUninit::uninit();
    let (mut low, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: `attributes` is written by the first call, and the others are made only when that says so; `low` and `size`
    // are ours to be written to.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let told = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (told == 0).then(|| low.addr())
    }
}

#[cfg(not(target_os = "linux"))]
fn lowest() -> Option<usize> {
    None
}

/// The kernel's own: it rounds lengths up to it, so that a range must end at one.
fn page_size() -> Option<usize> {
    // SAFETY: sysconf(3) may be called on any thread at any time, and has no arguments but this number.
    let told = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(told).ok().filter(|size| *size > 0)
}

/// An address in the frame of the caller, or a little below it.
#[inline(never)]
fn here() -> usize {
    let local = 0_u8;
    std::hint::black_box(&raw const local).addr()
}

#[cfg(target_os = "linux")]
fn forget(from: usize, to: usize) {
    use rustix::mm::{Advice, madvise};

    let pages = std::ptr::without_provenance_mut(from);
    // SAFETY: the range lies in this thread's own stack: it begins no lower than that does (where the guard is counted in,
    // that has no content to lose), ends `MARGIN` below the present frame, and consists of whole pages. Stacks grow downwards
    // here, so no frame and with it no object is in there, and none comes to be before the call returns, as the calls to it
    // need far less than the margin. A signal's handler, whenever it comes, is through before this thread goes on. Pages that were given back
    // are there again, zeroed, when they are next touched.
    //
    // A kernel that refuses keeps the pages, and nothing is lost but memory.
    let _ = unsafe { madvise(pages, to - from, Advice::LinuxDontNeed) };
}

#[cfg(not(target_os = "linux"))]
fn forget(_: usize, _: usize) {}

/// Gives the kernel back what the C library holds without anybody's using it. It takes milliseconds where there is much.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_back_heap() {
    // SAFETY: malloc_trim(3) may be called on any thread at any time; it touches free memory only.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have no such call, or need none.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back_heap() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Touches a good part of the stack.
    #[inline(never)]
    #[allow(clippy::large_stack_arrays)]
    fn dive() -> u8 {
        let mut deep = [1_u8; 128 << 10];
        std::hint::black_box(&mut deep);
        deep[deep.len() - 1]
    }

    /// How many KiB of the mapping that holds this frame are resident.
    fn resident() -> usize {
        let here = here();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((from, to)) = range.split_once('-')
            {
                let number = |text| usize::from_str_radix(text, 16).unwrap_or(0);
                inside = (number(from)..number(to)).contains(&here);
            } else if inside && let Some(rest) = line.strip_prefix("Rss:") {
                return rest.trim().trim_end_matches(" kB").parse().unwrap();
            }
        }
        panic!("no mapping holds this frame");
    }

    #[test]
    fn what_a_deep_call_took_is_given_back_and_can_be_taken_again() {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let checked = thread.spawn(|| {
            find_stack();
            let kept = [7_u8; 512];
            std::hint::black_box(&kept);
            for _ in 0..3 {
                assert_eq!(dive(), 1);
                assert!(resident() >= 128, "{}", resident());
                give_back_stack();
                assert!(resident() < 96, "{}", resident());
            }
            assert_eq!(kept, [7; 512]);
        });
        checked.unwrap().join().unwrap();
    }

    #[test]
    fn a_thread_that_is_no_worker_is_left_alone() {
        let before = dive();
        give_back_stack();
        assert_eq!(dive(), before);
    }
}
