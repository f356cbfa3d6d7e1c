//! The five stages of the lifecycle, each looked at and none lived through.

use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustls_pki_types::CertificateDer;

use super::RunningServe;
use super::check::{Check, Problem, Step};
use crate::config::Config;
use crate::crypto::secret::Secret;
use crate::error::{Error, ErrorKind, Stage};
use crate::net::resolver::Resolver;
use crate::orchestrator::bind;
use crate::setup::gate::{self, Gate, Session};
use crate::setup::token::{self, TokenFile};
use crate::setup::{bundle, ca, download, hardening};

/// What the later steps build on; `None` where a stage is not satisfied.
pub(crate) struct Seen {
    pub(crate) session: Option<Session>,
    pub(crate) token: Option<Secret>,
    /// Whom our own connections to the upstream trust.
    pub(crate) roots: Option<Vec<CertificateDer<'static>>>,
}

/// Whether `stage` would be satisfied; what it found, in a few words. Writes, burns and changes nothing.
///
/// # Errors
/// What [`start`](crate::start) would be Disabled by, a switch that is off included.
pub(crate) fn check(config: &Config, stage: Stage) -> Result<String, Error> {
    match stage {
        Stage::Gate => session(config).map(|session| opened(&session)),
        Stage::Token => read_token(config).map(|_| readable(config)),
        Stage::Ca => {
            merged(config, &session(config)?, &trusted(config)?).map(|merged| merged.detail)
        }
        Stage::Relay => can_listen(config),
        Stage::Burn => can_burn(config, &read_token(config)?),
    }
}

/// What the way to the upstream needs, with nothing told, downloaded or changed; no token where it is `burnt`.
#[cfg(feature = "bench")]
pub(crate) fn see(config: &Config, burnt: bool) -> Result<Seen, Error> {
    let session = session(config)?;
    let token = if burnt {
        None
    } else {
        Some(read_token(config)?.secret())
    };
    let roots = match trusted(config) {
        Err(error) if session.base.secure() => return Err(error),
        roots => roots.ok(),
    };
    Ok(Seen {
        session: Some(session),
        token,
        roots,
    })
}

/// Every stage in turn. Beside a living `serve` the token is burnt already, and the relay is its.
pub(super) fn walk(
    config: &Config,
    living: Option<&RunningServe>,
    tell: &mut dyn FnMut(Check),
) -> Seen {
    let session = session(config);
    tell(Check::of(
        Step::Gate,
        session.as_ref().map(opened).map_err(Clone::clone),
    ));
    let Ok(session) = session else {
        for step in [Step::Token, Step::Ca, Step::Relay, Step::Burn] {
            tell(Check::skipped(step, "the gate is closed"));
        }
        return Seen {
            session: None,
            token: None,
            roots: None,
        };
    };

    let burnt = |living: &RunningServe| {
        Ok(format!(
            "burnt, the serve with process id {} has it",
            living.pid
        ))
    };
    let token = living.is_none().then(|| read_token(config));
    tell(Check::of(
        Step::Token,
        match (&token, living) {
            (Some(Err(error)), _) => Err(error.clone()),
            (None, Some(living)) => burnt(living),
            _ => Ok(readable(config)),
        },
    ));

    let since = Instant::now();
    let roots = trusted(config);
    let found = roots
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|roots| merged(config, &session, roots));
    let took = since.elapsed();
    tell(
        match found {
            Ok(merged) => Check::ok(Step::Ca, merged.detail)
                .number("base_roots", merged.base)
                .number("upstream_roots", merged.upstream)
                .number("bundle_roots", merged.all),
            Err(error) => Check::wrong(Step::Ca, error.into()),
        }
        .after(took),
    );

    tell(match living {
        Some(living) => Check::of(Step::Relay, listens(config, living)),
        None => Check::of(Step::Relay, can_listen(config)),
    });

    tell(match (&token, living) {
        (_, Some(living)) => Check::of::<Problem>(
            Step::Burn,
            burnt(living).map_err(|error: Error| error.into()),
        ),
        (Some(Ok(token)), None) => Check::of(Step::Burn, can_burn(config, token)),
        _ => Check::skipped(Step::Burn, "there is no token file to delete, see token"),
    });
    Seen {
        session: Some(session),
        token: token.and_then(Result::ok).map(|token| token.secret()),
        roots: roots.ok(),
    }
}

fn opened(session: &Session) -> String {
    format!("session {} at {}", session.id, session.base)
}

fn readable(config: &Config) -> String {
    format!("{} can be read", config.token_file.display())
}

fn session(config: &Config) -> Result<Session, Error> {
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

fn read_token(config: &Config) -> Result<TokenFile, Error> {
    if config.harden
        && let Err(error) = hardening::protect()
    {
        log::debug!("this process stays readable by others of the same user: {error}");
    }
    token::read(config)
}

fn can_burn(config: &Config, token: &TokenFile) -> Result<String, Error> {
    token
        .can_burn()
        .map(|()| format!("{} can be deleted", config.token_file.display()))
}

/// Whom our own connections trust.
fn trusted(config: &Config) -> Result<Vec<CertificateDer<'static>>, Error> {
    ca::connection_roots(config, &ca::base_roots(config)?)
}

/// What the bundle would hold.
struct Merged {
    base: usize,
    upstream: usize,
    all: usize,
    detail: String,
}

fn merged(
    config: &Config,
    session: &Session,
    trusted: &[CertificateDer<'static>],
) -> Result<Merged, Error> {
    let place = bundle::place(config)?;
    let base_roots = ca::base_roots(config)?;
    let downloaded = download::download(config, &session.base, &Resolver::new(), trusted)?;
    can_write(&place)?;
    let (base, upstream) = (base_roots.len(), downloaded.len());
    let all = ca::merge(config, base_roots, downloaded).len();
    Ok(Merged {
        base,
        upstream,
        all,
        detail: format!(
            "{base} base roots and {upstream} of the upstream, {all} in {}",
            place.display()
        ),
    })
}

/// Whether the bundle could be put at `place`: its folder, or the one that this would be made in, lets us. Nothing is tried.
fn can_write(place: &Path) -> Result<(), Error> {
    let folder = place.parent().unwrap_or(Path::new("/"));
    let there = if folder.exists() {
        folder
    } else {
        folder.parent().unwrap_or(folder)
    };
    let may = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, there, may, AtFlags::EACCESS).map_err(|errno| {
        Error::new(
            Stage::Ca,
            ErrorKind::Io,
            format!(
                "the folder {} does not let us write the CA bundle: {errno}",
                there.display()
            ),
            "let this user write to it, or name another place with --ca-bundle",
        )
    })
}

fn can_listen(config: &Config) -> Result<String, Error> {
    bind(config).map(|_| format!("{} can be listened on", config.listen))
}

/// Whether the living `serve` takes connections.
fn listens(config: &Config, living: &RunningServe) -> Result<String, Problem> {
    let RunningServe { pid, relay, .. } = living;
    TcpStream::connect_timeout(relay, config.limits.connect_timeout)
        .map(|_| format!("the serve with process id {pid} listens on {relay}"))
        .map_err(|error| {
            Problem::new(
                format!("the serve with process id {pid} does not answer on {relay}: {error}"),
                "look at its log, and start it again with a fresh token",
            )
        })
}
