//! The variables of child processes: one table, from which `env`, `run`, the tests and the
//! documentation take them (`manual/operations.md`).
//!
//! The environment of this process is not changed, and no value contains a secret, except the URL
//! of a relay with a password. Variables that are not in the table keep their inherited values.
//! `ALL_PROXY` is not in it: no tool needs it, and a value for other protocols than HTTP is the
//! user's.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::config::{Environment, MARKER};
use crate::control::log;
use crate::setup::java_options;
use crate::setup::no_proxy;
use crate::setup::node_options;
use crate::setup::tool_files::ToolFile;
use ChildValue::{
    Additional, Bundle, File, HgrcPath, IfSet, JavaOptions, NoProxy, NodeOptions, NpmRoots, On,
    PhpScanPath, Proxy,
};

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
    (&["wss_proxy", "ws_proxy"], Proxy, "the proxy for the WebSockets of aiohttp"),
    (&["NODE_USE_ENV_PROXY"], On, "makes Node's built-in http and fetch use the proxy variables"),
    (&["YARN_HTTPS_PROXY", "YARN_HTTP_PROXY"], Proxy, "the proxy of Yarn 2 and later, which reads no other"),
    (&["GLOBAL_AGENT_HTTPS_PROXY", "GLOBAL_AGENT_HTTP_PROXY"], Proxy, "the proxy of Node programs that use global-agent"),
    (&["GLOBAL_AGENT_NO_PROXY"], NoProxy, "the exceptions of global-agent"),
    (&["grpc_proxy"], Proxy, "the proxy of gRPC"),
    (&["no_grpc_proxy"], NoProxy, "the exceptions of gRPC"),
    (&["PERL_LWP_ENV_PROXY"], On, "makes Perl's LWP use the proxy variables"),
    (&["SSL_CERT_FILE"], Bundle, "the roots of OpenSSL, Go, rustls and Python's ssl module"),
    (&["REQUESTS_CA_BUNDLE"], Bundle, "the roots of Python's requests"),
    (&["HTTPLIB2_CA_CERTS"], Bundle, "the roots of Python's httplib2, and of Google's clients that use it"),
    (&["CURL_CA_BUNDLE"], Bundle, "the roots of curl"),
    (&["GIT_SSL_CAINFO"], Bundle, "the roots of git"),
    (&["PIP_CERT"], Bundle, "the roots of pip"),
    (&["CARGO_HTTP_CAINFO"], Bundle, "the roots of cargo"),
    (&["AWS_CA_BUNDLE"], Bundle, "the roots of the AWS command line and SDKs"),
    (&["NIX_SSL_CERT_FILE"], Bundle, "the roots of Nix"),
    (&["CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE"], Bundle, "the roots of gcloud"),
    (&["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"], Bundle, "the roots of gRPC"),
    (&["BUNDLE_SSL_CA_CERT"], Bundle, "the roots of Ruby's Bundler"),
    (&["YARN_HTTPS_CA_FILE_PATH"], Bundle, "the roots of Yarn 2 and later"),
    (&["PERL_LWP_SSL_CA_FILE"], Bundle, "the roots of Perl's LWP"),
    (&["NODE_EXTRA_CA_CERTS"], Additional, "roots that Node, npm, pnpm, Yarn and bun add to their own"),
    (&["DENO_CERT"], Additional, "roots that Deno adds to its own"),
    (&["WGETRC"], File(ToolFile::Wgetrc), "a settings file that names the roots, for a wget built with GnuTLS; only if the user has none"),
    (&["APT_CONFIG"], File(ToolFile::AptConf), "a settings file that names the roots, and keeps apt's processes at the user root; only if the user has none"),
    (&["HGRCPATH"], HgrcPath, "the inherited settings files of Mercurial, and one that names the roots"),
    (&["PHP_INI_SCAN_DIR"], PhpScanPath, "the inherited directories of PHP's settings, and one that names the roots of its curl and openssl extensions"),
    (&["JAVA_TOOL_OPTIONS"], JavaOptions, "the inherited options of the JVM, and those for the proxy, its exceptions and a trust store"),
    (&["NODE_OPTIONS"], NodeOptions, "the inherited options of Node, and one that loads a file; only with node-hook (--node-hook)"),
    (&["npm_config_https_proxy", "npm_config_http_proxy", "npm_config_proxy"], IfSet(&Proxy), "the proxy of npm and pnpm; only if it is set already"),
    (&["NPM_CONFIG_HTTPS_PROXY", "NPM_CONFIG_HTTP_PROXY", "NPM_CONFIG_PROXY"], IfSet(&Proxy), "the same; only if it is set already"),
    (&["npm_config_noproxy", "NPM_CONFIG_NOPROXY"], IfSet(&NoProxy), "the exceptions of npm; only if it is set already"),
    (&["npm_config_cafile"], NpmRoots, "the roots of npm and pnpm; only if it is set already, or a settings file of npm names other roots"),
    (&["NPM_CONFIG_CAFILE"], IfSet(&Bundle), "the same; only if it is set already"),
    (&["CARGO_HTTP_PROXY"], IfSet(&Proxy), "the proxy of cargo; only if it is set already"),
    (&["PIP_PROXY"], IfSet(&Proxy), "the proxy of pip; only if it is set already"),
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
    /// The path of the merged CA bundle: the variable replaces the roots of the tool.
    Bundle,
    /// The path of the upstream's CA alone: the variable adds roots to those of the tool, which
    /// would load a whole bundle at each start. The merged bundle, if the variable is set already:
    /// it has the roots of that file too.
    Additional,
    /// The path of a file beside the bundle, if it was written.
    File(ToolFile),
    /// The inherited settings of Mercurial, then a file beside the bundle.
    HgrcPath,
    /// The inherited directories of PHP, then one beside the bundle.
    PhpScanPath,
    /// The inherited options of the JVM, then [`java_options`].
    JavaOptions,
    /// The inherited options of Node, then one that loads a file beside the bundle, if that was
    /// written.
    NodeOptions,
    /// The path of the merged CA bundle, if npm would use other roots.
    NpmRoots,
    /// Another value, if the variable is set: it would override what the others say.
    IfSet(&'static ChildValue),
}

