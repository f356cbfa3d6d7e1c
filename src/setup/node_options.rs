//! The option with which Node loads a module into every program: `NODE_OPTIONS`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::setup::tool_files::NODE_HOOK_SUFFIX;

/// One token: programs that split the value themselves keep it together.
const REQUIRE: &[u8] = b"--require=";

/// The options `inherited`, and at their end the one that loads `hook`. The option of an outer
/// start is removed.
pub(super) fn loading(inherited: &OsStr, hook: &Path) -> OsString {
    let mut options = split(inherited.as_bytes());
    options.retain(|option| !loads_a_hook(option));
    let own = quoted(&[REQUIRE, hook.as_os_str().as_bytes()].concat());
    options.push(&own);
    OsString::from_vec(options.join(&b' '))
}

/// The options without the one that loads a hook. `None`: none does.
pub(super) fn without_hook(options: &OsStr) -> Option<OsString> {
    let options = split(options.as_bytes());
    let (hooks, others): (Vec<&[u8]>, Vec<&[u8]>) =
        options.into_iter().partition(|one| loads_a_hook(one));
    (!hooks.is_empty()).then(|| OsString::from_vec(others.join(&b' ')))
}

fn loads_a_hook(option: &[u8]) -> bool {
    let unquoted: Vec<u8> = option.iter().copied().filter(|&c| c != b'"').collect();
    unquoted.starts_with(REQUIRE) && unquoted.ends_with(NODE_HOOK_SUFFIX.as_bytes())
}

/// The options as they are written: Node splits at spaces that are not in double quotes. Inside
/// quotes, a backslash keeps the next character.
fn split(options: &[u8]) -> Vec<&[u8]> {
    let (mut in_quotes, mut is_escaped) = (false, false);
    let is_separator = |&c: &u8| {
        if is_escaped {
            is_escaped = false;
        } else if c == b'\\' {
            is_escaped = in_quotes;
        } else if c == b'"' {
            in_quotes = !in_quotes;
        }
        c == b' ' && !in_quotes
    };
    let parts = options.split(is_separator);
    parts.filter(|part| !part.is_empty()).collect()
}

/// `option` as one option, in quotes only if it needs them.
fn quoted(option: &[u8]) -> Vec<u8> {
    if !option.iter().any(|c| b" \"".contains(c)) {
        return option.to_owned();
    }
    let mut quoted = vec![b'"'];
    for &c in option {
        if b"\"\\".contains(&c) {
            quoted.push(b'\\');
        }
        quoted.push(c);
    }
    quoted.push(b'"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_is_added_once_and_the_other_options_stay() {
        const HOOK: &str = "/h/b.node-hook.cjs";
        for (inherited, rest) in [
            ("", ""),
            ("--no-warnings", "--no-warnings "),
            (
                "--require=/o/b.node-hook.cjs  -r \"/a b/c.cjs\"",
                "-r \"/a b/c.cjs\" ",
            ),
            (
                r#""--require=/o \"x/b.node-hook.cjs" --title="a \" b""#,
                r#"--title="a \" b" "#,
            ),
            ("--require /o/c.cjs", "--require /o/c.cjs "),
        ] {
            let once = loading(OsStr::new(inherited), Path::new(HOOK));
            assert_eq!(once, *format!("{rest}--require={HOOK}"), "{inherited}");
            assert_eq!(loading(&once, Path::new(HOOK)), once);
            assert_eq!(without_hook(&once).unwrap(), rest.trim_end());
        }
    }

    #[test]
    fn a_path_with_spaces_and_quotes_is_one_option() {
        for (path, option) in [
            (r"/a\b.node-hook.cjs", r"--require=/a\b.node-hook.cjs"),
            ("/a b.node-hook.cjs", "\"--require=/a b.node-hook.cjs\""),
            (
                r#"/a\"b c.node-hook.cjs"#,
                r#""--require=/a\\\"b c.node-hook.cjs""#,
            ),
        ] {
            let once = loading(OsStr::new("-x"), Path::new(path));
            assert_eq!(once, *format!("-x {option}"));
            assert_eq!(loading(&once, Path::new(path)), once);
        }
    }
}
