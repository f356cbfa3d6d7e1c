//! The table of the library's settings.
//!
//! Everything that knows a setting by its name is derived from this table: the variables that
//! [`Config::from_environment`] reads, [`Config::set`], the settings of the C API, and the options
//! of the command line with their help. A new setting is one row here and one field of [`Config`].

use std::ffi::OsStr;

use Subcommand::{Bench, Ca, Doctor, Gateway, Run, Serve};

use super::builder::Config;
use super::environment::Environment;
use super::setting::{Group, Setting, SettingError, Source, Subcommand};
use super::value::{
    count, descriptor, duration, embedded, is_truthy, listen, parent, parsed, path, put, put_some,
    standby, switch, uid, variable_names, when,
};
#[cfg(feature = "gateway")]
use super::value::{overrides, patterns};

/// The subcommands that start a relay, or check how it would start.
const RELAY: &[Subcommand] = &[Run, Serve, Doctor];
/// The subcommands that connect to the upstream.
const UPSTREAM: &[Subcommand] = &[Run, Serve, Doctor, Bench];
/// The subcommands that download the CA certificates of the upstream.
const DOWNLOAD: &[Subcommand] = &[Run, Serve, Ca, Doctor, Bench];
/// The subcommands that open connections in advance.
const STANDBY: &[Subcommand] = &[Run, Serve, Bench];
/// The subcommands that serve tunnels.
const TUNNELS: &[Subcommand] = &[Run, Serve, Doctor, Gateway];
/// The subcommands whose connections may pass a parent proxy.
const PROXIED: &[Subcommand] = &[Run, Serve, Ca, Doctor, Bench, Gateway];
/// The subcommands that open connections.
const CONNECTIONS: &[Subcommand] = &[Run, Serve, Doctor, Bench, Gateway];

const EMBEDDED_HELP: &str = if cfg!(feature = "gateway") {
    "start a gateway inside this process and use it as the upstream; implies --when always"
} else {
    "not in this build, which has no gateway"
};

