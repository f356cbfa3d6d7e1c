//! Stage `token`: where the session token comes from (`manual/operations.md`, row token).

use crate::config::Config;
use crate::crypto::secret::Secret;
use crate::error::{Error, ErrorKind, Stage};
use crate::setup::token_file::{self, TokenFile, is_token};

/// The session token, and where it comes from.
#[derive(Debug)]
pub(crate) enum SessionToken {
    /// The host passed it: there is no file to read or burn.
    Given(Secret),
    /// It was read from the token file.
    File(TokenFile),
}

/// The token of `config`, or else the one in its token file.
///
/// # Errors
/// There is no such file, or it does not contain a session token.
pub(crate) fn read(config: &Config) -> Result<SessionToken, Error> {
    match &config.token {
        None => token_file::read(&config.token_file).map(SessionToken::File),
        Some(token) if is_token(token.expose().as_bytes()) => {
            Ok(SessionToken::Given(token.clone()))
        }
        Some(_) => Err(Error::new(
            Stage::Token,
            ErrorKind::InvalidData,
            "the session token that the host passed is empty or contains a byte that is not visible ASCII",
            "pass the bare token",
        )),
    }
}

impl SessionToken {
    /// The token.
    pub(crate) fn secret(&self) -> Secret {
        match self {
            Self::Given(token) => token.clone(),
            Self::File(file) => file.secret(),
        }
    }

    /// Deletes the token file, if there is one. See [`TokenFile::burn`].
    pub(crate) fn burn(self) -> Result<(), Error> {
        match self {
            Self::Given(_) => Ok(()),
            Self::File(file) => file.burn(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_from_the_host_is_used_unchanged_and_no_file_is_touched() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("token");
        std::fs::write(&path, "from-the-file").expect("the token file");
        let config = Config::default().token_file(&path);
        let given = read(&config.clone().token("given".to_owned())).expect("a good token");
        assert_eq!(given.secret().expose(), "given");
        given.burn().expect("nothing to burn");
        assert!(path.exists());
        for token in ["", "a b", "a\n", "\u{e9}"] {
            let error = read(&config.clone().token(token.to_owned())).expect_err(token);
            assert_eq!(error.stage(), Stage::Token);
        }
        let from_file = read(&config).expect("the file");
        assert_eq!(from_file.secret().expose(), "from-the-file");
    }
}
