//! The outside peers of `tests/peers`: they share no code with ours, so the two agree only by the protocol page.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Python, Running, SESSION, TOKEN, TempHome, TestCa, finish};

/// `gateway.py`, serving on loopback; what it saw comes as JSON lines.
pub(crate) struct OutsideGateway {
    /// The process.
    pub(crate) running: Running,
    port: u16,
}

impl OutsideGateway {
    /// Starts one with these further options; its CA endpoint serves a certificate of the test's own.
    #[track_caller]
    pub(crate) fn start(python: &Python, home: &TempHome, options: &[&str]) -> Self {
        let ca = home.write(
            "peer-ca.pem",
            TestCa::new("ca of the outside gateway").pem,
            0o644,
        );
        let mut command = python.peer(home, "gateway.py");
        command
            .args(["--session", SESSION, "--token", TOKEN, "--ca-pem"])
            .arg(ca)
            .args(options);
        let (running, ready) = Running::ready(&mut command);
        let port = ready["port"].as_u64().and_then(|p| u16::try_from(p).ok());
        Self {
            running,
            port: port.expect("a port"),
        }
    }

    /// The base URL for our relay.
    pub(crate) fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next thing of this kind that it saw.
    #[track_caller]
    pub(crate) fn saw(&self, event: &str) -> Value {
        loop {
            let line = self.running.json();
            if line["event"] == event {
                return line;
            }
        }
    }
}

/// `client.py`, run to its end.
pub(crate) struct OutsideClient<'a> {
    python: &'a Python,
    home: &'a TempHome,
    base_url: String,
}

/// What `client.py` saw, and the bytes that came back.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Its line of JSON.
    pub(crate) report: Value,
    /// What came down the tunnel behind the gateway's head.
    pub(crate) body: Vec<u8>,
}

impl<'a> OutsideClient<'a> {
    /// A client of the gateway at `base_url`.
    pub(crate) fn new(python: &'a Python, home: &'a TempHome, base_url: impl Into<String>) -> Self {
        Self {
            python,
            home,
            base_url: base_url.into(),
        }
    }

    /// One tunnel to `target`: sends `payload`, half-closes, reads to the end.
    #[track_caller]
    pub(crate) fn tunnel(&self, target: &str, payload: &[u8], options: &[&str]) -> Seen {
        let sent = self.home.write("sent", payload, 0o600);
        let came = self.home.join("came");
        // One from an earlier tunnel must not be taken for this one's.
        let _ = fs::remove_file(&came);
        let mut command = self.python.peer(self.home, "client.py");
        command
            .args(["--base-url", &self.base_url, "--target", target])
            .args(["--session", SESSION, "--token", TOKEN])
            .args([Path::new("--send"), &sent, Path::new("--out"), &came])
            .args(options);
        let finished = finish(&mut command).succeeded();
        Seen {
            report: serde_json::from_slice(&finished.stdout)
                .unwrap_or_else(|e| panic!("{e}: {finished:#?}")),
            body: fs::read(came).unwrap_or_default(),
        }
    }
}
