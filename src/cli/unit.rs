//! `unit`: a systemd unit for `serve` or `gateway` that starts this program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::config::{Environment, Subcommand};

use super::args::{Invocation, UsageError, parse};
use super::env::escape_for_systemd;
use super::exit_status::ExitStatus;
use super::output::{fail, print};
use super::program_options::Options;

/// What `ProtectHome=` and `PrivateTmp=` of the units hide.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];
const PROGRAM: &str = "@EXEC_START@";

/// A unit, and the arguments in its `ExecStart=`.
struct Template {
    text: &'static str,
    /// The subcommand, and options that the other lines of the unit depend on.
    fixed: &'static [&'static str],
    /// Options that are replaced by those of the command line, if it has some.
    example: &'static [&'static str],
}

const SERVE: Template = Template {
    text: concat!(
        include_str!("unit_serve.service"),
        include_str!("unit_hardening.service")
    ),
    // The session's switches (`--when auto`) are not set in a service. A Disabled `serve` would
    // exit with 0, and would not be started again.
    fixed: &["serve", "--require", "--when", "always"],
    example: &[
        "--listen",
        "3128",
        "--base-url",
        "https://gateway.example:8443",
        "--session-id",
        "session-1",
    ],
};

#[cfg(feature = "gateway")]
const GATEWAY: Template = Template {
    text: concat!(
        include_str!("unit_gateway.service"),
        include_str!("unit_hardening.service")
    ),
    fixed: &["gateway", "--sessions", "/etc/upstreamproxy/sessions"],
    example: &[
        "--listen",
        ":8443",
        "--tls-cert",
        "/etc/upstreamproxy/cert.pem",
        "--tls-key",
        "/etc/upstreamproxy/key.pem",
    ],
};

/// Prints the unit that `words` names: `serve` or `gateway`, and the options of that subcommand.
pub(crate) fn run(words: &[OsString]) -> Result<ExitStatus, UsageError> {
    let given = words.get(1..).unwrap_or_default();
    let template = match words.first().and_then(|word| word.to_str()) {
        #[cfg(feature = "gateway")]
        Some("gateway") => GATEWAY,
        // The parser accepts no other word.
        _ => SERVE,
    };
    let arguments = template.arguments(given);
    check(&arguments)?;
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            let error = format!("the path of this program is not known: {error}");
            return Ok(fail(&error, ExitStatus::FAILED));
        }
    };
    let exec_start = match command_line(&program, &arguments) {
        Ok(exec_start) => exec_start,
        Err(error) => return Ok(fail(&error, ExitStatus::FAILED)),
    };
    if let Some(hidden) = HIDDEN.iter().find(|hidden| program.starts_with(hidden)) {
        log::warn!(
            "the unit hides {hidden}, where this program is; install it elsewhere, for example in \
             /usr/local/bin"
        );
    }
    print(template.text.replace(PROGRAM, &exec_start).as_bytes());
    Ok(ExitStatus::SUCCESS)
}

impl Template {
    /// The arguments of the program: of an option that occurs twice, the last one counts.
    fn arguments(&self, given: &[OsString]) -> Vec<OsString> {
        let fixed = self.fixed.iter().map(OsString::from);
        if given.is_empty() {
            fixed
                .chain(self.example.iter().map(OsString::from))
                .collect()
        } else {
            fixed.chain(given.iter().cloned()).collect()
        }
    }
}

/// Whether the service will accept its arguments.
fn check(arguments: &[OsString]) -> Result<(), UsageError> {
    let Invocation::Subcommand(arguments) = parse(arguments.iter().cloned())? else {
        let what = "--help and --version are no options of a service";
        return Err(UsageError::new(Subcommand::Unit, what));
    };
    Options::resolve(&arguments, &Environment::default()).map(|_| ())
}

/// The value of `ExecStart=`. Every word is quoted for systemd (systemd.syntax(7),
/// systemd.service(5), "Command lines").
fn command_line(program: &Path, arguments: &[OsString]) -> Result<String, String> {
    let text = |word: OsString| {
        word.into_string().map_err(|word| {
            let word = word.display().to_string();
            format!(
                "{} is not UTF-8, which a unit needs; rename it",
                word.escape_debug()
            )
        })
    };
    // No variables are replaced in the path of the program.
    let mut line = quoted(&text(PathBuf::from(program).into_os_string())?);
    for argument in arguments {
        line.push(' ');
        line.push_str(&quoted(&text(argument.clone())?.replace('$', "$$")));
    }
    Ok(line)
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:,@+=-$".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("\"{}\"", escape_for_systemd(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(program: &str, arguments: &[&str]) -> Result<String, String> {
        let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
        command_line(Path::new(program), &arguments)
    }

    #[test]
    fn words_are_quoted_for_systemd() {
        assert_eq!(
            line("/opt/a b%/$x", &["serve", "", ";", "a$b", "50%", "\"\\\n"]),
            Ok(r#""/opt/a b%%/$x" serve "" ";" a$$b "50%%" "\"\\\n""#.to_owned())
        );
    }

    #[test]
    fn a_path_that_is_not_utf_8_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let program = Path::new(std::ffi::OsStr::from_bytes(b"/opt/\xff"));
        let error = command_line(program, &[]).unwrap_err();
        assert!(error.contains("is not UTF-8"), "{error}");
    }

    #[test]
    fn the_service_accepts_the_arguments_of_its_unit() {
        let templates = [
            SERVE,
            #[cfg(feature = "gateway")]
            GATEWAY,
        ];
        for template in templates {
            check(&template.arguments(&[])).unwrap();
            let wrong = ["--connect-timeout".into(), "never".into()];
            let error = check(&template.arguments(&wrong)).unwrap_err();
            assert!(error.what.contains("connect-timeout"), "{error:?}");
            assert!(check(&template.arguments(&["--help".into()])).is_err());
            assert!(check(&template.arguments(&["word".into()])).is_err());
            assert_eq!(template.text.matches(PROGRAM).count(), 1);
        }
    }
}
