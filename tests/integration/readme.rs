//! The tables in the README match the program's output.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{TempHome, finish, upstreamproxy};

const README: &str = include_str!("../../README.md");
const SUBCOMMANDS: [&str; 12] = [
    "run",
    "serve",
    "env",
    "ca",
    "doctor",
    "bench",
    "gateway",
    "unit",
    "completions",
    "man",
    "help",
    "version",
];
/// The options that cannot be set by a variable.
const FLAGS_ONLY: [&str; 5] = ["--unset", "--verbose", "--quiet", "--help", "--version"];

/// The cells of the table that follows the marker, row by row.
fn table(marker: &str) -> Vec<Vec<String>> {
    let after = README
        .split_once(&format!("<!-- {marker} -->"))
        .unwrap_or_else(|| panic!("README.md has no marker {marker}"))
        .1;
    let rows: Vec<Vec<String>> = after
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim_matches('|').split(" | ");
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table after {marker}");
    rows
}

/// The texts in backticks in `cell`.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_child_variables_in_the_readme_are_the_variables_that_are_set() {
    let documented: Vec<(String, String)> = table("child-variables")
        .iter()
        .flat_map(|row| {
            let names = quoted(&row[0]).into_iter();
            names.map(|name| (name.to_owned(), row[1].clone()))
        })
        .collect();
    let set: Vec<(String, String)> = upstreamproxy::cli::documentation()
        .map(|(name, purpose)| (name.to_owned(), purpose.to_owned()))
        .collect();
    assert_eq!(documented, set);
}

#[test]
fn the_options_in_the_readme_are_the_options_of_the_help() {
    let mut documented: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in table("options") {
        let subcommands = documented
            .entry(long_option(quoted(&row[0])[0]))
            .or_default();
        for subcommand in row[1].split_whitespace() {
            match subcommand {
                "all" => subcommands.extend(SUBCOMMANDS.map(str::to_owned)),
                one => assert!(
                    subcommands.insert(one.to_owned()),
                    "{row:?}: {one} is listed twice"
                ),
            }
        }
    }
    let home = TempHome::new();
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for subcommand in SUBCOMMANDS {
        let help = finish(upstreamproxy(&home).args([subcommand, "--help"])).succeeded();
        let text = help.text();
        for line in text.lines().filter(|line| line.starts_with("  -")) {
            let subcommands = known.entry(long_option(line)).or_default();
            subcommands.insert(subcommand.to_owned());
        }
        for option in known
            .keys()
            .filter(|option| !FLAGS_ONLY.contains(&option.as_str()))
        {
            let name = option.trim_start_matches("--").replace('-', "_");
            let variable = format!("UPSTREAMPROXY_{}", name.to_uppercase());
            let here = known[option].contains(subcommand);
            let named = text.split_whitespace().any(|word| word == variable);
            assert_eq!(named, here, "{subcommand} {variable}");
        }
    }
    assert_eq!(documented, known);
}

/// The `--name` in a line such as `-v, --name VALUE`.
fn long_option(line: &str) -> String {
    let word = line.split_whitespace().find(|word| word.starts_with("--"));
    word.unwrap_or_else(|| panic!("no option in {line:?}"))
        .to_owned()
}
