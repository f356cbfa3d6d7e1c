//! Stage `gate`: whether the settings request proxying, and whether they name a usable session and
//! upstream (`manual/operations.md`, row gate).
//!
//! Only settings are checked: no file is opened and no name is looked up. Nothing is logged here,
//! because a gate that is closed on purpose and a wrong setting have different log levels, which
//! the caller chooses.

use crate::config::{Config, DEFAULT_BASE_URL, Source, When};
use crate::error::{Error, ErrorKind, Stage};
use crate::http::base_url::BaseUrl;

/// The decision of the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Set-up continues with this session.
    Open(Session),
    /// Proxying was not requested. This is logged at debug level only.
    Closed {
        /// Which switches are off, in a few words without a full stop.
        reason: String,
    },
}

/// The session and its upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    /// The session ID: visible ASCII without a colon, so that it can be the user-id of Basic
    /// credentials.
    pub(crate) id: String,
    /// The upstream.
    pub(crate) base: BaseUrl,
}

/// Decides whether set-up continues.
///
/// # Errors
/// Proxying was requested, and a required setting is missing or unusable.
pub(crate) fn check(config: &Config) -> Result<Gate, Error> {
    match config.when {
        When::Never => {
            let reason = "the gate is set to never".to_owned();
            return Ok(Gate::Closed { reason });
        }
        When::Auto => {
            if let Some(reason) = switched_off(config) {
                return Ok(Gate::Closed { reason });
            }
        }
        When::Always => {}
    }
    // Not earlier: an unusable value does not matter while proxying is off.
    let faults: Vec<_> = config.unusable().map(ToString::to_string).collect();
    if !faults.is_empty() {
        return Err(fault(faults.join(", and "), "correct or unset it"));
    }
    let session = Session {
        base: base_url(config)?,
        id: session_id(config)?,
    };
    check_listen(config)?;
    Ok(Gate::Open(session))
}

/// The switches that are off, if any.
fn switched_off(config: &Config) -> Option<String> {
    let switches = [
        ("CLAUDE_CODE_REMOTE", config.remote),
        ("CCR_UPSTREAM_PROXY_ENABLED", config.enabled),
    ];
    let off: Vec<_> = switches
        .iter()
        .filter(|(_, on)| !on)
        .map(|(name, _)| *name)
        .collect();
    (!off.is_empty()).then(|| format!("not switched on by {}", off.join(" and ")))
}

/// The upstream that the settings name.
pub(crate) fn base_url(config: &Config) -> Result<BaseUrl, Error> {
    match (&config.base_url, config.when) {
        (Some(base_url), _) => Ok(base_url.clone()),
        (None, When::Auto) => DEFAULT_BASE_URL
            .parse()
            .map_err(|error| fault(format!("the default base URL: {error}"), "report it")),
        // Without the switches, nothing shows which upstream the token is for, so no default
        // receives it.
        (None, _) => Err(fault(
            "no base URL is given, and if when (--when) is always there is no default",
            "set ANTHROPIC_BASE_URL or base-url (--base-url)",
        )),
    }
}

fn session_id(config: &Config) -> Result<String, Error> {
    match &config.session_id {
        Some(id) => Ok(id.to_string()),
        None => Err(fault(
            "no session ID is given",
            "set CLAUDE_CODE_REMOTE_SESSION_ID or session-id (--session-id)",
        )),
    }
}

fn check_listen(config: &Config) -> Result<(), Error> {
    if config.allow_non_loopback || config.listen.ip().is_loopback() {
        return Ok(());
    }
    let source = config.source("listen").unwrap_or(&Source::Host);
    Err(fault(
        format!(
            "other machines can reach the listen address {} ({}), and could then use this session",
            config.listen,
            source.name_of("listen")
        ),
        "listen on 127.0.0.1, or set allow-non-loopback (--allow-non-loopback)",
    ))
}

