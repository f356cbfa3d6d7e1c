//! `NO_PROXY`: the hosts that tools reach directly.

use crate::config::Environment;

/// Hosts that are never reached through the upstream: this machine, its cloud's metadata service,
/// and private networks. Names and addresses come first, for clients that do not support CIDR.
/// Package registries are not in it, because this program exists to reach them.
const DIRECT_HOSTS: [&str; 11] = [
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

/// The value of `variable`: [`DIRECT_HOSTS`], the inherited general entries, and the inherited
/// entries of this variable, each once.
pub(super) fn merged(variable: &str, inherited: &Environment) -> String {
    let found: Vec<&str> = ["NO_PROXY", "no_proxy", variable]
        .into_iter()
        .filter_map(|name| inherited.text(name))
        .flat_map(|list| list.split(|c: char| c == ',' || c.is_whitespace()))
        .filter(|entry| !entry.is_empty())
        .collect();
    // The user disables proxies entirely. Curl and Python ignore a `*` beside other entries.
    if !found.is_empty() && found.iter().all(|&entry| entry == EVERY_HOST) {
        return EVERY_HOST.to_owned();
    }
    let mut entries: Vec<&str> = Vec::new();
    for entry in DIRECT_HOSTS.into_iter().chain(found) {
        if !entries
            .iter()
            .any(|known| known.eq_ignore_ascii_case(entry))
        {
            entries.push(entry);
        }
    }
    entries.join(",")
}

/// The entries of a value of [`merged`] that are not this program's.
#[cfg(feature = "cli")]
pub(super) fn inherited_entries(value: &str) -> String {
    let is_own = |entry: &&str| DIRECT_HOSTS.contains(entry);
    let entries: Vec<&str> = value.split(',').filter(|entry| !is_own(entry)).collect();
    entries.join(",")
}

/// Whether a value has the entry for every host.
pub(super) fn includes_every_host(value: &str) -> bool {
    value.split(',').any(|entry| entry == EVERY_HOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_entries_are_kept_in_order_and_without_repeats() {
        let inherited: Environment = [
            (
                "NO_PROXY",
                "b.example, LOCALHOST,,a.example:8080 10.0.0.0/8",
            ),
            ("no_proxy", "a.example:8080,c.example,B.example"),
            ("no_grpc_proxy", "d.example,c.example"),
        ]
        .into_iter()
        .collect();
        let direct = DIRECT_HOSTS.join(",");
        let expected = format!("{direct},b.example,a.example:8080,c.example");
        assert_eq!(merged("NO_PROXY", &inherited), expected);
        assert_eq!(merged("GLOBAL_AGENT_NO_PROXY", &inherited), expected);
        let for_grpc = format!("{expected},d.example");
        assert_eq!(merged("no_grpc_proxy", &inherited), for_grpc);
    }
}
