//! The page of static binaries, held against itself: its recipes are run as they stand, what comes out is measured, read and
//! run in a root with nothing else in it.
//!
//! They take minutes, so they are not among the ordinary tests: `cargo test --test integration -- --ignored static_binaries`,
//! as `.ci/run` does.

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
/// How far a size may be from what the page says, in percent: what a patch release of a compiler changes.
const TOLERANCE: f64 = 5.0;
/// How long one recipe may take on a machine with other work.
const BUILD_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A recipe of the page.
struct Recipe {
    name: &'static str,
    /// Where its binary is, below the target folder.
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
    /// The lines of the block of shell that follows its marker.
    fn lines(&self) -> &'static str {
        let after = PAGE
            .split_once(&format!("<!-- recipe: {} -->\n", self.name))
            .unwrap_or_else(|| panic!("the page has no recipe {}", self.name))
            .1;
        let block = after.strip_prefix("```sh\n").expect("a block of shell");
        block.split_once("```").expect("its end").0
    }

    /// What the recipe gives, made at the first call.
    fn binary(&self) -> PathBuf {
        // Two recipes put their binary in one place, so the first one's must be away before the second one begins.
        static MADE: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        // Its own, so that the ordinary one keeps its flags; inside it, so that `cargo clean` takes it along.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("static");
        let kept = target.join(self.name);
        if made.contains(self.name) {
            return kept;
        }
        let mut build = Command::new("sh");
        build
            .args(["-euc", self.lines()])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("CARGO_TARGET_DIR", &target)
            .env_remove("RUSTFLAGS");
        finish_within(BUILD_TIMEOUT, &mut build).succeeded();
        fs::copy(target.join(self.output), &kept).unwrap();
        made.insert(self.name);
        kept
    }
}

/// The figures in the page were taken on this architecture.
fn is_here() -> bool {
    let here = cfg!(all(target_arch = "x86_64", target_env = "gnu"));
    if !here {
        skip_unsupported("the page's recipes are for x86_64 and glibc");
    }
    here
}

/// The page's table: recipe and MiB.
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
fn the_page_has_a_size_for_each_recipe_that_is_measured() {
    let rows: Vec<&str> = sizes().into_iter().map(|(name, _)| name).collect();
    assert_eq!(rows, [EVERYTHING.name, RELAY.name]);
    for recipe in [EVERYTHING, RELAY, MUSL] {
        assert!(recipe.lines().contains("cargo build"), "{}", recipe.name);
    }
}

#[test]
#[ignore = "builds for minutes; .ci/run runs it"]
fn the_sizes_on_the_page_are_true() {
    if !is_here() {
        return;
    }
    let mut lies = Vec::new();
    for ((name, told), recipe) in sizes().into_iter().zip([EVERYTHING, RELAY]) {
        let bytes = fs::metadata(recipe.binary()).unwrap().len();
        #[allow(clippy::cast_precision_loss, reason = "far under 2^52")]
        let is = bytes as f64 / f64::from(1 << 20);
        println!("{name}: {is:.2} MiB, the page says {told:.2}");
        if (is - told).abs() > told * TOLERANCE / 100.0 {
            lies.push(format!(
                "{name} is {is:.2} MiB and the page says {told:.2}: mend whichever is wrong"
            ));
        }
    }
    assert!(lies.is_empty(), "{lies:#?}");
}

#[test]
#[ignore = "builds for minutes; .ci/run runs it"]
fn the_static_binaries_want_no_loader_and_no_library() {
    if !is_here() {
        return;
    }
    for recipe in [EVERYTHING, RELAY] {
        let wants = wants(&fs::read(recipe.binary()).unwrap());
        assert_eq!(wants, Wants::default(), "{}", recipe.name);
    }
    // The reader itself sees what an ordinary program wants.
    let ordinary = wants(&fs::read("/proc/self/exe").unwrap());
    assert!(ordinary.loader && ordinary.libraries > 0, "{ordinary:?}");
}

#[test]
#[ignore = "builds for minutes; .ci/run runs it"]
fn the_relay_alone_says_that_it_has_no_gateway() {
    if !is_here() {
        return;
    }
    let home = TempHome::new();
    let relay = RELAY.binary();
    for words in [
        &["gateway", "--sessions", "/s"][..],
        &["doctor", "--embedded"],
    ] {
        let said = finish(home.command(&relay).args(words));
        assert_eq!(said.status.code(), Some(2), "{said:#?}");
        assert!(said.stderr.contains("the feature `gateway`"), "{said:#?}");
    }
}

