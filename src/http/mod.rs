//! Parsers of HTTP texts, without I/O: authorities, base URLs, message heads, and the responses
//! that this program generates.

pub(crate) mod authority;
pub(crate) mod base_url;
pub(crate) mod head;
pub(crate) mod reply;
