//! HTTP/1.x heads ([RFC 9112]): parses request and response heads.
//!
//! Without I/O: any bytes result in a head, a request for more bytes, or an error. `httparse`
//! parses the grammar. Where it is lenient (bare LF), this parser rejects, because two readers of
//! one head must agree about its end.
//!
//! [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112

use std::fmt;
use std::io::BufRead;

use super::authority::Authority;

/// The longest head in bytes, including its empty line.
pub(crate) const HEAD_LIMIT: usize = 16 << 10;
/// The most fields in one head. No usual client sends more in [`HEAD_LIMIT`] bytes.
const FIELD_LIMIT: usize = 128;

/// The fields of a head, in their order, with their names as sent.
#[derive(Default)]
pub(crate) struct Fields(Vec<(String, Vec<u8>)>);

impl fmt::Debug for Fields {
    /// Shows the names and the lengths of the values, because some values are credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = self.0.iter().map(|(name, value)| (name, value.len()));
        f.debug_map().entries(fields).finish()
    }
}

impl Fields {
    fn new(raw: &[httparse::Header<'_>]) -> Self {
        Self(
            raw.iter()
                .map(|field| (field.name.to_owned(), field.value.to_vec()))
                .collect(),
        )
    }

    /// Every field: its name as sent, and its value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// Every value of a field. Field names are case-insensitive.
    pub(crate) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0
            .iter()
            .filter(move |(field_name, _)| field_name.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_slice())
    }

    /// The value of a field that occurs exactly once.
    pub(crate) fn one(&self, name: &str) -> Option<&[u8]> {
        let mut all = self.all(name);
        let first = all.next()?;
        all.next().is_none().then_some(first)
    }

    /// Whether the field occurs.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// The elements of a comma-separated list field, of all its lines, trimmed ([RFC 9110, section
    /// 5.6.1]).
    ///
    /// [RFC 9110, section 5.6.1]: https://www.rfc-editor.org/rfc/rfc9110#section-5.6.1
    pub(crate) fn list<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name)
            .flat_map(|value| value.split(|&b| b == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|element| !element.is_empty())
    }

    /// Whether a comma-separated list field has `element`, without regard to case.
    pub(crate) fn lists(&self, name: &str, element: &str) -> bool {
        self.list(name)
            .any(|value| value.eq_ignore_ascii_case(element.as_bytes()))
    }
}

/// A request head.
#[derive(Debug)]
pub(crate) struct RequestHead {
    /// The method, as sent.
    pub(crate) method: String,
    /// The request target, as sent.
    pub(crate) target: String,
    /// The version is HTTP/1.0, not 1.1.
    pub(crate) old: bool,
    /// The fields.
    pub(crate) fields: Fields,
}

/// A response head.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    /// The status code, from 100 to 999.
    pub(crate) status: u16,
    /// The version is HTTP/1.0, not 1.1.
    pub(crate) old: bool,
    /// The fields.
    pub(crate) fields: Fields,
}

/// Why bytes are not a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    /// They do not match the grammar of RFC 9112.
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the head has more than {HEAD_LIMIT} bytes or {FIELD_LIMIT} fields")]
    TooLarge,
}

/// Parses a request head at the start of `bytes`. Returns the head and its length, or `None` if
/// more bytes are needed.
pub(crate) fn request(bytes: &[u8]) -> Result<Option<(RequestHead, usize)>, HeadError> {
    // A client that speaks another protocol waits for a response, so it is rejected before a whole
    // head has arrived.
    let method = bytes.iter().take_while(|&&b| b != b' ');
    if !method.clone().all(|&b| is_token(b)) || method.count() > 32 {
        return Err(HeadError::Malformed("this is not an HTTP request"));
    }
    let Some(len) = whole(bytes)? else {
        return Ok(None);
    };
    let mut fields = [httparse::EMPTY_HEADER; FIELD_LIMIT];
    let mut parsed = httparse::Request::new(&mut fields);
    let status = parsed.parse(&bytes[..len]).map_err(malformed)?;
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(HeadError::Malformed("the request line is incomplete"));
    };
    if status != httparse::Status::Complete(len) {
        return Err(HeadError::Malformed(
            "the head does not end at its empty line",
        ));
    }
    let fields = Fields::new(parsed.headers);
    check_host(&fields)?;
    let head = RequestHead {
        method: method.to_owned(),
        target: target.to_owned(),
        old: parsed.version == Some(0),
        fields,
    };
    Ok(Some((head, len)))
}

