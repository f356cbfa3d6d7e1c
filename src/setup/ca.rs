//! The stage `ca`: which roots there are, whom our own connections trust, and the merged bundle for the children
//! (`manual/operations.md`, the five stages).
//!
//! The bundle is the base roots, then the roots of every CA variable that we are about to replace, then the upstream's: a
//! bundle of the upstream's CA alone would take the public roots away from tools whose variable replaces theirs. Only
//! certificates travel; a private key in the same file stays where it is. Our own connections trust the base roots and
//! `--upstream-ca`, never what was downloaded.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustls_pki_types::CertificateDer;

use crate::config::Config;
use crate::crypto::pem;
use crate::error::{Error, ErrorKind, Stage};
use crate::http::base_url::BaseUrl;
use crate::net::resolver::Resolver;
use crate::setup::bundle::{self, BundleLock};
use crate::setup::child_env;
use crate::setup::download::download;

/// Where distributions keep their roots, the widest spread first.
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
/// The largest file of roots that is read. Distributions' are a quarter of a megabyte.
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// What the stage leaves behind.
#[derive(Debug)]
pub(crate) struct Trust {
    /// The merged bundle, an absolute path.
    pub(crate) bundle: PathBuf,
    /// wget's settings file, if one was written.
    pub(crate) wgetrc: Option<PathBuf>,
    /// Whom our own connections to the upstream trust.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// Keeps the bundle's name ours while it lives; never read.
    pub(crate) _lock: BundleLock,
}

/// Downloads, merges and writes. Until all certificates are there nothing is written or created.
pub(crate) fn prepare(
    config: &Config,
    base: &BaseUrl,
    resolver: &Resolver,
) -> Result<Trust, Error> {
    let wanted = bundle::place(config)?;
    let base_roots = base_roots(config)?;
    let roots = connection_roots(config, &base_roots)?;
    let downloaded = download(config, base, resolver, &roots)?;
    let merged = merge(config, base_roots, downloaded);

    let (path, lock) = bundle::claim(&wanted)?;
    bundle::write(&path, &pem::encode(&merged))?;
    let wgetrc = bundle::write_wgetrc(config, &path);
    log::debug!(
        "{} certificates in the CA bundle {}",
        merged.len(),
        path.display()
    );
    Ok(Trust {
        bundle: path,
        wgetrc,
        roots,
        _lock: lock,
    })
}

/// The base roots: those of `--system-ca`, else of the inherited `SSL_CERT_FILE`, else of the distribution.
pub(crate) fn base_roots(config: &Config) -> Result<Vec<CertificateDer<'static>>, Error> {
    base_roots_among(config, &SYSTEM_BUNDLES)
}

/// Whom our own connections to the upstream trust: `base_roots` and those of `--upstream-ca`.
pub(crate) fn connection_roots(
    config: &Config,
    base_roots: &[CertificateDer<'static>],
) -> Result<Vec<CertificateDer<'static>>, Error> {
    match &config.upstream_ca {
        Some(file) => with_further(base_roots, file, "--upstream-ca"),
        None => Ok(base_roots.to_vec()),
    }
}

/// `roots` and those in `file`, which the option `option` names: a PEM file that holds certificates, all of them sound.
pub(crate) fn with_further(
    roots: &[CertificateDer<'static>],
    file: &Path,
    option: &str,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let fault = |why: String| {
        let what = format!("{option} {}: {why}", file.display());
        Error::new(
            Stage::Ca,
            ErrorKind::InvalidSetting,
            what,
            "name a PEM file of CA certificates",
        )
    };
    let text = read_file(file).map_err(|error| fault(error.to_string()))?;
    let further = pem::certificates(&text).map_err(|error| fault(error.to_string()))?;
    if further.is_empty() {
        return Err(fault("it holds no certificate".into()));
    }
    Ok(pem::merge(&[roots.to_vec(), further]))
}

/// Everything that the bundle holds, in its order, each certificate once.
pub(crate) fn merge(
    config: &Config,
    base_roots: Vec<CertificateDer<'static>>,
    downloaded: Vec<CertificateDer<'static>>,
) -> Vec<CertificateDer<'static>> {
    pem::merge(&[base_roots, inherited_roots(config), downloaded])
}

fn base_roots_among(
    config: &Config,
    system_bundles: &[&str],
) -> Result<Vec<CertificateDer<'static>>, Error> {
    const REMEDY: &str = "name a PEM file of root certificates with --system-ca";
    if let Some(file) = &config.system_ca {
        return roots_in(file).map_err(|error| {
            let what = format!("--system-ca {}: {error}", file.display());
            Error::new(Stage::Ca, ErrorKind::InvalidSetting, what, REMEDY)
        });
    }
    if let Some(file) = config.inherited.lookup("SSL_CERT_FILE").map(Path::new) {
        match roots_in(file) {
            Ok(roots) => return Ok(roots),
            Err(error) => log::warn!(
                "the inherited SSL_CERT_FILE ({}) is passed over: {error}",
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
        "no root certificates are found on this system",
        "install its ca-certificates package, or name a PEM file of root certificates with --system-ca",
    ))
}

