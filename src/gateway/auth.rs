//! Who may use the gateway: the sessions file, and the two credentials of `manual/protocol.md` checked against it.
//!
//! Every check compares with every session, without leaving early, so that its time tells neither which sessions there
//! are nor how much of a token was right. What to answer, and when the file is read again, is not decided here.

use std::collections::HashSet;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::crypto::secret::{Credentials, Secret};
use crate::sys::files::{self, ReadError};

/// The largest sessions file: some 10,000 sessions with long tokens, and no more memory than a mistaken path should cost.
const FILE_LIMIT: usize = 4 * 1024 * 1024;
/// Permission bits by which others than the owner can read the file.
const READABLE_BY_OTHERS: u32 = 0o044;

/// The sessions that the gateway serves; none by default, and then nobody comes in.
#[derive(Debug, Default)]
pub struct Sessions(Vec<Credentials>);

/// Proof that an upgrade carried a session's token; the `Basic` inside the tunnel must repeat that token.
///
/// It holds the token rather than a place in the list: several sessions may share one token, and the list may have been
/// read again before the opening comes.
#[derive(Debug)]
pub(crate) struct Bearer(Secret);

impl Sessions {
    /// The one session of an embedded gateway.
    pub fn single(credentials: Credentials) -> Self {
        Self(vec![credentials])
    }

    /// Reads a sessions file: a regular one, links followed (mounted secrets are links). Readable by others: a warning.
    pub fn load(path: &Path) -> Result<Self, SessionsError> {
        let at = |problem| SessionsError {
            path: Some(path.to_owned()),
            problem,
        };
        let text = read_file(path).map_err(at)?;
        let text = std::str::from_utf8(&text).map_err(|error| {
            let good = text.get(..error.valid_up_to()).unwrap_or_default();
            at(SessionsProblem::Line {
                number: good.split(|&byte| byte == b'\n').count(),
            })
        })?;
        parse_lines(text).map_err(at)
    }

    /// Reads the text of a sessions file: one `SESSION_ID TOKEN` a line, empty lines and `#` comments skipped.
    ///
    /// # Errors
    ///
    /// A line that is none of these, an id that comes twice, or no session at all: a file caught while it was being
    /// written must not lock everybody out.
    pub fn parse(text: &str) -> Result<Self, SessionsError> {
        parse_lines(text).map_err(|problem| SessionsError {
            path: None,
            problem,
        })
    }

    /// How many sessions there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Checks the upgrade's `Authorization`: `Bearer <token>` of any session ([RFC 6750, section 2.1]).
    ///
    /// [RFC 6750, section 2.1]: https://www.rfc-editor.org/rfc/rfc6750#section-2.1
    pub(crate) fn bearer(&self, header_value: &[u8]) -> Option<Bearer> {
        let token = behind_scheme(header_value, "Bearer")?;
        let mut proof = None;
        for session in &self.0 {
            if session.token.matches(token) {
                proof = Some(Bearer(session.token.clone()));
            }
        }
        proof
    }

    /// Checks the opening's `Proxy-Authorization`, `Basic base64(id ":" token)` ([RFC 7617, section 2]): the session id,
    /// if the token is that session's and the one that the upgrade carried.
    ///
    /// [RFC 7617, section 2]: https://www.rfc-editor.org/rfc/rfc7617#section-2
    pub(crate) fn basic(&self, header_value: &[u8], upgrade: &Bearer) -> Option<&str> {
        let encoded = behind_scheme(header_value, "Basic")?;
        let pair = Zeroizing::new(BASE64.decode(encoded).ok()?);
        let mut parts = pair.splitn(2, |&byte| byte == b':');
        let (id, token) = (parts.next()?, parts.next()?);
        let same_as_upgrade = upgrade.0.matches(token);
        let mut found = None;
        for session in &self.0 {
            // The token first and for every session: an unknown id must cost what a known one does.
            let right_token = session.token.matches(token);
            let right_id = bool::from(session.session_id.as_bytes().ct_eq(id));
            if right_token & right_id & same_as_upgrade {
                found = Some(session.session_id.as_str());
            }
        }
        found
    }
}

/// What stands behind `scheme`, whose case does not matter, and at least one space ([RFC 9110, section 11.4]).
///
/// [RFC 9110, section 11.4]: https://www.rfc-editor.org/rfc/rfc9110#section-11.4
fn behind_scheme<'a>(header_value: &'a [u8], scheme: &str) -> Option<&'a [u8]> {
    let mut words = header_value.trim_ascii().splitn(2, |&byte| byte == b' ');
    let named = words.next()?.eq_ignore_ascii_case(scheme.as_bytes());
    let rest = words.next()?.trim_ascii_start();
    (named && !rest.is_empty()).then_some(rest)
}

