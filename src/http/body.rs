//! The body of an HTTP/1.x message ([RFC 9112, sections 6 and 7]): where it ends.
//!
//! Without I/O, for any bytes at any segmentation. A body is forwarded as it was received; this
//! module only finds its end. It is stricter than the RFC where two readers could find different
//! ends: such a message is an error (section 11.2, request smuggling).
//!
//! [RFC 9112, sections 6 and 7]: https://www.rfc-editor.org/rfc/rfc9112#section-6

use super::head::{Fields, HEAD_LIMIT, RequestHead, ResponseHead};

/// The longest line with the size and the extensions of a chunk, with its line end.
const CHUNK_LINE_LIMIT: usize = 1 << 10;
/// The most digits of a chunk size. More would not fit into 64 bits.
const CHUNK_DIGITS: usize = 16;
/// The most fields in a trailer section.
const TRAILER_FIELDS: usize = 64;
/// Fields that must not be in a trailer section, because they frame, route or authorise a message
/// ([RFC 9110, section 6.5.1]).
///
/// [RFC 9110, section 6.5.1]: https://www.rfc-editor.org/rfc/rfc9110#section-6.5.1
const NOT_IN_TRAILERS: [&str; 7] = [
    "authorization",
    "content-length",
    "cookie",
    "host",
    "proxy-authorization",
    "trailer",
    "transfer-encoding",
];

/// Why the end of a body cannot be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the message has a Content-Length and a Transfer-Encoding")]
    TwoLengths,
    #[error("the Content-Length is not one number")]
    Length,
    #[error("the Transfer-Encoding is not \"chunked\"")]
    Coding,
    #[error("an HTTP/1.0 message has a Transfer-Encoding")]
    OldVersion,
    #[error("a chunk of the body is malformed")]
    Chunk,
    #[error("the trailer section of the body is malformed")]
    Trailers,
}

/// Finds the end of one body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Body(State);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are left; the body has ended if there are none.
    Length(u64),
    /// The body ends with the connection.
    UntilClose,
    /// Inside the line with the size of a chunk; the part that has arrived.
    ChunkLine(Vec<u8>),
    /// So many bytes of a chunk are left.
    ChunkData(u64),
    /// So many bytes of the line end after a chunk are left.
    ChunkEnd(u8),
    /// Inside the trailer section; the part that has arrived.
    Trailers(Vec<u8>),
}

impl Body {
    /// No body.
    pub(crate) const EMPTY: Self = Self(State::Length(0));

    /// The body of a request ([RFC 9112, section 6.3]).
    ///
    /// [RFC 9112, section 6.3]: https://www.rfc-editor.org/rfc/rfc9112#section-6.3
    pub(crate) fn of_request(head: &RequestHead) -> Result<Self, BodyError> {
        Ok(declared(&head.fields, head.old)?.unwrap_or(Self::EMPTY))
    }

    /// The body of the response to a request with `method`, from the same section.
    pub(crate) fn of_response(head: &ResponseHead, method: &str) -> Result<Self, BodyError> {
        let declared = declared(&head.fields, head.old)?;
        if method == "HEAD" || matches!(head.status, 100..=199 | 204 | 304) {
            return Ok(Self::EMPTY);
        }
        Ok(declared.unwrap_or(Self(State::UntilClose)))
    }

    /// Whether the body is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.0 == State::Length(0)
    }

    /// Whether only the end of the connection ends the body.
    pub(crate) fn ends_with_connection(&self) -> bool {
        self.0 == State::UntilClose
    }

    /// How many of `bytes`, from the first one on, belong to the body: all of them, or as many as
    /// complete it.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        let mut taken = 0;
        while taken < bytes.len() && !self.is_complete() {
            taken += self.step(&bytes[taken..])?;
        }
        Ok(taken)
    }

    /// Takes at least one of `rest`, which is not empty.
    fn step(&mut self, rest: &[u8]) -> Result<usize, BodyError> {
        match &mut self.0 {
            State::UntilClose => Ok(rest.len()),
            State::Length(left) => Ok(take_counted(left, rest)),
            State::ChunkData(left) => {
                let taken = take_counted(left, rest);
                if *left == 0 {
                    self.0 = State::ChunkEnd(2);
                }
                Ok(taken)
            }
            State::ChunkEnd(left) => {
                let expected = if *left == 2 { b'\r' } else { b'\n' };
                if rest.first() != Some(&expected) {
                    return Err(BodyError::Chunk);
                }
                self.0 = if *left == 2 {
                    State::ChunkEnd(1)
                } else {
                    State::ChunkLine(Vec::new())
                };
                Ok(1)
            }
            State::ChunkLine(line) => {
                let taken = take_line(line, rest);
                if line.len() > CHUNK_LINE_LIMIT {
                    return Err(BodyError::Chunk);
                }
                if line.ends_with(b"\n") {
                    self.0 = match chunk_size(line)? {
                        0 => State::Trailers(Vec::new()),
                        size => State::ChunkData(size),
                    };
                }
                Ok(taken)
            }
            State::Trailers(section) => {
                let taken = take_line(section, rest);
                let bare_line_end = section.ends_with(b"\n") && !section.ends_with(b"\r\n");
                if bare_line_end || section.len() > HEAD_LIMIT {
                    return Err(BodyError::Trailers);
                }
                if section == b"\r\n" || section.ends_with(b"\r\n\r\n") {
                    check_trailers(section)?;
                    self.0 = State::Length(0);
                }
                Ok(taken)
            }
        }
    }
}