/// Where Mercurial finds its settings if `HGRCPATH` is not set: merge tools of the Debian package,
/// the system, the user. With `HGRCPATH` it reads only the files that this names.
const HGRC_DEFAULT: &str = "/usr/lib/python3/dist-packages/mercurial/defaultrc:\
                            /etc/mercurial/hgrc:/etc/mercurial/hgrc.d:~/.hgrc";

/// The values for a child process.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(serde::Deserialize, serde::Serialize))]
pub(crate) struct ChildEnv {
    /// The URL of the relay.
    pub(crate) proxy: String,
    /// The merged CA bundle, an absolute path.
    #[cfg_attr(feature = "cli", serde(serialize_with = "as_text"))]
    pub(crate) bundle: PathBuf,
    /// The files beside the bundle that were written.
    pub(crate) files: Vec<ToolFile>,
    /// A settings file of npm names roots: `NODE_EXTRA_CA_CERTS` does not reach npm.
    pub(crate) npm_roots: bool,
    /// The variables that are not set, in upper and lower case.
    pub(crate) omitted: Vec<String>,
}

/// A path that is not UTF-8 becomes text with replacement characters.
#[cfg(feature = "cli")]
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
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
    /// The path of a file beside the bundle, if it was written.
    pub(crate) fn file(&self, file: ToolFile) -> Option<PathBuf> {
        self.files.contains(&file).then(|| file.path(&self.bundle))
    }

    /// The variables to set for a child that otherwise has the environment `inherited`, in the
    /// order of the table.
    ///
    /// Lists are extended; all other values are replaced. For an environment that already has these
    /// variables, the result is the same values.
    pub(crate) fn variables(&self, inherited: &Environment) -> Vec<(String, OsString)> {
        let inherited = &without_earlier_entries(inherited);
        let mut variables = Vec::new();
        for (names, value, _) in TABLE {
            let names = names.iter().filter(|name| !self.omits(name));
            variables.extend(names.filter_map(|&name| {
                let value = self.value(*value, name, inherited)?;
                Some((name.to_owned(), value))
            }));
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

    /// The value of the variable `name`; `None` if it is not set.
    fn value(&self, value: ChildValue, name: &str, inherited: &Environment) -> Option<OsString> {
        let found = inherited.lookup(name);
        match value {
            Proxy => Some(self.proxy.clone().into()),
            NoProxy => Some(no_proxy::merged(name, inherited).into()),
            On => Some("1".into()),
            Bundle => Some(self.bundle.clone().into()),
            Additional => {
                let ca = self.file(ToolFile::UpstreamCa);
                let ca = ca.filter(|ca| found.is_none_or(|found| found == ca));
                Some(ca.unwrap_or_else(|| self.bundle.clone()).into())
            }
            File(file) => self.file(file).map(Into::into),
            HgrcPath => {
                let user = || default_hgrc_path(inherited);
                let list = found.map_or_else(user, OsStr::to_owned);
                Some(appended(&list, ":", self.file(ToolFile::Hgrc)?.as_os_str()))
            }
            // An empty entry is the directory that PHP was built with.
            PhpScanPath => {
                let directory = self.file(ToolFile::PhpDirectory)?;
                let list = found.unwrap_or_default();
                Some(appended(list, ":", directory.as_os_str()))
            }
            JavaOptions => {
                let options = self.java_options(inherited)?;
                Some(match found {
                    Some(found) => appended(found, " ", options.as_ref()),
                    None => options.into(),
                })
            }
            NodeOptions => {
                let hook = self.file(ToolFile::NodeHook)?;
                Some(node_options::loading(found.unwrap_or_default(), &hook))
            }
            NpmRoots => (self.npm_roots || found.is_some()).then(|| self.bundle.clone().into()),
            IfSet(value) => found.and_then(|_| self.value(*value, name, inherited)),
        }
    }

    /// What remains of the variable `name` in `environment` without this value; empty: nothing.
    /// `None`: it does not have this value.
    fn rest(&self, value: ChildValue, name: &str, environment: &Environment) -> Option<OsString> {
        let found = environment.lookup(name)?;
        match value {
            #[cfg(feature = "cli")]
            NoProxy => Some(no_proxy::inherited_entries(found.to_str()?).into()),
            HgrcPath => {
                let rest = removed(found, ":", self.file(ToolFile::Hgrc)?.as_os_str())?;
                let is_default = rest == default_hgrc_path(environment);
                Some(if is_default { OsString::new() } else { rest })
            }
            PhpScanPath => removed(found, ":", self.file(ToolFile::PhpDirectory)?.as_os_str()),
            JavaOptions => removed(found, " ", self.java_options(environment)?.as_ref()),
            NodeOptions => node_options::without_hook(found),
            IfSet(value) => self.rest(*value, name, environment),
            value => {
                let own = self.value(value, name, environment)?;
                (own == found).then(OsString::new)
            }
        }
    }

    fn java_options(&self, inherited: &Environment) -> Option<String> {
        java_options::options(
            &self.proxy,
            !self.omits("http_proxy"),
            &no_proxy::merged("NO_PROXY", inherited),
            &self.file(ToolFile::TrustStore)?,
        )
    }

    fn omits(&self, name: &str) -> bool {
        let mut omitted = self.omitted.iter();
        omitted.any(|other| other.eq_ignore_ascii_case(name))
    }
}

/// What the variables of an earlier start in `environment` are made of, as far as they show it.
pub(crate) fn earlier(environment: &Environment) -> Option<ChildEnv> {
    let proxy = environment.text(MARKER)?;
    let bundle = ca_variables().find_map(|name| environment.lookup(name))?;
    let plain_http = ["http_proxy", "HTTP_PROXY"];
    let omits = plain_http
        .iter()
        .all(|name| environment.text(name) != Some(proxy));
    Some(ChildEnv {
        proxy: proxy.to_owned(),
        bundle: bundle.into(),
        files: ToolFile::ALL.into(),
        npm_roots: false,
        omitted: omits
            .then(|| plain_http[0].to_owned())
            .into_iter()
            .collect(),
    })
}

/// `environment` without the entries that an earlier start has appended to lists. They would be
/// repeated otherwise, with the address or the files of a relay that may have ended.
fn without_earlier_entries(environment: &Environment) -> Environment {
    let mut cleaned = environment.clone();
    let Some(earlier) = earlier(environment) else {
        return cleaned;
    };
    let is_list =
        |value: &ChildValue| matches!(value, HgrcPath | PhpScanPath | JavaOptions | NodeOptions);
    for (names, value, _) in TABLE.iter().filter(|(_, value, _)| is_list(value)) {
        for name in *names {
            if let Some(rest) = earlier.rest(*value, name, environment) {
                // An empty one counts as unset.
                cleaned.set(*name, rest);
            }
        }
    }
    cleaned
}

/// How to undo in `environment` what the variables of an earlier start have changed, in the order
/// of the table: for each name the value without its entries, or `None` to unset it. Values that
/// were replaced are not known.
#[cfg(feature = "cli")]
pub(crate) fn removal(environment: &Environment) -> Vec<(String, Option<OsString>)> {
    let Some(earlier) = earlier(environment) else {
        return Vec::new();
    };
    let names = TABLE
        .iter()
        .flat_map(|(names, value, _)| names.iter().map(move |name| (*name, *value)));
    names
        .filter_map(|(name, value)| {
            let rest = earlier.rest(value, name, environment)?;
            Some((name.to_owned(), (!rest.is_empty()).then_some(rest)))
        })
        .collect()
}

/// `list` with `entry` at its end, where it wins over earlier entries. Other copies are removed.
fn appended(list: &OsStr, separator: &str, entry: &OsStr) -> OsString {
    if list == entry {
        return list.to_owned();
    }
    let mut appended = list.to_owned();
    while let Some(rest) = removed(&appended, separator, entry) {
        appended = rest;
    }
    appended.push(separator);
    appended.push(entry);
    appended
}

/// `list` without one copy of `entry` and the separator beside it. `None`: it has none.
fn removed(list: &OsStr, separator: &str, entry: &OsStr) -> Option<OsString> {
    let (list, separator, entry) = (list.as_bytes(), separator.as_bytes(), entry.as_bytes());
    let is_entry = |at: &usize| {
        let (before, rest) = list.split_at(*at);
        let after = rest.strip_prefix(entry);
        let starts = before.is_empty() || before.ends_with(separator);
        starts && after.is_some_and(|after| after.is_empty() || after.starts_with(separator))
    };
    let at = (0..list.len()).find(is_entry)?;
    let (before, after) = (&list[..at], &list[at + entry.len()..]);
    let rest = match before.strip_suffix(separator) {
        Some(before) => [before, after].concat(),
        None => after.strip_prefix(separator).unwrap_or(after).to_vec(),
    };
    Some(OsString::from_vec(rest))
}

/// The settings files that Mercurial reads without `HGRCPATH`.
fn default_hgrc_path(inherited: &Environment) -> OsString {
    let directory = inherited.lookup("XDG_CONFIG_HOME").map(Path::new);
    let directory = directory.filter(|directory| directory.is_absolute());
    let mut path = OsString::from(HGRC_DEFAULT);
    path.push(":");
    path.push(directory.unwrap_or(Path::new("~/.config")).join("hg/hgrc"));
    path
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
    names_of(|value| matches!(value, Bundle | Additional | NpmRoots))
}

/// The variables that name the proxy.
#[cfg(feature = "cli")]
pub(crate) fn proxy_variables() -> impl Iterator<Item = &'static str> {
    names_of(|value| value == Proxy)
}

