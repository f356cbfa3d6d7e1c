//! The C API from outside: built as its manual says, and used by hosts in C and in Python that know the header alone.
//!
//! What the hosts expect stands in `capi/host.c` and `capi/host.py`; here they are compiled, given an origin, and their words read.
//! That the header says what the code does, function by function, is a unit test beside it.

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

/// How long the library may take to compile, with all that it is made of.
const BUILD_TIMEOUT: Duration = Duration::from_secs(1200);
/// How long hosts may take under valgrind.
const VALGRIND_TIMEOUT: Duration = Duration::from_secs(300);
/// What a C program says to the compiler, and the compiler to no warning.
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];
/// A name that resolves nowhere but by the setting.
const NAME: &str = "origin.test";
const MANUAL: &str = include_str!("../../src/manual/c-api.md");

/// Where things of this package are.
fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The library in both forms.
struct Built {
    shared: PathBuf,
    archive: PathBuf,
}

impl Built {
    /// Built once a test run; `None`, and the test is skipped, where there is no C compiler.
    #[track_caller]
    fn ready() -> Option<&'static Self> {
        static BUILT: OnceLock<Built> = OnceLock::new();
        need_tool("cc").then(|| BUILT.get_or_init(Self::make))
    }

    /// By the recipe of the manual, without `--release`, so that it is quick and `valgrind` has lines to name.
    fn make() -> Self {
        let recipe = block("sh")
            .lines()
            .find(|line| line.starts_with("cargo rustc "))
            .expect("the recipe")
            .to_owned();
        let words = recipe.split_whitespace().skip(1);
        let mut command = Command::new(env!("CARGO"));
        command
            .args(words.filter(|&word| word != "--release"))
            .args(["--message-format", "json-render-diagnostics", "--locked"])
            .current_dir(package(""));
        // The test run's own folder: what the library is made of is there already.
        command.env(
            "CARGO_TARGET_DIR",
            Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap(),
        );
        let built = finish_within(BUILD_TIMEOUT, &mut command).succeeded();
        let artifact = |ending: &str| {
            let text = built.text();
            let files = text
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap())
                .filter(|message| message["target"]["name"] == "upstreamproxy")
                .filter_map(|message| message["filenames"].as_array().cloned())
                .flatten();
            files
                .filter_map(|file| file.as_str().map(PathBuf::from))
                .find(|file| file.extension().is_some_and(|found| found == ending))
                .unwrap_or_else(|| panic!("no .{ending} in {text}"))
        };
        Self {
            shared: artifact("so"),
            archive: artifact("a"),
        }
    }

    /// Compiles a C file with the shared library.
    fn dynamic(&self, source: &Path, to: PathBuf) -> PathBuf {
        let folder = self.shared.parent().unwrap();
        let mut rpath = OsString::from("-Wl,-rpath,");
        rpath.push(folder);
        let mut library_folder = OsString::from("-L");
        library_folder.push(folder);
        let words = ["-lupstreamproxy".into(), "-lpthread".into()];
        compile(
            source,
            &to,
            [library_folder, rpath].into_iter().chain(words),
        );
        to
    }

    /// Compiles a C file with the library inside, as the manual says.
    fn with_archive(&self, source: &Path, to: PathBuf) -> PathBuf {
        let line = block("sh")
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

    /// `tests/integration/capi/host.c` in one of its roles, in a home.
    fn host(&self, home: &TempHome, role: &str) -> Command {
        let host = self.dynamic(&package("tests/integration/capi/host.c"), home.join("host"));
        let mut command = home.command(host);
        command.arg(role);
        command
    }
}

/// The first block of `language` in the manual.
fn block(language: &str) -> &'static str {
    let after = MANUAL
        .split_once(&format!("```{language}\n"))
        .expect("a block")
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

/// The settings for an embedded gateway that leads to `origin`, and a curl that fetches from it.
fn with_origin<'a>(command: &'a mut Command, origin: &HttpsOrigin) -> &'a mut Command {
    command
        .arg("embedded=true")
        .arg(format!("intercept={NAME}"))
        .arg(format!("resolve={}", origin.resolve()))
        .arg(format!("upstream-ca={}", origin.ca_file().display()))
        .args(["--", "curl", "-sSf"])
        .arg(origin.url("/hello"))
}

/// Fails unless the host found all as expected, and fetched the origin's file so often.
#[track_caller]
fn fetched(finished: Finished, times: usize) {
    let finished = finished.succeeded();
    let expected = HttpsOrigin::HELLO.repeat(times) + "all as expected\n";
    assert_eq!(finished.text(), expected, "{finished:#?}");
}

#[test]
fn a_host_in_c_lives_with_it_again_and_again() {
    let Some(built) = Built::ready() else { return };
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let finished = finish(with_origin(&mut built.host(&home, "lives"), &origin));
    assert!(finished.stderr.contains("info: relay listens on "));
    assert!(finished.stderr.contains("debug: "));
    fetched(finished, 5);
}

