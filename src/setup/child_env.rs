//! Where child processes are told to go: the one table of variables, from which `env`, `run`, the tests and the
//! documentation are drawn (`manual/operations.md`).
//!
//! Nothing here changes the environment of this process, and nothing secret is in any value. What is not in the table stays
//! as inherited. `HTTP_PROXY` and `ALL_PROXY` are not in it: the listener speaks CONNECT only, and a tool that sends an
//! absolute-form request would be refused. `JAVA_TOOL_OPTIONS` is not in it: a JVM that is sent through an intercepting
//! gateway without a trust store of ours fails where it worked before.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::config::Environment;

/// What never goes through the upstream: this machine, its cloud's metadata service, and private networks. The names and
/// addresses come first, for clients that know no CIDR; registries are missing because reaching them is what we are for.
const NO_PROXY: [&str; 11] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "0.0.0.0",
    "169.254.169.254",
    "metadata.google.internal",
    ".local",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
];

/// The entry that means every host.
const EVERY_HOST: &str = "*";

/// Every variable that we set, in the order in which `env` prints them.
const TABLE: &[Row] = &[
    // Go reads the upper case first, curl and Python the lower: both, and identical.
    Row {
        names: &["HTTPS_PROXY", "https_proxy"],
        value: Value::Proxy,
        purpose: "the proxy of nearly every tool",
    },
    Row {
        names: &["NO_PROXY", "no_proxy"],
        value: Value::NoProxy,
        purpose: "hosts reached directly, not through the proxy",
    },
    Row {
        names: &["NODE_USE_ENV_PROXY"],
        value: Value::On,
        purpose: "makes Node's own http and fetch look at the proxy variables",
    },
    Row {
        names: &["YARN_HTTPS_PROXY"],
        value: Value::Proxy,
        purpose: "the proxy of Yarn 2 and later, which reads no other",
    },
    Row {
        names: &["GLOBAL_AGENT_HTTPS_PROXY"],
        value: Value::Proxy,
        purpose: "the proxy of Node programs that use global-agent",
    },
    Row {
        names: &["GLOBAL_AGENT_NO_PROXY"],
        value: Value::NoProxy,
        purpose: "the exceptions of global-agent",
    },
    Row {
        names: &["grpc_proxy"],
        value: Value::Proxy,
        purpose: "the proxy of gRPC",
    },
    Row {
        names: &["no_grpc_proxy"],
        value: Value::NoProxy,
        purpose: "the exceptions of gRPC",
    },
    Row {
        names: &["SSL_CERT_FILE"],
        value: Value::Bundle,
        purpose: "the roots of OpenSSL, Go, rustls and Python's ssl module",
    },
    Row {
        names: &["REQUESTS_CA_BUNDLE"],
        value: Value::Bundle,
        purpose: "the roots of Python's requests",
    },
    Row {
        names: &["CURL_CA_BUNDLE"],
        value: Value::Bundle,
        purpose: "the roots of curl",
    },
    Row {
        names: &["GIT_SSL_CAINFO"],
        value: Value::Bundle,
        purpose: "the roots of git",
    },
    Row {
        names: &["PIP_CERT"],
        value: Value::Bundle,
        purpose: "the roots of pip",
    },
    Row {
        names: &["CARGO_HTTP_CAINFO"],
        value: Value::Bundle,
        purpose: "the roots of cargo",
    },
    Row {
        names: &["AWS_CA_BUNDLE"],
        value: Value::Bundle,
        purpose: "the roots of the AWS command line and SDKs",
    },
    Row {
        names: &["NIX_SSL_CERT_FILE"],
        value: Value::Bundle,
        purpose: "the roots of Nix",
    },
    Row {
        names: &["CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE"],
        value: Value::Bundle,
        purpose: "the roots of gcloud",
    },
    Row {
        names: &["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"],
        value: Value::Bundle,
        purpose: "the roots of gRPC",
    },
    Row {
        names: &["BUNDLE_SSL_CA_CERT"],
        value: Value::Bundle,
        purpose: "the roots of Ruby's Bundler",
    },
    Row {
        names: &["npm_config_cafile"],
        value: Value::Bundle,
        purpose: "the roots of npm",
    },
    Row {
        names: &["YARN_HTTPS_CA_FILE_PATH"],
        value: Value::Bundle,
        purpose: "the roots of Yarn 2 and later",
    },
    Row {
        names: &["PERL_LWP_SSL_CA_FILE"],
        value: Value::Bundle,
        purpose: "the roots of Perl's LWP",
    },
    Row {
        names: &["NODE_EXTRA_CA_CERTS"],
        value: Value::Bundle,
        purpose: "roots that Node, npm and bun add to their own",
    },
    Row {
        names: &["DENO_CERT"],
        value: Value::Bundle,
        purpose: "roots that Deno adds to its own",
    },
    Row {
        names: &["WGETRC"],
        value: Value::Wgetrc,
        purpose: "a settings file that names the roots, for a wget built with GnuTLS; only where there is none yet",
    },
];

/// One row: names that share a value, and what that is for.
struct Row {
    names: &'static [&'static str],
    value: Value,
    purpose: &'static str,
}

/// What a variable is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// The relay's URL; by default without userinfo, which the JVM, Volta, Yarn and undici stumble over.
    Proxy,
    /// [`NO_PROXY`], merged with what was inherited.
    NoProxy,
    /// `1`.
    On,
    /// The path of the merged CA bundle.
    Bundle,
    /// The path of the wget settings file, where we wrote one.
    Wgetrc,
}

