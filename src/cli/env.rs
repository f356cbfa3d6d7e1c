//! `env`: print the variables of the running `serve` in the syntax of a shell or another consumer,
//! or how to undo them.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use serde::{Serialize, Serializer};

use crate::config::Environment;
use crate::setup::child_env;

use super::exit_status::ExitStatus;
use super::output::{eprint_line, json_line, print};
use super::state;

/// An output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// POSIX shells: `eval "$(upstreamproxy env)"`.
    #[default]
    Sh,
    /// fish: `upstreamproxy env --format fish | source`.
    Fish,
    /// PowerShell: `upstreamproxy env --format powershell | Out-String | Invoke-Expression`.
    PowerShell,
    /// One flat object.
    Json,
    /// `NAME=value` lines, quoted only where they must be.
    Dotenv,
    /// GitHub Actions: lines for the file `$GITHUB_ENV`.
    GitHub,
    /// `docker run --env-file`: `NAME=value` lines without quotes.
    Docker,
    /// systemd: `Environment=` lines for the section `[Service]` of a drop-in.
    Systemd,
}

impl Format {
    /// The name of each format, in the order of `ALL`.
    pub(crate) const NAMES: &[&str] = &[
        "sh",
        "fish",
        "powershell",
        "json",
        "dotenv",
        "github",
        "docker",
        "systemd",
    ];
    pub(super) const ALL: &[Self] = &[
        Self::Sh,
        Self::Fish,
        Self::PowerShell,
        Self::Json,
        Self::Dotenv,
        Self::GitHub,
        Self::Docker,
        Self::Systemd,
    ];

    /// Whether a variable can be removed in this format.
    pub(crate) fn can_unset(self) -> bool {
        matches!(self, Self::Sh | Self::Fish | Self::PowerShell | Self::Json)
    }
}

/// A variable and its value; `None` removes it.
type Change = (String, Option<OsString>);

/// Prints the variables. `NO_PROXY` is merged with that of the calling shell.
pub(crate) fn run(format: Format, environment: &Environment) -> ExitStatus {
    let Some(home) = environment.home() else {
        eprint_line("HOME is not an absolute path; set it to find the running serve");
        return ExitStatus::FAILED;
    };
    let Some(running) = state::running(&home) else {
        eprint_line("no serve is running under this HOME; start one with `upstreamproxy serve`");
        return ExitStatus::FAILED;
    };
    let variables = running.variables(environment).into_iter();
    print_changes(format, variables.map(|(name, value)| (name, Some(value))))
}

/// Prints how to undo what `env` or `run` has set in the calling shell. No `serve` is needed.
pub(crate) fn unset(format: Format, environment: &Environment) -> ExitStatus {
    let removal = child_env::removal(environment);
    if removal.is_empty() {
        eprint_line("no variables of this program are set here, so nothing is removed");
    }
    print_changes(format, removal.into_iter())
}

fn print_changes(format: Format, changes: impl Iterator<Item = Change>) -> ExitStatus {
    let (changes, impossible): (Vec<_>, Vec<_>) = changes.partition(|change| format.has(change));
    for (name, _) in impossible {
        eprint_line(&format!(
            "{name} has several lines, which this format does not have; it is left out"
        ));
    }
    print(&format.render(&changes));
    ExitStatus::SUCCESS
}

/// Variables as one JSON object, in their order.
#[derive(Clone, Copy)]
pub(crate) struct Variables<'a>(pub(crate) &'a [(String, OsString)]);

impl Serialize for Variables<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0
                .iter()
                .map(|(name, value)| (name, value.to_string_lossy())),
        )
    }
}

impl Format {
    /// Whether the format can express `change`.
    fn has(self, (_, value): &Change) -> bool {
        let lines = |value: &OsString| value.as_bytes().iter().any(|b| b"\r\n".contains(b));
        self != Self::Docker || !value.as_ref().is_some_and(lines)
    }

    /// The changes in this format. `sh` and `fish` keep every byte of a value; the others are text.
    fn render(self, changes: &[Change]) -> Vec<u8> {
        if self == Self::Json {
            let text = |value: &OsString| value.to_string_lossy().into_owned();
            let values = changes
                .iter()
                .map(|(name, value)| (name, value.as_ref().map(text)));
            return json_line(&Map(values.collect())).into_bytes();
        }
        let line = |(name, value): &Change| match value {
            Some(value) => self.assignment(name, value),
            None => self.removal(name).into_bytes(),
        };
        changes.iter().flat_map(line).collect()
    }

