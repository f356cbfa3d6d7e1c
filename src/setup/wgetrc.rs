//! The settings file for wget that names the CA bundle.
//!
//! A wget built with `GnuTLS` reads no CA variable, only `ca_certificate` in the file that `WGETRC`
//! names.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::control::log;
use crate::setup::bundle::FILE_MODE;
use crate::sys::files;

/// The first line of every settings file that this program writes. A nested start may replace such
/// a file, and no other.
const MARK: &str = "# written by upstreamproxy\n";

/// Writes the settings file beside the bundle, unless the user has one that it would hide. Returns
/// its path.
///
/// A failure is only a warning: wget works without the file where no upstream intercepts TLS.
pub(crate) fn write(config: &Config, bundle: &Path) -> Option<PathBuf> {
    let inherited = config.inherited.lookup("WGETRC").map(PathBuf::from);
    let default = config.inherited.home().map(|home| home.join(".wgetrc"));
    let found = inherited.or_else(|| default.filter(|file| fs::symlink_metadata(file).is_ok()));
    let of_the_user = |file: &PathBuf| !file.as_os_str().is_empty() && !has_mark(file);
    if let Some(file) = found.filter(of_the_user) {
        log::debug!(
            "{} belongs to the user, so WGETRC is not set",
            file.display()
        );
        return None;
    }
    let path = files::with_suffix(bundle, "wgetrc");
    let value = bundle.as_os_str().as_bytes();
    // In that file a value ends at the end of its line, and wget trims white space.
    let plain = !value.iter().any(u8::is_ascii_control) && value.trim_ascii() == value;
    let content = [MARK.as_bytes(), b"ca_certificate = ", value, b"\n"].concat();
    let written = if plain {
        files::replace_synced(&path, &content, FILE_MODE)
    } else {
        Err(io::ErrorKind::InvalidFilename.into())
    };
    match written {
        Ok(()) => Some(path),
        Err(error) => {
            log::warn!(
                "wget's settings file {} was not written: {error}; wget may reject intercepted \
                 connections",
                path.display()
            );
            None
        }
    }
}

/// Whether this program wrote `file`.
fn has_mark(file: &Path) -> bool {
    let starts_with_mark = |file: File| {
        let mut start = Vec::new();
        let read = file.take(MARK.len() as u64).read_to_end(&mut start);
        read.is_ok() && start == MARK.as_bytes()
    };
    files::open_regular(file).is_ok_and(starts_with_mark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn config(home: &Path) -> Config {
        let mut config = Config::default();
        config.inherited.set("HOME", home);
        config
    }

    #[test]
    fn wget_gets_a_settings_file_only_where_the_user_has_none() {
        let home = TempDir::new().unwrap();
        let bundle = home.path().join("ca-bundle.crt");
        let mut config = config(home.path());
        let written = write(&config, &bundle).unwrap();
        assert_eq!(written, home.path().join("ca-bundle.crt.wgetrc"));
        let line = format!("ca_certificate = {}\n", bundle.display());
        assert!(fs::read_to_string(&written).unwrap().ends_with(&line));

        config.inherited.set("WGETRC", &written);
        let inner = home.path().join("ca-bundle-2.crt");
        assert!(
            write(&config, &inner).is_some(),
            "a file of this program is replaced"
        );
        config.inherited.set("WGETRC", "/nowhere/wgetrc");
        assert_eq!(write(&config, &bundle), None);
        config.inherited.set("WGETRC", "");
        symlink("/nowhere", home.path().join(".wgetrc")).unwrap();
        assert_eq!(write(&config, &bundle), None);
    }

    #[test]
    fn a_path_that_wget_would_misread_gets_no_settings_file() {
        let home = TempDir::new().unwrap();
        for name in ["a\nb.crt", "a.crt "] {
            assert_eq!(write(&config(home.path()), &home.path().join(name)), None);
        }
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
