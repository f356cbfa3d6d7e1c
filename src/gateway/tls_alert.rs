//! A TLS alert outside a handshake ([RFC 8446, section 6]): what a client receives when it is
//! refused before there are keys.
//!
//! [RFC 8446, section 6]: https://www.rfc-editor.org/rfc/rfc8446#section-6

use rustls::AlertDescription;

use crate::tunnel::error::{TlsError, TunnelError};

/// The content type of an alert record.
const CONTENT_ALERT: u8 = 21;
const FATAL: u8 = 2;

/// A fatal alert as a plain record.
pub(crate) fn fatal(description: AlertDescription) -> Vec<u8> {
    // The record version is TLS 1.2's for every later version (RFC 8446, section 5.1).
    vec![CONTENT_ALERT, 3, 3, 0, 2, FATAL, u8::from(description)]
}

/// The alert that reports a failed TLS connection to the target ([RFC 8446, section 6.2]).
///
/// [RFC 8446, section 6.2]: https://www.rfc-editor.org/rfc/rfc8446#section-6.2
pub(super) fn for_target(error: &TunnelError) -> AlertDescription {
    let TunnelError::Tls(error) = error else {
        return AlertDescription::InternalError;
    };
    match error {
        TlsError::Rustls(rustls::Error::InvalidCertificate(error)) => error.clone().into(),
        TlsError::Rustls(rustls::Error::AlertReceived(alert)) => *alert,
        _ => AlertDescription::HandshakeFailure,
    }
}
