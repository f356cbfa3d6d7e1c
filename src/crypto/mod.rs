//! TLS configurations, PEM, randomness and secrets.

pub(crate) mod pem;
pub(crate) mod random;
// Without the gateway, no public item names the credentials.
#[cfg_attr(not(feature = "gateway"), allow(unreachable_pub))]
pub(crate) mod secret;
pub(crate) mod tls;
pub(crate) mod tls_error;
#[cfg(any(test, feature = "gateway"))]
pub(crate) mod tls_server;
