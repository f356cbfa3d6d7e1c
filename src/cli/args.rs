//! The arguments as typed: the subcommand, and its flags with their values. Nothing is interpreted.

use std::ffi::{OsStr, OsString};

use lexopt::Arg;

use crate::config::Subcommand;

use super::help::{name, subcommands};
use super::options::Opt;

/// What the command line requests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// Help for the program or for one subcommand.
    Help(Option<Subcommand>),
    /// The version.
    Version,
    /// A subcommand.
    Subcommand(Arguments),
}

/// A subcommand and its flags, as typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// The subcommand.
    pub(crate) subcommand: Subcommand,
    /// Names and values of the flags, in their order; a switch has the value `true`.
    pub(crate) flags: Vec<(&'static str, OsString)>,
    /// The number of `-v` minus the number of `-q`.
    pub(crate) verbosity: i8,
    /// `run`: COMMAND and its arguments, byte for byte.
    pub(crate) command: Vec<OsString>,
}

impl Arguments {
    /// The values of a flag, in their order.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &OsStr> {
        self.flags
            .iter()
            .filter(move |(given, _)| *given == name)
            .map(|(_, value)| value.as_os_str())
    }
}

/// A command line that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UsageError {
    /// The subcommand, if it is known: it decides the exit status.
    pub(crate) subcommand: Option<Subcommand>,
    /// What is wrong, without a full stop.
    pub(crate) what: String,
}

impl UsageError {
    /// An error in the command line of `subcommand`, or before the subcommand.
    pub(crate) fn new(subcommand: impl Into<Option<Subcommand>>, what: impl Into<String>) -> Self {
        Self {
            subcommand: subcommand.into(),
            what: what.into(),
        }
    }
}

/// Parses the arguments that follow the name of the program.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation, UsageError> {
    let mut parser = lexopt::Parser::from_args(arguments.into_iter().collect::<Vec<_>>());
    let usage_error = |what: String| Err(UsageError::new(None, what));
    match parser.next() {
        Ok(Some(Arg::Short('h') | Arg::Long("help"))) => Ok(Invocation::Help(None)),
        Ok(Some(Arg::Short('V') | Arg::Long("version"))) => Ok(Invocation::Version),
        Ok(Some(Arg::Value(word))) => match subcommands().find(|&known| word == name(known)) {
            Some(subcommand) => parse_flags(subcommand, &mut parser),
            None if cfg!(not(feature = "gateway")) && word == "gateway" => usage_error(
                "this build has no gateway; use one with the feature `gateway`".to_owned(),
            ),
            None => usage_error(format!("there is no subcommand {}", word.display())),
        },
        Ok(Some(arg)) => usage_error(arg.unexpected().to_string()),
        Ok(None) => usage_error("a subcommand is missing".to_owned()),
        Err(error) => usage_error(error.to_string()),
    }
}

