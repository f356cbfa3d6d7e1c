//! The variables of this shell, held against those that it should have: each that is missing or another's is named, each
//! file is looked for, and each proxy on this machine is dialled.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::RunningServe;
use super::check::{Check, Problem, Step};
use super::client::{loopback, url_parts};
use crate::config::{Config, Environment};
use crate::http::authority::Authority;
use crate::setup::child_env::{self, ChildEnv};

/// The variables that tools take a proxy from, besides those of the table.
const FURTHER_PROXIES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// Holds the environment of this process against what it should have; one finding for each thing that is wrong.
pub(super) fn walk(config: &Config, living: Option<&RunningServe>, tell: &mut dyn FnMut(Check)) {
    let shell = &config.inherited;
    let troubles = [
        living.and_then(|living| missing(shell, living)),
        living.and_then(|living| different(shell, living)),
        dead_proxies(shell, config.limits.connect_timeout),
        absent_files(shell),
    ];
    let mut well = true;
    for trouble in troubles.into_iter().flatten() {
        well = false;
        tell(Check::wrong(Step::Variables, trouble));
    }
    if well {
        tell(Check::ok(Step::Variables, what_is_set(shell, living)));
    }
}

fn what_is_set(shell: &Environment, living: Option<&RunningServe>) -> String {
    if let Some(living) = living {
        return format!("those of the serve with process id {}", living.pid);
    }
    let set = child_env::proxy_variables().any(|name| shell.lookup(name).is_some());
    if set {
        "set in this shell, and what they name is there; `run` sets its own".to_owned()
    } else {
        "not set here, `run` sets them for its command".to_owned()
    }
}

/// What a shell beside this `serve` should have.
fn expected(shell: &Environment, living: &RunningServe) -> Vec<(String, OsString)> {
    ChildEnv {
        proxy: living.proxy.clone(),
        bundle: living.ca_bundle.clone(),
        wgetrc: living.wgetrc.clone(),
    }
    .variables(shell)
}

const EVALUATE: &str = "run `eval \"$(upstreamproxy env)\"` in this shell, and start again what was started in it before";

fn missing(shell: &Environment, living: &RunningServe) -> Option<Problem> {
    let expected = expected(shell, living);
    let names: Vec<&str> = expected
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| shell.lookup(name).is_none())
        .collect();
    match names.len() {
        0 => None,
        n if n == expected.len() => Some(Problem::new(
            format!(
                "none of the variables of the serve with process id {} is set in this shell, so its tools go past the proxy",
                living.pid
            ),
            EVALUATE,
        )),
        _ => Some(Problem::new(
            format!("not set in this shell: {}", names.join(", ")),
            EVALUATE,
        )),
    }
}

fn different(shell: &Environment, living: &RunningServe) -> Option<Problem> {
    let mut others = Vec::new();
    for (name, should) in expected(shell, living) {
        let Some(is) = shell.lookup(&name).filter(|is| **is != *should) else {
            continue;
        };
        let is_path = should == living.ca_bundle.as_os_str()
            || living.wgetrc.as_deref().is_some_and(|file| should == file);
        others.push(if should == *living.proxy {
            // Less a password that may be in either.
            let (is, should) = (is.to_string_lossy(), should.to_string_lossy());
            let (is, should) = (url_parts(&is).1, url_parts(&should).1);
            format!("{name} (is {is}, should be {should})")
        } else if is_path {
            format!(
                "{name} (is {}, should be {})",
                is.display(),
                should.display()
            )
        } else {
            name
        });
    }
    (!others.is_empty()).then(|| {
        Problem::new(
            format!(
                "other than the serve with process id {} has it: {}",
                living.pid,
                others.join(", ")
            ),
            EVALUATE,
        )
    })
}

/// The proxies on this machine that nobody listens on.
fn dead_proxies(shell: &Environment, within: Duration) -> Option<Problem> {
    let mut named: BTreeMap<SocketAddr, Vec<&str>> = BTreeMap::new();
    for name in child_env::proxy_variables().chain(FURTHER_PROXIES) {
        let authority = shell
            .text(name)
            .and_then(|url| url_parts(url).1.parse::<Authority>().ok());
        if let Some(address) = authority.as_ref().and_then(loopback) {
            named.entry(address).or_default().push(name);
        }
    }
    let dead: Vec<String> = named
        .iter()
        .filter_map(|(address, names)| {
            let error = TcpStream::connect_timeout(address, within).err()?;
            Some(format!("{address} ({}): {error}", names.join(", ")))
        })
        .collect();
    (!dead.is_empty()).then(|| {
        Problem::new(
            format!("no proxy listens where this shell has one: {}", dead.join("; ")),
            "its serve or run has ended: unset these variables, or start another one and evaluate its variables",
        )
    })
}

