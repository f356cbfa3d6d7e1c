//! The `doctor` command: it reports every step, it reports each problem with a remedy, and it
//! changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::process::Signal;
use serde_json::Value;
use upstreamproxy::cli::Step;

use crate::serve::tls_gateway;
use crate::support::{
    CannedServer, EchoServer, Finished, GatewayProcess, HttpsOrigin, RelayProcess, TOKEN, TempHome,
    finish, upstreamproxy,
};

/// The JSON document of `doctor --json`.
struct Diagnosis {
    well: bool,
    findings: Vec<Value>,
}

impl Diagnosis {
    /// Runs the command, which must be a `doctor --json`, and checks that its exit status matches
    /// its result.
    #[track_caller]
    fn of(command: &mut Command) -> Self {
        let finished = finish(command);
        let text = finished.text();
        assert!(!format!("{text}{}", finished.stderr).contains(TOKEN));
        let document: Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {finished:#?}"));
        let diagnosis = Self {
            well: document["well"].as_bool().unwrap(),
            findings: document["findings"].as_array().unwrap().clone(),
        };
        let code = i32::from(!diagnosis.well);
        assert_eq!(finished.status.code(), Some(code), "{finished:#?}");
        let mut steps: Vec<&str> = diagnosis
            .findings
            .iter()
            .map(|finding| finding["step"].as_str().unwrap())
            .collect();
        // The variables may have more than one problem.
        steps.dedup();
        assert_eq!(
            steps,
            Step::ALL.map(Step::name),
            "every step once, in order"
        );
        diagnosis
    }

    /// Runs `doctor --json` for the session in `home` at `base_url`.
    #[track_caller]
    fn at(home: &TempHome, base_url: &str, options: &[&str]) -> Self {
        let mut command = upstreamproxy(home);
        command.args(["doctor", "--json"]).args(options);
        Self::of(home.session(&mut command, base_url))
    }

    #[track_caller]
    fn step(&self, step: Step) -> &Value {
        let found = self.findings.iter().find(|f| f["step"] == step.name());
        found.unwrap()
    }

    /// The steps with this verdict.
    fn with(&self, verdict: &str) -> Vec<&str> {
        let found = self.findings.iter().filter(|f| f["verdict"] == verdict);
        found.map(|f| f["step"].as_str().unwrap()).collect()
    }

    /// Fails unless the step is wrong, with these texts in its description and its remedy.
    #[track_caller]
    fn assert_wrong(&self, step: Step, what: &str, remedy: &str) {
        let found = self.step(step);
        let contains = |field: &str, expected: &str| {
            found[field]
                .as_str()
                .is_some_and(|text| text.contains(expected))
        };
        assert!(
            contains("what", what) && contains("remedy", remedy),
            "{found}"
        );
    }

    #[track_caller]
    fn assert_all_well(&self) {
        assert!(self.well, "{:#?}", self.findings);
        assert_eq!(self.with("wrong"), [""; 0]);
    }
}

/// All files below a directory, with everything that a change would modify.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let found = fs::symlink_metadata(&path).unwrap();
            let times = (found.mtime_nsec(), found.ctime_nsec());
            let content = if found.is_file() {
                fs::read(&path).unwrap()
            } else {
                pending.push(path.clone());
                Vec::new()
            };
            all.insert(path, (found.mode(), times.0, times.1, content));
        }
    }
    all
}

#[test]
fn doctor_reports_no_problem_with_the_embedded_gateway() {
    let home = TempHome::new();
    let before = snapshot(home.path());
    let lines = finish(upstreamproxy(&home).args(["doctor", "--embedded"])).succeeded();
    let text = lines.text();
    let steps: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(": ").next())
        .collect();
    assert_eq!(steps, Step::ALL.map(Step::name), "{lines:#?}");
    assert!(!text.contains(": wrong, "), "{text}");

    let diagnosis = Diagnosis::of(upstreamproxy(&home).args(["doctor", "--embedded", "--json"]));
    diagnosis.assert_all_well();
    let round_trip = diagnosis.step(Step::RoundTrip);
    assert_eq!(round_trip["bytes_up"], 16384, "{round_trip}");
    assert_eq!(round_trip["bytes_down"], 16384, "{round_trip}");
    for hello in [Step::PostQuantumHello, Step::EchHello] {
        let hello = diagnosis.step(hello);
        assert_eq!(hello["verdict"], "ok", "{hello}");
        assert_eq!(hello["bytes_up"], hello["bytes_down"], "{hello}");
    }
    assert_eq!(snapshot(home.path()), before);
}

