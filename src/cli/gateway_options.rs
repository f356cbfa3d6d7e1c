//! The values of the options that only `gateway` has.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The default address of the gateway.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// The values of the options that only `gateway` has. Its files are not read yet.
#[derive(Debug, Default)]
pub(crate) struct GatewayOptions {
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) allow_plaintext: bool,
    pub(crate) sessions: Option<PathBuf>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) ca_cert: Option<PathBuf>,
    pub(crate) ca_key: Option<PathBuf>,
    pub(crate) target_ca: Option<PathBuf>,
    pub(crate) allow_private: bool,
}

impl GatewayOptions {
    /// The address to listen on.
    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or(LISTEN)
    }

    /// What is wrong with the options together.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.sessions.is_none() {
            return Err(
                "--sessions is missing: a file with one `SESSION_ID TOKEN` per line".to_owned(),
            );
        }
        for (cert, key, name) in [
            (&self.tls_cert, &self.tls_key, "tls"),
            (&self.ca_cert, &self.ca_key, "ca"),
        ] {
            if cert.is_some() != key.is_some() {
                return Err(format!("--{name}-cert and --{name}-key require each other"));
            }
        }
        let listen = self.listen();
        if !listen.ip().is_loopback() && self.tls_cert.is_none() && !self.allow_plaintext {
            return Err(format!(
                "without TLS --listen {listen} would expose tokens to the network; add --tls-cert and \
                 --tls-key, or --allow-plaintext"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::time::Duration;

    use super::super::args::{Invocation, UsageError, parse};
    use super::super::program_options::Options;
    use super::*;

    type Environ<'a> = &'a [(&'a str, &'a str)];

    fn resolve(line: &str, variables: Environ<'_>) -> Result<Options, UsageError> {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(Invocation::Subcommand(arguments)) => {
                Options::resolve(&arguments, &variables.iter().copied().collect())
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn embedded_takes_the_gateways_options_and_the_upstream_ca() {
        let line = "doctor --embedded --intercept none --resolve a.example:443:192.0.2.1 \
             --resolve b.example:443:192.0.2.1 --upstream-ca /ca --idle-timeout 9";
        let config = resolve(line, &[]).unwrap().config;
        assert_eq!(config.intercept, Vec::new());
        assert_eq!(config.resolve.len(), 2);
        assert_eq!(config.upstream_ca, Some(PathBuf::from("/ca")));
        assert_eq!(config.limits.idle_timeout, Duration::from_secs(9));
    }

    #[test]
    fn the_gateway_reads_flags_and_environment_alike() {
        let flags = resolve(
            "gateway --sessions /s --listen [::1]:0 --tls-cert /c --tls-key /k --ca-cert /cc --ca-key /ck \
             --intercept *.example.com --intercept a.example:8443 --target-ca /t --allow-private --keepalive 7s \
             --resolve a.example:443:192.0.2.1 --allow-plaintext",
            &[],
        );
        let inherited = resolve(
            "gateway",
            &[
                ("UPSTREAMPROXY_SESSIONS", "/s"),
                ("UPSTREAMPROXY_LISTEN", "[::1]:0"),
                ("UPSTREAMPROXY_TLS_CERT", "/c"),
                ("UPSTREAMPROXY_TLS_KEY", "/k"),
                ("UPSTREAMPROXY_CA_CERT", "/cc"),
                ("UPSTREAMPROXY_CA_KEY", "/ck"),
                ("UPSTREAMPROXY_INTERCEPT", "*.example.com a.example:8443"),
                ("UPSTREAMPROXY_TARGET_CA", "/t"),
                ("UPSTREAMPROXY_ALLOW_PRIVATE", "true"),
                ("UPSTREAMPROXY_KEEPALIVE", "7s"),
                ("UPSTREAMPROXY_RESOLVE", "a.example:443:192.0.2.1"),
                ("UPSTREAMPROXY_ALLOW_PLAINTEXT", "1"),
                // Not an option of a gateway.
                ("UPSTREAMPROXY_WHEN", "garbage"),
            ],
        );
        let shown = |options: Result<Options, UsageError>| {
            let Options {
                gateway, config, ..
            } = options.unwrap();
            assert_eq!(config.intercept.len(), 2);
            format!(
                "{gateway:?} {:?} {:?} {:?}",
                config.intercept, config.resolve, config.limits
            )
        };
        assert_eq!(shown(flags), shown(inherited));
        let default = resolve("gateway --sessions /s", &[]).unwrap();
        assert_eq!(default.gateway.listen(), LISTEN);
    }

    #[test]
    fn a_gateway_is_not_fail_open() {
        for (line, variables) in [
            ("gateway", &[][..]),
            ("gateway --sessions /s --tls-cert /c", &[]),
            ("gateway --sessions /s --listen 0.0.0.0:1", &[]),
            ("gateway --sessions /s --intercept ..", &[]),
            ("gateway --sessions /s", &[("UPSTREAMPROXY_LISTEN", "x")]),
            ("gateway --sessions /s", &[("UPSTREAMPROXY_KEEPALIVE", "x")]),
            ("gateway --sessions /s", &[("UPSTREAMPROXY_RESOLVE", "x")]),
        ] {
            assert!(resolve(line, variables).is_err(), "{line} {variables:?}");
        }
    }

    #[test]
    fn never_wins_over_embedded() {
        for (line, variables) in [
            ("run --when never --embedded x", &[][..]),
            ("run --embedded x", &[("UPSTREAMPROXY_WHEN", "never")]),
        ] {
            let config = resolve(line, variables).unwrap().config;
            assert!(!config.uses_embedded_gateway(), "{line}");
        }
    }

    #[test]
    fn a_flag_or_a_variable_requests_the_embedded_gateway() {
        for (line, variables) in [
            ("run --embedded x", &[][..]),
            ("run x", &[("UPSTREAMPROXY_EMBEDDED", "yes")]),
        ] {
            let config = resolve(line, variables).unwrap().config;
            assert!(config.uses_embedded_gateway(), "{line}");
        }
    }
}
