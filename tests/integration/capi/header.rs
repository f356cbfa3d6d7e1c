//! Tests that compare `upstreamproxy.h` with the code: functions with their types, structs,
//! constants, settings.
//!
//! They read both as text, which works because both are written in one simple style. The hosts
//! beside this file show that the header compiles and works.

use std::collections::BTreeMap;

const HEADER: &str = include_str!("../../../src/capi/upstreamproxy.h");
const EXPORTS: &str = include_str!("../../../src/capi/mod.rs");
const CODES: &str = include_str!("../../../src/capi/codes.rs");

/// Each type in an exported function, and its name in C.
const TYPES: &[(&str, &str)] = &[
    ("u16", "uint16_t"),
    ("u32", "uint32_t"),
    ("i64", "int64_t"),
    ("usize", "size_t"),
    ("c_int", "int"),
    ("*mut c_void", "void *"),
    ("*const c_char", "const char *"),
    ("*const *mut c_char", "char *const *"),
    ("BytesPtr", "const void *"),
    ("CStrPtr", "const char *"),
    ("CStrArray", "const char *const *"),
    ("Option<Callback>", "upstreamproxy_log_callback"),
    ("Option<&ConfigHandle>", "upstreamproxy_config *"),
    ("Option<Box<ConfigHandle>>", "upstreamproxy_config *"),
    (
        "Option<&mut MaybeUninit<Option<Box<ConfigHandle>>>>",
        "upstreamproxy_config **",
    ),
    ("Option<&Proxy>", "upstreamproxy *"),
    ("Option<Box<Proxy>>", "upstreamproxy *"),
    (
        "Option<&mut MaybeUninit<Option<Box<Proxy>>>>",
        "upstreamproxy **",
    ),
    ("OutPtr<StatsOut>", "struct upstreamproxy_stats *"),
    ("OutPtr<ReportOut>", "struct upstreamproxy_report *"),
];

/// The C type for a Rust type.
fn in_c(rust: &str) -> String {
    let found = TYPES.iter().find(|(known, _)| *known == rust);
    found
        .unwrap_or_else(|| panic!("{rust} is missing in the table"))
        .1
        .to_owned()
}

/// The text without comments, preprocessor lines and repeated spaces.
fn code_of(header: &str) -> String {
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

/// Splits `const char *name` into type and name. Rust does not distinguish const opaque objects.
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

/// Each function: its return type, and its arguments with their types and names.
type Functions = BTreeMap<String, (String, Vec<(String, String)>)>;

fn declared() -> Functions {
    let text = code_of(HEADER);
    let declarations = text
        .split(';')
        .map(str::trim)
        .filter(|part| part.ends_with(')') && !part.contains("typedef"));
    declarations
        .map(|declaration| {
            // The block for C++ precedes the first function.
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
fn every_struct_has_the_same_fields_in_the_same_order() {
    for (name, rust) in [("stats", "StatsOut"), ("report", "ReportOut")] {
        let header = code_of(HEADER);
        let fields = |text: &str, start: &str| -> Vec<String> {
            let body = text.split_once(start).expect(start).1;
            let body = body.split_once('}').unwrap().0;
            let words = body.split(|c: char| !c.is_alphanumeric() && c != '_');
            words
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        // `uint64_t live` in C is `live: u64` in Rust.
        let in_header = fields(&header, &format!("struct upstreamproxy_{name} {{"));
        let in_code = fields(EXPORTS, &format!("#[repr(C)]\nstruct {rust} {{"));
        let translated: Vec<String> = in_header
            .chunks(2)
            .flat_map(|pair| {
                assert_eq!(pair[0], "uint64_t");
                [pair[1].clone(), "u64".to_owned()]
            })
            .collect();
        assert_eq!(translated, in_code, "{name}");
    }
}

#[test]
fn every_constant_has_the_same_value() {
    let mut in_header: BTreeMap<String, i64> = BTreeMap::new();
    for line in HEADER.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["#define", name, value, ..] = words[..] {
            let name = name.strip_prefix("UPSTREAMPROXY_").unwrap();
            let value = value.trim_matches(['(', ')']).parse().unwrap();
            in_header.insert(name.to_owned(), value);
        }
    }
    let in_code: BTreeMap<String, i64> = CODES
        .lines()
        .filter_map(|line| line.strip_prefix("pub(super) const "))
        .map(|line| {
            let (name, rest) = line.split_once(": ").unwrap();
            let value = rest.split_once(" = ").unwrap().1.trim_end_matches(';');
            (name.to_owned(), value.parse().unwrap())
        })
        .collect();
    assert!(in_header.len() > 10);
    assert_eq!(in_header, in_code);
}

#[test]
fn every_setting_is_documented() {
    let documented: Vec<&str> = HEADER
        .lines()
        .filter_map(|line| line.strip_prefix(" *   "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let known: Vec<&str> = upstreamproxy::Config::setting_names().collect();
    assert_eq!(documented, known);
}
