//! The arguments as typed: the subcommand, and its flags with their values. Nothing is interpreted.

use std::ffi::{OsStr, OsString};

use lexopt::Arg;

use crate::config::Subcommand;

use super::help::Detail;
use super::options::Opt;
use super::pages::{PAGES, Words, name, page, subcommands};
use super::suggestion::suggestion;

/// Subcommands that some builds do not have, each with its feature.
const OPTIONAL_SUBCOMMANDS: [(&str, bool); 2] = [
    ("bench", cfg!(feature = "bench")),
    ("gateway", cfg!(feature = "gateway")),
];

/// What the command line requests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// Help for the program or for one subcommand.
    Help(Option<Subcommand>, Detail),
    /// The version.
    Version,
    /// Nothing: a subcommand is missing.
    Nothing,
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
    /// What follows the options, byte for byte: COMMAND and its arguments for `run`.
    pub(crate) words: Vec<OsString>,
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
    let usage_error = |what: String| UsageError::new(None, what);
    let first = parser
        .next()
        .map_err(|error| usage_error(error.to_string()))?;
    match first {
        Some(Arg::Short('h') | Arg::Long("help")) => Ok(Invocation::Help(None, Detail::Long)),
        Some(Arg::Short('V') | Arg::Long("version")) => Ok(Invocation::Version),
        Some(Arg::Value(word)) => parse_flags(find(&word).map_err(usage_error)?, &mut parser),
        Some(arg) => Err(usage_error(unknown(None, &arg))),
        None => Ok(Invocation::Nothing),
    }
}

/// The subcommand that `word` names, or else what is wrong.
fn find(word: &OsStr) -> Result<Subcommand, String> {
    if let Some(subcommand) = subcommands().find(|&known| word == name(known)) {
        return Ok(subcommand);
    }
    let word = word.to_string_lossy();
    let optional = OPTIONAL_SUBCOMMANDS.iter();
    if optional
        .clone()
        .any(|(name, built)| *name == word && !built)
    {
        return Err(format!(
            "this build has no {word}; use one with the feature `{word}`"
        ));
    }
    let similar = suggestion(&word, "", PAGES.iter().map(|page| page.name));
    let word = word.escape_debug();
    Err(format!("there is no subcommand {word}{similar}"))
}