#[test]
#[ignore = "builds for minutes; .ci/run runs it"]
fn the_musl_recipe_gives_a_binary_that_runs() {
    let mut asked = Command::new("rustc");
    asked.args([
        "--print",
        "target-libdir",
        "--target",
        "x86_64-unknown-linux-musl",
    ]);
    let libdir = finish(&mut asked).succeeded().text();
    if !Path::new(libdir.trim()).is_dir() {
        skip_unsupported("the target x86_64-unknown-linux-musl is not installed");
        return;
    }
    let musl = MUSL.binary();
    assert_eq!(wants(&fs::read(&musl).unwrap()), Wants::default());
    finish(Command::new(musl).arg("--version")).succeeded();
}

/// The names of the test's own, and who tells their address.
const GATEWAY: &str = "gateway.uproxy.test";
const TARGET: &str = "target.uproxy.test";
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

#[test]
#[ignore = "builds for minutes; .ci/run runs it"]
fn both_ends_look_names_up_in_a_root_with_nothing_else_in_it() {
    if !is_here() || !need_tool("chroot") {
        return;
    }
    let Some(network) = Network::connected() else {
        return;
    };
    let everything = EVERYTHING.binary();
    for relay in [everything.clone(), RELAY.binary()] {
        network.near(|| carries_by_name(&everything, &relay));
    }
}

/// Gateway and relay, each in a root of its own, carry a stream for a client that knows nothing but names.
fn carries_by_name(gateway: &Path, relay: &Path) {
    static NAMES: OnceLock<DnsServer> = std::sync::OnceLock::new();
    let names = NAMES.get_or_init(|| DnsServer::start(NAME_SERVER, &[GATEWAY, TARGET]));
    let ca = TestCa::new("upstreamproxy test root");
    let (certificate, key) = ca.issue(GATEWAY);
    let target = EchoServer::start();

    let there = EmptyRoot::with(gateway);
    there.write("sessions", format!("{SESSION} {TOKEN}\n"));
    there.write("gateway.pem", certificate);
    there.write("gateway.key", key);
    there.write("roots.pem", &ca.pem);
    let (gateway, ready) = Running::ready(there.run("gateway").args([
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

    let here = EmptyRoot::with(relay);
    here.write("roots.pem", &ca.pem);
    here.write("session_token", TOKEN);
    let (relay, ready) = Running::ready(here.run("serve").args([
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
    let mut came = vec![0; sent.len()];
    tunnel.read_exact(&mut came).unwrap();
    assert!(came == sent);
    drop(tunnel);
    for name in [GATEWAY, TARGET] {
        assert!(names.was_queried_for(name), "nobody looked {name} up");
    }
    for end in [relay, gateway] {
        let said: Finished = end.stop().succeeded();
        assert_eq!(said.warnings(), [""; 0], "{said:#?}");
    }
}

/// A root with one program in it, a `resolv.conf`, and a home folder.
struct EmptyRoot(tempfile::TempDir);

impl EmptyRoot {
    fn with(program: &Path) -> Self {
        let root = Self(temporary_directory());
        fs::copy(program, root.0.path().join("upstreamproxy")).unwrap();
        for folder in ["etc", "home"] {
            fs::create_dir(root.0.path().join(folder)).unwrap();
        }
        root.write("etc/resolv.conf", format!("nameserver {NAME_SERVER}\n"));
        root
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The program in it, with an environment of nothing but a home.
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

/// What a program wants of the system before its first instruction.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wants {
    /// A loader (`PT_INTERP`).
    loader: bool,
    /// How many libraries (`DT_NEEDED`).
    libraries: usize,
}

/// Reads the program headers of a 64-bit little-endian ELF file.
fn wants(elf: &[u8]) -> Wants {
    const DYNAMIC: u64 = 2;
    const INTERPRETER: u64 = 3;
    const NEEDED: u64 = 1;
    let number = |at: usize, width: usize| {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(&elf[at..at + width]);
        u64::from_le_bytes(bytes)
    };
    let place = |at: usize| usize::try_from(number(at, 8)).unwrap();
    assert_eq!(elf[..6], *b"\x7fELF\x02\x01", "64 bits, little end first");
    let headers = place(0x20);
    let (size, count) = (number(0x36, 2), number(0x38, 2));
    let mut wants = Wants::default();
    for header in (0..count).map(|n| headers + usize::try_from(n * size).unwrap()) {
        match number(header, 4) {
            INTERPRETER => wants.loader = true,
            DYNAMIC => {
                let (at, length) = (place(header + 0x08), place(header + 0x20));
                let tags = (at..at + length).step_by(16).map(|entry| number(entry, 8));
                wants.libraries += tags
                    .take_while(|tag| *tag != 0)
                    .filter(|tag| *tag == NEEDED)
                    .count();
            }
            _ => {}
        }
    }
    wants
}
