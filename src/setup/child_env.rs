//! The variables of child processes: one table, from which `env`, `run`, the tests and the
//! documentation take them (`manual/operations.md`).
//!
//! The environment of this process is not changed, and no value contains a secret, except the URL
//! of a relay with a password. Variables that are not in the table keep their inherited values.
//! `ALL_PROXY` is not in it: no tool needs it, and a value for other protocols than HTTP is the
//! user's.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::config::{Environment, MARKER};
use crate::control::log;
use crate::setup::no_proxy;
use ChildValue::{Bundle, NoProxy, On, Proxy, Wgetrc};

/// Every variable that is set, in the order in which `env` prints them: names with the same value,
/// the value, and its purpose.
#[rustfmt::skip]
const TABLE: &[(&[&str], ChildValue, &str)] = &[
    // Go prefers the upper case, curl and Python the lower case. Both have the same value.
    (&["HTTPS_PROXY", "https_proxy"], Proxy, "the proxy of nearly every tool"),
    // Curl reads only the lower case: in a CGI program, a client's field `Proxy` sets the other.
    (&["HTTP_PROXY", "http_proxy"], Proxy, "the proxy for plain http; the only one that Ruby, Mercurial and busybox wget read"),
    (&[MARKER], Proxy, "marks these values as this program's, so that a start inside a child does not use them as its parent proxy"),
    (&["NO_PROXY", "no_proxy"], NoProxy, "hosts reached directly, not through the proxy"),
    (&["NODE_USE_ENV_PROXY"], On, "makes Node's built-in http and fetch use the proxy variables"),
    (&["YARN_HTTPS_PROXY", "YARN_HTTP_PROXY"], Proxy, "the proxy of Yarn 2 and later, which reads no other"),
    (&["GLOBAL_AGENT_HTTPS_PROXY", "GLOBAL_AGENT_HTTP_PROXY"], Proxy, "the proxy of Node programs that use global-agent"),
    (&["GLOBAL_AGENT_NO_PROXY"], NoProxy, "the exceptions of global-agent"),
    (&["grpc_proxy"], Proxy, "the proxy of gRPC"),
    (&["no_grpc_proxy"], NoProxy, "the exceptions of gRPC"),
    (&["SSL_CERT_FILE"], Bundle, "the roots of OpenSSL, Go, rustls and Python's ssl module"),
    (&["REQUESTS_CA_BUNDLE"], Bundle, "the roots of Python's requests"),
    (&["CURL_CA_BUNDLE"], Bundle, "the roots of curl"),
    (&["GIT_SSL_CAINFO"], Bundle, "the roots of git"),
    (&["PIP_CERT"], Bundle, "the roots of pip"),
    (&["CARGO_HTTP_CAINFO"], Bundle, "the roots of cargo"),
    (&["AWS_CA_BUNDLE"], Bundle, "the roots of the AWS command line and SDKs"),
    (&["NIX_SSL_CERT_FILE"], Bundle, "the roots of Nix"),
    (&["CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE"], Bundle, "the roots of gcloud"),
    (&["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"], Bundle, "the roots of gRPC"),
    (&["BUNDLE_SSL_CA_CERT"], Bundle, "the roots of Ruby's Bundler"),
    (&["npm_config_cafile"], Bundle, "the roots of npm"),
    (&["YARN_HTTPS_CA_FILE_PATH"], Bundle, "the roots of Yarn 2 and later"),
    (&["PERL_LWP_SSL_CA_FILE"], Bundle, "the roots of Perl's LWP"),
    (&["NODE_EXTRA_CA_CERTS"], Bundle, "roots that Node, npm and bun add to their own"),
    (&["DENO_CERT"], Bundle, "roots that Deno adds to its own"),
    (&["WGETRC"], Wgetrc, "a settings file that names the roots, for a wget built with GnuTLS; only if the user has none"),
];

/// What a variable is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChildValue {
    /// The URL of the relay. By default without userinfo, which the JVM, Volta, Yarn and undici
    /// cannot parse.
    Proxy,
    /// The exceptions of [`no_proxy`], with the inherited ones.
    NoProxy,
    /// `1`.
    On,
    /// The path of the merged CA bundle.
    Bundle,
    /// The path of the settings file for wget, if it was written.
    Wgetrc,
}

