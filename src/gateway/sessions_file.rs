//! The sessions file: one `SESSION_ID TOKEN` per line, empty lines and `#` comments.
//!
//! It does not check credentials (`auth`), and does not decide when the file is read again (`cli`).

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::auth::Sessions;
use crate::control::log;
use crate::crypto::secret::{Credentials, Secret};
use crate::error::{Error, ErrorKind, Stage};
use crate::sys::files::{self, ReadError};

/// The maximum size of a sessions file: about 10,000 sessions with long tokens. It bounds the
/// memory if the path is wrong.
const FILE_LIMIT: usize = 4 * 1024 * 1024;
/// The permission bits that let other users than the owner read the file.
const READABLE_BY_OTHERS: u32 = 0o044;

impl Sessions {
    /// Reads a sessions file. It must be a regular file; symbolic links are followed, because
    /// mounted secrets are links. If other users can read it, a warning is logged.
    ///
    /// Blocks for the file access.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse), or the file cannot be read, is not a regular file, or has
    /// more than 4 MiB.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let at = |error: SessionsError| error.at(&format!("sessions file {}", path.display()));
        let text = read_file(path).map_err(at)?;
        let text = std::str::from_utf8(&text).map_err(|error| {
            let valid = text.get(..error.valid_up_to()).unwrap_or_default();
            at(SessionsError::Line(
                valid.split(|&byte| byte == b'\n').count(),
            ))
        })?;
        parse_lines(text).map_err(at)
    }

    /// Parses the text of a sessions file.
    ///
    /// # Errors
    /// An invalid line, a repeated ID, or no session at all: a file that is read while it is being
    /// written must not lock out every client.
    pub fn parse(text: &str) -> Result<Self, Error> {
        parse_lines(text).map_err(|error| error.at("sessions"))
    }
}

fn parse_lines(text: &str) -> Result<Sessions, SessionsError> {
    let mut sessions: Vec<Credentials> = Vec::new();
    let mut known = HashSet::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(id), Some(token), None) = (words.next(), words.next(), words.next()) else {
            return Err(SessionsError::Line(number));
        };
        // In `Basic`, the first colon ends the ID.
        if !is_visible_ascii(id) || !is_visible_ascii(token) || id.contains(':') {
            return Err(SessionsError::Line(number));
        }
        if !known.insert(id) {
            return Err(SessionsError::Twice(number));
        }
        sessions.push(Credentials {
            session_id: id.to_owned(),
            token: Secret::new(token.to_owned()),
        });
    }
    if sessions.is_empty() {
        return Err(SessionsError::Empty);
    }
    Ok(Sessions::new(sessions))
}

fn is_visible_ascii(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Reads a regular file. Symbolic links are followed.
fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, SessionsError> {
    let file = files::open_regular(path)?;
    let mode = file.metadata().map_err(ReadError::Io)?.permissions().mode();
    if mode & READABLE_BY_OTHERS != 0 {
        log::warn!(
            "sessions file {}: other users can read the tokens; set its mode to 600",
            path.display()
        );
    }
    Ok(files::read_limited(&file, FILE_LIMIT)?)
}

/// Why sessions cannot be used. It contains nothing of a line.
#[derive(Debug, thiserror::Error)]
enum SessionsError {
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    #[error("line {0} is not `SESSION_ID TOKEN`")]
    Line(usize),
    #[error("line {0} repeats a session ID")]
    Twice(usize),
    #[error("there is no session")]
    Empty,
}

impl SessionsError {
    /// The error for a host; `place` is what was read.
    fn at(self, place: &str) -> Error {
        let (kind, remedy) = match &self {
            Self::Unreadable(ReadError::Io(_)) => {
                (ErrorKind::Io, "make it readable for the gateway")
            }
            Self::Unreadable(ReadError::NotRegular) => (ErrorKind::Io, "name a regular file"),
            Self::Unreadable(ReadError::TooLarge { .. }) => {
                (ErrorKind::InvalidData, "check that it is the right file")
            }
            Self::Line(_) => (
                ErrorKind::InvalidData,
                "write two words of visible ASCII, the first without a colon",
            ),
            Self::Twice(_) => (ErrorKind::InvalidData, "keep one of the lines"),
            Self::Empty => (
                ErrorKind::InvalidData,
                "write one `SESSION_ID TOKEN` per line",
            ),
        };
        Error::new(Stage::Gateway, kind, format!("{place}: {self}"), remedy).caused_by(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# sessions\n\ns-1 canary-one\r\n\ts-2   canary-two  \ns-3 canary-one\n";

    fn error(text: &str) -> String {
        Sessions::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn comments_and_empty_lines_are_skipped() {
        assert_eq!(Sessions::parse(TEXT).unwrap().len(), 3);
    }

    #[test]
    fn an_invalid_line_is_reported_by_its_number_and_not_shown() {
        for line in [
            "canary",
            "s-1 canary extra",
            "s:1 canary",
            "s-1 canäry",
            "s-1 can\0ary",
            "\u{feff}s-1 canary",
            "s-1 canary # the first",
        ] {
            let error = error(&format!("# top\nok fine\n{line}\n"));
            assert!(error.contains("line 3 "), "{error}");
            assert!(!error.contains("can"), "{error}");
        }
    }

    #[test]
    fn a_repeated_id_is_refused_at_its_second_line() {
        assert!(error("a t1\nb t2\na t3\n").contains("line 3 "));
    }

    #[test]
    fn a_text_without_sessions_is_refused() {
        for text in ["", "\n\n", "# none\n"] {
            assert!(error(text).contains("no session"), "{text:?}");
        }
    }

    #[test]
    fn a_file_is_read_through_a_link_and_named_in_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sessions");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let missing = Sessions::load(&link).unwrap_err().to_string();
        assert!(missing.contains("link"), "{missing}");
        std::fs::write(&path, TEXT).unwrap();
        assert_eq!(Sessions::load(&link).unwrap().len(), 3);
        std::fs::write(&path, b"a b\n\xffc canary\n").unwrap();
        let error = Sessions::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("line 2 ") && !error.contains("canary"),
            "{error}"
        );
    }

    #[test]
    fn directories_devices_pipes_and_huge_files_are_refused_without_blocking() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        for path in [directory.path(), Path::new("/dev/zero"), &pipe] {
            let error = Sessions::load(path).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        let huge = directory.path().join("huge");
        std::fs::File::create(&huge)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        let error = Sessions::load(&huge).unwrap_err().to_string();
        assert!(error.contains("larger than 4194304 bytes"), "{error}");
    }
}