/// Every setting of the library, in the order of help.
pub(crate) const SETTINGS: &[Setting<Config>] = &[
    Setting::value("when", "WHEN", UPSTREAM)
        .group(Group::Session)
        .values(&["auto", "always", "never"])
        .help(
            "when to run: auto checks CLAUDE_CODE_REMOTE and CCR_UPSTREAM_PROXY_ENABLED; always \
             skips that check and requires --base-url and --session-id; never keeps the proxy \
             off",
        )
        .default("auto")
        .setter(|config, value| put(&mut config.when, when(value))),
    Setting::switch("embedded", UPSTREAM)
        .group(Group::Session)
        .help(EMBEDDED_HELP)
        .setter(|config, value| put(&mut config.embedded, embedded(value))),
    Setting::value("base-url", "URL", DOWNLOAD)
        .group(Group::Session)
        .session_variables(&["ANTHROPIC_BASE_URL"])
        .help("base URL of the upstream, https, or http for loopback only")
        .default("ANTHROPIC_BASE_URL; with --when auto https://api.anthropic.com")
        .setter(|config, value| put_some(&mut config.base_url, parsed(value))),
    Setting::value("session-id", "ID", UPSTREAM)
        .group(Group::Session)
        .session_variables(&["CLAUDE_CODE_REMOTE_SESSION_ID"])
        .help("session ID sent to the upstream")
        .default("CLAUDE_CODE_REMOTE_SESSION_ID")
        .setter(|config, value| put_some(&mut config.session_id, parsed(value))),
    Setting::value("token-file", "PATH", UPSTREAM)
        .group(Group::Session)
        .help(
            "file or FIFO with the session token, - for standard input; run and serve delete the \
             file once the relay listens",
        )
        .default("the systemd credential upstreamproxy-token, or /run/ccr/session_token")
        .setter(|config, value| put(&mut config.token_file, path(value))),
    Setting::value("token-fd", "N", UPSTREAM)
        .group(Group::Session)
        .help("inherited descriptor with the session token; it is read once, to its end")
        .setter(|config, value| put_some(&mut config.token_fd, descriptor(value))),
    Setting::switch("keep-token", UPSTREAM)
        .group(Group::Session)
        .help("do not delete the token file, for a mounted secret that cannot be deleted")
        .setter(|config, value| put(&mut config.keep_token, switch(value))),
    Setting::value("upstream-ca", "FILE", DOWNLOAD)
        .group(Group::Session)
        .help(
            "PEM file with additional roots for connections to the upstream; with --embedded, \
             for verifying targets",
        )
        .default("none")
        .setter(|config, value| put_some(&mut config.upstream_ca, path(value))),
    Setting::value("upstream-uid", "UID", DOWNLOAD)
        .group(Group::Session)
        .help(
            "another user ID whose process may have the port of an http upstream; the token is \
             sent to no other",
        )
        .default("only this user and root")
        .setter(|config, value| put_some(&mut config.upstream_uid, uid(value))),
    Setting::value("parent-proxy", "URL", PROXIED)
        .group(Group::Session)
        .help(
            "HTTP proxy on the path to the upstream (with --embedded, and at the gateway: to \
             targets), http://[USER:PASSWORD@]HOST:PORT, or none",
        )
        .default(
            "the inherited HTTPS_PROXY or ALL_PROXY, except for hosts in NO_PROXY; gateway: none",
        )
        .setter(|config, value| put(&mut config.parent, parent(value))),
    Setting::value("system-ca", "FILE", DOWNLOAD)
        .group(Group::Session)
        .help("PEM file with the base roots")
        .default("the inherited SSL_CERT_FILE, or the roots of the distribution")
        .setter(|config, value| put_some(&mut config.system_ca, path(value))),
    Setting::value("ca-bundle", "PATH", RELAY)
        .group(Group::Relay)
        .help("where to write the merged CA bundle")
        .default(
            "~/.ccr/ca-bundle.crt; for root whose home is closed to other users, \
             /run/upstreamproxy/ca-bundle.crt",
        )
        .setter(|config, value| put_some(&mut config.ca_bundle, path(value))),
    Setting::value("listen", "[ADDR:]PORT", RELAY)
        .group(Group::Relay)
        .help(
            "address that the relay listens on, 127.0.0.1 if only a port is given; port 0 selects \
             a free port",
        )
        .default("127.0.0.1:0")
        .setter(|config, value| put(&mut config.listen, listen(value))),
    Setting::switch("allow-non-loopback", UPSTREAM)
        .group(Group::Relay)
        .help(
            "allow a --listen address (bench: --origin) that other machines can reach; they can \
             then use this session",
        )
        .setter(|config, value| put(&mut config.allow_non_loopback, switch(value))),
    Setting::switch("allow-any-user", RELAY)
        .group(Group::Relay)
        .help("allow every local user to use the port")
        .default(
            "only this user, root, and processes that run has started, where the kernel reports \
             the owner of a socket",
        )
        .setter(|config, value| put(&mut config.allow_any_user, switch(value))),
    Setting::switch("listen-credential", RELAY)
        .group(Group::Relay)
        .help(
            "put a random password into the proxy URL and refuse clients that do not send it; \
             the JVM, Yarn and others cannot send one",
        )
        .setter(|config, value| put(&mut config.listen_credential, switch(value))),
    Setting::value("omit-variable", "NAME", RELAY)
        .group(Group::Relay)
        .repeatable()
        .help(
            "variable that is not set for child processes, in upper and lower case, such as \
             http_proxy; repeatable",
        )
        .default("none")
        .setter(|config, value| put(&mut config.omit_variables, variable_names(value))),
    Setting::switch("node-hook", RELAY)
        .group(Group::Relay)
        .help(
            "make Node programs use the proxy that read no variable (Node 18 and 20, ws, AWS SDK \
             and others): NODE_OPTIONS loads a small file of this program into each",
        )
        .setter(|config, value| put(&mut config.node_hook, switch(value))),
    #[cfg(feature = "gateway")]
    Setting::value("intercept", "PATTERN", TUNNELS)
        .group(Group::Interception)
        .repeatable()
        .help(
            "intercept the TLS of these targets (with --embedded, or at the gateway): *, \
             example.com or *.example.com, each with or without :PORT, or none; repeatable",
        )
        .default("*:443")
        .setter(|config, value| put(&mut config.intercept, patterns(value))),
    #[cfg(feature = "gateway")]
    Setting::switch("require-tls", TUNNELS)
        .group(Group::Interception)
        .help(
            "refuse connections to intercepted targets that are not TLS (with --embedded, or at \
             the gateway)",
        )
        .default("they are passed through")
        .setter(|config, value| put(&mut config.require_tls, switch(value))),
    #[cfg(feature = "gateway")]
    Setting::value("resolve", "HOST:PORT:ADDR", TUNNELS)
        .group(Group::Interception)
        .repeatable()
        .help(
            "use this address for this name, as in curl (with --embedded, or at the gateway); \
             PORT * is every port; address restrictions still apply; repeatable",
        )
        .setter(|config, value| put(&mut config.resolve, overrides(value))),
    Setting::value("max-tunnels", "N", CONNECTIONS)
        .group(Group::Limits)
        .help("maximum number of open tunnels, at least 1; further requests are answered 503")
        .default("what the process limits allow, at most 1024")
        .setter(|config, value| put_some(&mut config.limits.max_tunnels, count(value))),
    Setting::value("standby", "N", STANDBY)
        .group(Group::Limits)
        .help(
            "maximum number of WebSockets opened in advance if the upstream is far away (5 ms \
             or more), 0 to 64; 0 disables them",
        )
        .default("8")
        .setter(|config, value| put(&mut config.limits.standby, standby(value))),
    Setting::value("drain-timeout", "DURATION", TUNNELS)
        .group(Group::Limits)
        .help("how long open tunnels may continue after a stop request; 0 cuts them at once")
        .default("10s")
        .setter(|config, value| put(&mut config.limits.drain_timeout, duration(value))),
    Setting::value("connect-timeout", "DURATION", CONNECTIONS)
        .group(Group::Limits)
        .help(
            "limit for each of name resolution, TCP connect, TLS handshake and upgrade; with 0 \
             every connection fails",
        )
        .default("10s")
        .setter(|config, value| put(&mut config.limits.connect_timeout, duration(value))),
    Setting::value("keepalive", "DURATION", TUNNELS)
        .group(Group::Limits)
        .help(
            "interval between pings on a silent tunnel; three unanswered pings end it; 0 \
             disables pings",
        )
        .default("25s")
        .setter(|config, value| put(&mut config.limits.keepalive, duration(value))),
    Setting::value("idle-timeout", "DURATION", TUNNELS)
        .group(Group::Limits)
        .help("how long a tunnel may transfer no data; 0 means no limit")
        .default("0")
        .setter(|config, value| put(&mut config.limits.idle_timeout, duration(value))),
    // For embedding hosts only: the binary is always hardened.
    Setting::switch("harden", &[])
        .group(Group::Relay)
        .flag_only()
        .help("make the process non-dumpable before the token is read")
        .default("true")
        .setter(|config, value| put(&mut config.harden, switch(value))),
];

