//! Errors of TLS in plain words: what is wrong with a certificate, and why a handshake failed.
//!
//! `Display` of rustls shows names of its source code, which say nothing to most readers.

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use time::OffsetDateTime;

use crate::control::peer_text;

/// How many names of a certificate a message shows.
const NAMES_SHOWN: usize = 8;

/// Who has verified a certificate. A text for a client must not call the gateway `this machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verifier {
    /// The process whose log or error has the text.
    ThisMachine,
    /// The gateway, in a text for the client at the other end.
    #[cfg_attr(not(feature = "gateway"), allow(dead_code))]
    Gateway,
}

/// The reason why `verifier` has rejected a server's certificate, as the rest of a sentence that
/// begins with the certificate.
pub(crate) fn certificate_flaw(error: &CertificateError, verifier: Verifier) -> String {
    let clock = || {
        let whose = match verifier {
            Verifier::ThisMachine => "this machine's",
            Verifier::Gateway => "the gateway's",
        };
        format!(
            "by {whose} clock, which shows {}",
            OffsetDateTime::now_utc().date()
        )
    };
    let fixed = match error {
        CertificateError::Expired => return format!("has expired {}", clock()),
        CertificateError::ExpiredContext { not_after, .. } => {
            let end = date(not_after.as_secs());
            return format!("has expired {} (it was valid until {end})", clock());
        }
        CertificateError::NotValidYet => return format!("is not valid yet {}", clock()),
        CertificateError::NotValidYetContext { not_before, .. } => {
            let start = date(not_before.as_secs());
            return format!("is not valid yet {} (it is valid from {start})", clock());
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            return format!("is for another name: {}", names(presented));
        }
        CertificateError::UnknownIssuer => match verifier {
            Verifier::ThisMachine => "was not issued by a CA that is trusted here",
            Verifier::Gateway => "was not issued by a CA that the gateway trusts",
        },
        CertificateError::NotValidForName => "is for another name",
        CertificateError::BadEncoding => "cannot be parsed",
        CertificateError::Revoked => "was revoked",
        CertificateError::BadSignature => {
            "has a wrong signature, or the server does not have its private key"
        }
        CertificateError::UnhandledCriticalExtension => {
            "has a critical extension that is not supported"
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "uses a signature algorithm or a key that is not supported, such as SHA-1 or a short RSA key"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not for servers (its extended key usage lacks serverAuth)"
        }
        CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. }
        | CertificateError::InvalidOcspResponse => "has no valid proof that it was not revoked",
        CertificateError::Other(other) => other
            .0
            .downcast_ref::<webpki::Error>()
            .map_or("is not acceptable", chain_flaw),
        _ => "is not acceptable",
    };
    fixed.to_owned()
}

/// The flaws for which rustls has no variant of its own.
fn chain_flaw(error: &webpki::Error) -> &'static str {
    use webpki::Error;
    match error {
        Error::CaUsedAsEndEntity => {
            "is a CA certificate, and must be one of a server (basicConstraints with CA:FALSE)"
        }
        Error::EndEntityUsedAsCa => "was issued by a certificate that is not one of a CA",
        Error::NameConstraintViolation => "has a name that its CA must not certify",
        Error::PathLenConstraintViolated | Error::MaximumPathDepthExceeded => {
            "has more intermediate CAs than its chain allows"
        }
        Error::UnsupportedCertVersion => {
            "is of an old version: only X.509 version 3 has the names of the server"
        }
        Error::UnsupportedCriticalExtension => "has a critical extension that is not supported",
        Error::SignatureAlgorithmMismatch => "names two different signature algorithms",
        Error::InvalidSerialNumber => "has an invalid serial number",
        Error::EmptyEkuExtension => "has an extended key usage without any purpose",
        Error::ExtensionValueInvalid
        | Error::MalformedExtensions
        | Error::MalformedDnsIdentifier
        | Error::MalformedNameConstraint
        | Error::InvalidNetworkMaskConstraint
        | Error::UnsupportedNameType => "has an invalid extension or name",
        Error::MaximumNameConstraintComparisonsExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded => "has a chain that is too complex to verify",
        Error::CertDistrusted => "is not trusted any more",
        _ => "is not acceptable",
    }
}

/// The names of a certificate. webpki prints them as `DnsName("example.com")`.
fn names(presented: &[String]) -> String {
    let name = |text: &str| {
        let inner = text.split_once('(').map_or(text, |(_, inner)| inner);
        // A peer chooses the names, and a shell may read the text.
        inner
            .trim_end_matches(')')
            .trim_matches('"')
            .chars()
            .map(|c| match c {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' | '*' | ':' => c,
                _ => '?',
            })
            .collect::<String>()
    };
    if presented.is_empty() {
        return "it has no names (subjectAltName)".to_owned();
    }
    let shown: Vec<_> = presented
        .iter()
        .take(NAMES_SHOWN)
        .map(|text| name(text))
        .collect();
    let rest = match presented.len().saturating_sub(NAMES_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shown = format!("it is valid for {}{rest}", shown.join(", "));
    peer_text::bounded(shown)
}

fn date(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .map_or("a date after 9999".to_owned(), |at| at.date().to_string())
}

/// What to do about a certificate of the upstream.
pub(crate) fn upstream_remedy(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::UnknownIssuer => {
            "if the upstream has its own CA, name its certificate with upstream-ca (--upstream-ca)"
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "set this machine's clock if it is wrong, else report it to the upstream's operator"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "check the host of the base URL"
        }
        _ => {
            "report it to the upstream's operator, or name the CA that issued it with upstream-ca (--upstream-ca)"
        }
    }
}

