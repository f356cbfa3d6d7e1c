//! `completions`: scripts that complete command lines in bash, zsh and fish, derived from the
//! tables of options and subcommands.
//!
//! The parts of a script that do not depend on the tables are in `completions.bash`,
//! `completions.zsh` and `completions.fish`, with a placeholder for each other part.

use std::ffi::OsString;
use std::fmt::Write as _;

use super::options::{Completion, Opt};
use super::pages::{PAGES, Page, Words};

/// The completions of the shell that `words` names.
pub(crate) fn script(words: &[OsString]) -> String {
    match words.first().and_then(|word| word.to_str()) {
        Some("zsh") => zsh(),
        Some("fish") => fish(),
        // The parser accepts no other word.
        _ => bash(),
    }
}

fn bash() -> String {
    let names = |completion: fn(Completion) -> bool| -> String {
        let found: Vec<String> = options_with_a_value()
            .filter(|(_, value)| completion(*value))
            .map(|(name, _)| format!("--{name}"))
            .collect();
        found.join("|")
    };
    let mut words = String::new();
    for (name, value) in options_with_a_value() {
        if let Completion::Words(values) = value {
            let _ = writeln!(words, "    --{name}) words='{}' ;;", values.join(" "));
        }
    }
    let mut subcommands = String::new();
    for page in PAGES {
        let options: Vec<String> = Opt::of(page.subcommand)
            .flat_map(|opt| {
                let short = opt.short.map(|letter| format!("-{letter}"));
                short.into_iter().chain([format!("--{}", opt.name)])
            })
            .collect();
        let _ = writeln!(
            subcommands,
            "    {}) options='{}' words='{}' ;;",
            page.name,
            options.join(" "),
            known_words(page.words).join(" ")
        );
    }
    include_str!("completions.bash")
        .replace(
            "@SUBCOMMAND_NAMES@",
            &known_words(Words::Subcommand).join(" "),
        )
        .replace("    @SUBCOMMANDS@\n", &subcommands)
        .replace("@OPTIONS_WITH_A_VALUE@", &names(|_| true))
        .replace(
            "@OPTIONS_WITH_A_FILE@",
            &names(|value| value == Completion::Files),
        )
        .replace("    @OPTIONS_WITH_WORDS@\n", &words)
}

fn zsh() -> String {
    let mut descriptions = String::new();
    let mut subcommands = String::new();
    for page in PAGES {
        let described = format!("{}:{}", page.name, page.purpose.replace(':', "\\:"));
        let _ = writeln!(descriptions, "            {}", quoted_for_zsh(&described));
        let _ = writeln!(
            subcommands,
            "    {})\n        _arguments -s -S {}\\",
            page.name,
            guard(page.words)
        );
        for opt in Opt::of(page.subcommand) {
            let _ = writeln!(subcommands, "            {} \\", zsh_option(opt));
        }
        let words = match page.words {
            Words::None => String::new(),
            Words::Command => {
                "'(-)1:command: _command_names -e' '*::arguments: _normal'".to_owned()
            }
            other => format!("'1:word:({})'", known_words(other).join(" ")),
        };
        let _ = writeln!(subcommands, "            {words}\n        ;;");
    }
    include_str!("completions.zsh")
        .replace("            @DESCRIPTIONS@\n", &descriptions)
        .replace("    @SUBCOMMANDS@\n", &subcommands)
}

/// Where options end: at COMMAND.
fn guard(words: Words) -> &'static str {
    if words == Words::Command {
        "-A '-*' "
    } else {
        ""
    }
}

/// An option in the language of `_arguments`.
fn zsh_option(opt: Opt) -> String {
    let mut meaning = opt.summary().to_owned();
    for special in ["[", "]", ":"] {
        meaning = meaning.replace(special, &format!("\\{special}"));
    }
    let often = if opt.repeatable { "*" } else { "" };
    let name = opt.name;
    let (Some(completion), Some(placeholder)) = (opt.completion(), opt.value) else {
        let short = opt
            .short
            .map(|letter| quoted_for_zsh(&format!("*-{letter}[{meaning}]")) + " ");
        return short.unwrap_or_default() + &quoted_for_zsh(&format!("*--{name}[{meaning}]"));
    };
    let placeholder = placeholder.replace(':', "\\:");
    let action = match completion {
        Completion::Files => "_files".to_owned(),
        Completion::Words(words) => format!("({})", words.join(" ")),
        Completion::Unknown => " ".to_owned(),
    };
    quoted_for_zsh(&format!(
        "{often}--{name}=[{meaning}]:{placeholder}:{action}"
    ))
}