impl Config {
    /// The settings in the environment of this process.
    pub fn from_env() -> Self {
        Self::from_environment(Environment::of_process())
    }

    /// The settings in `environment`: `UPSTREAMPROXY_<NAME>`, or else the variables of the session.
    ///
    /// A value that cannot be used is not an error here. If the switches of the session are on, it
    /// leaves the proxy Disabled at the gate, and the reason names the variable.
    pub fn from_environment(environment: Environment) -> Self {
        let is_on = |name: &str| environment.text(name).is_some_and(is_truthy);
        let mut config = Self {
            remote: is_on("CLAUDE_CODE_REMOTE"),
            enabled: is_on("CCR_UPSTREAM_PROXY_ENABLED"),
            ..Self::default()
        };
        for setting in SETTINGS {
            if let Some((source, value)) = setting.lookup(&environment) {
                let result = setting.set(&mut config, value, &source);
                config.record(setting.name, source, result);
            }
        }
        config.inherited = environment;
        config
    }

    /// Sets the setting called `name`, such as `keepalive`, to a value in text form, such as `10s`.
    ///
    /// The names are those of the long options; `harden` is a setting too.
    ///
    /// # Errors
    /// There is no setting of this name, or it cannot have this value.
    pub fn set(
        &mut self,
        name: impl AsRef<OsStr>,
        value: impl AsRef<OsStr>,
    ) -> Result<(), SettingError> {
        let name = name.as_ref();
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
            return Err(SettingError {
                setting: "",
                name: name.as_encoded_bytes().escape_ascii().to_string(),
                problem: "is not the name of a setting".to_owned(),
            });
        };
        let source = Source::Host;
        setting.set(self, value.as_ref(), &source)?;
        self.record(setting.name, source, Ok(()));
        Ok(())
    }

    /// The name of every setting, for [`Config::set`].
    pub fn setting_names() -> impl Iterator<Item = &'static str> {
        SETTINGS.iter().map(|setting| setting.name)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::when::When;
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Config {
        Config::from_environment(variables.iter().copied().collect())
    }

    #[test]
    fn debug_output_shows_no_variables_value() {
        let shown = format!(
            "{:?}",
            config(&[("SOME_API_KEY", "s3cret")]).token("s3cret".to_owned())
        );
        assert!(
            shown.contains("SOME_API_KEY") && !shown.contains("s3cret"),
            "{shown}"
        );
    }

    #[test]
    fn the_programs_own_variable_wins_over_the_sessions() {
        let config = config(&[
            ("ANTHROPIC_BASE_URL", "https://b.example"),
            ("UPSTREAMPROXY_BASE_URL", "https://a.example"),
            ("CLAUDE_CODE_REMOTE_SESSION_ID", "s"),
            ("UPSTREAMPROXY_SESSION_ID", ""),
            ("UPSTREAMPROXY_KEEPALIVE", "500ms"),
        ]);
        assert_eq!(config.base_url, "https://a.example".parse().ok());
        assert_eq!(config.session_id, "s".parse().ok(), "empty is unset");
        assert_eq!(config.limits.keepalive, Duration::from_millis(500));
        assert_eq!(config.unusable().count(), 0);
    }

    #[test]
    fn an_unusable_value_is_kept_by_its_name_and_without_its_text() {
        let config = config(&[
            ("UPSTREAMPROXY_LISTEN", "canary"),
            ("UPSTREAMPROXY_MAX_TUNNELS", "0"),
        ]);
        let names: Vec<_> = config.unusable().map(|u| u.name.as_str()).collect();
        assert_eq!(names, ["UPSTREAMPROXY_LISTEN", "UPSTREAMPROXY_MAX_TUNNELS"]);
        assert!(!config.unusable().any(|u| u.to_string().contains("canary")));
    }

    #[test]
    fn a_value_of_the_host_replaces_an_unusable_variable() {
        let variables = [
            ("UPSTREAMPROXY_WHEN", "perhaps"),
            ("UPSTREAMPROXY_KEEPALIVE", "perhaps"),
        ];
        let mut config = config(&variables).when(When::Always);
        assert_eq!(config.unusable().count(), 1);
        config.set("keepalive", "5s").unwrap();
        assert_eq!(config.unusable().count(), 0);
        assert_eq!(config.limits.keepalive, Duration::from_secs(5));
    }

    #[test]
    fn every_setter_uses_the_name_of_a_setting() {
        let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let config = Config::default()
            .when(When::Always)
            .base_url("https://a.example".parse().unwrap())
            .session_id("s".parse().unwrap())
            .token_file("/t")
            .upstream_ca("/u")
            .upstream_uid(7)
            .system_ca("/s")
            .ca_bundle("/b")
            .listen(listen)
            .allow_non_loopback(true)
            .allow_any_user(true)
            .listen_credential(true)
            .omit_variables(["http_proxy"])
            .node_hook(true)
            .harden(false);
        assert_eq!(config.sources.len(), 15);
        for name in config.sources.keys() {
            assert!(
                Config::setting_names().any(|known| known == *name),
                "{name}"
            );
        }
    }

    #[test]
    fn an_error_names_the_setting_and_changes_nothing() {
        let mut config = Config::default();
        let error = config.set("keepalive", "canary").unwrap_err().to_string();
        assert!(error.starts_with("keepalive is not a duration"), "{error}");
        assert_eq!(config.limits.keepalive, Duration::from_secs(25));
        let unknown = config.set("colour", "red").unwrap_err();
        assert!(
            unknown.is_unknown() && unknown.name == "colour",
            "{unknown}"
        );
        assert!(config.set("keepalive", "").is_err());
    }

    #[test]
    #[cfg(feature = "gateway")]
    fn an_unusable_value_counts_only_where_the_setting_matters() {
        let intercept = ("UPSTREAMPROXY_INTERCEPT", "..");
        let base_url = ("ANTHROPIC_BASE_URL", "perhaps");
        let embedded = ("UPSTREAMPROXY_EMBEDDED", "1");
        assert_eq!(config(&[intercept]).unusable().count(), 0);
        assert_eq!(config(&[intercept, embedded]).unusable().count(), 1);
        assert_eq!(config(&[base_url, embedded]).unusable().count(), 0);
        assert_eq!(config(&[base_url]).unusable().count(), 1);
    }

    #[test]
    #[cfg(not(feature = "gateway"))]
    fn a_variable_that_requests_an_embedded_gateway_is_unusable() {
        let config = config(&[("UPSTREAMPROXY_EMBEDDED", "1")]);
        let problem = config.unusable().next().unwrap().to_string();
        assert!(problem.contains("the feature `gateway`"), "{problem}");
    }
}