#[test]
fn doctor_reports_no_problem_if_the_embedded_gateway_intercepts_everything() {
    let home = TempHome::new();
    let options = ["doctor", "--embedded", "--json", "--intercept", "*"];
    Diagnosis::of(upstreamproxy(&home).args(options)).assert_all_well();
}

#[test]
fn doctor_checks_the_path_through_a_wss_gateway_to_a_tls_target_and_changes_nothing() {
    let (home, origin) = (TempHome::new(), HttpsOrigin::start("origin.test"));
    let ca = TempHome::new();
    let ca_file = ca.write("ca.pem", origin.ca_pem(), 0o644);
    for intercept in ["none", "*"] {
        let gateway_home = TempHome::new();
        let (gateway, trust) = tls_gateway_with(
            &gateway_home,
            &[
                "--resolve",
                &origin.resolve(),
                "--intercept",
                intercept,
                "--target-ca",
                ca_file.to_str().unwrap(),
            ],
        );
        let before = snapshot(home.path());
        let accessed = fs::metadata(home.token_file()).unwrap().atime_nsec();
        let options = ["--target", &origin.authority(), &trust, "-vv"];
        let diagnosis = Diagnosis::at(&home, &gateway.base_url(), &options);
        assert_eq!(
            fs::metadata(home.token_file()).unwrap().atime_nsec(),
            accessed,
            "the access time of the token file is unchanged"
        );
        assert_eq!(snapshot(home.path()), before);
        diagnosis.assert_all_well();
        assert_eq!(diagnosis.with("skipped"), [""; 0]);
        let tls = diagnosis.step(Step::Tls);
        assert_eq!(tls["version"], "TLSv1_3", "{tls}");
        assert_eq!(tls["issuer"], "CN=root of the gateway", "{tls}");
        assert_eq!(diagnosis.step(Step::Upgrade)["wire"], 2);
        for step in [Step::RoundTrip, Step::PostQuantumHello, Step::EchHello] {
            let found = diagnosis.step(step);
            let detail = found["detail"].as_str().unwrap();
            assert!(detail.ends_with("ServerHello"), "{intercept}: {found}");
            assert!(found["bytes_down"].as_u64() > Some(43), "{found}");
        }
        assert_eq!(diagnosis.step(Step::PostQuantumHello)["bytes_up"], 1750);
    }
}

/// The same as `tls_gateway`, with further options.
fn tls_gateway_with(home: &TempHome, options: &[&str]) -> (GatewayProcess, String) {
    let (_, trust) = tls_gateway(home);
    let file = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (file("gateway.pem"), file("gateway.key"));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    (
        GatewayProcess::start(home, &[&tls, options].concat()),
        trust,
    )
}

#[test]
fn a_gateway_with_an_untrusted_certificate_is_wrong_in_ca_and_tls() {
    let home = TempHome::new();
    let (gateway, _) = tls_gateway(&home);
    let diagnosis = Diagnosis::at(&home, &gateway.base_url(), &[]);
    diagnosis.assert_wrong(Step::Ca, "not issued by a CA", "--upstream-ca");
    diagnosis.assert_wrong(Step::Tls, "not issued by a CA", "--upstream-ca");
    assert_eq!(diagnosis.with("wrong"), ["ca", "tls"]);
    let skipped = diagnosis.with("skipped");
    assert_eq!(skipped[..3], ["upgrade", "opening", "round trip"]);
}

#[test]
fn a_response_that_is_not_an_upgrade_is_reported_with_a_remedy() {
    let page = b"<html>please log in</html>";
    let elsewhere = "302 Found\r\nLocation: http://127.0.0.1:9/";
    for (status, body, what, remedy) in [
        (
            "401 Unauthorized",
            &b""[..],
            "does not accept this session's token",
            "new session",
        ),
        (
            "404 Not Found",
            b"",
            "no tunnel endpoint",
            "check the base URL",
        ),
        (elsewhere, b"", "redirects", "check the base URL"),
        ("200 OK", page, "with a page", "captive portal"),
        (
            "503 Service Unavailable",
            b"",
            "no tunnel free",
            "try again in a moment",
        ),
        (
            "500 Internal Server Error",
            b"",
            "error of its own",
            "try again later",
        ),
    ] {
        let (home, server) = (TempHome::new(), CannedServer::answering(status, body));
        let diagnosis = Diagnosis::at(&home, &server.url(), &[]);
        diagnosis.assert_wrong(Step::Upgrade, what, remedy);
        assert_eq!(diagnosis.with("wrong"), ["ca", "upgrade"], "{status}");
        assert!(home.token_file().exists());
        assert!(!home.join(".ccr").exists());
    }
}