/// What is wrong with an argument that `subcommand` does not have, or that precedes the subcommand.
fn unknown(subcommand: Option<Subcommand>, arg: &Arg<'_>) -> String {
    let (dashes, typed) = match arg {
        Arg::Long(name) => ("--", (*name).to_owned()),
        Arg::Short(letter) => ("-", letter.to_string()),
        Arg::Value(word) => {
            let word = word.to_string_lossy();
            return format!("the argument {} is not expected", word.escape_debug());
        }
    };
    let is_typed = |opt: &Opt| match arg {
        Arg::Long(name) => opt.name == *name,
        Arg::Short(letter) => opt.short == Some(*letter),
        Arg::Value(_) => false,
    };
    let owners = subcommands().filter(|&one| Opt::of(one).any(|opt| is_typed(&opt)));
    let owners: Vec<&str> = owners.map(name).collect();
    let typed = typed.escape_debug();
    match subcommand {
        None if !owners.is_empty() => {
            let first = owners[0];
            format!(
                "{dashes}{typed} follows the subcommand, as in `upstreamproxy {first} {dashes}{typed}`"
            )
        }
        Some(subcommand) if !owners.is_empty() => {
            let (of, here) = (owners.join(", "), name(subcommand));
            format!("{dashes}{typed} is an option of {of}, not of {here}")
        }
        _ => {
            let here = Opt::all().filter(|opt| {
                subcommand.map_or(!opt.subcommands.is_empty(), |one| {
                    opt.subcommands.contains(&one)
                })
            });
            let similar = match arg {
                Arg::Long(name) => suggestion(name, "--", here.map(|opt| opt.name)),
                _ => String::new(),
            };
            format!("there is no option {dashes}{typed}{similar}")
        }
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
        words: Vec::new(),
    };
    while let Some(arg) = parser.next().map_err(usage_error)? {
        let opt = match &arg {
            Arg::Long(name) => Opt::long(subcommand, name),
            Arg::Short(letter) => Opt::short(subcommand, *letter),
            Arg::Value(_) => None,
        };
        let Some(opt) = opt else {
            match (arg, page(subcommand).words) {
                // The first word that is not an option is COMMAND; the rest are its arguments.
                (Arg::Value(word), Words::Command) => {
                    arguments.words.push(word);
                    let rest = parser.raw_args().map_err(usage_error)?;
                    arguments.words.extend(rest);
                    break;
                }
                (Arg::Value(word), Words::OneOf(_) | Words::Subcommand)
                    if arguments.words.is_empty() =>
                {
                    arguments.words.push(word);
                }
                (Arg::Value(word), Words::Service(_)) => arguments.words.push(word),
                (other, _) => {
                    return Err(UsageError::new(
                        subcommand,
                        unknown(Some(subcommand), &other),
                    ));
                }
            }
            continue;
        };
        match opt.name {
            "help" => {
                let detail = match arg {
                    Arg::Short(_) => Detail::Short,
                    _ => Detail::Long,
                };
                return Ok(Invocation::Help(Some(subcommand), detail));
            }
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
    check_words(arguments)
}

/// Checks the words of a subcommand that has only a few, and translates `help` and `version`.
fn check_words(arguments: Arguments) -> Result<Invocation, UsageError> {
    let subcommand = arguments.subcommand;
    let word = arguments.words.first();
    match (subcommand, page(subcommand).words) {
        (Subcommand::Version, _) => Ok(Invocation::Version),
        (Subcommand::Help, _) => {
            let about = word.map(|word| find(word)).transpose();
            let about = about.map_err(|what| UsageError::new(subcommand, what))?;
            Ok(Invocation::Help(about, Detail::Long))
        }
        (_, Words::OneOf(known) | Words::Service(known))
            if !word.is_some_and(|word| known.iter().any(|one| word == one)) =>
        {
            let what = format!("one of these words is needed: {}", known.join(", "));
            Err(UsageError::new(subcommand, what))
        }
        _ => Ok(Invocation::Subcommand(arguments)),
    }
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
        assert_eq!(arguments.words, ["npm", "--help", "-v", "--", "x"]);
        assert_eq!(arguments.verbosity, 1);
        assert_eq!(arguments.values("keepalive").collect::<Vec<_>>(), ["5s"]);
    }

    #[test]
    fn run_stops_at_two_dashes() {
        assert_eq!(arguments("run -- --help").words, ["--help"]);
        assert_eq!(arguments("run -- -- a").words, ["--", "a"]);
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
                assert_eq!(arguments.words, [odd.clone(), odd]);
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
        assert_eq!(words("--help"), Ok(Invocation::Help(None, Detail::Long)));
        assert_eq!(words("-V"), Ok(Invocation::Version));
        assert_eq!(
            words("serve --embedded -h"),
            Ok(Invocation::Help(Some(Subcommand::Serve), Detail::Short))
        );
        assert_eq!(words("run -V"), Ok(Invocation::Version));
    }

    #[test]
    fn a_command_line_without_a_known_subcommand_is_an_error() {
        assert_eq!(words(""), Ok(Invocation::Nothing));
        for line in ["walk", "--embedded run", "-x"] {
            assert_eq!(words(line).unwrap_err().subcommand, None, "{line:?}");
        }
    }

    #[test]
    fn a_subcommand_can_be_asked_for_help_and_for_the_version() {
        assert_eq!(words("help"), Ok(Invocation::Help(None, Detail::Long)));
        assert_eq!(
            words("help run"),
            Ok(Invocation::Help(Some(Subcommand::Run), Detail::Long))
        );
        assert_eq!(words("version"), Ok(Invocation::Version));
        for line in [
            "help walk",
            "help run serve",
            "version run",
            "completions",
            "completions csh",
        ] {
            assert!(words(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_usage_error_says_what_was_meant() {
        for (line, part) in [
            ("srve", "there is no subcommand srve (did you mean serve?)"),
            (
                "run --keep-alive 5 x",
                "there is no option --keep-alive (did you mean --keepalive?)",
            ),
            (
                "serve --format sh",
                "--format is an option of env, not of serve",
            ),
            (
                "--keepalive 5 run x",
                "--keepalive follows the subcommand, as in `upstreamproxy run",
            ),
            ("serve -z", "there is no option -z"),
            ("serve stray", "the argument stray is not expected"),
            ("completions", "bash, zsh, fish"),
        ] {
            let what = words(line).unwrap_err().what;
            assert!(what.contains(part), "{line}: {what}");
        }
    }

    #[test]
    fn v_and_q_count_up_and_down() {
        assert_eq!(arguments("run -vvq x").verbosity, 1);
        assert_eq!(arguments("run --quiet -q x").verbosity, -2);
    }
}
