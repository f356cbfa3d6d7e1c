//! The state file of a running `serve`, by which `env` and `doctor` find it.
//!
//! `~/.ccr/upstreamproxy.json` belongs to the first `serve` that runs under a HOME; the others use
//! `upstreamproxy-2.json` and so on. A `serve` runs if it holds the lock file beside its state file
//! (`sys::owned_name`), so a crash frees the name.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::probe::options::RunningServe;
use crate::sys::files;
use crate::sys::owned_name::{OwnedName, is_owned, numbered};

/// How many `serve` processes under one HOME can be found.
const NAMES: u32 = 64;
/// The largest state file: its variables are a few KiB, including a long `NO_PROXY`.
const SIZE_LIMIT: usize = 1 << 20;

/// The first `serve` that runs under `home`.
pub(crate) fn running(home: &Path) -> Option<RunningServe> {
    (1..=NAMES).find_map(|number| {
        let path = numbered(&path(home), number);
        let state = read(&path)?;
        is_owned(&path).then_some(state)
    })
}

/// A state file of this process. Dropping it removes the file and frees the name.
#[derive(Debug)]
pub(crate) struct StateFile {
    name: OwnedName,
}

impl StateFile {
    /// Takes the first name under `home` that no running `serve` has.
    pub(crate) fn claim(home: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory(home))?;
        match OwnedName::claim(&path(home), NAMES)? {
            Some(name) => Ok(Self { name }),
            None => Err(io::Error::other(format!(
                "{NAMES} other serve processes run under this HOME"
            ))),
        }
    }

    /// Whether this is the name that `env` checks first.
    pub(crate) fn is_first(&self) -> bool {
        self.path()
            .file_name()
            .is_some_and(|name| name == "upstreamproxy.json")
    }

    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        self.name.path()
    }

    /// Writes `line` to the file, atomically and readable only by this user. It does not wait for
    /// the disk: the state is useless after a crash of the machine.
    pub(crate) fn write(&self, line: &str) -> io::Result<()> {
        files::replace(self.path(), line.as_bytes(), 0o600)
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if read(self.path()).is_some_and(|state| state.pid == std::process::id()) {
            let _ = fs::remove_file(self.path());
        }
    }
}

fn directory(home: &Path) -> PathBuf {
    home.join(".ccr")
}

/// The name of the first `serve`.
fn path(home: &Path) -> PathBuf {
    directory(home).join("upstreamproxy.json")
}

/// Reads a state file. Only files of this user that others cannot write are read, because a shell
/// evaluates the content.
fn read(path: &Path) -> Option<RunningServe> {
    let file = files::open_regular_with(path, OFlags::NOFOLLOW).ok()?;
    let metadata = file.metadata().ok()?;
    let uid = rustix::process::geteuid().as_raw();
    if metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        return None;
    }
    let text = files::read_limited(&file, SIZE_LIMIT).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn line(pid: u32, port: u16) -> String {
        format!(
            r#"{{"pid":{pid},"relay":"127.0.0.1:{port}","proxy":"http://127.0.0.1:{port}","bundle":"/b","files":[],"npm_roots":false,"omitted":[]}}"#
        )
    }

    #[test]
    fn a_written_state_is_found_until_it_is_dropped() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(running(home.path()), None);
        let state = StateFile::claim(home.path()).unwrap();
        assert_eq!(running(home.path()), None, "nothing written yet");
        state.write(&line(std::process::id(), 7)).unwrap();
        assert!(state.is_first());
        assert_eq!(
            fs::metadata(state.path()).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let found = running(home.path()).unwrap();
        assert_eq!((found.pid, found.relay.port()), (std::process::id(), 7));
        let path = state.path().to_owned();
        drop(state);
        assert_eq!(running(home.path()), None);
        assert!(!path.exists());
    }

    #[test]
    fn the_second_has_its_own_name_and_is_found_after_the_first_ended() {
        let home = tempfile::tempdir().unwrap();
        let first = StateFile::claim(home.path()).unwrap();
        first.write(&line(std::process::id(), 1)).unwrap();
        let second = StateFile::claim(home.path()).unwrap();
        second.write(&line(std::process::id(), 2)).unwrap();
        assert!(!second.is_first());
        assert_eq!(running(home.path()).unwrap().relay.port(), 1);
        drop(first);
        assert_eq!(running(home.path()).unwrap().relay.port(), 2);
    }

    #[test]
    fn the_state_of_a_crashed_serve_is_not_found_and_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let state = StateFile::claim(home.path()).unwrap();
        state.write(&line(1, 9)).unwrap();
        let path = state.path().to_owned();
        drop(state);
        assert!(path.exists(), "the process ID in it is another one");
        assert_eq!(running(home.path()), None);
        assert!(StateFile::claim(home.path()).unwrap().is_first());
    }

    #[test]
    fn a_file_that_others_could_have_written_is_not_believed() {
        let home = tempfile::tempdir().unwrap();
        let state = StateFile::claim(home.path()).unwrap();
        state.write(&line(std::process::id(), 7)).unwrap();
        fs::set_permissions(state.path(), fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(running(home.path()), None);
        let elsewhere = home.path().join("elsewhere");
        fs::write(&elsewhere, line(std::process::id(), 7)).unwrap();
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(state.path()).unwrap();
        symlink(&elsewhere, state.path()).unwrap();
        assert_eq!(running(home.path()), None);
        assert!(read(&elsewhere).is_some());
    }

    #[test]
    fn garbage_is_not_a_state() {
        let home = tempfile::tempdir().unwrap();
        let state = StateFile::claim(home.path()).unwrap();
        for text in [
            "",
            "{",
            "[]",
            r#"{"pid":1}"#,
            r#"{"pid":1,"relay":"127.0.0.1:70000","proxy":"http://127.0.0.1:70000","bundle":"/b","files":[],"npm_roots":false,"omitted":[]}"#,
        ] {
            state.write(text).unwrap();
            assert_eq!(running(home.path()), None, "{text}");
        }
    }
}
