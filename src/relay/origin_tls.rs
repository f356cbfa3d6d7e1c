//! The TLS configuration for origins of `https` requests in absolute-form. It trusts the roots of
//! the CA bundle, as the tools do that send CONNECT.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;

use crate::crypto::{pem, tls};
use crate::sys::files;

/// The longest bundle that is read.
const BUNDLE_LIMIT: usize = 32 << 20;

/// Reads the bundle when the first such request arrives: few clients send any, and the parsed
/// roots take memory.
#[derive(Debug)]
pub(super) struct OriginTls {
    bundle: Option<PathBuf>,
    config: Mutex<Option<Arc<ClientConfig>>>,
}

impl OriginTls {
    /// Trusts the roots in the PEM file `bundle`.
    pub(super) fn new(bundle: Option<PathBuf>) -> Self {
        Self {
            bundle,
            config: Mutex::new(None),
        }
    }

    /// The configuration.
    ///
    /// # Errors
    /// The bundle cannot be read, as text for the log and the client.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = &*config {
            return Ok(Arc::clone(config));
        }
        let bundle = self.bundle.as_ref().ok_or("there is no CA bundle")?;
        let read =
            files::open_regular(bundle).and_then(|file| files::read_limited(&file, BUNDLE_LIMIT));
        let text = read.map_err(|error| format!("the CA bundle cannot be read: {error}"))?;
        let (roots, _) = pem::readable_certificates(&text);
        let mut client =
            ClientConfig::clone(&*tls::client_config(&roots).map_err(|error| error.to_string())?);
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::clone(config.insert(Arc::new(client))))
    }
}
