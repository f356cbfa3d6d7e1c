//! The state file of a running `serve`, by which `env` and `doctor` find it.
//!
//! `~/.ccr/upstreamproxy.json` belongs to the first `serve` that runs under a HOME; the others use
//! `upstreamproxy-2.json` and so on. A `serve` runs if it holds the lock file beside its state file
//! (flock), so a crash frees the name. Lock files are never removed: unlinking one would let two
//! processes hold the lock.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::probe::options::RunningServe;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// How many `serve` processes under one HOME can be found.
const NAMES: u32 = 64;
/// The largest state file: its variables are a few KiB, including a long `NO_PROXY`.
const SIZE_LIMIT: u64 = 1 << 20;
/// How long to retry a lock that only readers hold. They hold it for microseconds, but may be delayed.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause between two attempts.
const RETRY_DELAY: Duration = Duration::from_millis(1);

/// The first `serve` that runs under `home`.
pub(crate) fn running(home: &Path) -> Option<RunningServe> {
    (1..=NAMES).find_map(|number| {
        let path = path(home, number);
        let state = read(&path)?;
        is_held(&path).then_some(state)
    })
}

/// A state file of this process. Dropping it removes the file and frees the name.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    _lock: File,
}

impl StateFile {
    /// Takes the first name under `home` that no running `serve` has.
    pub(crate) fn claim(home: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory(home))?;
        for number in 1..=NAMES {
            let path = path(home, number);
            if let Some(lock) = lock(&path)? {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::Error::other(format!(
            "{NAMES} other serve processes run under this HOME"
        )))
    }

    /// Whether this is the name that `env` checks first.
    pub(crate) fn is_first(&self) -> bool {
        self.path
            .file_name()
            .is_some_and(|name| name == "upstreamproxy.json")
    }

    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the content of the file by `line`, atomically. Only this user can read it.
    pub(crate) fn write(&self, line: &str) -> io::Result<()> {
        let temporary = self
            .path
            .with_extension(format!("json.{}.tmp", std::process::id()));
        // A crashed process with the same process ID may have left one. The lock shows that it is unused.
        let _ = fs::remove_file(&temporary);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            // No fsync: after a crash of the machine the file is useless, because the process is gone.
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if read(&self.path).is_some_and(|state| state.pid == std::process::id()) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn directory(home: &Path) -> PathBuf {
    home.join(".ccr")
}

fn path(home: &Path, number: u32) -> PathBuf {
    directory(home).join(match number {
        1 => "upstreamproxy.json".to_owned(),
        _ => format!("upstreamproxy-{number}.json"),
    })
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path.with_extension("json.lock"))
}

/// Who holds a lock.
#[derive(Debug)]
enum Lock {
    /// This process, while the file is open.
    Acquired(File),
    /// A running `serve`.
    Owned,
    /// A reader that checks for a running `serve`, for a moment.
    Shared,
}

/// The lock, unless another `serve` holds it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match try_lock(path)? {
            Lock::Acquired(lock) => return Ok(Some(lock)),
            Lock::Owned => return Ok(None),
            Lock::Shared if Instant::now() >= deadline => return Ok(None),
            Lock::Shared => std::thread::sleep(RETRY_DELAY),
        }
    }
}

/// Tries to lock. A `serve` holds an exclusive lock, readers a shared one, so a second attempt with a
/// shared lock shows which of them holds it.
fn try_lock(path: &Path) -> io::Result<Lock> {
    let lock = open_lock(path)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(Lock::Acquired(lock)),
        Err(Errno::WOULDBLOCK | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) | Err(Errno::INTR) => Ok(Lock::Shared),
        Err(Errno::WOULDBLOCK) => Ok(Lock::Owned),
        Err(error) => Err(error.into()),
    }
}

/// Whether a running `serve` holds the lock beside `path`.
fn is_held(path: &Path) -> bool {
    let Ok(lock) = File::open(path.with_extension("json.lock")) else {
        return false;
    };
    flock(&lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

/// Reads a state file. Only files of this user that others cannot write are read, because a shell
/// evaluates the content.
fn read(path: &Path) -> Option<RunningServe> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    let uid = rustix::process::geteuid().as_raw();
    if !metadata.is_file() || metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        return None;
    }
    let mut text = String::new();
    file.take(SIZE_LIMIT).read_to_string(&mut text).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(RunningServe {
        pid: value.get("pid")?.as_u64()?.try_into().ok()?,
        relay: value.get("relay")?.as_str()?.parse().ok()?,
        proxy: value.get("proxy")?.as_str()?.to_owned(),
        ca_bundle: value.get("ca_bundle")?.as_str()?.into(),
        wgetrc: value
            .get("wgetrc")
            .and_then(|path| path.as_str())
            .map(PathBuf::from),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn line(pid: u32, port: u16) -> String {
        format!(
            r#"{{"pid":{pid},"relay":"127.0.0.1:{port}","proxy":"http://127.0.0.1:{port}","ca_bundle":"/b","wgetrc":null}}"#
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
    fn a_reader_is_distinguished_from_an_owner() {
        let home = tempfile::tempdir().unwrap();
        let state = StateFile::claim(home.path()).unwrap();
        let path = state.path().to_owned();
        assert!(matches!(try_lock(&path), Ok(Lock::Owned)));
        drop(state);
        let reader = File::open(path.with_extension("json.lock")).unwrap();
        flock(&reader, FlockOperation::NonBlockingLockShared).unwrap();
        assert!(matches!(try_lock(&path), Ok(Lock::Shared)));
        assert!(!is_held(&path), "readers are not an owner");
        drop(reader);
        assert!(matches!(try_lock(&path), Ok(Lock::Acquired(_))));
    }

    #[test]
    fn a_file_that_others_could_have_written_is_ignored() {
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
            r#"{"pid":1,"relay":"127.0.0.1:70000","proxy":"http://127.0.0.1:70000","ca_bundle":"/b"}"#,
        ] {
            state.write(text).unwrap();
            assert_eq!(running(home.path()), None, "{text}");
        }
    }
}
