//! Stages `token` and `burn`: the session token comes into memory, and once the relay stands its file goes.
//!
//! The file is a trap for the unwary: it lies where others may write, so nothing is followed, nothing is waited for, little is
//! read, and what is deleted at the end is the file that was read or nothing. What the token is good for is not decided here.
//! `manual/operations.md`, rows token and burn.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, FileType, Mode, OFlags, Stat, accessat, fstat, open, openat, statat, unlinkat,
};
use rustix::io::{Errno, read as read_some, retry_on_intr};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::crypto::secret::Secret;
use crate::error::{Error, ErrorKind, Stage};

/// The largest token file. Tokens are a few hundred bytes to a few KiB; the gateway's own head limit is 16 KiB.
const SIZE_LIMIT: usize = 64 * 1024;

/// How a folder is opened that serves only to name files in it.
#[cfg(target_os = "linux")]
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
#[cfg(not(target_os = "linux"))]
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// How the token file is opened: a symbolic link is an error, a FIFO without a writer is no reason to wait, and a terminal
/// does not become ours.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Who reads the file and does not burn it (`doctor`) leaves no trace in it; the kernel grants that to the file's owner.
#[cfg(target_os = "linux")]
const TRACELESS: OFlags = FILE.union(OFlags::NOATIME);
#[cfg(not(target_os = "linux"))]
const TRACELESS: OFlags = FILE;

/// What the reader of an error can do when another file is the answer.
const ELSEWHERE: &str =
    "name a regular file that this user can read with UPSTREAMPROXY_TOKEN_FILE or --token-file";

/// The session token, and where it comes from.
#[derive(Debug)]
pub(crate) enum SessionToken {
    /// The host passed it: there is no file to read or burn.
    Given(Secret),
    /// It was read from the token file.
    File(TokenFile),
}

/// The token of `config`, or else the one in its token file.
///
/// # Errors
/// There is no such file, or it does not contain a session token.
pub(crate) fn read(config: &Config) -> Result<SessionToken, Error> {
    match &config.token {
        None => read_file(&config.token_file).map(SessionToken::File),
        Some(token) if is_token(token.expose().as_bytes()) => {
            Ok(SessionToken::Given(token.clone()))
        }
        Some(_) => Err(Error::new(
            Stage::Token,
            ErrorKind::InvalidData,
            "the session token that the host passed is empty or contains a byte that is not visible ASCII",
            "pass the bare token",
        )),
    }
}

impl SessionToken {
    /// The token.
    pub(crate) fn secret(&self) -> Secret {
        match self {
            Self::Given(token) => token.clone(),
            Self::File(file) => file.secret(),
        }
    }

    /// Deletes the token file, if there is one. See [`TokenFile::burn`].
    pub(crate) fn burn(self) -> Result<(), Error> {
        match self {
            Self::Given(_) => Ok(()),
            Self::File(file) => file.burn(),
        }
    }
}

/// Whether `bytes` can be a token: it goes into header fields, where a line end would let its writer add fields.
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic)
}

/// A session token that was read, and its file, which is still there.
pub(crate) struct TokenFile {
    secret: Secret,
    path: PathBuf,
    /// The folder that `name` is in: neither `chdir` nor a folder put in its place leads `burn` astray.
    folder: OwnedFd,
    name: OsString,
    /// Open until the burn: while it is, the kernel gives the inode number to no other file, so that number is an identity.
    file: OwnedFd,
}

/// Reads the token file.
///
/// # Errors
/// There is no such file, or it is not one that can hold a session token.
pub(crate) fn read_file(path: &Path) -> Result<TokenFile, Error> {
    let (folder, name) = open_folder(path)?;
    let opened = |flags| retry_on_intr(|| openat(&folder, &name, flags, Mode::empty()));
    let file = match opened(TRACELESS) {
        Err(Errno::PERM) => opened(FILE),
        opened => opened,
    }
    .map_err(|errno| open_failed(path, &folder, &name, errno))?;
    let stat = fstat(&file).map_err(|errno| fault(path, format!("cannot be examined: {errno}")))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(not_regular(path));
    }
    if others_can_read(&stat) {
        log::warn!(
            "the token file {} can be read by other users of this machine; give it mode 0600",
            path.display()
        );
    }
    let bytes = read_capped(&file, path)?;
    Ok(TokenFile {
        secret: parse(&bytes, path)?,
        path: path.to_owned(),
        folder,
        name,
        file,
    })
}

