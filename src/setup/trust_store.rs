//! A PKCS #12 trust store for the JVM ([RFC 7292]): trusted certificates, without a private key.
//!
//! It is neither encrypted nor has it a MAC: certificates are public, and who can replace the file
//! could compute both. The JVM accepts that since version 8, with any password or none. Without
//! them, nothing here needs cryptography, and the smallest DER is enough.
//!
//! [RFC 7292]: https://www.rfc-editor.org/rfc/rfc7292

use rustls_pki_types::CertificateDer;

/// Tags of DER (X.690).
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTET_STRING: u8 = 0x04;
const BMP_STRING: u8 = 0x1e;
/// `[0] EXPLICIT`.
const CONTENT: u8 = 0xa0;

/// `version` of a PFX: 3.
const VERSION: &[u8] = b"\x02\x01\x03";
/// 1.2.840.113549.1.7.1, `data` of PKCS #7.
const DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
/// 1.2.840.113549.1.12.10.1.3, a bag with a certificate (section 4.2.3).
const CERT_BAG: &[u8] = b"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x03";
/// 1.2.840.113549.1.9.22.1, an X.509 certificate in DER.
const X509: &[u8] = b"\x06\x0a\x2a\x86\x48\x86\xf7\x0d\x01\x09\x16\x01";
/// 1.2.840.113549.1.9.20, `friendlyName`: the alias of an entry.
const FRIENDLY_NAME: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x14";
/// 2.16.840.1.113894.746875.1.1: without this attribute, the JVM does not trust a certificate.
const TRUSTED_KEY_USAGE: &[u8] = b"\x06\x0c\x60\x86\x48\x01\x86\xf9\x66\xad\xca\x7b\x01\x01";
/// 2.5.29.37.0, for any purpose.
const ANY_PURPOSE: &[u8] = b"\x06\x04\x55\x1d\x25\x00";

/// The trust store with these certificates, in their order.
pub(super) fn encode(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    let bags: Vec<Vec<u8>> = certificates.iter().zip(1..).map(bag).collect();
    let safe_contents = element(SEQUENCE, &[&bags.concat()]);
    let authenticated_safe = element(SEQUENCE, &[&data(&safe_contents)]);
    element(SEQUENCE, &[VERSION, &data(&authenticated_safe)])
}

/// A `SafeBag` whose certificate is trusted, with an alias of its own.
fn bag((certificate, number): (&CertificateDer<'_>, usize)) -> Vec<u8> {
    let certificate = element(OCTET_STRING, &[certificate]);
    let certificate = element(SEQUENCE, &[X509, &element(CONTENT, &[&certificate])]);
    let name = format!("upstreamproxy-{number}");
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let attributes = [
        attribute(TRUSTED_KEY_USAGE, ANY_PURPOSE),
        attribute(FRIENDLY_NAME, &element(BMP_STRING, &[&name])),
    ];
    let attributes = element(SET, &[&attributes.concat()]);
    let certificate = element(CONTENT, &[&certificate]);
    element(SEQUENCE, &[CERT_BAG, &certificate, &attributes])
}

fn attribute(name: &[u8], value: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[name, &element(SET, &[value])])
}

/// A `ContentInfo` of the type `data`.
fn data(content: &[u8]) -> Vec<u8> {
    let content = element(OCTET_STRING, &[content]);
    element(SEQUENCE, &[DATA, &element(CONTENT, &[&content])])
}

/// An element of DER: tag, length, and the parts as its value.
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    let length = value.len().to_be_bytes();
    let zeros = length.iter().take_while(|&&byte| byte == 0).count();
    let length = &length[zeros.min(length.len() - 1)..];
    let mut encoded = vec![tag];
    if value.len() >= 0x80 {
        encoded.push(0x80 | length.len() as u8);
    }
    encoded.extend_from_slice(length);
    encoded.extend_from_slice(&value);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_the_shortest_form() {
        for (length, head) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (255, &[4, 0x81, 255]),
            (256, &[4, 0x82, 1, 0]),
            (65_536, &[4, 0x83, 1, 0, 0]),
        ] {
            let encoded = element(OCTET_STRING, &[&vec![7; length]]);
            assert_eq!(encoded[..head.len()], *head);
            assert_eq!(encoded.len(), head.len() + length);
        }
    }

    #[test]
    fn each_certificate_has_an_alias_of_its_own() {
        let store = encode(&[b"first".to_vec().into(), b"second".to_vec().into()]);
        let has = |bytes: &[u8]| store.windows(bytes.len()).any(|window| window == bytes);
        for text in ["upstreamproxy-1", "upstreamproxy-2"] {
            let name: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
            assert!(has(&name), "{text}");
        }
        assert!(has(b"first") && has(b"second"));
    }
}
