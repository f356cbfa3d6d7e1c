//! Where the session token can come from: each source with the real binary, and what remains of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::{
    Finished, GatewayProcess, TOKEN, TempHome, binary, finish, need_tool, upstreamproxy,
};

/// What the child prints if proxying is on.
const CHILD: [&str; 3] = ["sh", "-c", "echo ${HTTPS_PROXY:-none}"];

/// A session whose default token file does not exist: the token can only come from the source under
/// test.
fn session(home: &TempHome, gateway: &GatewayProcess, command: &mut Command) -> Finished {
    let _ = fs::remove_file(home.token_file());
    home.session(command, &gateway.base_url());
    finish(command)
}

#[track_caller]
fn assert_enabled(case: &str, finished: &Finished) {
    assert!(
        finished.text().starts_with("http://127.0.0.1:"),
        "{case}: {finished:#?}"
    );
    assert!(!finished.stderr.contains(TOKEN), "{case}: {finished:#?}");
}

#[test]
fn a_stream_is_read_once_and_no_child_inherits_it() {
    if !need_tool("bash") || !need_tool("mkfifo") {
        return;
    }
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    let cases = [
        (
            "standard input",
            "printf %s $TOKEN | $UP run --token-file - -- $CHILD",
        ),
        (
            "standard input by its path",
            "$UP run --token-file /dev/stdin -- $CHILD <<< $TOKEN",
        ),
        (
            "process substitution",
            "$UP run --token-file <(echo $TOKEN) -- $CHILD",
        ),
        (
            "a descriptor of a pipe",
            "exec 7< <(echo $TOKEN); $UP run --token-fd 7 -- $CHILD",
        ),
        (
            "a descriptor of a file that is already deleted",
            "echo $TOKEN > $HOME/t; exec 9< $HOME/t; rm $HOME/t; $UP run --token-fd 9 -- $CHILD",
        ),
        (
            "a FIFO",
            "mkfifo $HOME/fifo; (sleep 0.2; echo $TOKEN > $HOME/fifo) & \
             $UP run --token-file $HOME/fifo -- $CHILD",
        ),
    ];
    for (case, script) in cases {
        let home = TempHome::new();
        let child = home.write(
            "child",
            "#!/bin/sh\necho ${HTTPS_PROXY:-none}\nls -l /proc/self/fd\n",
            0o755,
        );
        let mut command = home.command("bash");
        command.args(["-c", &format!("set -e; {script}")]);
        // The shell that starts the program keeps its own copy of TOKEN. No child has it.
        command
            .env("UP", binary())
            .env("CHILD", child)
            .env("TOKEN", TOKEN);
        let finished = session(&home, &gateway, &mut command);
        assert_enabled(case, &finished);
        // Standard streams, and the directory that ls reads.
        let inherited = |number: u32| finished.text().contains(&format!(" {number} -> "));
        assert!(
            !inherited(7) && !inherited(9) && !inherited(63),
            "{case}: {finished:#?}"
        );
        assert_eq!(finished.stderr, "", "{case}");
    }
}

#[test]
fn a_source_without_a_token_disables_the_proxy_and_the_command_runs() {
    if !need_tool("bash") {
        return;
    }
    for (case, script, why) in [
        (
            "empty input",
            "$UP run --token-file - -- $CHILD < /dev/null",
            "standard input is empty",
        ),
        (
            "a closed descriptor",
            "$UP run --token-fd 77 -- $CHILD",
            "the descriptor 77 cannot be read",
        ),
        (
            "standard output",
            "$UP run --token-fd 1 -- $CHILD",
            "the descriptor 1 cannot be read",
        ),
        (
            "an endless stream",
            "$UP run --token-file - -- $CHILD < /dev/zero",
            "standard input is larger than 65536 bytes",
        ),
    ] {
        let home = TempHome::new();
        let mut command = home.command("bash");
        command.args(["-c", script]);
        command.env("UP", binary()).env("CHILD", "echo ran");
        home.session(&mut command, "http://127.0.0.1:9");
        let finished = finish(&mut command);
        assert_eq!(finished.text(), "ran\n", "{case}: {finished:#?}");
        assert_eq!(finished.warnings().len(), 1, "{case}: {finished:#?}");
        assert!(
            finished.warnings()[0].contains(why),
            "{case}: {finished:#?}"
        );
    }
}

/// A Kubernetes secret volume: `token -> ..data/token`, `..data -> ..2026_11_26_1`.
fn secret_volume(home: &TempHome) -> std::path::PathBuf {
    let volume = home.join("volume");
    fs::create_dir_all(volume.join("..2026_11_26_1")).unwrap();
    fs::write(volume.join("..2026_11_26_1/token"), TOKEN).unwrap();
    symlink("..2026_11_26_1", volume.join("..data")).unwrap();
    symlink("..data/token", volume.join("token")).unwrap();
    volume.join("token")
}

#[test]
fn a_mounted_secret_is_read_and_kept() {
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    for (options, warnings) in [(&[][..], 1), (&["--keep-token"][..], 0)] {
        let home = TempHome::new();
        let token = secret_volume(&home);
        let mut command = upstreamproxy(&home);
        command
            .arg("run")
            .args(options)
            .arg("--token-file")
            .arg(&token);
        let finished = session(&home, &gateway, command.arg("--").args(CHILD));
        assert_enabled("a mounted secret", &finished);
        assert_eq!(finished.warnings().len(), warnings, "{finished:#?}");
        assert_eq!(fs::read_to_string(token).unwrap(), TOKEN);
    }
}

#[test]
fn a_credential_of_systemd_needs_no_option_and_is_kept() {
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    let home = TempHome::new();
    let credentials = home.join("credentials");
    fs::create_dir(&credentials).unwrap();
    // Mode and place as with LoadCredential=upstreamproxy-token:PATH.
    let token = home.write("credentials/upstreamproxy-token", TOKEN, 0o440);
    let mut command = upstreamproxy(&home);
    command.args(["run", "--"]).args(CHILD);
    home.session(&mut command, &gateway.base_url());
    // The session of the tests names its token file, which would be used.
    command.env_remove("UPSTREAMPROXY_TOKEN_FILE");
    let finished = finish(command.env("CREDENTIALS_DIRECTORY", credentials));
    assert_enabled("a credential", &finished);
    assert_eq!(finished.stderr, "");
    assert!(token.exists());
}
