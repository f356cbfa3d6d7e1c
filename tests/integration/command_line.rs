//! The command line for people: help, suggestions, completions as the shells themselves see them,
//! and the manual page.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{
    Finished, GatewayProcess, RelayProcess, TempHome, binary, finish, need_tool, skip,
    upstreamproxy,
};

/// A command line up to the cursor, and a word that the shell must offer or insert.
type Completion = (&'static str, &'static str);

/// The completions that every shell must know. Each line has only one possible completion.
const COMPLETIONS: [Completion; 11] = [
    ("upstreamproxy ser", "serve"),
    ("upstreamproxy run --wh", "--when"),
    ("upstreamproxy run --when al", "always"),
    ("upstreamproxy env --format dot", "dotenv"),
    ("upstreamproxy completions z", "zsh"),
    ("upstreamproxy help gat", "gateway"),
    ("upstreamproxy run --token-file tok", "token-1"),
    ("upstreamproxy gateway --sess", "--sessions"),
    ("upstreamproxy run -- distinct-com", "distinct-command"),
    (
        "upstreamproxy run --when auto distinct-com",
        "distinct-command",
    ),
    ("upstreamproxy run -- distinct-command tok", "token-1"),
];

/// A home with a file and a command that have names of their own.
fn home_for_completions() -> TempHome {
    let home = TempHome::new();
    home.write("token-1", "", 0o600);
    fs::create_dir(home.path().join("bin")).unwrap();
    home.write("bin/distinct-command", "#!/bin/sh\n", 0o755);
    home
}

/// A shell in that home. `upstreamproxy` and the other command are in its PATH.
fn shell(home: &TempHome, name: &str) -> Command {
    let mut command = home.command(name);
    let directories = [
        Path::new(binary()).parent().unwrap().to_owned(),
        home.path().join("bin"),
        "/usr/bin".into(),
        "/bin".into(),
    ];
    command
        .env("PATH", std::env::join_paths(directories).unwrap())
        .env("TERM", "dumb")
        .current_dir(home.path());
    command
}

#[track_caller]
fn fails_with(home: &TempHome, line: &str, status: i32, parts: &[&str]) {
    let finished = finish(upstreamproxy(home).args(line.split_whitespace()));
    assert_eq!(
        finished.status.code(),
        Some(status),
        "{line}: {finished:#?}"
    );
    assert!(finished.stdout.is_empty(), "{line}: {finished:#?}");
    for part in parts {
        assert!(
            finished.stderr.contains(part),
            "{line}: {}",
            finished.stderr
        );
    }
}

#[test]
fn a_mistake_is_answered_with_what_was_meant() {
    let home = TempHome::new();
    fails_with(
        &home,
        "",
        2,
        &["a subcommand is missing", "Usage:", "upstreamproxy run"],
    );
    fails_with(&home, "sevre", 2, &["did you mean serve?"]);
    fails_with(
        &home,
        "run --keepalve 5 true",
        125,
        &["did you mean --keepalive?"],
    );
    fails_with(
        &home,
        "run --sessions x true",
        125,
        &["--sessions is an option of gateway, not of run"],
    );
    fails_with(&home, "serve --when perhaps", 2, &["auto, always, never"]);
    fails_with(&home, "env --format perhaps", 2, &["sh, fish, powershell"]);
    fails_with(&home, "completions csh", 2, &["bash, zsh, fish"]);
}

#[test]
fn help_and_version_have_words_of_their_own() {
    let home = TempHome::new();
    let text = |line: &str| {
        finish(upstreamproxy(&home).args(line.split_whitespace()))
            .succeeded()
            .text()
    };
    assert_eq!(text("help"), text("--help"));
    assert_eq!(text("help serve"), text("serve --help"));
    assert_eq!(text("version"), text("--version"));
    assert!(text("serve -h").lines().count() < text("serve --help").lines().count());
}

