//! Root certificates in files of the system and the user.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::control::log;
use crate::crypto::pem::{self, PemError};
use crate::error::{Error, ErrorKind, Stage};
use crate::sys::files::{self, ReadError};

/// Where distributions keep their roots, the most common paths first.
const SYSTEM_BUNDLES: [&str; 6] = [
    // Debian, Ubuntu, Arch, Gentoo, Alpine
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora, RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    // openSUSE
    "/etc/ssl/ca-bundle.pem",
    // NixOS
    "/etc/ssl/certs/ca-bundle.crt",
    // Alpine without its ca-certificates package, the BSDs, macOS
    "/etc/ssl/cert.pem",
];
/// The largest file of roots that is read. A distribution's file has about 256 KiB.
const FILE_LIMIT: usize = 16 * 1024 * 1024;

/// Why a file has no usable roots.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootsError {
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("it contains no certificate")]
    Empty,
}

impl RootsError {
    fn at(self, setting: &str, file: &Path, remedy: &str) -> Error {
        let what = format!("{setting} {}: {self}", file.display());
        Error::new(Stage::Ca, ErrorKind::InvalidSetting, what, remedy).caused_by(self)
    }
}

/// The base roots: those of the setting `system-ca`, else of the inherited `SSL_CERT_FILE`, else of
/// the distribution.
pub(crate) fn base_roots(config: &Config) -> Result<Vec<CertificateDer<'static>>, Error> {
    base_roots_among(config, &SYSTEM_BUNDLES)
}

/// The roots that this program's own connections to the upstream trust: `base_roots` and those of
/// the setting `upstream-ca`.
pub(crate) fn connection_roots(
    config: &Config,
    base_roots: &[CertificateDer<'static>],
) -> Result<Vec<CertificateDer<'static>>, Error> {
    match &config.upstream_ca {
        Some(file) => with_further(base_roots, file, "upstream-ca (--upstream-ca)"),
        None => Ok(base_roots.to_vec()),
    }
}

/// `roots` and those in the PEM file that `setting` names.
///
/// # Errors
/// The file cannot be read, contains no certificate, or contains a broken one.
pub(crate) fn with_further(
    roots: &[CertificateDer<'static>],
    file: &Path,
    setting: &str,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = || match pem::certificates(&read_file(file)?)? {
        further if further.is_empty() => Err(RootsError::Empty),
        further => Ok(further),
    };
    let further = read().map_err(|e| e.at(setting, file, "name a PEM file of CA certificates"))?;
    Ok(pem::merge(&[roots.to_vec(), further]))
}

fn base_roots_among(
    config: &Config,
    system_bundles: &[&str],
) -> Result<Vec<CertificateDer<'static>>, Error> {
    if let Some(file) = &config.system_ca {
        let remedy = "name a PEM file of root certificates";
        return roots_in(file).map_err(|e| e.at("system-ca (--system-ca)", file, remedy));
    }
    if let Some(file) = config.inherited.lookup("SSL_CERT_FILE").map(Path::new) {
        match roots_in(file) {
            Ok(roots) => return Ok(roots),
            Err(error) => log::warn!(
                "the inherited SSL_CERT_FILE ({}) is ignored: {error}",
                file.display()
            ),
        }
    }
    for file in system_bundles {
        match roots_in(Path::new(file)) {
            Ok(roots) => return Ok(roots),
            Err(error) => log::debug!("no roots in {file}: {error}"),
        }
    }
    Err(Error::new(
        Stage::Ca,
        ErrorKind::NotFound,
        "no root certificates were found on this system",
        "install its ca-certificates package, or name a PEM file of root certificates with SSL_CERT_FILE, the setting system-ca (--system-ca) or, for a gateway, target-ca (--target-ca)",
    ))
}

