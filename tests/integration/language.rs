//! The language of this repository: plain technical English, and comments that fit on a screen.
//!
//! The tests search for words and phrases that were common in earlier texts and that are hard to
//! read, and for comments that are too wide. This file is exempt from the search, because it
//! contains the list.

use std::fs;
use std::path::{Path, PathBuf};

/// Words that are not used. `_`, camelCase boundaries and apostrophes separate words.
const WORDS: [&str; 14] = [
    "whom", "whoever", "nobody", "told", "tells", "mend", "mends", "mended", "folder", "folders",
    "stands", "lies", "wants", "blanks",
];

/// A word that is allowed inside identifiers: rustls has `wants_read` and `wants_write`.
const ALLOWED_IN_IDENTIFIERS: &str = "wants";

/// Phrases that are not used. The words may be separated by line breaks and comment prefixes.
const PHRASES: [&[&str]; 6] = [
    &["be", "had"],
    &["came", "to"],
    &["at", "hand"],
    &["of", "one", "s", "own"],
    &["for", "who"],
    &["for", "ever"],
];

/// The directories and files that are searched.
const SEARCHED: [&str; 7] = [
    "src",
    "tests",
    "benches",
    ".ci",
    ".github",
    "README.md",
    "Cargo.toml",
];

/// The directories with Rust code.
const RUST: [&str; 3] = ["src", "tests", "benches"];

/// Directories that contain no text of this repository: fuzz inputs and build output.
const SKIPPED: [&str; 4] = ["corpus", "target", "node_modules", "__pycache__"];

/// The types of the files that are searched. Scripts in `.ci` have no extension.
const EXTENSIONS: [&str; 7] = ["rs", "md", "h", "py", "c", "js", "toml"];

/// This file.
const EXEMPT: &str = "tests/integration/language.rs";

/// The maximum width of comments.
const COLUMNS: usize = 100;

/// A word in lower case and its byte range in the text.
#[derive(Debug)]
struct Word {
    text: String,
    start: usize,
    end: usize,
}

/// Splits `text` into words of letters. The letter after a backslash belongs to an escape sequence
/// and is skipped.
fn words(text: &str) -> Vec<Word> {
    let mut found: Vec<Word> = Vec::new();
    let mut escaped = false;
    let mut previous = ' ';
    let mut characters = text.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        if escaped || !c.is_alphabetic() {
            escaped = !escaped && c == '\\';
            previous = ' ';
            continue;
        }
        let next = characters.peek().map_or(' ', |&(_, next)| next);
        // `fooBar` and `HTTPRequest` contain two words each.
        let starts = !previous.is_alphabetic()
            || previous.is_lowercase() && c.is_uppercase()
            || previous.is_uppercase() && c.is_uppercase() && next.is_lowercase();
        let end = at + c.len_utf8();
        match found.last_mut() {
            Some(word) if !starts => {
                word.text.extend(c.to_lowercase());
                word.end = end;
            }
            _ => found.push(Word {
                text: c.to_lowercase().collect(),
                start: at,
                end,
            }),
        }
        previous = c;
    }
    found
}

/// Whether the text between two words lets them form a phrase.
fn joins_a_phrase(gap: &str) -> bool {
    gap.split('\n').enumerate().all(|(number, line)| {
        let line = line.trim();
        let line = if number == 0 {
            line
        } else {
            line.trim_start_matches(['/', '!', '*', '#', '>', '-', ' '])
        };
        line.chars().all(|c| matches!(c, '_' | '\'' | '’' | '\\'))
    })
}

/// Whether the word is a part of a longer identifier.
fn is_in_identifier(text: &str, word: &Word) -> bool {
    let before = text[..word.start].chars().next_back();
    let after = text[word.end..].chars().next();
    [before, after]
        .into_iter()
        .flatten()
        .any(|c| c == '_' || c.is_alphanumeric())
}

/// All banned words and phrases in `text`, each with its line number, in the order of the text.
fn banned(text: &str) -> Vec<(usize, String)> {
    let words = words(text);
    let mut found = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let line = || text[..word.start].matches('\n').count() + 1;
        let allowed = word.text == ALLOWED_IN_IDENTIFIERS && is_in_identifier(text, word);
        if WORDS.contains(&word.text.as_str()) && !allowed {
            found.push((line(), word.text.clone()));
        }
        for phrase in PHRASES {
            let Some(candidate) = words.get(index..index + phrase.len()) else {
                continue;
            };
            let same = candidate.iter().map(|word| word.text.as_str());
            let joined = candidate
                .windows(2)
                .all(|pair| joins_a_phrase(&text[pair[0].end..pair[1].start]));
            if same.eq(phrase.iter().copied()) && joined {
                found.push((line(), phrase.join(" ")));
            }
        }
    }
    found
}

/// The line numbers of comments in Rust code that are too wide. Lines of tables
/// and lines that start with a URL or a link definition cannot be wrapped.
fn wide_comments(text: &str) -> Vec<usize> {
    let is_wide = |line: &str| {
        let Some(comment) = line.trim_start().strip_prefix("//") else {
            return false;
        };
        let comment = comment.trim_start_matches(['/', '!']).trim_start();
        let comment = comment.strip_prefix("- ").unwrap_or(comment);
        let first = comment.split_whitespace().next().unwrap_or_default();
        let is_link = first.contains("://") || first.starts_with('[') && first.ends_with("]:");
        let fixed = is_link || comment.starts_with('|');
        line.chars().count() > COLUMNS && !fixed
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| is_wide(line))
        .map(|(index, _)| index + 1)
        .collect()
}

