//! The C API, tested from outside: built as the manual says, and used by programs in C and Python
//! that know only the header.
//!
//! The expectations are in `capi/host.c` and `capi/host.py`. This file compiles the hosts, gives
//! them an origin and checks their output. `header` checks that the header matches the exported
//! functions.

mod header;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    CannedServer, Finished, GatewayProcess, HttpsOrigin, Running, TIMEOUT, TOKEN, TempHome,
    connect, finish, finish_within, need_tool, pattern,
};

/// The time limit for compiling the library with all its dependencies.
const BUILD_TIMEOUT: Duration = Duration::from_secs(1200);
/// The time limit for the hosts under valgrind.
const VALGRIND_TIMEOUT: Duration = Duration::from_secs(300);
/// Compiler flags: no warning may remain.
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];
/// A host name that only the `resolve` setting can resolve.
const NAME: &str = "origin.test";
const MANUAL: &str = include_str!("../../src/manual/c-api.md");

/// The path of a file in this package.
fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The shared library and the static library.
struct Built {
    shared: PathBuf,
    archive: PathBuf,
}

impl Built {
    /// Builds the library once per test run. Returns `None`, and the test is skipped, if there is
    /// no C compiler.
    #[track_caller]
    fn ready() -> Option<&'static Self> {
        static BUILT: OnceLock<Built> = OnceLock::new();
        need_tool("cc").then(|| BUILT.get_or_init(Self::make))
    }

    /// Builds with the command from the manual, but without `--release`: it is faster, and
    /// `valgrind` can show line numbers.
    fn make() -> Self {
        let build_command = code_block("sh")
            .lines()
            .find(|line| line.starts_with("cargo rustc "))
            .expect("the build command")
            .to_owned();
        let arguments = build_command.split_whitespace().skip(1);
        let mut command = Command::new(env!("CARGO"));
        command
            .args(arguments.filter(|&word| word != "--release"))
            .args(["--message-format", "json-render-diagnostics", "--locked"])
            .current_dir(package(""));
        // The dependencies are already built in the target directory of this test run.
        command.env(
            "CARGO_TARGET_DIR",
            Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap(),
        );
        let built = finish_within(BUILD_TIMEOUT, &mut command).succeeded();
        let artifact = |extension: &str| {
            let text = built.text();
            let files = text
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap())
                .filter(|message| message["target"]["name"] == "upstreamproxy")
                .filter_map(|message| message["filenames"].as_array().cloned())
                .flatten();
            files
                .filter_map(|file| file.as_str().map(PathBuf::from))
                .find(|file| file.extension().is_some_and(|found| found == extension))
                .unwrap_or_else(|| panic!("no .{extension} file in {text}"))
        };
        Self {
            shared: artifact("so"),
            archive: artifact("a"),
        }
    }

    /// Compiles a C file and links the shared library.
    fn dynamic(&self, source: &Path, to: PathBuf) -> PathBuf {
        let directory = self.shared.parent().unwrap();
        let mut rpath = OsString::from("-Wl,-rpath,");
        rpath.push(directory);
        let mut library_path = OsString::from("-L");
        library_path.push(directory);
        let libraries = ["-lupstreamproxy".into(), "-lpthread".into()];
        compile(
            source,
            &to,
            [library_path, rpath].into_iter().chain(libraries),
        );
        to
    }

    /// Compiles a C file and links the static library, as the manual says.
    fn with_archive(&self, source: &Path, to: PathBuf) -> PathBuf {
        let line = code_block("sh")
            .lines()
            .find(|line| line.starts_with("cc ") && line.contains("libupstreamproxy.a"))
            .expect("the line that links the archive");
        let libraries = line
            .split_whitespace()
            .filter(|word| word.starts_with("-l"))
            .map(OsString::from);
        let archive = self.archive.clone().into_os_string();
        compile(source, &to, std::iter::once(archive).chain(libraries));
        to
    }

    /// A command that runs `tests/integration/capi/host.c` in one of its roles, in `home`.
    fn host(&self, home: &TempHome, role: &str) -> Command {
        let host = self.dynamic(&package("tests/integration/capi/host.c"), home.join("host"));
        let mut command = home.command(host);
        command.arg(role);
        command
    }
}

/// The first code block of `language` in the manual.
fn code_block(language: &str) -> &'static str {
    let after = MANUAL
        .split_once(&format!("```{language}\n"))
        .expect("a code block")
        .1;
    after.split_once("```").expect("its end").0
}

fn compile(source: &Path, to: &Path, libraries: impl IntoIterator<Item = OsString>) {
    finish(
        Command::new("cc")
            .args(["-std=c99", "-g"])
            .args(STRICT)
            .arg("-I")
            .arg(package("src/capi"))
            .arg("-o")
            .args([to, source])
            .args(libraries),
    )
    .succeeded();
}

