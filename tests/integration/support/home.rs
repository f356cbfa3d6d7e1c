//! A temporary home directory for each test, and a clean environment for the processes that run in
//! it.

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
/// The session token of every test. Leak tests search for it.
pub(crate) const TOKEN: &str = "canary-token-5b1f0c77";

/// The ID of an unprivileged user and group that own no files.
const UNPRIVILEGED: u32 = 65534;

/// Variables that a test must not inherit from the machine: proxies, CA settings, the session, this
/// program's settings, logging.
const NOT_INHERITED: [&str; 65] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "NODE_USE_ENV_PROXY",
    "NODE_OPTIONS",
    "YARN_HTTPS_PROXY",
    "YARN_HTTP_PROXY",
    "GLOBAL_AGENT_HTTPS_PROXY",
    "GLOBAL_AGENT_HTTP_PROXY",
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
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "wss_proxy",
    "ws_proxy",
    "PERL_LWP_ENV_PROXY",
    "APT_CONFIG",
    "HGRCPATH",
    "PHP_INI_SCAN_DIR",
    "JAVA_TOOL_OPTIONS",
    "npm_config_https_proxy",
    "npm_config_http_proxy",
    "npm_config_proxy",
    "NPM_CONFIG_HTTPS_PROXY",
    "NPM_CONFIG_HTTP_PROXY",
    "NPM_CONFIG_PROXY",
    "npm_config_noproxy",
    "NPM_CONFIG_NOPROXY",
    "NPM_CONFIG_CAFILE",
    "CARGO_HTTP_PROXY",
    "PIP_PROXY",
];
/// The same, for all names with these prefixes.
const NOT_INHERITED_PREFIXES: [&str; 3] = ["CLAUDE_CODE_", "CCR_", "UPSTREAMPROXY_"];

/// A new home directory with a session token in it. It is removed on drop.
pub(crate) struct TempHome {
    directory: TempDir,
}

/// A directory in the system's temporary directory, outside of this package.
pub(crate) fn temporary_directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("upstreamproxy-test-")
        .tempdir()
        .unwrap()
}

impl TempHome {
    /// Creates a home whose token file contains [`TOKEN`] with mode 0600.
    pub(crate) fn new() -> Self {
        let home = Self {
            directory: temporary_directory(),
        };
        home.write_token(TOKEN);
        home
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in the home.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// The path of the session token.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.join("session_token")
    }

    /// The default path of the merged CA bundle.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.join(".ccr/ca-bundle.crt")
    }

    /// Writes `content` to the token file with mode 0600.
    pub(crate) fn write_token(&self, content: impl AsRef<[u8]>) {
        self.write("session_token", content, 0o600);
    }

    /// Writes a file with this mode into the home.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A command for `program` in this home. It inherits the environment, except the variables that
    /// a test must not inherit.
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

    /// The binary under test as an unprivileged user who owns this home: the current user, or
    /// [`UNPRIVILEGED`] if the tests run as root.
    pub(crate) fn as_unprivileged_user(&self) -> Command {
        // Other users may not have access to the package's directory, so the binary is copied.
        let copy = self.join("upstreamproxy");
        fs::copy(super::binary(), &copy).unwrap();
        if geteuid().is_root() {
            for path in [self.path(), &self.token_file()] {
                std::os::unix::fs::chown(path, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
            }
        }
        self.command_as_unprivileged_user(copy)
    }

    /// A command for `program` as the same unprivileged user.
    pub(crate) fn command_as_unprivileged_user(&self, program: impl Into<OsString>) -> Command {
        let mut command = self.command(program);
        if geteuid().is_root() {
            command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        }
        command
    }

    /// Sets the variables that enable the proxy: the session, the token in this home, the upstream
    /// at `base_url`.
    pub(crate) fn session<'a>(&self, command: &'a mut Command, base_url: &str) -> &'a mut Command {
        command
            .env("CLAUDE_CODE_REMOTE", "true")
            .env("CCR_UPSTREAM_PROXY_ENABLED", "1")
            .env("CLAUDE_CODE_REMOTE_SESSION_ID", SESSION)
            .env("ANTHROPIC_BASE_URL", base_url)
            .env("UPSTREAMPROXY_TOKEN_FILE", self.token_file())
    }
}
