//! A session token that is read from a stream: standard input, an inherited descriptor, or a FIFO.
//!
//! A stream is read once, to its end, within limits of size and time. Nothing is left to delete.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, read as read_some};
use zeroize::Zeroizing;

use crate::config::Cancel;
use crate::control::deadline::Deadline;
use crate::crypto::secret::Secret;
use crate::error::{Error, ErrorKind, Stage};
use crate::net::wait::wait;
use crate::setup::token_file::{SIZE_LIMIT, parse, too_large};

/// How long the writer of the token may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait between two checks whether set-up was cancelled.
const STEP: Duration = Duration::from_millis(100);

/// Reads the token to the end of the stream. `source` names the stream in messages.
///
/// Blocks for at most [`TIMEOUT`].
///
/// # Errors
/// The stream has no token, too many bytes, or no end within that time; or set-up was cancelled.
pub(super) fn read(descriptor: &OwnedFd, source: &str, cancel: &Cancel) -> Result<Secret, Error> {
    let failed = |kind, what: String, remedy: &str| {
        Error::new(Stage::Token, kind, format!("{source} {what}"), remedy)
    };
    let unreadable = |detail: String| {
        failed(
            ErrorKind::Io,
            format!("cannot be read: {detail}"),
            "check its writer",
        )
    };

    // One byte more than allowed shows the excess. The buffer never moves, so no copy is left.
    let mut bytes = Zeroizing::new(vec![0; SIZE_LIMIT + 1]);
    let mut filled = 0;
    let deadline = Deadline::after(TIMEOUT);
    loop {
        cancel.check(Stage::Token)?;
        if deadline.passed() {
            return Err(failed(
                ErrorKind::Io,
                format!("did not end within {} s", TIMEOUT.as_secs()),
                "write the token and close the stream before that",
            ));
        }
        let step = deadline.min(Deadline::after(STEP));
        let mut fds = [PollFd::new(descriptor, PollFlags::IN)];
        wait(&mut fds, step.instant()).map_err(|error| unreadable(error.to_string()))?;
        if fds[0].revents().is_empty() {
            continue;
        }
        match read_some(descriptor, &mut bytes[filled..]) {
            Ok(0) => return parse(&bytes[..filled], source),
            Ok(count) => filled += count,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(unreadable(errno.to_string())),
        }
        if filled > SIZE_LIMIT {
            return Err(failed(
                ErrorKind::InvalidData,
                too_large(SIZE_LIMIT),
                "write only the token",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::thread;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use crate::setup::token_file::{Found, open_token};

    fn piped(content: &[u8]) -> Result<Secret, Error> {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        thread::scope(|scope| {
            scope.spawn(move || {
                for piece in content.chunks(5000) {
                    if writer.write_all(piece).is_err() {
                        break;
                    }
                }
            });
            read(&reader.into(), "the pipe", &Cancel::default())
        })
    }

    #[test]
    fn a_token_is_read_to_the_end_of_the_stream() {
        assert_eq!(piped(b" canary\n").expect("a token").expose(), "canary");
        let long = vec![b'a'; SIZE_LIMIT];
        assert_eq!(
            piped(&long).expect("a long token").expose().len(),
            SIZE_LIMIT
        );
    }

    #[test]
    fn streams_without_a_usable_token_are_refused() {
        for (content, why) in [
            (&b""[..], "the pipe is empty"),
            (b"\n", "the pipe is empty"),
            (b"two words", "not visible ASCII"),
            (&vec![b'a'; SIZE_LIMIT + 1], "is larger than 65536 bytes"),
            (&vec![b'a'; 1 << 20], "is larger than 65536 bytes"),
        ] {
            let error = piped(content).expect_err(why).to_string();
            assert!(error.contains(why), "no {why:?} in {error:?}");
        }
    }

    #[test]
    fn a_fifo_without_a_writer_waits_until_set_up_is_cancelled() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("fifo");
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).expect("a FIFO");
        let open = || match open_token(&path, None).expect("the FIFO") {
            Found::Fifo(fifo) => fifo,
            Found::File(_) => panic!("not a FIFO"),
        };
        let cancel = Cancel::default();
        cancel.request();
        let error = read(&open(), "the FIFO", &cancel).expect_err("nothing was written");
        assert_eq!(error.kind(), ErrorKind::Cancelled);

        let reader = open();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut writer = File::options().write(true).open(&path).expect("a writer");
                writer.write_all(b"canary").expect("writing");
            });
            let token = read(&reader, "the FIFO", &Cancel::default());
            assert_eq!(token.expect("a token").expose(), "canary");
        });
        assert!(
            path.exists(),
            "a FIFO contains nothing that must be deleted"
        );
    }
}