/// Adds settings for an embedded gateway that leads to `origin`, and a curl command that fetches
/// from it.
fn with_origin<'a>(command: &'a mut Command, origin: &HttpsOrigin) -> &'a mut Command {
    command
        .arg("embedded=true")
        .arg(format!("intercept={NAME}"))
        .arg(format!("resolve={}", origin.resolve()))
        .arg(format!("upstream-ca={}", origin.ca_file().display()))
        .args(["--", "curl", "-sSf"])
        .arg(origin.url("/hello"))
}

/// Fails unless the host succeeded and fetched the origin's file this many times.
#[track_caller]
fn assert_fetched(finished: Finished, times: usize) {
    let finished = finished.succeeded();
    let expected = HttpsOrigin::HELLO.repeat(times) + "all as expected\n";
    assert_eq!(finished.text(), expected, "{finished:#?}");
}

#[test]
fn a_c_host_starts_and_stops_the_proxy_repeatedly() {
    let Some(built) = Built::ready() else { return };
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let finished = finish(with_origin(&mut built.host(&home, "lifecycle"), &origin));
    assert!(finished.stderr.contains("info: relay listens on "));
    assert!(finished.stderr.contains("debug: "));
    assert_fetched(finished, 5);
}

#[test]
fn a_host_with_the_static_library_needs_no_shared_library() {
    let Some(built) = Built::ready() else { return };
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let source = package("tests/integration/capi/host.c");
    let host = built.with_archive(&source, home.join("host"));
    let mut command = home.command(host);
    assert_fetched(finish(with_origin(command.arg("lifecycle"), &origin)), 5);
}

#[test]
fn a_python_host_uses_the_library_through_ctypes() {
    let Some(built) = Built::ready() else { return };
    if !need_tool("curl") || !need_tool("python3") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let mut command = Command::new("python3");
    command
        .env("HOME", home.path())
        .env("PYTHONUNBUFFERED", "1")
        .arg(package("tests/integration/capi/host.py"))
        .arg(&built.shared);
    assert_fetched(finish(with_origin(&mut command, &origin)), 4);
}

#[test]
fn the_header_and_the_host_are_also_valid_cpp() {
    if !need_tool("c++") {
        return;
    }
    finish(
        Command::new("c++")
            .args(["-x", "c++", "-std=c++11", "-fsyntax-only"])
            .args(STRICT)
            .arg("-I")
            .arg(package("src/capi"))
            .arg(package("tests/integration/capi/host.c")),
    )
    .succeeded();
}

#[test]
fn the_library_exports_exactly_the_functions_of_the_header() {
    let Some(built) = Built::ready() else { return };
    if !need_tool("nm") {
        return;
    }
    let names = finish(
        Command::new("nm")
            .args(["--dynamic", "--defined-only", "--format=posix"])
            .arg(&built.shared),
    )
    .succeeded()
    .text();
    let exported: BTreeSet<&str> = names
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let header = fs::read_to_string(package("src/capi/upstreamproxy.h")).unwrap();
    let declared: BTreeSet<&str> = header
        .lines()
        .filter(|line| line.ends_with(");") && !line.starts_with([' ', 't']))
        .filter_map(|line| line.split_once('('))
        .filter_map(|(head, _)| head.rsplit([' ', '*']).next())
        .collect();
    assert!(declared.len() > 20, "{declared:?}");
    assert_eq!(exported, declared);
}

#[test]
fn without_a_session_the_proxy_is_disabled_with_a_stage_and_a_reason() {
    let Some(built) = Built::ready() else { return };
    let home = TempHome::new();
    let finished = finish(&mut built.host(&home, "disabled")).succeeded();
    let text = finished.text();
    assert!(
        text.starts_with("gate: not switched on by CLAUDE_CODE_REMOTE and "),
        "{text}"
    );
    assert_eq!(finished.stderr, "", "the library itself prints nothing");
}

#[test]
fn misuse_returns_an_error_code_and_a_message_and_never_crashes() {
    let Some(built) = Built::ready() else { return };
    let finished = finish(&mut built.host(&TempHome::new(), "misuse")).succeeded();
    assert_eq!(finished.text(), "all as expected\n");
    assert_eq!(finished.stderr, "", "the library itself prints nothing");
}

#[test]
fn a_log_on_a_descriptor_never_waits_for_its_reader_and_raises_no_signal() {
    let Some(built) = Built::ready() else { return };
    let finished = finish(&mut built.host(&TempHome::new(), "log_to_fd")).succeeded();
    assert_eq!(finished.text(), "all as expected\n");
    assert_eq!(finished.stderr, "");
}

