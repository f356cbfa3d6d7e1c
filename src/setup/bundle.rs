//! The CA bundle as a file: its path, the ownership of its name, and writing it.
//!
//! `ca` decides what it contains. Under one home directory the first live process owns the plain
//! name, the others take a numbered name beside it (`manual/operations.md`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, accessat};
use rustix::process::geteuid;

use crate::config::Config;
use crate::control::log;
use crate::error::{Error, ErrorKind, Stage};
use crate::sys::files;
use crate::sys::owned_name::OwnedName;

/// The bundle below the home directory.
const DIRECTORY: &str = ".ccr";
const FILE: &str = "ca-bundle.crt";
/// Its directory for root whose home is closed to other users.
const SHARED_DIRECTORY: &str = "/run/upstreamproxy";
/// Every child may read the bundle, whichever user it runs as and whatever this process's umask is.
pub(super) const FILE_MODE: u32 = 0o644;
pub(super) const DIRECTORY_MODE: u32 = 0o755;
/// The most processes that share one home directory. More than that indicates a fault.
const NAME_LIMIT: u32 = 256;

/// The path of the bundle: the configured one, or its default below the home directory. Creates
/// nothing.
///
/// A configured path is made absolute, because children may have other working directories.
///
/// # Errors
/// The configured path does not name a file, or there is no usable home directory.
pub(crate) fn place(config: &Config) -> Result<PathBuf, Error> {
    const REMEDY: &str =
        "set HOME to your home directory, or name a file with ca-bundle (--ca-bundle)";
    let fault = |what: String| Error::new(Stage::Ca, ErrorKind::InvalidSetting, what, REMEDY);
    if let Some(path) = &config.ca_bundle {
        let path = std::path::absolute(path)
            .ok()
            .filter(|path| path.file_name().is_some())
            .ok_or_else(|| {
                fault(format!(
                    "the bundle path {} does not name a file",
                    path.display()
                ))
            })?;
        // The bundle replaces what is there. Root could replace a device.
        return match fs::symlink_metadata(&path).map(|found| found.file_type()) {
            Ok(kind) if !kind.is_file() && !kind.is_symlink() => Err(fault(format!(
                "the bundle path {} is not a regular file",
                path.display()
            ))),
            _ => Ok(path),
        };
    }
    let Some(home) = config.inherited.home() else {
        return Err(fault(match config.inherited.lookup("HOME") {
            None => "HOME is not set, so there is no directory for the CA bundle".to_owned(),
            Some(home) => format!("HOME ({}) is not an absolute path", home.display()),
        }));
    };
    match fs::metadata(&home) {
        Ok(found) if found.is_dir() => Ok(shared_directory(&home, &found)
            .unwrap_or_else(|| home.join(DIRECTORY))
            .join(FILE)),
        Ok(_) => Err(fault(format!(
            "HOME ({}) is not a directory",
            home.display()
        ))),
        Err(error) => Err(fault(format!(
            "the home directory {} cannot be used: {error}",
            home.display()
        ))),
    }
}

/// The directory in place of the one below root's home, if other users cannot enter that home: the
/// command may change to another user, who needs the bundle.
fn shared_directory(home: &Path, found: &fs::Metadata) -> Option<PathBuf> {
    let is_open = Mode::from_raw_mode(found.mode()).contains(Mode::XOTH);
    if is_open || !geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let of_root = |line: &&str| line.split(':').nth(2) == Some("0");
    let root_home = passwd.lines().find(of_root)?.split(':').nth(5)?;
    let shared = Path::new(SHARED_DIRECTORY);
    let may = Access::WRITE_OK | Access::EXEC_OK;
    let usable = accessat(CWD, shared.parent()?, may, AtFlags::EACCESS).is_ok();
    (Path::new(root_home) == home && usable).then(|| shared.to_owned())
}

/// Takes the name `path`, or the first numbered one beside it that no live process owns. Creates
/// the directory if it is missing, but not its parents.
pub(crate) fn claim(path: &Path) -> Result<OwnedName, Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    create_directory(directory).map_err(|error| unusable("the directory", directory, &error))?;
    let name = OwnedName::claim(path, NAME_LIMIT)
        .map_err(|error| unusable("the lock file of", path, &error))?
        .ok_or_else(|| {
            let what = format!(
                "{NAME_LIMIT} live processes own a CA bundle in {}",
                directory.display()
            );
            Error::new(
                Stage::Ca,
                ErrorKind::ResourceLimit,
                what,
                "end some of them",
            )
        })?;
    if name.path() != path {
        log::info!(
            "another process owns {}; this process writes its CA bundle to {}",
            path.display(),
            name.path().display()
        );
    }
    Ok(name)
}