/// Takes at most `left` bytes.
fn take_counted(left: &mut u64, rest: &[u8]) -> usize {
    let taken = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
    *left -= taken as u64;
    taken
}

/// Appends the bytes of `rest` up to the end of the line to `line`.
fn take_line(line: &mut Vec<u8>, rest: &[u8]) -> usize {
    let end = rest.iter().position(|&b| b == b'\n');
    // One line is at most a head long, so that no more than that is copied before it is rejected.
    let taken = end.map_or(rest.len(), |at| at + 1).min(HEAD_LIMIT);
    line.extend_from_slice(&rest[..taken]);
    taken
}

/// The size in a complete chunk line. Its extensions are skipped, as section 7.1.1 requires.
fn chunk_size(line: &[u8]) -> Result<u64, BodyError> {
    let line = line.strip_suffix(b"\r\n").ok_or(BodyError::Chunk)?;
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (digits, extension) = line.split_at(digits);
    // Spaces before the extension are "bad whitespace" that a recipient may reject.
    let is_text = |&b: &u8| b == b'\t' || b >= b' ' && b != 0x7f;
    let begins = extension.is_empty() || extension.starts_with(b";");
    if digits.len() > CHUNK_DIGITS || !begins || !extension.iter().all(is_text) {
        return Err(BodyError::Chunk);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| BodyError::Chunk)?;
    u64::from_str_radix(digits, 16).map_err(|_| BodyError::Chunk)
}

fn check_trailers(section: &[u8]) -> Result<(), BodyError> {
    let mut fields = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
    match httparse::parse_headers(section, &mut fields) {
        Ok(httparse::Status::Complete((len, fields))) if len == section.len() => {
            let forbidden = |field: &httparse::Header<'_>| {
                let is = |name: &&str| field.name.eq_ignore_ascii_case(name);
                NOT_IN_TRAILERS.iter().any(is)
            };
            if fields.iter().any(forbidden) {
                return Err(BodyError::Trailers);
            }
            Ok(())
        }
        _ => Err(BodyError::Trailers),
    }
}

