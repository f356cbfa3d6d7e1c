//! An HTTPS origin with its own test CA. It serves static files over HTTP/1.1.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

use super::{TIMEOUT, TempHome, temporary_directory, upstreamproxy};

/// A certificate authority that only the test trusts.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    /// The CA certificate.
    pub(crate) pem: String,
}

impl TestCa {
    /// Creates a new CA called `name`.
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Issues a certificate for `name`. Returns the certificate and its key as PEM.
    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.certificate(&[name.to_owned()]);
        (certificate.pem(), key.serialize_pem())
    }

    /// As [`issue`](Self::issue), but the certificate has expired.
    pub(crate) fn issue_expired(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn certificate(&self, names: &[String]) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, &names[0]);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn server(&self, names: &[String]) -> ServerConfig {
        let (certificate, key) = self.certificate(names);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config =
            ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }
}

/// An HTTPS server on loopback for one name. It serves the files of a directory. Its thread runs
/// until the test process exits.
pub(crate) struct HttpsOrigin {
    name: String,
    port: u16,
    ca: TestCa,
    directory: TempDir,
}

impl HttpsOrigin {
    /// The content of `/hello`, which every origin serves.
    pub(crate) const HELLO: &str = "hello from the origin of the test\n";

    /// Starts an origin called `name`, with `/hello` in its directory.
    pub(crate) fn start(name: &str) -> Self {
        Self::with_certificate_for(name, &[name.to_owned()])
    }

    /// The same with a certificate for other names.
    pub(crate) fn with_certificate_for(name: &str, names: &[String]) -> Self {
        let ca = TestCa::new("upstreamproxy test root");
        let directory = temporary_directory();
        fs::write(directory.path().join("hello"), Self::HELLO).unwrap();
        fs::write(directory.path().join("ca.pem.private"), &ca.pem).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (config, root) = (Arc::new(ca.server(names)), directory.path().to_owned());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, root) = (Arc::clone(&config), root.clone());
                thread::spawn(move || serve(stream, config, &root));
            }
        });
        Self {
            name: name.to_owned(),
            port,
            ca,
            directory,
        }
    }

    /// The URL of a file.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.authority())
    }

    /// `name:port`.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.name, self.port)
    }

    /// The argument of `--resolve` that maps its name to loopback.
    pub(crate) fn resolve(&self) -> String {
        format!("{}:127.0.0.1", self.authority())
    }

    /// A `run --embedded` command that resolves and intercepts this origin, with these further
    /// options.
    pub(crate) fn embedded(&self, home: &TempHome, options: &[&str]) -> Command {
        let mut command = upstreamproxy(home);
        command.args(["run", "--embedded", "--intercept", &self.name]);
        command.args(["--resolve", &self.resolve()]).args(options);
        command
    }

    /// The directory that it serves.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The file that contains its CA certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory().join("ca.pem.private")
    }

    /// Its CA certificate.
    pub(crate) fn ca_pem(&self) -> &str {
        &self.ca.pem
    }
}

fn serve(tcp: TcpStream, config: Arc<ServerConfig>, root: &Path) -> std::io::Result<()> {
    tcp.set_read_timeout(Some(TIMEOUT))?;
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, tcp);
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or("/");
    let path = path.split('?').next().unwrap_or(path);
    let (status, body) = match fs::read(root.join(path.trim_start_matches('/'))) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", b"no such file\n".to_vec()),
    };
    let reply = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(reply.as_bytes())?;
    stream.write_all(&body)?;
    stream.conn.send_close_notify();
    stream.flush()
}