/// All files at `roots` (relative to the package), as relative paths with their texts.
fn files(roots: &[&str], is_searched: impl Fn(&Path) -> bool) -> Vec<(String, String)> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pending: Vec<PathBuf> = roots.iter().map(|root| package.join(root)).collect();
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let name = path.file_name().and_then(|name| name.to_str());
            if !SKIPPED.contains(&name.unwrap_or_default()) {
                let entries = fs::read_dir(&path).unwrap();
                pending.extend(entries.map(|entry| entry.unwrap().path()));
            }
            continue;
        }
        let relative = path.strip_prefix(package).unwrap();
        let name = relative.to_str().unwrap();
        if is_searched(relative) && name != EXEMPT {
            found.push((name.to_owned(), fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| extensions.contains(&extension))
}

#[test]
fn no_banned_word_is_used() {
    let is_script = |path: &Path| path.starts_with(".ci") && path.extension().is_none();
    let files = files(&SEARCHED, |path| {
        has_extension(path, &EXTENSIONS) || is_script(path)
    });
    assert!(files.len() > 100, "the files are not found");
    let found: Vec<String> = files
        .iter()
        .flat_map(|(name, text)| {
            // A key of systemd units.
            let found = banned(&text.replace("Wants=", "Requires=")).into_iter();
            found.map(move |(line, word)| format!("{name}:{line}:{word}"))
        })
        .collect();
    assert!(found.is_empty(), "{}\n{}", found.len(), found.join("\n"));
}

#[test]
fn comments_wrap_at_100_columns() {
    let files = files(&RUST, |path| has_extension(path, &["rs"]));
    assert!(files.len() > 100, "the files are not found");
    let found: Vec<String> = files
        .iter()
        .flat_map(|(name, text)| {
            let lines = wide_comments(text).into_iter();
            lines.map(move |line| format!("{name}:{line}"))
        })
        .collect();
    assert!(found.is_empty(), "{}\n{}", found.len(), found.join("\n"));
}

// Tests of the search itself.

/// The banned words and phrases in `text`, without line numbers.
fn found_in(text: &str) -> Vec<String> {
    banned(text).into_iter().map(|(_, word)| word).collect()
}

#[test]
fn every_banned_word_is_found() {
    for word in WORDS {
        assert_eq!(found_in(word), [word]);
        assert_eq!(found_in(&format!("It {word}.\n")), [word]);
        assert_eq!(found_in(&word.to_uppercase()), [word]);
    }
    for phrase in PHRASES {
        assert_eq!(found_in(&phrase.join(" ")), [phrase.join(" ")]);
    }
}

#[test]
fn words_in_identifiers_are_found() {
    for (text, word) in [
        ("let private_folder = 1;", "folder"),
        ("fn what_is_told() {}", "told"),
        ("struct ToldTwice;", "told"),
        ("let wasTold = 1;", "told"),
        ("const MY_FOLDERS: u8 = 1;", "folders"),
        ("HTTPTold", "told"),
        ("nobody's", "nobody"),
        (r#""\ntold""#, "told"),
        (r#""\\told""#, "told"),
        ("fn it_came_to() {}", "came to"),
    ] {
        assert_eq!(found_in(text), [word], "{text}");
    }
}

#[test]
fn other_words_are_not_found() {
    for text in [
        "applies relies replies",
        "standby stand mending amend",
        "unfolder folderol",
        "for whole, for whoeverish, before who",
        "tls.wants_read() && tls.wants_write()",
        "isWantsRead",
        "at handshake",
        "be hadoop",
        "forever",
        "came\ttogether",
        "of their own",
        "came. To",
        "came, to",
        "let be = had(at, hand);",
        r#""\told""#,
    ] {
        assert_eq!(found_in(text), [""; 0], "{text}");
    }
    assert_eq!(found_in("it wants more"), ["wants"]);
}

#[test]
fn phrases_are_found_across_lines_of_a_comment() {
    for text in [
        "    /// This came\n    /// to an end.",
        "//! It came\n//!   to an end.",
        "/* It came\n * to an end. */",
        "# It came\n# to an end.",
        "It came  \n\n to an end.",
        "> It came\n> to an end.",
    ] {
        assert_eq!(found_in(text), ["came to"], "{text}");
    }
    assert_eq!(found_in("// of one's\n// own"), ["of one s own"]);
    assert_eq!(found_in("of one’s own"), ["of one s own"]);
}

#[test]
fn the_line_of_a_word_is_reported() {
    let text = "first\nsecond is told\n\nit came\nto that\n";
    let expected = [(2, "told".to_owned()), (4, "came to".to_owned())];
    assert_eq!(banned(text), expected);
}

#[test]
fn wide_comments_are_found_and_code_tables_and_urls_are_not() {
    let wide = "word ".repeat(20) + "word";
    let url = "https://a.test/".to_owned() + &"a".repeat(COLUMNS);
    for (line, found) in [
        (format!("// {wide}"), true),
        (format!("    /// {wide}"), true),
        (format!("//! {wide} {url}"), true),
        (format!("/// see {url}"), true),
        (format!("// {}", &wide[..COLUMNS - 3]), false),
        (format!("let text = \"{wide}\"; // comment"), false),
        (format!("/// | {wide} |"), false),
        (format!("// {url}"), false),
        (format!("//! - {url}"), false),
        (format!("/// [page]: {url}"), false),
    ] {
        assert_eq!(wide_comments(&line).len(), usize::from(found), "{line}");
    }
}
