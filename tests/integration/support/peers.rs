//! The peers in `tests/peers`: independent implementations that share no code with this crate. Both
//! sides agree only through the protocol page.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Python, Running, SESSION, TOKEN, TempHome, TestCa, finish};

/// `gateway.py`, serving on loopback. It reports events as JSON lines.
pub(crate) struct PeerGateway {
    /// The process.
    pub(crate) running: Running,
    port: u16,
}

impl PeerGateway {
    /// Starts a gateway with these further options. Its CA endpoint serves a new test certificate.
    #[track_caller]
    pub(crate) fn start(python: &Python, home: &TempHome, options: &[&str]) -> Self {
        let ca = home.write(
            "peer-ca.pem",
            TestCa::new("CA of the peer gateway").pem,
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

    /// The base URL for the relay.
    pub(crate) fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits for the next event of this kind.
    #[track_caller]
    pub(crate) fn next_event(&self, event: &str) -> Value {
        loop {
            let line = self.running.json();
            if line["event"] == event {
                return line;
            }
        }
    }
}

/// `client.py`, run to its end.
pub(crate) struct PeerClient<'a> {
    python: &'a Python,
    home: &'a TempHome,
    base_url: String,
}

/// What `client.py` reports, and the bytes that it received.
#[derive(Debug)]
pub(crate) struct Received {
    /// Its line of JSON.
    pub(crate) report: Value,
    /// The bytes that it received after the gateway's response head.
    pub(crate) body: Vec<u8>,
}

impl<'a> PeerClient<'a> {
    /// A client of the gateway at `base_url`.
    pub(crate) fn new(python: &'a Python, home: &'a TempHome, base_url: impl Into<String>) -> Self {
        Self {
            python,
            home,
            base_url: base_url.into(),
        }
    }

    /// Opens one tunnel to `target`, sends `payload`, half-closes, and reads to the end.
    #[track_caller]
    pub(crate) fn tunnel(&self, target: &str, payload: &[u8], options: &[&str]) -> Received {
        let sent = self.home.write("sent", payload, 0o600);
        let received = self.home.join("received");
        // An earlier tunnel may have left a file.
        let _ = fs::remove_file(&received);
        let mut command = self.python.peer(self.home, "client.py");
        command
            .args(["--base-url", &self.base_url, "--target", target])
            .args(["--session", SESSION, "--token", TOKEN])
            .args([Path::new("--send"), &sent, Path::new("--out"), &received])
            .args(options);
        let finished = finish(&mut command).succeeded();
        Received {
            report: serde_json::from_slice(&finished.stdout)
                .unwrap_or_else(|e| panic!("{e}: {finished:#?}")),
            body: fs::read(received).unwrap_or_default(),
        }
    }
}