/// Why TLS failed, as a text without a subject.
pub(crate) fn describe(error: &Error) -> String {
    let fixed = match error {
        Error::InvalidCertificate(flaw) => {
            let flaw = certificate_flaw(flaw, Verifier::ThisMachine);
            return format!("the certificate {flaw}");
        }
        Error::AlertReceived(alert) => {
            return format!("received the fatal alert {}", alert_name(*alert));
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the other end does not speak TLS"
        }
        Error::InvalidMessage(_) => "a message is malformed",
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "an unexpected message"
        }
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => "the other end supports neither TLS 1.2 nor 1.3",
        Error::PeerIncompatible(_) => {
            "both ends have no cipher suite, key exchange or signature scheme in common"
        }
        Error::PeerMisbehaved(_) => "the other end violated the protocol",
        Error::NoCertificatesPresented => "the other end sent no certificate",
        Error::DecryptError => "a record cannot be decrypted",
        Error::PeerSentOversizedRecord => "a record is too large",
        Error::NoApplicationProtocol => "both ends have no application protocol in common",
        other => return peer_text::bounded(other),
    };
    fixed.to_owned()
}

/// The name of an alert ([RFC 8446, section 6]).
///
/// [RFC 8446, section 6]: https://www.rfc-editor.org/rfc/rfc8446#section-6
pub(crate) fn alert_name(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA => return "unknown_ca".to_owned(),
        AlertDescription::UnrecognisedName => return "unrecognized_name".to_owned(),
        AlertDescription::Unknown(number) => return format!("number {number}"),
        _ => {}
    }
    let mut name = String::new();
    for letter in format!("{alert:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::OtherError;
    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;

    #[test]
    fn each_certificate_flaw_has_words_and_a_remedy() {
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let presented = ["DnsName(\"a.example\")", "IpAddress(192.0.2.1)"];
        let other = |error: webpki::Error| CertificateError::Other(OtherError(Arc::new(error)));
        for (error, what, remedy) in [
            (
                CertificateError::UnknownIssuer,
                "not issued by a CA that is trusted here",
                "upstream-ca (--upstream-ca)",
            ),
            (CertificateError::Expired, "has expired by", "clock"),
            (
                CertificateError::ExpiredContext {
                    time: at(1_000_000_000),
                    not_after: at(86_400),
                },
                "valid until 1970-01-02",
                "clock",
            ),
            (CertificateError::NotValidYet, "is not valid yet", "clock"),
            (
                CertificateError::NotValidYetContext {
                    time: at(0),
                    not_before: at(u64::MAX),
                },
                "valid from a date after 9999",
                "clock",
            ),
            (CertificateError::NotValidForName, "another name", "host"),
            (
                CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("b.example").unwrap(),
                    presented: presented.map(String::from).to_vec(),
                },
                "another name: it is valid for a.example, 192.0.2.1",
                "host",
            ),
            (
                CertificateError::BadSignature,
                "wrong signature",
                "the upstream's operator",
            ),
            (
                other(webpki::Error::CaUsedAsEndEntity),
                "is a CA certificate",
                "the upstream's operator",
            ),
        ] {
            let flaw = certificate_flaw(&error, Verifier::ThisMachine);
            let advice = upstream_remedy(&error);
            assert!(
                flaw.contains(what) && advice.contains(remedy),
                "{flaw}; {advice}"
            );
            let at_gateway = certificate_flaw(&error, Verifier::Gateway);
            assert!(!at_gateway.contains("this machine"), "{at_gateway}");
            assert!(!at_gateway.contains("here"), "{at_gateway}");
        }
    }

    #[test]
    fn the_names_of_a_certificate_are_counted_beyond_the_first() {
        let many: Vec<_> = (0..11)
            .map(|n| format!("DnsName(\"{n}.example\")"))
            .collect();
        let text = names(&many);
        assert!(text.ends_with("7.example and 3 more"), "{text}");
        assert!(names(&[]).contains("no names"));
        let odd = ["DnsName(\"a;$(b)\\n\")".to_owned()];
        assert!(names(&odd).ends_with("a???b??n"), "{}", names(&odd));
    }

    #[test]
    fn alerts_have_the_names_of_the_rfc() {
        for (alert, name) in [
            (AlertDescription::HandshakeFailure, "handshake_failure"),
            (AlertDescription::UnknownCA, "unknown_ca"),
            (AlertDescription::UnrecognisedName, "unrecognized_name"),
            (
                AlertDescription::CertificateRequired,
                "certificate_required",
            ),
            (AlertDescription::Unknown(200), "number 200"),
        ] {
            assert_eq!(alert_name(alert), name);
        }
    }
}
