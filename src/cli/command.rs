//! COMMAND on the search path, looked up before anything is read or burnt, so that a typing error costs nothing.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::ExitStatus;

/// Where commands are looked for when `PATH` is not set, as the C library has it.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Why COMMAND cannot be run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoCommand {
    name: OsString,
    reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    NotFound,
    Directory,
    NotExecutable,
    NotRunnable,
    TooLarge,
    NoProcess,
}

impl NoCommand {
    fn new(name: &OsStr, reason: Reason) -> Self {
        Self {
            name: name.to_owned(),
            reason,
        }
    }

    /// What the kernel said when it was asked to run COMMAND.
    pub(crate) fn refused(name: &OsStr, error: &io::Error) -> Self {
        let reason = match error.kind() {
            // The file was there a moment ago: what is missing is the interpreter of its first line, or of its ELF header.
            io::ErrorKind::NotFound => Reason::NotFound,
            io::ErrorKind::PermissionDenied => Reason::NotExecutable,
            io::ErrorKind::ArgumentListTooLong => Reason::TooLarge,
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => Reason::NoProcess,
            // `ENOEXEC` too: a script without `#!`. A shell would read it itself; we are none, and say so.
            _ => Reason::NotRunnable,
        };
        Self::new(name, reason)
    }

    /// 127 not found, 126 found but not to be run, 125 our own trouble: as `env` and `nice` have it.
    pub(crate) fn status(&self) -> ExitStatus {
        match self.reason {
            Reason::NotFound => ExitStatus::NOT_FOUND,
            Reason::NoProcess => ExitStatus::RUN_USAGE,
            _ => ExitStatus::NOT_EXECUTABLE,
        }
    }
}

impl fmt::Display for NoCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.to_string_lossy();
        // A name may hold anything; a message is one line.
        let name = name.escape_debug();
        match self.reason {
            Reason::NotFound => write!(
                f,
                "{name} was not found; check its name, PATH, and its interpreter"
            ),
            Reason::Directory => write!(f, "{name} is a directory; name a file in it"),
            Reason::NotExecutable => write!(f, "{name} is not executable; chmod +x may help"),
            Reason::NotRunnable => write!(
                f,
                "{name} is neither a program for this machine nor a script with a #! line; name its interpreter"
            ),
            Reason::TooLarge => write!(
                f,
                "{name} was given more arguments and variables than fit; use fewer"
            ),
            Reason::NoProcess => write!(
                f,
                "there is no room for a process to run {name}; raise the limits"
            ),
        }
    }
}

/// Finds the file that `name` means, as the C library's `execvp` would.
pub(crate) fn find(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, NoCommand> {
    if name.is_empty() {
        return Err(NoCommand::new(name, Reason::NotFound));
    }
    if name.as_bytes().contains(&b'/') {
        return match obstacle(Path::new(name)) {
            None => Ok(name.into()),
            Some(reason) => Err(NoCommand::new(name, reason)),
        };
    }
    let mut best = Reason::NotFound;
    let folders = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    for folder in std::env::split_paths(folders) {
        // An empty entry is the current folder; with it the name still has its slash.
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &folder
        };
        let candidate = folder.join(name);
        match obstacle(&candidate) {
            None => return Ok(candidate),
            // Folders on the path are passed over; a file that may not be run is remembered.
            Some(Reason::NotExecutable) => best = Reason::NotExecutable,
            Some(_) => {}
        }
    }
    Err(NoCommand::new(name, best))
}

/// What stands in the way of running this very file.
fn obstacle(file: &Path) -> Option<Reason> {
    let metadata = match fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Some(Reason::NotExecutable);
        }
        Err(_) => return Some(Reason::NotFound),
    };
    if metadata.is_dir() {
        return Some(Reason::Directory);
    }
    match accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => None,
        Err(_) => Some(Reason::NotExecutable),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(folder: &Path, name: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn status(found: Result<PathBuf, NoCommand>) -> ExitStatus {
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
    fn a_name_with_a_slash_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let tool = file(folder.path(), "tool", 0o755);
        let plain = file(folder.path(), "plain", 0o644);
        let empty = Some(OsStr::new(""));
        assert_eq!(find(tool.as_os_str(), empty), Ok(tool.clone()));
        assert_eq!(
            status(find(plain.as_os_str(), empty)),
            ExitStatus::NOT_EXECUTABLE
        );
        assert_eq!(
            status(find(folder.path().as_os_str(), empty)),
            ExitStatus::NOT_EXECUTABLE
        );
        assert_eq!(
            status(find(tool.join("x").as_os_str(), empty)),
            ExitStatus::NOT_FOUND
        );
    }

    #[test]
    fn without_a_path_the_usual_folders_are_searched() {
        assert!(find(OsStr::new("sh"), None).is_ok());
    }

    #[test]
    fn what_the_kernel_refuses_has_the_status_that_env_gives_it() {
        let name = OsStr::new("x");
        for (errno, status) in [
            (rustix::io::Errno::NOENT, ExitStatus::NOT_FOUND),
            (rustix::io::Errno::ACCESS, ExitStatus::NOT_EXECUTABLE),
            (rustix::io::Errno::NOEXEC, ExitStatus::NOT_EXECUTABLE),
            (rustix::io::Errno::TOOBIG, ExitStatus::NOT_EXECUTABLE),
            (rustix::io::Errno::AGAIN, ExitStatus::RUN_USAGE),
        ] {
            let refused = NoCommand::refused(name, &errno.into());
            assert_eq!(refused.status(), status, "{errno}");
            assert!(!refused.to_string().is_empty());
        }
    }
}
