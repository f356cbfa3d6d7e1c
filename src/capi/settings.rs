//! Settings by the names of the command line's long options: laid over the host's environment, and read by the one parser that
//! the command line has too. What cannot be used is refused when it is set; what the environment says stays fail-open.

use std::ffi::{OsStr, OsString, c_int};
use std::os::unix::ffi::OsStrExt;

use super::codes::{ApiError, ERROR_SETTING, ERROR_VALUE, OK};
use crate::config::{
    Cancel, Config, DEFAULT_BASE_URL, Environment, Reader, UnusableSetting, When, parse_bool,
};
use crate::embedded::EmbeddedOptions;
use crate::setup::gate;

/// The settings, each with the meaning of the option of this name.
const NAMES: [&str; 20] = [
    "when",
    "embedded",
    "base-url",
    "session-id",
    "token-file",
    "upstream-ca",
    "system-ca",
    "ca-bundle",
    "listen",
    "allow-non-loopback",
    "allow-any-user",
    "listen-credential",
    "intercept",
    "resolve",
    "max-tunnels",
    "standby",
    "drain-timeout",
    "connect-timeout",
    "keepalive",
    "idle-timeout",
];

/// The one setting that only a host needs: whether the process, which is the host's, is made non-dumpable.
const HARDEN: &str = "harden";

/// What a start can be told; still the caller's words.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The environment that children would have without us.
    inherited: Environment,
    /// The same with the settings laid over it.
    layered: Environment,
    harden: bool,
    cancel: Cancel,
}

impl Settings {
    /// The settings that this environment asks for.
    pub(super) fn of(environment: Environment) -> Self {
        Self {
            layered: environment.clone(),
            inherited: environment,
            harden: true,
            cancel: Cancel::default(),
        }
    }

    /// Takes one setting, if there is such a one and it can have this value.
    pub(super) fn set(&mut self, name: &[u8], value: &[u8]) -> Result<c_int, ApiError> {
        let known = |known: &&&str| known.as_bytes() == name;
        if name == HARDEN.as_bytes() {
            let value = str::from_utf8(value).unwrap_or_default();
            self.harden = parse_bool(value).map_err(|expected| refused(HARDEN, expected))?;
            return Ok(OK);
        }
        let Some(name) = NAMES.iter().find(known) else {
            return Err(ApiError::new(
                ERROR_SETTING,
                format!(
                    "there is no setting {}; there are {}, {HARDEN}",
                    name.escape_ascii(),
                    NAMES.join(", ")
                ),
            ));
        };
        // In an environment it would be unset; whoever says it here meant something else.
        if value.is_empty() {
            return Err(refused(name, "anything, but empty"));
        }
        let value = OsStr::from_bytes(value);
        judge(name, value)?;
        self.layered.set(variable(name), value);
        Ok(OK)
    }

    /// Calls off every start with these settings, present and future.
    pub(super) fn cancel(&self) {
        self.cancel.request();
    }

    /// What the library is told, and the embedded gateway if one is wanted.
    pub(super) fn resolved(&self) -> (Config, Option<EmbeddedOptions>) {
        let (mut config, embedded) = read(&self.layered);
        config.inherited = self.inherited.clone();
        config.harden = self.harden;
        config.cancel = self.cancel.clone();
        (config, embedded)
    }
}

/// The environment that `NAME=VALUE` strings make.
pub(super) fn environment(entries: &[&[u8]]) -> Environment {
    let pair = |entry: &&[u8]| -> Option<(OsString, OsString)> {
        let equals = entry.iter().position(|&byte| byte == b'=')?;
        let (name, value) = entry.split_at(equals);
        let value = value.get(1..)?;
        Some((
            OsStr::from_bytes(name).into(),
            OsStr::from_bytes(value).into(),
        ))
    };
    // execve(2) takes anything, so that something else may be among them: nobody could look it up.
    entries.iter().filter_map(pair).collect()
}

/// `UPSTREAMPROXY_<NAME>`.
fn variable(name: &str) -> String {
    format!(
        "UPSTREAMPROXY_{}",
        name.to_ascii_uppercase().replace('-', "_")
    )
}

fn refused(name: &str, expected: &str) -> ApiError {
    ApiError::new(ERROR_VALUE, format!("{name} is not {expected}"))
}

/// Reads all settings of `environment`. What cannot be used is left for the gate to say.
fn read(environment: &Environment) -> (Config, Option<EmbeddedOptions>) {
    let mut config = Config::from_environment(environment.clone());
    let mut reader = Reader::new(environment);
    let mut wanted = false;
    reader.value("UPSTREAMPROXY_EMBEDDED", parse_bool, &mut wanted);
    config.unusable.append(&mut reader.unusable);
    // "Never" wins over everything: no gateway is started to be left unused.
    let embedded = (wanted && config.when != When::Never)
        .then(|| EmbeddedOptions::from_environment(environment, &mut config));
    (config, embedded)
}

