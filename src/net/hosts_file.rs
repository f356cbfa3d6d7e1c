//! The names in `/etc/hosts` (hosts(5)).
//!
//! The file is read here and not by getaddrinfo(3), which does not find its names when they are
//! looked up with a final dot, and which would start a DNS query for the family that the file has
//! no address of.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::control::log;
use crate::sys::files::{self, ReadError};

/// The largest file that is read: lists that block advertisements have up to about 10 MB.
const SIZE_LIMIT: usize = 16 << 20;

/// A hosts file, read again when it changes.
pub(super) struct HostsFile {
    path: PathBuf,
    content: Mutex<Content>,
}

#[derive(Default)]
struct Content {
    /// The version that was read; `None` if there is no file.
    version: Option<Version>,
    names: HashMap<String, Vec<IpAddr>>,
}

/// What changes when the file is replaced or written: inode, size, and time of modification.
type Version = (u64, u64, i64, i64);

impl HostsFile {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            content: Mutex::default(),
        }
    }

    /// The addresses of `name`, in the order of the file; none if the file does not have the name.
    /// `name` is in lower case and without a final dot.
    pub(super) fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let version = version(&self.path);
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if content.version != version {
            *content = match version.map(|_| read(&self.path)).transpose() {
                Ok(names) => Content {
                    version,
                    names: names.unwrap_or_default(),
                },
                Err(error) => {
                    log::warn!("{}: its names are not used: {error}", self.path.display());
                    Content {
                        version,
                        names: HashMap::new(),
                    }
                }
            };
        }
        content.names.get(name).cloned().unwrap_or_default()
    }
}

fn version(path: &Path) -> Option<Version> {
    let metadata = path.metadata().ok()?;
    Some((
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}

fn read(path: &Path) -> Result<HashMap<String, Vec<IpAddr>>, ReadError> {
    let bytes = files::read_limited(&files::open_regular(path)?, SIZE_LIMIT)?;
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

/// Parses lines of the form `ADDRESS NAME...`, with comments after `#`. A line without an address,
/// or whose address has a zone, is skipped.
fn parse(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut names: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else {
            continue;
        };
        for name in words {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            let addresses = names.entry(name).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_name_has_the_addresses_of_all_its_lines_in_their_order() {
        let names = parse(
            "# 192.0.2.9 a.example\n\
             192.0.2.1\tA.example  b.example # c.example\n\
             \n\
             2001:db8::1 a.example.\n\
             192.0.2.1 a.example\n\
             fe80::1%lo d.example\n\
             nonsense d.example\n",
        );
        assert_eq!(names["a.example"], addresses(&["192.0.2.1", "2001:db8::1"]));
        assert_eq!(names["b.example"], addresses(&["192.0.2.1"]));
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_missing_one_has_no_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let hosts = HostsFile::new(&path);
        assert!(hosts.addresses("a.example").is_empty());
        for (text, expected) in [
            ("192.0.2.1 a.example\n", &["192.0.2.1"][..]),
            ("192.0.2.22 a.example\n", &["192.0.2.22"]),
            ("", &[]),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(hosts.addresses("a.example"), addresses(expected), "{text}");
        }
        std::fs::write(&path, "192.0.2.1 a.example\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(hosts.addresses("a.example").is_empty());
    }
}