#[test]
fn a_host_with_the_archive_inside_needs_no_library() {
    let Some(built) = Built::ready() else { return };
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let source = package("tests/integration/capi/host.c");
    let host = built.with_archive(&source, home.join("host"));
    let mut command = home.command(host);
    fetched(finish(with_origin(command.arg("lives"), &origin)), 5);
}

#[test]
fn a_host_in_python_lives_with_it_by_ctypes() {
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
    fetched(finish(with_origin(&mut command, &origin)), 4);
}

#[test]
fn the_header_and_the_host_are_good_cpp_too() {
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
fn the_library_shows_the_functions_of_the_header_and_no_other_name() {
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
    let shown: BTreeSet<&str> = names
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
    assert_eq!(shown, declared);
}

#[test]
fn a_session_that_asks_for_nothing_is_off_with_stage_and_reason() {
    let Some(built) = Built::ready() else { return };
    let home = TempHome::new();
    let finished = finish(&mut built.host(&home, "disabled")).succeeded();
    let text = finished.text();
    assert!(
        text.starts_with("gate: not switched on by CLAUDE_CODE_REMOTE and "),
        "{text}"
    );
    assert_eq!(finished.stderr, "", "it prints nothing of its own");
}

#[test]
fn misuse_is_a_code_and_words_and_never_a_crash() {
    let Some(built) = Built::ready() else { return };
    let finished = finish(&mut built.host(&TempHome::new(), "misuse")).succeeded();
    assert_eq!(finished.text(), "all as expected\n");
    assert_eq!(finished.stderr, "", "it prints nothing of its own");
}

#[test]
fn a_shutdown_is_waited_for_by_many_ended_by_one_and_no_business_of_a_fork() {
    let Some(built) = Built::ready() else { return };
    let home = TempHome::new();
    // A target that takes what comes and never answers.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let held: Vec<_> = listener.incoming().collect();
        drop(held);
    });
    let mut host = built.host(&home, "contend");
    host.args(["embedded=1", "--"])
        .arg(format!("127.0.0.1:{port}"));
    assert_eq!(finish(&mut host).succeeded().text(), "all as expected\n");
}

#[test]
fn peers_that_vanish_in_the_middle_end_no_host_by_sigpipe() {
    const ROUNDS: usize = 20;
    let Some(built) = Built::ready() else { return };
    let home = TempHome::new();
    // More than all buffers on the way hold, so that whoever goes, goes while the others are writing.
    let flood = CannedServer::start(pattern(32 << 20));
    let deaf = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let deaf_authority = deaf.local_addr().unwrap().to_string();
    let (host, ready) = Running::ready(built.host(&home, "serve").arg("embedded=true"));
    let port = u16::try_from(ready["port"].as_u64().unwrap()).unwrap();
    let abrupt = |stream: TcpStream| {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    };
    for _ in 0..ROUNDS {
        // The client goes.
        let (mut client, answer) = connect(port, &flood.authority());
        assert_eq!(answer.status, 200);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        client.read_exact(&mut [0; 1000]).unwrap();
        abrupt(client);
        // The target goes.
        let (mut client, answer) = connect(port, &deaf_authority);
        assert_eq!(answer.status, 200);
        let (target, _) = deaf.accept().unwrap();
        client.set_write_timeout(Some(TIMEOUT)).unwrap();
        client.write_all(&pattern(100_000)).unwrap();
        abrupt(target);
        let piece = pattern(64 << 10);
        while client.write_all(&piece).is_ok() {}
    }
    let tunnels = format!("{} tunnels\nall as expected", 2 * ROUNDS);
    assert_eq!(host.stop().succeeded().text(), tunnels);
}

#[test]
fn valgrind_finds_no_leak_and_no_fault() {
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
            // Whether a value was set cannot be followed through the assembly of ring.
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
    let lives = finish_within(VALGRIND_TIMEOUT, with_origin(&mut host("lives"), &origin));
    fetched(lives, 5);
}

#[test]
fn the_example_of_the_manual_compiles_and_runs() {
    let Some(built) = Built::ready() else { return };
    if !need_tool("curl") {
        return;
    }
    let (home, origin) = (TempHome::new(), HttpsOrigin::start(NAME));
    let source = home.write("example.c", block("c"), 0o644);
    let example = built.dynamic(&source, home.join("example"));
    // What a host does not say, its environment may.
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
    // The session asks for nothing: the command runs all the same.
    let finished = finish(
        home.command(home.join("example"))
            .args(["echo", "on it goes"]),
    );
    let finished = finished.succeeded();
    assert_eq!(
        (finished.text().as_str(), finished.stderr.as_str()),
        ("on it goes\n", "")
    );
}

#[test]
fn the_log_that_a_host_gets_does_not_hold_the_token() {
    let Some(built) = Built::ready() else { return };
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let mut command = built.host(&home, "serve");
    let (host, _) = Running::ready(home.session(&mut command, &gateway.base_url()));
    let said = host.stop().succeeded();
    assert!(said.stderr.contains("debug: "), "{said:#?}");
    assert!(!said.stderr.contains(TOKEN), "{said:#?}");
    assert!(!home.token_file().exists(), "it is burnt");
}
