//! Settings with their units and defaults, and how they are read from an environment.
//!
//! Nothing here touches a file or a socket. A value of the environment that cannot be used is kept in
//! [`Config::unusable`]: whether it matters is the gate's to say (`manual/operations.md`, the five stages).

mod environment;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use environment::Environment;

/// The base URL where the gate opened by its own switches and none is given.
pub const DEFAULT_BASE_URL: &str = "https://api.anthropic.com";
/// Where the session token lies unless another place is given.
pub const DEFAULT_TOKEN_FILE: &str = "/run/ccr/session_token";

/// Whether the gate looks at its switches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// Both `CLAUDE_CODE_REMOTE` and `CCR_UPSTREAM_PROXY_ENABLED` must be truthy. The default.
    #[default]
    Auto,
    /// The switches are skipped; a base URL must be given.
    Always,
    /// The gate is closed, whatever else is said.
    Never,
}

/// A host's word that set-up is no longer wanted; clones share it.
///
/// Set-up looks at it before each thing that it changes (the bundle, the listener, the token file) and is then Disabled, so
/// that a host that is told to end in the middle leaves nothing half done.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Calls set-up off. What it has already changed stays as it is.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether set-up was called off.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Everything that [`start`](crate::start) can be told. Build one with [`Config::from_env`], or from [`Config::default`] and your own values.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Whether the gate looks at its switches. Default [`When::Auto`].
    pub when: When,
    /// `CLAUDE_CODE_REMOTE` is truthy. Default false.
    pub remote: bool,
    /// `CCR_UPSTREAM_PROXY_ENABLED` is truthy. Default false.
    pub enabled: bool,
    /// The upstream's base URL; `None`: [`DEFAULT_BASE_URL`], but only where the gate's own switches opened it.
    pub base_url: Option<String>,
    /// The session id; trimmed by the gate. `None` closes the gate with a warning.
    pub session_id: Option<String>,
    /// The file that holds the session token. Default [`DEFAULT_TOKEN_FILE`].
    pub token_file: PathBuf,
    /// A PEM file of further roots for our own connections to the upstream (CA download and wss). Default none.
    pub upstream_ca: Option<PathBuf>,
    /// The PEM file of base roots; `None`: the inherited `SSL_CERT_FILE` if it holds certificates, else the distribution's.
    pub system_ca: Option<PathBuf>,
    /// Where the merged bundle is written; `None`: `~/.ccr/ca-bundle.crt`.
    pub ca_bundle: Option<PathBuf>,
    /// Where the relay listens. Default 127.0.0.1, port 0 (the kernel chooses one).
    pub listen: SocketAddr,
    /// Lets `listen` be an address that other machines can reach: they then spend this session's authority. Default false.
    pub allow_non_loopback: bool,
    /// Lets every user of this machine use the port, and so spend this session's authority. Default false: on Linux a
    /// connection is refused unless the socket at its other end is this user's or root's; elsewhere, and where the kernel
    /// does not tell, a warning says that it cannot be known.
    pub allow_any_user: bool,
    /// Puts a random password into the proxy URL, and refuses whoever does not know it. Default false: some tools cannot
    /// carry one (the JVM, Volta, Yarn, undici), and the environment of a process is no secret to its user's others.
    pub listen_credential: bool,
    /// Bounds in count and time.
    pub limits: Limits,
    /// Makes the process non-dumpable before the token is read (Linux): no debugger, no core file, `/proc` entries for
    /// root only. Default true; an embedding host that must stay debuggable sets false and guards the memory itself.
    pub harden: bool,
    /// Calls set-up off from another thread. Default: nobody does.
    pub cancel: Cancel,
    /// The environment that children would have had without us: the variables build on it, and roots it names are kept.
    pub inherited: Environment,
    /// Values found in the environment that cannot be used; the gate, once its switches are on, is Disabled by the first.
    pub unusable: Vec<UnusableSetting>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            when: When::Auto,
            remote: false,
            enabled: false,
            base_url: None,
            session_id: None,
            token_file: PathBuf::from(DEFAULT_TOKEN_FILE),
            upstream_ca: None,
            system_ca: None,
            ca_bundle: None,
            listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            allow_non_loopback: false,
            allow_any_user: false,
            listen_credential: false,
            limits: Limits::default(),
            harden: true,
            cancel: Cancel::default(),
            inherited: Environment::default(),
            unusable: Vec::new(),
        }
    }
}

