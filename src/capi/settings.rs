//! Settings by name, and an environment from `NAME=VALUE` strings.

use std::ffi::{OsStr, c_int};
use std::os::unix::ffi::OsStrExt;

use super::codes::{ApiError, ERROR_SETTING, ERROR_VALUE, OK};
use crate::config::{Config, Environment};
use crate::crypto::secret::Secret;
use crate::setup::token_file::is_token;

/// Sets the setting called `name`.
pub(super) fn set(config: &mut Config, name: &[u8], value: &[u8]) -> Result<c_int, ApiError> {
    config
        .set(OsStr::from_bytes(name), OsStr::from_bytes(value))
        .map(|()| OK)
        .map_err(|error| {
            if !error.is_unknown() {
                return ApiError::new(ERROR_VALUE, error.to_string());
            }
            let known: Vec<&str> = Config::setting_names().collect();
            let text = format!("{error}; the settings are {}", known.join(", "));
            ApiError::new(ERROR_SETTING, text)
        })
}

/// Sets the session token.
pub(super) fn set_token(config: &mut Config, token: &[u8]) -> Result<c_int, ApiError> {
    config.token = Some(secret(token)?);
    Ok(OK)
}

/// A copy of a session token.
pub(super) fn secret(token: &[u8]) -> Result<Secret, ApiError> {
    let invalid = || {
        ApiError::new(
            ERROR_VALUE,
            "the token is empty or has a byte that is not visible ASCII",
        )
    };
    if !is_token(token) {
        return Err(invalid());
    }
    Secret::try_from(token.to_vec()).map_err(|_| invalid())
}

/// The environment that `NAME=VALUE` strings describe.
pub(super) fn environment(entries: &[&[u8]]) -> Environment {
    // execve(2) accepts any strings. One without an equals sign cannot be looked up.
    let pairs = entries.iter().filter_map(|entry| {
        let equals = entry.iter().position(|&byte| byte == b'=')?;
        let (name, value) = entry.split_at_checked(equals)?;
        Some((OsStr::from_bytes(name), OsStr::from_bytes(value.get(1..)?)))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::codes::ERROR_VALUE;
    use super::*;

    fn set(config: &mut Config, name: &str, value: &str) -> Result<c_int, ApiError> {
        super::set(config, name.as_bytes(), value.as_bytes())
    }

    fn code(name: &str, value: &str) -> c_int {
        set(&mut Config::default(), name, value).unwrap_or_else(|error| error.code)
    }

    #[test]
    fn the_settings_are_the_options_of_serve() {
        let readme = include_str!("../../README.md");
        let mut documented: Vec<&str> = readme
            .lines()
            .filter(|line| line.starts_with("| `--") && line.contains("| run serve "))
            .filter_map(|line| line.split(['`', ' ']).nth(2))
            .map(|option| option.trim_start_matches("--"))
            // Options of the program.
            .filter(|option| !["require", "log-format", "log-file"].contains(option))
            .chain(["harden"])
            .collect();
        let mut known: Vec<&str> = Config::setting_names().collect();
        known.sort_unstable();
        documented.sort_unstable();
        assert_eq!(documented, known);
    }

    #[test]
    fn every_setting_but_those_of_any_text_refuses_what_it_cannot_use() {
        for name in Config::setting_names() {
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
        let mut config = Config::from_environment(environment.into_iter().collect());
        set(&mut config, "base-url", "https://b.example").unwrap();
        set(&mut config, "harden", "no").unwrap();
        assert_eq!(config.base_url, "https://b.example".parse().ok());
        assert_eq!(config.limits.keepalive, Duration::from_secs(5));
        assert_eq!(config.inherited, environment.into_iter().collect());
        assert!(!config.harden && !config.uses_embedded_gateway());
    }

    #[test]
    fn an_embedded_gateway_gets_its_settings_unless_the_gate_is_closed() {
        let mut config = Config::default();
        for (name, value) in [
            ("embedded", "true"),
            ("intercept", "a.example *.b.example"),
            ("resolve", "a.example:443:127.0.0.1"),
            ("upstream-ca", "/roots"),
        ] {
            set(&mut config, name, value).unwrap();
        }
        assert!(config.uses_embedded_gateway());
        assert_eq!(config.intercept.len(), 2);
        assert_eq!(config.resolve.len(), 1);
        assert_eq!(config.upstream_ca, Some("/roots".into()));
        set(&mut config, "when", "never").unwrap();
        assert!(!config.uses_embedded_gateway());
    }

    #[test]
    fn an_unusable_value_in_the_environment_is_left_to_the_gate() {
        let environment = [("UPSTREAMPROXY_EMBEDDED", "perhaps")];
        let config = Config::from_environment(environment.into_iter().collect());
        assert_eq!(config.unusable().count(), 1);
    }

    #[test]
    fn an_environment_is_pairs_with_an_equals_sign() {
        let read = environment(&[b"A=b=c", b"no equals sign", b"E="]);
        assert_eq!(read, [("A", "b=c"), ("E", "")].into_iter().collect());
    }
}