/// Rejects what [RFC 9112, section 3.2], requires a server to reject: more than one `Host`, or one
/// that is not a host with an optional port. It may be empty.
///
/// [RFC 9112, section 3.2]: https://www.rfc-editor.org/rfc/rfc9112#section-3.2
fn check_host(fields: &Fields) -> Result<(), HeadError> {
    let mut hosts = fields.all("host");
    let Some(host) = hosts.next() else {
        return Ok(());
    };
    if hosts.next().is_some() {
        return Err(HeadError::Malformed("the request has two Host fields"));
    }
    let is_valid = |text: &str| {
        // RFC 3986, section 3.2.3: the port may be empty.
        let text = text.strip_suffix(':').unwrap_or(text);
        text.is_empty() || Authority::parse_or(text, 80).is_ok()
    };
    if str::from_utf8(host).is_ok_and(is_valid) {
        Ok(())
    } else {
        Err(HeadError::Malformed("the value of Host is not a host"))
    }
}

impl RequestHead {
    /// Whether it has no `Host`, which every HTTP/1.1 request must have ([RFC 9112, section 3.2]).
    ///
    /// [RFC 9112, section 3.2]: https://www.rfc-editor.org/rfc/rfc9112#section-3.2
    pub(crate) fn lacks_host(&self) -> bool {
        !self.old && !self.fields.has("host")
    }
}

/// Parses the head of the final response at the start of `bytes`, after any interim responses ([RFC
/// 9110, section 15.2]: "A client MUST be able to parse one or more 1xx responses received prior to
/// a final response"). Returns the head and the length of all of them, which together must not
/// exceed [`HEAD_LIMIT`]. A 101 is final, because another protocol follows it.
///
/// [RFC 9110, section 15.2]: https://www.rfc-editor.org/rfc/rfc9110#section-15.2
pub(crate) fn final_response(bytes: &[u8]) -> Result<Option<(ResponseHead, usize)>, HeadError> {
    let mut at = 0;
    while let Some((head, len)) = response(bytes.get(at..).unwrap_or_default())? {
        at += len;
        if at > HEAD_LIMIT {
            return Err(HeadError::TooLarge);
        }
        if head.status == 101 || head.status >= 200 {
            return Ok(Some((head, at)));
        }
    }
    if bytes.len() >= HEAD_LIMIT {
        return Err(HeadError::TooLarge);
    }
    Ok(None)
}

/// Parses a response head at the start of `bytes`. Returns the head and its length, or `None` if
/// more bytes are needed.
pub(crate) fn response(bytes: &[u8]) -> Result<Option<(ResponseHead, usize)>, HeadError> {
    const START: &[u8] = b"HTTP/1.";
    let known = bytes.len().min(START.len());
    if bytes[..known] != START[..known] {
        return Err(HeadError::Malformed("this is not an HTTP response"));
    }
    let Some(len) = whole(bytes)? else {
        return Ok(None);
    };
    let mut fields = [httparse::EMPTY_HEADER; FIELD_LIMIT];
    let mut parsed = httparse::Response::new(&mut fields);
    let status = parsed.parse(&bytes[..len]).map_err(malformed)?;
    match (status, parsed.code) {
        (httparse::Status::Complete(n), Some(code @ 100..)) if n == len => Ok(Some((
            ResponseHead {
                status: code,
                old: parsed.version == Some(0),
                fields: Fields::new(parsed.headers),
            },
            len,
        ))),
        _ => Err(HeadError::Malformed("the status line is incomplete")),
    }
}

/// The reason phrase in a response head, as sent; it may be empty. Only a proxy needs it, so it is
/// not a part of [`ResponseHead`].
pub(crate) fn reason_phrase(head: &[u8]) -> &[u8] {
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    line.splitn(3, |&b| b == b' ').nth(2).unwrap_or_default()
}

/// The length of the head with its empty line, if that has arrived.
fn whole(bytes: &[u8]) -> Result<Option<usize>, HeadError> {
    let within = &bytes[..bytes.len().min(HEAD_LIMIT)];
    let mut line_start = 0;
    // std searches for a byte by words here, and byte by byte with `position`.
    while let Ok(len @ 1..) = (&within[line_start..]).skip_until(b'\n') {
        let line = &within[line_start..line_start + len];
        if !line.ends_with(b"\n") {
            break;
        }
        // RFC 9112, section 2.2, allows a recipient to accept a bare LF as the end of a line. This
        // parser does not, so that no other reader finds a different end.
        if !line.ends_with(b"\r\n") {
            return Err(HeadError::Malformed("a line ends with LF alone, not CRLF"));
        }
        line_start += len;
        if len == 2 {
            return Ok(Some(line_start));
        }
    }
    if bytes.len() >= HEAD_LIMIT {
        Err(HeadError::TooLarge)
    } else {
        Ok(None)
    }
}