#[test]
fn a_gateway_that_does_not_listen_and_an_unknown_name_are_distinguished() {
    let home = TempHome::new();
    let before = snapshot(home.path());
    let diagnosis = Diagnosis::at(&home, "http://127.0.0.1:9", &[]);
    diagnosis.assert_wrong(
        Step::Connect,
        "refused the connection",
        "check that it runs",
    );
    let diagnosis = Diagnosis::at(&home, "https://gateway.invalid", &[]);
    diagnosis.assert_wrong(Step::Resolve, "name was not found", "DNS");
    assert_eq!(diagnosis.with("wrong"), ["ca", "resolve"]);
    assert_eq!(snapshot(home.path()), before);
}

#[test]
fn without_a_token_the_steps_that_need_none_are_checked() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    fs::remove_file(home.token_file()).unwrap();
    let diagnosis = Diagnosis::at(&home, &gateway.base_url(), &[]);
    diagnosis.assert_wrong(Step::Token, "does not exist", "fresh token");
    assert_eq!(diagnosis.with("wrong"), ["token"]);
    assert_eq!(diagnosis.step(Step::Connect)["verdict"], "ok");
    assert_eq!(diagnosis.step(Step::Opening)["verdict"], "skipped");
}

#[test]
fn a_closed_gate_is_the_only_problem_reported() {
    let home = TempHome::new();
    let diagnosis = Diagnosis::of(upstreamproxy(&home).args(["doctor", "--json"]));
    assert_eq!(diagnosis.with("wrong"), ["gate"]);
    assert_eq!(diagnosis.with("ok"), ["variables"]);
}

#[test]
fn a_target_that_the_gateway_forbids_is_reported_as_policy() {
    let home = TempHome::new();
    let gateway = GatewayProcess::strict(&home, &[]);
    let target = EchoServer::start();
    let options = ["--target", &target.authority()];
    let diagnosis = Diagnosis::at(&home, &gateway.base_url(), &options);
    diagnosis.assert_wrong(Step::Opening, "policy, do not retry", "ask its operator");
    assert_eq!(diagnosis.with("wrong"), ["opening"]);
    assert_eq!(target.connections(), 0);
}

#[test]
fn a_gateway_that_forbids_the_default_target_is_not_a_problem() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let diagnosis = Diagnosis::at(&home, &gateway.base_url(), &[]);
    diagnosis.assert_all_well();
    let round_trip = diagnosis.step(Step::RoundTrip);
    let why = round_trip["why"].as_str().unwrap();
    assert!(why.contains("--target"), "{why}");
}

#[test]
fn with_a_target_without_tls_the_round_trip_is_checked_and_the_hellos_are_skipped() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let target = EchoServer::start();
    let options = ["--target", &target.authority()];
    let diagnosis = Diagnosis::at(&home, &gateway.base_url(), &options);
    diagnosis.assert_all_well();
    assert_eq!(diagnosis.step(Step::RoundTrip)["verdict"], "ok");
    assert_eq!(
        diagnosis.with("skipped"),
        ["tls", "post-quantum hello", "ech hello"]
    );
}

/// A server that answers a small ClientHello with a TLS alert, and closes the connection on a large
/// one.
fn start_server_that_closes_on_large_hellos() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut header = [0; 5];
            if stream.read_exact(&mut header).is_err() {
                continue;
            }
            let length = u16::from_be_bytes([header[3], header[4]]);
            let mut body = vec![0; length.into()];
            if stream.read_exact(&mut body).is_ok() && length < 1000 {
                let _ = stream.write_all(&[21, 3, 3, 0, 2, 2, 40]);
            }
        }
    });
    port
}

