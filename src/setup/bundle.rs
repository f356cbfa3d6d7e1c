//! The bundle as a file: its place, the lock that says whose it is, and writing it so that nobody ever reads half of it.
//!
//! What goes into it is `ca`'s to say. Under one home the first living process owns the plain name, the others take the
//! first free numbered name beside it (`manual/operations.md`): each name has a lock file of its own beside it, held by
//! `flock`, so that the kernel frees it whatever a process dies of. Lock files stay, for to unlink one is to let two own it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags, flock, linkat};

use crate::config::Config;
use crate::crypto::random;
use crate::error::{Error, ErrorKind, Stage};

/// The bundle below the home folder.
const FOLDER: &str = ".ccr";
const FILE: &str = "ca-bundle.crt";
/// Every child may read the bundle, whoever it runs as, whatever our umask is.
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;
/// Nobody else has anything to do in a lock file.
const LOCK_MODE: u32 = 0o600;
/// How many processes share one home. More than that are a fault that makes them, not a use.
const NAME_LIMIT: u32 = 256;
/// The first line of a wget settings file of ours: a nested start may replace such a one, and no other.
const WGETRC_MARK: &str = "# written by upstreamproxy\n";

/// This process owns the bundle's name as long as this lives.
#[derive(Debug)]
pub(crate) struct BundleLock {
    // Never read: closing it is what frees the lock.
    _file: File,
}

/// Where the bundle is to be: the configured path, made absolute because children have other working folders, or its
/// place below the home folder. Touches nothing.
pub(crate) fn place(config: &Config) -> Result<PathBuf, Error> {
    const REMEDY: &str = "set HOME to your home folder, or name a file with --ca-bundle";
    let fault = |what: String| Error::new(Stage::Ca, ErrorKind::InvalidSetting, what, REMEDY);
    if let Some(path) = &config.ca_bundle {
        let path = std::path::absolute(path)
            .ok()
            .filter(|path| path.file_name().is_some())
            .ok_or_else(|| {
                fault(format!(
                    "the bundle path {} is no file's path",
                    path.display()
                ))
            })?;
        // What is there is replaced, and that must not happen to a device, whoever may do it.
        let there = fs::symlink_metadata(&path).map(|found| found.file_type());
        return match there {
            Ok(kind) if !kind.is_file() && !kind.is_symlink() => Err(fault(format!(
                "the bundle path {} is something else than a file",
                path.display()
            ))),
            _ => Ok(path),
        };
    }
    let Some(home) = config.inherited.home() else {
        return Err(fault(match config.inherited.lookup("HOME") {
            None => "HOME is not set, so there is no place for the CA bundle".to_owned(),
            Some(home) => format!("HOME ({}) is not an absolute path", home.display()),
        }));
    };
    match fs::metadata(&home) {
        Ok(found) if found.is_dir() => Ok(home.join(FOLDER).join(FILE)),
        Ok(_) => Err(fault(format!("HOME ({}) is not a folder", home.display()))),
        Err(error) => Err(fault(format!(
            "the folder that HOME names ({}) cannot be used: {error}",
            home.display()
        ))),
    }
}

/// Takes the name `path`, or the first numbered one beside it that no living process owns; makes the folder if need be.
pub(crate) fn claim(path: &Path) -> Result<(PathBuf, BundleLock), Error> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_folder(folder).map_err(|error| unusable("the folder", folder, &error))?;
    for number in 1..=NAME_LIMIT {
        let name = numbered(path, number);
        let lock = beside(&name, "lock");
        let locked = try_lock(&lock).map_err(|error| unusable("the lock file", &lock, &error))?;
        let Some(file) = locked else { continue };
        if number > 1 {
            log::info!(
                "another process owns {}; this one's CA bundle is {}",
                path.display(),
                name.display()
            );
        }
        return Ok((name, BundleLock { _file: file }));
    }
    Err(Error::new(
        Stage::Ca,
        ErrorKind::ResourceLimit,
        format!(
            "{NAME_LIMIT} living processes own a CA bundle in {}",
            folder.display()
        ),
        "end some of them",
    ))
}

/// Writes the bundle: whole or not at all, and whoever reads the old one goes on reading the old one.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    replace(path, text.as_bytes()).map_err(|error| unusable("the CA bundle", path, &error))
}