/// Writes the bundle atomically. A process that has the old bundle open keeps reading the old one.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    files::replace_synced(path, text.as_bytes(), FILE_MODE)
        .map_err(|error| unusable("the CA bundle", path, &error))
}

/// Creates the directory. An existing one, or a link to one, is used unchanged.
fn create_directory(directory: &Path) -> io::Result<()> {
    match files::create_directory(directory, DIRECTORY_MODE) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

fn unusable(what: &str, path: &Path, error: &io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space on that disk",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make that path writable, or name another one with ca-bundle (--ca-bundle)"
        }
        _ => "correct that path, or name another one with ca-bundle (--ca-bundle)",
    };
    let what = format!("{what} {} cannot be written: {error}", path.display());
    Error::new(Stage::Ca, ErrorKind::Io, what, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;
    use tempfile::TempDir;

    /// The directory that `writes_a_bundle_into_the_directory_of_the_variable` writes into.
    const DIRECTORY_VARIABLE: &str = "UPSTREAMPROXY_TEST_DIRECTORY";

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn names_in(directory: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
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
        let directory = TempDir::new().unwrap();
        let path = directory.path().join(".ccr/ca-bundle.crt");
        let first = claim(&path).unwrap();
        let second = claim(&path).unwrap();
        assert_eq!(first.path(), path);
        assert_eq!(second.path(), directory.path().join(".ccr/ca-bundle-2.crt"));
        drop(first);
        assert_eq!(claim(&path).unwrap().path(), path);
    }

    #[test]
    fn the_error_names_a_path_that_cannot_be_written() {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let missing = directory.path().join("a/b/ca-bundle.crt");
        for path in [file.join("ca-bundle.crt"), missing] {
            let error = claim(&path).unwrap_err();
            assert!(
                error.what().contains(directory.path().to_str().unwrap()),
                "{error}"
            );
            assert!(error.remedy().contains("--ca-bundle"), "{error}");
        }
        symlink("/nowhere", directory.path().join("dangling")).unwrap();
        assert!(claim(&directory.path().join("dangling/ca-bundle.crt")).is_err());
        symlink(&file, directory.path().join("x.crt.lock")).unwrap();
        assert!(
            claim(&directory.path().join("x.crt")).is_err(),
            "a lock file must not be a link"
        );
    }

    #[test]
    fn a_failed_write_leaves_no_temporary_file() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("ca-bundle.crt");
        fs::create_dir(&path).unwrap();
        let error = write(&path, "new").unwrap_err();
        assert!(error.what().contains("ca-bundle.crt"), "{error}");
        assert_eq!(names_in(directory.path()), ["ca-bundle.crt"]);
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        for umask in ["0000", "0077", "0777"] {
            let directory = TempDir::new().unwrap();
            let test = "setup::bundle::tests::writes_a_bundle_into_the_directory_of_the_variable";
            let status = Command::new("/bin/sh")
                .args(["-c", "umask $1; shift; exec \"$@\"", "sh", umask])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", test, "--ignored"])
                .env(DIRECTORY_VARIABLE, directory.path())
                .output()
                .unwrap();
            assert!(status.status.success(), "{status:?}");
            let ccr = directory.path().join(".ccr");
            assert_eq!(mode(&ccr), 0o755, "umask {umask}");
            assert_eq!(mode(&ccr.join("ca-bundle.crt")), 0o644, "umask {umask}");
            assert_eq!(fs::read(ccr.join("ca-bundle.crt")).unwrap(), b"text");
        }
    }

    #[test]
    fn a_path_that_is_not_a_regular_file_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        for path in [fifo.as_path(), directory.path()] {
            let config = Config {
                ca_bundle: Some(path.to_owned()),
                ..Config::default()
            };
            let error = place(&config).unwrap_err();
            assert!(error.what().contains("is not a regular file"), "{error}");
        }
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 1, "nothing was written beside it");
    }

    #[test]
    #[ignore = "modes_do_not_depend_on_the_umask runs it under other umasks"]
    fn writes_a_bundle_into_the_directory_of_the_variable() {
        let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) else {
            return;
        };
        let path = Path::new(&directory).join(".ccr/ca-bundle.crt");
        write(claim(&path).unwrap().path(), "text").unwrap();
    }
}
