//! The parent proxy of a configuration: the one that is set, or the inherited one.

use super::builder::Config;
use super::environment::Environment;
use super::parent_proxy::{Parent, ParentProxy};
use crate::error::ValueError;
use crate::http::authority::Authority;

/// The variables that name a proxy for https, in the order in which curl reads them.
const VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// The variable with which this program marks the proxy variables of its children. A start inside
/// such a child uses the same upstream, not the relay outside it.
pub(crate) const MARKER: &str = "UPSTREAMPROXY_RELAY";

impl Config {
    /// The parent proxy for connections to `target`, if they go through one.
    pub(crate) fn parent_for(&self, target: &Authority) -> Option<ParentProxy> {
        let parent = self.parent().unwrap_or_default();
        parent.filter(|parent| parent.is_for(target))
    }

    /// The parent proxy. Hosts in the inherited `NO_PROXY` do not go through it.
    ///
    /// # Errors
    /// The inherited one cannot be used, because of the value of this variable.
    pub(crate) fn parent(&self) -> Result<Option<ParentProxy>, (&'static str, ValueError)> {
        let proxy = match &self.parent {
            Parent::Off => return Ok(None),
            Parent::Proxy(proxy) => proxy.clone(),
            Parent::Inherited => match inherited(&self.inherited) {
                Some((name, value)) => value.parse().map_err(|error| (name, error))?,
                None => return Ok(None),
            },
        };
        let direct = ["no_proxy", "NO_PROXY"]
            .iter()
            .find_map(|name| self.inherited.text(name));
        Ok(Some(proxy.or_no_proxy(direct.unwrap_or_default())))
    }

    /// The parent proxy, if it is set and not only inherited.
    #[cfg(all(feature = "cli", feature = "gateway"))]
    pub(crate) fn explicit_parent(&self) -> Option<ParentProxy> {
        let explicit = matches!(self.parent, Parent::Proxy(_));
        explicit.then(|| self.parent().ok()).flatten().flatten()
    }
}

/// The variable that names a proxy, and its value, unless this program has set it.
fn inherited(environment: &Environment) -> Option<(&'static str, &str)> {
    let own = environment.text(MARKER);
    VARIABLES
        .iter()
        .find_map(|&name| environment.text(name).map(|value| (name, value)))
        .filter(|(_, value)| Some(*value) != own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(variables: &[(&str, &str)]) -> Option<String> {
        let config = Config::from_environment(variables.iter().copied().collect());
        let target = "example.com:443".parse().unwrap();
        config.parent_for(&target).map(|proxy| proxy.to_string())
    }

    #[test]
    fn the_inherited_proxy_is_used_unless_this_program_or_the_user_says_otherwise() {
        const PROXY: &str = "http://user:secret@proxy.example:3128";
        let used = Some("proxy.example:3128".to_owned());
        for (variables, expected) in [
            (&[][..], None),
            (&[("HTTPS_PROXY", PROXY)][..], used.clone()),
            (
                &[("https_proxy", PROXY), ("HTTPS_PROXY", "http://other:1")],
                used.clone(),
            ),
            (&[("ALL_PROXY", PROXY)], used.clone()),
            (&[("HTTP_PROXY", PROXY)], None),
            (
                &[("HTTPS_PROXY", PROXY), ("NO_PROXY", "other.example")],
                used.clone(),
            ),
            (&[("HTTPS_PROXY", PROXY), ("NO_PROXY", "example.com")], None),
            (&[("HTTPS_PROXY", PROXY), ("NO_PROXY", "*")], None),
            (&[("HTTPS_PROXY", PROXY), (MARKER, PROXY)], None),
            (
                &[("HTTPS_PROXY", PROXY), (MARKER, "http://127.0.0.1:9")],
                used.clone(),
            ),
            (
                &[
                    ("HTTPS_PROXY", PROXY),
                    ("UPSTREAMPROXY_PARENT_PROXY", "none"),
                ],
                None,
            ),
            (
                &[
                    ("UPSTREAMPROXY_PARENT_PROXY", PROXY),
                    ("NO_PROXY", "a.example"),
                ],
                used.clone(),
            ),
            (&[("HTTPS_PROXY", "socks5://proxy.example:1")], None),
        ] {
            assert_eq!(through(variables), expected, "{variables:?}");
        }
    }

    #[test]
    fn an_unusable_value_is_reported_with_its_variable_and_without_its_text() {
        let environment = [("ALL_PROXY", "socks5://user:secret@a.example")].into_iter();
        let config = Config::from_environment(environment.collect());
        assert_eq!(
            config.parent().unwrap_err(),
            (
                "ALL_PROXY",
                ValueError("only http:// proxies are supported")
            )
        );
        let environment = [(
            "UPSTREAMPROXY_PARENT_PROXY",
            "socks5://user:secret@a.example",
        )];
        let config = Config::from_environment(environment.into_iter().collect());
        let problem = config.unusable().next().unwrap().to_string();
        assert!(problem.contains("UPSTREAMPROXY_PARENT_PROXY") && !problem.contains("secret"));
    }
}