/// The body that the fields declare, if they declare one.
fn declared(fields: &Fields, old: bool) -> Result<Option<Body>, BodyError> {
    let has_length = fields.has("content-length");
    if fields.has("transfer-encoding") {
        if has_length {
            return Err(BodyError::TwoLengths);
        }
        if old {
            return Err(BodyError::OldVersion);
        }
        let coding = fields.one("transfer-encoding").ok_or(BodyError::Coding)?;
        if !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(BodyError::Coding);
        }
        return Ok(Some(Body(State::ChunkLine(Vec::new()))));
    }
    if !has_length {
        return Ok(None);
    }
    let length = fields.one("content-length").ok_or(BodyError::Length)?;
    // `parse` would accept a sign.
    let digits = std::str::from_utf8(length).ok().filter(|text| {
        let is_digits = text.bytes().all(|b| b.is_ascii_digit());
        is_digits && !text.is_empty()
    });
    let length = digits.and_then(|text| text.parse().ok());
    Ok(Some(Body(State::Length(length.ok_or(BodyError::Length)?))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::head;

    fn request(fields: &str) -> Result<Body, BodyError> {
        let text = format!("POST / HTTP/1.1\r\n{fields}\r\n");
        Body::of_request(&head::request(text.as_bytes()).unwrap().unwrap().0)
    }

    fn response(status: &str, fields: &str, method: &str) -> Result<Body, BodyError> {
        let text = format!("HTTP/1.1 {status}\r\n{fields}\r\n");
        Body::of_response(&head::response(text.as_bytes()).unwrap().unwrap().0, method)
    }

    /// Feeds `bytes` in pieces of `size` bytes; returns how many belong to the body and whether it
    /// is complete.
    fn feed(mut body: Body, bytes: &[u8], size: usize) -> Result<(usize, bool), BodyError> {
        let mut taken = 0;
        for piece in bytes.chunks(size) {
            let n = body.take(piece)?;
            taken += n;
            if n < piece.len() {
                break;
            }
        }
        Ok((taken, body.is_complete()))
    }

    #[test]
    fn the_end_of_a_body_follows_the_fields() {
        let chunked = Ok(Body(State::ChunkLine(Vec::new())));
        let length = |n| Ok(Body(State::Length(n)));
        for (fields, expected) in [
            ("", length(0)),
            ("Content-Length: 0\r\n", length(0)),
            ("content-length: 17\r\n", length(17)),
            ("Transfer-Encoding: chunked\r\n", chunked.clone()),
            ("transfer-encoding:\tCHUNKED \r\n", chunked.clone()),
            (
                "Content-Length: 1\r\nContent-Length: 1\r\n",
                Err(BodyError::Length),
            ),
            ("Content-Length: 1, 1\r\n", Err(BodyError::Length)),
            ("Content-Length: +1\r\n", Err(BodyError::Length)),
            ("Content-Length: -1\r\n", Err(BodyError::Length)),
            ("Content-Length: 0x1\r\n", Err(BodyError::Length)),
            ("Content-Length: 1 1\r\n", Err(BodyError::Length)),
            ("Content-Length:\r\n", Err(BodyError::Length)),
            (
                "Content-Length: 18446744073709551616\r\n",
                Err(BodyError::Length),
            ),
            (
                "Transfer-Encoding: gzip, chunked\r\n",
                Err(BodyError::Coding),
            ),
            (
                "Transfer-Encoding: chunked, chunked\r\n",
                Err(BodyError::Coding),
            ),
            ("Transfer-Encoding: identity\r\n", Err(BodyError::Coding)),
            ("Transfer-Encoding: xchunked\r\n", Err(BodyError::Coding)),
            ("Transfer-Encoding: \"chunked\"\r\n", Err(BodyError::Coding)),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Err(BodyError::Coding),
            ),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
                Err(BodyError::TwoLengths),
            ),
        ] {
            assert_eq!(request(fields), expected, "{fields:?}");
            let expected = match expected {
                Ok(_) if fields.is_empty() => Ok(Body(State::UntilClose)),
                expected => expected,
            };
            assert_eq!(response("200 OK", fields, "GET"), expected, "{fields:?}");
        }
        for (status, method) in [
            ("100 Continue", "POST"),
            ("204 No Content", "GET"),
            ("304 Not Modified", "GET"),
            ("200 OK", "HEAD"),
        ] {
            let body = response(status, "Content-Length: 5\r\n", method);
            assert_eq!(body, Ok(Body::EMPTY), "{status} {method}");
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (head, _) = head::request(old.as_bytes()).unwrap().unwrap();
        assert_eq!(Body::of_request(&head), Err(BodyError::OldVersion));
    }

    #[test]
    fn chunks_end_with_the_trailer_section_at_any_segmentation() {
        let chunked = request("Transfer-Encoding: chunked\r\n").unwrap();
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "000005;a=b;c=\"d e\"\r\nhello\r\n0\r\n\r\n",
            "A\r\n0123456789\r\n1\r\nx\r\n0;last\r\nX-Checksum: 1\r\nb:\r\n\r\n",
        ] {
            let bytes = [body, "GET / next request"].concat().into_bytes();
            for size in 1..=bytes.len() {
                assert_eq!(
                    feed(chunked.clone(), &bytes, size),
                    Ok((body.len(), true)),
                    "{body:?} {size}"
                );
            }
            for end in 0..body.len() {
                assert_eq!(
                    feed(chunked.clone(), &bytes[..end], 7),
                    Ok((end, false)),
                    "{body:?} {end}"
                );
            }
        }
    }

    #[test]
    fn chunks_that_two_readers_could_read_differently_are_rejected() {
        let chunked = request("Transfer-Encoding: chunked\r\n").unwrap();
        let long_extension = format!("1;{}\r\n", "x".repeat(CHUNK_LINE_LIMIT));
        let long_trailers = format!("0\r\nA: {}\r\n\r\n", "x".repeat(HEAD_LIMIT));
        for body in [
            "\r\n",
            ";a\r\n",
            "g\r\n",
            "+5\r\nhello\r\n",
            "-1\r\n",
            "0x5\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "5 \r\nhello\r\n",
            "5 ;a\r\nhello\r\n",
            "5\nhello\r\n",
            "5\rhello\r\n\n",
            "5;a\rb\r\n",
            "5;a\0\r\n",
            "5\r\nhelloX",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello\r\r\n",
            "10000000000000000\r\n",
            "0\r\nX: 1\n\r\n",
            "0\r\nX : 1\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\nTRANSFER-encoding: chunked\r\n\r\n",
            "0\r\nHost: x\r\n\r\n",
            long_extension.as_str(),
            long_trailers.as_str(),
        ] {
            for size in [1, 2, 3, body.len()] {
                let result = feed(chunked.clone(), body.as_bytes(), size);
                assert!(result.is_err(), "{body:?} {size}: {result:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_one_end_at_any_segmentation(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "([0-9a-f]{1,2}(;[a-z=]{0,5})?\r\n[ -~]{0,20}\r\n){0,4}0\r\n([A-Z]{1,4}: [a-z]{0,4}\r\n){0,2}\r\n[ -~]{0,9}".prop_map(String::into_bytes),
            ],
            size in 1_usize..50,
        ) {
            let chunked = request("Transfer-Encoding: chunked\r\n").unwrap();
            prop_assert_eq!(feed(chunked.clone(), &bytes, size), feed(chunked, &bytes, usize::MAX));
            let sized = request("Content-Length: 60\r\n").unwrap();
            let expected = Ok((bytes.len().min(60), bytes.len() >= 60));
            prop_assert_eq!(feed(sized, &bytes, size), expected);
        }
    }
}
