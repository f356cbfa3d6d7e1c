//! Certificates in PEM text ([RFC 7468]): parsing and writing.
//!
//! Without I/O: any bytes result in certificates or an error with a line number. Only the encoding
//! is checked; `setup::roots` and `setup::download` check the certificates. Only blocks with the
//! label `CERTIFICATE` count: `X509 CERTIFICATE` is not a synonym ([section 5.1]), and OpenSSL's
//! `TRUSTED CERTIFICATE` contains more than a certificate.
//!
//! Lenient where that cannot change the meaning: LF, CRLF and CR end a line; white space inside the
//! base64, text around blocks and a byte order mark at the start are ignored; lines may have any
//! length; a `BEGIN` may follow an `END` in the same line (files that were joined without a
//! newline). Strict everywhere else. The parser of `rustls-pki-types` has no line numbers, ignores
//! a wrong label at the end of a block, and fails at the first broken block.
//!
//! [RFC 7468]: https://www.rfc-editor.org/rfc/rfc7468
//! [section 5.1]: https://www.rfc-editor.org/rfc/rfc7468#section-5.1

use std::collections::HashSet;

use data_encoding::BASE64;
use rustls_pki_types::CertificateDer;

/// The label of a certificate.
const CERTIFICATE: &[u8] = b"CERTIFICATE";
/// The start and the end of an encapsulation boundary.
const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
/// "Generators MUST wrap the base64-encoded lines so that each line consists of exactly 64
/// characters" ([section 2]).
///
/// [section 2]: https://www.rfc-editor.org/rfc/rfc7468#section-2
const COLUMNS: usize = 64;

/// All certificates in `text`, in order. Other blocks are skipped. A text without certificates is
/// not an error.
///
/// # Errors
/// The first block that is cut off, has a broken boundary, or is not base64: no part of such a text
/// is trusted.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    parse(text).into_iter().collect()
}

/// All certificates in `text` that can be parsed, and the errors of the other blocks. For system
/// files, where one broken block must not cost the rest.
pub(crate) fn readable_certificates(text: &[u8]) -> (Vec<CertificateDer<'static>>, Vec<PemError>) {
    let mut certificates = Vec::new();
    let mut errors = Vec::new();
    for block in parse(text) {
        match block {
            Ok(certificate) => certificates.push(certificate),
            Err(error) => errors.push(error),
        }
    }
    (certificates, errors)
}

/// Whether `text` contains the start of a private key of any kind, even if the block is cut off.
pub(crate) fn contains_private_key(text: &[u8]) -> bool {
    const NAME: &[u8] = b"PRIVATE KEY";
    text.split(|&byte| byte == b'\n' || byte == b'\r')
        .filter(|line| contains(line, BEGIN.trim_ascii_end()))
        .any(|line| contains(&line.to_ascii_uppercase(), NAME))
}

/// The certificates of all groups in order, each once. Certificates with the same DER are equal.
pub(crate) fn merge(groups: &[Vec<CertificateDer<'static>>]) -> Vec<CertificateDer<'static>> {
    let mut seen: HashSet<&CertificateDer<'_>> = HashSet::new();
    let all = groups.iter().flatten();
    all.filter(|&certificate| seen.insert(certificate))
        .cloned()
        .collect()
}

/// The certificates as PEM text. Every line ends with LF.
pub(crate) fn encode(certificates: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let base64 = BASE64.encode(certificate);
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, others) = rest.split_at(rest.len().min(COLUMNS));
            text.push_str(line);
            text.push('\n');
            rest = others;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// Why a text is not PEM, and the number of the line (the first is 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PemError {
    #[error("the block that begins in line {line} is cut off")]
    NotEnded { line: usize },
    #[error("line {line} ends a block that has no beginning")]
    NotBegun { line: usize },
    /// A boundary is incomplete, or the label at the end of a block differs from the one at its
    /// start.
    #[error("line {line} is a broken block boundary")]
    Boundary { line: usize },
    #[error("the certificate in line {line} is not base64")]
    Base64 { line: usize },
    #[error("the certificate in line {line} is empty")]
    Empty { line: usize },
}

/// The certificates and the broken blocks of a text, in order.
fn parse(text: &[u8]) -> Vec<Result<CertificateDer<'static>, PemError>> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut found = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for (mut text, line) in lines(text).zip(1..) {
        if text.starts_with(END) {
            let end = boundary(text, END);
            let rest = end.map_or(&[][..], |(_, rest)| rest);
            // A file without a final newline was joined to another one.
            let joined = rest.starts_with(BEGIN);
            let clean = joined || rest.trim_ascii().is_empty();
            match (open.take(), end) {
                (None, _) => {
                    found.push(Err(PemError::NotBegun { line }));
                    continue;
                }
                (Some(block), Some((label, _))) if clean && label == block.label => {
                    found.extend(block.certificate());
                }
                _ => found.push(Err(PemError::Boundary { line })),
            }
            text = if joined { rest } else { continue };
        }
        if text.starts_with(BEGIN) {
            if let Some(Block { line, .. }) = open.take() {
                found.push(Err(PemError::NotEnded { line }));
            }
            match boundary(text, BEGIN) {
                Some((label, rest)) if rest.trim_ascii().is_empty() => {
                    open = Some(Block {
                        label,
                        line,
                        base64: Vec::new(),
                    });
                }
                _ => found.push(Err(PemError::Boundary { line })),
            }
        } else if let Some(block) = open.as_mut().filter(|block| block.is_certificate()) {
            let base64 = text.iter().filter(|byte| !byte.is_ascii_whitespace());
            block.base64.extend(base64);
        }
    }
    found.extend(open.map(|Block { line, .. }| Err(PemError::NotEnded { line })));
    found
}