/// The roots that the inherited CA variables name, for those variables are about to name the bundle.
fn inherited_roots(config: &Config) -> Vec<CertificateDer<'static>> {
    let mut seen = HashSet::new();
    let mut roots = Vec::new();
    for variable in child_env::ca_variables() {
        let Some(file) = config.inherited.lookup(variable).map(Path::new) else {
            continue;
        };
        if !seen.insert(file) {
            continue;
        }
        match roots_in(file) {
            Ok(found) => roots.extend(found),
            Err(error) => log::warn!(
                "no roots are taken over from the inherited {variable} ({}): {error}",
                file.display()
            ),
        }
    }
    roots
}

/// The certificates of a file of the system or the user; a broken one costs itself and a warning, none at all is an error.
fn roots_in(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let (mut roots, broken) = pem::readable_certificates(&read_file(file)?);
    let readable = roots.len();
    // Some tools refuse a whole bundle for one block of nonsense.
    roots.retain(|root| is_one_sequence(root));
    let unusable = broken.len() + readable - roots.len();
    if roots.is_empty() {
        return Err(io::Error::other("it holds no certificate"));
    }
    if unusable > 0 {
        let file = file.display();
        let first = broken.first().map(|e| format!(": {e}")).unwrap_or_default();
        log::warn!("{unusable} broken certificates in {file} are left out{first}");
    }
    Ok(roots)
}

