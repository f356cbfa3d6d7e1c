//! The names of a TLS server in its certificate ([RFC 5280, section 4.2.1.6]), for its base URL.
//!
//! [RFC 5280, section 4.2.1.6]: https://www.rfc-editor.org/rfc/rfc5280#section-4.2.1.6

use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The subject alternative names that a base URL can contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CertificateNames {
    /// The first DNS name that is not a wildcard.
    first: Option<String>,
    addresses: Vec<IpAddr>,
}

impl CertificateNames {
    /// The names of the first certificate of a chain.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Self {
        let mut names = Self::default();
        let Some(Ok((_, certificate))) = chain.first().map(|der| X509Certificate::from_der(der))
        else {
            return names;
        };
        let Ok(Some(extension)) = certificate.subject_alternative_name() else {
            return names;
        };
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) if !name.contains('*') => {
                    names.first.get_or_insert_with(|| (*name).to_owned());
                }
                GeneralName::IPAddress(bytes) => names.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        names
    }

    /// The name by which clients can verify a server at `address`: none if that is the address, or
    /// if the certificate has no name that can be used.
    pub(super) fn for_server_at(&self, address: IpAddr) -> Option<&str> {
        if self.addresses.contains(&address) {
            return None;
        }
        self.first.as_deref()
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> CertificateNames {
        let key = rcgen::KeyPair::generate().unwrap();
        let list: Vec<String> = list.iter().map(|&name| name.to_owned()).collect();
        let parameters = rcgen::CertificateParams::new(list).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        CertificateNames::of(&[certificate.der().clone()])
    }

    #[test]
    fn the_first_name_is_used_unless_the_certificate_has_the_address() {
        let any = IpAddr::from([0, 0, 0, 0]);
        let local = IpAddr::from([127, 0, 0, 1]);
        let both = names(&[
            "*.example",
            "gw.example",
            "other.example",
            "127.0.0.1",
            "::1",
        ]);
        assert_eq!(both.for_server_at(any), Some("gw.example"));
        assert_eq!(both.for_server_at(local), None);
        assert_eq!(both.for_server_at("::1".parse().unwrap()), None);
        assert_eq!(names(&["*.example"]).for_server_at(local), None);
        assert_eq!(CertificateNames::of(&[]), CertificateNames::default());
    }
}
