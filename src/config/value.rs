//! The parsers of setting values. Each returns the typed value or the problem with the text.

use std::ffi::OsStr;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

#[cfg(feature = "gateway")]
use crate::http::pattern::Pattern;
#[cfg(feature = "gateway")]
use crate::net::address_override::Override;

use super::limits::MAX_STANDBY;
use super::parent_proxy::Parent;
use super::when::When;

/// What is wrong with a value: the rest of a sentence that begins with the name of the setting.
pub(crate) type Reason = String;

/// The problem of a value that should have been `what`.
pub(crate) fn expected(what: &str) -> Reason {
    format!("is not {what}")
}

/// Stores a parsed value in its field.
pub(crate) fn put<T>(field: &mut T, parsed: Result<T, Reason>) -> Result<(), Reason> {
    *field = parsed?;
    Ok(())
}

/// Stores a parsed value in its optional field.
pub(crate) fn put_some<T>(field: &mut Option<T>, parsed: Result<T, Reason>) -> Result<(), Reason> {
    *field = Some(parsed?);
    Ok(())
}

/// UTF-8 text without white space at its ends.
pub(crate) fn text(value: &OsStr) -> Result<&str, Reason> {
    let text = value.to_str().ok_or_else(|| expected("readable text"))?;
    Ok(text.trim())
}

/// A value whose type says what is wrong with a text.
pub(crate) fn parsed<T>(value: &OsStr) -> Result<T, Reason>
where
    T: FromStr<Err: fmt::Display>,
{
    text(value)?
        .parse()
        .map_err(|error| format!("cannot be used: {error}"))
}

/// A value that `accept` accepts; `what` describes one.
pub(crate) fn matching<T: FromStr>(
    value: &OsStr,
    accept: impl FnOnce(&T) -> bool,
    what: &str,
) -> Result<T, Reason> {
    let parsed = text(value)?.parse().ok().filter(accept);
    parsed.ok_or_else(|| expected(what))
}

/// A path, byte for byte.
// Every parser returns a result, so that all rows of the settings table look alike.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn path(value: &OsStr) -> Result<PathBuf, Reason> {
    Ok(value.into())
}

/// An address to listen on: `ADDR:PORT`, `localhost:PORT`, or a port of 127.0.0.1 as `PORT` or
/// `:PORT`.
pub(crate) fn listen(value: &OsStr) -> Result<SocketAddr, Reason> {
    listen_or(value, Ipv4Addr::LOCALHOST)
}

/// The same for a server: as in other servers, `:PORT` is the port of every IPv4 address.
#[cfg(feature = "gateway")]
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) fn listen_of_server(value: &OsStr) -> Result<SocketAddr, Reason> {
    listen_or(value, Ipv4Addr::UNSPECIFIED)
}

/// An address to listen on; `:PORT` has the address `without_host`.
fn listen_or(value: &OsStr, without_host: Ipv4Addr) -> Result<SocketAddr, Reason> {
    let text = text(value)?;
    let address = match text.rsplit_once(':') {
        None => port(text).map(|port| (Ipv4Addr::LOCALHOST, port).into()),
        Some(("", text)) => port(text).map(|port| (without_host, port).into()),
        Some((host, text)) if host.eq_ignore_ascii_case("localhost") => {
            port(text).map(|port| (Ipv4Addr::LOCALHOST, port).into())
        }
        Some(_) => text.parse().ok(),
    };
    address.ok_or_else(|| expected("an address and a port such as 127.0.0.1:3128, or a port"))
}

/// A port. The number has no sign, which [`u16::from_str`] would accept.
fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// A whole number of at least 1.
pub(crate) fn count(value: &OsStr) -> Result<usize, Reason> {
    matching(value, |&n| n > 0, "a whole number of at least 1")
}

/// The number of a descriptor.
pub(crate) fn descriptor(value: &OsStr) -> Result<RawFd, Reason> {
    matching(value, |&n| n >= 0, "the number of an open descriptor")
}

/// A number of standby connections.
pub(crate) fn standby(value: &OsStr) -> Result<usize, Reason> {
    matching(value, |&n| n <= MAX_STANDBY, "a whole number from 0 to 64")
}

/// A numeric user ID.
pub(crate) fn uid(value: &OsStr) -> Result<u32, Reason> {
    // The kernel uses the largest number for "no user".
    matching(value, |&uid| uid < u32::MAX, "a numeric user ID")
}

/// Whether a text means yes: `1`, `true`, `yes`, `on`; case and outer white space do not count.
pub(crate) fn is_truthy(text: &str) -> bool {
    is_one_of(text, ["1", "true", "yes", "on"])
}

fn is_one_of(text: &str, words: [&str; 4]) -> bool {
    let matches = |word: &&str| text.trim().eq_ignore_ascii_case(word);
    words.iter().any(matches)
}

/// A switch: a word that means yes, or `0`, `false`, `no`, `off`.
pub(crate) fn switch(value: &OsStr) -> Result<bool, Reason> {
    let text = text(value)?;
    if is_truthy(text) {
        Ok(true)
    } else if is_one_of(text, ["0", "false", "no", "off"]) {
        Ok(false)
    } else {
        Err(expected("one of 1, true, yes, on, 0, false, no, off"))
    }
}

/// The switch `embedded`, which a build without the gateway cannot turn on.
pub(crate) fn embedded(value: &OsStr) -> Result<bool, Reason> {
    let embedded = switch(value)?;
    if embedded && cfg!(not(feature = "gateway")) {
        return Err(
            "cannot be used: this build has no gateway; use one with the feature `gateway`"
                .to_owned(),
        );
    }
    Ok(embedded)
}