/// Writes wget's settings file for the bundle, where the user has none that it would hide. A wget built with `GnuTLS` reads
/// no CA variable, but works without one where no upstream intercepts: a failure is a warning.
pub(crate) fn write_wgetrc(config: &Config, bundle: &Path) -> Option<PathBuf> {
    let named = config.inherited.lookup("WGETRC").map(PathBuf::from);
    let default = config.inherited.home().map(|home| home.join(".wgetrc"));
    let of_the_user = |file: &PathBuf| !file.as_os_str().is_empty() && !is_ours(file);
    let found = named.or_else(|| default.filter(|file| fs::symlink_metadata(file).is_ok()));
    if let Some(file) = found.filter(of_the_user) {
        log::debug!("{} is the user's own, so WGETRC stays", file.display());
        return None;
    }
    let path = beside(bundle, "wgetrc");
    let value = bundle.as_os_str().as_bytes();
    // A value in that file ends with its line, and white space at its ends does not count.
    let plain = !value.iter().any(u8::is_ascii_control) && value.trim_ascii() == value;
    let content = [WGETRC_MARK.as_bytes(), b"ca_certificate = ", value, b"\n"].concat();
    let written = if plain {
        replace(&path, &content)
    } else {
        Err(io::ErrorKind::InvalidFilename.into())
    };
    match written {
        Ok(()) => Some(path),
        Err(error) => {
            log::warn!("wget's settings file {}: {error}", path.display());
            None
        }
    }
}

fn is_ours(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.is_file())
        && fs::read(file).is_ok_and(|content| content.starts_with(WGETRC_MARK.as_bytes()))
}

/// `ca-bundle.crt` for 1, `ca-bundle-2.crt` for 2.
fn numbered(path: &Path, number: u32) -> PathBuf {
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

/// A file that belongs to the bundle `path`: its name with a further extension.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    path.with_file_name(name)
}

/// A folder that is there, or a link to one, is taken as it is.
fn make_folder(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// `None` where another process holds the lock, or another user owns it.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(LOCK_MODE)
        .custom_flags(flags(OFlags::NOFOLLOW | OFlags::NONBLOCK))
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.exists() => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Replaces the file, or the link, at `path`: a new file in the same folder, synced and then renamed.
///
/// Until it is synced, which is what takes its time, the new file has no name where the file system knows such: whatever this
/// process dies of meanwhile, the kernel removes it.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut random = [0; 8];
    random::fill(&mut random)?;
    let random = u64::from_ne_bytes(random);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or(OsStr::new(FILE)));
    name.push(format!(".{random:016x}.tmp"));
    let temporary = Temporary {
        path: path.with_file_name(name),
    };
    let nameless = OpenOptions::new()
        .write(true)
        .mode(FILE_MODE)
        .custom_flags(flags(OFlags::TMPFILE))
        .open(path.parent().unwrap_or(Path::new("/")));
    match nameless {
        Ok(file) => {
            fill(&file, content)?;
            name_it(&file, &temporary.path).or_else(|_| named(&temporary.path, content))?;
        }
        Err(_) => named(&temporary.path, content)?,
    }
    fs::rename(&temporary.path, path)
}

/// A new file under this name from the beginning.
fn named(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    fill(&file, content)
}

/// Gives a file its first name. By way of `/proc`, as the way by the descriptor alone is root's (open(2), `O_TMPFILE`).
fn name_it(file: &File, path: &Path) -> io::Result<()> {
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, descriptor, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

fn fill(mut file: &File, content: &[u8]) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    file.write_all(content)?;
    file.sync_all()
}

/// A file that is gone at the end, unless it has been renamed by then.
struct Temporary {
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!(
                    "the temporary file {} is left behind: {error}",
                    self.path.display()
                );
            }
            _ => {}
        }
    }
}

/// Open flags in the form that std takes them.
pub(super) fn flags(flags: OFlags) -> i32 {
    // The bits are those of a C int.
    flags.bits().cast_signed()
}