impl Config {
    /// The settings that the environment of this process asks for.
    pub fn from_env() -> Self {
        Self::from_environment(Environment::of_process())
    }

    /// The settings that `environment` asks for: `UPSTREAMPROXY_<NAME>` first, then the variables of the session.
    pub fn from_environment(environment: Environment) -> Self {
        let mut config = Self {
            remote: environment
                .text("CLAUDE_CODE_REMOTE")
                .is_some_and(is_truthy),
            enabled: environment
                .text("CCR_UPSTREAM_PROXY_ENABLED")
                .is_some_and(is_truthy),
            ..Self::default()
        };
        let mut reader = Reader::new(&environment);
        reader.value("UPSTREAMPROXY_WHEN", parse_when, &mut config.when);
        reader.text(
            &["UPSTREAMPROXY_BASE_URL", "ANTHROPIC_BASE_URL"],
            &mut config.base_url,
        );
        reader.text(
            &["UPSTREAMPROXY_SESSION_ID", "CLAUDE_CODE_REMOTE_SESSION_ID"],
            &mut config.session_id,
        );
        if let Some(path) = environment.lookup("UPSTREAMPROXY_TOKEN_FILE") {
            config.token_file = path.into();
        }
        let path = |name: &str| environment.lookup(name).map(PathBuf::from);
        config.upstream_ca = path("UPSTREAMPROXY_UPSTREAM_CA");
        config.system_ca = path("UPSTREAMPROXY_SYSTEM_CA");
        config.ca_bundle = path("UPSTREAMPROXY_CA_BUNDLE");
        reader.value("UPSTREAMPROXY_LISTEN", parse_listen, &mut config.listen);
        reader.value(
            "UPSTREAMPROXY_ALLOW_NON_LOOPBACK",
            parse_bool,
            &mut config.allow_non_loopback,
        );
        reader.value(
            "UPSTREAMPROXY_ALLOW_ANY_USER",
            parse_bool,
            &mut config.allow_any_user,
        );
        reader.value(
            "UPSTREAMPROXY_LISTEN_CREDENTIAL",
            parse_bool,
            &mut config.listen_credential,
        );
        let limits = &mut config.limits;
        reader.value(
            "UPSTREAMPROXY_MAX_TUNNELS",
            |v| parse_count(v).map(Some),
            &mut limits.max_tunnels,
        );
        reader.value("UPSTREAMPROXY_STANDBY", parse_standby, &mut limits.standby);
        reader.value(
            "UPSTREAMPROXY_DRAIN_TIMEOUT",
            parse_duration,
            &mut limits.drain_timeout,
        );
        reader.value(
            "UPSTREAMPROXY_CONNECT_TIMEOUT",
            parse_duration,
            &mut limits.connect_timeout,
        );
        reader.value(
            "UPSTREAMPROXY_KEEPALIVE",
            parse_duration,
            &mut limits.keepalive,
        );
        reader.value(
            "UPSTREAMPROXY_IDLE_TIMEOUT",
            parse_duration,
            &mut limits.idle_timeout,
        );
        config.unusable = reader.unusable;
        config.inherited = environment;
        config
    }

    /// The home folder, if the inherited environment names one by an absolute path.
    pub fn home(&self) -> Option<PathBuf> {
        self.inherited
            .lookup("HOME")
            .map(PathBuf::from)
            .filter(|home| home.is_absolute())
    }
}

