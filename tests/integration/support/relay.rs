//! The two ends as processes: `upstreamproxy gateway` and `upstreamproxy serve`.

use std::process::Command;

use serde_json::Value;

use super::{Finished, Running, SESSION, TOKEN, TempHome, upstreamproxy};

/// `upstreamproxy gateway` on loopback, with the session of the tests.
pub(crate) struct GatewayProcess {
    /// The process.
    pub(crate) running: Running,
    /// Its ready line.
    pub(crate) ready: Value,
}

impl GatewayProcess {
    /// Starts a gateway that connects to any address and intercepts nothing, unless `options`
    /// override it.
    #[track_caller]
    pub(crate) fn start(home: &TempHome, options: &[&str]) -> Self {
        let mut defaults = vec!["--allow-private"];
        if !options.contains(&"--intercept") {
            defaults.extend(["--intercept", "none"]);
        }
        Self::strict(home, &[&defaults, options].concat())
    }

    /// Starts a gateway with only these options: the default address policy applies.
    #[track_caller]
    pub(crate) fn strict(home: &TempHome, options: &[&str]) -> Self {
        Self::with_sessions(home, &format!("# test\n{SESSION} {TOKEN}\n"), options)
    }

    /// Starts a gateway with only these options, for the sessions in `sessions`.
    #[track_caller]
    pub(crate) fn with_sessions(home: &TempHome, sessions: &str, options: &[&str]) -> Self {
        let sessions = home.write("sessions", sessions, 0o600);
        let mut command = upstreamproxy(home);
        command
            .args(["gateway", "--listen", "127.0.0.1:0", "--sessions"])
            .arg(sessions)
            .args(options);
        let (running, ready) = Running::ready(&mut command);
        Self { running, ready }
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        let port = self.base_url().rsplit(':').next().map(str::parse);
        port.expect("a port").expect("a number")
    }

    /// Its base URL.
    pub(crate) fn base_url(&self) -> String {
        self.ready["base_url"]
            .as_str()
            .expect("a base URL")
            .to_owned()
    }
}

/// `upstreamproxy serve`, enabled.
pub(crate) struct RelayProcess {
    /// The process.
    pub(crate) running: Running,
    /// Its ready line.
    pub(crate) ready: Value,
}

impl RelayProcess {
    /// Starts a relay in `home` with the upstream at `base_url`.
    #[track_caller]
    pub(crate) fn start(home: &TempHome, base_url: &str, options: &[&str]) -> Self {
        let mut command = upstreamproxy(home);
        command.arg("serve").args(options);
        Self::from(home.session(&mut command, base_url))
    }

    /// Starts `command`, which must be a `serve` command.
    #[track_caller]
    pub(crate) fn from(command: &mut Command) -> Self {
        let (running, ready) = Running::ready(command);
        assert_eq!(ready["enabled"], true, "{ready}\n{}", running.stderr());
        Self { running, ready }
    }

    /// The relay's port.
    pub(crate) fn port(&self) -> u16 {
        let port = self.ready["port"]
            .as_u64()
            .and_then(|p| u16::try_from(p).ok());
        port.expect("a port")
    }

    /// Stops it and returns its exit status and output.
    #[track_caller]
    pub(crate) fn stop(self) -> Finished {
        self.running.stop()
    }
}