/// What the variables of a child process are made from.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ChildEnv {
    /// The relay's URL.
    pub(crate) proxy: String,
    /// The merged CA bundle, an absolute path.
    pub(crate) bundle: PathBuf,
    /// The wget settings file; `None` where the user has one of their own.
    pub(crate) wgetrc: Option<PathBuf>,
}

impl fmt::Debug for ChildEnv {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildEnv")
            .field("bundle", &self.bundle)
            .finish_non_exhaustive()
    }
}

impl ChildEnv {
    /// The variables to set for a child that would otherwise see `inherited`, in the order of the table.
    ///
    /// `NO_PROXY` grows, everything else is replaced. Building on an environment that has our variables already changes
    /// nothing in it.
    pub(crate) fn variables(&self, inherited: &Environment) -> Vec<(String, OsString)> {
        let mut variables = Vec::new();
        for row in TABLE {
            for &name in row.names {
                let value = match row.value {
                    Value::Proxy => Some(self.proxy.clone().into()),
                    Value::NoProxy => Some(no_proxy_for(name, inherited).into()),
                    Value::On => Some("1".into()),
                    Value::Bundle => Some(self.bundle.clone().into_os_string()),
                    Value::Wgetrc => self.wgetrc.clone().map(PathBuf::into_os_string),
                };
                variables.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        let every_host = |(name, value): &(String, OsString)| {
            name == "NO_PROXY" && value.to_str().is_some_and(|v| v.split(',').any(is_star))
        };
        if variables.iter().any(every_host) {
            log::warn!(
                "the inherited NO_PROXY has the entry *, which keeps many tools from using any proxy; it is kept"
            );
        }
        variables
    }
}

/// `http://127.0.0.1:PORT`, or the loopback address that the relay was told to listen on; `userinfo` where the relay asks for it.
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

/// The variables that name a CA file: the roots in the inherited ones go into the bundle that replaces them.
pub(crate) fn ca_variables() -> impl Iterator<Item = &'static str> {
    names_of(Value::Bundle)
}

/// The variables that name the proxy.
pub(crate) fn proxy_variables() -> impl Iterator<Item = &'static str> {
    names_of(Value::Proxy)
}

fn names_of(value: Value) -> impl Iterator<Item = &'static str> {
    let rows = TABLE.iter().filter(move |row| row.value == value);
    rows.flat_map(|row| row.names.iter().copied())
}

/// Every variable that may be set and what it is for, in order: what the documentation has to say.
pub fn documentation() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = TABLE.iter();
    rows.flat_map(|row| row.names.iter().map(|&name| (name, row.purpose)))
}

/// Our exceptions, then the general ones that were inherited, then what this variable had beyond them; each once.
fn no_proxy_for(variable: &str, inherited: &Environment) -> String {
    let found: Vec<&str> = ["NO_PROXY", "no_proxy", variable]
        .into_iter()
        .filter_map(|name| inherited.text(name))
        .flat_map(|list| list.split(|c: char| c == ',' || c.is_whitespace()))
        .filter(|entry| !entry.is_empty())
        .collect();
    // Beside other entries curl and Python no longer take it for every host: what is wanted is no proxy at all.
    if !found.is_empty() && found.iter().copied().all(is_star) {
        return EVERY_HOST.to_owned();
    }
    let mut entries: Vec<&str> = Vec::new();
    for entry in NO_PROXY.into_iter().chain(found) {
        if !entries
            .iter()
            .any(|known| known.eq_ignore_ascii_case(entry))
        {
            entries.push(entry);
        }
    }
    entries.join(",")
}

fn is_star(entry: &str) -> bool {
    entry == EVERY_HOST
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
    fn no_variable_stands_in_the_table_twice_and_each_says_what_it_is_for() {
        let mut names = HashSet::new();
        for (name, purpose) in documentation() {
            assert!(names.insert(name), "{name}");
            assert!(!purpose.is_empty() && !purpose.ends_with('.'), "{name}");
        }
        for never in [
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
            "GRPC_PROXY",
        ] {
            assert!(!names.contains(never), "{never}");
        }
        for left_alone in ["SSL_CERT_DIR", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS"] {
            assert!(!names.contains(left_alone), "{left_alone}");
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
        for name in ["HTTPS_PROXY", "NO_PROXY"] {
            assert_eq!(all.text(name), all.text(&name.to_lowercase()), "{name}");
        }
        assert_eq!(all.text("HTTPS_PROXY"), Some("http://127.0.0.1:4711"));
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
    fn wgetrc_is_set_only_where_we_wrote_one() {
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
    fn no_proxy_keeps_what_was_inherited_in_its_order_and_without_repeats() {
        let all = variables(&[
            (
                "NO_PROXY",
                "b.example, LOCALHOST,,a.example:8080 10.0.0.0/8",
            ),
            ("no_proxy", "a.example:8080,c.example,B.example"),
            ("no_grpc_proxy", "d.example,c.example"),
        ]);
        let ours = NO_PROXY.join(",");
        let merged = format!("{ours},b.example,a.example:8080,c.example");
        assert_eq!(all.text("NO_PROXY"), Some(&*merged));
        assert_eq!(all.text("GLOBAL_AGENT_NO_PROXY"), Some(&*merged));
        let for_grpc = format!("{merged},d.example");
        assert_eq!(all.text("no_grpc_proxy"), Some(&*for_grpc));
    }

    #[test]
    fn doing_it_twice_changes_nothing() {
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
    fn a_lone_star_stays_alone() {
        let all = variables(&[("no_proxy", " * ")]);
        assert_eq!(all.text("NO_PROXY"), Some("*"));
        assert_eq!(all.text("no_proxy"), Some("*"));
    }

    #[test]
    fn the_proxy_is_where_the_relay_listens_and_never_the_unspecified_address() {
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
