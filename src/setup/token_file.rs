//! The token file: opened and read with care, because other users may be able to write to its
//! directory.
//!
//! No operation waits, and a limited number of bytes is read. A symbolic link is followed only if
//! its target is below the same directory, as in a Kubernetes secret volume (`token ->
//! ..data/token`); such a file is never deleted. `burn` deletes any other file later, if it is
//! still the same file.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, open, openat, statat};
use rustix::io::{Errno, retry_on_intr};

use crate::control::log;
use crate::crypto::secret::Secret;
use crate::error::{Error, ErrorKind, Stage};
use crate::sys::files::{self, ReadError};

/// The largest token file. A token has between a few hundred bytes and a few KiB, and the gateway
/// accepts heads of 16 KiB.
pub(super) const SIZE_LIMIT: usize = 64 * 1024;

/// How the directory is opened: only to name files in it.
#[cfg(target_os = "linux")]
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
#[cfg(not(target_os = "linux"))]
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// How the token file is opened: a symbolic link is an error, a FIFO without a writer does not
/// block, and a terminal does not become the controlling terminal.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// The same without a change of the access time, because `doctor` must not change anything. The
/// kernel permits it to the file's owner only.
#[cfg(target_os = "linux")]
const FILE_NOATIME: OFlags = FILE.union(OFlags::NOATIME);
#[cfg(not(target_os = "linux"))]
const FILE_NOATIME: OFlags = FILE;

const NAME_ANOTHER: &str = "name a regular file that this user can read with UPSTREAMPROXY_TOKEN_FILE or token-file (--token-file)";

/// A session token that was read from a file, and the file.
pub(crate) struct TokenFile {
    secret: Secret,
    pub(super) path: PathBuf,
    /// The directory that contains `name`. A changed working directory or a replaced directory does
    /// not affect `burn`.
    pub(super) directory: OwnedFd,
    pub(super) name: OsString,
    /// Open until the file is deleted. Until then no other file can get its inode number, so the
    /// number identifies the file.
    pub(super) file: File,
    /// Why it is never deleted, if it is not.
    pub(super) kept: Option<Kept>,
}

/// Why a token file is never deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// A symbolic link: the program that mounted the secret replaces its target.
    Link,
    /// A credential of systemd, which removes it with the service.
    Credential,
}

/// What the path of a token file leads to.
pub(super) enum Found {
    File(TokenFile),
    /// A FIFO, open for reading. It is read once, as a stream.
    Fifo(OwnedFd),
}

/// Opens the token file, and reads it unless it is a FIFO. `kept` says why it is never deleted.
///
/// # Errors
/// There is no such file, or it does not contain a session token.
pub(super) fn open_token(path: &Path, kept: Option<Kept>) -> Result<Found, Error> {
    let (directory, name) = open_directory(path)?;
    match open_file(&directory, &name) {
        Ok(file) => found(path, directory, name, file, kept),
        Err(_) if is_link(&directory, &name) => open_link(path),
        Err(errno) => Err(open_failed(path, errno)),
    }
}

/// Opens the target of a symbolic link, if it is below the link's directory.
///
/// The check and the open are separate steps. A process that changes the links between them can
/// write to this directory, so it could as well write the token file itself.
fn open_link(path: &Path) -> Result<Found, Error> {
    /// Kubernetes replaces the directory of the target at any time: rename(2), then deletion.
    const ATTEMPTS: usize = 3;
    for _ in 0..ATTEMPTS {
        let directory = path.parent().unwrap_or(Path::new("."));
        let resolved = directory
            .canonicalize()
            .and_then(|directory| Ok((path.canonicalize()?, directory)));
        let (target, directory) = resolved.map_err(|error| {
            fault(
                path,
                format!("is a symbolic link whose target cannot be reached: {error}"),
            )
        })?;
        if !target.starts_with(&directory) {
            return Err(fault(
                path,
                "is a symbolic link to a place outside its directory, and such links are not followed",
            ));
        }
        let (directory, name) = open_directory(&target)?;
        match open_file(&directory, &name) {
            Ok(file) => return found(path, directory, name, file, Some(Kept::Link)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(open_failed(path, errno)),
        }
    }
    Err(missing(path))
}

fn open_file(directory: &OwnedFd, name: &OsString) -> Result<OwnedFd, Errno> {
    let opened = |flags| retry_on_intr(|| openat(directory, name, flags, Mode::empty()));
    match opened(FILE_NOATIME) {
        Err(Errno::PERM) => opened(FILE),
        opened => opened,
    }
}

/// Reads the file that was opened, unless it is a FIFO.
fn found(
    path: &Path,
    directory: OwnedFd,
    name: OsString,
    file: OwnedFd,
    kept: Option<Kept>,
) -> Result<Found, Error> {
    let stat = fstat(&file).map_err(|errno| fault(path, format!("cannot be examined: {errno}")))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Fifo => return Ok(Found::Fifo(file)),
        _ => return Err(not_regular(path)),
    }
    if others_can_read(&stat) && kept.is_none() {
        log::warn!(
            "the token file {} can be read by other users of this machine; set its mode to 0600",
            path.display()
        );
    }
    let file = File::from(file);
    let bytes = files::read_limited(&file, SIZE_LIMIT).map_err(|error| match error {
        ReadError::TooLarge { limit } => fault(path, too_large(limit)),
        error => fault(path, format!("cannot be read: {error}")),
    })?;
    Ok(Found::File(TokenFile {
        secret: parse(&bytes, &describe(path))?,
        path: path.to_owned(),
        directory,
        name,
        file,
        kept,
    }))
}

