//! A file system and a kernel that fail set-up at one call or another: the host always goes on as it would have without us.
//!
//! What `lifecycle` holds is not repeated here; these need a mount, a network namespace or a tracer of their own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::{Finished, GatewayProcess, TOKEN, TempHome, binary, finish, need_tool, skip};

const OLD_BUNDLE: &str = "the bundle of an earlier session\n";

/// `run` of a child that exits with 42, behind `before` (a shell's words, such as a tracer), as a session that would start.
fn run_behind(home: &TempHome, base_url: &str, before: &[&str]) -> Finished {
    let words = [
        before,
        &[
            binary(),
            "run",
            "--",
            "sh",
            "-c",
            "echo $HTTPS_PROXY; exit 42",
        ],
    ];
    let words = words.concat();
    let mut command = home.command(words[0]);
    finish(home.session(command.args(&words[1..]), base_url))
}

/// Whether a namespace of one's own can be had.
fn need_namespaces() -> bool {
    if !need_tool("unshare") {
        return false;
    }
    let allowed = Command::new("unshare").args(["-m", "-n", "true"]).status();
    if allowed.is_ok_and(|status| status.success()) {
        return true;
    }
    skip("no namespaces of one's own here");
    false
}

#[track_caller]
fn is_off(case: &str, stage: &str, home: &TempHome, finished: &Finished) {
    assert_eq!(finished.status.code(), Some(42), "{case}: {finished:#?}");
    assert_eq!(finished.text().trim(), "", "{case}: no proxy");
    assert_eq!(finished.warnings().len(), 1, "{case}: {finished:#?}");
    assert!(
        finished.warnings()[0].contains(stage),
        "{case}: {finished:#?}"
    );
    assert_eq!(
        fs::read_to_string(home.token_file()).unwrap(),
        TOKEN,
        "{case}"
    );
}

#[track_caller]
fn is_on(case: &str, warning: &str, finished: &Finished) {
    assert_eq!(finished.status.code(), Some(42), "{case}: {finished:#?}");
    assert!(
        finished.text().starts_with("http://127.0.0.1:"),
        "{case}: {finished:#?}"
    );
    assert_eq!(finished.warnings().len(), 1, "{case}: {finished:#?}");
    assert!(
        finished.warnings()[0].contains(warning),
        "{case}: {finished:#?}"
    );
}

fn no_temporary_file(folder: &Path) {
    for entry in fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(Result::unwrap)
    {
        let name = entry.file_name().into_string().unwrap();
        assert!(!name.contains("tmp"), "{name} stays behind");
    }
}

#[test]
fn a_system_call_that_fails_switches_it_off_and_leaves_nothing_behind() {
    if !need_tool("strace") {
        return;
    }
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    for (stage, calls, error, of_the_token) in [
        ("token", "read", "EIO", true),
        ("ca", "fsync", "EIO", false),
        ("ca", "fsync", "ENOSPC", false),
        ("ca", "rename,renameat,renameat2", "EXDEV", false),
        ("ca", "rename,renameat,renameat2", "EROFS", false),
    ] {
        let case = format!("{calls} {error}");
        let home = TempHome::new();
        fs::create_dir(home.join(".ccr")).unwrap();
        fs::write(home.bundle(), OLD_BUNDLE).unwrap();
        let inject = format!("inject={calls}:error={error}");
        let token = home.token_file();
        let mut before = vec!["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject];
        if of_the_token {
            before.extend(["-P", token.to_str().unwrap()]);
        }
        let finished = run_behind(&home, &gateway.base_url(), &before);
        is_off(&case, stage, &home, &finished);
        assert_eq!(
            fs::read_to_string(home.bundle()).unwrap(),
            OLD_BUNDLE,
            "{case}"
        );
        no_temporary_file(&home.join(".ccr"));
    }
}

#[test]
fn an_interrupted_read_of_the_token_is_tried_again() {
    if !need_tool("strace") {
        return;
    }
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let token = home.token_file();
    let before = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=read:error=EINTR:when=1..3",
        "-P",
        token.to_str().unwrap(),
    ];
    let finished = run_behind(&home, &gateway.base_url(), &before);
    assert!(
        finished.text().starts_with("http://127.0.0.1:"),
        "{finished:#?}"
    );
    assert!(finished.warnings().is_empty(), "{finished:#?}");
}

#[test]
fn a_closed_gate_opens_no_file_of_ours() {
    if !need_tool("strace") {
        return;
    }
    let home = TempHome::new();
    let trace = home.join("trace");
    let mut command = home.command("strace");
    command.args(["-f", "-qq", "-e", "trace=file,network", "-o"]);
    command.arg(&trace).args([binary(), "run", "--", "true"]);
    let finished = finish(
        home.session(&mut command, "http://127.0.0.1:9")
            .env("CLAUDE_CODE_REMOTE", "0"),
    );
    assert_eq!(finished.succeeded().stderr, "");
    let seen = fs::read_to_string(trace).unwrap();
    for trace_of in ["session_token\"", ".ccr", "connect(", "bind("] {
        assert!(!seen.contains(trace_of), "{trace_of}: {seen}");
    }
}

