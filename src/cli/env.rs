//! `env`: print the variables of the running `serve` in the syntax of a shell.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

use crate::config::Environment;
use crate::orchestrator::child_variables;

use super::exit_status::ExitStatus;
use super::json;
use super::output::{eprint_line, print};
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
    let variables = child_variables(
        &running.proxy,
        &running.ca_bundle,
        running.wgetrc.as_deref(),
        environment,
    );
    print(&format.render(&variables));
    ExitStatus::SUCCESS
}

impl Format {
    /// The variables in this format. `sh` and `fish` keep every byte of a value; the others are
    /// text.
    pub(crate) fn render(self, variables: &[(String, OsString)]) -> Vec<u8> {
        if self == Self::Json {
            let mut text = json::object(variables);
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

/// `value` in single quotes. A byte that cannot be quoted as it is, is replaced as `escape` says.
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

/// In PowerShell four typographic quotes are single quotes too. Each is escaped by doubling it.
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
