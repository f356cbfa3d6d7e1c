//! Settings files of tools that win over the variables for children. They are read, never changed:
//! `doctor` reports them, and npm gets a further variable where it needs one.
//!
//! The files have different syntaxes. One scanner reads all of them: a section in brackets, a key
//! at the start of a line, and a value. Files of a project are not found.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::Environment;
use crate::sys::files;
use Key::{Ca, Proxy};

/// The largest settings file that is read.
const FILE_LIMIT: usize = 1 << 20;

/// What a setting overrides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// The proxy.
    Proxy,
    /// The roots.
    Ca,
}

/// A tool, where its settings files are, and the settings that win over variables.
struct Tool {
    name: &'static str,
    files: fn(&Environment) -> Vec<PathBuf>,
    /// Section, name and meaning. An empty section is any section.
    keys: &'static [(&'static str, &'static str, Key)],
}

const NPM: &str = "npm";

const TOOLS: &[Tool] = &[
    Tool {
        name: "git",
        files: |env| {
            let mut files = vec!["/etc/gitconfig".into()];
            files.extend(in_config_home(env, "git/config"));
            files.extend(in_home(env, ".gitconfig"));
            files
        },
        keys: &[("http", "proxy", Proxy)],
    },
    Tool {
        name: "curl",
        files: |env| {
            let named = env
                .lookup("CURL_HOME")
                .map(|home| Path::new(home).join(".curlrc"));
            let default = in_home(env, ".curlrc").filter(|file| file.exists());
            let files = named.or(default).or_else(|| in_config_home(env, "curlrc"));
            files.into_iter().collect()
        },
        keys: &[("", "proxy", Proxy), ("", "x", Proxy), ("", "cacert", Ca)],
    },
    Tool {
        name: "wget",
        files: |env| {
            let named = env.lookup("WGETRC").map(PathBuf::from);
            named
                .or_else(|| in_home(env, ".wgetrc"))
                .into_iter()
                .collect()
        },
        keys: &[("", "https_proxy", Proxy), ("", "http_proxy", Proxy)],
    },
    Tool {
        name: NPM,
        files: npm_files,
        keys: &[
            ("", "https-proxy", Proxy),
            ("", "http-proxy", Proxy),
            ("", "proxy", Proxy),
            ("", "cafile", Ca),
            ("", "ca", Ca),
        ],
    },
    Tool {
        name: "Yarn 1",
        files: |env| in_home(env, ".yarnrc").into_iter().collect(),
        keys: &[
            ("", "https-proxy", Proxy),
            ("", "proxy", Proxy),
            ("", "cafile", Ca),
        ],
    },
    Tool {
        name: "pip",
        files: |env| {
            let mut files = vec!["/etc/pip.conf".into()];
            files.extend(in_home(env, ".pip/pip.conf"));
            files.extend(in_config_home(env, "pip/pip.conf"));
            files.extend(env.lookup("PIP_CONFIG_FILE").map(PathBuf::from));
            files
        },
        keys: &[("", "proxy", Proxy)],
    },
    Tool {
        name: "cargo",
        files: |env| {
            let named = env.lookup("CARGO_HOME").map(PathBuf::from);
            let home = named.or_else(|| in_home(env, ".cargo"));
            let names = ["config.toml", "config"].into_iter();
            home.into_iter()
                .flat_map(|home| names.clone().map(move |name| home.join(name)))
                .collect()
        },
        keys: &[("http", "proxy", Proxy), ("", "http.proxy", Proxy)],
    },
];

/// A setting that wins over the variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) tool: &'static str,
    pub(crate) file: PathBuf,
    /// Its name in the file.
    pub(crate) name: &'static str,
    pub(crate) key: Key,
    /// Its value, which may contain a password.
    pub(crate) value: Zeroizing<String>,
}

/// Every setting that wins over the variables, in the files that `inherited` leads to.
pub(crate) fn found(inherited: &Environment) -> Vec<Found> {
    let mut found = Vec::new();
    for tool in TOOLS {
        for file in (tool.files)(inherited) {
            found.extend(settings_in(tool, &file));
        }
    }
    found
}

/// The files of roots that npm's settings name. They win over `NODE_EXTRA_CA_CERTS`, so npm needs
/// a variable that wins over them.
pub(super) fn npm_roots(inherited: &Environment) -> Vec<PathBuf> {
    let roots = found(inherited)
        .into_iter()
        .filter(|found| found.tool == NPM && found.key == Ca);
    roots
        .map(|found| PathBuf::from(found.value.as_str()))
        .collect()
}

impl Found {
    /// Whether a variable for children wins over it.
    #[cfg(feature = "cli")]
    pub(crate) fn is_overridden(&self) -> bool {
        self.tool == NPM && self.key == Ca
    }
}

fn settings_in(tool: &Tool, file: &Path) -> Vec<Found> {
    let text =
        files::open_regular(file).and_then(|opened| files::read_limited(&opened, FILE_LIMIT));
    let Ok(text) = text else {
        return Vec::new();
    };
    let text = Zeroizing::new(String::from_utf8_lossy(&text).into_owned());
    let mut section = "";
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            // `[http "https://host"]` of git is for one host.
            section = name.split([']', ' ', '"']).next().unwrap_or_default();
            continue;
        }
        let line = line.trim_start_matches('-');
        let end = line.find(['=', ':', ' ', '\t']).unwrap_or(line.len());
        let (name, value) = line.split_at(end);
        let value = value.trim_matches(['=', ':', ' ', '\t', '"', '\'']);
        let known = tool.keys.iter().find(|(of, key, _)| {
            (of.is_empty() || of.eq_ignore_ascii_case(section)) && key.eq_ignore_ascii_case(name)
        });
        if let Some(&(_, name, key)) = known.filter(|_| !["", "null"].contains(&value)) {
            found.push(Found {
                tool: tool.name,
                file: file.to_owned(),
                name,
                key,
                value: Zeroizing::new(value.to_owned()),
            });
        }
    }
    found
}

