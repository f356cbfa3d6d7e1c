//! The state file of a running `serve`: how `env` and `doctor` find it.
//!
//! `~/.ccr/upstreamproxy.json` belongs to the first living `serve` under a HOME, the others have `upstreamproxy-2.json` and
//! so on. Living means that the lock file beside it is held (flock), so that a crash frees the name. A lock file is never
//! removed: two processes could then hold "the" lock, each on a file of its own.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::Environment;
use crate::probe::options::RunningServe;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// How many may serve under one HOME and still be found.
const NAMES: u32 = 64;
/// What is read of a state file: the variables are a few KiB, a long `NO_PROXY` included.
const SIZE_LIMIT: u64 = 1 << 20;
/// How long a lock is tried for that only askers hold. They hold it for microseconds, but may be held up.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(1);

/// The home folder that `environment` names by an absolute path.
pub(crate) fn home(environment: &Environment) -> Option<PathBuf> {
    environment
        .lookup("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute())
}

/// The first living `serve` under `home`.
pub(crate) fn living(home: &Path) -> Option<RunningServe> {
    (1..=NAMES).find_map(|number| {
        let path = path(home, number);
        let state = read(&path)?;
        is_held(&path).then_some(state)
    })
}

/// A name of our own, held until this is dropped.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    _lock: File,
}

impl StateFile {
    /// Takes the first name under `home` that no living `serve` holds.
    pub(crate) fn claim(home: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder(home))?;
        for number in 1..=NAMES {
            let path = path(home, number);
            if let Some(lock) = lock(&path)? {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::Error::other(format!(
            "{NAMES} others serve under this HOME"
        )))
    }

    /// Whether this is the name that is looked at first.
    pub(crate) fn is_first(&self) -> bool {
        self.path
            .file_name()
            .is_some_and(|name| name == "upstreamproxy.json")
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts `line` into the file, whole or not at all, for our eyes only.
    pub(crate) fn write(&self, line: &str) -> io::Result<()> {
        let temporary = self
            .path
            .with_extension(format!("json.{}.tmp", std::process::id()));
        // One of a crashed process that had our number; the lock says that it is nobody's.
        let _ = fs::remove_file(&temporary);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            // Nothing waits for the disk: a process that does not outlive a crash of the machine has nothing to say after it.
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

fn folder(home: &Path) -> PathBuf {
    home.join(".ccr")
}

fn path(home: &Path, number: u32) -> PathBuf {
    folder(home).join(match number {
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
enum Held {
    /// We do, for as long as the file is open.
    Ours(File),
    /// A living `serve` does.
    Owned,
    /// Somebody who asks for a living `serve` does, for a moment.
    Asked,
}

/// The lock, unless another `serve` holds it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match try_lock(path)? {
            Held::Ours(lock) => return Ok(Some(lock)),
            Held::Owned => return Ok(None),
            Held::Asked if Instant::now() >= deadline => return Ok(None),
            Held::Asked => std::thread::sleep(PAUSE),
        }
    }
}

/// Owners hold the lock alone, askers share it: so a second try tells which of them is in the way.
fn try_lock(path: &Path) -> io::Result<Held> {
    let lock = open_lock(path)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(Held::Ours(lock)),
        Err(Errno::WOULDBLOCK | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) | Err(Errno::INTR) => Ok(Held::Asked),
        Err(Errno::WOULDBLOCK) => Ok(Held::Owned),
        Err(error) => Err(error.into()),
    }
}

/// Whether a living process holds the lock beside `path`.
fn is_held(path: &Path) -> bool {
    let Ok(lock) = File::open(path.with_extension("json.lock")) else {
        return false;
    };
    flock(&lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

/// What a state file says, if it is one of our own user's making: what it says ends up in a shell.
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
    fn a_claimed_and_written_state_is_found_until_it_is_dropped() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(living(home.path()), None);
        let state = StateFile::claim(home.path()).unwrap();
        assert_eq!(living(home.path()), None, "nothing written yet");
        state.write(&line(std::process::id(), 7)).unwrap();
        assert!(state.is_first());
        assert_eq!(
            fs::metadata(state.path()).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let found = living(home.path()).unwrap();
        assert_eq!((found.pid, found.relay.port()), (std::process::id(), 7));
        let path = state.path().to_owned();
        drop(state);
        assert_eq!(living(home.path()), None);
        assert!(!path.exists());
    }

    #[test]
    fn the_second_has_a_name_of_its_own_and_is_found_when_the_first_has_gone() {
        let home = tempfile::tempdir().unwrap();
        let first = StateFile::claim(home.path()).unwrap();
        first.write(&line(std::process::id(), 1)).unwrap();
        let second = StateFile::claim(home.path()).unwrap();
        second.write(&line(std::process::id(), 2)).unwrap();
        assert!(!second.is_first());
        assert_eq!(living(home.path()).unwrap().relay.port(), 1);
        drop(first);
        assert_eq!(living(home.path()).unwrap().relay.port(), 2);
    }

    #[test]
    fn what_a_crash_left_behind_is_not_living_and_is_taken_over() {
        let home = tempfile::tempdir().unwrap();
        let state = StateFile::claim(home.path()).unwrap();
        state.write(&line(1, 9)).unwrap();
        let path = state.path().to_owned();
        drop(state);
        assert!(path.exists(), "the pid inside is not ours");
        assert_eq!(living(home.path()), None);
        assert!(StateFile::claim(home.path()).unwrap().is_first());
    }

    #[test]
    fn one_who_asks_is_told_from_an_owner() {
        let home = tempfile::tempdir().unwrap();
        let state = StateFile::claim(home.path()).unwrap();
        let path = state.path().to_owned();
        assert!(matches!(try_lock(&path), Ok(Held::Owned)));
        drop(state);
        let asker = File::open(path.with_extension("json.lock")).unwrap();
        flock(&asker, FlockOperation::NonBlockingLockShared).unwrap();
        assert!(matches!(try_lock(&path), Ok(Held::Asked)));
        assert!(!is_held(&path), "two askers are no owner");
        drop(asker);
        assert!(matches!(try_lock(&path), Ok(Held::Ours(_))));
    }

    #[test]
    fn a_file_that_others_could_have_written_is_not_believed() {
        let home = tempfile::tempdir().unwrap();
        let state = StateFile::claim(home.path()).unwrap();
        state.write(&line(std::process::id(), 7)).unwrap();
        fs::set_permissions(state.path(), fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(living(home.path()), None);
        let elsewhere = home.path().join("elsewhere");
        fs::write(&elsewhere, line(std::process::id(), 7)).unwrap();
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(state.path()).unwrap();
        symlink(&elsewhere, state.path()).unwrap();
        assert_eq!(living(home.path()), None);
        assert!(read(&elsewhere).is_some());
    }

    #[test]
    fn rubbish_is_no_state() {
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
            assert_eq!(living(home.path()), None, "{text}");
        }
    }
}
