//! Memory that is in use no more, given back to the kernel (`manual/architecture.md`, Memory). The pages of a worker's stack: a
//! handshake goes deep, and the tunnel after it sits for hours in a call that does not. And the C library's free memory, once
//! most of many tunnels have ended: between what is still in use it keeps all of it.
//!
//! One of the two places with `unsafe` code of ours (the other is the border of the C API), for the two calls that need it.

#![allow(unsafe_code)]

use std::cell::Cell;

/// What a worker's stack has at the least. Nothing further than [`KNOWN`] below its first frame is touched from here.
pub(crate) const STACK: usize = 256 << 10;
/// How far below a worker's first frame its stack reaches for certain: the C library keeps its own things at the upper end.
const KNOWN: usize = 192 << 10;
/// What is left alone below the present frame, for the calls from here down to the kernel. Far over the red zone.
const MARGIN: usize = 2 << 10;
const PAGE: usize = 4096;

thread_local! {
    /// Where the first frame of a worker is; zero on every other thread.
    static FIRST: Cell<usize> = const { Cell::new(0) };
}

/// Says that this thread has a stack of [`STACK`], of which nothing is in use yet. To be called in its first frame.
pub(crate) fn stack_begins_here() {
    FIRST.set(here());
}

/// Gives the kernel back what lies below the present frame. On a thread that never called [`stack_begins_here`] it does nothing.
pub(crate) fn give_back_stack() {
    let first = FIRST.get();
    if first == 0 {
        return;
    }
    let from = first.saturating_sub(KNOWN).next_multiple_of(PAGE);
    let to = here().saturating_sub(MARGIN) / PAGE * PAGE;
    if from < to {
        forget(from, to);
    }
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
    // SAFETY: the range lies in this thread's own stack: it begins no more than `KNOWN` below the first frame of a thread
    // that was given more than that, and ends `MARGIN` below the present frame. Stacks grow downwards here, so no frame and
    // with it no object is in there, and none comes to be before the call returns, as the calls to it need far less than
    // the margin. A signal's handler, whenever it comes, is through before this thread goes on. Pages that were given back
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
            stack_begins_here();
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