/// The lines of a text, which end with LF, CRLF or CR.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n').flat_map(|line| {
        line.strip_suffix(b"\r")
            .unwrap_or(line)
            .split(|&byte| byte == b'\r')
    })
}

/// A block whose end was not found yet.
struct Block<'a> {
    label: &'a [u8],
    line: usize,
    /// The content of a certificate. Other blocks, such as private keys, are not copied.
    base64: Vec<u8>,
}

impl Block<'_> {
    fn is_certificate(&self) -> bool {
        self.label == CERTIFICATE
    }

    /// The certificate, if that is the label.
    fn certificate(self) -> Option<Result<CertificateDer<'static>, PemError>> {
        let line = self.line;
        self.is_certificate()
            .then(|| match BASE64.decode(&self.base64) {
                Ok(der) if der.is_empty() => Err(PemError::Empty { line }),
                Ok(der) => Ok(der.into()),
                Err(_) => Err(PemError::Base64 { line }),
            })
    }
}

/// The label of a boundary that begins with `opening`, and the text after the boundary in the same
/// line.
fn boundary<'a>(line: &'a [u8], opening: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let label = line.strip_prefix(opening)?;
    let end = label.windows(DASHES.len()).position(|w| w == DASHES)?;
    Some((label.get(..end)?, label.get(end + DASHES.len()..)?))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
    const TWO: &str = "-----BEGIN CERTIFICATE-----\nBAUG\n-----END CERTIFICATE-----\n";

    fn read(text: impl AsRef<[u8]>) -> Result<Vec<Vec<u8>>, PemError> {
        certificates(text.as_ref()).map(|all| all.iter().map(|c| c.to_vec()).collect())
    }

    #[test]
    fn reads_certificates_with_any_line_ends_and_text_around_them() {
        let both = Ok(vec![vec![1, 2, 3], vec![4, 5, 6]]);
        let text = format!("# Some Root\n{ONE}\n  subject=CN=x\n{TWO}after");
        assert_eq!(read(&text), both);
        assert_eq!(read(text.replace('\n', "\r\n")), both);
        assert_eq!(read(text.replace('\n', "\r")), both);
        assert_eq!(read(format!("\u{feff}{ONE}{TWO}")), both);
        assert_eq!(
            read(format!("{ONE}{TWO}").trim_end()),
            both,
            "no final newline"
        );
        assert_eq!(
            read(format!("{}{TWO}", ONE.trim_end())),
            both,
            "joined without one"
        );
        assert_eq!(read(text.replace("AQID", " AQ\n\n\tID \n")), both);
        assert_eq!(read(text.replace("-----\n", "----- \t\n")), both);
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(read("<html>captive</html>"), Ok(vec![]));
    }

    #[test]
    fn skips_every_other_kind_of_block() {
        for label in [
            "PRIVATE KEY",
            "X509 CERTIFICATE",
            "TRUSTED CERTIFICATE",
            "X509 CRL",
            "certificate",
        ] {
            let other = format!(
                "-----BEGIN {label}-----\nProc-Type: 4,ENCRYPTED\n\nBAUG\n-----END {label}-----\n"
            );
            assert_eq!(read(format!("{other}{ONE}")), Ok(vec![vec![1, 2, 3]]));
        }
    }

    #[test]
    fn reports_the_line_of_a_cut_or_broken_block() {
        for (text, error) in [
            (
                "x\n-----BEGIN CERTIFICATE-----\nAQID\n".to_owned(),
                PemError::NotEnded { line: 2 },
            ),
            (
                format!("-----BEGIN CERTIFICATE-----\nAQID\n{ONE}"),
                PemError::NotEnded { line: 1 },
            ),
            (
                format!("AQID\n-----END CERTIFICATE-----\n{ONE}"),
                PemError::NotBegun { line: 2 },
            ),
            (
                format!("{ONE}-----BEGIN CERTIFICATE"),
                PemError::Boundary { line: 4 },
            ),
            (
                ONE.replace("END CERTIFICATE", "END X509 CRL"),
                PemError::Boundary { line: 3 },
            ),
            (
                ONE.replace("E-----\nA", "E-----A"),
                PemError::Boundary { line: 1 },
            ),
            (ONE.replace("AQID", "AQI"), PemError::Base64 { line: 1 }),
            (ONE.replace("AQID", "AQ*D"), PemError::Base64 { line: 1 }),
            (ONE.replace("AQID", "AQ=="), PemError::Base64 { line: 1 }),
            (ONE.replace("AQID", "\n"), PemError::Empty { line: 1 }),
        ] {
            let result = read(&text);
            if text.contains("AQ==") {
                assert_eq!(result, Ok(vec![vec![1]]), "padding is allowed");
            } else {
                assert_eq!(result, Err(error), "{text}");
            }
        }
    }

    #[test]
    fn a_broken_block_is_left_out_of_a_system_file() {
        let text = format!(
            "{}-----BEGIN CERTIFICATE-----\ncut\n{TWO}",
            ONE.replace("AQID", "A")
        );
        let (found, errors) = readable_certificates(text.as_bytes());
        assert_eq!(found, [CertificateDer::from(vec![4, 5, 6])]);
        assert_eq!(
            errors,
            [PemError::Base64 { line: 1 }, PemError::NotEnded { line: 4 }]
        );
    }

    #[test]
    fn finds_a_private_key_of_any_kind_even_a_cut_one() {
        for label in [
            "PRIVATE KEY",
            "RSA PRIVATE KEY",
            "ENCRYPTED PRIVATE KEY",
            "OPENSSH PRIVATE KEY",
            "private key",
        ] {
            assert!(contains_private_key(
                format!("{ONE} -----BEGIN {label}").as_bytes()
            ));
        }
        assert!(!contains_private_key(ONE.as_bytes()));
        assert!(!contains_private_key(b"this file has no PRIVATE KEY\n"));
        assert!(!contains_private_key(b""));
    }

    #[test]
    fn merging_keeps_the_order_and_the_first_of_equals() {
        let der = |n: u8| CertificateDer::from(vec![n]);
        let merged = merge(&[vec![der(1), der(2), der(1)], vec![], vec![der(3), der(2)]]);
        assert_eq!(merged, [der(1), der(2), der(3)]);
    }

    #[test]
    fn writes_lines_of_64_columns_and_exact_boundaries() {
        let text = encode(&[
            CertificateDer::from(vec![0; 48]),
            CertificateDer::from(vec![0; 49]),
        ]);
        let full = "A".repeat(64);
        assert_eq!(
            text,
            format!(
                "-----BEGIN CERTIFICATE-----\n{full}\n-----END CERTIFICATE-----\n\
                 -----BEGIN CERTIFICATE-----\n{full}\nAA==\n-----END CERTIFICATE-----\n"
            )
        );
        assert_eq!(encode(&[]), "");
    }

    proptest! {
        #[test]
        fn any_bytes_give_certificates_or_an_error(text: Vec<u8>) {
            let strict = certificates(&text);
            let (lenient, errors) = readable_certificates(&text);
            prop_assert_eq!(strict.is_ok(), errors.is_empty());
            prop_assert!(strict.is_err() || strict == Ok(lenient));
            contains_private_key(&text);
        }

        #[test]
        fn any_mixture_of_boundaries_gives_certificates_or_an_error(
            parts in prop::collection::vec(prop::sample::select(vec![
                "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----", "-----BEGIN ", "-----END ", "-----",
                "-----BEGIN PRIVATE KEY-----", "\n", "\r", "\r\n", "AQID", "=", " ", "é",
            ]), 0..40),
        ) {
            let text = parts.concat();
            let strict = certificates(text.as_bytes());
            let (lenient, errors) = readable_certificates(text.as_bytes());
            prop_assert_eq!(strict.is_ok(), errors.is_empty());
            prop_assert!(strict.is_err() || strict == Ok(lenient));
        }

        #[test]
        fn written_certificates_read_back_the_same(ders in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..5)) {
            let written: Vec<_> = ders.into_iter().map(CertificateDer::from).collect();
            prop_assert_eq!(certificates(encode(&written).as_bytes()), Ok(written));
        }
    }
}