fn malformed(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooLarge,
        httparse::Error::Version => HeadError::Malformed("the HTTP version is neither 1.0 nor 1.1"),
        httparse::Error::HeaderName | httparse::Error::HeaderValue => {
            HeadError::Malformed("a field has an invalid byte, or is folded")
        }
        _ => HeadError::Malformed("the start line is not HTTP"),
    }
}

/// `tchar` of [RFC 9110, section 5.6.2](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONNECT: &[u8] =
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nX-A: 1\r\nx-a: 2, 3\r\n\r\n";

    #[test]
    fn a_request_head_is_the_same_in_any_segmentation() {
        let mut with_more = CONNECT.to_vec();
        with_more.extend(b"early data\n\n");
        for n in 0..CONNECT.len() {
            assert!(request(&with_more[..n]).expect("no error").is_none(), "{n}");
        }
        for n in CONNECT.len()..=with_more.len() {
            let (head, len) = request(&with_more[..n]).expect("no error").expect("whole");
            assert_eq!(
                (head.method.as_str(), head.target.as_str(), len),
                ("CONNECT", "example.com:443", CONNECT.len())
            );
            assert_eq!(
                head.fields.list("x-a").collect::<Vec<_>>(),
                [b"1", b"2", b"3"]
            );
            assert_eq!(head.fields.one("x-a"), None);
            assert_eq!(head.fields.one("host"), Some(&b"example.com:443"[..]));
        }
    }

    #[test]
    fn rejects_heads_that_two_readers_could_parse_differently() {
        for head in [
            &b"CONNECT a:1 HTTP/1.1\nHost: a\n\n"[..],
            b"CONNECT a:1 HTTP/1.1\r\nHost: a\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nHost : a\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nHo\0st: a\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nHost: a\rb\r\n\r\n",
            b"CONNECT a:1 HTTP/2.0\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1x\r\n\r\n",
            b"CONNECT a:1 http/1.1\r\n\r\n",
            b"CONNECT a:1\r\n\r\n",
            b"\n",
            b"\r\n\r\n",
        ] {
            assert!(
                matches!(request(head), Err(HeadError::Malformed(_))),
                "{:?}",
                String::from_utf8_lossy(head)
            );
        }
    }

    #[test]
    fn a_request_has_one_valid_host_at_most() {
        let head = |host: &str| request(format!("GET / HTTP/1.1\r\n{host}\r\n").as_bytes());
        for (host, lacks) in [
            ("", true),
            ("Host: a.test\r\n", false),
            ("Host: a.test:\r\n", false),
            ("Host: [::1]:8443\r\n", false),
            ("Host: 192.0.2.1:80\r\n", false),
            ("Host:\r\n", false),
        ] {
            let (head, _) = head(host).expect("no error").expect("whole");
            assert_eq!(head.lacks_host(), lacks, "{host:?}");
        }
        for host in [
            "Host: a\r\nHost: b\r\n",
            "Host: a\r\nhOST: a\r\n",
            "Host:\r\nX: 1\r\nHost:\r\n",
            "Host: a, b\r\n",
            "Host: a b\r\n",
            "Host: a/b\r\n",
            "Host: u@a\r\n",
            "Host: a:b\r\n",
            "Host: a:99999\r\n",
            "Host: [::1\r\n",
            "Host: http://a\r\n",
        ] {
            assert!(
                matches!(head(host), Err(HeadError::Malformed(_))),
                "{host:?}"
            );
        }
        let (old, _) = request(b"GET / HTTP/1.0\r\n\r\n")
            .expect("no error")
            .expect("whole");
        assert!(!old.lacks_host());
    }

    #[test]
    fn another_protocol_is_rejected_by_its_first_bytes() {
        for bytes in [
            &b"\x16\x03\x01\x02\x00"[..],
            b"\x05\x01\x00",
            b"SSH-2.0-x\r\n",
            b"\0\0",
            &[b'A'; 33],
        ] {
            assert!(
                matches!(request(bytes), Err(HeadError::Malformed(_))),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn a_head_is_limited_in_bytes_and_in_fields() {
        let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
        head.resize(HEAD_LIMIT - 4, b'x');
        head.extend(b"\r\n\r\n");
        assert!(request(&head).expect("no error").is_some());
        assert!(
            request(&head[..HEAD_LIMIT - 1])
                .expect("no error")
                .is_none()
        );
        head.insert(30, b'x');
        assert_eq!(request(&head).err(), Some(HeadError::TooLarge));
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(FIELD_LIMIT + 1)
        );
        assert_eq!(request(many.as_bytes()).err(), Some(HeadError::TooLarge));
    }

    #[test]
    fn parses_response_heads_and_rejects_other_bytes() {
        let (head, len) = response(b"HTTP/1.1 200 Connection Established\r\n\r\nrest")
            .expect("no error")
            .expect("whole");
        assert_eq!((head.status, len), (200, 39));
        assert!(
            response(b"HTTP/1.0 403\r\n\r\n")
                .expect("no error")
                .is_some()
        );
        assert!(response(b"HTT").expect("no error").is_none());
        for bytes in [
            &b"\x16\x03"[..],
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 20\r\n\r\n",
        ] {
            assert!(response(bytes).is_err(), "{bytes:?}");
        }
    }

    /// Heads as clients send them, and some invalid ones: a start line, fields, an empty line.
    fn any_head(start: &'static str) -> impl Strategy<Value = Vec<u8>> {
        let line_end = || prop_oneof![20 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just(" \r\n")];
        let field = (
            "[a-zA-Z-]{1,12}",
            ":[ \t]{0,2}",
            "[!-~ é]{0,30}",
            line_end(),
        );
        let fields = prop::collection::vec(field, 0..6);
        (start, line_end(), fields, line_end()).prop_map(|(start, first, fields, last)| {
            let mut head = start + first;
            for (name, colon, value, end) in fields {
                head.extend([name.as_str(), &colon, &value, end]);
            }
            (head + last).into_bytes()
        })
    }

    /// For every prefix of `bytes` from some length on, `read` returns the same result, and none
    /// before.
    fn has_one_result(
        bytes: &[u8],
        read: impl Fn(&[u8]) -> Option<String>,
    ) -> Result<(), TestCaseError> {
        let mut answer = None;
        for end in 0..=bytes.len() {
            let result_text = read(&bytes[..end]);
            prop_assert!(
                answer.is_none() || result_text == answer,
                "after {} bytes {:?}, before it {:?}",
                end,
                result_text,
                answer
            );
            answer = result_text;
        }
        Ok(())
    }

    fn result_text<T: fmt::Debug>(read: Result<Option<T>, HeadError>) -> Option<String> {
        read.transpose().map(|read| format!("{read:?}"))
    }

    proptest! {
        #[test]
        fn any_request_head_is_the_same_in_any_segmentation(
            head in any_head("(CONNECT|GET|P[A-Z]{1,33}) [!-~]{1,20}( HTTP/1\\.[01])?"), tail in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            has_one_result(&[head, tail].concat(), |front| result_text(request(front)))?;
        }

        #[test]
        fn any_response_head_is_the_same_in_any_segmentation(
            head in any_head("HTTP/1\\.[012] [0-9]{2,4}( [ -~]{0,20})?"), tail in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            has_one_result(&[head, tail].concat(), |front| result_text(response(front)))?;
        }

        #[test]
        fn any_bytes_result_in_a_head_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for bytes in [bytes.clone(), [b"CONNECT ", &bytes[..]].concat(), [b"HTTP/1.1 ", &bytes[..], b"\r\n\r\n"].concat()] {
                if let Ok(Some((_, len))) = request(&bytes) {
                    prop_assert!(len <= bytes.len());
                }
                if let Ok(Some((_, len))) = response(&bytes) {
                    prop_assert!(len <= bytes.len());
                }
            }
        }
    }

    #[test]
    fn interim_responses_before_the_final_one_are_skipped_within_the_limit() {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
        for (last, status) in [
            ("101 Switching Protocols", 101),
            ("200 OK", 200),
            ("403 No", 403),
        ] {
            let bytes = format!("HTTP/1.1 100 Continue\r\n\r\n{interim}HTTP/1.1 {last}\r\n\r\n");
            for end in 0..bytes.len() {
                assert!(
                    matches!(final_response(&bytes.as_bytes()[..end]), Ok(None)),
                    "{end}"
                );
            }
            let (head, len) = final_response((bytes.clone() + "rest").as_bytes())
                .unwrap()
                .unwrap();
            assert_eq!((head.status, len), (status, bytes.len()));
        }
        let endless = interim.repeat(HEAD_LIMIT / interim.len() + 1);
        assert!(matches!(
            final_response(endless.as_bytes()),
            Err(HeadError::TooLarge)
        ));
    }
}
