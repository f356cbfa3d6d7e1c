//! Stage `token`: where the session token comes from (`manual/operations.md`, row token).

use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
#[cfg(feature = "cli")]
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::{Config, DEFAULT_TOKEN_FILE};
use crate::control::log;
use crate::crypto::secret::Secret;
use crate::error::{Error, ErrorKind, Stage};
use crate::setup::token_file::{self, Found, Kept, TokenFile, is_token};
use crate::setup::token_stream;
use crate::sys::inherited;

/// The name of the token among the credentials of a systemd service (`LoadCredential=`).
const CREDENTIAL: &str = "upstreamproxy-token";

/// Where the session token is.
#[derive(Debug)]
pub(crate) enum TokenSource<'a> {
    /// The host passed it.
    Given(&'a Secret),
    /// An inherited descriptor.
    Descriptor(RawFd),
    /// A file or a FIFO.
    Path(PathBuf),
    /// A file in the credentials directory of a systemd service.
    Credential(PathBuf),
}

impl<'a> TokenSource<'a> {
    /// The first source that `config` names: a token, a descriptor, a path other than the default
    /// one, a credential of systemd, the default path.
    pub(crate) fn of(config: &'a Config) -> Self {
        if let Some(token) = &config.token {
            return Self::Given(token);
        }
        let path = &config.token_file;
        if let Some(number) = config.token_fd.or_else(|| descriptor_number(path)) {
            return Self::Descriptor(number);
        }
        if path == Path::new(DEFAULT_TOKEN_FILE) && config.source("token-file").is_none() {
            let directory = config.inherited.lookup("CREDENTIALS_DIRECTORY");
            let credential = directory.map(|directory| Path::new(directory).join(CREDENTIAL));
            if let Some(credential) = credential.filter(|path| path.exists()) {
                return Self::Credential(credential);
            }
        }
        Self::Path(path.clone())
    }
}

impl fmt::Display for TokenSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("the token that the host passed"),
            Self::Descriptor(0) => f.write_str("standard input"),
            Self::Descriptor(number) => write!(f, "the descriptor {number}"),
            Self::Path(path) | Self::Credential(path) => path.display().fmt(f),
        }
    }
}

/// The descriptor that the path of a token file means: `-` is standard input, and a shell passes
/// `/dev/fd/N` for `<(command)`. Such a path is a link, which leads to no directory.
fn descriptor_number(path: &Path) -> Option<RawFd> {
    match path.to_str()? {
        "-" | "/dev/stdin" => Some(0),
        text => ["/dev/fd/", "/proc/self/fd/"]
            .iter()
            .find_map(|directory| text.strip_prefix(directory))
            .and_then(|number| number.parse().ok())
            .filter(|&number| number >= 0),
    }
}

/// The session token, and what `burn` has to do.
#[derive(Debug)]
pub(crate) enum SessionToken {
    /// There is no file to delete: the host passed it, or it was read from a stream.
    InMemory(Secret),
    /// It was read from a token file.
    File(TokenFile),
}

/// Reads the token.
///
/// Blocks for at most [`token_stream::TIMEOUT`], and only for a descriptor or a FIFO.
///
/// # Errors
/// There is no such file or descriptor, or it does not contain a session token.
pub(crate) fn read(config: &Config) -> Result<SessionToken, Error> {
    let stream = |descriptor: OwnedFd, source: &str| {
        token_stream::read(&descriptor, source, &config.cancel).map(SessionToken::InMemory)
    };
    let file = |found, path: &Path| match found {
        Found::File(file) => Ok(SessionToken::File(file)),
        Found::Fifo(fifo) => stream(fifo, &token_file::describe(path)),
    };
    let source = TokenSource::of(config);
    match &source {
        TokenSource::Given(token) => given(Secret::clone(token)).map(SessionToken::InMemory),
        TokenSource::Descriptor(number) => {
            let source = source.to_string();
            let descriptor = inherited::take(*number).map_err(|error| {
                Error::new(
                    Stage::Token,
                    ErrorKind::Io,
                    format!("{source} cannot be read as the session token: {error}"),
                    "open it in the program that starts this one, without close-on-exec",
                )
            })?;
            stream(descriptor, &source)
        }
        TokenSource::Path(path) => file(token_file::open_token(path, None)?, path),
        TokenSource::Credential(path) => {
            file(token_file::open_token(path, Some(Kept::Credential))?, path)
        }
    }
}

/// Reads the token again, after [`read`].
///
/// It does not block. A source that can be read only once is not read.
///
/// # Errors
/// The source can be read only once (`SwitchedOff`), or [`read`] would fail.
#[cfg(feature = "cli")]
pub(crate) fn read_again(config: &Config) -> Result<SessionToken, Error> {
    let source = TokenSource::of(config);
    let once = || {
        Error::new(
            Stage::Token,
            ErrorKind::SwitchedOff,
            format!("{source} can be read only once"),
            "start this program again, or use a token file with token-file (--token-file)",
        )
    };
    let found = match &source {
        TokenSource::Given(_) | TokenSource::Descriptor(_) => return Err(once()),
        TokenSource::Path(path) => token_file::open_token(path, None)?,
        TokenSource::Credential(path) => token_file::open_token(path, Some(Kept::Credential))?,
    };
    match found {
        Found::File(file) => Ok(SessionToken::File(file)),
        Found::Fifo(_) => Err(once()),
    }
}

