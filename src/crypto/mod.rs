//! TLS configurations, PEM, randomness and secrets.

pub(crate) mod pem;
pub(crate) mod random;
pub(crate) mod secret;
pub(crate) mod tls;
