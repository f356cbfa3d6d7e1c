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
use std::fmt;

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
    Blocks::of(text)
        .filter_map(|block| block.and_then(Block::certificate).transpose())
        .collect()
}

/// All certificates in `text` that can be parsed, and the errors of the other blocks. For system
/// files, where one broken block must not cost the rest.
pub(crate) fn readable_certificates(text: &[u8]) -> (Vec<CertificateDer<'static>>, Vec<PemError>) {
    let mut certificates = Vec::new();
    let mut errors = Vec::new();
    for block in Blocks::of(text) {
        match block.and_then(Block::certificate) {
            Ok(certificate) => certificates.extend(certificate),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PemError {
    /// A block begins in this line and has no end before the next block or the end of the text.
    NotEnded { line: usize },
    /// The line ends a block that did not begin.
    NotBegun { line: usize },
    /// A boundary is incomplete, or the label at the end of a block differs from the one at its
    /// start.
    Boundary { line: usize },
    /// A certificate begins in this line and is not base64.
    Base64 { line: usize },
    /// A certificate begins in this line and is empty.
    Empty { line: usize },
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEnded { line } => write!(f, "the block that begins in line {line} is cut off"),
            Self::NotBegun { line } => write!(f, "line {line} ends a block that has no beginning"),
            Self::Boundary { line } => write!(f, "line {line} is a broken block boundary"),
            Self::Base64 { line } => {
                write!(f, "the certificate in line {line} is not base64")
            }
            Self::Empty { line } => write!(f, "the certificate in line {line} is empty"),
        }
    }
}

impl std::error::Error for PemError {}

/// One block: the text between two boundaries.
struct Block<'a> {
    label: &'a [u8],
    content: &'a [u8],
    line: usize,
}

impl Block<'_> {
    /// The certificate, if that is the label.
    fn certificate(self) -> Result<Option<CertificateDer<'static>>, PemError> {
        if self.label != CERTIFICATE {
            return Ok(None);
        }
        let line = self.line;
        let mut base64 = Vec::with_capacity(self.content.len());
        for run in self.content.split(u8::is_ascii_whitespace) {
            base64.extend_from_slice(run);
        }
        match BASE64.decode(&base64) {
            Ok(der) if der.is_empty() => Err(PemError::Empty { line }),
            Ok(der) => Ok(Some(der.into())),
            Err(_) => Err(PemError::Base64 { line }),
        }
    }
}

/// Iterates over the blocks of a text. After an error it continues with the next block.
struct Blocks<'a> {
    rest: &'a [u8],
    /// The number of the line in which `rest` begins.
    line: usize,
}

impl<'a> Blocks<'a> {
    fn of(text: &'a [u8]) -> Self {
        Self {
            rest: text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text),
            line: 1,
        }
    }

    /// The next line without its end. `None` at the end of the text.
    fn peek(&self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|&b| b == b'\n' || b == b'\r');
        (!self.rest.is_empty()).then(|| self.rest.split_at(end.unwrap_or(self.rest.len())).0)
    }

    /// Skips `line`, which `peek` returned, and its end.
    fn pass(&mut self, line: &[u8]) {
        let rest = self.rest.get(line.len()..).unwrap_or_default();
        self.rest = rest
            .strip_prefix(b"\r\n")
            .or_else(|| rest.get(1..))
            .unwrap_or_default();
        self.line += 1;
    }

    /// Reads to the end of a block whose `BEGIN` line was skipped.
    fn block(&mut self, begin: usize, label: &'a [u8]) -> Result<Block<'a>, PemError> {
        let from = self.rest;
        while let Some(text) = self.peek() {
            if text.starts_with(BEGIN) {
                break;
            }
            let content = from.len() - self.rest.len();
            let line = self.line;
            if !text.starts_with(END) {
                self.pass(text);
                continue;
            }
            let found = boundary(text, END);
            let rest = found.map_or(&[][..], |(_, rest)| rest);
            if rest.starts_with(BEGIN) {
                // Stay in this line: a file without a final newline was joined to another one.
                self.rest = self.rest.get(text.len() - rest.len()..).unwrap_or_default();
            } else {
                self.pass(text);
            }
            let whole = rest.starts_with(BEGIN) || rest.trim_ascii().is_empty();
            return match found {
                Some((end, _)) if end == label && whole => Ok(Block {
                    label,
                    content: from.get(..content).unwrap_or_default(),
                    line: begin,
                }),
                _ => Err(PemError::Boundary { line }),
            };
        }
        Err(PemError::NotEnded { line: begin })
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Result<Block<'a>, PemError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let text = self.peek()?;
            let line = self.line;
            self.pass(text);
            if text.starts_with(END) {
                return Some(Err(PemError::NotBegun { line }));
            }
            if text.starts_with(BEGIN) {
                return Some(match boundary(text, BEGIN) {
                    Some((label, rest)) if rest.trim_ascii().is_empty() => self.block(line, label),
                    _ => Err(PemError::Boundary { line }),
                });
            }
        }
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