fn fish() -> String {
    let with_a_value: Vec<String> = options_with_a_value()
        .map(|(name, _)| format!("--{name}"))
        .collect();
    let mut text = String::new();
    for page in PAGES {
        let (name, purpose) = (page.name, quoted_for_fish(page.purpose));
        let _ = writeln!(
            text,
            "complete -c upstreamproxy -n __fish_use_subcommand -a {name} -d {purpose}"
        );
        let line = format!("complete -c upstreamproxy -n '__upstreamproxy_in {name}'");
        for opt in Opt::of(page.subcommand) {
            let short = opt.short.map(|letter| format!(" -s {letter}"));
            let value = match opt.completion() {
                None => String::new(),
                Some(Completion::Files) => " -r -F".to_owned(),
                Some(Completion::Words(words)) => format!(" -x -a '{}'", words.join(" ")),
                Some(Completion::Unknown) => " -x".to_owned(),
            };
            let _ = writeln!(
                text,
                "{line} -l {}{}{value} -d {}",
                opt.name,
                short.unwrap_or_default(),
                quoted_for_fish(opt.summary())
            );
        }
        let words = known_words(page.words);
        if !words.is_empty() {
            let _ = writeln!(text, "{line} -a '{}'", words.join(" "));
        }
    }
    include_str!("completions.fish").replace("@OPTIONS_WITH_A_VALUE@", &with_a_value.join(" "))
        + &text
}

/// The words that can follow the options.
fn known_words(words: Words) -> Vec<&'static str> {
    match words {
        Words::None | Words::Command => Vec::new(),
        Words::OneOf(known) | Words::Service(known) => known.to_vec(),
        Words::Subcommand => PAGES.iter().map(|page: &Page| page.name).collect(),
    }
}

/// Every option that has a value, once. A test checks that options of one name have the same kind
/// of value in every subcommand.
fn options_with_a_value() -> impl Iterator<Item = (&'static str, Completion)> {
    let mut seen = Vec::new();
    let options = Opt::all().filter(|opt| !opt.subcommands.is_empty());
    options.filter_map(move |opt| {
        let value = (opt.name, opt.completion()?);
        let is_new = !seen.contains(&value);
        seen.push(value);
        is_new.then_some(value)
    })
}

fn quoted_for_zsh(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn quoted_for_fish(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_one_name_have_the_same_kind_of_value() {
        for (name, value) in options_with_a_value() {
            for opt in Opt::all().filter(|opt| opt.name == name) {
                assert_eq!(opt.completion(), Some(value), "--{name}");
            }
        }
    }

    #[test]
    fn no_placeholder_remains_and_every_option_is_in_every_script() {
        for shell in ["bash", "zsh", "fish"] {
            let text = script(&[shell.into()]);
            let placeholder = |rest: &str| rest.starts_with(|c: char| c.is_ascii_uppercase());
            assert!(!text.split('@').skip(1).any(placeholder), "{shell}");
            for opt in Opt::all().filter(|opt| !opt.subcommands.is_empty()) {
                let name = opt.name;
                let named =
                    text.contains(&format!("--{name}")) || text.contains(&format!("-l {name}"));
                assert!(named, "{shell} --{name}");
            }
        }
    }

    #[test]
    fn each_known_value_is_accepted_and_listed_if_another_one_is_given() {
        use super::super::program_options::Options;
        use crate::config::Source;
        for opt in Opt::all().filter(|opt| !opt.values.is_empty()) {
            let set = |value: &str| {
                let mut options = Options::default();
                opt.set(&mut options, value.as_ref(), Source::Flag);
                options.config.unusable.first().map(ToString::to_string)
            };
            for value in opt.values {
                assert_eq!(set(value), None, "--{} {value}", opt.name);
            }
            let problem = set("perhaps").unwrap_or_default();
            for value in opt.values {
                assert!(problem.contains(value), "{problem}");
            }
        }
    }
}
