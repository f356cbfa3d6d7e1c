//! What a connection to the upstream needs: session, token and roots, read without changing
//! anything.

use rustls_pki_types::CertificateDer;

use crate::config::Config;
use crate::control::log;
use crate::crypto::secret::Secret;
use crate::error::{Error, ErrorKind, Stage};
use crate::setup::gate::{self, Gate, Session};
use crate::setup::token_file::{self, TokenFile};
use crate::setup::{hardening, roots};

/// What the later steps need; `None` where the stage failed.
pub(crate) struct Prepared {
    pub(crate) session: Option<Session>,
    pub(crate) token: Option<Secret>,
    /// The roots for connections to the upstream.
    pub(crate) roots: Option<Vec<CertificateDer<'static>>>,
}

/// What a connection to the upstream needs. Reports nothing and downloads nothing. If the token
/// file is deleted, no token is read.
#[cfg(feature = "bench")]
pub(crate) fn prepare(config: &Config, token_deleted: bool) -> Result<Prepared, Error> {
    let session = session(config)?;
    let token = if token_deleted {
        None
    } else {
        Some(read_token(config)?.secret())
    };
    let roots = match trusted(config) {
        Err(error) if session.base.secure() => return Err(error),
        roots => roots.ok(),
    };
    Ok(Prepared {
        session: Some(session),
        token,
        roots,
    })
}

/// The session that the gate admits. A closed gate is an error here.
pub(crate) fn session(config: &Config) -> Result<Session, Error> {
    match gate::check(config)? {
        Gate::Open(session) => Ok(session),
        Gate::Closed { reason } => Err(Error::new(
            Stage::Gate,
            ErrorKind::SwitchedOff,
            reason,
            "set both switches, or pass --when always with a base URL",
        )),
    }
}

/// Protects the process and reads the token file, without deleting it.
pub(crate) fn read_token(config: &Config) -> Result<TokenFile, Error> {
    if config.harden
        && let Err(error) = hardening::protect()
    {
        log::debug!("other processes of this user can read this process: {error}");
    }
    token_file::read(&config.token_file)
}

/// The roots for connections to the upstream.
pub(crate) fn trusted(config: &Config) -> Result<Vec<CertificateDer<'static>>, Error> {
    roots::connection_roots(config, &roots::base_roots(config)?)
}
