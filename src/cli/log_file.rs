//! The file of `--log-file`: lines are appended, and a file that was moved away or deleted is
//! created again, so that a program that rotates logs needs to send no signal.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::sys::files::open_flags;

/// How long a file that was moved away may still be written to.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A log file. Only this user can read it, unless it exists with another mode.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    /// When the path was last compared with the open file.
    checked: Instant,
}

impl LogFile {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    /// It cannot be opened, or is no regular file.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            // A FIFO without a reader would block the start.
            .custom_flags(open_flags(OFlags::NONBLOCK))
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            checked: Instant::now(),
        })
    }

    /// Opens the file again if the path names another one now.
    fn follow_path(&mut self) {
        if self.checked.elapsed() < CHECK_INTERVAL {
            return;
        }
        self.checked = Instant::now();
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let same = match (self.file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(open), Ok(named)) => identity(open) == identity(named),
            _ => false,
        };
        // If that fails, the old file is better than none.
        if !same && let Ok(other) = Self::open(&self.path) {
            *self = other;
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.follow_path();
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