/// The certificates in a file of the system or the user. Broken ones are left out with a warning.
///
/// # Errors
/// The file cannot be read, or contains no usable certificate.
pub(crate) fn roots_in(file: &Path) -> Result<Vec<CertificateDer<'static>>, RootsError> {
    let (mut roots, broken) = pem::readable_certificates(&read_file(file)?);
    let readable = roots.len();
    // Some tools refuse a whole bundle because of one broken block.
    roots.retain(|root| is_one_sequence(root));
    let unusable = broken.len() + readable - roots.len();
    if roots.is_empty() {
        return Err(RootsError::Empty);
    }
    if unusable > 0 {
        let file = file.display();
        let first = broken.first().map(|e| format!(": {e}")).unwrap_or_default();
        log::warn!("{unusable} broken certificates in {file} are left out{first}");
    }
    Ok(roots)
}

/// Whether `der` is exactly one ASN.1 SEQUENCE, as a certificate is. Roots are not checked further
/// before they are copied: other libraries accept certificates that rustls does not.
fn is_one_sequence(der: &[u8]) -> bool {
    let Some((&[0x30, first], rest)) = der.split_first_chunk() else {
        return false;
    };
    // Up to 127 the byte is the length. Above, its lower bits are the number of length bytes.
    let more = usize::from(first & 0x7f);
    let (length, content) = match (first, rest.split_at_checked(more)) {
        (0..=0x7f, _) => (more, rest),
        (0x81..=0x84, Some((length, content))) => {
            let length = length.iter().fold(0, |sum, &b| sum << 8 | usize::from(b));
            (length, content)
        }
        _ => return false,
    };
    length == content.len()
}

/// Reads a regular file without waiting. Links are followed.
fn read_file(file: &Path) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    files::read_limited(&files::open_regular(file)?, FILE_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::download::tests::{ca, scene};
    use std::fs;

    #[test]
    fn base_roots_come_from_the_first_file_that_has_any() {
        let mut scene = scene();
        let (inherited, system) = (ca(), ca());
        let file = |name: &str, text: &str| {
            let file = scene.directory.path().join(name);
            fs::write(&file, text).unwrap();
            file.into_os_string().into_string().unwrap()
        };
        let empty = file("empty.pem", "");
        let inherited_file = file("inherited.pem", &inherited.pem());
        let system_file = file("distribution.pem", &system.pem());
        let places = ["/nowhere", &empty, &system_file];

        scene.config.inherited.set("SSL_CERT_FILE", &inherited_file);
        let roots = |config: &Config| base_roots_among(config, &places);
        assert_eq!(roots(&scene.config), Ok(vec![scene.base_root.der.clone()]));
        scene.config.system_ca = None;
        assert_eq!(roots(&scene.config), Ok(vec![inherited.der]));
        scene.config.inherited.set("SSL_CERT_FILE", &empty);
        assert_eq!(roots(&scene.config), Ok(vec![system.der]));

        let error = base_roots_among(&scene.config, &places[..2]).unwrap_err();
        assert!(error.remedy().contains("--system-ca"), "{error}");
        for unusable in [&*empty, "/nowhere", "/dev/zero", "/etc"] {
            scene.config.system_ca = Some(unusable.into());
            let error = roots(&scene.config).unwrap_err();
            assert!(error.what().contains(unusable), "{error}");
        }
    }

    #[test]
    fn a_broken_block_in_a_system_file_is_left_out() {
        let mut scene = scene();
        let text = format!(
            "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n{}{}",
            pem::encode(&[b"nonsense".to_vec().into()]),
            scene.base_root.pem(),
        );
        let file = scene.directory.path().join("broken.pem");
        fs::write(&file, text).unwrap();
        scene.config.system_ca = Some(file);
        assert_eq!(base_roots(&scene.config), Ok(vec![scene.base_root.der]));
    }

    #[test]
    fn the_roots_of_this_system_are_all_whole_sequences() {
        for bundle in SYSTEM_BUNDLES {
            if let Ok(text) = fs::read(bundle) {
                let (roots, broken) = pem::readable_certificates(&text);
                assert_eq!(broken, []);
                assert!(roots.iter().all(|root| is_one_sequence(root)), "{bundle}");
            }
        }
        for der in [
            &[][..],
            &[0x30],
            &[0x31, 0],
            &[0x30, 1],
            &[0x30, 0, 0],
            &[0x30, 0x80],
            &[0x30, 0x82, 0],
            &[0x30, 0x88, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert!(!is_one_sequence(der), "{der:?}");
        }
    }
}