#[test]
fn the_relay_listens_on_a_port_that_is_given_alone() {
    let home = TempHome::new();
    for prefix in ["", ":", "localhost:"] {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let listen = format!("{prefix}{port}");
        let script = "printf %s \"$HTTPS_PROXY\"";
        let run = [
            "run",
            "--embedded",
            "--listen",
            &listen,
            "--",
            "sh",
            "-c",
            script,
        ];
        let shown = finish(upstreamproxy(&home).args(run)).succeeded();
        assert_eq!(
            shown.text(),
            format!("http://127.0.0.1:{port}"),
            "{shown:#?}"
        );
    }
}

#[test]
fn ca_prints_the_ca_of_this_shell_of_the_running_serve_or_of_the_upstream() {
    let home = TempHome::new();
    fails_with(&home, "ca", 1, &["there is no upstream"]);
    let script = [
        "run",
        "--embedded",
        "--",
        "sh",
        "-c",
        "cat \"$SSL_CERT_FILE.ca.pem\"; \"$0\" ca",
    ];
    let shown = finish(upstreamproxy(&home).args(script).arg(binary())).succeeded();
    let text = shown.text();
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
    let (file, printed) = text.split_at(text.len() / 2);
    assert_eq!(file, printed);
    assert!(
        shown.stderr.contains("of this shell's variables"),
        "{}",
        shown.stderr
    );

    let gateway = GatewayProcess::start(&home, &[]);
    let url = gateway.base_url();
    let downloaded = finish(upstreamproxy(&home).args(["ca", "--base-url", &url])).succeeded();
    assert!(
        downloaded.stderr.contains(&format!("of {url}")),
        "{}",
        downloaded.stderr
    );
    assert_eq!(downloaded.text().matches("BEGIN CERTIFICATE").count(), 1);
    let relay = RelayProcess::start(&home, &url, &[]);
    let of_serve = finish(upstreamproxy(&home).arg("ca")).succeeded();
    assert!(
        of_serve.stderr.contains("of the running serve"),
        "{}",
        of_serve.stderr
    );
    assert_eq!(of_serve.text(), downloaded.text());
    relay.stop().succeeded();
    let nowhere = "ca --base-url http://127.0.0.1:1";
    fails_with(
        &home,
        nowhere,
        1,
        &["the CA download from http://127.0.0.1:1 failed"],
    );
}

#[test]
fn the_gateway_recipe_of_the_readme_works_as_it_is() {
    const README: &str = include_str!("../../README.md");
    if !need_tool("openssl") {
        return;
    }
    let home = TempHome::new();
    let recipe = README.split_once("<!-- gateway-recipe -->").unwrap().1;
    let recipe = recipe
        .split("```")
        .nth(1)
        .unwrap()
        .trim_start_matches("sh\n");
    // Another process may have the port of the recipe.
    assert!(recipe.contains(" --listen 8443 "), "{recipe}");
    let script = recipe.replace(" --listen 8443 ", " --listen 0 ") + "cat ready\n";
    let finished = finish(shell(&home, "sh").args(["-c", &script])).succeeded();
    let text = finished.text();
    assert!(
        text.contains("the proxy is http://127.0.0.1:"),
        "{finished:#?}"
    );
    assert!(
        text.contains("\"base_url\":\"https://localhost:"),
        "{finished:#?}"
    );
}

#[test]
fn bash_completes_command_lines() {
    const TRY: &str = r#"
        try() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*"
            COMP_POINT=${#COMP_LINE}
            _upstreamproxy
            printf '%s\n' "${COMPREPLY[@]}" .
        }
    "#;
    if !need_tool("bash") {
        return;
    }
    let package = Path::new("/usr/share/bash-completion/bash_completion");
    let home = home_for_completions();
    let mut script = String::from("source <(upstreamproxy completions bash)\n");
    if package.is_file() {
        let _ = writeln!(script, "source {}", package.display());
    } else {
        skip("bash-completion is not installed");
    }
    script += TRY;
    // `=` is a word of its own.
    let equals = [("upstreamproxy run --when = al", "always")];
    let all: Vec<Completion> = COMPLETIONS.into_iter().chain(equals).collect();
    for (line, _) in &all {
        let _ = writeln!(script, "try {line} 2>/dev/null");
    }
    // Without the package, the arguments of COMMAND are completed by the shell's default, outside
    // the function.
    let expected = |line: &str| package.is_file() || !line.ends_with("distinct-command tok");
    let offered = finish(shell(&home, "bash").args(["--norc", "-c", &script])).succeeded();
    let text = offered.text();
    let answers: Vec<&str> = text.split("\n.\n").collect();
    for ((line, word), answer) in all.into_iter().zip(answers) {
        if expected(line) {
            assert!(answer.lines().any(|one| one == word), "{line}: {answer:?}");
        }
    }
}

