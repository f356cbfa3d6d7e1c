//! `upstreamproxy.h`, held against the code: its functions with their types, its structs, its constants. A test, no part of the API.
//!
//! It reads both as text, as they are written by hand in one plain style. That the header compiles, and works, is shown by the
//! hosts of `tests/integration/capi.rs`.

use std::collections::BTreeMap;

const HEADER: &str = include_str!("upstreamproxy.h");
const EXPORTS: &str = include_str!("mod.rs");
const ANSWERS: &str = include_str!("codes.rs");
const SETTINGS: &str = include_str!("settings.rs");

/// Each type that an exported function has, and what C calls it.
const TYPES: [(&str, &str); 19] = [
    ("u16", "uint16_t"),
    ("u32", "uint32_t"),
    ("i64", "int64_t"),
    ("usize", "size_t"),
    ("c_int", "int"),
    ("*mut c_void", "void *"),
    ("*const c_char", "const char *"),
    ("*const *mut c_char", "char *const *"),
    ("Text", "const char *"),
    ("Texts", "const char *const *"),
    ("Option<Callback>", "upstreamproxy_log_callback"),
    ("Option<&Config>", "upstreamproxy_config *"),
    ("Option<Box<Config>>", "upstreamproxy_config *"),
    (
        "Option<&mut MaybeUninit<Option<Box<Config>>>>",
        "upstreamproxy_config **",
    ),
    ("Option<&Proxy>", "upstreamproxy *"),
    ("Option<Box<Proxy>>", "upstreamproxy *"),
    (
        "Option<&mut MaybeUninit<Option<Box<Proxy>>>>",
        "upstreamproxy **",
    ),
    ("Room<Stats>", "struct upstreamproxy_stats *"),
    ("Room<Report>", "struct upstreamproxy_report *"),
];

/// What stands in C for a type of Rust.
fn in_c(rust: &str) -> String {
    let found = TYPES.iter().find(|(ours, _)| *ours == rust);
    found
        .unwrap_or_else(|| panic!("{rust} has no counterpart in the table"))
        .1
        .to_owned()
}

/// The text without comments, preprocessor lines and runs of blanks.
fn bare(header: &str) -> String {
    let mut text = String::new();
    let mut rest = header;
    while let Some((before, comment)) = rest.split_once("/*") {
        text += before;
        rest = comment.split_once("*/").expect("the comment's end").1;
    }
    text += rest;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    words.join(" ")
}

/// `const char *name` as type and name. A const opaque object is the same to Rust as one that is not.
fn typed(declaration: &str) -> (String, String) {
    let at = declaration
        .rfind(|c: char| !c.is_alphanumeric() && c != '_')
        .map_or(0, |at| at + 1);
    let (kind, name) = declaration.split_at(at);
    let kind = kind.trim();
    let opaque = kind
        .strip_prefix("const ")
        .filter(|kind| kind.starts_with("upstreamproxy"));
    (opaque.unwrap_or(kind).to_owned(), name.to_owned())
}

/// Each function of the header: the type that it returns, and those of its arguments with their names.
type Functions = BTreeMap<String, (String, Vec<(String, String)>)>;

fn declared() -> Functions {
    let text = bare(HEADER);
    let declarations = text
        .split(';')
        .map(str::trim)
        .filter(|part| part.ends_with(')') && !part.contains("typedef"));
    declarations
        .map(|declaration| {
            // What the first one has in front of it is the block for C++.
            let declaration = declaration.rsplit(['{', '}']).next().unwrap().trim();
            let (head, arguments) = declaration.split_once('(').unwrap();
            let (returns, name) = typed(head);
            let arguments = arguments
                .trim_end_matches(')')
                .split(", ")
                .filter(|argument| *argument != "void")
                .map(typed);
            (name, (returns, arguments.collect()))
        })
        .collect()
}

fn exported() -> Functions {
    let blocks = EXPORTS.split("#[unsafe(no_mangle)]\n").skip(1);
    blocks
        .map(|block| {
            let head = block.split_once(" {\n").unwrap().0;
            let head = head.split_whitespace().collect::<Vec<_>>().join(" ");
            let head = head
                .strip_prefix("extern \"C\" fn ")
                .expect("a function for C");
            let (name, rest) = head.split_once('(').unwrap();
            let (arguments, returns) = rest.rsplit_once(')').unwrap();
            let returns = match returns.trim().strip_prefix("-> ") {
                Some(kind) => in_c(kind),
                None => "void".to_owned(),
            };
            let arguments = arguments
                .split(',')
                .map(str::trim)
                .filter(|argument| !argument.is_empty())
                .map(|argument| {
                    let (name, kind) = argument.split_once(": ").unwrap();
                    (in_c(kind), name.to_owned())
                });
            (name.to_owned(), (returns, arguments.collect()))
        })
        .collect()
}

#[test]
fn every_function_is_declared_as_it_is_exported() {
    assert!(exported().len() > 20, "{:?}", exported().keys());
    assert_eq!(declared(), exported());
}

#[test]
fn every_struct_has_the_fields_of_its_namesake_in_their_order() {
    for (name, ours) in [("stats", "Stats"), ("report", "Report")] {
        let header = bare(HEADER);
        let fields = |text: &str, start: &str| -> Vec<String> {
            let body = text.split_once(start).expect(start).1;
            let body = body.split_once('}').unwrap().0;
            let words = body.split(|c: char| !c.is_alphanumeric() && c != '_');
            words
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        // `uint64_t live` there, `live: u64` here.
        let there = fields(&header, &format!("struct upstreamproxy_{name} {{"));
        let here = fields(EXPORTS, &format!("#[repr(C)]\nstruct {ours} {{"));
        let turned: Vec<String> = there
            .chunks(2)
            .flat_map(|pair| {
                assert_eq!(pair[0], "uint64_t");
                [pair[1].clone(), "u64".to_owned()]
            })
            .collect();
        assert_eq!(turned, here, "{name}");
    }
}

#[test]
fn every_constant_has_the_value_of_its_namesake() {
    let mut there: BTreeMap<String, i64> = BTreeMap::new();
    for line in HEADER.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["#define", name, value, ..] = words[..] {
            let name = name.strip_prefix("UPSTREAMPROXY_").unwrap();
            let value = value.trim_matches(['(', ')']).parse().unwrap();
            there.insert(name.to_owned(), value);
        }
    }
    let here: BTreeMap<String, i64> = ANSWERS
        .lines()
        .filter_map(|line| line.strip_prefix("pub(super) const "))
        .map(|line| {
            let (name, rest) = line.split_once(": ").unwrap();
            let value = rest.split_once(" = ").unwrap().1.trim_end_matches(';');
            (name.to_owned(), value.parse().unwrap())
        })
        .collect();
    assert!(there.len() > 10);
    assert_eq!(there, here);
}

#[test]
fn every_setting_is_told_of() {
    let names = SETTINGS.split_once("const NAMES").unwrap().1;
    let names = names.split_once("];").unwrap().0;
    let mut here: Vec<&str> = names.split('"').skip(1).step_by(2).collect();
    here.push("harden");
    let there: Vec<&str> = HEADER
        .lines()
        .filter_map(|line| line.strip_prefix(" *   "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(there, here);
}
