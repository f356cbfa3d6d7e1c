//! Checks the architecture against the source: which modules import which, which modules print,
//! exit the process, or start threads.
//!
//! The floors are read from the architecture page, so the page and the code cannot diverge. The
//! check works on text, not on syntax: it removes comments and unit tests (which are at the end of
//! a file) and searches the rest for paths and words.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The page with the floors: the first text block after the marker.
const ARCHITECTURE: &str = include_str!("../../src/manual/architecture.md");
const MARKER: &str = "<!-- floors -->";

/// The directory of the module `fuzzing`, the only one outside `src`.
const FUZZ_BODIES: &str = "tests/fuzz/bodies";

/// Files that are not on a floor: the crate root and the manual declare modules and contain no
/// logic.
const NOT_ON_A_FLOOR: [&str; 2] = ["lib", "manual/mod"];

/// Modules without I/O: they convert bytes to values.
const WITHOUT_IO: [&str; 16] = [
    "http/authority",
    "http/base_url",
    "http/head",
    "http/pattern",
    "http/response",
    "crypto/pem",
    "tunnel/buffer",
    "tunnel/chunk",
    "tunnel/frame",
    "tunnel/keepalive",
    "tunnel/ws_codec",
    "tunnel/opening",
    "tunnel/pump/rules",
    "tunnel/tls",
    "gateway/upgrade",
    "gateway/client_hello",
];

/// Words that I/O or reading the clock needs.
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

/// Linux truncates longer thread names.
const THREAD_NAME: usize = 15;

/// A source file: its module path below `src` ("tunnel/pump", "cli/mod") and its text.
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

    /// The code without comments and unit tests.
    fn code(&self) -> String {
        self.text
            .lines()
            .take_while(|line| !(line.starts_with("#[cfg(") && line.contains("test")))
            .filter(|line| !line.trim_start().starts_with("//"))
            .map(|line| line.split(" // ").next().unwrap_or(line))
            .fold(String::new(), |code, line| code + line + "\n")
    }

    /// The directory that contains it, unless it is directly in `src`.
    fn directory(&self) -> Option<&str> {
        self.name.split_once('/').map(|(directory, _)| directory)
    }

    /// The top-level module that it is or belongs to.
    fn top_module(&self) -> &str {
        self.directory().unwrap_or(&self.name)
    }

    /// The modules that its code refers to, in `use` or in paths, as module paths ("tunnel/pump").
    fn imports(&self) -> Vec<String> {
        let code = self.code();
        let mut found = Vec::new();
        for (_, path) in after_each(&code, "crate::") {
            for head in alternatives(path) {
                let mut steps = head.split("::");
                let module = steps.next().unwrap_or_default();
                let inner = steps.next().filter(|step| is_module(step));
                found.push(match inner {
                    Some(inner) => format!("{module}/{inner}"),
                    None => module.to_owned(),
                });
            }
        }
        for (at, path) in after_each(&code, "super::") {
            assert!(
                !code[..at].ends_with("super::"),
                "{}: super::super:: in code; use crate:: instead",
                self.name
            );
            let Some(directory) = self.directory() else {
                panic!(
                    "{}: super:: in a top-level module; use crate:: instead",
                    self.name
                );
            };
            let heads = alternatives(path).into_iter();
            found.extend(
                heads
                    .filter_map(|head| head.split("::").next().map(str::to_owned))
                    .map(|step| format!("{directory}/{step}")),
            );
        }
        found
    }
}

