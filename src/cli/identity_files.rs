//! The certificates of `gateway` and their keys, as files that may be renewed while it runs.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::gateway_options::GatewayOptions;
use crate::crypto::secret::Secret;
use crate::error::Error;
use crate::gateway::{Gateway, TlsIdentity};
use crate::sys::files::{ReadError, open_regular, read_limited};

/// The largest certificate or key file. A chain of ten certificates with long names is a tenth of
/// it.
const PEM_LIMIT: usize = 1 << 20;
/// The permission bits of a key file that are reported. A group that may read it is often intended.
const WRITABLE_BY_OTHERS: u32 = 0o022;
const READABLE_BY_OTHERS: u32 = 0o004;

/// The log target of these lines.
const TARGET: &str = "upstreamproxy::gateway";

/// A certificate file and its key file.
#[derive(Debug)]
struct IdentityFiles {
    /// The option that names the certificate.
    option: &'static str,
    cert: PathBuf,
    key: PathBuf,
    /// A hash of what was read last, or of the error. A change means that the files were renewed.
    last: u64,
    replace: fn(&Gateway, &TlsIdentity) -> Result<(), Error>,
}

/// The files of `--tls-cert` and `--ca-cert` with their keys, as far as they are set.
#[derive(Debug)]
pub(super) struct RenewableFiles {
    tls: Option<IdentityFiles>,
    ca: Option<IdentityFiles>,
}

impl RenewableFiles {
    /// The files that the options name.
    pub(super) fn of(options: &GatewayOptions) -> Self {
        let files = |option, cert: &Option<PathBuf>, key: &Option<PathBuf>, replace| {
            let (cert, key) = cert.clone().zip(key.clone())?;
            Some(IdentityFiles {
                option,
                cert,
                key,
                last: 0,
                replace,
            })
        };
        let GatewayOptions {
            tls_cert,
            tls_key,
            ca_cert,
            ca_key,
            ..
        } = options;
        Self {
            tls: files("--tls-cert", tls_cert, tls_key, Gateway::replace_tls),
            ca: files(
                "--ca-cert",
                ca_cert,
                ca_key,
                Gateway::replace_interception_ca,
            ),
        }
    }

    /// Reads the files of the TLS server, if they are set.
    pub(super) fn tls(&mut self) -> Result<Option<TlsIdentity>, String> {
        self.tls.as_mut().map(IdentityFiles::first).transpose()
    }

    /// Reads the files of the interception CA, if they are set.
    pub(super) fn ca(&mut self) -> Result<Option<TlsIdentity>, String> {
        self.ca.as_mut().map(IdentityFiles::first).transpose()
    }

    /// Reads the files again and gives `gateway` what is new. What cannot be used is reported, and
    /// the old certificate stays.
    pub(super) fn renew(&mut self, gateway: &Gateway) {
        for files in [&mut self.tls, &mut self.ca].into_iter().flatten() {
            files.renew(gateway);
        }
    }
}

impl IdentityFiles {
    /// Reads the files at the start.
    fn first(&mut self) -> Result<TlsIdentity, String> {
        self.report_exposed_key();
        self.read()
    }

    fn read(&mut self) -> Result<TlsIdentity, String> {
        let pair = read(&self.cert).and_then(|cert| Ok((cert, read(&self.key)?)));
        let mut hasher = DefaultHasher::new();
        let texts = pair.as_ref();
        texts
            .map(|(cert, key)| (cert.expose(), key.expose()))
            .hash(&mut hasher);
        self.last = hasher.finish();
        pair.map(|(cert, key)| TlsIdentity::from_secret(cert.expose(), key))
    }

    /// Warns if other users have the key, or could replace it.
    fn report_exposed_key(&self) {
        let Ok(metadata) = fs::metadata(&self.key) else {
            return;
        };
        let mode = metadata.permissions().mode();
        let may = if mode & WRITABLE_BY_OTHERS != 0 {
            "change"
        } else if mode & READABLE_BY_OTHERS != 0 {
            "read"
        } else {
            return;
        };
        log::warn!(
            target: TARGET,
            "key file {}: other users can {may} it; set its mode to 600",
            self.key.display()
        );
    }

    fn renew(&mut self, gateway: &Gateway) {
        // A FIFO, such as a process substitution of the shell, can be read once only.
        let is_file = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        if !is_file(&self.cert) || !is_file(&self.key) {
            return;
        }
        let last = self.last;
        let read = self.read();
        if self.last == last {
            return;
        }
        self.report_exposed_key();
        let replaced = read.and_then(|identity| {
            (self.replace)(gateway, &identity).map_err(|error| error.to_string())
        });
        let option = self.option;
        match replaced {
            Ok(()) => log::info!(target: TARGET, "{option}: the renewed certificate is used"),
            Err(error) => {
                log::warn!(target: TARGET, "{option}: the old certificate is kept: {error}");
            }
        }
    }
}

/// Reads a whole file, which may be a private key. A FIFO is accepted.
fn read(path: &Path) -> Result<Secret, String> {
    let read = match open_regular(path) {
        Err(ReadError::NotRegular) => File::open(path).map_err(ReadError::Io),
        file => file,
    }
    .and_then(|file| read_limited(&file, PEM_LIMIT));
    let mut bytes = read
        .map_err(|error| format!("{} cannot be read: {error}; check the path", path.display()))?;
    Secret::try_from(std::mem::take(&mut *bytes))
        .map_err(|_| format!("{} is not text; name a PEM file", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_up_to_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, vec![b'x'; PEM_LIMIT]).unwrap();
        assert_eq!(read(&path).unwrap().expose().len(), PEM_LIMIT);
        std::fs::write(&path, vec![b'x'; PEM_LIMIT + 1]).unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .contains("larger than 1048576 bytes")
        );
        std::fs::write(&path, b"\xff").unwrap();
        assert!(read(&path).unwrap_err().contains("is not text"));
        assert!(
            read(&directory.path().join("none"))
                .unwrap_err()
                .contains("none")
        );
    }
}
