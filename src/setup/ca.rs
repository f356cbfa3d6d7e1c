//! The stage `ca`: downloads the upstream's certificates and writes the merged bundle for children
//! (`manual/operations.md`, the five stages).
//!
//! The bundle contains the upstream's certificates first, for tools that import only one, then the
//! base roots and the roots of every inherited CA variable that this program replaces. With the
//! upstream's CA alone, tools whose variable replaces their own roots would lose the public ones.
//! Only certificates are copied: a private key in the same file is not. This program's own
//! connections trust the base roots and `--upstream-ca`, never a certificate that was downloaded.

use std::collections::HashSet;
use std::path::PathBuf;

use rustls_pki_types::CertificateDer;

use crate::config::Config;
use crate::control::log;
use crate::crypto::{pem, tls};
use crate::error::{Error, Stage};
use crate::http::base_url::BaseUrl;
use crate::net::resolver::Resolver;
use crate::setup::download::download;
use crate::setup::roots::{base_roots, connection_roots, roots_in};
use crate::setup::tool_files::ToolFile;
use crate::setup::{bundle, child_env, tool_files, tool_settings};
use crate::sys::owned_name::OwnedName;

/// The result of the stage.
#[derive(Debug)]
pub(crate) struct Trust {
    /// The merged bundle, an absolute path.
    pub(crate) bundle: PathBuf,
    /// The files beside the bundle that were written.
    pub(crate) files: Vec<ToolFile>,
    /// Whether a settings file of npm names roots.
    pub(crate) npm_roots: bool,
    /// The roots that this program's own connections to the upstream trust.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// The digest of the downloaded certificates.
    pub(crate) digest: String,
    /// Owns the bundle's name while it lives; never read.
    pub(crate) _name: OwnedName,
}

/// Downloads, merges and writes. Writes and creates nothing until all certificates are available.
pub(crate) fn prepare(
    config: &Config,
    base: &BaseUrl,
    resolver: &Resolver,
) -> Result<Trust, Error> {
    let path = bundle::place(config)?;
    let base_roots = base_roots(config)?;
    let roots = connection_roots(config, &base_roots)?;
    let downloaded = download(config, base, resolver, &roots)?;
    // The download may have taken seconds; after it, files are written.
    config.cancel.check(Stage::Ca)?;
    let digest = tls::digest(&downloaded);
    let merged = merge(config, base_roots, downloaded.clone());

    let name = bundle::claim(&path)?;
    let path = name.path().to_owned();
    bundle::write(&path, &pem::encode(&merged))?;
    let files = tool_files::write(config, &path, &downloaded, &merged);
    log::debug!(
        "{} certificates in the CA bundle {}",
        merged.len(),
        path.display()
    );
    Ok(Trust {
        bundle: path,
        files,
        npm_roots: !tool_settings::npm_roots(&config.inherited).is_empty(),
        roots,
        digest,
        _name: name,
    })
}

/// The content of the bundle, in its order, each certificate once.
pub(crate) fn merge(
    config: &Config,
    base_roots: Vec<CertificateDer<'static>>,
    downloaded: Vec<CertificateDer<'static>>,
) -> Vec<CertificateDer<'static>> {
    pem::merge(&[downloaded, base_roots, inherited_roots(config)])
}

