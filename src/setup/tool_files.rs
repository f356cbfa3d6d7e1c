//! The files beside the CA bundle, for tools that need more than a variable with the bundle's path.
//!
//! Each has the bundle's name with its own suffix, so processes that share a directory do not share
//! them. No file contains a secret. A file that cannot be written is only a warning: its tool works
//! without it where no upstream intercepts TLS.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;

use crate::config::{Config, Environment};
use crate::control::log;
use crate::crypto::pem;
use crate::setup::bundle::{DIRECTORY_MODE, FILE_MODE};
use crate::setup::trust_store;
use crate::sys::files;
use ToolFile::{AptConf, Hgrc, NodeHook, PhpDirectory, TrustStore, UpstreamCa, Wgetrc};

/// The first line of the settings files for wget and apt. A nested start may replace such a file,
/// and no other.
const MARK: &str = "# written by upstreamproxy\n";

/// The end of the hook's name. A nested start finds the option of the outer one by it.
pub(super) const NODE_HOOK_SUFFIX: &str = "node-hook.cjs";

/// A file, or directory, beside the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(serde::Deserialize, serde::Serialize))]
pub(crate) enum ToolFile {
    /// The upstream's CA certificates alone (PEM).
    UpstreamCa,
    /// wget: one built with `GnuTLS` reads no CA variable, only this setting.
    Wgetrc,
    /// apt: it reads no CA variable, and its user `_apt` may not use the relay's port.
    AptConf,
    /// Mercurial: distributions set the roots in its system settings, which win over variables.
    Hgrc,
    /// PHP: a directory of ini files for the roots of its openssl and curl extensions.
    PhpDirectory,
    /// The JVM: the bundle as a PKCS #12 trust store.
    TrustStore,
    /// Node: a module that programs load, only with `--node-hook`.
    NodeHook,
}

/// The module that `NODE_OPTIONS` loads into Node programs.
const NODE_HOOK: &str = include_str!("node_hook.js");

impl ToolFile {
    /// Every file, in the order in which they are written.
    pub(crate) const ALL: [Self; 7] = [
        UpstreamCa,
        Wgetrc,
        AptConf,
        Hgrc,
        PhpDirectory,
        TrustStore,
        NodeHook,
    ];

    /// The path beside `bundle`.
    pub(crate) fn path(self, bundle: &Path) -> PathBuf {
        let suffix = match self {
            UpstreamCa => "ca.pem",
            Wgetrc => "wgetrc",
            AptConf => "apt.conf",
            Hgrc => "hgrc",
            PhpDirectory => "php",
            TrustStore => "p12",
            // `.cjs`: CommonJS, whatever a `package.json` above it says.
            NodeHook => NODE_HOOK_SUFFIX,
        };
        files::with_suffix(bundle, suffix)
    }

    /// The tool that reads it, for messages.
    fn tool(self) -> &'static str {
        match self {
            UpstreamCa => "tools that add roots to their own",
            Wgetrc => "wget",
            AptConf => "apt",
            Hgrc => "Mercurial",
            PhpDirectory => "PHP",
            TrustStore => "the JVM",
            NodeHook => "Node",
        }
    }

    /// A file of the user that this one would hide.
    fn hidden_file(self, inherited: &Environment) -> Option<PathBuf> {
        let of_the_user = |file: &PathBuf| fs::symlink_metadata(file).is_ok();
        let found = match self {
            Wgetrc => inherited.lookup("WGETRC").map(PathBuf::from).or_else(|| {
                let default = inherited.home().map(|home| home.join(".wgetrc"));
                default.filter(of_the_user)
            }),
            AptConf => inherited.lookup("APT_CONFIG").map(PathBuf::from),
            UpstreamCa | Hgrc | PhpDirectory | TrustStore | NodeHook => None,
        };
        found.filter(|file| !has_mark(file))
    }
}