/// All files of the library and the binary: those in `src`, and those of the module `fuzzing`.
fn sources() -> Vec<Source> {
    fn walk(directory: &Path, prefix: &str, into: &mut Vec<Source>) {
        for entry in fs::read_dir(directory).unwrap() {
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

/// The modules of the architecture page: one per file. A directory inside a directory is one
/// module: its `mod.rs` and the private files beside it.
fn modules() -> Vec<Source> {
    let mut modules: Vec<Source> = Vec::new();
    for source in sources() {
        let steps: Vec<&str> = source.name.split('/').collect();
        let [top, module, _] = steps[..] else {
            modules.push(source);
            continue;
        };
        let name = format!("{top}/{module}");
        match modules.iter_mut().find(|module| module.name == name) {
            Some(module) => module.text += &source.code(),
            None => modules.push(Source::new(&name, &source.code())),
        }
    }
    modules
}

/// All occurrences of `word` in `code`, each with the text that follows it.
fn after_each<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let starts_a_word = |at: usize| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '$')
    };
    code.match_indices(word)
        .filter(move |(at, _)| starts_a_word(*at))
        .map(move |(at, _)| (at, &code[at + word.len()..]))
}

/// The paths at the start of `path`: one, or one per element of a list in braces.
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

/// Type names start with a capital letter; any other name may be a module.
fn is_module(step: &str) -> bool {
    step.starts_with(|c: char| c.is_ascii_lowercase())
}

/// The floors of the architecture page: for each module its floor, and its position on that floor.
struct Floors {
    /// By module path: "relay", "tunnel/pump".
    positions: BTreeMap<String, (usize, usize)>,
    directories: Vec<String>,
}

impl Floors {
    fn from_the_architecture_page() -> Self {
        let page = ARCHITECTURE.split_once(MARKER).expect("the marker").1;
        let page = page.split_once("```text\n").expect("a text block").1;
        Self::parse(page.split_once("```").expect("its end").0)
    }

    /// Parses lines such as `2 listener tunnel(chunk frame)`, with the meaning that the page
    /// describes.
    fn parse(text: &str) -> Self {
        let mut floors = Self {
            positions: BTreeMap::new(),
            directories: Vec::new(),
        };
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (floor, names) = line.trim().split_once(' ').expect("a floor and names");
            let floor = floor.parse().expect("the floor's number");
            let spaced = names.replace('(', " ( ").replace(')', " ) ");
            let mut directory: Option<String> = None;
            let mut last = String::new();
            for (position, name) in spaced.split_whitespace().enumerate() {
                match (name, &directory) {
                    ("(", _) => {
                        floors.directories.push(last.clone());
                        floors
                            .positions
                            .insert(format!("{last}/mod"), (floor, usize::MAX));
                        directory = Some(last.clone());
                    }
                    (")", _) => directory = None,
                    (name, Some(directory)) => {
                        floors
                            .positions
                            .insert(format!("{directory}/{name}"), (floor, position));
                    }
                    (name, None) => {
                        name.clone_into(&mut last);
                        floors.positions.insert(last.clone(), (floor, position));
                    }
                }
            }
        }
        floors
    }

    /// The violations in the imports of `source`.
    fn violations(&self, source: &Source) -> Vec<String> {
        let Some(&(floor, position)) = self.positions.get(&source.name) else {
            return vec![format!("{} is not on the architecture page", source.name)];
        };
        let mut violations = Vec::new();
        for import in source.imports() {
            let (module, inner) = import.split_once('/').unwrap_or((&import, ""));
            let Some(&(import_floor, import_position)) = self.positions.get(module) else {
                violations.push(format!(
                    "{} imports {import} from the crate root; import it from its module",
                    source.name
                ));
                continue;
            };
            let allowed = if module == source.top_module() {
                // Inside a directory, only the siblings named before. Other names are those of
                // files in a nested directory, see `no_file_imports_its_mod_rs`.
                match self.positions.get(&format!("{module}/{inner}")) {
                    Some(&(_, sibling)) => sibling < position,
                    None => true,
                }
            } else if floor == import_floor {
                let involves_a_directory = self
                    .directories
                    .iter()
                    .any(|f| f == module || f == source.top_module());
                !involves_a_directory && import_position < position
            } else {
                import_floor < floor
            };
            if !allowed {
                violations.push(format!(
                    "{} (floor {floor}) imports {import} (floor {import_floor})",
                    source.name
                ));
            }
        }
        violations
    }
}

