//! Certificates out of PEM text and back into it, by [RFC 7468].
//!
//! Pure and total: any bytes give certificates or an error that names the line. It looks at the wrapping only; whether the
//! DER inside is a certificate that can be used is `setup::bundle`'s to say. Only blocks labelled `CERTIFICATE` count:
//! `X509 CERTIFICATE` is no synonym ([section 5.1]), and OpenSSL's `TRUSTED CERTIFICATE` holds more than a certificate.
//!
//! Lenient where that cannot change the meaning: LF, CRLF and CR end a line, white space inside the base64 and text around
//! blocks do not count, a byte order mark at the start neither, lines may have any length, and a `BEGIN` may stand right
//! behind an `END` (files joined without a newline between them). Strict everywhere else.
//!
//! [RFC 7468]: https://www.rfc-editor.org/rfc/rfc7468
//! [section 5.1]: https://www.rfc-editor.org/rfc/rfc7468#section-5.1

use std::collections::HashSet;
use std::fmt;

use data_encoding::BASE64;
use rustls_pki_types::CertificateDer;

/// The label of a certificate.
const CERTIFICATE: &[u8] = b"CERTIFICATE";
/// How an encapsulation boundary begins, and how every one ends.
const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
/// "Generators MUST wrap the base64-encoded lines so that each line consists of exactly 64 characters" ([section 2]).
///
/// [section 2]: https://www.rfc-editor.org/rfc/rfc7468#section-2
const COLUMNS: usize = 64;

/// Every certificate in `text`, in order; other blocks are skipped. None at all is no error.
///
/// # Errors
/// The first block that is cut, badly bounded, or not base64: such a text is not to be trusted in part.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    Blocks::of(text)
        .filter_map(|block| block.and_then(Block::certificate).transpose())
        .collect()
}

/// Every certificate in `text` that can be read, and the errors of the blocks that cannot: for files of the system, where
/// one broken block among hundreds must not cost all the others.
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

/// Whether `text` has the beginning of a private key of any kind, be the block whole or not.
pub(crate) fn holds_private_key(text: &[u8]) -> bool {
    const NAME: &[u8] = b"PRIVATE KEY";
    text.split(|&byte| byte == b'\n' || byte == b'\r')
        .filter(|line| contains(line, BEGIN.trim_ascii_end()))
        .any(|line| contains(&line.to_ascii_uppercase(), NAME))
}

/// The certificates of all groups in their order, each once: two are the same when their DER is.
pub(crate) fn merge(groups: &[Vec<CertificateDer<'static>>]) -> Vec<CertificateDer<'static>> {
    let mut seen: HashSet<&CertificateDer<'_>> = HashSet::new();
    let all = groups.iter().flatten();
    all.filter(|&certificate| seen.insert(certificate))
        .cloned()
        .collect()
}

/// The certificates as PEM text with LF line ends, the last line ended too.
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

/// Why some text is not PEM, and in which line (the first is 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PemError {
    /// A block that begins in this line and does not end before the text does or the next block begins.
    NotEnded { line: usize },
    /// The end of a block that never began.
    NotBegun { line: usize },
    /// A line that begins as a boundary and does not go on as one, or an end whose label is not that of its beginning.
    Boundary { line: usize },
    /// A certificate, begun in this line, that is not base64.
    Base64 { line: usize },
    /// A certificate block with nothing in it.
    Empty { line: usize },
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEnded { line } => write!(f, "the block begun in line {line} is cut off"),
            Self::NotBegun { line } => write!(f, "line {line} ends a block that never began"),
            Self::Boundary { line } => write!(f, "line {line} is a broken block boundary"),
            Self::Base64 { line } => {
                write!(f, "the certificate begun in line {line} is not base64")
            }
            Self::Empty { line } => write!(f, "the certificate begun in line {line} is empty"),
        }
    }
}

impl std::error::Error for PemError {}

/// One block: what stands between a pair of boundaries.
struct Block<'a> {
    label: &'a [u8],
    content: &'a [u8],
    line: usize,
}

impl Block<'_> {
    /// The certificate, if that is what the label says.
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

/// Reads `text` line by line and gives its blocks; after an error it goes on with the next block.
struct Blocks<'a> {
    rest: &'a [u8],
    /// The number of the line that `rest` begins in.
    line: usize,
}

impl<'a> Blocks<'a> {
    fn of(text: &'a [u8]) -> Self {
        Self {
            rest: text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text),
            line: 1,
        }
    }

    /// The next line without its end, left where it is; `None` when there is no more.
    fn peek(&self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|&b| b == b'\n' || b == b'\r');
        (!self.rest.is_empty()).then(|| self.rest.split_at(end.unwrap_or(self.rest.len())).0)
    }

    /// Goes on behind `line`, which `peek` gave, and behind its end.
    fn pass(&mut self, line: &[u8]) {
        let rest = self.rest.get(line.len()..).unwrap_or_default();
        self.rest = rest
            .strip_prefix(b"\r\n")
            .or_else(|| rest.get(1..))
            .unwrap_or_default();
        self.line += 1;
    }

    /// Reads on to the end of the block whose `BEGIN` has been passed.
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
            let behind = found.map_or(&[][..], |(_, behind)| behind);
            if behind.starts_with(BEGIN) {
                // Stay in this line: a file without a final newline was joined to another one.
                self.rest = self
                    .rest
                    .get(text.len() - behind.len()..)
                    .unwrap_or_default();
            } else {
                self.pass(text);
            }
            let whole = behind.starts_with(BEGIN) || behind.trim_ascii().is_empty();
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
                    Some((label, behind)) if behind.trim_ascii().is_empty() => {
                        self.block(line, label)
                    }
                    _ => Err(PemError::Boundary { line }),
                });
            }
        }
    }
}

/// The label of a boundary that begins with `opening`, and what stands behind the boundary in the same line.
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
    fn refuses_a_cut_or_broken_block_by_its_line() {
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
                assert_eq!(result, Ok(vec![vec![1]]), "padding is no fault");
            } else {
                assert_eq!(result, Err(error), "{text}");
            }
        }
    }

    #[test]
    fn a_broken_block_costs_a_system_file_that_block_only() {
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
            assert!(holds_private_key(
                format!("{ONE} -----BEGIN {label}").as_bytes()
            ));
        }
        assert!(!holds_private_key(ONE.as_bytes()));
        assert!(!holds_private_key(b"this file has no PRIVATE KEY\n"));
        assert!(!holds_private_key(b""));
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
            holds_private_key(&text);
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
        fn what_was_written_reads_back_the_same(ders in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..5)) {
            let written: Vec<_> = ders.into_iter().map(CertificateDer::from).collect();
            prop_assert_eq!(certificates(encode(&written).as_bytes()), Ok(written));
        }
    }
}