    /// The line that sets a variable.
    fn assignment(self, name: &str, value: &OsStr) -> Vec<u8> {
        let (bytes, text) = (value.as_bytes(), value.to_string_lossy());
        let line = match self {
            Self::Sh | Self::Json => {
                let quoted = replace(bytes, b'\'', br"'\''");
                return [b"export ", name.as_bytes(), b"='", &quoted, b"'\n"].concat();
            }
            Self::Fish => {
                let quoted = replace(&replace(bytes, b'\\', br"\\"), b'\'', br"\'");
                return [b"set -gx ", name.as_bytes(), b" '", &quoted, b"'\n"].concat();
            }
            Self::PowerShell => format!("$env:{name} = {}", quote_for_powershell(&text)),
            Self::Dotenv => format!("{name}={}", quote_for_dotenv(&text)),
            Self::GitHub if text.contains(['\r', '\n']) => {
                let delimiter = delimiter_for(&text);
                format!("{name}<<{delimiter}\n{text}\n{delimiter}")
            }
            Self::GitHub | Self::Docker => format!("{name}={text}"),
            Self::Systemd => format!("Environment=\"{name}={}\"", escape_for_systemd(&text)),
        };
        (line + "\n").into_bytes()
    }

    /// The line that removes a variable. The formats that have none are refused before.
    fn removal(self, name: &str) -> String {
        match self {
            Self::Fish => format!("set -eg {name}\n"),
            Self::PowerShell => {
                format!("Remove-Item Env:{name} -ErrorAction SilentlyContinue\n")
            }
            _ => format!("unset {name}\n"),
        }
    }
}

/// One JSON object in the order of its entries; a value that is `None` is null.
struct Map<'a>(Vec<(&'a String, Option<String>)>);

impl Serialize for Map<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// A line that is none of the lines of `text`.
fn delimiter_for(text: &str) -> String {
    let mut delimiter = String::from("EOF");
    while text.contains(&delimiter) {
        delimiter.push('_');
    }
    delimiter
}