/// Writes the files beside `bundle`, and returns those that were written.
pub(crate) fn write(
    config: &Config,
    bundle: &Path,
    upstream: &[CertificateDer<'_>],
    merged: &[CertificateDer<'_>],
) -> Vec<ToolFile> {
    let write = |file: &ToolFile| {
        if let Some(hidden) = file.hidden_file(&config.inherited) {
            let hidden = hidden.display();
            log::debug!(
                "{hidden} belongs to the user, so {} gets no settings",
                file.tool()
            );
            return false;
        }
        let path = file.path(bundle);
        let written = match file {
            UpstreamCa => replace(&path, pem::encode(upstream).as_bytes()),
            TrustStore => replace(&path, &trust_store::encode(merged)),
            PhpDirectory => settings(*file, bundle).and_then(|content| {
                create_directory(&path)?;
                replace(&path.join("upstreamproxy.ini"), &content)
            }),
            NodeHook => replace(&path, NODE_HOOK.as_bytes()),
            Wgetrc | AptConf | Hgrc => {
                settings(*file, bundle).and_then(|content| replace(&path, &content))
            }
        };
        if let Err(error) = &written {
            log::warn!(
                "{} was not written: {error}; {} may {}",
                path.display(),
                file.tool(),
                if *file == NodeHook {
                    "bypass the proxy"
                } else {
                    "reject intercepted connections"
                }
            );
        }
        written.is_ok()
    };
    ToolFile::ALL
        .into_iter()
        .filter(|file| *file != NodeHook || config.node_hook)
        .filter(write)
        .collect()
}

/// The settings that name the bundle, in the syntax of the tool.
///
/// # Errors
/// The path has a character that one of these syntaxes does not keep.
fn settings(file: ToolFile, bundle: &Path) -> io::Result<Vec<u8>> {
    let path = bundle.as_os_str().as_bytes();
    let special = |c: &u8| c.is_ascii_control() || b"\"'\\$%;:#".contains(c);
    if path.iter().any(special) || path.trim_ascii() != path {
        let error = "the path of the CA bundle has special characters; set another one with ca-bundle (--ca-bundle)";
        return Err(io::Error::new(io::ErrorKind::InvalidFilename, error));
    }
    let text: &[&[u8]] = match file {
        Wgetrc => &[MARK.as_bytes(), b"ca_certificate = ", path, b"\n"],
        // The proxy is in http_proxy and https_proxy, which apt reads. Its processes must run as
        // this user: the relay refuses others.
        AptConf => &[
            MARK.as_bytes(),
            b"Acquire::https::CAInfo \"",
            path,
            b"\";\nAPT::Sandbox::User \"root\";\n",
        ],
        Hgrc => &[b"[web]\ncacerts = ", path, b"\n"],
        PhpDirectory => &[
            b"curl.cainfo = \"",
            path,
            b"\"\nopenssl.cafile = \"",
            path,
            b"\"\n",
        ],
        UpstreamCa | TrustStore | NodeHook => &[],
    };
    Ok(text.concat())
}

/// Not synced: the next start writes it again.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    files::replace(path, content, FILE_MODE)
}

/// Creates a directory that only this user can write to. PHP runs code that its settings name, so
/// a directory of another user is not used.
fn create_directory(path: &Path) -> io::Result<()> {
    match files::create_directory(path, DIRECTORY_MODE) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        done => return done,
    }
    let found = fs::symlink_metadata(path)?;
    let uid = rustix::process::geteuid().as_raw();
    if found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(io::Error::other("it exists, and others could write to it"))
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
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    fn config(home: &Path) -> Config {
        let mut config = Config::default();
        config.inherited.set("HOME", home);
        config
    }

    fn written(config: &Config, bundle: &Path) -> Vec<ToolFile> {
        write(config, bundle, &[], &[])
    }

    #[test]
    fn each_tool_gets_the_path_of_the_bundle_in_its_own_syntax() {
        let home = TempDir::new().unwrap();
        let bundle = home.path().join("my bundle.crt");
        let files = written(&config(home.path()).node_hook(true), &bundle);
        assert_eq!(files, ToolFile::ALL);
        let shown = bundle.display();
        for (name, line) in [
            ("wgetrc", format!("ca_certificate = {shown}\n")),
            ("apt.conf", format!("Acquire::https::CAInfo \"{shown}\";\n")),
            ("hgrc", format!("cacerts = {shown}\n")),
            (
                "php/upstreamproxy.ini",
                format!("curl.cainfo = \"{shown}\"\n"),
            ),
        ] {
            let file = home.path().join(format!("my bundle.crt.{name}"));
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.contains(&line), "{text}");
            let mode = fs::metadata(file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o644);
        }
    }

    #[test]
    fn wget_and_apt_get_settings_only_where_the_user_has_none() {
        let home = TempDir::new().unwrap();
        let bundle = home.path().join("ca-bundle.crt");
        let mut config = config(home.path());
        for (variable, file) in [("WGETRC", Wgetrc), ("APT_CONFIG", AptConf)] {
            assert!(written(&config, &bundle).contains(&file));
            config.inherited.set(variable, file.path(&bundle));
            let inner = home.path().join("ca-bundle-2.crt");
            assert!(
                written(&config, &inner).contains(&file),
                "a file of this program is replaced"
            );
            config.inherited.set(variable, "/nowhere/settings");
            assert!(!written(&config, &bundle).contains(&file));
            config.inherited.set(variable, "");
        }
        symlink("/nowhere", home.path().join(".wgetrc")).unwrap();
        assert!(!written(&config, &bundle).contains(&Wgetrc));
    }

    #[test]
    fn the_hook_for_node_is_written_only_if_it_is_requested() {
        let home = TempDir::new().unwrap();
        let bundle = home.path().join("ca-bundle.crt");
        assert!(!written(&config(home.path()), &bundle).contains(&NodeHook));
        let with_hook = config(home.path()).node_hook(true);
        assert!(written(&with_hook, &bundle).contains(&NodeHook));
        let text = fs::read_to_string(home.path().join("ca-bundle.crt.node-hook.cjs")).unwrap();
        assert_eq!(text, NODE_HOOK);
    }

    #[test]
    fn a_path_that_a_tool_would_misread_gets_no_settings() {
        let home = TempDir::new().unwrap();
        for name in ["a\nb.crt", "a.crt ", "a\"b", "$HOME"] {
            let files = written(&config(home.path()), &home.path().join(name));
            assert_eq!(files, [UpstreamCa, TrustStore], "{name:?}");
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_used() {
        let home = TempDir::new().unwrap();
        let bundle = home.path().join("ca-bundle.crt");
        let directory = PhpDirectory.path(&bundle);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!written(&config(home.path()), &bundle).contains(&PhpDirectory));
        fs::remove_dir(&directory).unwrap();
        symlink(home.path(), &directory).unwrap();
        assert!(!written(&config(home.path()), &bundle).contains(&PhpDirectory));
        fs::remove_file(&directory).unwrap();
        for _ in 0..2 {
            assert!(written(&config(home.path()), &bundle).contains(&PhpDirectory));
        }
    }
}