#[test]
fn a_token_that_the_kernel_will_not_unlink_is_a_warning_and_the_relay_runs() {
    if !need_namespaces() {
        return;
    }
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    let script = |prepare: &str| format!("{prepare} && exec \"$@\"");
    for (case, prepare) in [
        (
            "a mount point",
            "mount --bind $UPSTREAMPROXY_TOKEN_FILE $UPSTREAMPROXY_TOKEN_FILE",
        ),
        (
            "a read-only file system",
            "mount --bind $HOME/t $HOME/t && mount -o remount,ro,bind $HOME/t",
        ),
    ] {
        let home = TempHome::new();
        fs::create_dir(home.join("t")).unwrap();
        let token = home.join("t/session_token");
        fs::rename(home.token_file(), &token).unwrap();
        let mut command = home.command("unshare");
        command.args([
            "-m",
            "sh",
            "-c",
            &script(prepare),
            "sh",
            binary(),
            "run",
            "--",
            "sh",
            "-c",
            "echo $HTTPS_PROXY; exit 42",
        ]);
        home.session(&mut command, &gateway.base_url());
        command.env("UPSTREAMPROXY_TOKEN_FILE", &token);
        is_on(case, "burn", &finish(&mut command));
        assert_eq!(fs::read_to_string(&token).unwrap(), TOKEN, "{case}");
    }
}

#[test]
fn a_full_disk_leaves_the_old_bundle_and_no_temporary_file() {
    if !need_namespaces() {
        return;
    }
    let home = TempHome::new();
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    fs::create_dir(home.join(".ccr")).unwrap();
    // The mount is gone with its namespace, so the shell inside looks at what is left.
    let script = "mount -t tmpfs -o size=64k none $HOME/.ccr && echo old > $HOME/.ccr/ca-bundle.crt && \"$@\"; \
        code=$?; cat $HOME/.ccr/ca-bundle.crt; ls $HOME/.ccr | grep -c tmp; exit $code";
    let mut command = home.command("unshare");
    command.args([
        "-m",
        "sh",
        "-c",
        script,
        "sh",
        binary(),
        "run",
        "--",
        "sh",
        "-c",
        "echo proxy:$HTTPS_PROXY; exit 42",
    ]);
    let finished = finish(home.session(&mut command, &gateway.base_url()));
    assert_eq!(finished.status.code(), Some(42), "{finished:#?}");
    assert_eq!(finished.text(), "proxy:\nold\n0\n", "{finished:#?}");
    assert_eq!(finished.warnings().len(), 1, "{finished:#?}");
    assert!(finished.warnings()[0].contains("ca"), "{finished:#?}");
    assert!(home.token_file().exists());
}

#[test]
fn a_folder_of_the_bundle_is_made_followed_or_refused() {
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);

    let home = TempHome::new();
    let finished = run_behind(
        &home,
        &gateway.base_url(),
        &["sh", "-c", "umask 0777 && exec \"$@\"", "sh"],
    );
    assert!(
        finished.text().starts_with("http://127.0.0.1:"),
        "{finished:#?}"
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home.join(".ccr")), 0o755, "whatever the umask");
    assert_eq!(mode(&home.bundle()), 0o644);

    let home = TempHome::new();
    fs::create_dir(home.join("real")).unwrap();
    symlink(home.join("real"), home.join(".ccr")).unwrap();
    let finished = run_behind(&home, &gateway.base_url(), &["env"]);
    assert!(
        finished.text().starts_with("http://127.0.0.1:"),
        "{finished:#?}"
    );
    assert!(
        home.join("real/ca-bundle.crt").exists(),
        "a link is followed"
    );

    let home = TempHome::new();
    fs::write(home.join(".ccr"), "a file").unwrap();
    is_off(
        "a file",
        "ca",
        &home,
        &run_behind(&home, &gateway.base_url(), &["env"]),
    );

    // Modes bind everybody but root.
    let home = TempHome::new();
    let mut command = home.as_unprivileged_user();
    fs::create_dir(home.join(".ccr")).unwrap();
    fs::set_permissions(home.join(".ccr"), fs::Permissions::from_mode(0o555)).unwrap();
    command.args(["run", "--", "sh", "-c", "echo $HTTPS_PROXY; exit 42"]);
    let finished = finish(home.session(&mut command, &gateway.base_url()));
    is_off("closed", "ca", &home, &finished);
}

#[test]
fn without_a_loopback_the_child_runs_all_the_same() {
    if !need_namespaces() {
        return;
    }
    let home = TempHome::new();
    let mut command = home.command("unshare");
    command.args([
        "-n",
        binary(),
        "run",
        "--embedded",
        "--",
        "sh",
        "-c",
        "echo $HTTPS_PROXY; exit 42",
    ]);
    let finished = finish(&mut command);
    assert_eq!(finished.status.code(), Some(42), "{finished:#?}");
    assert_eq!(finished.text().trim(), "", "{finished:#?}");
    assert_eq!(finished.warnings().len(), 1, "{finished:#?}");
}
