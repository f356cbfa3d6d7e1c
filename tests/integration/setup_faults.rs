//! Set-up while single system calls fail: the command always runs as it would run without
//! upstreamproxy.
//!
//! These tests need a mount, a network namespace, or a tracer. `lifecycle` tests the other set-up
//! faults.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::{
    Finished, GatewayProcess, Running, TOKEN, TempHome, binary, finish, need_tool, skip,
};

const OLD_BUNDLE: &str = "the bundle of an earlier session\n";

/// Executes `run` with a child that exits with 42, in an enabled session. `before` is a command
/// prefix, such as a tracer.
fn run_behind(home: &TempHome, base_url: &str, before: &[&str]) -> Finished {
    let arguments = [
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
    let arguments = arguments.concat();
    let mut command = home.command(arguments[0]);
    finish(home.session(command.args(&arguments[1..]), base_url))
}

/// Whether this system allows creating namespaces.
fn need_namespaces() -> bool {
    if !need_tool("unshare") {
        return false;
    }
    let allowed = Command::new("unshare").args(["-m", "-n", "true"]).status();
    if allowed.is_ok_and(|status| status.success()) {
        return true;
    }
    skip("this system allows no namespaces");
    false
}

#[track_caller]
fn assert_disabled(case: &str, stage: &str, home: &TempHome, finished: &Finished) {
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
fn assert_enabled_with_warning(case: &str, warning: &str, finished: &Finished) {
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

fn assert_no_temporary_file(directory: &Path) {
    for entry in fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(Result::unwrap)
    {
        let name = entry.file_name().into_string().unwrap();
        assert!(!name.contains("tmp"), "{name} was not removed");
    }
}

#[test]
fn a_failed_system_call_disables_it_and_leaves_no_temporary_file() {
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
        assert_disabled(&case, stage, &home, &finished);
        assert_eq!(
            fs::read_to_string(home.bundle()).unwrap(),
            OLD_BUNDLE,
            "{case}"
        );
        assert_no_temporary_file(&home.join(".ccr"));
    }
}

#[test]
fn an_interrupted_read_of_the_token_is_retried() {
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
fn a_closed_gate_opens_no_file_and_no_connection() {
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
fn a_token_that_cannot_be_unlinked_is_emptied_or_gives_a_warning_and_the_relay_runs() {
    if !need_namespaces() {
        return;
    }
    let elsewhere = TempHome::new();
    let gateway = GatewayProcess::start(&elsewhere, &[]);
    let script = |prepare: &str| format!("{prepare} && exec \"$@\"");
    for (case, prepare, left) in [
        (
            "a mount point",
            "mount --bind $UPSTREAMPROXY_TOKEN_FILE $UPSTREAMPROXY_TOKEN_FILE",
            "",
        ),
        (
            "a mount point that is read-only",
            "mount --bind $UPSTREAMPROXY_TOKEN_FILE $UPSTREAMPROXY_TOKEN_FILE && \
             mount -o remount,ro,bind $UPSTREAMPROXY_TOKEN_FILE",
            TOKEN,
        ),
        (
            "a read-only file system",
            "mount --bind $HOME/t $HOME/t && mount -o remount,ro,bind $HOME/t",
            TOKEN,
        ),
    ] {
        let home = TempHome::new();
        fs::create_dir(home.join("t")).unwrap();
        let token = home.join("t/session_token");
        fs::rename(home.token_file(), &token).unwrap();
        let run = |keep: &str| {
            let mut command = home.command("unshare");
            command.args(["-m", "sh", "-c", &script(prepare), "sh"]);
            command.args([
                binary(),
                "run",
                "--",
                "sh",
                "-c",
                "echo $HTTPS_PROXY; exit 42",
            ]);
            home.session(&mut command, &gateway.base_url());
            command.env("UPSTREAMPROXY_TOKEN_FILE", &token);
            finish(command.env("UPSTREAMPROXY_KEEP_TOKEN", keep))
        };
        let kept = run("1");
        assert_eq!(kept.status.code(), Some(42), "{case}: {kept:#?}");
        assert_eq!(kept.stderr, "", "{case}");
        assert_enabled_with_warning(case, "burn", &run("0"));
        assert_eq!(fs::read_to_string(&token).unwrap(), left, "{case}");
    }
}

#[test]
fn a_gateway_without_roots_starts_only_if_it_intercepts_nothing() {
    if !need_namespaces() {
        return;
    }
    let home = TempHome::new();
    let sessions = home.write("sessions", "session-1 token-1", 0o600);
    let gateway = |options: &[&str]| {
        let mut command = home.command("unshare");
        // The roots of the distribution disappear with the directory.
        command.args([
            "-m",
            "sh",
            "-c",
            "mount -t tmpfs none /etc/ssl && exec \"$@\"",
            "sh",
        ]);
        command.args([binary(), "gateway", "--listen", "127.0.0.1:0", "--sessions"]);
        command.arg(&sessions).args(options);
        command
    };
    let (running, ready) = Running::ready(&mut gateway(&["--intercept", "none"]));
    assert!(ready["base_url"].is_string(), "{ready}");
    running.stop().succeeded();
    let finished = finish(&mut gateway(&[]));
    assert_eq!(finished.status.code(), Some(2), "{finished:#?}");
    assert!(
        finished.stderr.contains("no root certificates"),
        "{finished:#?}"
    );
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
    // The mount disappears with its namespace, so the shell inside the namespace checks what is
    // left.
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
fn a_bundle_directory_is_created_followed_or_refused() {
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
    assert_eq!(mode(&home.join(".ccr")), 0o755, "independent of the umask");
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
        "the symbolic link is followed"
    );

    let home = TempHome::new();
    fs::write(home.join(".ccr"), "a file").unwrap();
    assert_disabled(
        "a file",
        "ca",
        &home,
        &run_behind(&home, &gateway.base_url(), &["env"]),
    );

    // Modes do not restrict root, so this case runs as another user.
    let home = TempHome::new();
    let mut command = home.as_unprivileged_user();
    fs::create_dir(home.join(".ccr")).unwrap();
    fs::set_permissions(home.join(".ccr"), fs::Permissions::from_mode(0o555)).unwrap();
    command.args(["run", "--", "sh", "-c", "echo $HTTPS_PROXY; exit 42"]);
    let finished = finish(home.session(&mut command, &gateway.base_url()));
    assert_disabled(
        "a directory without write permission",
        "ca",
        &home,
        &finished,
    );
}

#[test]
fn without_a_loopback_interface_the_child_still_runs() {
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