fn parse_lines(text: &str) -> Result<Sessions, SessionsProblem> {
    let mut sessions: Vec<Credentials> = Vec::new();
    let mut known = HashSet::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(id), Some(token), None) = (words.next(), words.next(), words.next()) else {
            return Err(SessionsProblem::Line { number });
        };
        // A colon in the id would end it early inside `Basic`.
        if !is_visible_ascii(id) || !is_visible_ascii(token) || id.contains(':') {
            return Err(SessionsProblem::Line { number });
        }
        if !known.insert(id) {
            return Err(SessionsProblem::Twice { number });
        }
        sessions.push(Credentials {
            session_id: id.to_owned(),
            token: Secret::new(token.to_owned()),
        });
    }
    if sessions.is_empty() {
        return Err(SessionsProblem::Empty);
    }
    Ok(Sessions(sessions))
}

fn is_visible_ascii(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Reads a sessions file. Links are followed.
fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, SessionsProblem> {
    let file = files::open_regular(path)?;
    let mode = file.metadata().map_err(ReadError::Io)?.permissions().mode();
    if mode & READABLE_BY_OTHERS != 0 {
        log::warn!(
            "sessions file {}: others than its owner can read the tokens; chmod 600 it",
            path.display()
        );
    }
    Ok(files::read_limited(&file, FILE_LIMIT)?)
}

/// Why there are no sessions: which file, which line, what to do. Never what the line says.
#[derive(Debug)]
pub struct SessionsError {
    path: Option<PathBuf>,
    problem: SessionsProblem,
}

#[derive(Debug)]
enum SessionsProblem {
    Unreadable(ReadError),
    Line { number: usize },
    Twice { number: usize },
    Empty,
}

impl From<ReadError> for SessionsProblem {
    fn from(error: ReadError) -> Self {
        Self::Unreadable(error)
    }
}

impl fmt::Display for SessionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "sessions file {}: ", path.display())?,
            None => f.write_str("sessions: ")?,
        }
        match &self.problem {
            SessionsProblem::Unreadable(error) => {
                let remedy = match error {
                    ReadError::Io(_) => "make it readable for the gateway",
                    ReadError::NotRegular => "name one",
                    ReadError::TooLarge { .. } => "check that it is the right file",
                };
                write!(f, "{error}; {remedy}")
            }
            SessionsProblem::Line { number } => write!(
                f,
                "line {number} is not `SESSION_ID TOKEN`; write two words of visible ASCII, no colon in the first"
            ),
            SessionsProblem::Twice { number } => write!(
                f,
                "line {number} has a session id that came before; keep one of them"
            ),
            SessionsProblem::Empty => {
                f.write_str("no session in it; write `SESSION_ID TOKEN` on a line")
            }
        }
    }
}