/// Parses the arguments that follow the subcommand.
fn parse_flags(
    subcommand: Subcommand,
    parser: &mut lexopt::Parser,
) -> Result<Invocation, UsageError> {
    let usage_error = |error: lexopt::Error| UsageError::new(subcommand, error.to_string());
    let mut arguments = Arguments {
        subcommand,
        flags: Vec::new(),
        verbosity: 0,
        command: Vec::new(),
    };
    while let Some(arg) = parser.next().map_err(usage_error)? {
        let opt = match &arg {
            Arg::Long(name) => Opt::long(subcommand, name),
            Arg::Short(letter) => Opt::short(subcommand, *letter),
            Arg::Value(_) => None,
        };
        let Some(opt) = opt else {
            match arg {
                // The first word that is not an option is COMMAND; the rest are its arguments.
                Arg::Value(word) if subcommand == Subcommand::Run => {
                    arguments.command.push(word);
                    let rest = parser.raw_args().map_err(usage_error)?;
                    arguments.command.extend(rest);
                    break;
                }
                other => return Err(usage_error(other.unexpected())),
            }
        };
        match opt.name {
            "help" => return Ok(Invocation::Help(Some(subcommand))),
            "version" => return Ok(Invocation::Version),
            "verbose" => arguments.verbosity = arguments.verbosity.saturating_add(1),
            "quiet" => arguments.verbosity = arguments.verbosity.saturating_sub(1),
            name if opt.value.is_none() => arguments.flags.push((name, "true".into())),
            name => {
                let value = parser.value().map_err(usage_error)?;
                // In the environment an empty value counts as unset; typed, it is a mistake.
                if value.is_empty() {
                    let what = format!("--{name} has an empty value");
                    return Err(UsageError::new(subcommand, what));
                }
                arguments.flags.push((name, value));
            }
        }
    }
    Ok(Invocation::Subcommand(arguments))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn words(line: &str) -> Result<Invocation, UsageError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn arguments(line: &str) -> Arguments {
        match words(line) {
            Ok(Invocation::Subcommand(arguments)) => arguments,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn every_option_is_read_by_each_of_its_subcommands() {
        for opt in Opt::all().filter(|opt| opt.in_environment) {
            for subcommand in subcommands().filter(|one| opt.subcommands.contains(one)) {
                let (line, value) = match opt.value {
                    Some(_) => (format!("{} --{} x", name(subcommand), opt.name), "x"),
                    None => (format!("{} --{}", name(subcommand), opt.name), "true"),
                };
                let arguments = arguments(&line);
                assert_eq!(
                    arguments.flags,
                    [(opt.name, OsString::from(value))],
                    "{line}"
                );
            }
        }
    }

    #[test]
    fn an_option_of_another_subcommand_is_a_usage_error() {
        let error = words("env --keepalive 5s").unwrap_err();
        assert_eq!(error.subcommand, Some(Subcommand::Env));
        assert!(error.what.contains("--keepalive"), "{}", error.what);
        assert!(words("gateway --require").is_err());
        assert!(words("run --format sh").is_err());
    }

    #[test]
    fn run_stops_at_the_first_word_that_is_not_an_option() {
        let arguments = arguments("run -v --keepalive 5s npm --help -v -- x");
        assert_eq!(arguments.command, ["npm", "--help", "-v", "--", "x"]);
        assert_eq!(arguments.verbosity, 1);
        assert_eq!(arguments.values("keepalive").collect::<Vec<_>>(), ["5s"]);
    }

    #[test]
    fn run_stops_at_two_dashes() {
        assert_eq!(arguments("run -- --help").command, ["--help"]);
        assert_eq!(arguments("run -- -- a").command, ["--", "a"]);
        assert_eq!(
            arguments("run --base-url --x -- a").flags,
            [("base-url", OsString::from("--x"))]
        );
    }

    #[test]
    fn the_command_keeps_its_bytes() {
        let odd = OsString::from_vec(b"a b\n\xff".to_vec());
        let arguments = ["run".into(), "--".into(), odd.clone(), odd.clone()];
        match parse(arguments) {
            Ok(Invocation::Subcommand(arguments)) => {
                assert_eq!(arguments.command, [odd.clone(), odd]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_value_follows_its_option_or_an_equals_sign() {
        assert_eq!(
            arguments("serve --max-tunnels=3").flags,
            arguments("serve --max-tunnels 3").flags
        );
        assert!(words("serve --embedded=yes").is_err());
        assert!(words("serve --max-tunnels").is_err());
        assert!(words("serve --max-tunnels=").is_err());
        assert!(words("serve stray").is_err());
    }

    #[test]
    fn help_and_version_win_at_any_place() {
        assert_eq!(words("--help"), Ok(Invocation::Help(None)));
        assert_eq!(words("-V"), Ok(Invocation::Version));
        assert_eq!(
            words("serve --embedded -h"),
            Ok(Invocation::Help(Some(Subcommand::Serve)))
        );
        assert_eq!(words("run -V"), Ok(Invocation::Version));
    }

    #[test]
    fn a_command_line_without_a_known_subcommand_is_an_error() {
        for line in ["", "walk", "--embedded run", "-x"] {
            assert_eq!(words(line).unwrap_err().subcommand, None, "{line:?}");
        }
    }

    #[test]
    fn v_and_q_count_up_and_down() {
        assert_eq!(arguments("run -vvq x").verbosity, 1);
        assert_eq!(arguments("run --quiet -q x").verbosity, -2);
    }
}
