//! The architecture, held against the source: who imports whom, who prints, who ends the process, who starts threads.
//!
//! The floors are read from the architecture page itself, so that page and code cannot part. It reads text, not syntax:
//! comments and unit tests (which stand at a file's foot) are left out, and what is left is searched for paths and words.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The page whose first text block after the marker draws the floors.
const ARCHITECTURE: &str = include_str!("../../src/manual/architecture.md");
const MARKER: &str = "<!-- floors -->";

/// The directory of the module `fuzzing`, the only one outside `src`.
const FUZZ_BODIES: &str = "tests/fuzz/bodies";

/// Files that are no block of the house: the front page and the manual declare and show, and hold no logic.
const FRONT: [&str; 2] = ["lib", "manual/mod"];

/// The layers without I/O: bytes in, values out.
const WITHOUT_IO: [&str; 13] = [
    "http/authority",
    "http/base_url",
    "http/head",
    "crypto/pem",
    "tunnel/buffer",
    "tunnel/chunk",
    "tunnel/frame",
    "tunnel/keepalive",
    "tunnel/ws_codec",
    "tunnel/opening",
    "tunnel/tls",
    "gateway/upgrade",
    "gateway/client_hello",
];

/// What I/O cannot be done without, and the clock.
const IO_WORDS: [&str; 14] = [
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "File",
    "io::Read",
    "io::Write",
    "rustix",
    "socket2",
    "fs",
    "thread",
    "Instant::now",
    "SystemTime",
];

/// The longest name that Linux keeps of a thread.
const THREAD_NAME: usize = 15;

/// One file: its module path below `src` ("tunnel/pump", "cli/mod") and its text.
struct Source {
    name: String,
    text: String,
}

impl Source {
    fn new(name: &str, text: &str) -> Self {
        Self {
            name: name.to_owned(),
            text: text.to_owned(),
        }
    }

    /// The code alone: no comments, no unit tests.
    fn code(&self) -> String {
        self.text
            .lines()
            .take_while(|line| !(line.starts_with("#[cfg(") && line.contains("test")))
            .filter(|line| !line.trim_start().starts_with("//"))
            .map(|line| line.split(" // ").next().unwrap_or(line))
            .fold(String::new(), |code, line| code + line + "\n")
    }

    /// The folder that it is a part of, if it is in one.
    fn folder(&self) -> Option<&str> {
        self.name.split_once('/').map(|(folder, _)| folder)
    }

    /// The block that it is or belongs to.
    fn block(&self) -> &str {
        self.folder().unwrap_or(&self.name)
    }

    /// The modules that its code names, as paths from the top ("tunnel/pump"), whether by `use` or in passing.
    fn imports(&self) -> Vec<String> {
        let code = self.code();
        let mut found = Vec::new();
        for (_, path) in after_each(&code, "crate::") {
            for head in alternatives(path) {
                let mut steps = head.split("::");
                let block = steps.next().unwrap_or_default();
                let inner = steps.next().filter(|step| is_module(step));
                found.push(match inner {
                    Some(inner) => format!("{block}/{inner}"),
                    None => block.to_owned(),
                });
            }
        }
        for (at, path) in after_each(&code, "super::") {
            assert!(
                !code[..at].ends_with("super::"),
                "{}: super::super:: in code; say crate:: instead",
                self.name
            );
            let Some(folder) = self.folder() else {
                panic!("{}: super:: at the top; say crate:: instead", self.name);
            };
            let heads = alternatives(path).into_iter();
            found.extend(
                heads
                    .filter_map(|head| head.split("::").next().map(str::to_owned))
                    .map(|step| format!("{folder}/{step}")),
            );
        }
        found
    }
}