impl std::error::Error for SessionsError {}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# who may come in\n\ns-1 canary-one\r\n\ts-2   canary-two  \ns-3 canary-one\n";

    fn sessions() -> Sessions {
        Sessions::parse(TEXT).unwrap()
    }

    fn basic(id: &str, token: &str) -> String {
        let credentials = Credentials {
            session_id: id.to_owned(),
            token: Secret::new(token.to_owned()),
        };
        credentials.basic().to_string()
    }

    fn error(text: &str) -> String {
        Sessions::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn comments_and_empty_lines_are_no_sessions() {
        assert_eq!(sessions().len(), 3);
    }

    #[test]
    fn a_line_that_is_no_session_is_named_by_its_number_and_not_shown() {
        for line in [
            "canary",
            "s-1 canary extra",
            "s:1 canary",
            "s-1 canäry",
            "s-1 can\0ary",
            "\u{feff}s-1 canary",
            "s-1 canary # the first",
        ] {
            let error = error(&format!("# top\nok fine\n{line}\n"));
            assert!(error.contains("line 3 "), "{error}");
            assert!(!error.contains("can"), "{error}");
        }
    }

    #[test]
    fn an_id_that_comes_twice_is_refused_at_its_second_line() {
        assert!(error("a t1\nb t2\na t3\n").contains("line 3 "));
    }

    #[test]
    fn a_text_without_any_session_is_refused() {
        for text in ["", "\n\n", "# nobody\n"] {
            assert!(error(text).contains("no session"), "{text:?}");
        }
    }

    #[test]
    fn a_bearer_token_of_any_session_is_good() {
        for value in [
            "Bearer canary-one",
            "bearer canary-two",
            "BEARER   canary-one",
            " Bearer canary-one ",
        ] {
            assert!(sessions().bearer(value.as_bytes()).is_some(), "{value}");
        }
    }

    #[test]
    fn no_other_authorization_is_good() {
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer canary",
            "Bearer canary-one2",
            "Bearer canary-One",
            "Bearercanary-one",
            "Bearer\tcanary-one",
            "canary-one",
            "Basic canary-one",
            "Bearer canary-one canary-two",
            "Bearer canary-one, Bearer canary-one",
            "Bearer s-1",
            &basic("s-1", "canary-one"),
        ] {
            assert!(sessions().bearer(value.as_bytes()).is_none(), "{value:?}");
        }
        let long = [b"Bearer ".as_slice(), &vec![b'a'; 64 * 1024]].concat();
        assert!(sessions().bearer(&long).is_none());
        assert!(sessions().bearer(b"Bearer \xff\xfe").is_none());
    }

    #[test]
    fn the_credentials_of_the_relay_are_those_that_the_gateway_takes() {
        let credentials = Credentials {
            session_id: "s-9".to_owned(),
            token: Secret::new("with:colons:in:it".to_owned()),
        };
        let sessions = Sessions::single(credentials.clone());
        let bearer = sessions.bearer(credentials.bearer().as_bytes()).unwrap();
        let id = sessions.basic(credentials.basic().as_bytes(), &bearer);
        assert_eq!(id, Some("s-9"));
    }

    #[test]
    fn the_opening_must_belong_to_the_token_of_the_upgrade() {
        let sessions = sessions();
        let one = sessions.bearer(b"Bearer canary-one").unwrap();
        let two = sessions.bearer(b"Bearer canary-two").unwrap();
        let check = |id, token, upgrade| sessions.basic(basic(id, token).as_bytes(), upgrade);
        assert_eq!(check("s-1", "canary-one", &one), Some("s-1"));
        assert_eq!(check("s-2", "canary-two", &two), Some("s-2"));
        // Two sessions with one token are both behind its bearer.
        assert_eq!(check("s-3", "canary-one", &one), Some("s-3"));
        // Right in itself, but not what the upgrade proved.
        assert_eq!(check("s-2", "canary-two", &one), None);
        assert_eq!(check("s-1", "canary-one", &two), None);
        // Wrong in itself.
        assert_eq!(check("s-1", "canary-two", &two), None);
        assert_eq!(check("s-2", "canary-one", &one), None);
        assert_eq!(check("s-4", "canary-one", &one), None);
        assert_eq!(check("S-1", "canary-one", &one), None);
        assert_eq!(check("", "canary-one", &one), None);
        assert_eq!(check("s-1", "", &one), None);
    }

    #[test]
    fn what_is_no_basic_credential_is_refused() {
        let sessions = sessions();
        let one = sessions.bearer(b"Bearer canary-one").unwrap();
        let good = basic("s-1", "canary-one");
        let encoded = good.strip_prefix("Basic ").unwrap();
        assert!(sessions.basic(good.as_bytes(), &one).is_some());
        let lower = format!("basic {encoded}");
        assert!(sessions.basic(lower.as_bytes(), &one).is_some());
        for value in [
            "",
            "Basic",
            "Basic ",
            "Basic !!!!",
            "Basic s-1:canary-one",
            "Bearer canary-one",
            &format!("Bearer {encoded}"),
            &format!("Basic {encoded} {encoded}"),
            &format!("Basic {}", encoded.trim_end_matches('=')),
            &format!("Basic {}", BASE64.encode(b"s-1")),
        ] {
            assert!(sessions.basic(value.as_bytes(), &one).is_none(), "{value}");
        }
    }

    #[test]
    fn a_session_that_is_gone_from_the_file_opens_no_tunnel() {
        let one = sessions().bearer(b"Bearer canary-one").unwrap();
        let later = Sessions::parse("s-1 canary-new").unwrap();
        let opening = basic("s-1", "canary-one");
        assert!(later.basic(opening.as_bytes(), &one).is_none());
    }

    #[test]
    fn no_debug_output_shows_a_token() {
        let sessions = sessions();
        let bearer = sessions.bearer(b"Bearer canary-one");
        assert!(!format!("{sessions:?} {bearer:?}").contains("canary"));
    }

    #[test]
    fn a_file_is_read_through_a_link_and_named_in_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let missing = Sessions::load(&link).unwrap_err().to_string();
        assert!(missing.contains("link"), "{missing}");
        std::fs::write(&path, TEXT).unwrap();
        assert_eq!(Sessions::load(&link).unwrap().len(), 3);
        std::fs::write(&path, b"a b\n\xffc canary\n").unwrap();
        let error = Sessions::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("line 2 ") && !error.contains("canary"),
            "{error}"
        );
    }

    #[test]
    fn folders_devices_pipes_and_huge_files_are_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        for path in [folder.path(), Path::new("/dev/zero"), &pipe] {
            let error = Sessions::load(path).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        let huge = folder.path().join("huge");
        std::fs::File::create(&huge)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        let error = Sessions::load(&huge).unwrap_err().to_string();
        assert!(error.contains("larger than 4194304 bytes"), "{error}");
    }
}
