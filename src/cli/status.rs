//! `status` and `stop`: ask the running `serve` for its counters, and end it.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::config::Environment;
use crate::control::hosts::HostStats;
use crate::probe::options::RunningServe;

use super::exit_status::ExitStatus;
use super::output::{eprint_line, json_line, print};
use super::state;
use super::status_socket::{HostRow, Report, query};

/// How long `stop` waits after the end of the drain.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause between two checks whether the process has ended.
const CHECK_PAUSE: Duration = Duration::from_millis(20);

/// Prints the status of the running `serve`.
pub(crate) fn run(json: bool, environment: &Environment) -> ExitStatus {
    let Some((path, running)) = state::find(environment) else {
        return ExitStatus::FAILED;
    };
    match query(&path) {
        Ok((_, report)) => {
            let text = if json {
                json_line(&report)
            } else {
                render(&report)
            };
            print(text.as_bytes());
            ExitStatus::SUCCESS
        }
        Err(error) => no_answer(&running, &error),
    }
}

/// Stops the running `serve`, and waits until it has ended.
pub(crate) fn stop(environment: &Environment) -> ExitStatus {
    let Some((path, running)) = state::find(environment) else {
        return ExitStatus::FAILED;
    };
    let pid = running.pid;
    // The state file may be shared with a container, where the number means another process.
    match query(&path) {
        Ok((seen, _)) if seen == pid => {}
        Ok(_) => {
            eprint_line(&format!(
                "the serve is process {pid} of another container; run `upstreamproxy stop` there"
            ));
            return ExitStatus::FAILED;
        }
        Err(error) => return no_answer(&running, &error),
    }
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(target) = target else {
        return ExitStatus::FAILED;
    };
    let timeout = Duration::from_millis(running.drain_timeout_ms).saturating_add(EXIT_TIMEOUT);
    let start = Instant::now();
    if let Err(error) = kill_process(target, Signal::TERM)
        && state::is_running(&path, pid)
    {
        eprint_line(&format!(
            "cannot send SIGTERM to the serve with process ID {pid}: {error}; stop it as its user"
        ));
        return ExitStatus::FAILED;
    }
    while state::is_running(&path, pid) {
        if start.elapsed() >= timeout {
            let seconds = timeout.as_secs();
            eprint_line(&format!(
                "the serve with process ID {pid} has not ended in {seconds} s; \
                 a second SIGTERM cuts its tunnels"
            ));
            return ExitStatus::FAILED;
        }
        thread::sleep(CHECK_PAUSE);
    }
    ExitStatus::SUCCESS
}

fn no_answer(running: &RunningServe, error: &std::io::Error) -> ExitStatus {
    let pid = running.pid;
    eprint_line(&format!(
        "the serve with process ID {pid} does not answer: {error}; \
         see its log, and send SIGTERM to stop it"
    ));
    ExitStatus::FAILED
}

fn render(report: &Report) -> String {
    let upstream = &report.upstream;
    let embedded = if upstream.embedded { " (embedded)" } else { "" };
    let mut text = format!(
        "serve: process ID {}, {}, for {} s\nupstream: {}{embedded}, session {}\n",
        report.pid, report.relay, report.uptime_seconds, upstream.base_url, upstream.session_id
    );
    let token = report.token.as_deref().unwrap_or("none is needed");
    let _ = writeln!(text, "token: {token}");
    let mut row = |name: &str, stats: &HostStats| {
        let _ = writeln!(
            text,
            "{name}: {} open, {} tunnels, {} refused, {} broken, {} bytes up, {} bytes down",
            stats.open,
            stats.tunnels,
            stats.refused,
            stats.broken,
            stats.bytes_up,
            stats.bytes_down
        );
    };
    row("total", &report.total);
    for HostRow { host, stats } in &report.hosts {
        // A client chooses the name.
        row(&format!("  {}", host.escape_debug()), stats);
    }
    if report.other_hosts != HostStats::default() {
        row("  other hosts", &report.other_hosts);
    }
    text
}