/// The values for a child process.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(serde::Deserialize, serde::Serialize))]
pub(crate) struct ChildEnv {
    /// The URL of the relay.
    pub(crate) proxy: String,
    /// The merged CA bundle, an absolute path.
    pub(crate) bundle: PathBuf,
    /// The settings file for wget. `None` if the user has one.
    pub(crate) wgetrc: Option<PathBuf>,
    /// The variables that are not set, in upper and lower case.
    pub(crate) omitted: Vec<String>,
}

impl fmt::Debug for ChildEnv {
    /// Without the URL, which may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildEnv")
            .field("bundle", &self.bundle)
            .finish_non_exhaustive()
    }
}

impl ChildEnv {
    /// The variables to set for a child that otherwise has the environment `inherited`, in the
    /// order of the table.
    ///
    /// Entries are added to `NO_PROXY`; all other values are replaced. For an environment that
    /// already has these variables, the result is the same values.
    pub(crate) fn variables(&self, inherited: &Environment) -> Vec<(String, OsString)> {
        let mut variables = Vec::new();
        for (names, value, _) in TABLE {
            for &name in *names {
                if self.omits(name) {
                    continue;
                }
                let value = match value {
                    Proxy => Some(self.proxy.clone().into()),
                    NoProxy => Some(no_proxy::merged(name, inherited).into()),
                    On => Some("1".into()),
                    Bundle => Some(self.bundle.clone().into_os_string()),
                    Wgetrc => self.wgetrc.clone().map(PathBuf::into_os_string),
                };
                variables.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        let no_proxy = variables.iter().find(|(name, _)| name == "NO_PROXY");
        let no_proxy = no_proxy.and_then(|(_, value)| value.to_str());
        if no_proxy.is_some_and(no_proxy::includes_every_host) {
            log::warn!(
                "the inherited NO_PROXY has the entry *, so many tools will not use any proxy; remove it if \
                 they should"
            );
        }
        variables
    }

    fn omits(&self, name: &str) -> bool {
        let mut omitted = self.omitted.iter();
        omitted.any(|other| other.eq_ignore_ascii_case(name))
    }
}

/// Warns of each name in `omitted` that is not in the table.
pub(crate) fn warn_of_unknown(omitted: &[String]) {
    let known = |name: &String| {
        TABLE
            .iter()
            .any(|(names, ..)| names.iter().any(|known| known.eq_ignore_ascii_case(name)))
    };
    for name in omitted.iter().filter(|name| !known(name)) {
        log::warn!(
            "omit-variable (--omit-variable) {name}: no variable of this name is set; the README lists them"
        );
    }
}

/// The URL of a relay that listens on `listener`, with `userinfo` if the relay requires it. An
/// unspecified address becomes the loopback address.
pub(crate) fn proxy_url(listener: SocketAddr, userinfo: Option<&str>) -> String {
    let address = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let userinfo = userinfo.map(|text| format!("{text}@")).unwrap_or_default();
    format!(
        "http://{userinfo}{}",
        SocketAddr::new(address, listener.port())
    )
}

/// The variables that name a CA file. The bundle contains the roots of the inherited files.
pub(crate) fn ca_variables() -> impl Iterator<Item = &'static str> {
    names_of(Bundle)
}

/// The variables that name the proxy.
#[cfg(feature = "cli")]
pub(crate) fn proxy_variables() -> impl Iterator<Item = &'static str> {
    names_of(Proxy)
}

fn names_of(value: ChildValue) -> impl Iterator<Item = &'static str> {
    let rows = TABLE.iter().filter(move |(_, of_row, _)| *of_row == value);
    rows.flat_map(|(names, ..)| names.iter().copied())
}

