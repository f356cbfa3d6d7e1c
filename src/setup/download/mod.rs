//! The download of the upstream's CA certificates (`manual/protocol.md`, Endpoints).
//!
//! One GET request with one deadline and without credentials. The response is accepted as a whole
//! or not at all. Nothing is written here: `ca` merges, `bundle` writes.
//!
//! A response without a length ends with its connection, and ureq does not distinguish a clean end
//! from a cut connection. A cut inside a certificate is detected, one between two certificates is
//! not.

mod agent;
mod error;
mod transport;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use crate::config::Config;
use crate::crypto::pem;
use crate::error::Error;
use crate::http::base_url::BaseUrl;
use crate::net::resolver::Resolver;
use crate::net::socket_owner::UpstreamOwner;
use agent::{DownloadStep, StepRecorder, agent};
use error::BadContent;

/// The largest response. The certificates of a whole distribution have a quarter of that.
const BODY_LIMIT: u64 = 1024 * 1024;

/// Downloads the upstream's CA certificates over a connection that trusts `roots` only.
pub(crate) fn download(
    config: &Config,
    base: &BaseUrl,
    resolver: &Resolver,
    roots: &[CertificateDer<'static>],
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let limit = config.limits.ca_timeout;
    let recorder = StepRecorder::default();
    let owner = (!base.secure()).then(|| UpstreamOwner::new(config.upstream_uid));
    let parent = config.parent_for(base.authority());
    let agent = agent(limit, resolver, parent, roots, owner, &recorder);
    let failed = |error: ureq::Error| error::failed(&error, recorder.step(), base, limit);

    let mut response = agent.get(base.ca_cert_url()).call().map_err(failed)?;
    let status = response.status().as_u16();
    if status != 200 {
        return Err(error::status(base, status));
    }
    let encoding = response.headers().get("content-encoding");
    if encoding.is_some_and(|coding| coding != "identity") {
        return Err(
            BadContent::by_operator("is compressed, although that was not requested").at(base),
        );
    }
    recorder.record(DownloadStep::Body);
    let body = response.body_mut().with_config().limit(BODY_LIMIT);
    let body = body.read_to_vec().map_err(failed)?;
    accept(&body).map_err(|content| content.at(base))
}

/// The certificates in a body: at least one, all of them X.509, and no private key.
fn accept(body: &[u8]) -> Result<Vec<CertificateDer<'static>>, BadContent> {
    if body.trim_ascii().is_empty() {
        return Err(BadContent::by_operator("is empty"));
    }
    if pem::contains_private_key(body) {
        return Err(BadContent::new(
            "contains a private key, and is rejected as a whole",
            "report it to the upstream's operator at once: that key must be replaced",
        ));
    }
    let certificates = pem::certificates(body)
        .map_err(|error| BadContent::by_operator(format!("is not valid PEM: {error}")))?;
    if certificates.is_empty() {
        let markup = body.trim_ascii_start().starts_with(b"<");
        return Err(if markup {
            BadContent::new(
                "is a web page instead of certificates",
                "check the base URL, and whether a login page of the network (a captive portal) responds instead",
            )
        } else {
            BadContent::new("contains no certificate", error::CHECK_SERVER)
        });
    }
    let mut parsed = RootCertStore::empty();
    for (certificate, number) in certificates.iter().zip(1..) {
        parsed.add(certificate.clone()).map_err(|_| {
            let what =
                format!("is not usable: its certificate {number} is not an X.509 certificate");
            BadContent::by_operator(what)
        })?;
    }
    Ok(certificates)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::error::Stage;
    use crate::setup::ca::prepare;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
    use std::fs;
    use std::io::{self, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;
    use std::sync::Arc;
    use std::thread::{self, JoinHandle};
    use std::time::Duration;
    use tempfile::TempDir;

    const LONG: Duration = Duration::from_secs(60);
    /// Long enough to reach the step that stalls, on a busy machine too.
    const SHORT: Duration = Duration::from_millis(500);

    /// A CA for a test.
    pub(in crate::setup) struct Ca {
        pub(in crate::setup) der: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    pub(in crate::setup) fn ca() -> Ca {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // With the same name, one CA could be used in place of the other until a signature fails.
        let mut random = [0; 8];
        crate::crypto::random::fill(&mut random).unwrap();
        let name = format!("test CA {:016x}", u64::from_ne_bytes(random));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Ca {
            der: params.self_signed(&key).unwrap().der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    impl Ca {
        pub(in crate::setup) fn pem(&self) -> String {
            pem::encode(std::slice::from_ref(&self.der))
        }

        /// The TLS settings of a server with a certificate for `name`, modified by `change`.
        fn server(
            &self,
            name: &str,
            change: impl Fn(&mut CertificateParams),
        ) -> Arc<rustls::ServerConfig> {
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            change(&mut params);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            server_config(certificate.der().clone(), &key)
        }
    }

    fn server_config(
        certificate: CertificateDer<'static>,
        key: &KeyPair,
    ) -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        Arc::new(config)
    }

    /// Serves this many connections, one after the other.
    pub(in crate::setup) fn serve(
        connections: usize,
        mut answer: impl FnMut(TcpStream) + Send + 'static,
    ) -> (u16, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            for _ in 0..connections {
                answer(listener.accept().unwrap().0);
            }
        });
        (port, server)
    }

    fn read_head(stream: &mut impl Read) -> String {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
            head.push(byte[0]);
        }
        String::from_utf8_lossy(&head).into_owned()
    }

    /// A complete response with a length.
    pub(in crate::setup) fn response(status: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
        let body = body.as_ref();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    }

    /// Reads the request, sends these bytes, and closes after the client.
    pub(in crate::setup) fn answering(
        bytes: impl AsRef<[u8]> + Send + 'static,
    ) -> impl Fn(TcpStream) + Send + 'static {
        move |mut stream| {
            read_head(&mut stream);
            // The client may close before everything is written.
            stream.write_all(bytes.as_ref()).ok();
            stream.shutdown(std::net::Shutdown::Write).ok();
            stream.read_to_end(&mut Vec::new()).ok();
        }
    }

    fn answering_in_tls(
        config: &Arc<rustls::ServerConfig>,
        bytes: Vec<u8>,
        close_notify: bool,
    ) -> impl Fn(TcpStream) + Send + 'static {
        let config = Arc::clone(config);
        move |stream| {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            if read_head(&mut stream).is_empty() {
                return;
            }
            stream.write_all(&bytes).ok();
            if close_notify {
                stream.conn.send_close_notify();
            }
            stream.flush().ok();
        }
    }

    /// Keeps the connection open and silent until the client closes it.
    fn hold(mut stream: &TcpStream) {
        io::copy(&mut stream, &mut io::sink()).ok();
    }

    /// A home directory, base roots, and settings that name both.
    pub(in crate::setup) struct Scene {
        pub(in crate::setup) directory: TempDir,
        pub(in crate::setup) config: Config,
        pub(in crate::setup) base_root: Ca,
    }

    pub(in crate::setup) fn scene() -> Scene {
        let directory = TempDir::new().unwrap();
        let home = directory.path().join("home");
        fs::create_dir(&home).unwrap();
        let base_root = ca();
        let system_ca = directory.path().join("system.pem");
        fs::write(&system_ca, base_root.pem()).unwrap();
        let mut config = Config {
            system_ca: Some(system_ca),
            ..Config::default()
        };
        config.inherited.set("HOME", home);
        config.limits.ca_timeout = LONG;
        Scene {
            directory,
            config,
            base_root,
        }
    }

    impl Scene {
        pub(in crate::setup) fn home(&self) -> std::path::PathBuf {
            self.directory.path().join("home")
        }

        pub(in crate::setup) fn prepare(
            &self,
            base: &str,
        ) -> Result<crate::setup::ca::Trust, Error> {
            prepare(&self.config, &base.parse().unwrap(), &Resolver::new())
        }
    }

    pub(in crate::setup) fn files_in(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The stage fails with `words` in its error. It leaves an empty home directory empty, and an
    /// existing bundle unchanged.
    fn fails(
        scheme: &str,
        limit: Duration,
        words: &str,
        answer: impl FnMut(TcpStream) + Send + 'static,
    ) {
        let (port, server) = serve(2, answer);
        let base = format!("{scheme}://localhost:{port}");
        let mut scene = scene();
        scene.config.limits.ca_timeout = limit;
        let started = std::time::Instant::now();
        for bundle in [None, Some("old bundle")] {
            let directory = scene.home().join(".ccr");
            if let Some(text) = bundle {
                fs::create_dir(&directory).unwrap();
                fs::write(directory.join("ca-bundle.crt"), text).unwrap();
            }
            let error = scene.prepare(&base).unwrap_err();
            assert_eq!(error.stage(), Stage::Ca);
            assert!(error.to_string().contains(words), "{error}, not {words:?}");
            match bundle {
                None => assert_eq!(files_in(&scene.home()), [""; 0]),
                Some(text) => {
                    assert_eq!(files_in(&directory), ["ca-bundle.crt"]);
                    let kept = fs::read_to_string(directory.join("ca-bundle.crt")).unwrap();
                    assert_eq!(kept, text);
                }
            }
        }
        assert!(limit == LONG || started.elapsed() < LONG / 2);
        server.join().unwrap();
    }

    fn fails_on_body(words: &str, body: impl AsRef<[u8]>) {
        fails("http", LONG, words, answering(response("200 OK", body)));
    }

    #[test]
    fn asks_for_the_certificates_once_and_without_credentials() {
        let root = ca();
        let (report, reported) = crossbeam_channel::unbounded();
        let pem = root.pem();
        let (port, server) = serve(1, move |mut stream| {
            report.send(read_head(&mut stream)).unwrap();
            stream.write_all(&response("200 OK", &pem)).unwrap();
        });
        let base = format!("http://127.0.0.1:{port}/some/path/")
            .parse()
            .unwrap();
        let found = download(&scene().config, &base, &Resolver::new(), &[]).unwrap();
        assert_eq!(found, [root.der]);
        server.join().unwrap();
        let head = reported.recv().unwrap().to_lowercase();
        assert!(head.starts_with("get /some/path/v1/code/upstreamproxy/ca-cert http/1.1\r\n"));
        for field in ["authorization", "cookie", "accept-encoding"] {
            assert!(!head.contains(field), "{head}");
        }
    }

    #[test]
    fn a_response_with_another_status_than_200_is_rejected_with_its_number() {
        for status in ["204 No Content", "304 Not Modified"] {
            let bytes = format!("HTTP/1.1 {status}\r\n\r\n");
            fails("http", LONG, &status[..3], answering(bytes));
        }
        for status in [
            "206 Partial Content",
            "401 No",
            "404 Not Found",
            "500 Oops",
            "503 Busy",
        ] {
            let bytes = response(status, ca().pem());
            fails("http", LONG, &status[..3], answering(bytes));
        }
    }

    #[test]
    fn a_redirect_is_not_followed() {
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let address = elsewhere.local_addr().unwrap();
        for (status, location) in [
            ("301 Moved", format!("http://{address}/")),
            ("302 Found", format!("https://{address}/")),
            ("307 Temporary", format!("//{address}/")),
            ("308 Permanent", "file:///etc/passwd".to_owned()),
        ] {
            let bytes =
                format!("HTTP/1.1 {status}\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
            fails("http", LONG, &status[..3], answering(bytes));
        }
        let error = elsewhere.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_body_with_anything_broken_is_rejected_as_a_whole() {
        let good = ca().pem();
        let key = KeyPair::generate().unwrap().serialize_pem();
        let half = &good[..good.len() / 2];
        fails_on_body("is empty", "");
        fails_on_body("is empty", " \r\n");
        fails_on_body("a web page", "<!DOCTYPE html><title>Log in</title>");
        fails_on_body("no certificate", "not certificates");
        fails_on_body(
            "no certificate",
            good.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
        );
        fails_on_body("line 1 is cut off", half);
        fails_on_body("is cut off", format!("{good}{half}"));
        fails_on_body("not base64", good.replacen("MI", "M*", 1));
        fails_on_body("private key", format!("{good}{key}"));
        let nonsense = pem::encode(&[vec![0x30, 3, 1, 2, 3].into()]);
        fails_on_body("certificate 2 is not an X.509", format!("{good}{nonsense}"));
    }

    #[test]
    fn a_compressed_body_is_rejected() {
        let bytes =
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x08\x00";
        fails("http", LONG, "compressed", answering(bytes));
    }

    #[test]
    fn a_body_over_the_limit_is_rejected() {
        let large = usize::try_from(BODY_LIMIT).unwrap() + 1;
        fails_on_body("larger than 1048576 bytes", vec![b'a'; large]);
        fails("http", LONG, "larger than", |mut stream| {
            read_head(&mut stream);
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head).ok();
            while stream.write_all(b"5\r\nAAAAA\r\n").is_ok() {}
        });
        fails("http", LONG, "larger than", |mut stream| {
            read_head(&mut stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok();
            while stream.write_all(&[b'a'; 4096]).is_ok() {}
        });
    }

    #[test]
    fn a_body_of_exactly_the_limit_is_accepted() {
        let mut body = ca().pem().into_bytes();
        body.resize(usize::try_from(BODY_LIMIT).unwrap(), b'\n');
        let (port, server) = serve(1, answering(response("200 OK", body)));
        let base = format!("http://localhost:{port}").parse().unwrap();
        assert!(download(&scene().config, &base, &Resolver::new(), &[]).is_ok());
        server.join().unwrap();
    }

    #[test]
    fn a_response_that_is_not_http_is_rejected() {
        fails(
            "http",
            LONG,
            "not HTTP",
            answering("SSH-2.0-OpenSSH_9.9\r\n\r\n"),
        );
        fails("http", LONG, "failed at waiting", answering(""));
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
        fails("http", LONG, "failed at reading", answering(cut));
    }

    #[test]
    fn a_stall_in_any_step_ends_at_the_deadline() {
        fails("http", SHORT, "ended at waiting", |stream| hold(&stream));
        fails("https", SHORT, "ended at the TLS handshake", |stream| {
            hold(&stream);
        });
        fails("http", SHORT, "ended at reading", |mut stream| {
            read_head(&mut stream);
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
            stream.write_all(head).ok();
            hold(&stream);
        });
    }

    #[test]
    fn slow_input_does_not_extend_the_deadline() {
        for head in [
            "HTTP/1.1 200 OK\r\nX: ",
            "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        ] {
            fails("http", SHORT, "took longer", move |mut stream| {
                read_head(&mut stream);
                stream.write_all(head.as_bytes()).ok();
                let pause = Duration::from_millis(5);
                stream.set_read_timeout(Some(pause)).unwrap();
                // Each read waits for the client to close, for one pause at most.
                while stream.read(&mut [0]).is_err() && stream.write_all(b"H").is_ok() {}
            });
        }
    }

    #[test]
    fn a_refused_connection_and_an_unknown_name_have_different_errors() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let error = scene()
            .prepare(&format!("http://127.0.0.1:{port}"))
            .unwrap_err();
        assert!(
            error.to_string().contains("nothing listens there"),
            "{error}"
        );
        let error = scene().prepare("https://a.invalid").unwrap_err();
        assert!(error.to_string().contains("a.invalid"), "{error}");
        assert!(error.remedy().contains("DNS"), "{error}");
    }

    #[test]
    fn upstream_ca_is_trusted_for_the_download_and_the_downloaded_ca_is_not() {
        let (upstream, downloaded) = (ca(), ca());
        let config = upstream.server("localhost", |_| {});
        let bytes = response("200 OK", downloaded.pem());
        let (port, server) = serve(1, answering_in_tls(&config, bytes, true));
        let mut scene = scene();
        let file = scene.directory.path().join("upstream.pem");
        fs::write(&file, upstream.pem()).unwrap();
        scene.config.upstream_ca = Some(file);
        let trust = scene.prepare(&format!("https://localhost:{port}")).unwrap();
        server.join().unwrap();
        assert_eq!(trust.roots, [scene.base_root.der.clone(), upstream.der]);
        let bundle = pem::certificates(&fs::read(&trust.bundle).unwrap()).unwrap();
        assert_eq!(bundle, [downloaded.der, scene.base_root.der]);
    }

    #[test]
    fn an_unverifiable_certificate_is_explained() {
        // The base roots of a scene are a new CA, so they do not include the CA of this server.
        let unknown = ca().server("localhost", |_| {});
        let serving = |config| answering_in_tls(config, response("200 OK", ""), true);
        fails("https", LONG, "not issued by a CA", serving(&unknown));

        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let own = params.self_signed(&key).unwrap();
        let self_signed = server_config(own.der().clone(), &key);
        fails("https", LONG, "--upstream-ca", serving(&self_signed));

        fails(
            "https",
            LONG,
            "whether that server uses TLS",
            |mut stream| {
                stream.write_all(&response("400 Bad Request", "")).ok();
                hold(&stream);
            },
        );
    }

    #[test]
    fn a_trusted_certificate_with_the_wrong_time_or_name_is_explained() {
        type Change = fn(&mut CertificateParams);
        let cases: [(&str, &str, Change); 3] = [
            (
                "localhost",
                "has expired by this machine's clock",
                |params| {
                    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
                    params.not_after = rcgen::date_time_ymd(2002, 1, 1);
                },
            ),
            (
                "localhost",
                "not valid yet by this machine's clock",
                |params| {
                    params.not_before = rcgen::date_time_ymd(3001, 1, 1);
                    params.not_after = rcgen::date_time_ymd(3002, 1, 1);
                },
            ),
            ("other.example", "is for another name", |_| {}),
        ];
        for (name, words, change) in cases {
            let scene = scene();
            let config = scene.base_root.server(name, change);
            let (port, server) = serve(1, answering_in_tls(&config, Vec::new(), true));
            let error = scene
                .prepare(&format!("https://localhost:{port}"))
                .unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(files_in(&scene.home()), [""; 0]);
            server.join().unwrap();
        }
    }

    #[test]
    fn a_body_without_a_length_ends_with_its_connection_but_not_inside_a_certificate() {
        let scene = scene();
        let config = scene.base_root.server("localhost", |_| {});
        let pem = ca().pem();
        for (body, whole) in [(&*pem, true), (&pem[..pem.len() / 2], false)] {
            let bytes = format!("HTTP/1.1 200 OK\r\n\r\n{body}").into_bytes();
            let (port, server) = serve(1, answering_in_tls(&config, bytes, whole));
            let outcome = scene.prepare(&format!("https://localhost:{port}"));
            server.join().unwrap();
            match outcome {
                Ok(_) => assert!(whole),
                Err(error) => assert!(!whole && error.what().contains("is cut off"), "{error}"),
            }
        }
    }
}
