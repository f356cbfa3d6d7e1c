//! Descriptors that this process inherited from the program that started it.
//!
//! One of the three places with `unsafe` code, because a descriptor that is known by its number has
//! no owner in Rust.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_setfd};

/// The first number after the standard streams.
const FIRST: RawFd = 3;

/// Takes over the inherited descriptor `number`, so that no child process inherits it. Standard
/// input (0) stays open as well.
///
/// # Errors
/// It is not open, is not inherited, or is another standard stream.
pub(crate) fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number == 0 {
        return io::stdin().as_fd().try_clone_to_owned();
    }
    if number < FIRST {
        return Err(Errno::INVAL.into());
    }
    // SAFETY: F_GETFD reads a flag. It is defined for every number, even if it is not open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags == -1 {
        return Err(io::Error::last_os_error());
    }
    // Exec closes descriptors with this flag, and this process sets it on each that it opens.
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the descriptor is open, and by the check above no code of this process opened it. The
    // flag that is set now makes a second call fail.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn only_a_descriptor_without_close_on_exec_is_taken_and_only_once() {
        let (reader, _writer) = io::pipe().expect("a pipe");
        let own = reader.as_raw_fd();
        assert_eq!(take(own).unwrap_err().raw_os_error(), Some(libc::EBADF));
        for number in [-1, 1, 2] {
            assert_eq!(take(number).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        }
        assert!(take(RawFd::MAX).is_err(), "not open");

        // As after exec: open, and without the flag.
        let inherited = OwnedFd::from(reader);
        fcntl_setfd(&inherited, FdFlags::empty()).expect("clearing the flag");
        let number = inherited.into_raw_fd();
        let taken = take(number).expect("an inherited descriptor");
        assert!(take(number).is_err(), "it has an owner now");
        drop(taken);
    }
}
