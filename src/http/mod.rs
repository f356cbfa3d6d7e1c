//! Pure parsers of HTTP texts: authorities, base URLs, message heads.

pub(crate) mod authority;
pub(crate) mod base_url;
pub(crate) mod head;
