//! File names that one process owns at a time.
//!
//! Several processes may share a directory. Each takes the first free name: `file.ext`, then
//! `file-2.ext` and so on. The owner holds `flock` on a lock file beside the name, so that the
//! kernel frees the name however the process ends. Lock files are never removed: unlinking one
//! would let two processes hold the lock, each on its own file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::sys::files::{open_flags, with_suffix};

/// Only this user opens the lock file.
const LOCK_MODE: u32 = 0o600;
/// How long to retry a lock that only readers of [`is_owned`] hold. They hold it for microseconds,
/// but may be descheduled.
const RETRY_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// A name that this process owns until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it frees the name"]
pub(crate) struct OwnedName {
    path: PathBuf,
    // Never read: closing the file releases the lock.
    _lock: File,
}

impl OwnedName {
    /// Takes `path`, or the first of its numbered names that no live process owns. `None`: all of
    /// the first `limit` names have owners.
    ///
    /// # Errors
    /// A lock file cannot be created or locked, for example because the directory is missing.
    pub(crate) fn claim(path: &Path, limit: u32) -> io::Result<Option<Self>> {
        for number in 1..=limit {
            let path = numbered(path, number);
            if let Some(lock) = lock(&path)? {
                return Ok(Some(Self { path, _lock: lock }));
            }
        }
        Ok(None)
    }

    /// The path whose name is owned.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a live process owns the name `path`.
#[cfg(feature = "cli")]
pub(crate) fn is_owned(path: &Path) -> bool {
    let Ok(lock) = File::open(lock_file(path)) else {
        return false;
    };
    flock(&lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

/// `ca-bundle.crt` for 1, `ca-bundle-2.crt` for 2.
pub(crate) fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 1 {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

fn lock_file(path: &Path) -> PathBuf {
    with_suffix(path, "lock")
}

/// The result of one attempt to lock.
#[derive(Debug)]
enum TryLock {
    /// Locked for as long as the file is open.
    Acquired(File),
    /// An owner holds the lock, or the lock file belongs to another user.
    Owned,
    /// A caller of [`is_owned`] holds the lock for a moment.
    Probed,
}

/// The lock of `path`, or `None` if the name has another owner.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let deadline = Instant::now() + RETRY_TIMEOUT;
    loop {
        match try_lock(path)? {
            TryLock::Acquired(lock) => return Ok(Some(lock)),
            TryLock::Owned => return Ok(None),
            TryLock::Probed if Instant::now() >= deadline => return Ok(None),
            TryLock::Probed => std::thread::sleep(RETRY_PAUSE),
        }
    }
}

fn try_lock(path: &Path) -> io::Result<TryLock> {
    let path = lock_file(path);
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(LOCK_MODE)
        .custom_flags(open_flags(OFlags::NOFOLLOW | OFlags::NONBLOCK))
        .open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.exists() => {
            return Ok(TryLock::Owned);
        }
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(TryLock::Acquired(file)),
        Err(Errno::WOULDBLOCK | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    // An owner's lock is exclusive, the lock of `is_owned` is shared: a shared lock shows
    // which it is.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) | Err(Errno::INTR) => Ok(TryLock::Probed),
        Err(Errno::WOULDBLOCK) => Ok(TryLock::Owned),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_names_keep_the_extension() {
        let numbered = |path: &str| numbered(Path::new(path), 2);
        assert_eq!(
            numbered("/h/ca-bundle.crt"),
            Path::new("/h/ca-bundle-2.crt")
        );
        assert_eq!(numbered("/h/bundle"), Path::new("/h/bundle-2"));
        assert_eq!(numbered("/h/.x"), Path::new("/h/.x-2"));
    }

    #[test]
    fn a_name_is_free_again_when_its_owner_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("name.json");
        let claim = || OwnedName::claim(&path, 2).unwrap();
        let first = claim().unwrap();
        let second = claim().unwrap();
        assert_eq!(first.path(), path);
        assert_eq!(second.path(), directory.path().join("name-2.json"));
        assert!(claim().is_none());
        drop(first);
        assert_eq!(claim().unwrap().path(), path);
    }

    #[test]
    #[cfg(feature = "cli")]
    fn a_probe_is_distinguished_from_an_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("name");
        let owner = OwnedName::claim(&path, 1).unwrap().unwrap();
        assert!(matches!(try_lock(&path), Ok(TryLock::Owned)));
        assert!(is_owned(&path));
        drop(owner);
        let probe = File::open(lock_file(&path)).unwrap();
        flock(&probe, FlockOperation::NonBlockingLockShared).unwrap();
        assert!(matches!(try_lock(&path), Ok(TryLock::Probed)));
        assert!(!is_owned(&path), "two probes are not an owner");
        drop(probe);
        assert!(matches!(try_lock(&path), Ok(TryLock::Acquired(_))));
    }
}
