//! Stopping: a stop must not lose any data in transfer. Also tests how `run` treats its command.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    CannedServer, EchoServer, Ending, GatewayProcess, RelayProcess, Running, TempHome, binary,
    connect, exchange, finish, need_tool, pattern, repetitions, skip_unsupported, upstreamproxy,
};

/// The maximum time for stopping during set-up, on a loaded machine too.
const SOON: Duration = Duration::from_secs(5);

/// `run` with these options before `--`, and a shell that executes `script`.
fn run(home: &TempHome, options: &[&str], script: &str) -> Command {
    let mut command = upstreamproxy(home);
    command.arg("run").args(options);
    command.args(["--", "sh", "-c", script]);
    command
}

// The drain.

#[test]
fn a_drain_under_load_loses_no_byte() {
    const TUNNELS: usize = 5;
    let payload = pattern(8 << 20);
    let target = EchoServer::start();
    for round in 0..repetitions(4, 50) {
        let home = TempHome::new();
        let gateway = GatewayProcess::start(&home, &[]);
        let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
        let port = relay.port();
        // All tunnels transfer data when the signal arrives.
        let (moving, stopped) = (Barrier::new(TUNNELS + 1), Barrier::new(TUNNELS + 1));
        thread::scope(|scope| {
            let tunnels: Vec<_> = (0..TUNNELS)
                .map(|_| {
                    scope.spawn(|| {
                        let (mut stream, answer) = connect(port, &target.authority());
                        assert_eq!(answer.status, 200);
                        let (first, rest) = payload.split_at(64 << 10);
                        stream.write_all(first).unwrap();
                        let mut received = vec![0; first.len()];
                        stream.read_exact(&mut received).unwrap();
                        moving.wait();
                        let mut sender = stream.try_clone().unwrap();
                        let sent = scope.spawn(move || sender.write_all(&rest[..1 << 20]));
                        stopped.wait();
                        sent.join().unwrap().unwrap();
                        let (more, ending) = exchange(&mut stream, rest[1 << 20..].to_vec());
                        received.extend(more);
                        (received, ending)
                    })
                })
                .collect();
            moving.wait();
            // The relay and the gateway are stopped in alternate rounds.
            let stopping = [&relay.running, &gateway.running][round % 2];
            stopping.signal(Signal::TERM);
            stopped.wait();
            if round % 2 == 0 {
                assert_refused_while_draining(port);
            }
            for tunnel in tunnels {
                let (received, ending) = tunnel.join().unwrap();
                assert!(
                    received == payload,
                    "round {round}: {} bytes",
                    received.len()
                );
                assert_eq!(ending, Ending::Eof, "round {round}");
            }
        });
        let finished = if round % 2 == 0 {
            relay.running.wait()
        } else {
            gateway.running.wait()
        };
        assert_eq!(
            finished.status.code(),
            Some(0),
            "round {round}: {finished:#?}"
        );
    }
}

/// A client that connects while a relay drains is refused: by the kernel, by a reset out of the
/// accept queue, or with 503. A client that connects just before the signal gets the usual answer,
/// here 502.
fn assert_refused_while_draining(port: u16) {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        return;
    };
    let mut answer = String::new();
    let written = stream.write_all(b"CONNECT a.test:443 HTTP/1.1\r\n\r\n");
    if written
        .and_then(|()| stream.read_to_string(&mut answer))
        .is_ok()
        && !answer.is_empty()
    {
        let refused = ["HTTP/1.1 503 ", "HTTP/1.1 502 "];
        assert!(refused.iter().any(|r| answer.starts_with(r)), "{answer}");
    }
}

#[test]
fn files_left_by_kill_9_do_not_affect_the_next_start() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let target = EchoServer::start();
    for _ in 0..3 {
        home.write_token(crate::support::TOKEN);
        let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
        assert_eq!(relay.ready["ca_bundle"], home.bundle().to_str().unwrap());
        assert!(relay.running.stderr().lines().all(|l| !l.contains("warn")));
        let env = finish(upstreamproxy(&home).args(["env", "--format", "json"])).succeeded();
        assert!(env.text().contains(&relay.port().to_string()));
        let (mut stream, answer) = connect(relay.port(), &target.authority());
        assert_eq!(answer.status, 200);
        stream.write_all(b"?").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        let port = relay.port();
        relay.running.signal(Signal::KILL);
        relay.running.wait();
        // The kernel closes the connection: with a reset, except in its first 300 ms.
        assert!(stream.read(&mut [0]).map_or(true, |read| read == 0));
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    }
}