/// Whether the setting could have this value, were it the only one.
fn judge(name: &str, value: &OsStr) -> Result<(), ApiError> {
    let mut alone = Environment::default();
    // The embedded gateway's settings are read only where there is one.
    alone.set(variable("embedded"), "1");
    alone.set(variable(name), value);
    let (mut config, _) = read(&alone);
    if let Some(UnusableSetting { expected, .. }) = config.unusable.first() {
        return Err(refused(name, expected));
    }
    // The gate knows what a base URL and a session id may be; all else is put out of its way.
    if matches!(name, "base-url" | "session-id") {
        config.when = When::Always;
        config
            .base_url
            .get_or_insert_with(|| DEFAULT_BASE_URL.to_owned());
        config
            .session_id
            .get_or_insert_with(|| "session".to_owned());
        gate::check(&config)
            .map_err(|error| ApiError::new(ERROR_VALUE, format!("{name}: {error}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn set(settings: &mut Settings, name: &str, value: &str) -> Result<c_int, ApiError> {
        settings.set(name.as_bytes(), value.as_bytes())
    }

    fn code(name: &str, value: &str) -> c_int {
        let mut settings = Settings::of(Environment::default());
        set(&mut settings, name, value).unwrap_or_else(|wrong| wrong.code)
    }

    #[test]
    fn the_settings_are_the_options_of_serve() {
        let readme = include_str!("../../README.md");
        let mut told: Vec<&str> = readme
            .lines()
            .filter(|line| line.starts_with("| `--") && line.contains("| run serve "))
            .filter_map(|line| line.split(['`', ' ']).nth(2))
            .map(|option| option.trim_start_matches("--"))
            .filter(|&option| option != "require")
            .collect();
        let mut known = NAMES.to_vec();
        known.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, known);
    }

    #[test]
    fn every_setting_but_those_of_any_text_refuses_what_it_cannot_use() {
        for name in NAMES.into_iter().chain([HARDEN]) {
            let any = ["token-file", "upstream-ca", "system-ca", "ca-bundle"].contains(&name);
            let expected = if any { OK } else { ERROR_VALUE };
            assert_eq!(code(name, "no:such value"), expected, "{name}");
            assert_eq!(code(name, ""), ERROR_VALUE, "{name}");
        }
        assert_eq!(code("colour", "red"), ERROR_SETTING);
        assert_eq!(code("", "red"), ERROR_SETTING);
        assert_eq!(code("base-url", "http://example.com"), ERROR_VALUE);
        assert_eq!(code("base-url", "https://example.com/path"), OK);
    }

    #[test]
    fn a_setting_wins_over_the_environment_and_reaches_no_child() {
        let environment = [
            ("UPSTREAMPROXY_KEEPALIVE", "5s"),
            ("ANTHROPIC_BASE_URL", "https://a.example"),
        ];
        let mut settings = Settings::of(environment.into_iter().collect());
        set(&mut settings, "base-url", "https://b.example").unwrap();
        set(&mut settings, "harden", "no").unwrap();
        let (config, embedded) = settings.resolved();
        assert_eq!(config.base_url.as_deref(), Some("https://b.example"));
        assert_eq!(config.limits.keepalive, Duration::from_secs(5));
        assert_eq!(config.inherited, environment.into_iter().collect());
        assert!(!config.harden && embedded.is_none());
    }

    #[test]
    fn an_embedded_gateway_gets_its_settings_unless_the_gate_is_closed() {
        let mut settings = Settings::of(Environment::default());
        for (name, value) in [
            ("embedded", "true"),
            ("intercept", "a.example *.b.example"),
            ("resolve", "a.example:443:127.0.0.1"),
            ("upstream-ca", "/roots"),
        ] {
            set(&mut settings, name, value).unwrap();
        }
        let options = settings.resolved().1.unwrap();
        assert_eq!(options.intercept.map(|patterns| patterns.len()), Some(2));
        assert_eq!(options.resolve.len(), 1);
        assert_eq!(options.target_ca, Some("/roots".into()));
        set(&mut settings, "when", "never").unwrap();
        assert!(settings.resolved().1.is_none());
    }

    #[test]
    fn what_is_unusable_in_the_environment_is_left_to_the_gate() {
        let environment = [("UPSTREAMPROXY_EMBEDDED", "perhaps")];
        let settings = Settings::of(environment.into_iter().collect());
        assert_eq!(settings.resolved().0.unusable.len(), 1);
    }

    #[test]
    fn an_environment_is_pairs_with_an_equals_sign() {
        let read = environment(&[b"A=b=c", b"no equals sign", b"E="]);
        assert_eq!(read, [("A", "b=c"), ("E", "")].into_iter().collect());
    }
}