/// Bounds in count and time, the same for relay and gateway. Every duration is a field, so that tests can make them short.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Live tunnels at once; the next one is answered 503. `None`: what the process limits allow, at most 1024. At least 1.
    pub max_tunnels: Option<usize>,
    /// Connections to the gateway that a relay opens ahead of need, at most: as many stand by as CONNECTs came in the last 10 s, each for 45 s
    /// at the longest, and only where the gateway takes 5 ms or more to answer. Default 8; 0: none. Each holds a slot of the
    /// gateway's.
    pub standby: usize,
    /// How long open tunnels may go on after a stop was asked for. Default 10 s; 0: they are cut at once.
    pub drain_timeout: Duration,
    /// The bound on each of TCP connect, TLS handshake and WebSocket upgrade. Default 10 s; 0 is no wait at all, and fails.
    pub connect_timeout: Duration,
    /// A ping goes out after each such silent interval, and three in a row without an answer end the tunnel. Default 25 s;
    /// 0: no pings, and a vanished peer is found by the kernel alone.
    pub keepalive: Duration,
    /// How long a tunnel may move no data, pings aside. Default 0: for ever, while pings are answered.
    pub idle_timeout: Duration,
    /// The bound on a whole request head from a client, and on an unauthenticated connection's upgrade. Default 10 s.
    pub head_timeout: Duration,
    /// How long the relay waits for the gateway's answer to its opening. Default 30 s.
    pub opening_timeout: Duration,
    /// How long an authenticated WebSocket may stand by for its opening. Default 5 min.
    pub standby_timeout: Duration,
    /// The bound on the whole CA download. Default 5 s.
    pub ca_timeout: Duration,
    /// Version 1 of the wire: how long delivery goes on after the client's end of stream with nothing coming. Default 5 s.
    pub linger: Duration,
    /// The bound on the closing handshake. Default 2 s.
    pub close_timeout: Duration,
    /// How long a tunnel must have been silent for a drain to end it in order. Default 2 s.
    pub drain_silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_tunnels: None,
            standby: 8,
            drain_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(25),
            idle_timeout: Duration::ZERO,
            head_timeout: Duration::from_secs(10),
            opening_timeout: Duration::from_secs(30),
            standby_timeout: Duration::from_secs(300),
            ca_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(5),
            close_timeout: Duration::from_secs(2),
            drain_silence: Duration::from_secs(2),
        }
    }
}

impl Limits {
    /// The same, with no duration so long that it cannot be added to a point in time: a year is as good as for ever.
    pub(crate) fn bounded(mut self) -> Self {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        for duration in [
            &mut self.drain_timeout,
            &mut self.connect_timeout,
            &mut self.keepalive,
            &mut self.idle_timeout,
            &mut self.head_timeout,
            &mut self.opening_timeout,
            &mut self.standby_timeout,
            &mut self.ca_timeout,
            &mut self.linger,
            &mut self.close_timeout,
            &mut self.drain_silence,
        ] {
            *duration = YEAR.min(*duration);
        }
        self
    }
}

/// A setting of the environment that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusableSetting {
    /// The variable's name.
    pub name: String,
    /// What a usable value looks like.
    pub expected: &'static str,
}

impl fmt::Display for UnusableSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not {}", self.name, self.expected)
    }
}

/// Reads settings one by one and keeps those that cannot be used.
pub(crate) struct Reader<'a> {
    environment: &'a Environment,
    /// What was there and cannot be used.
    pub(crate) unusable: Vec<UnusableSetting>,
}

impl<'a> Reader<'a> {
    /// A reader of `environment`, which has read nothing yet.
    pub(crate) fn new(environment: &'a Environment) -> Self {
        Self {
            environment,
            unusable: Vec::new(),
        }
    }

    /// Reads one variable, if it is there and can be used.
    pub(crate) fn value<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, &'static str>,
        into: &mut T,
    ) {
        let Some(value) = self.environment.lookup(name) else {
            return;
        };
        match value.to_str().map_or(Err("readable text"), parse) {
            Ok(value) => *into = value,
            Err(expected) => self.refuse(name, expected),
        }
    }

    fn text(&mut self, names: &[&str], into: &mut Option<String>) {
        let Some((name, value)) = names
            .iter()
            .find_map(|n| Some((n, self.environment.lookup(n)?)))
        else {
            return;
        };
        match value.to_str() {
            Some(value) => *into = Some(value.to_owned()),
            None => self.refuse(name, "readable text"),
        }
    }

    fn refuse(&mut self, name: &str, expected: &'static str) {
        self.unusable.push(UnusableSetting {
            name: name.to_owned(),
            expected,
        });
    }
}

/// The words that switch something on: `1`, `true`, `yes`, `on`; case and outer space ignored.
pub(crate) fn is_truthy(value: &str) -> bool {
    ["1", "true", "yes", "on"]
        .iter()
        .any(|word| value.trim().eq_ignore_ascii_case(word))
}

/// A switch: the truthy words, or `0`, `false`, `no`, `off`.
pub(crate) fn parse_bool(value: &str) -> Result<bool, &'static str> {
    let falsy = ["0", "false", "no", "off"]
        .iter()
        .any(|word| value.trim().eq_ignore_ascii_case(word));
    match is_truthy(value) {
        true => Ok(true),
        false if falsy => Ok(false),
        false => Err("one of 1, true, yes, on, 0, false, no, off"),
    }
}