/// The CA files that are named and cannot be read.
fn absent_files(shell: &Environment) -> Option<Problem> {
    let mut named: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    for name in child_env::ca_variables().chain(["WGETRC"]) {
        if let Some(path) = shell.lookup(name) {
            named.entry(Path::new(path)).or_default().push(name);
        }
    }
    let absent: Vec<String> = named
        .iter()
        .filter_map(|(path, names)| {
            let error = std::fs::metadata(path).err()?;
            Some(format!(
                "{} ({}): {error}",
                path.display(),
                names.join(", ")
            ))
        })
        .collect();
    (!absent.is_empty()).then(|| {
        Problem::new(
            format!(
                "files that this shell's variables name cannot be found: {}",
                absent.join("; ")
            ),
            "unset these variables, or evaluate those of a serve that runs",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;
    use std::net::{Ipv4Addr, TcpListener};

    /// A `serve` whose port answers and whose bundle is there, as long as both are held.
    fn serve() -> (RunningServe, TcpListener, tempfile::NamedTempFile) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let bundle = tempfile::NamedTempFile::new().unwrap();
        let relay = listener.local_addr().unwrap();
        let living = RunningServe {
            pid: 7,
            relay,
            proxy: format!("http://upstreamproxy:canary@{relay}"),
            ca_bundle: bundle.path().to_owned(),
            wgetrc: None,
        };
        (living, listener, bundle)
    }

    fn evaluated(living: &RunningServe) -> Environment {
        expected(&Environment::default(), living)
            .into_iter()
            .collect()
    }

    fn findings(shell: Environment, living: Option<&RunningServe>) -> Vec<Check> {
        let config = Config {
            inherited: shell,
            ..Config::default()
        };
        let mut all = Vec::new();
        walk(&config, living, &mut |finding| all.push(finding));
        assert!(!format!("{all:?}").contains("canary"), "{all:?}");
        all
    }

    #[track_caller]
    fn what_is_wrong(shell: Environment, living: Option<&RunningServe>) -> String {
        match &findings(shell, living)[..] {
            [
                Check {
                    verdict: Verdict::Wrong { what, remedy },
                    ..
                },
            ] if !remedy.is_empty() => what.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_shell_that_evaluated_the_variables_is_well() {
        let (living, _listener, _bundle) = serve();
        assert!(!findings(evaluated(&living), Some(&living))[0].is_wrong());
    }

    #[test]
    fn a_variable_that_is_missing_or_another_is_named() {
        let (living, _listener, _bundle) = serve();
        let none = what_is_wrong(Environment::default(), Some(&living));
        assert!(none.starts_with("none of"), "{none}");

        let mut shell = evaluated(&living);
        shell.set("PIP_CERT", "");
        let missing = what_is_wrong(shell, Some(&living));
        assert_eq!(missing, "not set in this shell: PIP_CERT");

        let mut shell = evaluated(&living);
        shell.set("HTTPS_PROXY", "http://user:canary@proxy.example:3128");
        shell.set("NO_PROXY", "localhost");
        let other = what_is_wrong(shell, Some(&living));
        let (relay, is) = (living.relay, "proxy.example:3128");
        assert!(
            other.contains(&format!("HTTPS_PROXY (is {is}, should be {relay})")),
            "{other}"
        );
        assert!(other.ends_with("NO_PROXY"), "{other}");
    }

    #[test]
    fn a_proxy_that_nobody_listens_on_and_a_file_that_is_not_there_are_named() {
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
    fn without_a_serve_a_bare_shell_is_well_and_a_proxy_elsewhere_is_not_dialled() {
        let shell = [("HTTPS_PROXY", "http://proxy.invalid:3128")];
        assert!(!findings(shell.into_iter().collect(), None)[0].is_wrong());
        let bare = &findings(Environment::default(), None)[0].verdict;
        assert!(matches!(bare, Verdict::Ok(detail) if detail.starts_with("not set here")));
    }
}