/// Every file of the library and the binary: those under `src`, and those of the module `fuzzing`.
fn sources() -> Vec<Source> {
    fn walk(folder: &Path, prefix: &str, into: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            if path.is_dir() {
                walk(&path, &format!("{prefix}{stem}/"), into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                into.push(Source::new(&format!("{prefix}{stem}"), &text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    walk(&root.join("src"), "", &mut all);
    walk(&root.join(FUZZ_BODIES), "fuzzing/", &mut all);
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(all.len() > 40, "this is not the source tree");
    all
}

/// The modules of the architecture page: a file each, but one for a folder within a folder, which stands for its `mod.rs` and
/// the private files beside it.
fn modules() -> Vec<Source> {
    let mut modules: Vec<Source> = Vec::new();
    for source in sources() {
        let steps: Vec<&str> = source.name.split('/').collect();
        let [block, module, _] = steps[..] else {
            modules.push(source);
            continue;
        };
        let name = format!("{block}/{module}");
        match modules.iter_mut().find(|module| module.name == name) {
            Some(module) => module.text += &source.code(),
            None => modules.push(Source::new(&name, &source.code())),
        }
    }
    modules
}

/// Every place of `word` in `code`, and what follows it.
fn after_each<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let begins = |at: usize| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '$')
    };
    code.match_indices(word)
        .filter(move |(at, _)| begins(*at))
        .map(move |(at, _)| (at, &code[at + word.len()..]))
}

/// The paths that `path` begins with: one, or one for each element of a list in braces.
fn alternatives(path: &str) -> Vec<&str> {
    let word = |text: &'static str| move |c: char| !c.is_alphanumeric() && !text.contains(c);
    let Some(list) = path.strip_prefix('{') else {
        let end = path.find(word("_:")).unwrap_or(path.len());
        return vec![&path[..end]];
    };
    let (mut depth, mut start, mut found) = (0_usize, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let element = list[start..at].trim();
                start = at + 1;
                if !element.is_empty() {
                    let end = element.find(word("_:")).unwrap_or(element.len());
                    found.push(&element[..end]);
                }
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// Types begin with a capital; what does not may be a module.
fn is_module(step: &str) -> bool {
    step.starts_with(|c: char| c.is_ascii_lowercase())
}

/// The floors of the architecture page. Of each block or file: its floor, and its place among those of the same floor.
struct House {
    /// By name: "relay", "tunnel/pump".
    places: BTreeMap<String, (usize, usize)>,
    folders: Vec<String>,
}

impl House {
    fn of_the_architecture_page() -> Self {
        let drawn = ARCHITECTURE.split_once(MARKER).expect("the marker").1;
        let drawn = drawn.split_once("```text\n").expect("a text block").1;
        Self::drawn(drawn.split_once("```").expect("its end").0)
    }

    /// Reads lines such as `2 listener tunnel(chunk frame)`; each name may import those before it, as the page says.
    fn drawn(text: &str) -> Self {
        let mut house = Self {
            places: BTreeMap::new(),
            folders: Vec::new(),
        };
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (floor, names) = line.trim().split_once(' ').expect("a floor and names");
            let floor = floor.parse().expect("the floor's number");
            let spaced = names.replace('(', " ( ").replace(')', " ) ");
            let mut folder: Option<String> = None;
            let mut last = String::new();
            for (place, name) in spaced.split_whitespace().enumerate() {
                match (name, &folder) {
                    ("(", _) => {
                        house.folders.push(last.clone());
                        house
                            .places
                            .insert(format!("{last}/mod"), (floor, usize::MAX));
                        folder = Some(last.clone());
                    }
                    (")", _) => folder = None,
                    (name, Some(folder)) => {
                        house
                            .places
                            .insert(format!("{folder}/{name}"), (floor, place));
                    }
                    (name, None) => {
                        name.clone_into(&mut last);
                        house.places.insert(last.clone(), (floor, place));
                    }
                }
            }
        }
        house
    }

    /// What is wrong with the imports of `source`.
    fn faults(&self, source: &Source) -> Vec<String> {
        let Some(&(floor, place)) = self.places.get(&source.name) else {
            return vec![format!("{} is not on the architecture page", source.name)];
        };
        let mut faults = Vec::new();
        for import in source.imports() {
            let (block, inner) = import.split_once('/').unwrap_or((&import, ""));
            let Some(&(their_floor, their_place)) = self.places.get(block) else {
                faults.push(format!(
                    "{} uses {import} of the crate's front page; name its module",
                    source.name
                ));
                continue;
            };
            let fine = if block == source.block() {
                // Inside a folder: what mod.rs itself holds is everybody's, of the siblings only those drawn before.
                match self.places.get(&format!("{block}/{inner}")) {
                    Some(&(_, sibling)) => sibling < place,
                    None => true,
                }
            } else if floor == their_floor {
                let blocks = self
                    .folders
                    .iter()
                    .any(|f| f == block || f == source.block());
                !blocks && their_place < place
            } else {
                their_floor < floor
            };
            if !fine {
                faults.push(format!(
                    "{} (floor {floor}) imports {import} (floor {their_floor})",
                    source.name
                ));
            }
        }
        faults
    }
}

/// Whether `word` stands in `code` by itself; of a path (`io::Read`) the last step may stand in a list in braces.
fn says(code: &str, word: &str) -> bool {
    if let Some((path, last)) = word.rsplit_once("::") {
        let path = format!("{path}::");
        return after_each(code, &path)
            .flat_map(|(_, rest)| alternatives(rest))
            .any(|step| step.split("::").next() == Some(last));
    }
    after_each(code, word).any(|(_, rest)| {
        let next = rest.chars().next();
        next.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    })
}

/// The files whose code has one of `words`, with the word, less those that `may`.
fn who_says(words: &[&str], may: impl Fn(&Source) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !may(source)) {
        let code = source.code();
        let said = words.iter().filter(|word| says(&code, word));
        found.extend(said.map(|word| format!("{} says {word}", source.name)));
    }
    found
}

/// What is wrong with how `source` starts threads.
fn thread_faults(source: &Source) -> Vec<String> {
    let code = source.code();
    let mut faults = Vec::new();
    if says(&code, "thread::spawn") || says(&code, "thread::scope") {
        faults.push(format!("{} starts a thread without a name", source.name));
    }
    for (_, rest) in after_each(&code, "Builder::new()") {
        let before_spawn = rest.split(".spawn(").next().unwrap_or_default();
        if rest.contains(".spawn(") && !before_spawn.contains(".name(") {
            faults.push(format!("{} builds a thread without a name", source.name));
        }
    }
    let long = code
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("uproxy-") && text.len() > THREAD_NAME);
    faults.extend(long.map(|name| format!("{}: {name} is cut to 15 bytes", source.name)));
    faults
}

#[test]
fn every_file_is_on_the_architecture_page_and_nothing_else_is() {
    let house = House::of_the_architecture_page();
    let files: Vec<String> = modules().into_iter().map(|source| source.name).collect();
    for file in &files {
        assert!(
            house.places.contains_key(file) || FRONT.contains(&file.as_str()),
            "{file} is not on the page"
        );
    }
    for name in house.places.keys() {
        let is_folder = house.folders.contains(name);
        assert!(is_folder || files.contains(name), "{name} is no file");
    }
}

#[test]
fn imports_lead_down_the_floors() {
    let house = House::of_the_architecture_page();
    let faults: Vec<String> = modules()
        .iter()
        .filter(|source| !FRONT.contains(&source.name.as_str()))
        .flat_map(|source| house.faults(source))
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn relay_and_gateway_never_import_each_other() {
    for source in sources() {
        let other = match source.block() {
            "relay" => "gateway",
            "gateway" => "relay",
            _ => continue,
        };
        for import in source.imports() {
            assert!(
                import.split('/').next() != Some(other),
                "{} imports {import}",
                source.name
            );
        }
    }
}

#[test]
fn only_the_command_line_prints() {
    let words = [
        "println!",
        "eprintln!",
        "print!",
        "eprint!",
        "stdout()",
        "stderr()",
    ];
    let found = who_says(&words, |source| source.block() == "cli");
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn only_main_and_the_command_line_end_the_process() {
    let words = ["process::exit", "process::abort", "exit_group"];
    let found = who_says(&words, |source| matches!(source.block(), "main" | "cli"));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_bodies_of_the_fuzz_targets_are_no_part_of_the_program() {
    let outside =
        |source: &Source| source.block() == "fuzzing" || FRONT.contains(&source.name.as_str());
    let found = who_says(&["fuzzing"], outside);
    assert!(found.is_empty(), "{found:#?}");
    let front = sources()
        .into_iter()
        .find(|source| source.name == "lib")
        .unwrap();
    let only = "#[cfg(any(all(test, feature = \"gateway\"), feature = \"fuzzing\"))]\n#[path = \"../tests/fuzz/bodies/mod.rs\"]\n#[doc(hidden)]\npub mod fuzzing;";
    assert!(front.text.contains(only));
}

#[test]
fn signals_belong_to_the_command_line() {
    let found = who_says(&["signal_hook"], |source| source.block() == "cli");
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn unsafe_code_stands_in_two_places() {
    let found = who_says(&["unsafe"], |source| {
        // `capi/header` is a test, which reads what the exports say.
        matches!(
            source.name.as_str(),
            "sys/memory" | "capi/ffi" | "capi/header"
        )
    });
    // The exported names, which the compiler counts as unsafe, and nothing else.
    assert_eq!(found, ["capi/mod says unsafe"]);
    let sources = sources();
    let exports = sources.iter().find(|source| source.name == "capi/mod");
    let code = exports.unwrap().code();
    assert!(!says(&code.replace("#[unsafe(no_mangle)]", ""), "unsafe"));
}

#[test]
fn every_thread_has_a_name() {
    let faults: Vec<String> = sources().iter().flat_map(thread_faults).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_layers_do_no_io() {
    let all = sources();
    for name in WITHOUT_IO {
        assert!(
            all.iter().any(|source| source.name == name),
            "{name} is gone"
        );
    }
    let found = who_says(&IO_WORDS, |source| {
        !WITHOUT_IO.contains(&source.name.as_str())
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_tunnels_bytes_pass_the_kernel_in_link_alone() {
    // `gateway/auth` reads a file.
    let found = who_says(&["io::Read", "io::Write"], |source| {
        !matches!(source.block(), "tunnel" | "relay" | "gateway")
            || source.name.starts_with("tunnel/conn/")
            || source.name == "gateway/auth"
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_file_opens_with_what_it_is() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "{}", source.name);
    }
}

// The check itself: what breaks a rule is seen.

fn small_house() -> House {
    House::drawn("2 cli\n1 relay(dial worker) gateway(door)\n0 error config tls\n")
}

#[test]
fn sees_an_import_upwards() {
    let house = small_house();
    let fine = Source::new("relay/worker", "use crate::config::Config;\n");
    assert_eq!(house.faults(&fine), [""; 0]);
    for code in [
        "use crate::cli::print;",
        "use crate::gateway::upgrade;",
        "use crate::{config, gateway::upgrade::Door};",
        "fn f() { crate::gateway::upgrade::open() }",
        "use crate::Config;",
    ] {
        let bad = Source::new("relay/worker", code);
        assert_eq!(house.faults(&bad).len(), 1, "{code}");
    }
    assert_eq!(
        house
            .faults(&Source::new("config", "use crate::tls;"))
            .len(),
        1,
        "a later sibling"
    );
    assert_eq!(house.faults(&Source::new("stray", "")).len(), 1);
}

#[test]
fn sees_a_later_sibling_in_the_same_folder() {
    let house = small_house();
    let up = Source::new("relay/dial", "use super::{Relay, worker::serve};\n");
    assert_eq!(house.faults(&up).len(), 1);
    let down = Source::new("relay/worker", "use super::{Relay, dial};\n");
    assert_eq!(house.faults(&down), [""; 0]);
}

#[test]
fn looks_at_code_and_not_at_comments_or_tests() {
    let source = Source::new(
        "error",
        "//! see crate::cli\nfn f() {} // crate::cli\n#[cfg(test)]\nmod tests { use crate::cli; }\n",
    );
    assert_eq!(source.imports(), [""; 0]);
}

#[test]
fn sees_threads_without_a_name_or_with_a_long_one() {
    for code in [
        "thread::spawn(f);",
        "thread::Builder::new().spawn(f);",
        r#"thread::Builder::new().name("uproxy-much-too-long".into()).spawn(f);"#,
    ] {
        assert_eq!(thread_faults(&Source::new("x", code)).len(), 1, "{code}");
    }
    let fine = r#"thread::Builder::new().name("uproxy-dns".into()).spawn(f);"#;
    assert_eq!(thread_faults(&Source::new("x", fine)), [""; 0]);
}

#[test]
fn finds_words_and_not_parts_of_words() {
    assert!(says("let x: File;", "File") && says("use std::io::{self, Read};", "io::Read"));
    assert!(says("std::process::exit(1)", "process::exit"));
    for code in [
        "a_File",
        "Files",
        "io::ReadBuf",
        "use std::fmt::{self, Write}",
    ] {
        let found = IO_WORDS.iter().find(|word| says(code, word));
        assert_eq!(found, None, "{code}");
    }
}

/// The page whose rows each name the tests that hold them.
const FAULTS: &str = include_str!("../../src/manual/faults.md");

#[test]
fn every_test_that_the_page_of_faults_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = FAULTS
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| word.split_once("::"));
    let mut count = 0;
    for (file, test) in named {
        let place = if file.starts_with("src/") {
            format!("{file}.rs")
        } else {
            format!("tests/integration/{file}.rs")
        };
        let text = fs::read_to_string(root.join(&place)).unwrap_or_else(|e| panic!("{place}: {e}"));
        assert!(
            text.contains(&format!("fn {test}(")),
            "{place} has no test {test}"
        );
        count += 1;
    }
    assert!(count > 100, "this is not the page of faults");
}
