//! Finds COMMAND in `PATH` before anything is read or deleted, so that a typing error costs
//! nothing.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::exit_status::ExitStatus;

/// The search path if `PATH` is not set, as in the C library.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Why COMMAND cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
// A name can contain any byte; a message is one line.
#[error("{} {reason}", name.to_string_lossy().escape_debug())]
pub(crate) struct CommandError {
    name: OsString,
    reason: NotStartable,
}

/// The rest of a sentence that begins with the name of COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum NotStartable {
    #[error("was not found; check its name, PATH and its interpreter")]
    NotFound,
    #[error("is a directory; name a file in it")]
    Directory,
    #[error("is not executable; chmod +x may help")]
    NotExecutable,
    #[error(
        "is neither a program for this machine nor a script with a #! line; name its interpreter"
    )]
    NotRunnable,
    #[error("has arguments and variables that are too long; use fewer")]
    ArgumentsTooLong,
    #[error("could not be started: no process is left; raise the limits on processes and memory")]
    CannotStart,
}

impl CommandError {
    fn new(name: &OsStr, reason: NotStartable) -> Self {
        Self {
            name: name.to_owned(),
            reason,
        }
    }

    /// The error of the kernel when it was to run COMMAND.
    pub(crate) fn of_exec(name: &OsStr, error: &io::Error) -> Self {
        let reason = match error.kind() {
            // COMMAND was found before: its interpreter is missing (`#!` line or ELF header).
            io::ErrorKind::NotFound => NotStartable::NotFound,
            io::ErrorKind::PermissionDenied => NotStartable::NotExecutable,
            io::ErrorKind::ArgumentListTooLong => NotStartable::ArgumentsTooLong,
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => NotStartable::CannotStart,
            // Also `ENOEXEC`: a script without `#!`, which a shell would run itself.
            _ => NotStartable::NotRunnable,
        };
        Self::new(name, reason)
    }

    /// 127 not found, 126 found but not executable, 125 no process, as with `env` and `nice`.
    pub(crate) fn status(&self) -> ExitStatus {
        match self.reason {
            NotStartable::NotFound => ExitStatus::NOT_FOUND,
            NotStartable::CannotStart => ExitStatus::RUN_USAGE,
            _ => ExitStatus::NOT_EXECUTABLE,
        }
    }
}

/// Finds the file that `name` refers to, as `execvp` of the C library does.
pub(crate) fn find(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, CommandError> {
    if name.is_empty() {
        return Err(CommandError::new(name, NotStartable::NotFound));
    }
    if name.as_bytes().contains(&b'/') {
        return match check_executable(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(reason) => Err(CommandError::new(name, reason)),
        };
    }
    let mut best = NotStartable::NotFound;
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    for directory in std::env::split_paths(path) {
        // An empty entry is the current directory; the result must still contain a slash.
        let directory = if directory.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &directory
        };
        let candidate = directory.join(name);
        match check_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            // Directories are skipped; a file that is not executable is remembered for the error.
            Err(NotStartable::NotExecutable) => best = NotStartable::NotExecutable,
            Err(_) => {}
        }
    }
    Err(CommandError::new(name, best))
}

/// Whether this file can be executed; if not, why.
fn check_executable(file: &Path) -> Result<(), NotStartable> {
    let metadata = match fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(NotStartable::NotExecutable);
        }
        Err(_) => return Err(NotStartable::NotFound),
    };
    if metadata.is_dir() {
        return Err(NotStartable::Directory);
    }
    accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS).map_err(|_| NotStartable::NotExecutable)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(directory: &Path, name: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn status(found: Result<PathBuf, CommandError>) -> ExitStatus {
        found.unwrap_err().status()
    }

    #[test]
    fn the_first_executable_file_on_the_path_is_found() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        file(one.path(), "plain", 0o644);
        fs::create_dir(one.path().join("tool")).unwrap();
        let tool = file(two.path(), "tool", 0o755);
        let path = std::env::join_paths([one.path(), two.path()]).unwrap();
        let found = |name: &str| find(OsStr::new(name), Some(&path));
        assert_eq!(found("tool"), Ok(tool));
        assert_eq!(status(found("plain")), ExitStatus::NOT_EXECUTABLE);
        assert_eq!(status(found("nothing")), ExitStatus::NOT_FOUND);
        assert_eq!(status(found("")), ExitStatus::NOT_FOUND);
    }

    #[test]
    fn a_name_with_a_slash_is_not_searched() {
        let directory = tempfile::tempdir().unwrap();
        let tool = file(directory.path(), "tool", 0o755);
        let plain = file(directory.path(), "plain", 0o644);
        let empty = Some(OsStr::new(""));
        assert_eq!(find(tool.as_os_str(), empty), Ok(tool.clone()));
        assert_eq!(
            status(find(plain.as_os_str(), empty)),
            ExitStatus::NOT_EXECUTABLE
        );
        assert_eq!(
            status(find(directory.path().as_os_str(), empty)),
            ExitStatus::NOT_EXECUTABLE
        );
        assert_eq!(
            status(find(tool.join("x").as_os_str(), empty)),
            ExitStatus::NOT_FOUND
        );
    }

    #[test]
    fn without_a_path_the_usual_directories_are_searched() {
        assert!(find(OsStr::new("sh"), None).is_ok());
    }

    #[test]
    fn an_exec_error_has_the_status_that_env_gives_it() {
        let name = OsStr::new("x");
        for (errno, status) in [
            (rustix::io::Errno::NOENT, ExitStatus::NOT_FOUND),
            (rustix::io::Errno::ACCESS, ExitStatus::NOT_EXECUTABLE),
            (rustix::io::Errno::NOEXEC, ExitStatus::NOT_EXECUTABLE),
            (rustix::io::Errno::TOOBIG, ExitStatus::NOT_EXECUTABLE),
            (rustix::io::Errno::AGAIN, ExitStatus::RUN_USAGE),
        ] {
            let error = CommandError::of_exec(name, &errno.into());
            assert_eq!(error.status(), status, "{errno}");
            assert!(!error.to_string().is_empty());
        }
    }
}