impl TokenFile {
    /// The token.
    pub(crate) fn secret(&self) -> Secret {
        self.secret.clone()
    }

    /// Whether the folder lets this user delete from it; nothing is tried.
    ///
    /// # Errors
    /// [`Self::burn`] would fail.
    pub(crate) fn can_burn(&self) -> Result<(), Error> {
        let may = Access::WRITE_OK | Access::EXEC_OK;
        accessat(&self.folder, ".", may, AtFlags::EACCESS).map_err(|errno| {
            let what = format!(
                "the folder of the token file {} does not let us delete it: {errno}",
                self.path.display()
            );
            Error::new(
                Stage::Burn,
                ErrorKind::Io,
                what,
                "let this user write to that folder",
            )
        })
    }

    /// Deletes the file, if it is still the one that was read. One that is gone already is as good.
    ///
    /// # Errors
    /// The token is, or may be, still on the disk: the file cannot be deleted, has a further name, was moved away, or another
    /// one lies in its place, which is spared.
    pub(crate) fn burn(self) -> Result<(), Error> {
        let held = fstat(&self.file).map_err(|errno| self.not_burnt("examined", errno))?;
        match statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if !same_file(&found, &held) => Err(self.left_over(
                "is not the file that was read; it is spared",
                "look for the one that was read, and delete it",
            )),
            // Between this look and the deletion somebody may still swap the file: no system call deletes by descriptor.
            // Who can do that may write to this folder, and gains the deletion of a file that they put there themselves.
            Ok(_) => match unlinkat(&self.folder, &self.name, AtFlags::empty()) {
                Ok(()) if held.st_nlink > 1 => Err(self.left_over(
                    "is deleted, but was a hard link: the token is still on the disk under another name",
                    "delete that one by hand",
                )),
                Ok(()) => {
                    log::debug!("the token file {} is burnt", self.path.display());
                    Ok(())
                }
                Err(Errno::NOENT) => self.already_gone(),
                Err(errno) => Err(self.not_burnt("deleted", errno)),
            },
            Err(Errno::NOENT) => self.already_gone(),
            Err(errno) => Err(self.not_burnt("examined", errno)),
        }
    }

    /// Nothing lies at the path. Our descriptor tells whether the file was deleted or has only another name now.
    fn already_gone(&self) -> Result<(), Error> {
        if fstat(&self.file).is_ok_and(|held| held.st_nlink > 0) {
            return Err(self.left_over(
                "was moved away: the token is still on the disk under another name",
                "delete that one by hand",
            ));
        }
        log::debug!(
            "the token file {} is gone already: somebody else deleted it",
            self.path.display()
        );
        Ok(())
    }

    fn not_burnt(&self, what: &str, errno: Errno) -> Error {
        self.left_over(
            &format!("cannot be {what}: {errno}; the token is still on the disk"),
            "delete it by hand",
        )
    }

    fn left_over(&self, what: &str, remedy: &str) -> Error {
        let what = format!("the token file {} {what}", self.path.display());
        Error::new(Stage::Burn, ErrorKind::Io, what, remedy)
    }
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// The folder of `path`, opened, and the file's name in it.
fn open_folder(path: &Path) -> Result<(OwnedFd, OsString), Error> {
    let name = path
        .file_name()
        .ok_or_else(|| fault(path, "names no file"))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match retry_on_intr(|| open(folder, FOLDER, Mode::empty())) {
        Ok(folder) => Ok((folder, name.to_owned())),
        Err(Errno::NOENT) => Err(missing(path)),
        Err(errno) => Err(fault(path, format!("cannot be reached: {errno}"))),
    }
}