fn in_home(env: &Environment, name: &str) -> Option<PathBuf> {
    env.home().map(|home| home.join(name))
}

fn in_config_home(env: &Environment, name: &str) -> Option<PathBuf> {
    let named = env.lookup("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = named.or_else(|| in_home(env, ".config"));
    home.map(|home| home.join(name))
}

/// npm's own file, the global one below the prefix of `node`, and the user's.
fn npm_files(env: &Environment) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let path = env.lookup("PATH").unwrap_or_default();
    let mut nodes = std::env::split_paths(path).map(|directory| directory.join("node"));
    let node = nodes.find_map(|node| node.canonicalize().ok());
    let prefix = node
        .as_deref()
        .and_then(Path::parent)
        .and_then(Path::parent);
    for name in ["lib/node_modules/npm/npmrc", "etc/npmrc"] {
        files.extend(prefix.map(|prefix| prefix.join(name)));
    }
    let named = |names: [&str; 2]| {
        let name = names.into_iter().find_map(|name| env.lookup(name));
        name.map(PathBuf::from)
    };
    files.extend(named([
        "npm_config_globalconfig",
        "NPM_CONFIG_GLOBALCONFIG",
    ]));
    let user = named(["npm_config_userconfig", "NPM_CONFIG_USERCONFIG"]);
    files.extend(user.or_else(|| in_home(env, ".npmrc")));
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The settings found in a home with these files: tool, name and value.
    fn found_in(files: &[(&str, &str)]) -> Vec<(&'static str, &'static str, String)> {
        let home = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = home.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let mut env = Environment::default();
        env.set("HOME", home.path());
        let found = found(&env)
            .into_iter()
            .filter(|found| found.file.starts_with(home.path()));
        found
            .map(|found| (found.tool, found.name, found.value.to_string()))
            .collect()
    }

    #[test]
    fn the_settings_of_each_tool_are_found_in_its_syntax() {
        let proxy = |tool, name| vec![(tool, name, "http://p:1".to_owned())];
        for (file, text, tool, name) in [
            (
                ".gitconfig",
                "[user]\n\tname = x\n[http]\n\tproxy = http://p:1\n",
                "git",
                "proxy",
            ),
            (
                ".config/git/config",
                "[http \"https://a\"]\nProxy=http://p:1",
                "git",
                "proxy",
            ),
            (".curlrc", "# x\nproxy = \"http://p:1\"\n", "curl", "proxy"),
            (".curlrc", "--proxy http://p:1\r\n", "curl", "proxy"),
            (".config/curlrc", "-x http://p:1", "curl", "x"),
            (".wgetrc", "https_proxy = http://p:1", "wget", "https_proxy"),
            (".npmrc", "https-proxy=http://p:1", "npm", "https-proxy"),
            (
                ".yarnrc",
                "https-proxy \"http://p:1\"",
                "Yarn 1",
                "https-proxy",
            ),
            (
                ".config/pip/pip.conf",
                "[global]\nproxy = http://p:1",
                "pip",
                "proxy",
            ),
            (
                ".cargo/config.toml",
                "[http]\nproxy = \"http://p:1\"",
                "cargo",
                "proxy",
            ),
            (
                ".cargo/config",
                "http.proxy = 'http://p:1'",
                "cargo",
                "http.proxy",
            ),
        ] {
            assert_eq!(
                found_in(&[(file, text)]),
                proxy(tool, name),
                "{file} {text:?}"
            );
        }
        let ca = found_in(&[(".npmrc", "cafile=/a.pem\n"), (".curlrc", "cacert=/b.pem")]);
        assert_eq!(
            ca,
            [
                ("curl", "cacert", "/b.pem".into()),
                ("npm", "cafile", "/a.pem".into())
            ]
        );
    }

    #[test]
    fn other_settings_and_unset_ones_are_not_found() {
        let files = [
            (
                ".gitconfig",
                "[remote]\nproxy = http://p:1\n[http]\n#proxy = http://p:1\n",
            ),
            (
                ".npmrc",
                "proxy=null\nproxy-x=1\n//host/:cafile=/c\nhttps-proxy=\n",
            ),
            (".curlrc", "# proxy = a\nproxy-header = a"),
        ];
        assert_eq!(found_in(&files), []);
    }

    #[test]
    fn npm_s_files_are_those_of_the_node_in_the_path() {
        let prefix = tempfile::tempdir().unwrap();
        let bin = prefix.path().join("bin");
        for directory in ["bin", "etc"] {
            fs::create_dir(prefix.path().join(directory)).unwrap();
        }
        fs::write(bin.join("node"), "").unwrap();
        fs::write(prefix.path().join("etc/npmrc"), "cafile=/global.pem\n").unwrap();
        let mut env = Environment::default();
        assert_eq!(npm_roots(&env), [""; 0].map(PathBuf::from));
        env.set("PATH", bin);
        assert_eq!(npm_roots(&env), [PathBuf::from("/global.pem")]);
    }
}
