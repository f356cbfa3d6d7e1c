//! Returns unused memory to the kernel (`manual/architecture.md`, Memory).
//!
//! This covers the pages of a worker's stack: a handshake uses a deep stack, and the tunnel after
//! it waits for hours in a shallow one. It also covers the free memory of the C library after most
//! of many tunnels have ended, because the C library keeps all of it between the blocks that are
//! still in use. And it asks how many bytes the kernel keeps for the peer of a socket.
//!
//! One of the three places with `unsafe` code (the others are `sys::inherited` and the FFI of the C
//! API), for the calls that need it.

#![allow(unsafe_code)]

use std::cell::Cell;
#[cfg(target_os = "linux")]
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// The stack size of a worker. The C library takes its own part out of it.
pub(crate) const STACK: usize = 256 << 10;
/// The bytes below the current frame that are kept, for the calls from here down to the kernel.
/// Much larger than the red zone.
const MARGIN: usize = 2 << 10;

thread_local! {
    /// The lowest address of a worker's stack. On every other thread it is above all addresses, so
    /// the range to release is empty.
    static LOWEST: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Finds the lower end of this thread's stack, for [`give_back_stack`].
pub(crate) fn find_stack() {
    LOWEST.set(lowest().unwrap_or(usize::MAX));
}

/// Returns the pages below the current frame to the kernel. Does nothing on a thread that never
/// called [`find_stack`].
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

/// Calls `f` in a stack frame that ends when `f` returns.
///
/// Without it the compiler may inline `f` into its caller. The frame of the caller would then be as
/// large as the frames of both, and [`give_back_stack`] could not return its pages.
#[inline(never)]
pub(crate) fn in_own_frame<T>(f: impl FnOnce() -> T) -> T {
    f()
}

/// The lower end of this thread's stack, from the C library.
#[cfg(target_os = "linux")]
fn lowest() -> Option<usize> {
    let mut attributes = MaybeUninit::uninit();
    let (mut low, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: `attributes` is initialised by the first call, and the others run only if that call
    // succeeded; `low` and `size` are local variables.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let result = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (result == 0).then(|| low.addr())
    }
}

#[cfg(not(target_os = "linux"))]
fn lowest() -> Option<usize> {
    None
}

/// The page size. The kernel rounds lengths up to it, so a range must end at a page boundary.
fn page_size() -> Option<usize> {
    // SAFETY: sysconf(3) may be called on any thread at any time, and takes only this number.
    let result = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(result).ok().filter(|size| *size > 0)
}

/// An address in the frame of the caller, or slightly below it.
#[inline(never)]
fn here() -> usize {
    let local = 0_u8;
    std::hint::black_box(&raw const local).addr()
}

#[cfg(target_os = "linux")]
fn forget(from: usize, to: usize) {
    use rustix::mm::{Advice, madvise};

    let pages = std::ptr::without_provenance_mut(from);
    // SAFETY: the range is inside this thread's own stack: it begins no lower than the stack (if
    // the guard is included, that has no content), ends `MARGIN` below the current frame, and
    // consists of whole pages. Stacks grow downwards here, so the range contains no frame and no
    // object, and none is created before the call returns, because the calls to it need far less
    // than the margin. A signal handler has returned before this thread continues. Released pages
    // are zeroed pages when they are used again.
    //
    // If the kernel refuses, the pages stay, and nothing is lost except memory.
    let _ = unsafe { madvise(pages, to - from, Advice::LinuxDontNeed) };
}

#[cfg(not(target_os = "linux"))]
fn forget(_: usize, _: usize) {}

/// Returns the free memory of the C library to the kernel. With much memory this takes
/// milliseconds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_back_heap() {
    // SAFETY: malloc_trim(3) may be called on any thread at any time, and changes free memory only.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have no such function, or do not need one.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back_heap() {}

/// The number of bytes that the kernel keeps for the peer of `socket`: written, but not
/// acknowledged. A FIN counts as one (`SIOCOUTQ`, tcp(7)).
pub(crate) fn unacknowledged_bytes(socket: &TcpStream) -> usize {
    output_queue(socket, libc::TIOCOUTQ)
}

/// The number of those that were not sent at all, on Linux (`SIOCOUTQNSD`); elsewhere all of them.
pub(crate) fn unsent_bytes(socket: &TcpStream) -> usize {
    #[cfg(target_os = "linux")]
    return output_queue(socket, 0x894b);
    #[cfg(not(target_os = "linux"))]
    return unacknowledged_bytes(socket);
}

#[cfg(target_os = "linux")]
type Request = libc::Ioctl;
#[cfg(not(target_os = "linux"))]
type Request = libc::c_ulong;

fn output_queue(socket: &TcpStream, request: Request) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: `socket` is an open descriptor, and each of these requests writes one int, to
    // `bytes`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut bytes) };
    // It fails for a socket that was never connected only.
    if result == 0 {
        usize::try_from(bytes).unwrap_or(0)
    } else {
        0
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Uses a large part of the stack.
    #[inline(never)]
    #[allow(clippy::large_stack_arrays)]
    fn use_much_stack() -> u8 {
        let mut deep = [1_u8; 128 << 10];
        std::hint::black_box(&mut deep);
        deep[deep.len() - 1]
    }

    /// The resident KiB of the mapping that contains this frame.
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
        panic!("no mapping contains this frame");
    }

    #[test]
    fn the_stack_of_a_deep_call_is_returned_and_can_be_used_again() {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let checked = thread.spawn(|| {
            find_stack();
            let kept = [7_u8; 512];
            std::hint::black_box(&kept);
            for _ in 0..3 {
                assert_eq!(use_much_stack(), 1);
                assert!(resident() >= 128, "{}", resident());
                give_back_stack();
                assert!(resident() < 96, "{}", resident());
            }
            assert_eq!(kept, [7; 512]);
        });
        checked.unwrap().join().unwrap();
    }

    #[test]
    fn a_thread_that_is_not_a_worker_keeps_its_stack() {
        let before = use_much_stack();
        give_back_stack();
        assert_eq!(use_much_stack(), before);
    }
}