#[test]
fn many_threads_may_wait_for_a_shutdown_one_may_abort_it_and_a_fork_may_not() {
    let Some(built) = Built::ready() else { return };
    let home = TempHome::new();
    // A target that accepts connections and never answers.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let connections: Vec<_> = listener.incoming().collect();
        drop(connections);
    });
    let mut host = built.host(&home, "contend");
    host.args(["embedded=1", "--"])
        .arg(format!("127.0.0.1:{port}"));
    assert_eq!(finish(&mut host).succeeded().text(), "all as expected\n");
}

#[test]
fn peers_that_vanish_during_a_transfer_do_not_kill_the_host_with_sigpipe() {
    const ROUNDS: usize = 20;
    let Some(built) = Built::ready() else { return };
    let home = TempHome::new();
    // More than the buffers of the path can hold, so each peer vanishes while data is being
    // written.
    let flood = CannedServer::start(pattern(32 << 20));
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent_authority = silent.local_addr().unwrap().to_string();
    let (host, ready) = Running::ready(built.host(&home, "serve").arg("embedded=true"));
    let port = u16::try_from(ready["port"].as_u64().unwrap()).unwrap();
    let reset = |stream: TcpStream| {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    };
    for _ in 0..ROUNDS {
        // The client vanishes.
        let (mut client, answer) = connect(port, &flood.authority());
        assert_eq!(answer.status, 200);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        client.read_exact(&mut [0; 1000]).unwrap();
        reset(client);
        // The target vanishes.
        let (mut client, answer) = connect(port, &silent_authority);
        assert_eq!(answer.status, 200);
        let (target, _) = silent.accept().unwrap();
        client.set_write_timeout(Some(TIMEOUT)).unwrap();
        client.write_all(&pattern(100_000)).unwrap();
        reset(target);
        let chunk = pattern(64 << 10);
        while client.write_all(&chunk).is_ok() {}
    }
    let tunnels = format!("{} tunnels\nall as expected", 2 * ROUNDS);
    assert_eq!(host.stop().succeeded().text(), tunnels);
}

#[test]
fn valgrind_finds_no_leaks_and_no_errors() {
    let Some(built) = Built::ready() else { return };
    if !need_tool("curl") || !need_tool("valgrind") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let host = |role: &str| {
        let host = built.host(&home, role);
        let mut command = home.command("valgrind");
        command
            .args(["--quiet", "--leak-check=full", "--error-exitcode=99"])
            // Valgrind cannot track undefined values through the assembly of ring.
            .arg("--undef-value-errors=no")
            .args([
                "--show-leak-kinds=definite",
                "--errors-for-leak-kinds=definite",
            ])
            .arg(host.get_program())
            .arg(role);
        command
    };
    for role in ["misuse", "disabled"] {
        finish_within(VALGRIND_TIMEOUT, &mut host(role)).succeeded();
    }
    let finished = finish_within(
        VALGRIND_TIMEOUT,
        with_origin(&mut host("lifecycle"), &origin),
    );
    assert_fetched(finished, 5);
}

#[test]
fn the_example_of_the_manual_compiles_and_runs() {
    let Some(built) = Built::ready() else { return };
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let source = home.write("example.c", code_block("c"), 0o644);
    let example = built.dynamic(&source, home.join("example"));
    // Settings that the host does not set come from the environment.
    let finished = finish(
        home.command(example)
            .env("UPSTREAMPROXY_EMBEDDED", "true")
            .env("UPSTREAMPROXY_INTERCEPT", NAME)
            .env("UPSTREAMPROXY_RESOLVE", origin.resolve())
            .env("UPSTREAMPROXY_UPSTREAM_CA", origin.ca_file())
            .args(["curl", "-sSf"])
            .arg(origin.url("/hello")),
    )
    .succeeded();
    assert_eq!(finished.text(), HttpsOrigin::HELLO);
    assert!(
        finished.stderr.contains("1 tunnels, "),
        "{}",
        finished.stderr
    );
    // Without a session the command runs without a proxy.
    let finished = finish(home.command(home.join("example")).args(["echo", "it runs"]));
    let finished = finished.succeeded();
    assert_eq!(
        (finished.text().as_str(), finished.stderr.as_str()),
        ("it runs\n", "")
    );
}

#[test]
fn the_log_passed_to_a_host_does_not_contain_the_token() {
    let Some(built) = Built::ready() else { return };
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let mut command = built.host(&home, "serve");
    let (host, _) = Running::ready(home.session(&mut command, &gateway.base_url()));
    let finished = host.stop().succeeded();
    assert!(finished.stderr.contains("debug: "), "{finished:#?}");
    assert!(!finished.stderr.contains(TOKEN), "{finished:#?}");
    assert!(!home.token_file().exists(), "the token is deleted");
}