/// Every variable that may be set and its purpose, in order, for the documentation.
#[cfg(any(test, feature = "cli"))]
// `cli` publishes it for the test of the README.
#[cfg_attr(not(feature = "cli"), allow(unreachable_pub))]
pub fn documentation() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = TABLE.iter();
    rows.flat_map(|(names, _, purpose)| names.iter().map(|&name| (name, *purpose)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn child_env() -> ChildEnv {
        ChildEnv {
            proxy: "http://127.0.0.1:4711".into(),
            bundle: "/home/u/.ccr/ca-bundle.crt".into(),
            wgetrc: Some("/home/u/.ccr/ca-bundle.crt.wgetrc".into()),
            omitted: Vec::new(),
        }
    }

    fn variables(inherited: &[(&str, &str)]) -> Environment {
        let mut environment = inherited.iter().copied().collect::<Environment>();
        for (name, value) in child_env().variables(&environment.clone()) {
            environment.set(name, value);
        }
        environment
    }

    #[test]
    fn every_variable_is_in_the_table_once_and_has_a_purpose() {
        let mut names = HashSet::new();
        for (name, purpose) in documentation() {
            assert!(names.insert(name), "{name}");
            assert!(!purpose.is_empty() && !purpose.ends_with('.'), "{name}");
        }
        for never in ["ALL_PROXY", "all_proxy", "GRPC_PROXY"] {
            assert!(!names.contains(never), "{never}");
        }
        for unchanged in ["SSL_CERT_DIR", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS"] {
            assert!(!names.contains(unchanged), "{unchanged}");
        }
    }

    #[test]
    fn sets_every_documented_variable_in_the_order_of_the_table() {
        let set: Vec<_> = child_env().variables(&Environment::default());
        let names: Vec<_> = set.iter().map(|(name, _)| name.as_str()).collect();
        let documented: Vec<_> = documentation().map(|(name, _)| name).collect();
        assert_eq!(names, documented);
        assert_eq!(names.first(), Some(&"HTTPS_PROXY"));
        assert_eq!(names.last(), Some(&"WGETRC"));
    }

    #[test]
    fn upper_and_lower_case_are_identical() {
        let all = variables(&[("no_proxy", "a.example")]);
        for name in ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
            assert_eq!(all.text(name), all.text(&name.to_lowercase()), "{name}");
        }
        assert_eq!(all.text("HTTPS_PROXY"), Some("http://127.0.0.1:4711"));
        assert_eq!(all.text("http_proxy"), Some("http://127.0.0.1:4711"));
        assert_eq!(all.text("grpc_proxy"), Some("http://127.0.0.1:4711"));
        assert_eq!(all.text("NODE_USE_ENV_PROXY"), Some("1"));
    }

    #[test]
    fn every_ca_variable_names_the_bundle() {
        let all = variables(&[("GIT_SSL_CAINFO", "/elsewhere.pem")]);
        for name in ca_variables() {
            assert_eq!(all.text(name), Some("/home/u/.ccr/ca-bundle.crt"), "{name}");
        }
        assert_eq!(ca_variables().count(), 16);
    }

    #[test]
    fn wgetrc_is_set_only_if_the_file_was_written() {
        let without = ChildEnv {
            wgetrc: None,
            ..child_env()
        };
        let set = without.variables(&Environment::default());
        assert!(set.iter().all(|(name, _)| name != "WGETRC"));
        assert_eq!(
            variables(&[]).text("WGETRC"),
            Some("/home/u/.ccr/ca-bundle.crt.wgetrc")
        );
    }

    #[test]
    fn an_omitted_variable_is_set_in_no_case_and_keeps_its_value() {
        let child_env = ChildEnv {
            omitted: vec!["http_proxy".into(), "NODE_EXTRA_CA_CERTS".into()],
            ..child_env()
        };
        let set = child_env.variables(&Environment::default());
        let left_out = ["HTTP_PROXY", "http_proxy", "NODE_EXTRA_CA_CERTS"];
        assert!(
            set.iter()
                .all(|(name, _)| !left_out.contains(&name.as_str()))
        );
        assert_eq!(set.len(), documentation().count() - left_out.len());
    }

    #[test]
    fn applying_the_variables_twice_changes_nothing() {
        for inherited in [
            &[][..],
            &[("NO_PROXY", "a.example"), ("no_proxy", "b.example")],
            &[("no_grpc_proxy", "c.example")],
            &[("NO_PROXY", "*")],
            &[("NO_PROXY", "a.example,*")],
            &[("no_proxy", " , ")],
        ] {
            let once = variables(inherited);
            let set = child_env().variables(&once);
            assert!(
                set.iter().all(|(n, v)| once.lookup(n) == Some(v)),
                "{inherited:?}"
            );
        }
    }

    #[test]
    fn a_single_star_stays_single() {
        let all = variables(&[("no_proxy", " * ")]);
        assert_eq!(all.text("NO_PROXY"), Some("*"));
        assert_eq!(all.text("no_proxy"), Some("*"));
    }

    #[test]
    fn the_proxy_url_has_the_address_of_the_relay_and_never_the_unspecified_one() {
        for (listener, url) in [
            ("[::1]:8", "http://[::1]:8"),
            ("127.0.0.2:8", "http://127.0.0.2:8"),
            ("0.0.0.0:8", "http://127.0.0.1:8"),
            ("[::]:8", "http://[::1]:8"),
        ] {
            assert_eq!(proxy_url(listener.parse().unwrap(), None), url);
        }
    }
}