// A signal during set-up.

#[test]
fn a_signal_at_any_moment_of_set_up_stops_it_soon_and_leaves_no_partial_files() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let stalling = CannedServer::start("");
    let rounds = repetitions(40, 400);
    for round in 0..rounds {
        let home = TempHome::new();
        let stalls = round % 4 == 0;
        let upstream = if stalls {
            stalling.url()
        } else {
            gateway.base_url()
        };
        let mut command = run(&home, &[], "echo ran; read -r never");
        home.session(&mut command, &upstream);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Kept open, so that only the signal ends the command.
        let _stdin = child.stdin.take();
        // The sleep only varies the moment of the signal. The checks hold at any moment.
        thread::sleep(Duration::from_micros(500) * u32::try_from(round).unwrap());
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let signalled = Instant::now();
        let status = child.wait().unwrap();
        let took = signalled.elapsed();
        let ended = status.code() == Some(143) || status.signal() == Some(15);
        assert!(
            ended && took < SOON,
            "round {round}: {status} after {took:?}"
        );
        assert_no_partial_files(&home, round);
        if stalls {
            assert!(
                home.token_file().exists(),
                "round {round}: deleted too early"
            );
        }
    }
}

/// Checks that there is no temporary file and no partial bundle, and that the token is deleted only
/// if the bundle is complete.
#[track_caller]
fn assert_no_partial_files(home: &TempHome, round: usize) {
    let directory = home.join(".ccr");
    let names = fs::read_dir(&directory).map_or_else(
        |_| Vec::new(),
        |entries| entries.map(|e| e.unwrap().file_name()).collect(),
    );
    let temporary = names.iter().find(|n| n.to_string_lossy().contains("tmp"));
    assert_eq!(temporary, None, "round {round}");
    let Ok(bundle) = fs::read_to_string(home.bundle()) else {
        return assert!(
            home.token_file().exists(),
            "round {round}: deleted too early"
        );
    };
    let (begun, ended) = (bundle.matches("BEGIN CERT"), bundle.matches("END CERT"));
    let (begun, ended) = (begun.count(), ended.count());
    assert!(
        begun > 1 && begun == ended,
        "round {round}: {begun}, {ended}"
    );
}

#[test]
fn a_signal_while_a_tunnel_is_dialled_stops_serve_at_once() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    // The kernel still accepts connections for it, but the stopped process does not serve them.
    gateway.running.signal(Signal::STOP);
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).unwrap();
    client
        .write_all(b"CONNECT a.test:443 HTTP/1.1\r\n\r\n")
        .unwrap();
    let signalled = Instant::now();
    let finished = relay.stop();
    assert_eq!(finished.status.code(), Some(0), "{finished:#?}");
    assert!(signalled.elapsed() < SOON, "{finished:#?}");
    // The client gets an error status or the end of the connection, but no tunnel.
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = [0; 12];
    let read = client.read(&mut answer).unwrap_or(0);
    assert_ne!(&answer[..read], b"HTTP/1.1 200");
    gateway.running.signal(Signal::CONT);
}

// Standard error and standard output that cannot be written.