fn unusable(what: &str, path: &Path, error: &io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on that disk",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make that place writable, or name another with --ca-bundle"
        }
        _ => "mend that place, or name another with --ca-bundle",
    };
    let what = format!("{what} {} cannot be written: {error}", path.display());
    Error::new(Stage::Ca, ErrorKind::Io, what, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::Command;
    use tempfile::TempDir;

    /// Tells the test below which folder to write into.
    const FOLDER_VARIABLE: &str = "UPSTREAMPROXY_TEST_FOLDER";

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn names_in(folder: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    fn config(home: &Path) -> Config {
        let mut config = Config::default();
        config.inherited.set("HOME", home);
        config
    }

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
    fn a_configured_path_is_made_absolute_and_needs_no_home() {
        let mut config = Config {
            ca_bundle: Some("some/bundle.pem".into()),
            ..Config::default()
        };
        let here = std::env::current_dir().unwrap();
        assert_eq!(place(&config), Ok(here.join("some/bundle.pem")));
        for path in ["/", "..", ""] {
            config.ca_bundle = Some(path.into());
            assert!(place(&config).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_name_is_free_again_when_its_owner_is_gone() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(".ccr/ca-bundle.crt");
        let (first, lock) = claim(&path).unwrap();
        let (second, _lock) = claim(&path).unwrap();
        assert_eq!(first, path);
        assert_eq!(second, folder.path().join(".ccr/ca-bundle-2.crt"));
        drop(lock);
        assert_eq!(claim(&path).unwrap().0, path);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let missing = folder.path().join("a/b/ca-bundle.crt");
        for path in [file.join("ca-bundle.crt"), missing] {
            let error = claim(&path).unwrap_err();
            assert!(
                error.what().contains(folder.path().to_str().unwrap()),
                "{error}"
            );
            assert!(error.remedy().contains("--ca-bundle"), "{error}");
        }
        symlink("/nowhere", folder.path().join("dangling")).unwrap();
        assert!(claim(&folder.path().join("dangling/ca-bundle.crt")).is_err());
        symlink(&file, folder.path().join("x.crt.lock")).unwrap();
        assert!(
            claim(&folder.path().join("x.crt")).is_err(),
            "a lock file is no link"
        );
    }

    #[test]
    fn a_failed_write_leaves_no_temporary_file() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("ca-bundle.crt");
        fs::create_dir(&path).unwrap();
        let error = write(&path, "new").unwrap_err();
        assert!(error.what().contains("ca-bundle.crt"), "{error}");
        assert_eq!(names_in(folder.path()), ["ca-bundle.crt"]);
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        for umask in ["0000", "0077", "0777"] {
            let folder = TempDir::new().unwrap();
            let test = "setup::bundle::tests::writes_a_bundle_into_the_folder_it_is_told";
            let status = Command::new("/bin/sh")
                .args(["-c", "umask $1; shift; exec \"$@\"", "sh", umask])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", test, "--ignored"])
                .env(FOLDER_VARIABLE, folder.path())
                .output()
                .unwrap();
            assert!(status.status.success(), "{status:?}");
            let ccr = folder.path().join(".ccr");
            assert_eq!(mode(&ccr), 0o755, "umask {umask}");
            assert_eq!(mode(&ccr.join("ca-bundle.crt")), 0o644, "umask {umask}");
            assert_eq!(fs::read(ccr.join("ca-bundle.crt")).unwrap(), b"text");
        }
    }

    #[test]
    fn what_is_no_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        for path in [fifo.as_path(), folder.path()] {
            let config = Config {
                ca_bundle: Some(path.to_owned()),
                ..Config::default()
            };
            let error = place(&config).unwrap_err();
            assert!(
                error.what().contains("something else than a file"),
                "{error}"
            );
        }
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "nothing was written beside it");
    }

    #[test]
    #[ignore = "run by modes_do_not_depend_on_the_umask under a umask of its own"]
    fn writes_a_bundle_into_the_folder_it_is_told() {
        let Some(folder) = std::env::var_os(FOLDER_VARIABLE) else {
            return;
        };
        let path = Path::new(&folder).join(".ccr/ca-bundle.crt");
        let (path, _lock) = claim(&path).unwrap();
        write(&path, "text").unwrap();
    }

    #[test]
    fn wget_gets_a_settings_file_only_where_the_user_has_none() {
        let home = TempDir::new().unwrap();
        let bundle = home.path().join("ca-bundle.crt");
        let mut config = config(home.path());
        let ours = write_wgetrc(&config, &bundle).unwrap();
        assert_eq!(ours, home.path().join("ca-bundle.crt.wgetrc"));
        let line = format!("ca_certificate = {}\n", bundle.display());
        assert!(fs::read_to_string(&ours).unwrap().ends_with(&line));

        config.inherited.set("WGETRC", &ours);
        let inner = home.path().join("ca-bundle-2.crt");
        assert!(
            write_wgetrc(&config, &inner).is_some(),
            "one of ours is no user's"
        );
        config.inherited.set("WGETRC", "/nowhere/wgetrc");
        assert_eq!(write_wgetrc(&config, &bundle), None);
        config.inherited.set("WGETRC", "");
        symlink("/nowhere", home.path().join(".wgetrc")).unwrap();
        assert_eq!(write_wgetrc(&config, &bundle), None);
    }

    #[test]
    fn a_path_that_wget_would_misread_gets_no_settings_file() {
        let home = TempDir::new().unwrap();
        for name in ["a\nb.crt", "a.crt "] {
            assert_eq!(
                write_wgetrc(&config(home.path()), &home.path().join(name)),
                None
            );
        }
        assert_eq!(names_in(home.path()), [""; 0]);
    }
}
