//! `env`: the variables of the running `serve`, in the language of the shell that asks.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

use crate::config::Environment;
use crate::orchestrator::child_variables;

use super::state;
use super::{ExitStatus, print, say};

/// A language for variables.
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

impl FromStr for Format {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "sh" => Ok(Self::Sh),
            "fish" => Ok(Self::Fish),
            "powershell" => Ok(Self::PowerShell),
            "json" => Ok(Self::Json),
            "dotenv" => Ok(Self::Dotenv),
            _ => Err(()),
        }
    }
}

/// Prints the variables, `NO_PROXY` merged with the asking shell's.
pub(crate) fn run(format: Format, asking: &Environment) -> ExitStatus {
    let Some(home) = state::home(asking) else {
        say("HOME names no folder to look for a serve in; set it to an absolute path");
        return ExitStatus::FAILED;
    };
    let Some(living) = state::living(&home) else {
        say("no serve is running under this HOME; start one with `upstreamproxy serve`");
        return ExitStatus::FAILED;
    };
    let variables = child_variables(
        &living.proxy,
        &living.ca_bundle,
        living.wgetrc.as_deref(),
        asking,
    );
    print(&format.render(&variables));
    ExitStatus::SUCCESS
}

impl Format {
    /// The variables in this language. The POSIX and fish forms keep every byte of a value; the others are text.
    pub(crate) fn render(self, variables: &[(String, OsString)]) -> Vec<u8> {
        if self == Self::Json {
            let mut text = json_object(variables);
            text.push('\n');
            return text.into_bytes();
        }
        let mut output = Vec::new();
        for (name, value) in variables {
            let text = value.to_string_lossy();
            let (before, quoted) = match self {
                Self::Fish => (
                    format!("set -gx {name} "),
                    quote(value.as_bytes(), |byte| match byte {
                        b'\\' => Some(b"\\\\"),
                        b'\'' => Some(b"\\'"),
                        _ => None,
                    }),
                ),
                Self::PowerShell => (
                    format!("$env:{name} = "),
                    quote_for_powershell(&text).into_bytes(),
                ),
                Self::Dotenv => (format!("{name}="), quote_for_dotenv(&text).into_bytes()),
                Self::Sh | Self::Json => (
                    format!("export {name}="),
                    quote(value.as_bytes(), |byte| match byte {
                        b'\'' => Some(b"'\\''"),
                        _ => None,
                    }),
                ),
            };
            output.extend_from_slice(before.as_bytes());
            output.extend_from_slice(&quoted);
            output.push(b'\n');
        }
        output
    }
}

/// The variables as one JSON object, in their order.
pub(crate) fn json_object(variables: &[(String, OsString)]) -> String {
    let mut text = String::from("{");
    for (index, (name, value)) in variables.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(
            text,
            "{comma}{}:{}",
            json_string(name),
            json_string(&value.to_string_lossy())
        );
    }
    text.push('}');
    text
}

/// `text` as a JSON string.
pub(crate) fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `value` in single quotes, with what `escape` says in the place of a byte that would end or change it.
fn quote(value: &[u8], escape: impl Fn(u8) -> Option<&'static [u8]>) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in value {
        match escape(*byte) {
            Some(escaped) => quoted.extend_from_slice(escaped),
            None => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// PowerShell takes four typographic quotes for single quotes too; a doubled one stands for itself.
fn quote_for_powershell(text: &str) -> String {
    let mut quoted = String::from("'");
    for c in text.chars() {
        if matches!(c, '\'' | '\u{2018}' | '\u{2019}' | '\u{201a}' | '\u{201b}') {
            quoted.push(c);
        }
        quoted.push(c);
    }
    quoted.push('\'');
    quoted
}

/// The dialects of dotenv agree on plain words (the only form that `docker run --env-file` knows) and, nearly all, on
/// single quotes; double quotes are for what these cannot hold.
fn quote_for_dotenv(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:,@%+=*-[]".contains(c);
    if text.chars().all(plain) {
        return text.to_owned();
    }
    if !text.contains(['\'', '\n', '\r', '\\']) {
        return format!("'{text}'");
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' | '$' | '`' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
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
            ("BLANKS", "  a  b  "),
            ("EMPTY", ""),
        ]
        .map(|(name, value)| (name.to_owned(), value.into()))
        .to_vec()
    }

    /// What a shell that runs `script` has in the variable `name`.
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
                "BLANKS='  a  b  '",
                "EMPTY=",
            ]
        );
    }
}
