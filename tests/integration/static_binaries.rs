//! Tests the manual page about static binaries: runs its recipes unchanged, compares the sizes of
//! the binaries with the page, reads their ELF headers, and runs them in an otherwise empty root
//! directory.
//!
//! These tests take minutes, so they are ignored by default. `.ci/run` runs them with
//! `cargo test --test integration -- --ignored static_binaries`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::support::{
    DnsServer, EchoServer, Finished, Network, Running, SESSION, TOKEN, TempHome, TestCa, connect,
    finish, finish_within, need_tool, pattern, skip_unsupported, temporary_directory,
};

const PAGE: &str = include_str!("../../src/manual/static-binaries.md");
/// The allowed difference between a size and the page, in percent: a patch release of the compiler
/// changes sizes a little.
const TOLERANCE: f64 = 5.0;
/// The time limit for one recipe, on a busy machine.
const BUILD_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A recipe on the page.
struct Recipe {
    name: &'static str,
    /// The path of its binary in the target directory.
    output: &'static str,
}

const EVERYTHING: Recipe = Recipe {
    name: "everything",
    output: "x86_64-unknown-linux-gnu/small/upstreamproxy",
};
const RELAY: Recipe = Recipe {
    name: "relay",
    output: "x86_64-unknown-linux-gnu/small/upstreamproxy",
};
const MUSL: Recipe = Recipe {
    name: "musl",
    output: "x86_64-unknown-linux-musl/small/upstreamproxy",
};

impl Recipe {
    /// The shell commands in the code block after its marker.
    fn lines(&self) -> &'static str {
        let after = PAGE
            .split_once(&format!("<!-- recipe: {} -->\n", self.name))
            .unwrap_or_else(|| panic!("the page has no recipe {}", self.name))
            .1;
        let block = after.strip_prefix("```sh\n").expect("a block of shell");
        block.split_once("```").expect("its end").0
    }

    /// The binary that the recipe builds. It is built at the first call.
    fn binary(&self) -> PathBuf {
        // Two recipes write to the same path, so each binary is copied before the next build
        // starts.
        static BUILT: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        // A separate target directory, because the flags differ. It is inside the usual one, so
        // that `cargo clean` removes it.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("static");
        let copy = target.join(self.name);
        if built.contains(self.name) {
            return copy;
        }
        let mut recipe = Command::new("sh");
        recipe
            .args(["-euc", self.lines()])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("CARGO_TARGET_DIR", &target)
            .env_remove("RUSTFLAGS");
        finish_within(BUILD_TIMEOUT, &mut recipe).succeeded();
        fs::copy(target.join(self.output), &copy).unwrap();
        built.insert(self.name);
        copy
    }
}

/// Whether this is the platform for which the page has recipes and sizes.
fn is_supported() -> bool {
    let supported = cfg!(all(target_arch = "x86_64", target_env = "gnu"));
    if !supported {
        skip_unsupported("the page's recipes are for x86_64 and glibc");
    }
    supported
}

/// The table on the page: recipe and size in MiB.
fn sizes() -> Vec<(&'static str, f64)> {
    let after = PAGE.split_once("<!-- sizes -->").expect("the marker").1;
    after
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let size = cells.last().unwrap().parse();
            (
                cells[0],
                size.unwrap_or_else(|_| panic!("no size in {line}")),
            )
        })
        .collect()
}

#[test]
fn the_page_has_a_size_for_each_measured_recipe() {
    let rows: Vec<&str> = sizes().into_iter().map(|(name, _)| name).collect();
    assert_eq!(rows, [EVERYTHING.name, RELAY.name]);
    for recipe in [EVERYTHING, RELAY, MUSL] {
        assert!(recipe.lines().contains("cargo build"), "{}", recipe.name);
    }
}

