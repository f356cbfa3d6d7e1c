//! Checks the five stages of the lifecycle without executing them.

use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustls_pki_types::CertificateDer;

use super::check::{Check, Step};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Stage};
use crate::net::resolver::Resolver;
use crate::orchestrator::bind;
use crate::probe::options::RunningServe;
use crate::probe::prepared::{Prepared, read_token, session, trusted};
use crate::probe::problem::Problem;
use crate::setup::gate::Session;
use crate::setup::token_file::TokenFile;
use crate::setup::{bundle, ca, download, roots};

/// Checks every stage. Beside a running `serve` the token is already deleted, and its relay is
/// checked.
pub(super) fn check_all(
    config: &Config,
    running: Option<&RunningServe>,
    report: &mut dyn FnMut(Check),
) -> Prepared {
    let session = session(config);
    report(Check::of(
        Step::Gate,
        session.as_ref().map(opened).map_err(Clone::clone),
    ));
    let Ok(session) = session else {
        for step in [Step::Token, Step::Ca, Step::Relay, Step::Burn] {
            report(Check::skipped(step, "the gate is closed"));
        }
        return Prepared {
            session: None,
            token: None,
            roots: None,
        };
    };

    let deleted = |running: &RunningServe| {
        Ok(format!(
            "deleted: the serve with process ID {} has read it",
            running.pid
        ))
    };
    let token = running.is_none().then(|| read_token(config));
    report(Check::of(
        Step::Token,
        match (&token, running) {
            (Some(Err(error)), _) => Err(error.clone()),
            (None, Some(running)) => deleted(running),
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
    report(
        match found {
            Ok(merged) => Check::ok(Step::Ca, merged.detail)
                .number("base_roots", merged.base)
                .number("upstream_roots", merged.upstream)
                .number("bundle_roots", merged.all),
            Err(error) => Check::wrong(Step::Ca, error.into()),
        }
        .after(took),
    );

    report(match running {
        Some(running) => Check::of(Step::Relay, listens(config, running)),
        None => Check::of(Step::Relay, can_listen(config)),
    });

    report(match (&token, running) {
        (_, Some(running)) => Check::of::<Problem>(
            Step::Burn,
            deleted(running).map_err(|error: Error| error.into()),
        ),
        (Some(Ok(token)), None) => Check::of(Step::Burn, can_burn(config, token)),
        _ => Check::skipped(Step::Burn, "there is no token file, see token"),
    });
    Prepared {
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

fn can_burn(config: &Config, token: &TokenFile) -> Result<String, Error> {
    token
        .can_burn()
        .map(|()| format!("{} can be deleted", config.token_file.display()))
}

/// What the bundle would contain.
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
    let base_roots = roots::base_roots(config)?;
    let downloaded = download::download(config, &session.base, &Resolver::new(), trusted)?;
    can_write(&place)?;
    let (base, upstream) = (base_roots.len(), downloaded.len());
    let all = ca::merge(config, base_roots, downloaded).len();
    Ok(Merged {
        base,
        upstream,
        all,
        detail: format!(
            "{base} base roots, {upstream} from the upstream, {all} in {}",
            place.display()
        ),
    })
}

/// Whether this user may write the bundle to `place`: into its directory, or into the parent in
/// which the directory would be created. Nothing is written.
fn can_write(place: &Path) -> Result<(), Error> {
    let directory = place.parent().unwrap_or(Path::new("/"));
    let there = if directory.exists() {
        directory
    } else {
        directory.parent().unwrap_or(directory)
    };
    let may = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, there, may, AtFlags::EACCESS).map_err(|errno| {
        Error::new(
            Stage::Ca,
            ErrorKind::Io,
            format!(
                "this user cannot write the CA bundle to the directory {}: {errno}",
                there.display()
            ),
            "make it writable, or set another path with --ca-bundle",
        )
    })
}

fn can_listen(config: &Config) -> Result<String, Error> {
    bind(config).map(|_| format!("{} can be bound", config.listen))
}

/// Whether the running `serve` accepts connections.
fn listens(config: &Config, running: &RunningServe) -> Result<String, Problem> {
    let RunningServe { pid, relay, .. } = running;
    TcpStream::connect_timeout(relay, config.limits.connect_timeout)
        .map(|_| format!("the serve with process ID {pid} listens on {relay}"))
        .map_err(|error| {
            Problem::new(
                format!("the serve with process ID {pid} does not answer on {relay}: {error}"),
                "check its log, and restart it with a fresh token",
            )
        })
}
