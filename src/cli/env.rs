//! `env`: print the variables of the running `serve` in the syntax of a shell.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::config::Environment;

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
}

impl Format {
    /// The name of each format, in the order of `ALL`.
    pub(crate) const NAMES: &[&str] = &["sh", "fish", "powershell", "json", "dotenv"];
    const ALL: [Self; 5] = [
        Self::Sh,
        Self::Fish,
        Self::PowerShell,
        Self::Json,
        Self::Dotenv,
    ];
}

impl FromStr for Format {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut formats = Self::NAMES.iter().zip(Self::ALL);
        let found = formats.find(|(name, _)| **name == text);
        found.map(|(_, format)| format).ok_or(())
    }
}

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
    print(&format.render(&running.variables(environment)));
    ExitStatus::SUCCESS
}

/// Variables as one JSON object, in their order.
#[derive(Clone, Copy)]
pub(crate) struct Variables<'a>(pub(crate) &'a [(String, OsString)]);

impl Serialize for Variables<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = |(name, value): &'_ (String, OsString)| {
            (name.clone(), value.to_string_lossy().into_owned())
        };
        serializer.collect_map(self.0.iter().map(text))
    }
}

impl Format {
    /// The variables in this format. `sh` and `fish` keep every byte of a value; the others are
    /// text.
    pub(crate) fn render(self, variables: &[(String, OsString)]) -> Vec<u8> {
        let line = |(name, value): &(String, OsString)| {
            let (bytes, text) = (value.as_bytes(), value.to_string_lossy());
            match self {
                Self::Sh | Self::Json => {
                    let quoted = replace(bytes, b'\'', br"'\''");
                    [b"export ", name.as_bytes(), b"='", &quoted, b"'\n"].concat()
                }
                Self::Fish => {
                    let quoted = replace(&replace(bytes, b'\\', br"\\"), b'\'', br"\'");
                    [b"set -gx ", name.as_bytes(), b" '", &quoted, b"'\n"].concat()
                }
                Self::PowerShell => {
                    format!("$env:{name} = {}\n", quote_for_powershell(&text)).into_bytes()
                }
                Self::Dotenv => format!("{name}={}\n", quote_for_dotenv(&text)).into_bytes(),
            }
        };
        match self {
            Self::Json => json_line(&Variables(variables)).into_bytes(),
            _ => variables.iter().flat_map(line).collect(),
        }
    }
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

    fn variables() -> Vec<(String, OsString)> {
        [
            ("PLAIN", "http://127.0.0.1:1234"),
            ("QUOTES", r#"it's "a" `b` $(c) \ $d ’x‘"#),
            ("LINES", "one\ntwo\n"),
            ("SPACES", "  a  b  "),
            ("EMPTY", ""),
        ]
        .map(|(name, value)| (name.to_owned(), value.into()))
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
            OsString::from_vec((1..=255).collect::<Vec<u8>>()),
        ));
        let script = Format::Sh.render(&variables);
        for (name, value) in &variables {
            let mut expected = value.as_bytes().to_vec();
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
            assert_eq!(value[&name], expected.to_str().unwrap());
        }
    }

    #[test]
    fn fish_escapes_only_the_quote_and_the_backslash() {
        let one = [("A".to_owned(), OsString::from(r"it's \ $x"))];
        assert_eq!(Format::Fish.render(&one), b"set -gx A 'it\\'s \\\\ $x'\n");
    }

    #[test]
    fn powershell_doubles_every_kind_of_single_quote() {
        let one = [("A".to_owned(), OsString::from("it's ’x‘ $y"))];
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
}