/// Whether `code` contains `word` as a whole word. The last step of a path (`io::Read`) may be in a
/// list in braces.
fn mentions(code: &str, word: &str) -> bool {
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

/// The files whose code contains one of `words`, except the files that are `allowed`.
fn files_that_mention(words: &[&str], allowed: impl Fn(&Source) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !allowed(source)) {
        let code = source.code();
        let mentioned = words.iter().filter(|word| mentions(&code, word));
        found.extend(mentioned.map(|word| format!("{} mentions {word}", source.name)));
    }
    found
}

/// The violations in how `source` starts threads.
fn thread_violations(source: &Source) -> Vec<String> {
    let code = source.code();
    let mut violations = Vec::new();
    if mentions(&code, "thread::spawn") || mentions(&code, "thread::scope") {
        violations.push(format!("{} starts a thread without a name", source.name));
    }
    for (_, rest) in after_each(&code, "Builder::new()") {
        let before_spawn = rest.split(".spawn(").next().unwrap_or_default();
        if rest.contains(".spawn(") && !before_spawn.contains(".name(") {
            violations.push(format!("{} starts a thread without a name", source.name));
        }
    }
    let long = code
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("uproxy-") && text.len() > THREAD_NAME);
    violations.extend(long.map(|name| format!("{}: {name} is longer than 15 bytes", source.name)));
    violations
}

#[test]
fn the_architecture_page_lists_every_file_and_no_others() {
    let floors = Floors::from_the_architecture_page();
    let files: Vec<String> = modules().into_iter().map(|source| source.name).collect();
    for file in &files {
        assert!(
            floors.positions.contains_key(file) || NOT_ON_A_FLOOR.contains(&file.as_str()),
            "{file} is not on the page"
        );
    }
    for name in floors.positions.keys() {
        let is_directory = floors.directories.contains(name);
        assert!(is_directory || files.contains(name), "{name} is not a file");
    }
}

#[test]
fn imports_lead_to_lower_floors_only() {
    let floors = Floors::from_the_architecture_page();
    let violations: Vec<String> = modules()
        .iter()
        .filter(|source| !NOT_ON_A_FLOOR.contains(&source.name.as_str()))
        .flat_map(|source| floors.violations(source))
        .collect();
    assert!(violations.is_empty(), "{violations:#?}");
}

/// The logger is code of the host, which may panic. The command line has its own.
#[test]
fn every_log_call_is_guarded() {
    let unguarded: Vec<String> = modules()
        .into_iter()
        .filter(|source| source.top_module() != "cli" && source.name != "control/log")
        .filter(|source| {
            let code = source.code();
            let calls = ["error", "warn", "info", "debug", "trace"]
                .iter()
                .any(|level| code.contains(&format!("log::{level}!")));
            calls && !code.contains("use crate::control::log;")
        })
        .map(|source| source.name)
        .collect();
    assert!(
        unguarded.is_empty(),
        "import crate::control::log in {unguarded:?}"
    );
}

/// The names that `source` imports with `super::` and that are not files beside it.
fn imports_of_mod_rs(source: &Source, all: &[Source]) -> Vec<String> {
    let Some((directory, file)) = source.name.rsplit_once('/') else {
        return Vec::new();
    };
    if file == "mod" {
        return Vec::new();
    }
    let is_sibling = |name: &str| {
        let (file, nested) = (
            format!("{directory}/{name}"),
            format!("{directory}/{name}/mod"),
        );
        all.iter()
            .any(|other| other.name == file || other.name == nested)
    };
    let code = source.code();
    after_each(&code, "super::")
        .flat_map(|(_, path)| alternatives(path))
        .filter_map(|path| path.split("::").next())
        .filter(|name| !is_sibling(name))
        .map(|name| format!("{} imports {name}", source.name))
        .collect()
}

