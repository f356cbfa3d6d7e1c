//! A home folder of the test's own and the clean environment of what runs in it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;
use tempfile::TempDir;

/// The session id of every test.
pub(crate) const SESSION: &str = "session-of-the-test";
/// The session token of every test; also the canary that must be found nowhere.
pub(crate) const TOKEN: &str = "canary-token-5b1f0c77";

/// The user and group that owns nothing.
const NOBODY: u32 = 65534;

/// What a test must not inherit from the machine it runs on: proxies, roots, the session, our own settings, logging.
const NOT_INHERITED: [&str; 38] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "NODE_USE_ENV_PROXY",
    "YARN_HTTPS_PROXY",
    "GLOBAL_AGENT_HTTPS_PROXY",
    "GLOBAL_AGENT_NO_PROXY",
    "grpc_proxy",
    "no_grpc_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "PIP_FIND_LINKS",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "NIX_SSL_CERT_FILE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "BUNDLE_SSL_CA_CERT",
    "npm_config_cafile",
    "YARN_HTTPS_CA_FILE_PATH",
    "PERL_LWP_SSL_CA_FILE",
    "NODE_EXTRA_CA_CERTS",
    "DENO_CERT",
    "WGETRC",
    "HTTPLIB2_CA_CERTS",
    "ANTHROPIC_BASE_URL",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "NOTIFY_SOCKET",
];
/// The same by the beginning of the name.
const NOT_INHERITED_PREFIXES: [&str; 3] = ["CLAUDE_CODE_", "CCR_", "UPSTREAMPROXY_"];

/// A fresh home folder, with a session token in it; gone when dropped.
pub(crate) struct TempHome {
    folder: TempDir,
}

/// A folder under the system's temporary one, so outside of this package.
pub(crate) fn temporary_folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("upstreamproxy-test-")
        .tempdir()
        .unwrap()
}

impl TempHome {
    /// A home whose token file holds [`TOKEN`], mode 0600.
    pub(crate) fn new() -> Self {
        let home = Self {
            folder: temporary_folder(),
        };
        home.write_token(TOKEN);
        home
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the home.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Where the session token lies.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.join("session_token")
    }

    /// Where the merged bundle goes when nothing else is said.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.join(".ccr/ca-bundle.crt")
    }

    /// Puts `content` into the token file, readable by its owner alone.
    pub(crate) fn write_token(&self, content: impl AsRef<[u8]>) {
        self.write("session_token", content, 0o600);
    }

    /// Puts a file into the home.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// `program` in this home, with the machine's environment less what a test must not inherit.
    pub(crate) fn command(&self, program: impl Into<OsString>) -> Command {
        let mut command = Command::new(program.into());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if NOT_INHERITED.contains(&text.as_ref())
                || NOT_INHERITED_PREFIXES.iter().any(|p| text.starts_with(p))
            {
                command.env_remove(&name);
            }
        }
        command.env("HOME", self.path());
        command
    }

    /// The binary under test as an ordinary user, who owns this home: ourselves, or nobody where we are root.
    pub(crate) fn as_ordinary_user(&self) -> Command {
        // The package's own folder may be closed to others, so the binary comes along.
        let reachable = self.join("upstreamproxy");
        fs::copy(super::binary(), &reachable).unwrap();
        if geteuid().is_root() {
            for path in [self.path(), &self.token_file()] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        self.as_same_user(reachable)
    }

    /// `program` as that user.
    pub(crate) fn as_same_user(&self, program: impl Into<OsString>) -> Command {
        let mut command = self.command(program);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Switches on what the gate asks for, with the token in this home and the upstream at `base_url`.
    pub(crate) fn session<'a>(&self, command: &'a mut Command, base_url: &str) -> &'a mut Command {
        command
            .env("CLAUDE_CODE_REMOTE", "true")
            .env("CCR_UPSTREAM_PROXY_ENABLED", "1")
            .env("CLAUDE_CODE_REMOTE_SESSION_ID", SESSION)
            .env("ANTHROPIC_BASE_URL", base_url)
            .env("UPSTREAMPROXY_TOKEN_FILE", self.token_file())
    }
}