/// The URL of a parent proxy, or `none`.
pub(crate) fn parent(value: &OsStr) -> Result<Parent, Reason> {
    match text(value)? {
        "none" => Ok(Parent::Off),
        _ => parsed(value).map(Parent::Proxy),
    }
}

/// `auto`, `always` or `never`.
pub(crate) fn when(value: &OsStr) -> Result<When, Reason> {
    match text(value)? {
        "auto" => Ok(When::Auto),
        "always" => Ok(When::Always),
        "never" => Ok(When::Never),
        _ => Err(expected("one of auto, always, never")),
    }
}

/// A duration: `500ms`, `10s`, `2m`, or a bare number of seconds.
pub(crate) fn duration(value: &OsStr) -> Result<Duration, Reason> {
    let text = text(value)?;
    let unit_at = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(unit_at.unwrap_or(text.len()));
    let duration = number.parse::<u32>().ok().and_then(|number| match unit {
        "ms" => Some(Duration::from_millis(number.into())),
        "" | "s" => Some(Duration::from_secs(number.into())),
        "m" => Some(Duration::from_secs(u64::from(number) * 60)),
        _ => None,
    });
    duration.ok_or_else(|| expected("a duration such as 500ms, 10s, 2m, or a number of seconds"))
}

/// Names of variables, separated by spaces.
pub(crate) fn variable_names(value: &OsStr) -> Result<Vec<String>, Reason> {
    let words: Vec<String> = text(value)?.split_whitespace().map(Into::into).collect();
    let is_name = |word: &String| word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if words.is_empty() || !words.iter().all(is_name) {
        return Err(expected("the name of a variable such as http_proxy"));
    }
    Ok(words)
}

/// Patterns separated by spaces, or `none` alone: in a list it could be the name of a host.
#[cfg(feature = "gateway")]
pub(crate) fn patterns(value: &OsStr) -> Result<Vec<Pattern>, Reason> {
    const EXPECTED: &str = "a pattern such as example.com, *.example.com:443 or *, or none alone";
    let words: Vec<&str> = text(value)?.split_whitespace().collect();
    match words[..] {
        ["none"] => Ok(Vec::new()),
        _ if words.contains(&"none") => Err(expected(EXPECTED)),
        _ => each(&words, EXPECTED),
    }
}

/// Fixed addresses of names, separated by spaces.
#[cfg(feature = "gateway")]
pub(crate) fn overrides(value: &OsStr) -> Result<Vec<Override>, Reason> {
    let words: Vec<&str> = text(value)?.split_whitespace().collect();
    each(
        &words,
        "HOST:PORT:ADDR such as example.com:443:192.0.2.1 or example.com:*:192.0.2.1",
    )
}

/// One value per word, and at least one.
#[cfg(feature = "gateway")]
fn each<T: FromStr>(words: &[&str], what: &str) -> Result<Vec<T>, Reason> {
    let values: Option<Vec<T>> = words.iter().map(|word| word.parse().ok()).collect();
    values
        .filter(|values| !values.is_empty())
        .ok_or_else(|| expected(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_words_are_truthy() {
        for word in ["1", "true", "TRUE", " yes ", "On\n"] {
            assert!(is_truthy(word), "{word:?}");
        }
        for word in ["", "0", "false", "2", "y", "enabled", "1 1"] {
            assert!(!is_truthy(word), "{word:?}");
        }
    }

    #[test]
    fn a_switch_is_a_truthy_word_or_its_opposite() {
        for (word, value) in [
            (" yes", Some(true)),
            ("False", Some(false)),
            ("off", Some(false)),
        ] {
            assert_eq!(switch(OsStr::new(word)).ok(), value, "{word:?}");
        }
        for word in ["2", "y", "maybe"] {
            assert!(switch(OsStr::new(word)).is_err(), "{word:?}");
        }
    }

    #[test]
    fn a_port_alone_is_one_of_the_loopback_address() {
        let listen = |text: &str| listen(OsStr::new(text)).ok().map(|a| a.to_string());
        for (text, address) in [
            ("3128", "127.0.0.1:3128"),
            (" :3128 ", "127.0.0.1:3128"),
            ("localhost:3128", "127.0.0.1:3128"),
            ("LocalHost:0", "127.0.0.1:0"),
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(listen(text).as_deref(), Some(address), "{text:?}");
        }
        for text in [
            "",
            ":",
            "+1",
            ":+1",
            "65536",
            "-1",
            "localhost",
            "localhost:",
            "example.com:1",
            "::1",
            "a",
        ] {
            assert_eq!(listen(text), None, "{text:?}");
        }
    }

    #[test]
    #[cfg(feature = "gateway")]
    fn a_colon_and_a_port_is_every_address_of_a_server() {
        let listen = |text: &str| listen_of_server(OsStr::new(text)).unwrap().to_string();
        assert_eq!(listen(":8443"), "0.0.0.0:8443");
        assert_eq!(listen("8443"), "127.0.0.1:8443");
        assert_eq!(listen("localhost:8443"), "127.0.0.1:8443");
    }

    #[test]
    fn names_of_variables_are_separated_by_spaces() {
        let names = |text: &str| variable_names(OsStr::new(text));
        let expected = vec!["http_proxy".to_owned(), "WGETRC".to_owned()];
        assert_eq!(names(" http_proxy  WGETRC"), Ok(expected));
        for text in ["", " ", "http_proxy,WGETRC", "A=b"] {
            assert!(names(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations_have_units_or_are_seconds() {
        let duration = |text: &str| duration(OsStr::new(text));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration(" 7 "), Ok(Duration::from_secs(7)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for text in ["", "s", "-1", "1h", "1.5s", "10 s", "99999999999999999999"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
