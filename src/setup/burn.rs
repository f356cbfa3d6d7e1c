//! Stage `burn`: deletes the token file after the relay has started (`manual/operations.md`, row
//! burn).
//!
//! The file that is deleted is the one that was read. Another file at its path is left alone.

#[cfg(feature = "cli")]
use std::ffi::OsStr;

use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, ftruncate, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::control::log;
use crate::error::{Error, ErrorKind, Stage};
use crate::setup::token_file::{Kept, TokenFile};

/// What to do about a token file that is to stay.
const ACCEPT: &str = "set keep-token (--keep-token) to accept that the token stays readable there";

impl TokenFile {
    /// Whether this user may delete files in the directory, or else write to the file. Changes
    /// nothing.
    ///
    /// # Errors
    /// [`Self::burn`] would fail.
    #[cfg(feature = "cli")]
    pub(super) fn can_burn(&self) -> Result<String, Error> {
        use rustix::fs::{Access, accessat};

        let path = self.path.display();
        if let Some(kept) = self.kept {
            let credential = format!("{path} is a credential of systemd, which deletes it");
            return self.report_kept(kept).map(|()| credential);
        }
        let may = |name: &OsStr, access| accessat(&self.directory, name, access, AtFlags::EACCESS);
        may(OsStr::new("."), Access::WRITE_OK | Access::EXEC_OK)
            .map(|()| format!("{path} can be deleted"))
            .or_else(|errno| match may(&self.name, Access::WRITE_OK) {
                Ok(()) => Ok(format!("{path} can be emptied, but not deleted: {errno}")),
                Err(_) => Err(errno),
            })
            .map_err(|errno| {
                let what = format!(
                    "the directory of the token file {path} does not allow this user to delete it: {errno}"
                );
                let remedy = format!("let this user write to that directory, or {ACCEPT}");
                Error::new(Stage::Burn, ErrorKind::Io, what, remedy)
            })
    }

    /// Deletes the file, if it is still the one that was read. One that cannot be deleted, such as
    /// a mount point, is emptied. A file that is already deleted is not an error.
    ///
    /// # Errors
    /// The file was only emptied. Or the token is, or may be, still on the disk: the file is a
    /// link, cannot be deleted or emptied, has a second name, or was moved; or another file is at
    /// its path, which is not deleted.
    pub(crate) fn burn(self) -> Result<(), Error> {
        if let Some(kept) = self.kept {
            return self.report_kept(kept);
        }
        let opened = fstat(&self.file).map_err(|errno| self.not_deleted("examined", errno))?;
        match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if !same_file(&found, &opened) => Err(self.left_over(
                "is not the file that was read; it is not deleted",
                "find the file that was read, and delete it",
            )),
            // Between the check and the deletion another process may replace the file: no system
            // call deletes by descriptor. Such a process can write to this directory, so it only
            // causes the deletion of a file that it put there.
            Ok(_) => match unlinkat(&self.directory, &self.name, AtFlags::empty()) {
                Ok(()) if opened.st_nlink > 1 => Err(self.left_over(
                    "is deleted, but was a hard link: the token is still on the disk under another name",
                    "delete that file by hand",
                )),
                Ok(()) => {
                    log::debug!("the token file {} is deleted", self.path.display());
                    Ok(())
                }
                Err(Errno::NOENT) => self.already_gone(),
                Err(errno) => match self.empty(&opened) {
                    Ok(()) => Err(self.left_over(
                        &format!("cannot be deleted: {errno}; it was emptied instead"),
                        "write a fresh token to it before the next start",
                    )),
                    Err(_) => Err(self.not_deleted("deleted", errno)),
                },
            },
            Err(Errno::NOENT) => self.already_gone(),
            Err(errno) => Err(self.not_deleted("examined", errno)),
        }
    }

    /// Removes the content of a file that cannot be deleted: a bind mount (EBUSY), or one in a
    /// directory that this user cannot write to.
    fn empty(&self, opened: &Stat) -> rustix::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.directory, &self.name, flags, Mode::empty())?;
        if !same_file(&fstat(&file)?, opened) {
            return Err(Errno::STALE);
        }
        ftruncate(&file, 0)
    }

    /// The result of a burn that is not executed.
    fn report_kept(&self, kept: Kept) -> Result<(), Error> {
        match kept {
            Kept::Credential => {
                log::debug!(
                    "the token file {} is a credential of systemd, which removes it with the service",
                    self.path.display()
                );
                Ok(())
            }
            Kept::Link => Err(self.left_over(
                "is a symbolic link, as in a mounted secret, so it is not deleted",
                ACCEPT,
            )),
        }
    }

    /// There is no file at the path. The open descriptor shows whether the file was deleted or has
    /// another name.
    fn already_gone(&self) -> Result<(), Error> {
        if fstat(&self.file).is_ok_and(|opened| opened.st_nlink > 0) {
            return Err(self.left_over(
                "was moved away: the token is still on the disk under another name",
                "delete that file by hand",
            ));
        }
        log::debug!(
            "the token file {} was already deleted by another process",
            self.path.display()
        );
        Ok(())
    }

    fn not_deleted(&self, what: &str, errno: Errno) -> Error {
        self.left_over(
            &format!("cannot be {what}: {errno}; the token is still on the disk"),
            &format!("delete it by hand, or {ACCEPT}"),
        )
    }

    fn left_over(&self, what: &str, remedy: &str) -> Error {
        let what = format!("the token file {} {what}", self.path.display());
        Error::new(Stage::Burn, ErrorKind::Io, what, remedy)
    }
}