#[test]
#[ignore = "builds for minutes; .ci/run runs it"]
fn the_sizes_on_the_page_are_correct() {
    if !is_supported() {
        return;
    }
    let mut wrong = Vec::new();
    for ((name, documented), recipe) in sizes().into_iter().zip([EVERYTHING, RELAY]) {
        let bytes = fs::metadata(recipe.binary()).unwrap().len();
        #[allow(clippy::cast_precision_loss, reason = "far under 2^52")]
        let actual = bytes as f64 / f64::from(1 << 20);
        println!("{name}: {actual:.2} MiB, the page says {documented:.2}");
        if (actual - documented).abs() > documented * TOLERANCE / 100.0 {
            wrong.push(format!(
                "{name} is {actual:.2} MiB, but the page says {documented:.2}; update the page or reduce the binary"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
#[ignore = "builds for minutes; .ci/run runs it"]
fn the_static_binaries_need_no_loader_and_no_library() {
    if !is_supported() {
        return;
    }
    for recipe in [EVERYTHING, RELAY] {
        let needs = needs(&fs::read(recipe.binary()).unwrap());
        assert_eq!(needs, Needs::default(), "{}", recipe.name);
    }
    // A dynamic executable, to check the ELF reader itself.
    let dynamic = needs(&fs::read("/proc/self/exe").unwrap());
    assert!(dynamic.loader && dynamic.libraries > 0, "{dynamic:?}");
}

#[test]
#[ignore = "builds for minutes; .ci/run runs it"]
fn a_build_without_the_gateway_reports_the_missing_feature() {
    if !is_supported() {
        return;
    }
    let home = TempHome::new();
    let relay = RELAY.binary();
    for arguments in [
        &["gateway", "--sessions", "/s"][..],
        &["doctor", "--embedded"],
    ] {
        let finished = finish(home.command(&relay).args(arguments));
        assert_eq!(finished.status.code(), Some(2), "{finished:#?}");
        assert!(
            finished.stderr.contains("the feature `gateway`"),
            "{finished:#?}"
        );
    }
}

#[test]
#[ignore = "builds for minutes; .ci/run runs it"]
fn the_musl_recipe_builds_a_binary_that_runs() {
    let mut rustc = Command::new("rustc");
    rustc.args([
        "--print",
        "target-libdir",
        "--target",
        "x86_64-unknown-linux-musl",
    ]);
    let libdir = finish(&mut rustc).succeeded().text();
    if !Path::new(libdir.trim()).is_dir() {
        skip_unsupported("the target x86_64-unknown-linux-musl is not installed");
        return;
    }
    let musl = MUSL.binary();
    assert_eq!(needs(&fs::read(&musl).unwrap()), Needs::default());
    finish(Command::new(musl).arg("--version")).succeeded();
}

/// The names that the test's name server resolves, and the address of this server.
const GATEWAY: &str = "gateway.uproxy.test";
const TARGET: &str = "target.uproxy.test";
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

#[test]
#[ignore = "builds for minutes; .ci/run runs it"]
fn relay_and_gateway_resolve_names_in_an_empty_root_directory() {
    if !is_supported() || !need_tool("chroot") {
        return;
    }
    let Some(network) = Network::connected() else {
        return;
    };
    let everything = EVERYTHING.binary();
    for relay in [everything.clone(), RELAY.binary()] {
        network.near(|| assert_tunnel_by_names(&everything, &relay));
    }
}

/// Runs a gateway and a relay, each in its own root directory, and opens a tunnel to a target by
/// name.
fn assert_tunnel_by_names(gateway: &Path, relay: &Path) {
    static NAMES: OnceLock<DnsServer> = std::sync::OnceLock::new();
    let names = NAMES.get_or_init(|| DnsServer::start(NAME_SERVER, &[GATEWAY, TARGET]));
    let ca = TestCa::new("upstreamproxy test root");
    let (certificate, key) = ca.issue(GATEWAY);
    let target = EchoServer::start();

    let gateway_root = EmptyRoot::with(gateway);
    gateway_root.write("sessions", format!("{SESSION} {TOKEN}\n"));
    gateway_root.write("gateway.pem", certificate);
    gateway_root.write("gateway.key", key);
    gateway_root.write("roots.pem", &ca.pem);
    let (gateway, ready) = Running::ready(gateway_root.run("gateway").args([
        "--listen=127.0.0.1:0",
        "--sessions=/sessions",
        "--tls-cert=/gateway.pem",
        "--tls-key=/gateway.key",
        "--target-ca=/roots.pem",
        "--intercept=none",
        "--allow-private",
    ]));
    let listening = ready["listening"].as_str().expect("an address");
    let port = listening.rsplit(':').next().unwrap();

    let relay_root = EmptyRoot::with(relay);
    relay_root.write("roots.pem", &ca.pem);
    relay_root.write("session_token", TOKEN);
    let (relay, ready) = Running::ready(relay_root.run("serve").args([
        "--when=always",
        &format!("--base-url=https://{GATEWAY}:{port}"),
        &format!("--session-id={SESSION}"),
        "--token-file=/session_token",
        "--system-ca=/roots.pem",
    ]));
    assert_eq!(ready["enabled"], true, "{ready}\n{}", relay.stderr());
    let port = ready["port"].as_u64().unwrap().try_into().unwrap();

    let (mut tunnel, answer) = connect(port, &format!("{TARGET}:{}", target.port()));
    assert_eq!(answer.status, 200, "{answer:?}\n{}", gateway.stderr());
    let sent = pattern(100_000);
    tunnel.write_all(&sent).unwrap();
    let mut received = vec![0; sent.len()];
    tunnel.read_exact(&mut received).unwrap();
    assert!(received == sent);
    drop(tunnel);
    for name in [GATEWAY, TARGET] {
        assert!(names.was_queried_for(name), "{name} was not resolved");
    }
    for end in [relay, gateway] {
        let finished: Finished = end.stop().succeeded();
        assert_eq!(finished.warnings(), [""; 0], "{finished:#?}");
    }
}

/// A root directory with one program, a `resolv.conf`, and a home directory.
struct EmptyRoot(tempfile::TempDir);

impl EmptyRoot {
    fn with(program: &Path) -> Self {
        let root = Self(temporary_directory());
        fs::copy(program, root.0.path().join("upstreamproxy")).unwrap();
        for directory in ["etc", "home"] {
            fs::create_dir(root.0.path().join(directory)).unwrap();
        }
        root.write("etc/resolv.conf", format!("nameserver {NAME_SERVER}\n"));
        root
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The program in this root, with `HOME` and `PATH` as its only environment variables.
    fn run(&self, subcommand: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.0.path()).arg("/upstreamproxy");
        command.arg(subcommand).env_clear().env("HOME", "/home");
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command
    }
}

/// What a program needs from the system to start.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    /// A loader (`PT_INTERP`).
    loader: bool,
    /// The number of libraries (`DT_NEEDED`).
    libraries: usize,
}

/// Reads the program headers of a 64-bit little-endian ELF file.
fn needs(elf: &[u8]) -> Needs {
    const DYNAMIC: u64 = 2;
    const INTERPRETER: u64 = 3;
    const NEEDED: u64 = 1;
    let number = |at: usize, width: usize| {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(&elf[at..at + width]);
        u64::from_le_bytes(bytes)
    };
    let offset = |at: usize| usize::try_from(number(at, 8)).unwrap();
    assert_eq!(elf[..6], *b"\x7fELF\x02\x01", "64 bits, little-endian");
    let headers = offset(0x20);
    let (size, count) = (number(0x36, 2), number(0x38, 2));
    let mut needs = Needs::default();
    for header in (0..count).map(|n| headers + usize::try_from(n * size).unwrap()) {
        match number(header, 4) {
            INTERPRETER => needs.loader = true,
            DYNAMIC => {
                let (at, length) = (offset(header + 0x08), offset(header + 0x20));
                let tags = (at..at + length).step_by(16).map(|entry| number(entry, 8));
                needs.libraries += tags
                    .take_while(|tag| *tag != 0)
                    .filter(|tag| *tag == NEEDED)
                    .count();
            }
            _ => {}
        }
    }
    needs
}