#[test]
fn a_target_that_accepts_only_small_hellos_is_detected() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let target = format!("127.0.0.1:{}", start_server_that_closes_on_large_hellos());
    let diagnosis = Diagnosis::at(&home, &gateway.base_url(), &["--target", &target]);
    let detail = &diagnosis.step(Step::RoundTrip)["detail"];
    assert!(
        detail.as_str().unwrap().ends_with("alert HandshakeFailure"),
        "{detail}"
    );
    diagnosis.assert_wrong(Step::PostQuantumHello, "1750 bytes", "middlebox");
    assert_eq!(diagnosis.with("wrong"), ["post-quantum hello"]);
}

/// Runs `doctor` in a shell after `script`, which may evaluate the output of `env`.
fn doctor_in_shell(home: &TempHome, base_url: &str, script: &str, options: &[&str]) -> Finished {
    let mut command = home.command("sh");
    command
        .args(["-c", &format!("{script}; exec \"$0\" doctor --json \"$@\"")])
        .arg(crate::support::binary())
        .args(options);
    finish(home.session(&mut command, base_url))
}

#[test]
fn next_to_a_running_serve_doctor_uses_its_port() {
    for options in [&[][..], &["--listen-credential"]] {
        let (home, origin) = (TempHome::new(), HttpsOrigin::start("origin.test"));
        let gateway = GatewayProcess::start(&home, &["--resolve", &origin.resolve()]);
        let relay = RelayProcess::start(&home, &gateway.base_url(), options);
        let before = snapshot(home.path());
        let target = ["--target", &origin.authority()];
        let evaluated = "eval \"$(\"$0\" env)\"";
        let finished = doctor_in_shell(&home, &gateway.base_url(), evaluated, &target).succeeded();
        assert_eq!(snapshot(home.path()), before);
        let document: Value = serde_json::from_slice(&finished.stdout).unwrap();
        for finding in document["findings"].as_array().unwrap() {
            let detail = finding["detail"].as_str().unwrap_or_default();
            match finding["step"].as_str().unwrap() {
                "token" | "burn" => assert!(detail.starts_with("deleted"), "{finding}"),
                "round trip" => assert!(detail.ends_with("ServerHello"), "{finding}"),
                "upgrade" => assert_eq!(finding["verdict"], "skipped", "{finding}"),
                _ => {}
            }
        }
        let password = relay.ready["env"]["HTTPS_PROXY"].as_str().unwrap();
        let password = password.split_once('@').map(|(userinfo, _)| userinfo);
        assert!(password.is_none_or(|p| !finished.text().contains(p)));
        let log = relay.stop().stderr;
        assert!(log.contains(&origin.authority()), "{log}");
    }
}

#[test]
fn in_a_shell_without_the_variables_of_a_running_serve_doctor_reports_how_to_set_them() {
    let (home, target) = (TempHome::new(), EchoServer::start());
    let gateway = GatewayProcess::start(&home, &[]);
    let _relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let options = ["--target", &target.authority()];
    let diagnosis = Diagnosis::at(&home, &gateway.base_url(), &options);
    diagnosis.assert_wrong(
        Step::Variables,
        "none of the variables",
        "upstreamproxy env",
    );
    assert_eq!(diagnosis.with("wrong"), ["variables"]);
}

#[test]
fn in_a_shell_with_the_variables_of_a_dead_serve_doctor_reports_that_it_does_not_listen() {
    let home = TempHome::new();
    let gateway = GatewayProcess::start(&home, &[]);
    let relay = RelayProcess::start(&home, &gateway.base_url(), &[]);
    let proxy = relay.ready["env"]["HTTPS_PROXY"]
        .as_str()
        .unwrap()
        .to_owned();
    relay.running.signal(Signal::KILL);
    relay.running.wait();
    home.write_token(TOKEN);
    let mut command = upstreamproxy(&home);
    command
        .args(["doctor", "--json"])
        .env("HTTPS_PROXY", proxy)
        .env("SSL_CERT_FILE", "/nowhere/bundle.crt");
    let diagnosis = Diagnosis::of(home.session(&mut command, &gateway.base_url()));
    assert_eq!(diagnosis.with("wrong"), ["variables", "variables"]);
    diagnosis.assert_wrong(Step::Variables, "(HTTPS_PROXY)", "unset");
    let file = diagnosis.findings.last().unwrap();
    assert!(
        file["what"]
            .as_str()
            .unwrap()
            .contains("/nowhere/bundle.crt"),
        "{file}"
    );
}