/// The value of an `Environment=` line in double quotes (systemd.syntax(7)): escapes as in C, and
/// `%` begins a specifier.
pub(super) fn escape_for_systemd(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            '%' => escaped.push_str("%%"),
            '\n' => escaped.push_str("\\n"),
            c if c.is_ascii_control() => {
                let _ = write!(escaped, "\\x{:02x}", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// `bytes` with every `old` replaced.
fn replace(bytes: &[u8], old: u8, new: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> = bytes.split(|&byte| byte == old).collect();
    parts.join(new)
}

/// In PowerShell four typographic quotes are single quotes too. Each is escaped by doubling it.
fn quote_for_powershell(text: &str) -> String {
    let mut quoted = text.to_owned();
    for quote in ["'", "\u{2018}", "\u{2019}", "\u{201a}", "\u{201b}"] {
        quoted = quoted.replace(quote, &quote.repeat(2));
    }
    format!("'{quoted}'")
}

/// All dialects of dotenv read plain words (the only form that `docker run --env-file` reads), and
/// nearly all read single quotes. Double quotes are for values that neither can contain.
fn quote_for_dotenv(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:,@%+=*-[]".contains(c);
    if text.chars().all(plain) {
        return text.to_owned();
    }
    if !text.contains(['\'', '\n', '\r', '\\']) {
        return format!("'{text}'");
    }
    let mut quoted = text.replace('\\', r"\\");
    for special in ["\"", "$", "`"] {
        quoted = quoted.replace(special, &format!("\\{special}"));
    }
    let quoted = quoted.replace('\n', r"\n").replace('\r', r"\r");
    format!("\"{quoted}\"")
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::process::Command;

    use super::*;

    fn variables() -> Vec<Change> {
        [
            ("PLAIN", "http://127.0.0.1:1234"),
            ("QUOTES", r#"it's "a" `b` $(c) \ $d ’x‘"#),
            ("LINES", "one\ntwo\n"),
            ("SPACES", "  a  b  "),
            ("EMPTY", ""),
        ]
        .map(|(name, value)| (name.to_owned(), Some(value.into())))
        .to_vec()
    }

    /// The value of the variable `name` in a shell that has run `script`.
    fn seen_by(shell: &str, script: &[u8], name: &str) -> Vec<u8> {
        let mut line = OsString::from_vec(script.to_vec());
        line.push(format!("\nprintf %s. \"${name}\""));
        let output = Command::new(shell).arg("-c").arg(line).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    #[test]
    fn a_posix_shell_gets_every_byte() {
        let mut variables = variables();
        variables.push((
            "BYTES".into(),
            Some(OsString::from_vec((1..=255).collect::<Vec<u8>>())),
        ));
        let script = Format::Sh.render(&variables);
        for (name, value) in &variables {
            let mut expected = value.as_ref().unwrap().as_bytes().to_vec();
            expected.push(b'.');
            assert_eq!(seen_by("sh", &script, name), expected, "{name}");
        }
    }

    #[test]
    fn json_is_one_flat_object_in_the_order_of_the_variables() {
        let text = String::from_utf8(Format::Json.render(&variables())).unwrap();
        assert!(text.starts_with(r#"{"PLAIN":"http://127.0.0.1:1234","QUOTES":"#));
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (name, expected) in variables() {
            assert_eq!(value[&name], expected.unwrap().to_str().unwrap());
        }
    }

    #[test]
    fn fish_escapes_only_the_quote_and_the_backslash() {
        let one = [("A".to_owned(), Some(r"it's \ $x".into()))];
        assert_eq!(Format::Fish.render(&one), b"set -gx A 'it\\'s \\\\ $x'\n");
    }

    #[test]
    fn powershell_doubles_every_kind_of_single_quote() {
        let one = [("A".to_owned(), Some("it's ’x‘ $y".into()))];
        let text = String::from_utf8(Format::PowerShell.render(&one)).unwrap();
        assert_eq!(text, "$env:A = 'it''s ’’x‘‘ $y'\n");
    }

    #[test]
    fn dotenv_quotes_only_what_must_be_quoted() {
        let text = String::from_utf8(Format::Dotenv.render(&variables())).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "PLAIN=http://127.0.0.1:1234",
                r#"QUOTES="it's \"a\" \`b\` \$(c) \\ \$d ’x‘""#,
                r#"LINES="one\ntwo\n""#,
                "SPACES='  a  b  '",
                "EMPTY=",
            ]
        );
    }

    #[test]
    fn github_gets_a_delimiter_that_is_not_in_the_value() {
        let lines = [
            ("A".to_owned(), Some("a%b 'c'".into())),
            ("B".to_owned(), Some("one\nEOF\nEOF_\n".into())),
        ];
        let text = String::from_utf8(Format::GitHub.render(&lines)).unwrap();
        assert_eq!(text, "A=a%b 'c'\nB<<EOF__\none\nEOF\nEOF_\n\nEOF__\n");
    }

    #[test]
    fn docker_gets_no_quotes_and_only_single_lines() {
        let has: Vec<Change> = variables()
            .into_iter()
            .filter(|change| Format::Docker.has(change))
            .collect();
        let text = String::from_utf8(Format::Docker.render(&has)).unwrap();
        let expected = "PLAIN=http://127.0.0.1:1234\nQUOTES=it's \"a\" `b` $(c) \\ $d ’x‘\n\
            SPACES=  a  b  \nEMPTY=\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn systemd_gets_escapes_of_c_and_no_specifier() {
        let one = [("A".to_owned(), Some("50% of \"$x\"\n\t\\".into()))];
        let text = String::from_utf8(Format::Systemd.render(&one)).unwrap();
        assert_eq!(text, "Environment=\"A=50%% of \\\"$x\\\"\\n\\x09\\\\\"\n");
    }

    #[test]
    fn a_removed_variable_is_unset_in_a_shell_and_null_in_json() {
        let changes = [
            ("A".to_owned(), None),
            ("B".to_owned(), Some(OsString::from("b"))),
        ];
        for (format, expected) in [
            (Format::Sh, "unset A\nexport B='b'\n"),
            (Format::Fish, "set -eg A\nset -gx B 'b'\n"),
            (
                Format::PowerShell,
                "Remove-Item Env:A -ErrorAction SilentlyContinue\n$env:B = 'b'\n",
            ),
            (Format::Json, "{\"A\":null,\"B\":\"b\"}\n"),
        ] {
            assert!(format.can_unset());
            assert_eq!(
                String::from_utf8(format.render(&changes)).unwrap(),
                expected
            );
        }
    }
}