/// The file that a token file leads to which is a symbolic link.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkTarget {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

/// What the token file leads to. `None`: it is not a link, or its target does not exist.
#[cfg(feature = "cli")]
pub(crate) fn link_target(config: &Config) -> Option<LinkTarget> {
    let TokenSource::Path(path) = TokenSource::of(config) else {
        return None;
    };
    if !path.is_symlink() {
        return None;
    }
    let target = path.metadata().ok()?;
    Some(LinkTarget {
        device: target.dev(),
        inode: target.ino(),
        modified: (target.mtime(), target.mtime_nsec()),
    })
}

/// Checks a token that the host passed.
///
/// # Errors
/// It cannot be a token.
pub(crate) fn given(token: Secret) -> Result<Secret, Error> {
    if is_token(token.expose().as_bytes()) {
        return Ok(token);
    }
    Err(Error::new(
        Stage::Token,
        ErrorKind::InvalidData,
        "the session token that the host passed is empty or contains a byte that is not visible ASCII",
        "pass the bare token",
    ))
}

impl SessionToken {
    /// The token.
    pub(crate) fn secret(&self) -> Secret {
        match self {
            Self::InMemory(token) => token.clone(),
            Self::File(file) => file.secret(),
        }
    }

    /// Whether [`burn`](Self::burn) would succeed, and what it would do. Changes nothing.
    #[cfg(feature = "cli")]
    pub(crate) fn can_burn(&self, keep: bool) -> Result<String, Error> {
        match self {
            Self::InMemory(_) => Ok("the token is not in a file".to_owned()),
            Self::File(_) if keep => Ok("the token file is kept, as requested".to_owned()),
            Self::File(file) => file.can_burn(),
        }
    }

    /// Like [`burn`](Self::burn), for a token that was read again. A file that is never deleted is
    /// not reported: that was done at the start.
    #[cfg(feature = "cli")]
    pub(crate) fn burn_again(self, keep: bool) -> Result<(), Error> {
        let keep = keep || matches!(&self, Self::File(file) if file.kept.is_some());
        self.burn(keep)
    }

    /// Deletes the token file, if there is one and it is not to be kept. See [`TokenFile::burn`].
    pub(crate) fn burn(self, keep: bool) -> Result<(), Error> {
        match self {
            Self::InMemory(_) => Ok(()),
            Self::File(_) if keep => {
                log::debug!("the token file is not deleted, as requested");
                Ok(())
            }
            Self::File(file) => file.burn(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn a_token_from_the_host_is_used_unchanged_and_no_file_is_touched() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("token");
        std::fs::write(&path, "from-the-file").expect("the token file");
        let config = Config::default().token_file(&path);
        let given = read(&config.clone().token("given".to_owned())).expect("a good token");
        assert_eq!(given.secret().expose(), "given");
        given.burn(false).expect("nothing to burn");
        assert!(path.exists());
        for token in ["", "a b", "a\n", "\u{e9}"] {
            let error = read(&config.clone().token(token.to_owned())).expect_err(token);
            assert_eq!(error.stage(), Stage::Token);
        }
        let from_file = read(&config).expect("the file");
        assert_eq!(from_file.secret().expose(), "from-the-file");
        from_file.burn(true).expect("it is kept");
        assert!(path.exists());
        read(&config)
            .expect("the file")
            .burn(false)
            .expect("the burn");
        assert!(!path.exists());
    }

    #[test]
    fn paths_of_descriptors_are_recognized() {
        for (path, number) in [
            ("-", Some(0)),
            ("/dev/stdin", Some(0)),
            ("/dev/fd/63", Some(63)),
            ("/proc/self/fd/3", Some(3)),
            ("/dev/fd/-1", None),
            ("/dev/fd/", None),
            ("/dev/fd/3/x", None),
            ("./-", None),
            ("/run/token", None),
        ] {
            assert_eq!(descriptor_number(Path::new(path)), number, "{path}");
        }
    }

    #[test]
    fn a_credential_of_systemd_is_used_unless_another_source_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let credential = directory.path().join(CREDENTIAL);
        std::fs::write(&credential, "canary").expect("the credential");
        let environment = |variables: &[(&str, &str)]| {
            Config::from_environment(variables.iter().copied().collect::<Environment>())
        };
        let place = directory.path().to_str().expect("a path in UTF-8");
        let service = environment(&[("CREDENTIALS_DIRECTORY", place)]);
        let token = read(&service).expect("the credential");
        assert_eq!(token.secret().expose(), "canary");
        token.burn(false).expect("systemd deletes it");
        assert!(credential.exists());

        let named = environment(&[
            ("CREDENTIALS_DIRECTORY", place),
            ("UPSTREAMPROXY_TOKEN_FILE", "/nowhere/token"),
        ]);
        let error = read(&named).expect_err("there is no such file");
        assert!(error.to_string().contains("/nowhere/token"));
        std::fs::remove_file(&credential).expect("deleting");
        assert!(matches!(TokenSource::of(&service), TokenSource::Path(_)));
    }
}