/// How messages name the file.
pub(super) fn describe(path: &Path) -> String {
    format!("the token file {}", path.display())
}

/// The problem of a source with more than `limit` bytes.
pub(super) fn too_large(limit: usize) -> String {
    format!("is larger than {limit} bytes, so it does not contain a session token")
}

impl TokenFile {
    /// The token.
    pub(crate) fn secret(&self) -> Secret {
        self.secret.clone()
    }
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Whether `bytes` can be a token. It becomes part of header fields, where a line end would let its
/// writer add fields.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic)
}

/// Opens the directory of `path`. Returns the name of the file, too.
fn open_directory(path: &Path) -> Result<(OwnedFd, OsString), Error> {
    let name = path
        .file_name()
        .ok_or_else(|| fault(path, "is not the path of a file"))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match retry_on_intr(|| open(directory, DIRECTORY, Mode::empty())) {
        Ok(directory) => Ok((directory, name.to_owned())),
        Err(Errno::NOENT) => Err(missing(path)),
        Err(errno) => Err(fault(path, format!("cannot be reached: {errno}"))),
    }
}

/// The token in `bytes`: visible ASCII, with white space before and after it. `source` names where
/// they are from.
pub(super) fn parse(bytes: &[u8], source: &str) -> Result<Secret, Error> {
    const BARE: &str = "write only the token to it, for example with printf %s";
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

    let invalid = |what: &str, remedy: &str| {
        let what = format!("{source} {what}");
        Error::new(Stage::Token, ErrorKind::InvalidData, what, remedy)
    };
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(invalid("is empty", "write a token to it before the start"));
    }
    if token.starts_with(BYTE_ORDER_MARK) {
        return Err(invalid("begins with a byte order mark", BARE));
    }
    match std::str::from_utf8(token) {
        Ok(text) if is_token(token) => Ok(Secret::new(text.to_owned())),
        _ => Err(invalid(
            "has a space, a line end or another byte that is not visible ASCII inside the token",
            BARE,
        )),
    }
}

/// The error of a failed open. The kernel uses one error number for several reasons.
fn open_failed(path: &Path, errno: Errno) -> Error {
    match errno {
        Errno::NOENT => missing(path),
        // A socket, or a device without a driver.
        Errno::NXIO | Errno::NODEV | Errno::OPNOTSUPP => not_regular(path),
        _ => fault(path, format!("cannot be opened: {errno}")),
    }
}