#[test]
fn an_unwritable_standard_error_does_not_affect_tunnels() {
    let target = EchoServer::start();
    let payload = pattern(1 << 20);
    for (case, script) in [
        ("closed", r#"exec "$@" 2>&-"#),
        ("a full disk", r#"exec "$@" 2>/dev/full"#),
        (
            "a full pipe",
            r#"mkfifo "$HOME/pipe" && exec 3<>"$HOME/pipe" &&
               dd if=/dev/zero of="$HOME/pipe" bs=4096 count=1000 oflag=nonblock 2>/dev/null
               exec "$@" 2>&3"#,
        ),
    ] {
        let home = TempHome::new();
        let gateway = GatewayProcess::start(&home, &[]);
        let mut command = home.command("sh");
        command.args(["-c", script, "sh", binary(), "serve"]);
        command.env("RUST_LOG", "trace");
        let relay = RelayProcess::from(home.session(&mut command, &gateway.base_url()));
        for _ in 0..3 {
            let (mut stream, answer) = connect(relay.port(), &target.authority());
            assert_eq!(answer.status, 200, "{case}");
            let (received, ending) = exchange(&mut stream, payload.clone());
            assert!(received == payload && ending == Ending::Eof, "{case}");
        }
        let finished = relay.stop();
        assert_eq!(finished.status.code(), Some(0), "{case}: {finished:#?}");
    }
}

#[test]
fn an_unwritable_standard_output_does_not_affect_tunnels() {
    let target = EchoServer::start();
    for script in [r#"exec "$@" >&-"#, r#"exec "$@" >/dev/full"#] {
        let home = TempHome::new();
        let gateway = GatewayProcess::start(&home, &[]);
        let mut command = home.command("sh");
        command.args(["-c", script, "sh", binary(), "serve"]);
        let relay = Running::spawn(home.session(&mut command, &gateway.base_url()));
        // The state file is written before the ready line, which is lost here.
        let began = Instant::now();
        let env = loop {
            let env = finish(upstreamproxy(&home).args(["env", "--format", "json"]));
            if env.status.success() {
                break env;
            }
            assert!(began.elapsed() < crate::support::TIMEOUT, "{env:#?}");
        };
        let env: serde_json::Value = serde_json::from_slice(&env.stdout).unwrap();
        let url = env["HTTPS_PROXY"].as_str().unwrap();
        let port = url.rsplit(':').next().unwrap().parse().unwrap();
        let (mut stream, answer) = connect(port, &target.authority());
        assert_eq!(answer.status, 200);
        let (received, _) = exchange(&mut stream, b"all the same".to_vec());
        assert_eq!(received, b"all the same");
        let finished = relay.stop();
        assert_eq!(finished.status.code(), Some(0), "{script}: {finished:#?}");
    }
}

// `run` and its command.

#[test]
fn bytes_pass_from_pipe_to_pipe_unchanged() {
    let home = TempHome::new();
    let mut command = home.command("sh");
    let script = "head -c 3000000 /dev/urandom >sent; cat sent | \"$0\" run --embedded -q -- cat | cmp - sent && echo same";
    command
        .args(["-c", script, binary()])
        .current_dir(home.path());
    assert_eq!(finish(&mut command).succeeded().text(), "same\n");
}

/// A shell script that prints the name of each of these signals when it receives it, and exits with
/// 5 at USR2. It prints `{}` when it is ready.
fn print_signals(signals: &str) -> String {
    format!(
        "for s in {signals}; do trap \"echo '\\\"'$s'\\\"'\" $s; done; trap 'exit 5' USR2; \
         echo '{{}}'; while :; do sleep 0.02; done"
    )
}

#[test]
fn each_signal_reaches_the_command_once_and_a_command_that_ignores_term_is_not_killed() {
    let home = TempHome::new();
    let mut command = run(
        &home,
        &["--when", "never"],
        &print_signals("HUP INT QUIT USR1 ALRM WINCH CONT"),
    );
    let running = Running::spawn(&mut command);
    running.json();
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::ALARM, "ALRM"),
        (Signal::WINCH, "WINCH"),
        (Signal::CONT, "CONT"),
    ] {
        running.signal(signal);
        assert_eq!(running.json(), name);
    }
    running.signal(Signal::USR2);
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(5), "{finished:#?}");
    assert_eq!(finished.text(), "", "a signal arrived twice");

    // A command that ignores TERM is not killed, even after several signals.
    let ignoring_term = format!("trap '' TERM; {}", print_signals("USR1"));
    let running = Running::spawn(&mut run(&home, &["--when", "never"], &ignoring_term));
    running.json();
    for _ in 0..3 {
        running.signal(Signal::TERM);
        running.signal(Signal::USR1);
        assert_eq!(running.json(), "USR1", "the command still runs");
    }
    running.signal(Signal::USR2);
    assert_eq!(running.wait().status.code(), Some(5));
}