#[test]
fn fish_completes_command_lines() {
    if !need_tool("fish") {
        return;
    }
    let home = home_for_completions();
    let mut script = String::from("upstreamproxy completions fish | source\n");
    for (line, _) in COMPLETIONS {
        let _ = writeln!(script, "complete -C '{line}'; echo .");
    }
    let offered = finish(shell(&home, "fish").args(["--no-config", "-c", &script])).succeeded();
    assert_eq!(offered.stderr, "");
    let text = offered.text();
    let mut answers = text.split(".\n");
    for (line, word) in COMPLETIONS {
        let answer = answers.next().unwrap();
        let first = |one: &str| one.split('\t').next() == Some(word);
        assert!(answer.lines().any(first), "{line}: {answer:?}");
    }
}

#[test]
fn zsh_completes_command_lines() {
    // A key completes the line in a terminal of its own and prints the result.
    const SCRIPT: &str = r#"
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell 'PS1= PS2= RPS1=; unsetopt beep; autoload -U compinit && compinit -u -D'
        zpty -w shell 'source <(upstreamproxy completions zsh)'
        zpty -w shell 'show() { zle complete-word; print -r -- "<""<$BUFFER>"">"; BUFFER= }'
        zpty -w shell 'zle -N show; bindkey "^T" show; print REA""DY'
        zpty -r -m shell out '*READY*'
        for line in "$@"; do
            zpty -w -n shell "$line"$'\x14'
            zpty -r -m shell out '*<<*>>*'
            out=${out##*<<}
            print -r -- ${out%%>>*}
        done
        zpty -d shell
    "#;
    if !need_tool("zsh") {
        return;
    }
    let home = home_for_completions();
    let lines = COMPLETIONS.iter().map(|(line, _)| line);
    let mut command = shell(&home, "zsh");
    command.args(["-f", "-c", SCRIPT, "zsh"]).args(lines);
    let completed = finish(&mut command).succeeded();
    let text = completed.text();
    let mut answers = text.lines();
    for (line, word) in COMPLETIONS {
        let answer = answers.next().unwrap_or_default();
        let last = answer.split_whitespace().last().unwrap_or_default();
        assert_eq!(last.trim_end_matches('='), word, "{line}: {answer:?}");
    }
}

#[test]
fn the_manual_page_has_no_warnings() {
    if !need_tool("man") || !need_tool("mandoc") {
        return;
    }
    let home = TempHome::new();
    let page = home.path().join("upstreamproxy.1");
    let text = finish(upstreamproxy(&home).arg("man")).succeeded().stdout;
    fs::write(&page, text).unwrap();
    let clean = |command: &mut Command| -> Finished {
        let finished = finish(command.arg(&page).env("LC_ALL", "C.UTF-8"));
        assert_eq!(finished.stderr, "");
        finished
    };
    let shown = clean(home.command("man").args(["--warnings", "-l"])).text();
    assert!(shown.contains("--base-url URL"), "{shown}");
    let lint = clean(home.command("mandoc").args(["-T", "lint", "-W", "style"])).text();
    // The program does not know the day of its release.
    let remarks: Vec<&str> = lint
        .lines()
        .filter(|line| !line.contains("missing date"))
        .collect();
    assert_eq!(remarks, [""; 0]);
}