fn same_file(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::token_file::tests::{TOKEN, assert_refused, new_path, read_at, read_token};
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[track_caller]
    fn assert_not_deleted(burn: Result<(), Error>, why: &str) {
        let error = burn.expect_err(why);
        assert_eq!(error.stage(), Stage::Burn);
        let text = error.to_string();
        assert!(text.contains(why), "no {why:?} in {text:?}");
        assert!(!text.contains("canary"), "{text:?}");
    }

    #[test]
    fn a_second_start_on_the_same_file_does_not_find_it() {
        let (_directory, path, token) = read_token();
        token.burn().expect("the burn");
        assert_refused(path, "may have consumed it); provide a fresh token");
    }

    #[test]
    fn burning_deletes_the_file_and_the_token_stays_in_memory() {
        let (directory, _path, token) = read_token();
        let secret = token.secret();
        token.burn().expect("the burn");
        assert_eq!(
            fs::read_dir(directory.path())
                .expect("the directory")
                .count(),
            0
        );
        assert_eq!(secret.expose(), TOKEN);
    }

    #[test]
    fn a_file_that_changed_its_content_and_mode_is_still_the_same_file() {
        let (_directory, path, token) = read_token();
        fs::write(&path, "another").expect("writing");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).expect("chmod");
        token.burn().expect("the burn");
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_already_deleted_is_not_an_error() {
        let (_directory, path, token) = read_token();
        fs::remove_file(path).expect("deleting");
        token.burn().expect("nothing left to burn");

        let (directory, _path, token) = read_token();
        directory.close().expect("deleting the directory, too");
        token.burn().expect("nothing left to burn");
    }

    #[test]
    fn a_file_that_replaced_it_is_not_deleted() {
        let (directory, path, token) = read_token();
        let other = directory.path().join("other");
        fs::write(&other, "other").expect("another file");
        fs::rename(other, &path).expect("moving it to the path");
        assert_not_deleted(token.burn(), "it is not deleted");
        assert_eq!(fs::read_to_string(path).expect("the other file"), "other");
    }

    #[test]
    fn a_new_file_cannot_have_the_inode_number_of_the_one_that_was_read() {
        let (directory, path, token) = read_token();
        let number = fs::metadata(&path).expect("its metadata").ino();
        fs::remove_file(&path).expect("deleting");
        // File systems such as ext4 give a freed number to the next file. The open descriptor
        // prevents that.
        for other in 0..64 {
            let other = directory.path().join(other.to_string());
            fs::write(&other, "other").expect("another file");
            assert_ne!(fs::metadata(&other).expect("its metadata").ino(), number);
        }
        fs::write(&path, "other").expect("a new file at the path");
        assert_ne!(fs::metadata(&path).expect("its metadata").ino(), number);
        assert_not_deleted(token.burn(), "it is not deleted");
        assert!(path.exists());
    }

    #[test]
    fn a_link_to_the_file_and_the_file_are_not_deleted() {
        let (directory, path, token) = read_token();
        let moved = directory.path().join("moved");
        fs::rename(&path, &moved).expect("moving");
        symlink(&moved, &path).expect("a link to it");
        assert_not_deleted(token.burn(), "it is not deleted");
        assert!(moved.exists() && path.is_symlink());
    }

    #[test]
    fn a_directory_that_replaced_the_file_is_not_deleted() {
        let (_directory, path, token) = read_token();
        fs::remove_file(&path).expect("deleting");
        fs::create_dir(&path).expect("a directory");
        assert_not_deleted(token.burn(), "it is not deleted");
        assert!(path.is_dir());
    }

    #[test]
    fn a_file_that_was_moved_and_moved_back_is_deleted() {
        let (directory, path, token) = read_token();
        let moved = directory.path().join("moved");
        fs::rename(&path, &moved).expect("moving");
        fs::rename(&moved, &path).expect("moving back");
        token.burn().expect("the burn");
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_was_moved_or_linked_is_reported_as_still_on_the_disk() {
        let (directory, path, token) = read_token();
        let moved = directory.path().join("moved");
        fs::rename(&path, &moved).expect("moving");
        assert_not_deleted(token.burn(), "was moved away");
        assert!(moved.exists());

        let (directory, path, token) = read_token();
        let second = directory.path().join("second");
        fs::hard_link(&path, &second).expect("a hard link");
        assert_not_deleted(token.burn(), "was a hard link");
        assert!(!path.exists() && second.exists());
    }

    #[test]
    fn burns_the_file_that_was_read_even_if_another_directory_has_its_path() {
        let (directory, _) = new_path();
        let (real, aside) = (
            directory.path().join("real"),
            directory.path().join("aside"),
        );
        fs::create_dir(&real).expect("a directory");
        fs::write(real.join("token"), TOKEN).expect("the token file");
        let token = read_at(real.join("token")).expect("a good token file");
        fs::rename(&real, &aside).expect("moving the directory");
        fs::create_dir(&real).expect("another directory");
        fs::write(real.join("token"), "other").expect("another file");
        token.burn().expect("the burn");
        assert!(!aside.join("token").exists());
        assert!(real.join("token").exists());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_that_cannot_be_deleted_is_reported_with_the_remedy() {
        // A file of procfs is regular and readable, and not even root can delete it.
        let token = read_at("/proc/sys/kernel/ostype").expect("a file with one word");
        assert_eq!(token.secret().expose(), "Linux");
        assert_not_deleted(token.burn(), "delete it by hand");
    }
}
