//! Compares the variables of this shell with those that it should have: names each that is missing
//! or different, looks for each file, connects to each proxy on this machine, and names the
//! settings files of tools that win over the variables.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::check::{Check, Step};
use crate::config::{Config, Environment};
use crate::http::authority::Authority;
use crate::probe::client::{loopback, url_parts};
use crate::probe::options::RunningServe;
use crate::probe::problem::Problem;
use crate::setup::{child_env, tool_settings};

const EVAL_REMEDY: &str = "run `eval \"$(upstreamproxy env)\"` in this shell, and restart the programs that were started before";
/// Variables that tools read a proxy from, in addition to those of the table.
const FURTHER_PROXIES: [&str; 2] = ["ALL_PROXY", "all_proxy"];

/// Checks the environment of this process; one check for each problem.
pub(super) fn check_all(
    config: &Config,
    running: Option<&RunningServe>,
    report: &mut dyn FnMut(Check),
) {
    let shell = &config.inherited;
    let problems = [
        running.and_then(|running| missing(shell, running)),
        running.and_then(|running| different(shell, running)),
        dead_proxies(shell, config.limits.connect_timeout),
        absent_files(shell),
        overriding_settings(shell, running),
    ];
    let mut well = true;
    for problem in problems.into_iter().flatten() {
        well = false;
        report(Check::wrong(Step::Variables, problem));
    }
    if well {
        report(Check::ok(Step::Variables, what_is_set(shell, running)));
    }
}

fn what_is_set(shell: &Environment, running: Option<&RunningServe>) -> String {
    if let Some(running) = running {
        return format!("those of the serve with process ID {}", running.pid);
    }
    let set = child_env::proxy_variables().any(|name| shell.lookup(name).is_some());
    if set {
        "set in this shell, and the proxies and files exist; `run` sets its own".to_owned()
    } else {
        "not set here; `run` sets them for its command".to_owned()
    }
}

fn missing(shell: &Environment, running: &RunningServe) -> Option<Problem> {
    let expected = running.variables(shell);
    let names: Vec<&str> = expected
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| shell.lookup(name).is_none())
        .collect();
    let what = match names.len() {
        0 => return None,
        n if n == expected.len() => format!(
            "none of the variables of the serve with process ID {} is set in this shell: its tools bypass the proxy",
            running.pid
        ),
        _ => format!("not set in this shell: {}", names.join(", ")),
    };
    Some(Problem::new(what, EVAL_REMEDY))
}

fn different(shell: &Environment, running: &RunningServe) -> Option<Problem> {
    let mut others = Vec::new();
    for (name, should) in running.variables(shell) {
        let Some(is) = shell.lookup(&name).filter(|is| **is != *should) else {
            continue;
        };
        others.push(if should == *running.child_env.proxy {
            // Without the password that either URL may contain.
            let (is, should) = (is.to_string_lossy(), should.to_string_lossy());
            let (is, should) = (url_parts(&is).1, url_parts(&should).1);
            format!("{name} (is {is}, should be {should})")
        } else if Path::new(&should).is_absolute() {
            format!(
                "{name} (is {}, should be {})",
                is.display(),
                should.display()
            )
        } else {
            name
        });
    }
    let what = format!("different from the serve with process ID {}", running.pid);
    problem(&what, &others.join(", "), EVAL_REMEDY)
}

/// The problem `what: list`, unless the list is empty.
fn problem(what: &str, list: &str, remedy: &str) -> Option<Problem> {
    (!list.is_empty()).then(|| Problem::new(format!("{what}: {list}"), remedy))
}

/// The proxies on this machine that do not accept connections.
fn dead_proxies(shell: &Environment, within: Duration) -> Option<Problem> {
    let named = child_env::proxy_variables().chain(FURTHER_PROXIES);
    let named = named.filter_map(|name| {
        let authority: Authority = url_parts(shell.text(name)?).1.parse().ok()?;
        Some((loopback(&authority)?, name))
    });
    let dead = failing(named, SocketAddr::to_string, |address| {
        TcpStream::connect_timeout(address, within).map(drop)
    });
    problem(
        "no proxy listens at an address that this shell uses",
        &dead,
        "its serve or run has ended: unset these variables, or start another serve and evaluate its variables",
    )
}

/// The CA files that are named and cannot be found.
fn absent_files(shell: &Environment) -> Option<Problem> {
    let named = child_env::file_variables();
    let named = named.filter_map(|name| Some((Path::new(shell.lookup(name)?), name)));
    let absent = failing(
        named,
        |path| path.display().to_string(),
        |path| std::fs::metadata(path).map(drop),
    );
    problem(
        "files named by this shell's variables do not exist",
        &absent,
        "unset these variables, or evaluate those of a running serve",
    )
}

/// The settings in files of tools that win over the variables. The address of the running `serve`
/// is no problem.
fn overriding_settings(shell: &Environment, running: Option<&RunningServe>) -> Option<Problem> {
    let of_serve = |value: &str| {
        let authority = url_parts(value).1.trim_end_matches('/').parse();
        running.is_some_and(|running| authority == Ok(running.relay))
    };
    let settings = tool_settings::found(shell);
    let settings = settings
        .iter()
        .filter(|found| !found.is_overridden() && !of_serve(&found.value));
    let list: Vec<String> = settings
        .map(|found| {
            format!(
                "{} in {} ({})",
                found.name,
                found.file.display(),
                found.tool
            )
        })
        .collect();
    problem(
        "settings files of tools win over the variables",
        &list.join(", "),
        "remove these settings, or set them to the values of HTTPS_PROXY and CURL_CA_BUNDLE",
    )
}