/// The file's bytes, which no other memory of ours ever held: the buffer is as large as it gets from the beginning.
fn read_capped(file: &OwnedFd, path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    // One byte more than allowed, to tell the largest file from one too large; the size that `fstat` gives may be a lie.
    let mut bytes = Zeroizing::new(vec![0; SIZE_LIMIT + 1]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match retry_on_intr(|| read_some(file, &mut *rest)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(errno) => return Err(fault(path, format!("cannot be read: {errno}"))),
        }
    }
    if filled > SIZE_LIMIT {
        let what = format!("is larger than {SIZE_LIMIT} bytes, so it holds no session token");
        return Err(fault(path, what));
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The token in the file's bytes: what is between outer white space, and visible ASCII throughout.
fn parse(bytes: &[u8], path: &Path) -> Result<Secret, Error> {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(Error::new(
            Stage::Token,
            ErrorKind::InvalidData,
            format!("the token file {} is empty", path.display()),
            "have a token written to it before the start",
        ));
    }
    if token.starts_with(BYTE_ORDER_MARK) {
        return Err(odd(path, "begins with a byte order mark"));
    }
    if !is_token(token) {
        return Err(odd(
            path,
            "has a space, a line end or another byte that is not visible ASCII inside the token",
        ));
    }
    let text = std::str::from_utf8(token).map_err(|_| odd(path, "is not ASCII text"))?;
    Ok(Secret::new(text.to_owned()))
}

/// Says why the file could not be opened; the kernel says the same number for several reasons.
fn open_failed(path: &Path, folder: &OwnedFd, name: &OsString, errno: Errno) -> Error {
    let is_link = || {
        statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
    };
    match errno {
        Errno::NOENT => missing(path),
        // ELOOP on Linux, other numbers elsewhere; and ELOOP stands for a loop among the folders, too.
        _ if is_link() => fault(
            path,
            "is a symbolic link, and links are not followed: what is at the other end could not be burnt safely",
        ),
        // A socket, or a device without a driver.
        Errno::NXIO | Errno::NODEV | Errno::OPNOTSUPP => not_regular(path),
        _ => fault(path, format!("cannot be opened: {errno}")),
    }
}

fn missing(path: &Path) -> Error {
    Error::new(
        Stage::Token,
        ErrorKind::NotFound,
        format!(
            "the token file {} does not exist; if there was an earlier start, that one has read and burnt it",
            path.display()
        ),
        "have a fresh token written for each start, or name another file with UPSTREAMPROXY_TOKEN_FILE or --token-file",
    )
}

fn not_regular(path: &Path) -> Error {
    fault(path, "is not a regular file")
}

fn odd(path: &Path, what: &str) -> Error {
    Error::new(
        Stage::Token,
        ErrorKind::InvalidData,
        format!("the token file {} {what}", path.display()),
        "write the bare token to it, as printf %s would",
    )
}

fn fault(path: &Path, what: impl fmt::Display) -> Error {
    let what = format!("the token file {} {what}", path.display());
    Error::new(Stage::Token, ErrorKind::Io, what, ELSEWHERE)
}

fn same_file(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

fn others_can_read(stat: &Stat) -> bool {
    Mode::from_raw_mode(stat.st_mode).intersects(Mode::RGRP | Mode::ROTH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, mkfifoat};
    use rustix::io::{FdFlags, fcntl_getfd};
    use tempfile::TempDir;

    const TOKEN: &str = "canary-0123456789";

    /// A folder of its own, and the path of a token file in it that is not there yet.
    fn place() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("session_token");
        (folder, path)
    }

    fn written(content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
        let (folder, path) = place();
        fs::write(&path, content).expect("the token file");
        (folder, path)
    }

    fn read_at(path: impl Into<PathBuf>) -> Result<TokenFile, Error> {
        read_file(&path.into())
    }

    #[test]
    fn a_token_of_the_host_is_used_as_it_is_and_no_file_is_touched() {
        let (_directory, path) = written(TOKEN);
        let config = Config::default().token_file(&path);
        let given = read(&config.clone().token("given".to_owned())).expect("a good token");
        assert_eq!(given.secret().expose(), "given");
        given.burn().expect("nothing to burn");
        assert!(path.exists());
        for token in ["", "a b", "a\n", "\u{e9}"] {
            let error = read(&config.clone().token(token.to_owned())).expect_err(token);
            assert_eq!(error.stage(), Stage::Token);
        }
        let from_file = read(&config).expect("the file");
        assert_eq!(from_file.secret().expose(), TOKEN);
    }

    /// A token file that was read, as it is before the burn.
    fn read_token() -> (TempDir, PathBuf, TokenFile) {
        let (folder, path) = written(TOKEN);
        let token = read_at(&path).expect("a good token file");
        (folder, path, token)
    }

    #[track_caller]
    fn assert_refused(path: impl AsRef<Path>, why: &str) {
        let path = path.as_ref();
        let error = read_at(path).expect_err(why);
        assert_eq!(error.stage(), Stage::Token);
        let text = error.to_string();
        assert!(text.contains(why), "no {why:?} in {text:?}");
        assert!(text.contains(path.to_str().expect("a path in UTF-8")));
        assert!(!text.contains("canary"), "{text:?}");
    }

    #[track_caller]
    fn assert_not_burnt(burn: Result<(), Error>, why: &str) {
        let error = burn.expect_err(why);
        assert_eq!(error.stage(), Stage::Burn);
        let text = error.to_string();
        assert!(text.contains(why), "no {why:?} in {text:?}");
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
            let (_folder, path) = written(content);
            let token = read_at(&path).expect("a good token file");
            assert_eq!(token.secret().expose().as_bytes(), content.trim_ascii());
            assert!(path.exists(), "reading deletes nothing");
        }
    }

    #[test]
    fn reads_a_file_of_the_limit_and_refuses_one_byte_more() {
        let (_folder, path) = written(vec![b'a'; SIZE_LIMIT]);
        let token = read_at(&path).expect("a file of the limit");
        assert_eq!(token.secret().expose().len(), SIZE_LIMIT);
        let (_folder, path) = written(vec![b'a'; SIZE_LIMIT + 1]);
        assert_refused(path, "is larger than 65536 bytes");
    }

    #[test]
    fn refuses_a_huge_file_after_its_first_64_kib() {
        let (_folder, path) = written(TOKEN);
        let file = fs::OpenOptions::new().write(true).open(&path);
        let file = file.expect("the token file");
        file.set_len(1 << 40).expect("a sparse file of 1 TiB");
        file.write_at(b"end", (1 << 40) - 3)
            .expect("its last bytes");
        assert_refused(path, "is larger than 65536 bytes");
    }

    #[test]
    fn refuses_a_file_that_is_missing_and_says_who_may_have_burnt_it() {
        let (folder, path) = place();
        assert_refused(path, "does not exist; if there was an earlier start");
        assert_refused(folder.path().join("no/such/token"), "does not exist");
    }

    #[test]
    fn a_second_start_on_the_same_file_finds_it_burnt() {
        let (_folder, path, token) = read_token();
        token.burn().expect("the burn");
        assert_refused(path, "has read and burnt it; have a fresh token written");
    }

    #[test]
    fn refuses_symbolic_links_and_leaves_their_targets_alone() {
        let (folder, target) = written(TOKEN);
        let link = folder.path().join("link");
        symlink(&target, &link).expect("a link");
        assert_refused(&link, "is a symbolic link");
        assert_eq!(fs::read_to_string(target).expect("its target"), TOKEN);

        let dangling = folder.path().join("dangling");
        symlink(folder.path().join("nothing"), &dangling).expect("a dangling link");
        assert_refused(dangling, "is a symbolic link");

        let ring = folder.path().join("loop");
        symlink(&ring, &ring).expect("a link to itself");
        assert_refused(&ring, "is a symbolic link");
        // A loop among the folders is another thing, though the kernel has the same word for it.
        assert_refused(ring.join("session_token"), "cannot be reached");
    }

    #[test]
    fn refuses_what_is_no_regular_file_without_waiting_for_it() {
        let (folder, fifo) = place();
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).expect("a FIFO");
        // An open that waits for a writer would wait for ever here.
        assert_refused(fifo, "is not a regular file");

        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        assert_refused(socket, "is not a regular file");

        assert_refused(folder.path(), "is not a regular file");
        assert_refused("/dev/zero", "is not a regular file");
        assert_refused("/", "names no file");
        assert_refused("", "names no file");
    }

    #[test]
    fn refuses_a_file_under_a_file() {
        let (_folder, path) = written(TOKEN);
        assert_refused(path.join("session_token"), "cannot be reached");
    }

    #[test]
    fn refuses_an_empty_or_blank_file() {
        for content in ["", "\n", " \t\r\n\x0c "] {
            let (_folder, path) = written(content);
            assert_refused(path, "is empty");
        }
    }

    #[test]
    fn refuses_what_could_not_stand_in_a_header() {
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
            let (_folder, path) = written(content);
            assert_refused(path, "not visible ASCII");
        }
        let (_folder, path) = written("\u{feff}canary");
        assert_refused(path, "byte order mark");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_refused() {
        let (folder, _) = place();
        // Reasons that root meets as well as anybody: a name too long for the file system, one that no system call takes.
        assert_refused(folder.path().join("n".repeat(300)), "cannot be opened");
        assert_refused(folder.path().join("nul\0inside"), "cannot be opened");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_read_error_is_refused() {
        // A regular file to every look; nothing is mapped at address 0, so reading there is EIO.
        assert_refused("/proc/self/mem", "cannot be read");
    }

    #[test]
    fn a_file_that_others_can_read_is_noticed_and_read() {
        for (mode, noticed) in [
            (0o600, false),
            (0o400, false),
            (0o640, true),
            (0o644, true),
            (0o604, true),
            (0o666, true),
        ] {
            let (_folder, path) = written(TOKEN);
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
            let token = read_at(&path).expect("a good token file");
            let stat = fstat(&token.file).expect("its stat");
            assert_eq!(others_can_read(&stat), noticed, "{mode:o}");
            let now = fs::metadata(&path).expect("its metadata").mode();
            assert_eq!(now & 0o777, mode, "the mode is left as it was");
        }
    }

    #[test]
    fn debug_output_does_not_show_the_token() {
        let (_folder, path, token) = read_token();
        let shown = format!("{token:?}");
        assert!(shown.contains(path.to_str().expect("a path in UTF-8")));
        assert!(!shown.contains("canary"));
    }

    #[test]
    fn no_child_inherits_the_descriptors() {
        let (_folder, _path, token) = read_token();
        for fd in [&token.file, &token.folder] {
            let flags = fcntl_getfd(fd).expect("its flags");
            assert!(flags.contains(FdFlags::CLOEXEC));
        }
    }

    #[test]
    fn burning_deletes_the_file_and_the_token_stays_in_memory() {
        let (folder, _path, token) = read_token();
        let secret = token.secret();
        token.burn().expect("the burn");
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
        assert_eq!(secret.expose(), TOKEN);
    }

    #[test]
    fn a_file_that_changed_its_content_and_mode_is_still_the_same_file() {
        let (_folder, path, token) = read_token();
        fs::write(&path, "another").expect("writing");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).expect("chmod");
        token.burn().expect("the burn");
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_gone_already_is_as_good_as_burnt() {
        let (_folder, path, token) = read_token();
        fs::remove_file(path).expect("deleting");
        token.burn().expect("nothing left to burn");

        let (folder, _path, token) = read_token();
        folder.close().expect("deleting the folder, too");
        token.burn().expect("nothing left to burn");
    }

    #[test]
    fn a_file_put_in_its_place_is_spared() {
        let (folder, path, token) = read_token();
        let other = folder.path().join("other");
        fs::write(&other, "other").expect("another file");
        fs::rename(other, &path).expect("putting it in place");
        assert_not_burnt(token.burn(), "it is spared");
        assert_eq!(fs::read_to_string(path).expect("the other file"), "other");
    }

    #[test]
    fn a_new_file_cannot_have_the_inode_number_of_the_one_that_was_read() {
        let (folder, path, token) = read_token();
        let number = fs::metadata(&path).expect("its metadata").ino();
        fs::remove_file(&path).expect("deleting");
        // File systems such as ext4 give the freed number to the very next file, were it not for our open descriptor.
        for other in 0..64 {
            let other = folder.path().join(other.to_string());
            fs::write(&other, "other").expect("another file");
            assert_ne!(fs::metadata(&other).expect("its metadata").ino(), number);
        }
        fs::write(&path, "other").expect("a new file in its place");
        assert_ne!(fs::metadata(&path).expect("its metadata").ino(), number);
        assert_not_burnt(token.burn(), "it is spared");
        assert!(path.exists());
    }

    #[test]
    fn a_link_to_the_very_file_is_spared_as_the_file_is() {
        let (folder, path, token) = read_token();
        let moved = folder.path().join("moved");
        fs::rename(&path, &moved).expect("moving");
        symlink(&moved, &path).expect("a link to it");
        assert_not_burnt(token.burn(), "it is spared");
        assert!(moved.exists() && path.is_symlink());
    }

    #[test]
    fn a_folder_in_the_place_of_the_file_is_spared() {
        let (_folder, path, token) = read_token();
        fs::remove_file(&path).expect("deleting");
        fs::create_dir(&path).expect("a folder");
        assert_not_burnt(token.burn(), "it is spared");
        assert!(path.is_dir());
    }

    #[test]
    fn a_file_that_went_and_came_back_is_burnt() {
        let (folder, path, token) = read_token();
        let moved = folder.path().join("moved");
        fs::rename(&path, &moved).expect("moving");
        fs::rename(&moved, &path).expect("moving back");
        token.burn().expect("the burn");
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_was_moved_or_linked_is_reported_as_still_on_the_disk() {
        let (folder, path, token) = read_token();
        let moved = folder.path().join("moved");
        fs::rename(&path, &moved).expect("moving");
        assert_not_burnt(token.burn(), "was moved away");
        assert!(moved.exists());

        let (folder, path, token) = read_token();
        let second = folder.path().join("second");
        fs::hard_link(&path, &second).expect("a hard link");
        assert_not_burnt(token.burn(), "was a hard link");
        assert!(!path.exists() && second.exists());
    }

    #[test]
    fn burns_the_file_that_was_read_though_another_folder_took_its_path() {
        let (folder, _) = place();
        let (real, aside) = (folder.path().join("real"), folder.path().join("aside"));
        fs::create_dir(&real).expect("a folder");
        fs::write(real.join("token"), TOKEN).expect("the token file");
        let token = read_at(real.join("token")).expect("a good token file");
        fs::rename(&real, &aside).expect("moving the folder");
        fs::create_dir(&real).expect("another folder");
        fs::write(real.join("token"), "other").expect("another file");
        token.burn().expect("the burn");
        assert!(!aside.join("token").exists());
        assert!(real.join("token").exists());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_that_cannot_be_deleted_is_reported_with_the_remedy() {
        // A file of procfs is regular and readable, and nobody deletes it, root neither.
        let token = read_at("/proc/sys/kernel/ostype").expect("a file with one word");
        assert_eq!(token.secret().expose(), "Linux");
        assert_not_burnt(token.burn(), "delete it by hand");
    }
}
