//! The options for the JVM, which reads no proxy variable: its system properties.

use std::path::Path;

/// The value for `JAVA_TOOL_OPTIONS`, without the inherited part.
///
/// `None` if the JVM cannot use the relay: no system property has the password of a URL, and a path
/// with both quotes cannot be written.
pub(super) fn options(
    proxy: &str,
    plain_http: bool,
    no_proxy: &str,
    trust_store: &Path,
) -> Option<String> {
    let authority = proxy.strip_prefix("http://")?;
    let (host, port) = authority.rsplit_once(':')?;
    if authority.contains('@') {
        return None;
    }
    let host = host.trim_matches(['[', ']']);
    let store = trust_store.to_str()?;
    // The JVM splits the value at white space, and removes quotes.
    let quote = ['"', '\''].into_iter().find(|&q| !store.contains(q))?;
    let schemes = if plain_http {
        &["https", "http"][..]
    } else {
        &["https"]
    };
    let mut options: Vec<String> = schemes
        .iter()
        .map(|scheme| format!("-D{scheme}.proxyHost={host} -D{scheme}.proxyPort={port}"))
        .collect();
    options.push(format!(
        "-Dhttp.nonProxyHosts={}",
        non_proxy_hosts(no_proxy)
    ));
    for (name, value) in [
        ("", format!("{quote}{store}{quote}")),
        ("Type", "PKCS12".to_owned()),
        // Any password opens the trust store.
        ("Password", "changeit".to_owned()),
    ] {
        options.push(format!("-Djavax.net.ssl.trustStore{name}={value}"));
    }
    Some(options.join(" "))
}

/// The entries of `NO_PROXY` as patterns of the JVM: separated by `|`, with `*` at the start or the
/// end only. An entry without such a pattern is left out: its host is reached through the proxy.
fn non_proxy_hosts(no_proxy: &str) -> String {
    let mut patterns = vec!["127.*".to_owned()];
    for entry in no_proxy.split(',').filter(|entry| is_plain(entry)) {
        if entry.contains('*') || entry.parse::<std::net::Ipv4Addr>().is_ok() {
            patterns.push(entry.to_owned());
        } else if let Some(domain) = entry.strip_prefix('.') {
            patterns.push(format!("*.{domain}"));
        } else if entry.parse::<std::net::Ipv6Addr>().is_ok() {
            patterns.push(format!("[{entry}]"));
        } else if let Some((address, bits)) = entry.split_once('/') {
            patterns.extend(networks(address, bits).into_iter().flatten());
        } else if !entry.contains(':') {
            patterns.push(entry.to_owned());
            patterns.push(format!("*.{entry}"));
        }
    }
    patterns.join("|")
}

/// Whether the JVM keeps `entry` as it is.
fn is_plain(entry: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "*.-_:/".contains(c);
    !entry.is_empty() && entry.chars().all(plain)
}

/// The patterns of an IPv4 network: one for each value of the octet that its prefix cuts.
fn networks(address: &str, bits: &str) -> Option<Vec<String>> {
    let address: std::net::Ipv4Addr = address.parse().ok()?;
    let bits: usize = bits.parse().ok().filter(|bits| (1..=32).contains(bits))?;
    let octets = address.octets();
    // The octet in which the prefix ends.
    let last = (bits - 1) / 8;
    let mask = (0xff_u16 >> ((bits - 1) % 8 + 1)) as u8;
    let prefix: Vec<String> = octets[..last].iter().map(u8::to_string).collect();
    let end = if last == 3 { "" } else { ".*" };
    let (first, final_value) = (octets[last] & !mask, octets[last] | mask);
    let pattern = |value: u8| [&prefix[..], &[format!("{value}{end}")]].concat().join(".");
    Some((first..=final_value).map(pattern).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_name_the_proxy_the_exceptions_and_the_trust_store() {
        let options = |proxy, http| options(proxy, http, "localhost", Path::new("/a b/s.p12"));
        let all = options("http://127.0.0.1:8", true).unwrap();
        assert_eq!(
            all,
            "-Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=8 -Dhttp.proxyHost=127.0.0.1 \
             -Dhttp.proxyPort=8 -Dhttp.nonProxyHosts=127.*|localhost|*.localhost \
             -Djavax.net.ssl.trustStore=\"/a b/s.p12\" -Djavax.net.ssl.trustStoreType=PKCS12 \
             -Djavax.net.ssl.trustStorePassword=changeit"
        );
        let https = options("http://[::1]:8", false).unwrap();
        assert!(
            https.starts_with("-Dhttps.proxyHost=::1 -Dhttps.proxyPort=8 -Dhttp.nonProxyHosts")
        );
        assert_eq!(options("http://u:secret@127.0.0.1:8", true), None);
    }

    #[test]
    fn entries_of_no_proxy_become_patterns() {
        for (entry, patterns) in [
            ("a.example", "a.example|*.a.example"),
            (".local", "*.local"),
            ("*.b.example", "*.b.example"),
            ("*", "*"),
            ("::1", "[::1]"),
            ("192.0.2.1", "192.0.2.1"),
            ("10.0.0.0/8", "10.*"),
            ("192.168.0.0/16", "192.168.*"),
            ("172.16.0.0/14", "172.16.*|172.17.*|172.18.*|172.19.*"),
            ("192.0.2.6/31", "192.0.2.6|192.0.2.7"),
        ] {
            assert_eq!(non_proxy_hosts(entry), format!("127.*|{patterns}"));
        }
        for unusable in [
            "",
            "a.example:80",
            "fd00::/8",
            "0.0.0.0/0",
            "a b",
            "\"",
            "10.0.0.0/33",
        ] {
            assert_eq!(non_proxy_hosts(unusable), "127.*", "{unusable}");
        }
    }
}