/// Those values that fail the `test`, each once, with the variables that have it and the error.
fn failing<T: Ord>(
    named: impl Iterator<Item = (T, &'static str)>,
    display: impl Fn(&T) -> String,
    test: impl Fn(&T) -> io::Result<()>,
) -> String {
    let mut values: BTreeMap<T, Vec<&str>> = BTreeMap::new();
    for (value, name) in named {
        values.entry(value).or_default().push(name);
    }
    let failed = values.iter().filter_map(|(value, names)| {
        let error = test(value).err()?;
        Some(format!(
            "{} ({}): {error}",
            display(value),
            names.join(", ")
        ))
    });
    failed.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;
    use crate::setup::child_env::ChildEnv;
    use std::net::{Ipv4Addr, TcpListener};

    /// A `serve` whose port answers and whose bundle exists while both guards are alive.
    fn serve() -> (RunningServe, TcpListener, tempfile::NamedTempFile) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let bundle = tempfile::NamedTempFile::new().unwrap();
        let relay = listener.local_addr().unwrap();
        let running = RunningServe {
            pid: 7,
            relay,
            upstream: None,
            child_env: ChildEnv {
                proxy: format!("http://upstreamproxy:canary@{relay}"),
                bundle: bundle.path().to_owned(),
                files: Vec::new(),
                npm_roots: false,
                omitted: Vec::new(),
            },
        };
        (running, listener, bundle)
    }

    fn evaluated(running: &RunningServe) -> Environment {
        let bare = Environment::default();
        running.variables(&bare).into_iter().collect()
    }

    fn checks(shell: Environment, running: Option<&RunningServe>) -> Vec<Check> {
        let config = Config {
            inherited: shell,
            ..Config::default()
        };
        let mut all = Vec::new();
        check_all(&config, running, &mut |check| all.push(check));
        assert!(!format!("{all:?}").contains("canary"), "{all:?}");
        all
    }

    #[track_caller]
    fn what_is_wrong(shell: Environment, running: Option<&RunningServe>) -> String {
        match &checks(shell, running)[..] {
            [
                Check {
                    verdict: Verdict::Wrong(problem),
                    ..
                },
            ] if !problem.remedy.is_empty() => problem.what.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_shell_that_evaluated_the_variables_is_well() {
        let (running, _listener, _bundle) = serve();
        assert!(!checks(evaluated(&running), Some(&running))[0].is_wrong());
    }

    #[test]
    fn a_variable_that_is_missing_or_another_is_named() {
        let (running, _listener, _bundle) = serve();
        let none = what_is_wrong(Environment::default(), Some(&running));
        assert!(none.starts_with("none of"), "{none}");

        let mut shell = evaluated(&running);
        shell.set("PIP_CERT", "");
        let missing = what_is_wrong(shell, Some(&running));
        assert_eq!(missing, "not set in this shell: PIP_CERT");

        let mut shell = evaluated(&running);
        shell.set("HTTPS_PROXY", "http://user:canary@proxy.example:3128");
        shell.set("NO_PROXY", "localhost");
        let other = what_is_wrong(shell, Some(&running));
        let (relay, is) = (running.relay, "proxy.example:3128");
        assert!(
            other.contains(&format!("HTTPS_PROXY (is {is}, should be {relay})")),
            "{other}"
        );
        assert!(other.ends_with("NO_PROXY"), "{other}");
    }

    #[test]
    fn a_proxy_that_does_not_listen_and_a_missing_file_are_named() {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let shell = [
            ("https_proxy", format!("http://u:canary@{address}/")),
            ("ALL_PROXY", address.to_string()),
        ];
        let dead = what_is_wrong(shell.into_iter().collect(), None);
        assert!(
            dead.contains(&format!("{address} (https_proxy, ALL_PROXY)")),
            "{dead}"
        );

        let shell = [("GIT_SSL_CAINFO", "/nowhere/bundle.crt")];
        let absent = what_is_wrong(shell.into_iter().collect(), None);
        assert!(
            absent.contains("/nowhere/bundle.crt (GIT_SSL_CAINFO)"),
            "{absent}"
        );
    }

    #[test]
    fn a_settings_file_that_wins_over_the_variables_is_named_without_its_value() {
        let (running, _listener, _bundle) = serve();
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".curlrc");
        let mut shell = evaluated(&running);
        shell.set("HOME", home.path());
        std::fs::write(&file, "proxy = http://u:canary@proxy.example:3128\n").unwrap();
        let wrong = what_is_wrong(shell.clone(), Some(&running));
        assert!(
            wrong.ends_with(&format!("proxy in {} (curl)", file.display())),
            "{wrong}"
        );

        std::fs::write(&file, format!("proxy = http://{}/\n", running.relay)).unwrap();
        assert!(!checks(shell, Some(&running))[0].is_wrong());
    }

    #[test]
    fn without_a_serve_a_bare_shell_is_well_and_a_proxy_elsewhere_is_not_dialled() {
        let shell = [("HTTPS_PROXY", "http://proxy.invalid:3128")];
        assert!(!checks(shell.into_iter().collect(), None)[0].is_wrong());
        let bare = &checks(Environment::default(), None)[0].verdict;
        assert!(matches!(bare, Verdict::Ok(detail) if detail.starts_with("not set here")));
    }
}