/// Whether the name is a symbolic link. The error number of the open does not say it: ELOOP also
/// means a loop among the directories, and other systems use other numbers.
fn is_link(directory: &OwnedFd, name: &OsString) -> bool {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

fn missing(path: &Path) -> Error {
    Error::new(
        Stage::Token,
        ErrorKind::NotFound,
        format!(
            "the token file {} does not exist (an earlier start may have consumed it)",
            path.display()
        ),
        "provide a fresh token for each start, or name another file with UPSTREAMPROXY_TOKEN_FILE or token-file (--token-file)",
    )
}

fn not_regular(path: &Path) -> Error {
    fault(path, "is not a regular file or a FIFO")
}

fn fault(path: &Path, what: impl fmt::Display) -> Error {
    let what = format!("{} {what}", describe(path));
    Error::new(Stage::Token, ErrorKind::Io, what, NAME_ANOTHER)
}

fn others_can_read(stat: &Stat) -> bool {
    Mode::from_raw_mode(stat.st_mode).intersects(Mode::RGRP | Mode::ROTH)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, mkfifoat};
    use rustix::io::{FdFlags, fcntl_getfd};
    use tempfile::TempDir;

    pub(in crate::setup) const TOKEN: &str = "canary-0123456789";

    /// A temporary directory, and the path of a token file in it that does not exist yet.
    pub(in crate::setup) fn new_path() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("session_token");
        (directory, path)
    }

    pub(in crate::setup) fn written(content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
        let (directory, path) = new_path();
        fs::write(&path, content).expect("the token file");
        (directory, path)
    }

    pub(in crate::setup) fn read_at(path: impl Into<PathBuf>) -> Result<TokenFile, Error> {
        match open_token(&path.into(), None)? {
            Found::File(file) => Ok(file),
            Found::Fifo(_) => panic!("a FIFO"),
        }
    }

    /// A token file that was read, before it is deleted.
    pub(in crate::setup) fn read_token() -> (TempDir, PathBuf, TokenFile) {
        let (directory, path) = written(TOKEN);
        let token = read_at(&path).expect("a good token file");
        (directory, path, token)
    }

    #[track_caller]
    pub(in crate::setup) fn assert_refused(path: impl AsRef<Path>, why: &str) {
        let path = path.as_ref();
        let error = read_at(path).expect_err(why);
        assert_eq!(error.stage(), Stage::Token);
        let text = error.to_string();
        assert!(text.contains(why), "no {why:?} in {text:?}");
        assert!(text.contains(path.to_str().expect("a path in UTF-8")));
        assert!(!text.contains("canary"), "{text:?}");
    }

    #[test]
    fn reads_the_token_between_outer_white_space() {
        let every_character: Vec<u8> = (0x21..=0x7e).collect();
        for content in [
            b"canary" as &[u8],
            b"canary\n",
            b"canary\r\n",
            b"\t canary \x0c\n\n",
            &every_character,
        ] {
            let (_directory, path) = written(content);
            let token = read_at(&path).expect("a good token file");
            assert_eq!(token.secret().expose().as_bytes(), content.trim_ascii());
            assert!(path.exists(), "reading deletes nothing");
        }
    }

    #[test]
    fn reads_a_file_of_the_limit_and_refuses_one_byte_more() {
        let (_directory, path) = written(vec![b'a'; SIZE_LIMIT]);
        let token = read_at(&path).expect("a file of the limit");
        assert_eq!(token.secret().expose().len(), SIZE_LIMIT);
        let (_directory, path) = written(vec![b'a'; SIZE_LIMIT + 1]);
        assert_refused(path, "is larger than 65536 bytes");
    }

    #[test]
    fn refuses_a_huge_file_after_its_first_64_kib() {
        let (_directory, path) = written(TOKEN);
        let file = fs::OpenOptions::new().write(true).open(&path);
        let file = file.expect("the token file");
        file.set_len(1 << 40).expect("a sparse file of 1 TiB");
        file.write_at(b"end", (1 << 40) - 3)
            .expect("its last bytes");
        assert_refused(path, "is larger than 65536 bytes");
    }

    #[test]
    fn a_missing_file_is_reported_with_its_possible_reason() {
        let (directory, path) = new_path();
        assert_refused(path, "does not exist (an earlier start");
        assert_refused(directory.path().join("no/such/token"), "does not exist");
    }

    #[test]
    fn follows_a_link_only_below_its_directory_and_never_deletes_it() {
        let (directory, target) = written(TOKEN);
        let volume = directory.path().join("volume");
        fs::create_dir(&volume).expect("a directory");
        let link = volume.join("link");
        symlink(&target, &link).expect("a link to the parent directory");
        assert_refused(&link, "is a symbolic link to a place outside its directory");

        // The layout of a Kubernetes secret volume.
        fs::create_dir(volume.join("..2026_11_26")).expect("a directory");
        fs::write(volume.join("..2026_11_26/token"), TOKEN).expect("a file");
        symlink("..2026_11_26", volume.join("..data")).expect("a link");
        symlink("..data/token", volume.join("token")).expect("a link");
        let mounted = read_at(volume.join("token")).expect("a mounted secret");
        assert_eq!(mounted.secret().expose(), TOKEN);
        assert_eq!(mounted.kept, Some(Kept::Link));
        let error = mounted.burn().expect_err("it is kept").to_string();
        assert!(error.contains("--keep-token"), "{error:?}");
        assert!(volume.join("..2026_11_26/token").exists() && target.exists());

        let dangling = directory.path().join("dangling");
        symlink(directory.path().join("nothing"), &dangling).expect("a dangling link");
        assert_refused(dangling, "is a symbolic link");

        let ring = directory.path().join("loop");
        symlink(&ring, &ring).expect("a link to itself");
        assert_refused(&ring, "is a symbolic link");
        // A loop among the directories is a different error, with the same error number.
        assert_refused(ring.join("session_token"), "cannot be reached");
    }

    #[test]
    fn opens_a_fifo_and_refuses_other_files_without_waiting() {
        let (directory, fifo) = new_path();
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).expect("a FIFO");
        // An open that waits for a writer would never return.
        assert!(matches!(open_token(&fifo, None), Ok(Found::Fifo(_))));

        let socket = directory.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        assert_refused(socket, "is not a regular file");

        assert_refused(directory.path(), "is not a regular file");
        assert_refused("/dev/zero", "is not a regular file");
        assert_refused("/", "is not the path of a file");
        assert_refused("", "is not the path of a file");
    }

    #[test]
    fn refuses_a_file_under_a_file() {
        let (_directory, path) = written(TOKEN);
        assert_refused(path.join("session_token"), "cannot be reached");
    }

    #[test]
    fn refuses_an_empty_or_blank_file() {
        for content in ["", "\n", " \t\r\n\x0c "] {
            let (_directory, path) = written(content);
            assert_refused(path, "is empty");
        }
    }

    #[test]
    fn refuses_a_token_that_a_header_cannot_contain() {
        for content in [
            b"canary\r\nX: y" as &[u8],
            b"canary\ncanary",
            b"canary canary",
            b"canary\tcanary",
            b"canary\0",
            b"\0\0\0\0",
            b"canary\x1b[0m",
            b"canary\x7f",
            b"canary\x80",
            b"canary\xff",
            b"canary\x0b",
            "canary\u{e9}".as_bytes(),
            "canary\u{a0}".as_bytes(),
            b"\xff\xfec\0a\0n\0",
        ] {
            let (_directory, path) = written(content);
            assert_refused(path, "not visible ASCII");
        }
        let (_directory, path) = written("\u{feff}canary");
        assert_refused(path, "byte order mark");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_refused() {
        let (directory, _) = new_path();
        // Errors that root gets, too: a name that is too long for the file system, and a name that
        // no system call accepts.
        assert_refused(directory.path().join("n".repeat(300)), "cannot be opened");
        assert_refused(directory.path().join("nul\0inside"), "cannot be opened");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_read_error_is_refused() {
        // fstat(2) reports a regular file. Nothing is mapped at address 0, so reading it fails with
        // EIO.
        assert_refused("/proc/self/mem", "cannot be read");
    }

    #[test]
    fn a_file_that_others_can_read_is_detected_and_read() {
        for (mode, detected) in [
            (0o600, false),
            (0o400, false),
            (0o640, true),
            (0o644, true),
            (0o604, true),
            (0o666, true),
        ] {
            let (_directory, path) = written(TOKEN);
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
            let token = read_at(&path).expect("a good token file");
            let stat = fstat(&token.file).expect("its stat");
            assert_eq!(others_can_read(&stat), detected, "{mode:o}");
            let now = fs::metadata(&path).expect("its metadata").mode();
            assert_eq!(now & 0o777, mode, "the mode is unchanged");
        }
    }

    #[test]
    fn debug_output_does_not_show_the_token() {
        let (_directory, path, token) = read_token();
        let shown = format!("{token:?}");
        assert!(shown.contains(path.to_str().expect("a path in UTF-8")));
        assert!(!shown.contains("canary"));
    }

    #[test]
    fn no_child_inherits_the_descriptors() {
        let (_directory, _path, token) = read_token();
        for fd in [token.file.as_fd(), token.directory.as_fd()] {
            let flags = fcntl_getfd(fd).expect("its flags");
            assert!(flags.contains(FdFlags::CLOEXEC));
        }
    }
}