#[test]
fn an_interrupt_from_the_terminal_reaches_the_command_once() {
    if !need_tool("script") {
        return;
    }
    let home = TempHome::new();
    let inner = "trap 'echo INTERRUPTED' INT; echo READY; \
                 for i in 1 2 3 4 5 6; do read -r word && [ \"$word\" = end ] && { tty; exit 7; }; done";
    let file = home.write("inner", inner, 0o644);
    // Without `exec`, the shell that `script` starts would also get the interrupt, and end.
    let run_command = format!(
        "exec '{}' run --when never -- sh '{}'",
        binary(),
        file.display()
    );
    let mut terminal = home
        .command("script")
        .args([
            "--quiet",
            "--return",
            "--flush",
            "--command",
            &run_command,
            "/dev/null",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = terminal.stdin.take().unwrap();
    let mut screen = terminal.stdout.take().unwrap();
    let mut shown = String::new();
    read_until_shown(&mut screen, &mut shown, "READY");
    keys.write_all(b"\x03").unwrap();
    read_until_shown(&mut screen, &mut shown, "INTERRUPTED");
    keys.write_all(b"end\n").unwrap();
    screen.read_to_string(&mut shown).unwrap();
    assert_eq!(terminal.wait().unwrap().code(), Some(7), "{shown}");
    assert_eq!(shown.matches("INTERRUPTED").count(), 1, "{shown}");
    assert!(
        shown.contains("/dev/pts/"),
        "the command has the terminal: {shown}"
    );
}

/// Reads until `wanted` was shown on the screen.
#[track_caller]
fn read_until_shown(screen: &mut impl Read, shown: &mut String, wanted: &str) {
    let mut byte = [0];
    while !shown.contains(wanted) {
        assert_eq!(screen.read(&mut byte).unwrap(), 1, "{wanted}: {shown}");
        shown.push(byte[0].into());
    }
}

#[test]
fn as_pid_1_it_forwards_signals_and_reaps_orphans() {
    if !need_tool("unshare") {
        return;
    }
    let home = TempHome::new();
    // Creates an orphan that exits, waits until there is no zombie process, and reports TERM.
    let script = "[ $PPID = 1 ] || exit 3; sh -c 'sh -c \"exit 4\" & exit 0'; \
                  while grep -qs '^State:.*Z' /proc/[0-9]*/status; do sleep 0.02; done; \
                  trap 'echo 9; exit 9' TERM; echo 1; while :; do sleep 0.02; done";
    let mut command = home.command("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"])
        .args([binary(), "run", "--when", "never", "--", "sh", "-c", script]);
    if !finish(
        home.command("unshare")
            .args(["--pid", "--fork", "--mount-proc", "true"]),
    )
    .status
    .success()
    {
        return skip_unsupported("this system allows no PID namespaces");
    }
    let running = Running::spawn(&mut command);
    assert_eq!(running.json(), 1);
    // `unshare` is the parent of PID 1.
    let pid = running.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let init = children.split_whitespace().next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(init).unwrap(), Signal::TERM).unwrap();
    assert_eq!(running.json(), 9);
    assert_eq!(running.wait().status.code(), Some(9));
}

#[test]
fn run_ends_with_its_command_although_tunnels_are_open() {
    let home = TempHome::new();
    let target = EchoServer::start();
    // The command leaves a background process with an idle tunnel.
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/${{HTTPS_PROXY##*:}}; printf 'CONNECT {} HTTP/1.1\\r\\n\\r\\n' >&3; \
         read -r answer <&3; echo \"$answer\"; (sleep 600 <&3 >/dev/null 2>&1 &); exit 6",
        target.authority()
    );
    if !need_tool("bash") {
        return;
    }
    let mut command = upstreamproxy(&home);
    command.args(["run", "--embedded", "--", "bash", "-c", &script]);
    let began = Instant::now();
    let finished = finish(&mut command);
    assert_eq!(finished.status.code(), Some(6), "{finished:#?}");
    assert!(finished.text().starts_with("HTTP/1.1 200"), "{finished:#?}");
    assert!(began.elapsed() < Duration::from_secs(30), "{finished:#?}");
}

#[test]
fn a_file_size_limit_disables_it_and_the_command_runs() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&TempHome::new(), &[]);
    let mut command = home.command("sh");
    let script = "ulimit -f 1; exec \"$0\" run -- sh -c 'kill -XFSZ $$; echo survived' || true";
    command.args(["-c", script, binary()]);
    let finished = finish(home.session(&mut command, &gateway.base_url()));
    assert!(finished.stderr.contains("disabled at ca"), "{finished:#?}");
    // The command gets the signal as it would without upstreamproxy: 128 + 25.
    assert_eq!((finished.status.code(), &*finished.text()), (Some(153), ""));
}