fn fault(what: impl Into<String>, remedy: &str) -> Error {
    Error::new(Stage::Gate, ErrorKind::InvalidSetting, what, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    /// The decision for an environment in which both switches are on.
    fn switched_on(more: &[(&str, &str)]) -> Result<Gate, Error> {
        let switches = [
            ("CLAUDE_CODE_REMOTE", "1"),
            ("CCR_UPSTREAM_PROXY_ENABLED", " True\n"),
        ];
        let variables = switches.iter().chain(more).copied();
        check(&Config::from_environment(variables.collect()))
    }

    fn open(gate: Result<Gate, Error>) -> Session {
        match gate {
            Ok(Gate::Open(session)) => session,
            other => panic!("not open: {other:?}"),
        }
    }

    #[track_caller]
    fn assert_faulty(gate: Result<Gate, Error>, name: &str) {
        let error = gate.expect_err(name);
        assert_eq!(error.stage(), Stage::Gate);
        let text = error.to_string();
        assert!(text.contains(name), "{name} is not named in {text:?}");
        assert!(!text.contains("canary"), "{text:?}");
    }

    #[test]
    fn opens_on_both_switches_with_the_default_base() {
        let session = open(switched_on(&[("CLAUDE_CODE_REMOTE_SESSION_ID", " s-1\n")]));
        assert_eq!(session.id, "s-1");
        assert_eq!(session.base.to_string(), DEFAULT_BASE_URL);
    }

    #[test]
    fn stays_closed_silently_unless_both_switches_are_truthy() {
        for (remote, enabled, missing) in [
            (None, None, "CLAUDE_CODE_REMOTE and CCR_"),
            (Some("1"), None, "by CCR_UPSTREAM_PROXY_ENABLED"),
            (None, Some("yes"), "by CLAUDE_CODE_REMOTE"),
            (Some("0"), Some("on"), "by CLAUDE_CODE_REMOTE"),
            (Some(""), Some("on"), "by CLAUDE_CODE_REMOTE"),
            (Some("2"), Some("on"), "by CLAUDE_CODE_REMOTE"),
        ] {
            let mut environment = Environment::default();
            // All of these are unusable, which must not matter.
            environment.set("UPSTREAMPROXY_WHEN", "sometimes");
            environment.set("UPSTREAMPROXY_LISTEN", "0.0.0.0:0");
            environment.set("ANTHROPIC_BASE_URL", "http://user:canary@h.example");
            for (name, value) in [
                ("CLAUDE_CODE_REMOTE", remote),
                ("CCR_UPSTREAM_PROXY_ENABLED", enabled),
            ] {
                if let Some(value) = value {
                    environment.set(name, value);
                }
            }
            match check(&Config::from_environment(environment)) {
                Ok(Gate::Closed { reason }) => assert!(reason.contains(missing), "{reason}"),
                other => panic!("{remote:?} {enabled:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn never_overrides_the_switches_and_every_fault() {
        let gate = switched_on(&[
            ("UPSTREAMPROXY_WHEN", "never"),
            ("UPSTREAMPROXY_KEEPALIVE", "canary"),
        ]);
        assert!(matches!(gate, Ok(Gate::Closed { .. })), "{gate:?}");
    }

    #[test]
    fn an_unusable_setting_is_a_fault_if_the_switches_are_on() {
        let session = ("CLAUDE_CODE_REMOTE_SESSION_ID", "s-1");
        for name in [
            "UPSTREAMPROXY_WHEN",
            "UPSTREAMPROXY_LISTEN",
            "UPSTREAMPROXY_MAX_TUNNELS",
            "UPSTREAMPROXY_DRAIN_TIMEOUT",
        ] {
            assert_faulty(switched_on(&[session, (name, "canary")]), name);
        }
        let two = switched_on(&[
            session,
            ("UPSTREAMPROXY_KEEPALIVE", "canary"),
            ("UPSTREAMPROXY_IDLE_TIMEOUT", "canary"),
        ]);
        assert_faulty(two.clone(), "UPSTREAMPROXY_KEEPALIVE");
        assert_faulty(two, "UPSTREAMPROXY_IDLE_TIMEOUT");
    }

    #[test]
    fn always_skips_the_switches_but_not_the_faults() {
        let always = |more: &[(&str, &str)]| {
            let first = [("UPSTREAMPROXY_WHEN", "always")];
            check(&Config::from_environment(
                first.iter().chain(more).copied().collect(),
            ))
        };
        let session = ("UPSTREAMPROXY_SESSION_ID", "s-1");
        let base = ("ANTHROPIC_BASE_URL", "http://127.0.0.1:8443/x/");
        let opened = open(always(&[session, base]));
        assert_eq!(opened.base.to_string(), "http://127.0.0.1:8443/x");
        assert_faulty(
            always(&[session, base, ("UPSTREAMPROXY_LISTEN", "canary")]),
            "UPSTREAMPROXY_LISTEN",
        );
    }

    #[test]
    fn always_has_no_default_base_even_with_both_switches_on() {
        let gate = switched_on(&[
            ("UPSTREAMPROXY_WHEN", "always"),
            ("UPSTREAMPROXY_SESSION_ID", "s-1"),
        ]);
        assert_faulty(gate, "ANTHROPIC_BASE_URL");
    }

    #[test]
    fn names_the_variable_that_an_unusable_base_url_came_from() {
        let session = ("CLAUDE_CODE_REMOTE_SESSION_ID", "s-1");
        for value in [
            "http://canary.example",
            "https://user:canary@h.example",
            "canary",
            "https://canary.example:0",
            "https://canary.example:99999",
            " ",
        ] {
            for name in ["UPSTREAMPROXY_BASE_URL", "ANTHROPIC_BASE_URL"] {
                assert_faulty(switched_on(&[session, (name, value)]), name);
            }
        }
        let mut config = Config::default();
        let error = config.set("base-url", "canary").unwrap_err().to_string();
        assert!(error.starts_with("base-url cannot be used"), "{error}");
        assert!(!error.contains("canary"), "{error}");
    }

    #[test]
    fn names_the_variable_that_an_unusable_session_id_came_from() {
        let long = "i".repeat(257);
        for value in [
            " ",
            "canary:x",
            "canary\r\nX: y",
            "canary x",
            "canary\0",
            "canary\u{e9}",
            "\u{feff}canary",
            "canary\u{7f}",
            &long,
        ] {
            for name in ["UPSTREAMPROXY_SESSION_ID", "CLAUDE_CODE_REMOTE_SESSION_ID"] {
                assert_faulty(switched_on(&[(name, value)]), name);
            }
        }
        assert_faulty(switched_on(&[]), "CLAUDE_CODE_REMOTE_SESSION_ID");
    }

    #[test]
    fn a_session_id_may_have_the_longest_length_and_any_other_visible_character() {
        let longest = "i".repeat(256);
        for id in [&longest, "!\"#$%&'()*+,-./;<=>?@[\\]^_`{|}~", "7"] {
            let session = open(switched_on(&[("UPSTREAMPROXY_SESSION_ID", id)]));
            assert_eq!(session.id, id);
        }
    }

    #[test]
    fn listens_beyond_loopback_only_if_that_is_allowed() {
        let session = ("CLAUDE_CODE_REMOTE_SESSION_ID", "s-1");
        for address in ["0.0.0.0:0", "[::]:3128", "192.0.2.1:80", "[2001:db8::1]:1"] {
            let listen = ("UPSTREAMPROXY_LISTEN", address);
            assert_faulty(switched_on(&[session, listen]), "UPSTREAMPROXY_LISTEN");
            let allow = ("UPSTREAMPROXY_ALLOW_NON_LOOPBACK", "1");
            open(switched_on(&[session, listen, allow]));
        }
        for address in ["127.0.0.1:0", "127.8.9.10:3128", "[::1]:0"] {
            open(switched_on(&[session, ("UPSTREAMPROXY_LISTEN", address)]));
        }
    }
}