/// Whether `der` is one whole ASN.1 SEQUENCE, as a certificate is. No more is asked of roots that we only pass on: other
/// libraries accept certificates that ours does not.
fn is_one_sequence(der: &[u8]) -> bool {
    let Some((&[0x30, first], rest)) = der.split_first_chunk() else {
        return false;
    };
    // Up to 127 the byte is the length; above, its lower bits say how many bytes of length follow.
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

/// A regular file, links followed, read without ever waiting and up to the limit.
fn read_file(file: &Path) -> io::Result<Vec<u8>> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(bundle::flags(OFlags::NONBLOCK))
        .open(file)?;
    let metadata = opened.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::with_capacity(metadata.len().min(FILE_LIMIT) as usize + 1);
    opened.take(FILE_LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_LIMIT {
        let what = format!("it is larger than {FILE_LIMIT} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::download::tests::{
        Ca, Scene, answering, ca, files_in, response, scene, serve,
    };
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::{Arc, Barrier};
    use std::thread;

    /// Runs the stage against an upstream that hands out the CA.
    fn prepared(scene: &Scene, upstream: &Ca) -> Trust {
        let (port, server) = serve(1, answering(response("200 OK", upstream.pem())));
        let trust = scene.prepare(&format!("http://127.0.0.1:{port}")).unwrap();
        server.join().unwrap();
        trust
    }

    fn certificates_in(file: &Path) -> Vec<CertificateDer<'static>> {
        pem::certificates(&fs::read(file).unwrap()).unwrap()
    }

    #[test]
    fn the_bundle_is_base_roots_then_replaced_variables_then_the_upstream() {
        let mut scene = scene();
        let (mine, other, upstream) = (ca(), ca(), ca());
        let file = scene.folder.path().join("mine.pem");
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let text = format!("{key}{}{}", mine.pem(), scene.base_root.pem());
        fs::write(&file, text.replace('\n', "\r\n").trim_end()).unwrap();
        let elsewhere = scene.folder.path().join("other.pem");
        fs::write(&elsewhere, other.pem()).unwrap();
        let inherited = &mut scene.config.inherited;
        inherited.set("NODE_EXTRA_CA_CERTS", &elsewhere);
        inherited.set("REQUESTS_CA_BUNDLE", &file);
        inherited.set("GIT_SSL_CAINFO", &file);
        inherited.set("PIP_CERT", "/nowhere.pem");
        inherited.set("SSL_CERT_DIR", "/left/alone");

        let trust = prepared(&scene, &upstream);
        assert_eq!(trust.bundle, scene.home().join(".ccr/ca-bundle.crt"));
        let expected = [&scene.base_root.der, &mine.der, &other.der, &upstream.der];
        assert_eq!(certificates_in(&trust.bundle), expected.map(Clone::clone));
        let text = fs::read_to_string(&trust.bundle).unwrap();
        assert!(!pem::holds_private_key(text.as_bytes()));
        assert_eq!(trust.roots, [scene.base_root.der]);
    }

    #[test]
    fn a_start_inside_another_adds_its_ca_once() {
        let mut scene = scene();
        let upstream = ca();
        let outer = prepared(&scene, &upstream);
        scene.config.system_ca = None;
        for variable in child_env::ca_variables() {
            scene.config.inherited.set(variable, &outer.bundle);
        }
        let inner = prepared(&scene, &upstream);
        assert_eq!(inner.bundle, scene.home().join(".ccr/ca-bundle-2.crt"));
        let text = |trust: &Trust| fs::read_to_string(&trust.bundle).unwrap();
        assert_eq!(text(&inner), text(&outer));
    }

    #[test]
    fn base_roots_come_from_the_first_place_that_has_any() {
        let mut scene = scene();
        let (inherited, system) = (ca(), ca());
        let file = |name: &str, text: &str| {
            let file = scene.folder.path().join(name);
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
    fn without_base_roots_there_is_no_download_and_no_bundle() {
        let mut scene = scene();
        scene.config.system_ca = Some("/nowhere.pem".into());
        // Nothing listens on port 1: had it come that far, the error would be another.
        let error = scene.prepare("http://127.0.0.1:1").unwrap_err();
        assert!(error.what().contains("/nowhere.pem"), "{error}");
        assert_eq!(files_in(&scene.home()), [""; 0]);
    }

    #[test]
    fn an_unusable_upstream_ca_is_named() {
        let mut scene = scene();
        let file = scene.folder.path().join("upstream.pem");
        for text in ["", "-----BEGIN CERTIFICATE-----\ncut"] {
            fs::write(&file, text).unwrap();
            scene.config.upstream_ca = Some(file.clone());
            let error = scene.prepare("http://127.0.0.1:1").unwrap_err();
            assert!(error.what().contains("--upstream-ca"), "{error}");
            assert!(error.what().contains("upstream.pem"), "{error}");
        }
    }

    #[test]
    fn a_broken_block_in_a_system_file_costs_that_block_only() {
        let mut scene = scene();
        let text = format!(
            "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n{}{}",
            pem::encode(&[b"nonsense".to_vec().into()]),
            scene.base_root.pem(),
        );
        let file = scene.folder.path().join("broken.pem");
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

    #[test]
    fn a_home_that_is_none_is_named_and_nothing_is_written() {
        let mut scene = scene();
        let file = scene.folder.path().join("system.pem");
        let file = file.to_str().unwrap();
        for (home, words) in [
            ("", "HOME is not set"),
            (
                "relative/home",
                "HOME (relative/home) is not an absolute path",
            ),
            ("/no/such/home", "HOME names (/no/such/home)"),
            (file, "is not a folder"),
        ] {
            scene.config.inherited.set("HOME", home);
            let error = scene.prepare("http://127.0.0.1:1").unwrap_err();
            assert!(error.what().contains(words), "{error}");
        }
        assert_eq!(files_in(scene.folder.path()), ["home", "system.pem"]);
    }

    #[test]
    fn sixteen_starts_at_once_each_have_a_whole_bundle_of_their_own() {
        let scene = Arc::new(scene());
        let upstream = Arc::new(ca());
        let (port, server) = serve(16, answering(response("200 OK", upstream.pem())));
        let barrier = Arc::new(Barrier::new(16));
        let starts: Vec<_> = (0..16)
            .map(|_| {
                let (scene, barrier) = (Arc::clone(&scene), Arc::clone(&barrier));
                thread::spawn(move || {
                    barrier.wait();
                    scene.prepare(&format!("http://127.0.0.1:{port}")).unwrap()
                })
            })
            .collect();
        let trusts: Vec<_> = starts.into_iter().map(|s| s.join().unwrap()).collect();
        server.join().unwrap();
        let mut names: Vec<_> = trusts.iter().map(|trust| trust.bundle.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 16);
        for name in &names {
            let expected = [scene.base_root.der.clone(), upstream.der.clone()];
            assert_eq!(certificates_in(name), expected);
        }
        let left = files_in(&scene.home().join(".ccr"));
        assert_eq!(left.len(), 16 * 3, "bundle, lock, wgetrc: {left:?}");
        assert!(left.contains(&"ca-bundle.crt".to_owned()));
        assert!(left.contains(&"ca-bundle-16.crt".to_owned()));

        // All locks are free again: the next start has the plain name.
        drop(trusts);
        let next = prepared(&scene, &upstream);
        assert_eq!(next.bundle, scene.home().join(".ccr/ca-bundle.crt"));
    }

    #[test]
    fn a_link_in_the_bundles_place_is_replaced_and_what_it_names_is_not() {
        let scene = scene();
        let real = scene.folder.path().join("real");
        fs::create_dir(&real).unwrap();
        symlink(&real, scene.home().join(".ccr")).unwrap();
        let canary = scene.folder.path().join("canary");
        fs::write(&canary, "canary").unwrap();
        symlink(&canary, real.join("ca-bundle.crt")).unwrap();

        let trust = prepared(&scene, &ca());
        assert_eq!(fs::read_to_string(&canary).unwrap(), "canary");
        assert!(
            real.join("ca-bundle.crt")
                .symlink_metadata()
                .unwrap()
                .is_file()
        );
        assert_eq!(certificates_in(&trust.bundle).len(), 2);
    }
}
