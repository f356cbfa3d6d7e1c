//! Files: reading with a size limit, and replacing a file atomically.
//!
//! Everything that is read from a file of the user or the system is read here, up to a limit that
//! the caller names. Buffers are wiped when they are dropped, because many of these files contain
//! secrets.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use zeroize::Zeroizing;

use crate::control::log;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is a directory, a device, a FIFO or a socket.
    #[error("it is not a regular file")]
    NotRegular,
    #[error("it is larger than {limit} bytes")]
    TooLarge { limit: usize },
}

/// Opens a regular file for reading. Symbolic links are followed.
pub(crate) fn open_regular(path: &Path) -> Result<File, ReadError> {
    open_regular_with(path, OFlags::empty())
}

/// As [`open_regular`], with further flags for open(2).
pub(crate) fn open_regular_with(path: &Path, flags: OFlags) -> Result<File, ReadError> {
    let file = OpenOptions::new()
        .read(true)
        // Without NONBLOCK, opening a FIFO waits for a writer.
        .custom_flags(open_flags(flags | OFlags::NONBLOCK))
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(ReadError::NotRegular)
    }
}

/// Reads `file` to its end, at most `limit` bytes.
///
/// The buffer is wiped when it is dropped, and no unwiped copy of the content remains.
pub(crate) fn read_limited(mut file: &File, limit: usize) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    /// The smallest step by which the buffer grows.
    const STEP: usize = 4096;
    // The size is only a hint: a file in /proc has size 0, and another process may be writing.
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    // One byte more than is expected, to find the end or the excess.
    let mut bytes = Zeroizing::new(vec![0; size.min(limit) + 1]);
    let mut filled = 0;
    loop {
        if filled > limit {
            return Err(ReadError::TooLarge { limit });
        }
        if filled == bytes.len() {
            // Not `Vec::resize`, which does not wipe the memory that it moves out of.
            let mut larger = Zeroizing::new(vec![0; (2 * filled).max(STEP).min(limit + 1)]);
            larger[..filled].copy_from_slice(&bytes);
            bytes = larger;
        }
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Replaces the file, or the symbolic link, at `path` by a file with this content and mode.
///
/// The replacement is atomic: another process reads the old content or the new content, never a
/// part. If the machine crashes, the new content may be lost.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    Replacement { mode, sync: false }.write(path, content)
}

/// As [`replace`], and returns only when the content is on the disk.
pub(crate) fn replace_synced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    Replacement { mode, sync: true }.write(path, content)
}

/// Creates a directory with exactly this mode, and only this one.
///
/// # Errors
/// `AlreadyExists`, whatever has that name.
pub(crate) fn create_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)?;
    // mkdir(2) applies the umask to the mode.
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// `path` with a further extension: `ca-bundle.crt.lock` for `ca-bundle.crt`.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

/// Flags of open(2) in the type that std uses for them.
pub(crate) fn open_flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

/// How a new file is written.
struct Replacement {
    mode: u32,
    sync: bool,
}

impl Replacement {
    /// Writes a new file in the same directory and renames it.
    ///
    /// Where the file system supports it (`O_TMPFILE`), the new file has no name until it is
    /// complete, so that the kernel removes it if this process is killed.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temporary = TemporaryName::beside(path);
        let unnamed = OpenOptions::new()
            .write(true)
            .mode(self.mode)
            .custom_flags(open_flags(OFlags::TMPFILE))
            .open(path.parent().unwrap_or(Path::new("/")));
        match unnamed {
            Ok(file) => {
                self.fill(&file, content)?;
                link(&file, &temporary.0).or_else(|_| self.create(&temporary.0, content))?;
            }
            Err(_) => self.create(&temporary.0, content)?,
        }
        fs::rename(&temporary.0, path)
    }

    /// Creates a new file that has this name from the start.
    fn create(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.mode)
            .open(path)?;
        self.fill(&file, content)
    }

    fn fill(&self, mut file: &File, content: &[u8]) -> io::Result<()> {
        // open(2) applies the umask to the mode.
        file.set_permissions(Permissions::from_mode(self.mode))?;
        file.write_all(content)?;
        if self.sync { file.sync_all() } else { Ok(()) }
    }
}

/// Gives a file its first name. Through `/proc`, because linking a descriptor directly needs
/// `CAP_DAC_READ_SEARCH` (open(2), `O_TMPFILE`).
fn link(file: &File, path: &Path) -> io::Result<()> {
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, descriptor, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// A name for a temporary file. Dropping it removes the file, unless it has been renamed.
struct TemporaryName(PathBuf);

impl TemporaryName {
    fn beside(path: &Path) -> Self {
        // The keys of a `RandomState` are random, which is enough for a name that no other process
        // is likely to use. An existing file is never overwritten.
        let random = RandomState::new().build_hasher().finish();
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{random:016x}.tmp"));
        Self(path.with_file_name(name))
    }
}

impl Drop for TemporaryName {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!(
                    "the temporary file {} was not removed: {error}; remove it by hand",
                    self.0.display()
                );
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let read = |limit| read_limited(&open_regular(&path).unwrap(), limit);
        for size in [0, 1, 4095, 4096, 4097, 10_000] {
            fs::write(&path, vec![b'x'; size]).unwrap();
            assert_eq!(read(10_000).unwrap().len(), size);
        }
        assert!(matches!(
            read(9_999),
            Err(ReadError::TooLarge { limit: 9_999 })
        ));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_that_reports_size_zero_is_read_whole() {
        let file = open_regular(Path::new("/proc/self/maps")).unwrap();
        assert!(read_limited(&file, 1 << 20).unwrap().len() > 4096);
        let file = open_regular(Path::new("/proc/self/maps")).unwrap();
        let error = read_limited(&file, 100).unwrap_err();
        assert!(error.to_string().contains("larger than 100 bytes"));
    }

    #[test]
    fn a_replaced_file_has_its_content_and_mode_and_no_temporary_file_remains() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for (mode, content) in [(0o600, "old"), (0o644, "new")] {
            replace(&path, content.as_bytes(), mode).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            let permissions = fs::metadata(&path).unwrap().permissions();
            assert_eq!(permissions.mode() & 0o7777, mode);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