/// The variables that name a file.
#[cfg(feature = "cli")]
pub(crate) fn file_variables() -> impl Iterator<Item = &'static str> {
    names_of(|value| matches!(value, Bundle | Additional | NpmRoots | File(_)))
}

/// The variables whose value, if they are set, satisfies `is_meant`.
fn names_of(is_meant: fn(ChildValue) -> bool) -> impl Iterator<Item = &'static str> {
    let rows = TABLE.iter().filter(move |(_, value, _)| match value {
        IfSet(value) => is_meant(**value),
        value => is_meant(*value),
    });
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
            files: ToolFile::ALL.into(),
            npm_roots: false,
            omitted: Vec::new(),
        }
    }

    /// The variables that are set only if they are set already.
    fn if_set() -> HashSet<&'static str> {
        let rows = TABLE
            .iter()
            .filter(|(_, value, _)| matches!(value, IfSet(_) | NpmRoots));
        rows.flat_map(|(names, ..)| names.iter().copied()).collect()
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
        assert!(!names.contains("SSL_CERT_DIR"));
    }

    #[test]
    fn sets_every_documented_variable_in_the_order_of_the_table() {
        let shell = if_set().into_iter().map(|name| (name, "set"));
        let set = child_env().variables(&shell.collect());
        let names: Vec<_> = set.iter().map(|(name, _)| name.as_str()).collect();
        let documented: Vec<_> = documentation().map(|(name, _)| name).collect();
        assert_eq!(names, documented);
        assert_eq!(names.first(), Some(&"HTTPS_PROXY"));
        assert!(set.iter().all(|(_, value)| value != "set"));
        let bare = child_env().variables(&Environment::default());
        assert_eq!(bare.len(), set.len() - if_set().len());
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
    fn a_variable_that_replaces_roots_names_the_bundle_and_one_that_adds_roots_the_ca() {
        const BUNDLE: &str = "/home/u/.ccr/ca-bundle.crt";
        const CA: &str = "/home/u/.ccr/ca-bundle.crt.ca.pem";
        let all = variables(&[("GIT_SSL_CAINFO", "/elsewhere.pem")]);
        let adding = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
        for name in ca_variables().filter(|name| !if_set().contains(name)) {
            let file = if adding.contains(&name) { CA } else { BUNDLE };
            assert_eq!(all.text(name), Some(file), "{name}");
        }
        // The bundle has the roots of the inherited file.
        let inherited = variables(&[("NODE_EXTRA_CA_CERTS", "/elsewhere.pem")]);
        assert_eq!(inherited.text("NODE_EXTRA_CA_CERTS"), Some(BUNDLE));
        let without = ChildEnv {
            files: Vec::new(),
            ..child_env()
        };
        let set: Environment = without
            .variables(&Environment::default())
            .into_iter()
            .collect();
        assert_eq!(set.text("NODE_EXTRA_CA_CERTS"), Some(BUNDLE));
    }

    #[test]
    fn a_variable_for_a_file_that_was_not_written_is_not_set() {
        let without = ChildEnv {
            files: Vec::new(),
            ..child_env()
        };
        let set = without.variables(&Environment::default());
        let of_files = [
            "WGETRC",
            "APT_CONFIG",
            "HGRCPATH",
            "PHP_INI_SCAN_DIR",
            "JAVA_TOOL_OPTIONS",
            "NODE_OPTIONS",
        ];
        assert!(
            set.iter()
                .all(|(name, _)| !of_files.contains(&name.as_str()))
        );
        let all = variables(&[]);
        assert_eq!(
            all.text("WGETRC"),
            Some("/home/u/.ccr/ca-bundle.crt.wgetrc")
        );
        assert!(of_files.iter().all(|name| all.text(name).is_some()));
    }

    #[test]
    fn lists_keep_their_entries_and_end_with_the_own_one() {
        const BUNDLE: &str = "/home/u/.ccr/ca-bundle.crt";
        let bare = variables(&[("XDG_CONFIG_HOME", "/x")]);
        let (php, hgrc) = (
            "/home/u/.ccr/ca-bundle.crt.php",
            "/home/u/.ccr/ca-bundle.crt.hgrc",
        );
        assert_eq!(
            bare.text("PHP_INI_SCAN_DIR"),
            Some(format!(":{php}").as_str())
        );
        let default = format!("{HGRC_DEFAULT}:/x/hg/hgrc:{hgrc}");
        assert_eq!(bare.text("HGRCPATH"), Some(default.as_str()));
        let set = variables(&[
            ("PHP_INI_SCAN_DIR", "/p:"),
            ("HGRCPATH", "/h"),
            ("JAVA_TOOL_OPTIONS", "-Dx=y"),
            ("NODE_OPTIONS", "--no-warnings"),
        ]);
        assert_eq!(
            set.text("PHP_INI_SCAN_DIR"),
            Some(format!("/p::{php}").as_str())
        );
        assert_eq!(set.text("HGRCPATH"), Some(format!("/h:{hgrc}").as_str()));
        let node = format!("--no-warnings --require={BUNDLE}.node-hook.cjs");
        assert_eq!(set.text("NODE_OPTIONS"), Some(node.as_str()));
        let java = set.text("JAVA_TOOL_OPTIONS").unwrap();
        assert!(
            java.starts_with("-Dx=y -Dhttps.proxyHost=127.0.0.1 "),
            "{java}"
        );
    }

    #[test]
    fn an_inherited_setting_of_a_tool_is_replaced() {
        let all = variables(&[
            ("npm_config_https_proxy", "http://other:1"),
            ("PIP_PROXY", "http://other:1"),
            ("npm_config_noproxy", "d.example"),
        ]);
        assert_eq!(all.text("npm_config_https_proxy"), all.text("HTTPS_PROXY"));
        assert_eq!(all.text("PIP_PROXY"), all.text("HTTPS_PROXY"));
        assert!(
            all.text("npm_config_noproxy")
                .unwrap()
                .ends_with(",d.example")
        );
        assert_eq!(all.text("CARGO_HTTP_PROXY"), None);
        assert_eq!(all.text("npm_config_cafile"), None);
        let npm_roots = ChildEnv {
            npm_roots: true,
            ..child_env()
        };
        let set: Environment = npm_roots
            .variables(&Environment::default())
            .into_iter()
            .collect();
        assert_eq!(set.text("npm_config_cafile"), set.text("SSL_CERT_FILE"));
    }

    #[test]
    fn an_omitted_variable_is_set_in_no_case_and_keeps_its_value() {
        let omitting = ChildEnv {
            omitted: vec!["http_proxy".into(), "NODE_EXTRA_CA_CERTS".into()],
            ..child_env()
        };
        let set = omitting.variables(&Environment::default());
        let left_out = ["HTTP_PROXY", "http_proxy", "NODE_EXTRA_CA_CERTS"];
        assert!(
            set.iter()
                .all(|(name, _)| !left_out.contains(&name.as_str()))
        );
        let all = child_env().variables(&Environment::default());
        assert_eq!(set.len(), all.len() - left_out.len());
        let java = all.iter().find(|(name, _)| name == "JAVA_TOOL_OPTIONS");
        assert!(java.is_some_and(|(_, value)| value.to_string_lossy().contains("http.proxyHost")));
        let java = set.iter().find(|(name, _)| name == "JAVA_TOOL_OPTIONS");
        assert!(java.is_some_and(|(_, value)| !value.to_string_lossy().contains("http.proxyHost")));
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
            &[
                ("HGRCPATH", "/h"),
                ("PHP_INI_SCAN_DIR", "/p"),
                ("JAVA_TOOL_OPTIONS", "-x"),
                ("NODE_OPTIONS", "--no-warnings"),
            ],
            &[
                ("NODE_EXTRA_CA_CERTS", "/n.pem"),
                ("npm_config_proxy", "http://other"),
            ],
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
    fn another_relay_replaces_the_entries_of_an_earlier_one() {
        for inherited in [
            &[][..],
            &[
                ("HGRCPATH", "/h"),
                ("PHP_INI_SCAN_DIR", "/p"),
                ("JAVA_TOOL_OPTIONS", "-x"),
                ("NO_PROXY", "a.example"),
                ("npm_config_proxy", "http://other"),
            ],
        ] {
            let mut twice = variables(inherited);
            let later = ChildEnv {
                proxy: "http://127.0.0.1:4712".into(),
                bundle: "/home/u/.ccr/ca-bundle-2.crt".into(),
                ..child_env()
            };
            let direct = later.variables(&inherited.iter().copied().collect());
            let set = later.variables(&twice);
            for (name, value) in set {
                twice.set(name, value);
            }
            for (name, value) in direct {
                if name != "NODE_EXTRA_CA_CERTS" && name != "DENO_CERT" {
                    assert_eq!(twice.lookup(&name), Some(&*value), "{name}");
                }
            }
            let text = format!("{:?}", twice.iter().collect::<Vec<_>>());
            assert!(!text.contains("4711"), "{text}");
        }
    }

    #[test]
    fn a_list_is_extended_once_wherever_the_entry_is() {
        let appended = |list: &str| appended(list.as_ref(), ":", "e".as_ref());
        for (list, expected) in [
            ("", ":e"),
            ("e", "e"),
            (":e", ":e"),
            ("a", "a:e"),
            ("a:e", "a:e"),
            ("e:a", "a:e"),
            ("a:e:b:e:ee", "a:b:ee:e"),
        ] {
            assert_eq!(appended(list), expected, "{list:?}");
        }
    }

    #[test]
    #[cfg(feature = "cli")]
    fn what_was_set_can_be_undone() {
        for inherited in [
            &[][..],
            &[
                ("NO_PROXY", "a.example,10.1.2.3"),
                ("HGRCPATH", "/h"),
                ("PHP_INI_SCAN_DIR", "/p:"),
                ("JAVA_TOOL_OPTIONS", "-x -y"),
                ("LANG", "C"),
                ("AWS_PROFILE", "a"),
            ],
        ] {
            let before: Environment = inherited.iter().copied().collect();
            let mut after = variables(inherited);
            let undone = removal(&after);
            for (name, rest) in undone {
                match rest {
                    Some(rest) => after.set(name, rest),
                    None => after.remove(name),
                }
            }
            for name in ["no_proxy", "GLOBAL_AGENT_NO_PROXY", "no_grpc_proxy"] {
                assert_eq!(after.text(name), before.text("NO_PROXY"));
                after.remove(name);
            }
            assert_eq!(after, before);
        }
        assert_eq!(removal(&Environment::default()), []);
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
