//! Parsers of HTTP texts, without I/O: authorities, base URLs, message heads, and the response to a
//! rejected request.

// Without the gateway, no public item names an authority.
#[cfg_attr(not(feature = "gateway"), allow(unreachable_pub))]
pub(crate) mod authority;
pub(crate) mod base_url;
pub(crate) mod body;
pub(crate) mod direct_hosts;
pub(crate) mod forward;
pub(crate) mod head;
// Without the gateway, patterns are only a type in the settings.
#[cfg_attr(not(feature = "gateway"), allow(dead_code, unreachable_pub))]
pub(crate) mod pattern;
pub(crate) mod response;