#[test]
fn no_file_imports_its_mod_rs() {
    let all = sources();
    let is_product = |source: &&Source| source.top_module() != "fuzzing";
    let problems: Vec<String> = all
        .iter()
        .filter(is_product)
        .flat_map(|source| imports_of_mod_rs(source, &all))
        .collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn an_import_of_mod_rs_is_detected() {
    let all = [
        Source::new("relay/mod", "pub struct Relay;"),
        Source::new("relay/dial", "use super::{Relay, worker::Worker};"),
        Source::new("relay/worker", "use super::dial;"),
    ];
    let found: Vec<_> = all
        .iter()
        .flat_map(|source| imports_of_mod_rs(source, &all))
        .collect();
    assert_eq!(found, ["relay/dial imports Relay"]);
}

#[test]
fn relay_and_gateway_never_import_each_other() {
    for source in sources() {
        let other = match source.top_module() {
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
    let found = files_that_mention(&words, |source| source.top_module() == "cli");
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn only_main_and_the_command_line_end_the_process() {
    let words = ["process::exit", "process::abort", "exit_group"];
    let found = files_that_mention(&words, |source| {
        matches!(source.top_module(), "main" | "cli")
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_bodies_of_the_fuzz_targets_are_not_part_of_the_program() {
    let outside = |source: &Source| {
        source.top_module() == "fuzzing" || NOT_ON_A_FLOOR.contains(&source.name.as_str())
    };
    let found = files_that_mention(&["fuzzing"], outside);
    assert!(found.is_empty(), "{found:#?}");
    let root = sources()
        .into_iter()
        .find(|source| source.name == "lib")
        .unwrap();
    let declaration = "#[cfg(any(all(test, feature = \"gateway\"), feature = \"fuzzing\"))]\n#[path = \"../tests/fuzz/bodies/mod.rs\"]\n#[doc(hidden)]\npub mod fuzzing;";
    assert!(root.text.contains(declaration));
}

/// The flags in `code` that do not follow the name of their setting: not `NAME (--NAME)`.
fn unnamed_flags(code: &str) -> Vec<String> {
    let flags = code.match_indices("--").filter_map(|(at, _)| {
        let rest = &code[at + 2..];
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-')?;
        let before_is_text = code[..at].ends_with([' ', '(', '"']);
        (before_is_text && end > 1 && !rest.starts_with('-')).then(|| (at, &rest[..end]))
    });
    flags
        .filter(|(at, name)| !code[..*at].ends_with(&format!("{name} (")))
        // An option of Node.
        .filter(|(_, name)| *name != "require")
        .map(|(_, name)| name.to_owned())
        .collect()
}

#[test]
fn messages_of_the_library_name_settings_and_not_only_flags() {
    assert_eq!(
        unnamed_flags("\"set listen (--listen) or --when x\""),
        ["when"]
    );
    let of_the_binary = ["cli", "bench", "doctor"];
    let library = sources().into_iter().filter(|source| {
        let help = source.name == "config/settings";
        !of_the_binary.contains(&source.top_module()) && !help
    });
    let found: Vec<String> = library
        .flat_map(|source| {
            let flags = unnamed_flags(&source.code()).into_iter();
            flags.map(move |flag| format!("{}: --{flag}", source.name))
        })
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn only_the_command_line_handles_signals() {
    let found = files_that_mention(&["signal_hook"], |source| source.top_module() == "cli");
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn unsafe_code_is_in_three_files_only() {
    let found = files_that_mention(&["unsafe"], |source| {
        matches!(
            source.name.as_str(),
            "sys/memory" | "sys/inherited" | "capi/ffi"
        )
    });
    // The remaining use is the attribute of the exported names, which the compiler counts as
    // unsafe.
    assert_eq!(found, ["capi/mod mentions unsafe"]);
    let sources = sources();
    let exports = sources.iter().find(|source| source.name == "capi/mod");
    let code = exports.unwrap().code();
    assert!(!mentions(
        &code.replace("#[unsafe(no_mangle)]", ""),
        "unsafe"
    ));
}

#[test]
fn every_thread_has_a_name() {
    let violations: Vec<String> = sources().iter().flat_map(thread_violations).collect();
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn modules_without_io_do_no_io() {
    let all = sources();
    for name in WITHOUT_IO {
        assert!(
            all.iter().any(|source| source.name == name),
            "{name} does not exist"
        );
    }
    let found = files_that_mention(&IO_WORDS, |source| {
        !WITHOUT_IO.contains(&source.name.as_str())
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn only_the_connection_reads_and_writes_a_tunnels_bytes() {
    // `gateway/auth` reads a file.
    let found = files_that_mention(&["io::Read", "io::Write"], |source| {
        !matches!(source.top_module(), "tunnel" | "relay" | "gateway")
            || source.name.starts_with("tunnel/conn/")
            || source.name == "gateway/auth"
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_file_starts_with_a_module_doc() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "{}", source.name);
    }
}

// Tests of the check itself: it detects each kind of violation.

fn example_floors() -> Floors {
    Floors::parse("2 cli\n1 relay(dial worker) gateway(upgrade)\n0 error config tls\n")
}

#[test]
fn an_import_from_a_higher_floor_is_detected() {
    let floors = example_floors();
    let fine = Source::new("relay/worker", "use crate::config::Config;\n");
    assert_eq!(floors.violations(&fine), [""; 0]);
    for code in [
        "use crate::cli::print;",
        "use crate::gateway::upgrade;",
        "use crate::{config, gateway::upgrade::decide};",
        "fn f() { crate::gateway::upgrade::open() }",
        "use crate::Config;",
    ] {
        let bad = Source::new("relay/worker", code);
        assert_eq!(floors.violations(&bad).len(), 1, "{code}");
    }
    assert_eq!(
        floors
            .violations(&Source::new("config", "use crate::tls;"))
            .len(),
        1,
        "an import of a later sibling"
    );
    assert_eq!(floors.violations(&Source::new("stray", "")).len(), 1);
}

#[test]
fn an_import_of_a_later_sibling_is_detected() {
    let floors = example_floors();
    let up = Source::new("relay/dial", "use super::{Relay, worker::serve};\n");
    assert_eq!(floors.violations(&up).len(), 1);
    let down = Source::new("relay/worker", "use super::{Relay, dial};\n");
    assert_eq!(floors.violations(&down), [""; 0]);
}

#[test]
fn comments_and_tests_are_ignored() {
    let source = Source::new(
        "error",
        "//! see crate::cli\nfn f() {} // crate::cli\n#[cfg(test)]\nmod tests { use crate::cli; }\n",
    );
    assert_eq!(source.imports(), [""; 0]);
}

#[test]
fn threads_without_a_name_or_with_a_long_name_are_detected() {
    for code in [
        "thread::spawn(f);",
        "thread::Builder::new().spawn(f);",
        r#"thread::Builder::new().name("uproxy-much-too-long".into()).spawn(f);"#,
    ] {
        assert_eq!(
            thread_violations(&Source::new("x", code)).len(),
            1,
            "{code}"
        );
    }
    let fine = r#"thread::Builder::new().name("uproxy-dns".into()).spawn(f);"#;
    assert_eq!(thread_violations(&Source::new("x", fine)), [""; 0]);
}

#[test]
fn words_are_found_and_parts_of_words_are_not() {
    assert!(mentions("let x: File;", "File") && mentions("use std::io::{self, Read};", "io::Read"));
    assert!(mentions("std::process::exit(1)", "process::exit"));
    for code in [
        "a_File",
        "Files",
        "io::ReadBuf",
        "use std::fmt::{self, Write}",
    ] {
        let found = IO_WORDS.iter().find(|word| mentions(code, word));
        assert_eq!(found, None, "{code}");
    }
}

/// The page with one row per fault and the tests that cover it.
const FAULTS: &str = include_str!("../../src/manual/faults.md");

#[test]
fn every_test_named_on_the_page_of_faults_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = FAULTS
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| word.split_once("::"));
    let mut count = 0;
    for (file, test) in named {
        let path = if file.starts_with("src/") {
            format!("{file}.rs")
        } else {
            format!("tests/integration/{file}.rs")
        };
        let text = fs::read_to_string(root.join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(
            text.contains(&format!("fn {test}(")),
            "{path} has no test {test}"
        );
        count += 1;
    }
    assert!(count > 100, "this is not the page of faults");
}
