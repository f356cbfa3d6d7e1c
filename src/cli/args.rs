//! The arguments as typed: which subcommand, which options with which values. Pure; nothing is interpreted here.
//!
//! What they mean together with the environment is `resolve`'s to say.

use std::ffi::{OsStr, OsString};

use lexopt::Arg;

use super::options::{Opt, Subcommand};

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Help for the program or for one subcommand.
    Help(Option<Subcommand>),
    /// The version.
    Version,
    /// A subcommand's work.
    Work(Typed),
}

/// A subcommand and its options, as typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    /// Which one.
    pub(crate) subcommand: Subcommand,
    /// Option names and values, in the order given; a switch has the value `true`.
    pub(crate) options: Vec<(&'static str, OsString)>,
    /// `-v` counts up, `-q` down.
    pub(crate) verbosity: i8,
    /// `run`: COMMAND and its arguments, byte for byte.
    pub(crate) command: Vec<OsString>,
}

impl Typed {
    /// Whether the option was given as a flag.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(given, _)| *given == name)
    }

    /// The values that the flag was given, in order.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &OsStr> {
        self.options
            .iter()
            .filter(move |(given, _)| *given == name)
            .map(|(_, value)| value.as_os_str())
    }
}

/// A command line that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UsageError {
    /// The subcommand, once that much is known: it decides the exit status.
    pub(crate) subcommand: Option<Subcommand>,
    /// What is wrong, without a full stop.
    pub(crate) what: String,
}

impl UsageError {
    /// An error in the command line of `subcommand`.
    pub(crate) fn new(subcommand: Subcommand, what: impl Into<String>) -> Self {
        Self {
            subcommand: Some(subcommand),
            what: what.into(),
        }
    }
}

/// Reads the arguments, those after the program's own name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Asked, UsageError> {
    let mut parser = lexopt::Parser::from_args(arguments.into_iter().collect::<Vec<_>>());
    let nowhere = |what: String| UsageError {
        subcommand: None,
        what,
    };
    let subcommand = match parser.next().map_err(|error| nowhere(error.to_string()))? {
        Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Asked::Help(None)),
        Some(Arg::Short('V') | Arg::Long("version")) => return Ok(Asked::Version),
        Some(Arg::Value(word)) => Subcommand::ALL
            .into_iter()
            .find(|subcommand| word == subcommand.name())
            .ok_or_else(|| nowhere(format!("there is no subcommand {}", word.display())))?,
        Some(arg) => return Err(nowhere(arg.unexpected().to_string())),
        None => return Err(nowhere("a subcommand is missing".into())),
    };
    options(subcommand, &mut parser)
}

/// Reads what follows the subcommand.
fn options(subcommand: Subcommand, parser: &mut lexopt::Parser) -> Result<Asked, UsageError> {
    let wrong = |error: lexopt::Error| UsageError::new(subcommand, error.to_string());
    let mut typed = Typed {
        subcommand,
        options: Vec::new(),
        verbosity: 0,
        command: Vec::new(),
    };
    while let Some(arg) = parser.next().map_err(wrong)? {
        let opt = match &arg {
            Arg::Long(name) => Opt::long(subcommand, name),
            Arg::Short(letter) => Opt::short(subcommand, *letter),
            Arg::Value(_) => None,
        };
        let Some(opt) = opt else {
            match arg {
                // The first word that is no option is COMMAND: what follows belongs to it.
                Arg::Value(word) if subcommand == Subcommand::Run => {
                    typed.command.push(word);
                    typed.command.extend(parser.raw_args().map_err(wrong)?);
                    break;
                }
                other => return Err(wrong(other.unexpected())),
            }
        };
        match opt.name {
            "help" => return Ok(Asked::Help(Some(subcommand))),
            "version" => return Ok(Asked::Version),
            "verbose" => typed.verbosity = typed.verbosity.saturating_add(1),
            "quiet" => typed.verbosity = typed.verbosity.saturating_sub(1),
            name if opt.value.is_none() => typed.options.push((name, "true".into())),
            name => {
                let value = parser.value().map_err(wrong)?;
                // In the environment empty is unset; whoever types an empty value meant something else.
                if value.is_empty() {
                    return Err(UsageError::new(
                        subcommand,
                        format!("--{name} has an empty value"),
                    ));
                }
                typed.options.push((name, value));
            }
        }
    }
    Ok(Asked::Work(typed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::super::options::OPTIONS;
    use super::*;

    fn words(line: &str) -> Result<Asked, UsageError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn typed(line: &str) -> Typed {
        match words(line) {
            Ok(Asked::Work(typed)) => typed,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn every_option_is_read_by_each_of_its_subcommands() {
        for opt in OPTIONS.iter().filter(|opt| opt.in_environment) {
            for subcommand in opt.of {
                let (line, value) = match opt.value {
                    Some(_) => (format!("{} --{} x", subcommand.name(), opt.name), "x"),
                    None => (format!("{} --{}", subcommand.name(), opt.name), "true"),
                };
                let typed = typed(&line);
                assert_eq!(typed.options, [(opt.name, OsString::from(value))], "{line}");
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
    fn run_stops_at_the_first_word_that_is_no_option() {
        let typed = typed("run -v --keepalive 5s npm --help -v -- x");
        assert_eq!(typed.command, ["npm", "--help", "-v", "--", "x"]);
        assert_eq!(typed.verbosity, 1);
        assert_eq!(typed.values("keepalive").collect::<Vec<_>>(), ["5s"]);
    }

    #[test]
    fn run_stops_at_two_dashes() {
        assert_eq!(typed("run -- --help").command, ["--help"]);
        assert_eq!(typed("run -- -- a").command, ["--", "a"]);
        assert_eq!(
            typed("run --base-url --x -- a").options,
            [("base-url", OsString::from("--x"))]
        );
    }

    #[test]
    fn the_command_keeps_its_bytes() {
        let odd = OsString::from_vec(b"a b\n\xff".to_vec());
        let arguments = ["run".into(), "--".into(), odd.clone(), odd.clone()];
        match parse(arguments) {
            Ok(Asked::Work(typed)) => assert_eq!(typed.command, [odd.clone(), odd]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_stand_beside_or_behind_an_equals_sign() {
        assert_eq!(
            typed("serve --max-tunnels=3").options,
            typed("serve --max-tunnels 3").options
        );
        assert!(words("serve --embedded=yes").is_err());
        assert!(words("serve --max-tunnels").is_err());
        assert!(words("serve --max-tunnels=").is_err());
        assert!(words("serve stray").is_err());
    }

    #[test]
    fn help_and_version_win_wherever_they_stand() {
        assert_eq!(words("--help"), Ok(Asked::Help(None)));
        assert_eq!(words("-V"), Ok(Asked::Version));
        assert_eq!(
            words("serve --embedded -h"),
            Ok(Asked::Help(Some(Subcommand::Serve)))
        );
        assert_eq!(words("run -V"), Ok(Asked::Version));
    }

    #[test]
    fn a_command_line_without_a_known_subcommand_is_an_error() {
        for line in ["", "walk", "--embedded run", "-x"] {
            assert_eq!(words(line).unwrap_err().subcommand, None, "{line:?}");
        }
    }

    #[test]
    fn v_and_q_count_up_and_down() {
        assert_eq!(typed("run -vvq x").verbosity, 1);
        assert_eq!(typed("run --quiet -q x").verbosity, -2);
    }
}