/// The roots in the files that inherited settings name: CA variables, and npm's. The bundle
/// replaces those files.
fn inherited_roots(config: &Config) -> Vec<CertificateDer<'static>> {
    let variables = child_env::ca_variables().filter_map(|variable| {
        let file = config.inherited.lookup(variable)?;
        Some((variable, PathBuf::from(file)))
    });
    let npm = tool_settings::npm_roots(&config.inherited);
    let npm = npm.into_iter().map(|file| ("cafile of npm", file));
    let mut seen = HashSet::new();
    let mut roots = Vec::new();
    for (setting, file) in variables.chain(npm) {
        if seen.contains(&file) {
            continue;
        }
        match roots_in(&file) {
            Ok(found) => roots.extend(found),
            Err(error) => log::warn!(
                "the roots of the inherited {setting} ({}) are not in the CA bundle: {error}",
                file.display()
            ),
        }
        seen.insert(file);
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::download::tests::{
        Ca, Scene, answering, ca, files_in, response, scene, serve,
    };
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::{Arc, Barrier};
    use std::thread;

    /// Runs the stage against an upstream that serves the CA.
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
    fn the_bundle_has_the_upstreams_ca_then_base_roots_then_those_of_replaced_variables() {
        let mut scene = scene();
        let (mine, other, upstream) = (ca(), ca(), ca());
        let file = scene.directory.path().join("mine.pem");
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let text = format!("{key}{}{}", mine.pem(), scene.base_root.pem());
        fs::write(&file, text.replace('\n', "\r\n").trim_end()).unwrap();
        let elsewhere = scene.directory.path().join("other.pem");
        fs::write(&elsewhere, other.pem()).unwrap();
        let inherited = &mut scene.config.inherited;
        inherited.set("NODE_EXTRA_CA_CERTS", &elsewhere);
        inherited.set("REQUESTS_CA_BUNDLE", &file);
        inherited.set("GIT_SSL_CAINFO", &file);
        inherited.set("PIP_CERT", "/nowhere.pem");
        inherited.set("SSL_CERT_DIR", "/left/alone");

        let trust = prepared(&scene, &upstream);
        assert_eq!(trust.bundle, scene.home().join(".ccr/ca-bundle.crt"));
        let expected = [&upstream.der, &scene.base_root.der, &mine.der, &other.der];
        assert_eq!(certificates_in(&trust.bundle), expected.map(Clone::clone));
        let ca = ToolFile::UpstreamCa.path(&trust.bundle);
        assert_eq!(certificates_in(&ca), [upstream.der]);
        let text = fs::read_to_string(&trust.bundle).unwrap();
        assert!(!pem::contains_private_key(text.as_bytes()));
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
    fn without_base_roots_there_is_no_download_and_no_bundle() {
        let mut scene = scene();
        scene.config.system_ca = Some("/nowhere.pem".into());
        // Nothing listens on port 1: a download would fail with a different error.
        let error = scene.prepare("http://127.0.0.1:1").unwrap_err();
        assert!(error.what().contains("/nowhere.pem"), "{error}");
        assert_eq!(files_in(&scene.home()), [""; 0]);
    }

    #[test]
    fn an_unusable_upstream_ca_is_named() {
        let mut scene = scene();
        let file = scene.directory.path().join("upstream.pem");
        for text in ["", "-----BEGIN CERTIFICATE-----\ncut"] {
            fs::write(&file, text).unwrap();
            scene.config.upstream_ca = Some(file.clone());
            let error = scene.prepare("http://127.0.0.1:1").unwrap_err();
            assert!(error.what().contains("--upstream-ca"), "{error}");
            assert!(error.what().contains("upstream.pem"), "{error}");
        }
    }

    #[test]
    fn an_unusable_home_is_named_and_nothing_is_written() {
        let mut scene = scene();
        let file = scene.directory.path().join("system.pem");
        let file = file.to_str().unwrap();
        for (home, words) in [
            ("", "HOME is not set"),
            (
                "relative/home",
                "HOME (relative/home) is not an absolute path",
            ),
            ("/no/such/home", "home directory /no/such/home"),
            (file, "is not a directory"),
        ] {
            scene.config.inherited.set("HOME", home);
            let error = scene.prepare("http://127.0.0.1:1").unwrap_err();
            assert!(error.what().contains(words), "{error}");
        }
        assert_eq!(files_in(scene.directory.path()), ["home", "system.pem"]);
    }

    #[test]
    fn sixteen_simultaneous_starts_each_write_their_own_bundle() {
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
            let expected = [upstream.der.clone(), scene.base_root.der.clone()];
            assert_eq!(certificates_in(name), expected);
        }
        let left = files_in(&scene.home().join(".ccr"));
        assert_eq!(left.len(), 16 * 8, "bundle, lock, 6 for tools: {left:?}");
        assert!(left.contains(&"ca-bundle.crt".to_owned()));
        assert!(left.contains(&"ca-bundle-16.crt".to_owned()));

        // All locks are free again: the next start takes the plain name.
        drop(trusts);
        let next = prepared(&scene, &upstream);
        assert_eq!(next.bundle, scene.home().join(".ccr/ca-bundle.crt"));
    }

    #[test]
    fn a_link_at_the_bundles_path_is_replaced_and_its_target_is_not() {
        let scene = scene();
        let real = scene.directory.path().join("real");
        fs::create_dir(&real).unwrap();
        symlink(&real, scene.home().join(".ccr")).unwrap();
        let canary = scene.directory.path().join("canary");
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