/// `auto`, `always` or `never`.
pub(crate) fn parse_when(value: &str) -> Result<When, &'static str> {
    match value.trim() {
        "auto" => Ok(When::Auto),
        "always" => Ok(When::Always),
        "never" => Ok(When::Never),
        _ => Err("one of auto, always, never"),
    }
}

/// An address and a port, as `127.0.0.1:0` or `[::1]:8080`.
pub(crate) fn parse_listen(value: &str) -> Result<SocketAddr, &'static str> {
    value
        .trim()
        .parse()
        .map_err(|_| "an address and a port such as 127.0.0.1:0")
}

/// A count of at least 1.
pub(crate) fn parse_count(value: &str) -> Result<usize, &'static str> {
    value
        .trim()
        .parse()
        .ok()
        .filter(|&n| n > 0)
        .ok_or("a whole number of at least 1")
}

/// A count of at most 64: more dials ahead than that are a burden on the gateway, and no help.
pub(crate) fn parse_standby(value: &str) -> Result<usize, &'static str> {
    let count = value.trim().parse().ok();
    count
        .filter(|&n| n <= 64)
        .ok_or("a whole number from 0 to 64")
}

/// A duration: `500ms`, `10s`, `2m`, or a bare number of seconds.
pub(crate) fn parse_duration(value: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "a duration such as 500ms, 10s, 2m, or a number of seconds";
    let value = value.trim();
    let (number, unit) = value.split_at(
        value
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(value.len()),
    );
    let number: u32 = number.parse().map_err(|_| EXPECTED)?;
    match unit {
        "ms" => Ok(Duration::from_millis(number.into())),
        "" | "s" => Ok(Duration::from_secs(number.into())),
        "m" => Ok(Duration::from_secs(u64::from(number) * 60)),
        _ => Err(EXPECTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_shows_no_variables_value() {
        let environment: Environment = [("SOME_API_KEY", "s3cret")].into_iter().collect();
        let shown = format!("{:?}", Config::from_environment(environment));
        assert!(
            shown.contains("SOME_API_KEY") && !shown.contains("s3cret"),
            "{shown}"
        );
    }

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
    fn durations_have_units_or_are_seconds() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration(" 7 "), Ok(Duration::from_secs(7)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for text in ["", "s", "-1", "1h", "1.5s", "10 s", "99999999999999999999"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn no_limit_is_too_long_to_be_added_to_a_point_in_time() {
        let limits = Limits {
            keepalive: Duration::MAX,
            close_timeout: Duration::MAX,
            ..Limits::default()
        };
        let limits = limits.bounded();
        let now = std::time::Instant::now();
        assert!(
            now.checked_add(limits.keepalive + limits.close_timeout)
                .is_some()
        );
        assert_eq!(limits.linger, Limits::default().linger);
    }

    #[test]
    fn the_programs_own_variable_wins_over_the_sessions() {
        let config = Config::from_environment(Environment::from_iter([
            ("ANTHROPIC_BASE_URL", "https://b.example"),
            ("UPSTREAMPROXY_BASE_URL", "https://a.example"),
            ("CLAUDE_CODE_REMOTE_SESSION_ID", "s"),
            ("UPSTREAMPROXY_SESSION_ID", ""),
            ("UPSTREAMPROXY_KEEPALIVE", "500ms"),
        ]));
        assert_eq!(config.base_url.as_deref(), Some("https://a.example"));
        assert_eq!(config.session_id.as_deref(), Some("s"), "empty is unset");
        assert_eq!(config.limits.keepalive, Duration::from_millis(500));
        assert!(config.unusable.is_empty());
    }

    #[test]
    fn an_unusable_value_is_kept_by_its_name_and_without_its_text() {
        let config = Config::from_environment(Environment::from_iter([
            ("UPSTREAMPROXY_LISTEN", "canary"),
            ("UPSTREAMPROXY_MAX_TUNNELS", "0"),
        ]));
        let names: Vec<_> = config.unusable.iter().map(|u| u.name.as_str()).collect();
        assert_eq!(names, ["UPSTREAMPROXY_LISTEN", "UPSTREAMPROXY_MAX_TUNNELS"]);
        assert!(!config.unusable[0].to_string().contains("canary"));
    }
}
